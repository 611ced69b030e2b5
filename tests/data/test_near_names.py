"""Photos that a table names in another way than the files are called."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from oneshui_hf.data.load import load_faces
from oneshui_hf.data.near_names import NearNames
from oneshui_hf.data.pixels import load_pixels
from oneshui_hf.errors import OneshuiError
from support.faces import portrait

MakeFolder = Callable[..., Path]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("images\\0.png", "images/0.png"),
        ("images/0.PNG", "images/0.png"),
        ("IMAGES/0.png", "images/0.png"),
        (" images/0.png ", "images/0.png"),
        ("images%2F0.png", "images/0.png"),
        ("images/my%20photo.png", "images/my photo.png"),
        ("0.png", "images/0.png"),
        ("C:\\faces\\images\\0.png", "images/0.png"),
        ("images/0.jpg", "images/0.png"),
        ("images/Zoe\u0308.png", "images/Zo\u00eb.png"),
        ("1.jpg", None),  # two files
        ("images/7.png", None),
    ],
)
def test_near_name_is_found(name: str, found: str | None) -> None:
    assert NearNames(["images/0.png", "images/1.png", "more/1.png", "images/Zo\u00eb.png", "images/my photo.png"]).find(name) == found


def change_names(folder: Path, change: Callable[[str], str]) -> None:
    lines = (folder / "metadata.csv").read_text().splitlines()
    rows = [",".join([change(line.split(",")[0]), *line.split(",")[1:]]) for line in lines[1:]]
    (folder / "metadata.csv").write_text("\n".join([lines[0], *rows]) + "\n")


@pytest.mark.parametrize("change", [lambda name: name.replace("/", "\\"), str.upper, lambda name: name.replace(".png", ".JPG")])
def test_table_in_which_no_name_is_right_names_a_near_one(photo_folder: MakeFolder, change: Callable[[str], str]) -> None:
    folder = photo_folder(people=2, photos=2)
    change_names(folder, change)
    wrong = change("p00/0.png")
    with pytest.raises(OneshuiError) as caught:
        load_faces(str(folder))
    assert f"None of the 4 annotated photos exists: '{wrong}' does not exist, but 'p00/0.png' does (4 such names)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_table_in_which_some_names_are_wrong_names_a_near_one(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    change_names(folder, lambda name: name.replace("p01/", "p01\\"))
    for _ in range(2):  # the second load reads the cache
        faces = load_faces(str(folder))
        assert faces.exclusions.without_image == ["p01\\0.png", "p01\\1.png"]
        assert faces.exclusions.notes == [
            "'p01\\0.png' does not exist, but 'p01/0.png' does (2 such names); "
            "write the names as the files have them, with / between folders."
        ]
    change_names(folder, lambda name: name.replace("\\", "/"))
    assert load_faces(str(folder)).exclusions.notes == []


def test_photo_of_celeba_with_another_suffix_is_named(celeba_folder: MakeFolder) -> None:
    folder = celeba_folder()
    for photo in (folder / "img_align_celeba").glob("*.jpg"):
        photo.rename(photo.with_suffix(".JPG"))
    with pytest.raises(OneshuiError, match=r"'000001\.jpg' does not exist, but '000001\.JPG' does \(9 such names\)"):
        load_faces("celeba", folder)


@pytest.fixture(params=["jsonl", "parquet"])
def write_table(request: pytest.FixtureRequest, photo_folder: MakeFolder) -> Callable[..., Path]:
    """A factory of tables that name the photos of a folder."""

    def write(names: list[str], subfolder: str = "") -> Path:
        folder = photo_folder(people=2, photos=2)
        (folder / "metadata.csv").unlink()
        file = folder / subfolder / f"train.{request.param}"
        file.parent.mkdir(exist_ok=True)
        rows = [{"image": name, "identity": f"p{row % 2}", "Hat": row % 2} for row, name in enumerate(names)]
        if file.suffix == ".jsonl":
            file.write_text("\n".join(map(json.dumps, rows)))
        else:
            pq.write_table(pa.Table.from_pylist(rows), file)
        return file

    return write


def test_relative_path_is_resolved_against_the_table_folder(write_table: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_table(["p00/0.png", "./p01/../p01/1.png"])
    monkeypatch.chdir(file.parent.parent)
    faces = load_faces(str(file))
    assert [faces.encoded_image(row) for row in range(2)] == [str(file.parent / "p00/0.png"), str(file.parent / "p01/1.png")]
    assert faces.keys == ["0.png", "1.png"]


def test_relative_path_is_resolved_against_the_folder_of_several_tables(write_table: Callable[..., Path]) -> None:
    file = write_table(["p00/0.png", "here.png"], subfolder="data")
    portrait(0, 0).save(file.parent / "here.png")
    place = file if file.suffix == ".jsonl" else file.parent.parent  # a folder with more photos than tables is read as photos
    faces = load_faces(str(place))
    assert str(file.parent / "here.png") in [faces.encoded_image(row) for row in range(2)]


def test_near_name_of_a_table_is_named(write_table: Callable[..., Path]) -> None:
    faces = load_faces(str(write_table(["p00/0.png", "p01\\1.png"])))
    assert any("'p01\\1.png' does not exist, but 'p01/1.png' does" in note for note in faces.exclusions.notes)


@pytest.mark.parametrize(
    ("name", "words"), [("../outside.png", "names the photo .*, which is outside of its folder"), ("https://a.org/b.png", "is an address")]
)
def test_relative_path_outside_the_folder_and_address_raise(write_table: Callable[..., Path], name: str, words: str) -> None:
    file = write_table(["p00/0.png", name])
    with pytest.raises(OneshuiError, match=words):
        load_faces(str(file))


def test_absolute_path_of_another_machine_names_the_photo_inside(write_table: Callable[..., Path]) -> None:
    file = write_table(["p00/0.png", "/home/ann/faces/p01/1.png"])
    (file.parent / "p00/1.png").unlink()
    expected = r"names the photo /home/ann/faces/p01/1\.png, which is outside of its folder; 'p01/1\.png' is inside"
    with pytest.raises(OneshuiError, match=expected):
        load_faces(str(file))


def test_name_that_no_file_can_have_is_an_unreadable_photo(write_table: Callable[..., Path]) -> None:
    faces, _ = load_pixels(load_faces(str(write_table(["p00/0.png", "x" * 300 + ".png", "p01/1.png"]))), 16)
    assert faces.keys == ["0.png", "1.png"]

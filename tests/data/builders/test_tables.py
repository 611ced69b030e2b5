"""Tables of file names that are not called `metadata.csv`, absolute paths, and the files that belong to the fingerprint of a folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from oneshui_hf.data.load import load_faces, load_photo_keys
from oneshui_hf.errors import OneshuiError, UsageError
from support.faces import portrait

MakeFolder = Callable[..., Path]


def renamed_table(folder: Path, name: str = "faces.csv") -> Path:
    return (folder / "metadata.csv").rename(folder / name)


def make_run(path: Path) -> None:
    """Make a folder with the files of a run that `datasets` would take for tables and photos."""
    path.mkdir(parents=True)
    for name in ("oneshui", "split", "metrics", "preprocessor_config", "predictions"):
        (path / f"{name}.json").write_text("{}")
    portrait(9, 9).save(path / "figure.png")
    (path / "predictions").mkdir()
    portrait(9, 8).save(path / "predictions" / "figure.png")


def test_table_beside_the_photos_is_read_like_metadata(photo_folder: MakeFolder) -> None:
    plain, other = photo_folder(name="plain"), photo_folder(name="other")
    table = renamed_table(other)
    faces = load_faces(str(table))
    assert faces.fingerprint == load_faces(str(plain)).fingerprint
    assert faces.encoded_image(0) == str(other / "p00/0.png")
    assert faces.name == "faces"
    assert load_photo_keys(str(table)) == faces.photos_by_identity()


def test_table_is_read_from_any_working_directory(photo_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    table = renamed_table(photo_folder())
    before = load_faces(str(table)).fingerprint
    for place in (table.parent, table.parent / "p00", table.parent.parent):
        monkeypatch.chdir(place)
        assert load_faces(os.path.relpath(table)).fingerprint == before


@pytest.mark.parametrize("name", ["faces.CSV", "faces.tsv", "my faces.csv", "set [1].csv", "train.csv"])
def test_names_of_tables(photo_folder: MakeFolder, name: str) -> None:
    table = renamed_table(photo_folder(name="folder [2]"), name)
    if table.suffix == ".tsv":
        table.write_text(table.read_text().replace(",", "\t"))
    faces = load_faces(str(table))
    assert (len(faces), faces.people[0]) == (12, "p00")
    line = (table.read_text().splitlines()[3].split("\t" if table.suffix == ".tsv" else ","))[0]
    table.write_text(table.read_text().replace(line, "../outside.png"))
    with pytest.raises(OneshuiError, match=r"Line 4 of .* names \.\./outside\.png, which is outside of"):
        load_faces(str(table))


def test_two_tables_of_a_folder_have_their_own_caches(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    (folder / "half.csv").write_text("".join((folder / "metadata.csv").read_text().splitlines(keepends=True)[:7]))
    assert [len(load_faces(str(place))) for place in (folder, folder / "half.csv", folder / "metadata.csv", folder)] == [12, 6, 12, 12]


def test_moved_table_is_read_from_data_dir(photo_folder: MakeFolder) -> None:
    table = renamed_table(photo_folder())
    before = load_faces(str(table)).fingerprint
    moved = table.parent.rename(table.parent.with_name("moved"))
    assert load_faces(str(table), moved).fingerprint == before


def test_folder_whose_table_has_another_name_is_an_error_that_names_it(photo_folder: MakeFolder) -> None:
    table = renamed_table(photo_folder())
    with pytest.raises(OneshuiError, match=f"To read the table faces.csv, name it: {table}"):
        load_faces(str(table.parent))


def test_option_that_a_table_does_not_have_raises(photo_folder: MakeFolder) -> None:
    with pytest.raises(UsageError, match="has no subsets"):
        load_faces(str(renamed_table(photo_folder())), subset="one")


@pytest.mark.parametrize("table", ["metadata.csv", "faces.csv"])
def test_absolute_path_inside_the_folder_is_accepted(photo_folder: MakeFolder, table: str) -> None:
    folder = photo_folder()
    before = load_faces(str(folder))
    file = renamed_table(folder, table)
    file.write_text(file.read_text().replace("p0", f"{folder}/p0").replace(f",{folder}/", ","))
    place = folder if table == "metadata.csv" else file
    faces = load_faces(str(place))
    assert faces.people == before.people
    assert [faces.encoded_image(row) for row in range(12)] == [before.encoded_image(row) for row in range(12)]
    if table == "metadata.csv":
        assert faces.fingerprint == before.fingerprint
    else:  # photos with the same names are numbered, as for other tables of absolute paths
        assert faces.keys[0] == "train/000000"
    linked = folder.with_name("link")
    linked.symlink_to(folder)
    file.write_text(file.read_text().replace(f"{folder}/", f"{linked}/"))
    assert load_faces(str(place)).encoded_image(0) == before.encoded_image(0)


def test_runs_and_other_files_do_not_change_the_cache_of_a_folder(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    before = load_faces(str(folder))
    make_run(folder / "runs" / "test-seed0")
    make_run(folder / "p00" / "run")
    (folder / "notes.txt").write_text("no photo")
    (folder / "p00" / ".DS_Store").write_bytes(b"x")
    os.utime(folder / "metadata.csv")
    after = load_faces(str(folder))
    assert after.cache == before.cache
    assert after.exclusions == before.exclusions  # the figures of a run are no photos without a row


def test_new_photo_without_a_row_is_reported_from_the_same_cache(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    before = load_faces(str(folder)).cache
    portrait(5, 5).save(folder / "new.png")
    after = load_faces(str(folder))
    assert (after.cache, after.exclusions.without_row) == (before, ["new.png"])
    (folder / "new.png").unlink()
    assert load_faces(str(folder)).exclusions.without_row == []
    (folder / "oneshui.json").write_text("{}")  # the folder itself is never left out
    (folder / "p00" / "new.png").write_bytes(b"")
    assert load_faces(str(folder)).exclusions.without_row == ["p00/new.png"]


@pytest.mark.parametrize("change", ["photo", "labels", "missing"])
def test_changes_of_what_the_table_names_change_the_cache(photo_folder: MakeFolder, change: str) -> None:
    folder = photo_folder()
    before = load_faces(str(folder)).cache
    if change == "photo":
        portrait(7, 7).save(folder / "p01/0.png")
        os.utime(folder / "p01/0.png", ns=(1, 1))
    elif change == "labels":
        (folder / "metadata.csv").write_text((folder / "metadata.csv").read_text().replace("p00/0.png,p00,0", "p00/0.png,p00,1"))
    else:
        (folder / "p01/0.png").unlink()
    assert load_faces(str(folder)).cache != before


def test_runs_do_not_change_the_cache_of_celeba(celeba_folder: MakeFolder) -> None:
    folder = celeba_folder()
    before = load_faces("celeba", folder)
    make_run(folder / "runs" / "celeba-seed0")
    make_run(folder / "img_align_celeba" / "runs" / "celeba-seed0")
    (folder / "img_align_celeba" / "Thumbs.db").write_bytes(b"x")
    after = load_faces("celeba", folder)
    assert (after.cache, after.exclusions) == (before.cache, before.exclusions)
    portrait(9, 9).save(folder / "img_align_celeba" / "900000.jpg")
    after = load_faces("celeba", folder)
    assert (after.cache, after.exclusions.without_row) == (before.cache, ["900000.jpg"])


@pytest.mark.parametrize("table", ["metadata.csv", "faces.csv"])
def test_photos_of_the_same_name_elsewhere_do_not_change_the_cache(photo_folder: MakeFolder, table: str) -> None:
    folder = photo_folder()
    place = renamed_table(folder) if table == "faces.csv" else folder
    before = load_faces(str(place))
    for name in ("thumbnails/p00/0.png", "runs/a/0.png", "0.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        portrait(9, 9).save(folder / name)
    assert load_faces(str(place)).cache == before.cache
    portrait(9, 8).save(folder / "p00/0.png")
    assert load_faces(str(place)).cache != before.cache


def test_path_that_leaves_the_folder_and_returns_is_inside(photo_folder: MakeFolder) -> None:
    plain, other = photo_folder(name="plain"), photo_folder(name="other")
    table = other / "metadata.csv"
    table.write_text(table.read_text().replace("\np", "\n../other/p"))
    assert load_faces(str(other)).photos_by_identity() == {
        person: [f"../other/{key}" for key in keys] for person, keys in load_faces(str(plain)).photos_by_identity().items()
    }


def test_path_of_another_machine_names_the_photo_inside(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=1)
    table = folder / "metadata.csv"
    table.write_text(table.read_text().replace("p01/0.png", "/home/ann/p01.png").replace("p00/0.png", "/home/ann/0.png"))
    (folder / "p01/0.png").unlink()
    words = r"Line 2 of .* names /home/ann/0\.png, which is outside of .*photos; 'p00/0\.png' is inside; write the names as paths"
    with pytest.raises(OneshuiError, match=words):
        load_faces(str(folder))


def test_photo_in_two_spellings_is_a_second_time(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    with (folder / "metadata.csv").open("a") as file:
        file.write("p01/../p00/0.png,p01,0,0,0\n")
    with pytest.raises(OneshuiError, match=r"Line 6 of .* contains p01/\.\./p00/0\.png a second time"):
        load_faces(str(folder))


def test_header_with_spaces_is_read(photo_folder: MakeFolder) -> None:
    plain, spaced = photo_folder(name="plain"), photo_folder(name="spaced")
    table = spaced / "metadata.csv"
    table.write_text(table.read_text().replace("identity", " identity "))
    assert load_faces(str(spaced)).people == load_faces(str(plain)).people


def test_exact_column_name_comes_first(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    header, *rows = (folder / "metadata.csv").read_text().splitlines()
    for position in (0, 99):
        cells = [header.split(","), *(row.split(",") for row in rows)]
        for number, row in enumerate(cells):
            row.insert(position, f"x{number}" if number else "Identity")
        (folder / "metadata.csv").write_text("".join(",".join(row) + "\n" for row in cells))
        assert load_faces(str(folder)).people == ["p00", "p01", "p02", "p03"]


def test_text_that_is_not_utf_8_is_one_sentence(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    (folder / "metadata.csv").write_text((folder / "metadata.csv").read_text().replace("p00,", "p\u00e9,"), encoding="latin-1")
    with pytest.raises(OneshuiError, match=r"metadata\.csv is not a readable CSV file: it is not UTF-8 text; save it as UTF-8\.$"):
        load_faces(str(folder))


@pytest.mark.parametrize("missing", ["nan", "NaN", "<NA>", "#N/A", ""])
@pytest.mark.parametrize("label", ["Hat", "label"])
def test_label_that_is_missing_is_no_class(tmp_path: Path, missing: str, label: str) -> None:
    for number in range(4):
        portrait(number, 0).save(tmp_path / f"{number}.png")
    values = ["0", "1", "0", missing] if label == "Hat" else ["None", "NA", "old", missing]
    rows = [f"{number}.png,p{number % 2},{value}" for number, value in enumerate(values)]
    (tmp_path / "metadata.csv").write_text("\n".join([f"file_name,identity,{label}", *rows]) + "\n")
    with pytest.raises(OneshuiError, match=rf"Line 5 of .* has no {label}; fill it in or remove the line"):
        load_faces(str(tmp_path))

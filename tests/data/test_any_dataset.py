"""Tables that `datasets.load_dataset` reads: inferred columns, notes, and errors."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from oneshui_hf.data.builders.celeba import ATTRIBUTE_NAMES
from oneshui_hf.data.images import decode
from oneshui_hf.data.load import load_faces, load_photo_keys
from oneshui_hf.data.pixels import load_pixels
from oneshui_hf.errors import OneshuiError, UsageError
from support.faces import bits, portrait

MakeTable = Callable[..., Path]


def encoded(person: int, photo: int) -> bytes:
    buffer = io.BytesIO()
    portrait(person, photo).save(buffer, "JPEG")
    return buffer.getvalue()


def columns(people: int = 4, photos: int = 3) -> dict[str, list[Any]]:
    """Return the columns of a table in the schema of flwrlabs/celeba: image, celeb_id as a number, 40 booleans."""
    rows = [(person, photo) for person in range(people) for photo in range(photos)]
    table: dict[str, list[Any]] = {
        "image": [{"bytes": encoded(*row), "path": f"{place:06d}.jpg"} for place, row in enumerate(rows, 1)],
        "celeb_id": [100 + person for person, _ in rows],
    }
    values = [bits(*row, len(ATTRIBUTE_NAMES)) for row in rows]
    return table | {name: [bool(value[k]) for value in values] for k, name in enumerate(ATTRIBUTE_NAMES)}


def flwrlabs(table: dict[str, list[Any]], features: dict[str, Any] | None = None) -> datasets.Dataset:
    kinds = {"image": datasets.Image(), "celeb_id": datasets.Value("int64")} | dict.fromkeys(ATTRIBUTE_NAMES, datasets.Value("bool"))
    kinds = {name: kind for name, kind in kinds.items() if name in table}
    return datasets.Dataset.from_dict(table, features=datasets.Features(kinds | (features or {})))


@pytest.fixture
def table_folder(tmp_path: Path) -> MakeTable:
    """A factory of folders with Parquet files, one per split."""

    def make(table: dict[str, list[Any]], features: dict[str, Any] | None = None, parts: tuple[str, ...] = ("train",)) -> Path:
        folder = tmp_path / "table"
        whole = flwrlabs(table, features)
        (folder / "data").mkdir(parents=True)
        for place, part in enumerate(parts):
            whole.shard(len(parts), place, contiguous=True).to_parquet(folder / "data" / f"{part}-00000-of-00001.parquet")
        return folder

    return make


def test_schema_of_flwrlabs_needs_no_option(table_folder: MakeTable) -> None:
    table = columns()
    faces = load_faces(str(table_folder(table, parts=("train", "validation", "test"))))
    assert faces.task.kind == "multi_label"
    assert faces.task.label_names == ATTRIBUTE_NAMES
    assert faces.people == ["100", "101", "102", "103"]
    rows = {key: place for place, key in enumerate(faces.keys)}
    assert sorted(rows) == [photo["path"] for photo in table["image"]]
    for place, photo in enumerate(table["image"]):
        row = rows[photo["path"]]
        assert faces.people[faces.identities[row]] == str(table["celeb_id"][place])
        assert faces.labels[row].tolist() == [float(table[name][place]) for name in ATTRIBUTE_NAMES]
        assert faces.encoded_image(int(faces.arrow_rows[row])) == photo["bytes"]
    assert faces.exclusions.messages() == ("Photos are column 'image', people are column 'celeb_id'.",)


def test_single_file_and_photos_by_identity_are_read(table_folder: MakeTable) -> None:
    folder = table_folder(columns(people=3, photos=2))
    (file,) = (folder / "data").iterdir()
    faces = load_faces(str(file))
    assert faces.fingerprint == load_faces(str(folder)).fingerprint
    assert (
        load_photo_keys(str(file))
        == faces.photos_by_identity()
        == {f"{100 + p}": [f"{2 * p + k + 1:06d}.jpg" for k in range(2)] for p in range(3)}
    )


@pytest.mark.parametrize(("zero", "one", "kind"), [(-1, 1, "int8"), (0, 1, "int64"), (0.0, 1.0, "float32"), ("0", "1", "string")])
def test_spellings_of_binary_values_are_equivalent(table_folder: MakeTable, zero: Any, one: Any, kind: str) -> None:
    table = columns()
    expected = [[float(table[name][row]) for name in ATTRIBUTE_NAMES] for row in range(12)]
    other = table | {name: [one if value else zero for value in table[name]] for name in ATTRIBUTE_NAMES}
    faces = load_faces(str(table_folder(other, dict.fromkeys(ATTRIBUTE_NAMES, datasets.Value(kind)))))
    assert faces.task.label_names == ATTRIBUTE_NAMES
    assert faces.labels.tolist() == expected


def test_requested_columns_are_used(table_folder: MakeTable) -> None:
    table = columns()
    renamed = {"face": table["image"], "who": table["celeb_id"], "Smiling": table["Smiling"], "Young": table["Young"], "note": ["x"] * 12}
    kinds = {"face": datasets.Image(), "who": datasets.Value("int64"), "note": datasets.Value("string")}
    folder = str(table_folder(renamed, kinds))
    faces = load_faces(folder, label_columns=("Young",), image_column="face", identity_column="who")
    assert faces.task.label_names == ("Young",)
    assert faces.people == ["100", "101", "102", "103"]
    assert faces.exclusions.messages() == ()  # nothing is inferred
    inferred = load_faces(folder, identity_column="who")
    assert inferred.exclusions.messages() == (
        "Photos are column 'face'.",
        "2 columns are labels; note is not (choose with --label-columns).",
    )
    with pytest.raises(OneshuiError, match="has no column 'identity'; name the column of people with --identity-column: who, Smiling"):
        load_faces(folder)


def test_classes_keep_their_names(table_folder: MakeTable) -> None:
    table = {name: columns()[name] for name in ("image", "celeb_id")} | {"age": [2, 0, 1] * 4}
    faces = load_faces(str(table_folder(table, {"age": datasets.ClassLabel(names=["old", "young", "new"])})))
    assert (faces.task.kind, faces.task.label_names) == ("single_label", ("new", "old", "young"))
    assert [faces.task.label_names[label] for label in faces.labels.tolist()[:3]] == ["new", "old", "young"]


def test_rows_without_photo_or_identity_are_excluded_and_counted(table_folder: MakeTable) -> None:
    table = columns()
    table["image"][2] = None
    table["celeb_id"][5] = None
    faces = load_faces(str(table_folder(table)))
    assert len(faces) == 10
    assert len(faces.exclusions.without_image) == len(faces.exclusions.without_identity) == 1
    expected = [row for row in range(12) if row not in (2, 5)]
    assert faces.labels.tolist() == [[float(table[name][row]) for name in ATTRIBUTE_NAMES] for row in expected]
    assert faces.arrow_rows.tolist() == expected
    faces, pixels = load_pixels(faces, 16)
    same = np.asarray(decode(table["image"][7]["bytes"]).resize((16, 16), 3)).transpose(2, 0, 1)
    assert np.array_equal(pixels[faces.arrow_rows[[5]]][0], same)


def test_photos_without_unique_names_are_numbered(table_folder: MakeTable) -> None:
    table = columns(people=2, photos=2)
    for photo in table["image"]:
        photo["path"] = "photo.jpg"
    keys = load_faces(str(table_folder(table, parts=("train", "test")))).keys
    assert sorted(keys) == ["test/000000", "test/000001", "train/000000", "train/000001"]


def test_changed_table_is_read_again(table_folder: MakeTable, tmp_path: Path) -> None:
    table = columns()
    folder = table_folder(table)
    before = load_faces(str(folder))
    table["Young"][0] = not table["Young"][0]
    (file,) = (folder / "data").iterdir()
    flwrlabs(table).to_parquet(file)
    after = load_faces(str(folder))
    assert after.fingerprint != before.fingerprint
    assert after.cache != before.cache


def test_two_photo_columns_have_separate_caches(table_folder: MakeTable) -> None:
    table = columns(people=2, photos=2)
    table["other"] = table["image"][::-1]
    folder = str(table_folder(table, {"other": datasets.Image()}))
    first, second = (load_pixels(load_faces(folder, image_column=name), 16)[1] for name in ("image", "other"))
    assert np.array_equal(first[np.arange(4)], second[np.arange(4)[::-1]])


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({}, {"image_column": "foto"}, "has no column 'foto'"),
        ({}, {"identity_column": "celeb"}, "has no column 'celeb'. Did you mean 'celeb_id'?"),
        ({}, {"image_column": "Male"}, "Column 'Male' does not contain photos"),
        ({}, {"label_columns": ("Smilling",)}, "has no column 'Smilling'. Did you mean 'Smiling'?"),
        ({"mood": [0, 1, 2] * 4}, {"label_columns": ("mood", "Male")}, "Label column 'mood' has 3 values"),
        ({"Male": [True, None] * 6}, {"label_columns": ("Male", "Young")}, r"Row 1 \(from 0\) of .* has no Male"),
        ({}, {"subset": "absent"}, "contains neither metadata.csv nor a readable table"),
    ],
)
def test_invalid_options_and_cells_raise(table_folder: MakeTable, change: dict[str, Any], options: dict[str, Any], words: str) -> None:
    features = {name: datasets.Value("int64") for name in change if name not in ATTRIBUTE_NAMES}
    folder = str(table_folder(columns() | change, features))
    with pytest.raises(OneshuiError, match=words) as caught:
        load_faces(folder, **options)
    assert "\n" not in str(caught.value)


def test_folder_without_identities_raises(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    portrait(0, 0).save(tmp_path / "one" / "a.png")
    with pytest.raises(OneshuiError, match="has no column 'identity'"):
        load_faces(str(tmp_path))


def test_empty_folder_unknown_id_and_unknown_name_have_different_errors(tmp_path: Path) -> None:
    with pytest.raises(OneshuiError, match="contains neither metadata.csv nor a readable table"):
        load_faces(str(tmp_path))
    with pytest.raises(OneshuiError, match="somebody/faces"):  # the Hub is offline in tests
        load_faces("somebody/faces")
    with pytest.raises(UsageError, match="'celebra' is neither a data set nor a folder. Did you mean 'celeba'"):
        load_faces("celebra")


def test_class_minus_one_is_a_missing_label(table_folder: MakeTable) -> None:
    table = {name: columns()[name] for name in ("image", "celeb_id")} | {"label": [0, 1, 0, 1, -1, 0] * 2}
    folder = table_folder(table, {"label": datasets.ClassLabel(names=["a", "b"])})
    with pytest.raises(OneshuiError, match=r"Row 4 \(from 0\) of .* has no label"):
        load_faces(str(folder))


def with_paths(table: dict[str, list[Any]], folder: Path) -> dict[str, list[Any]]:
    folder.mkdir(parents=True)
    for place, photo in enumerate(table["image"]):
        file = folder / f"{place}.jpg"
        file.write_bytes(photo["bytes"])
        table["image"][place] = {"bytes": None, "path": str(file)}
    return table


def test_changed_external_file_is_read_again(table_folder: MakeTable, tmp_path: Path) -> None:
    folder = str(table_folder(with_paths(columns(), tmp_path / "table" / "photos")))
    faces, before = load_pixels(load_faces(folder), 16)
    assert len(faces) == 12
    portrait(7, 7, (40, 40)).save(tmp_path / "table" / "photos" / "3.jpg")
    (tmp_path / "table" / "photos" / "4.jpg").write_bytes(b"no photo")
    faces, after = load_pixels(load_faces(folder), 16)
    assert len(faces) == 11
    assert not np.array_equal(after[np.array([3])], before[np.array([3])])


def test_table_with_a_file_outside_its_folder_raises(table_folder: MakeTable, tmp_path: Path) -> None:
    folder = table_folder(with_paths(columns(), tmp_path / "mine"))
    with pytest.raises(OneshuiError, match=r"Row 0 \(from 0\) of .* names the photo .*mine/0\.jpg, which is outside of its folder"):
        load_faces(str(folder))


def test_struct_field_does_not_replace_a_column(table_folder: MakeTable) -> None:
    table = columns() | {"labels": [{"celeb_id": 1, "Bald": 0}] * 12}
    faces = load_faces(str(table_folder(table, {"labels": {"celeb_id": datasets.Value("int8"), "Bald": datasets.Value("int8")}})))
    assert faces.people == ["100", "101", "102", "103"]


def test_photo_as_data_set_raises(tmp_path: Path) -> None:
    portrait(0, 0).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="a.png is a photo, not a data set"):
        load_faces(str(tmp_path / "a.png"))

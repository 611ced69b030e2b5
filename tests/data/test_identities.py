"""The identity column: cells without an identity, numbers in two ways, and the same rules for every kind of table."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from oneshui_hf.data.load import load_faces, load_photo_keys
from oneshui_hf.data.schema import Faces
from oneshui_hf.errors import OneshuiError
from support.faces import portrait

MakeTable = Callable[[Sequence[Any]], Path]
WORDS = ["", "  ", "nan", "NaN", "NAN", "NA", "N/A", "n/a", "None", "none", "NULL", "null", "<NA>", "#N/A", "-nan"]


def encoded(number: int) -> dict[str, Any]:
    buffer = io.BytesIO()
    portrait(number, 0).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": f"{number}.png"}


def write_parquet(file: Path, identities: Sequence[Any], kind: pa.DataType | None = None, first: int = 0) -> Path:
    """Write a table of photos with the numbers from `first` on; every second one has a hat."""
    file.parent.mkdir(parents=True, exist_ok=True)
    numbers = range(first, first + len(identities))
    columns = {
        "image": pa.array(map(encoded, numbers)),
        "identity": pa.array(identities, kind),
        "Hat": pa.array([number % 2 for number in numbers]),
    }
    pq.write_table(pa.table(columns), file)
    return file


def write_csv(file: Path, identities: Sequence[Any], separator: str = ",") -> Path:
    (file.parent / "images").mkdir(parents=True, exist_ok=True)
    lines = [["file_name", "identity", "Hat"]]
    for number, identity in enumerate(identities):
        portrait(number, 0).save(file.parent / f"images/{number}.png")
        lines.append([f"images/{number}.png", "" if identity is None else str(identity), str(number % 2)])
    file.write_text("".join(separator.join(line) + "\n" for line in lines), encoding="utf-8")
    return file


def write_json(file: Path, identities: Sequence[Any]) -> Path:
    write_csv(file, identities)
    rows = [{"image": f"images/{number}.png", "identity": identity, "Hat": number % 2} for number, identity in enumerate(identities)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def people_of_rows(faces: Faces) -> dict[int, str]:
    return {int(Path(key).stem): faces.people[person] for key, person in zip(faces.keys, faces.identities, strict=True)}


@pytest.fixture(params=["metadata.csv", "faces.csv", "faces.tsv", "faces.jsonl", "faces.parquet"])
def make_table(request: pytest.FixtureRequest, tmp_path: Path) -> MakeTable:
    """A factory of tables with an identity column of text, in every kind of file; "metadata.csv" is read as a folder."""
    file = tmp_path / "table" / request.param

    def make(identities: Sequence[Any]) -> Path:
        if file.suffix == ".parquet":
            return write_parquet(file, identities, pa.string())
        if file.suffix == ".jsonl":
            return write_json(file, identities)
        written = write_csv(file, identities, "\t" if file.suffix == ".tsv" else ",")
        return file.parent if file.name == "metadata.csv" else written

    return make


def test_words_for_a_missing_identity_are_no_person(make_table: MakeTable) -> None:
    table = make_table(["anna", *WORDS, None, "anna", "bo", "bo", "Nana", "None Smith"])
    faces = load_faces(str(table))
    assert faces.people == ["None Smith", "Nana", "anna", "bo"] or faces.people == ["Nana", "None Smith", "anna", "bo"]
    assert [int(Path(key).stem) for key in faces.exclusions.without_identity] == list(range(1, len(WORDS) + 2))
    assert sorted(load_photo_keys(str(table))) == faces.people
    note, counted = (next(one for one in faces.exclusions.messages() if word in one) for word in ("no identity", "Excluded"))
    assert note.startswith(f"{len(WORDS) + 1} rows have no identity ('#N/A', '-nan', '<NA>', ")
    assert "1.png" in note
    assert note.endswith("If a person is called so, write another name in the table.")
    assert f"photos without an identity ({len(WORDS) + 1})" in counted


def test_missing_identities_are_counted_by_the_check_and_missing_in_the_split(make_table: MakeTable) -> None:
    from oneshui_hf.data.check import check_dataset

    faces = load_faces(str(make_table([f"p{number % 6}" if number % 5 else "nan" for number in range(24)])))
    report = check_dataset(faces)
    assert len(report["images_without_identity"]) == 5
    assert report["images"] == 19


def test_placeholders_are_people_with_a_note(make_table: MakeTable) -> None:
    faces = load_faces(str(make_table(["-1", "unknown", "3", "NaT", "n.a.", "3"])))
    assert faces.people == ["-1", "3", "NaT", "n.a.", "unknown"]
    for name in ("-1", "unknown", "NaT", "n.a."):
        expected = f"'{name}' is read as a person; leave the cells of column 'identity' empty if it means that the identity is unknown."
        assert faces.exclusions.notes.count(expected) == 1


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        (["Ann", "ann", "Bo"], "'Ann' and 'ann'"),
        (["Ann Lee", "Bo", "Ann  Lee"], "'Ann Lee' and 'Ann  Lee'"),
        (["Ann", "\u200bAnn", "Bo"], "'Ann' and '\u200bAnn'"),
        (["7", "007", "8"], "'7' and '007'"),
    ],
)
def test_names_that_differ_in_what_people_overlook_are_noted(make_table: MakeTable, names: list[str], pair: str) -> None:
    faces = load_faces(str(make_table(names)))
    assert faces.people == sorted(names)
    note = f"{pair} differ only in upper and lower case, spaces or leading zeros and are read as different people; "
    assert [one for one in faces.exclusions.notes if "differ only" in one] == [f"{note}if they are one person, write the name in one way."]


def test_names_that_differ_are_not_noted(make_table: MakeTable) -> None:
    faces = load_faces(str(make_table(["a", "b", "7", "70", "0", "a7"])))
    assert not any("differ only" in note for note in faces.exclusions.notes)


def test_table_without_any_identity_raises(make_table: MakeTable) -> None:
    with pytest.raises(OneshuiError, match="No row of .* has (both a photo and a person|an identity)"):
        load_faces(str(make_table(["nan", "", "None"])))


def test_whole_numbers_with_a_point_are_the_same_person(make_table: MakeTable) -> None:
    faces = load_faces(str(make_table(["12", "12.0", "12.", "+12", "011", "11", "11.00", "1.3e+1", "-0.0", "0"])))
    assert people_of_rows(faces) == {0: "12", 1: "12", 2: "12", 3: "12", 4: "011", 5: "11", 6: "11", 7: "13", 8: "0", 9: "0"}
    assert any("3 identities are written in two ways, such as '12' and '12.0'" in note for note in faces.exclusions.notes)


def test_clean_names_and_numbers_are_kept(make_table: MakeTable) -> None:
    names = ["7", "07", "007", "123456789012345678", "123456789012345679", "-5"]
    assert load_faces(str(make_table(names))).people == sorted(names)
    assert load_faces(str(make_table(names))).exclusions.without_identity == []


@pytest.mark.parametrize("names", [["1.0", "1.1", "1.10", "2.0"], ["1e16", "1000", "3"], ["a", "A", "1.0", "2"]])
def test_names_that_look_like_numbers_are_kept(make_table: MakeTable, names: list[str]) -> None:
    assert load_faces(str(make_table(names))).people == sorted(names)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["anna", "1.0", "1"], "has the identity '1', and .* has '1.0'; write a person's name in one way"),
        (["Zo\u00eb", "Zoe\u0308"], "which differ only in their Unicode form"),
        (["1.2e+17", "3"], "has the identity '1.2e\\+17', a number that was rounded"),
        (["9007199254740992.0", "9007199254740993"], "a number that was rounded"),
        (["123456789012345678.0", "3"], "a number that was rounded when it was stored as floating point"),
        (["1e+999999999", "3"], "a number that was rounded"),
    ],
)
def test_one_person_in_two_ways_raises(make_table: MakeTable, names: list[str], words: str) -> None:
    with pytest.raises(OneshuiError, match=words) as caught:
        load_faces(str(make_table(names)))
    assert "\n" not in str(caught.value)


def test_error_names_the_lines(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "faces.csv", ["nan", "anna", "1.0", "1"])
    with pytest.raises(OneshuiError, match=r"^Line 5 of .*faces\.csv has the identity '1', and Line 4 of .*faces\.csv has '1\.0'"):
        load_faces(str(file))


@pytest.mark.parametrize(
    ("kind", "values", "people"),
    [
        (pa.float64(), [1.0, 2.0, float("nan"), None, 1.0], {0: "1", 1: "2", 4: "1"}),
        (pa.float16(), [1.0, 2.0**11 - 1, None], {0: "1", 1: "2047"}),
        (pa.float32(), [1.0, 2.0**24 - 1, None], {0: "1", 1: "16777215"}),
        (pa.float64(), [2.0**53 - 1, 3.0], {0: "9007199254740991", 1: "3"}),
        (pa.decimal128(10, 2), [Decimal(12), None, Decimal("7.00")], {0: "12", 2: "7"}),
        (pa.int64(), [12, None, 2**60, 2**60 + 1], {0: "12", 2: str(2**60), 3: str(2**60 + 1)}),
    ],
)
def test_numeric_columns_of_parquet(tmp_path: Path, kind: pa.DataType, values: list[Any], people: dict[int, str]) -> None:
    assert people_of_rows(load_faces(str(write_parquet(tmp_path / "t.parquet", values, kind)))) == people


def test_categories_of_pandas_may_be_missing(tmp_path: Path) -> None:
    table = pa.Table.from_pandas(pd.DataFrame({"identity": pd.Categorical(["a", "nan", None, "b"]), "Hat": [0, 1, 0, 1]}))
    pq.write_table(table.append_column("image", pa.array(map(encoded, range(4)))), tmp_path / "t.parquet")
    assert people_of_rows(load_faces(str(tmp_path / "t.parquet"))) == {0: "a", 3: "b"}


@pytest.mark.parametrize(
    ("kind", "largest"), [(pa.float64(), 2.0**53), (pa.float32(), 2.0**24), (pa.float16(), 2.0**11), (pa.float64(), float("inf"))]
)
def test_floating_point_numbers_that_may_be_rounded_raise(tmp_path: Path, kind: pa.DataType, largest: float) -> None:
    """2**53 is also what 2**53 + 1 becomes."""
    file = write_parquet(tmp_path / "t.parquet", [largest, 3.0], kind)
    with pytest.raises(OneshuiError, match="stores identities as floating point .* cannot be distinguished; store it as text"):
        load_faces(str(file))


@pytest.mark.parametrize("names", [("train.parquet", "test.parquet"), ("a0.parquet", "a1.parquet")])
@pytest.mark.parametrize(
    ("first", "second", "people"),
    [
        ((pa.int64(), [11, 12]), (pa.float64(), [11.0, None]), {0: "11", 1: "12", 2: "11"}),
        ((pa.float64(), [11.0, None]), (pa.int64(), [11, 12]), {0: "11", 2: "11", 3: "12"}),
        ((pa.int64(), [11, 12]), (pa.string(), ["011", "12.0"]), {0: "11", 1: "12", 2: "011", 3: "12"}),
        ((pa.string(), ["011", "11"]), (pa.float64(), [11.0, None]), {0: "011", 1: "11", 2: "11"}),
    ],
)
def test_parts_that_store_identities_in_different_types(
    tmp_path: Path, names: tuple[str, str], first: Any, second: Any, people: Any
) -> None:
    write_parquet(tmp_path / "t" / names[0], first[1], first[0])
    write_parquet(tmp_path / "t" / names[1], second[1], second[0], first=2)
    assert people_of_rows(load_faces(str(tmp_path / "t"))) == people


def test_parts_in_csv_keep_their_zeros(tmp_path: Path) -> None:
    for part, identities in (("train", ["011", "12"]), ("test", ["11", ""])):
        lines = ["file_name,identity,Hat"]
        for number, identity in enumerate(identities, 2 * (part == "test")):
            portrait(number, 0).save(tmp_path / f"{number}.png")
            lines.append(f"{tmp_path}/{number}.png,{identity},{number % 2}")
        (tmp_path / f"{part}.csv").write_text("\n".join(lines) + "\n")
    faces = load_faces(str(tmp_path))
    assert people_of_rows(faces) == {0: "011", 1: "12", 2: "11"}


def test_json_column_that_mixes_text_and_numbers_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        OneshuiError, match="Column 'identity' of .* does not hold one text or number per row; write each identity as one text"
    ):
        load_faces(str(write_json(tmp_path / "t.jsonl", [11, "011"])))


def test_labels_of_rows_without_an_identity_are_not_needed(make_table: MakeTable, tmp_path: Path) -> None:
    table = make_table(["a", "nan", "b", "a"])
    file = table / "metadata.csv" if table.is_dir() else table
    if file.suffix in (".csv", ".tsv"):
        file.write_text(file.read_text().replace("nan,1", "nan,").replace("nan\t1", "nan\t"))
    assert load_faces(str(table)).labels.tolist() == [[0], [0], [1]]


def test_mufac_person_without_a_name_raises(tmp_path: Path) -> None:
    from oneshui_hf.data.builders.mufac import read_part

    (tmp_path / "custom_train_dataset.csv").write_text("family_id,person_id,age_class,image_path\nF1,D,a,1.jpg\nF1,nan,a,2.jpg\n")
    with pytest.raises(OneshuiError, match=r"Line 3 of .* has 'nan' as person_id, which is no name; fill it in or remove the line"):
        read_part(tmp_path / "custom_train_dataset.csv")

"""A folder of one's own with `metadata.csv`: what is read, which columns are taken for labels, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import LABELS, bits, portrait
from oneshui_hf.data.load import load_faces
from oneshui_hf.errors import OneshuiError, UsageError

MakeFolder = Callable[..., Path]


def add_column(folder: Path, name: str, values: list[str]) -> None:
    file = folder / "metadata.csv"
    lines = file.read_text().splitlines()
    file.write_text("".join(f"{line},{value}\n" for line, value in zip(lines, [name, *values], strict=True)))


def only(folder: Path, name: str, values: list[str]) -> None:
    """Replace all label columns by one."""
    file = folder / "metadata.csv"
    rows = [line.split(",")[:2] for line in file.read_text().splitlines()]
    file.write_text("".join(",".join([*row, v]) + "\n" for row, v in zip(rows, [name, *values], strict=True)))


def test_identities_labels_and_keys_are_those_of_the_file(photo_folder: MakeFolder) -> None:
    faces = load_faces(str(photo_folder(people=2, photos=3)))
    assert faces.name == "photos"
    assert faces.keys == ["p00/0.png", "p00/1.png", "p00/2.png", "p01/0.png", "p01/1.png", "p01/2.png"]
    assert faces.people == ["p00", "p01"]
    assert faces.identities.tolist() == [0, 0, 0, 1, 1, 1]
    assert faces.task.kind == "multi_label"
    assert faces.task.label_names == LABELS
    assert faces.labels.tolist() == [[0, 0, 0], [1, 1, 1], bits(0, 2, 3), bits(1, 0, 3), bits(1, 1, 3), bits(1, 2, 3)]


def test_named_folder_and_data_dir_give_the_same(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    by_path, by_option = load_faces(str(folder)), load_faces("folder", folder)
    assert by_path.fingerprint == by_option.fingerprint
    assert by_path.name == by_option.name == "photos"


def test_the_order_of_rows_does_not_change_the_fingerprint(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    before = load_faces(str(folder))
    head, *rows = (folder / "metadata.csv").read_text().splitlines()
    (folder / "metadata.csv").write_text("\n".join([head, *reversed(rows)]) + "\n")
    after = load_faces(str(folder))
    assert after.keys == before.keys[::-1]
    assert after.fingerprint == before.fingerprint


@pytest.mark.parametrize(("zero", "one"), [("-1", "1"), ("false", "true"), ("False", "True"), (" 0", "1 ")])
def test_other_spellings_of_binary_give_the_same(photo_folder: MakeFolder, zero: str, one: str) -> None:
    plain, spelt = photo_folder(name="plain"), photo_folder(name="spelt")
    head, *rows = (spelt / "metadata.csv").read_text().splitlines()
    rows = [",".join(r.split(",")[:2] + [one if v == "1" else zero for v in r.split(",")[2:]]) for r in rows]
    (spelt / "metadata.csv").write_text("\n".join([head, *rows]))
    assert load_faces(str(spelt)).fingerprint == load_faces(str(plain)).fingerprint


def test_bom_and_crlf_give_the_same(photo_folder: MakeFolder) -> None:
    plain, other = photo_folder(name="plain"), photo_folder(name="other")
    text = (other / "metadata.csv").read_text()
    (other / "metadata.csv").write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    assert load_faces(str(other)).fingerprint == load_faces(str(plain)).fingerprint


def test_a_column_that_is_not_binary_is_no_label_by_itself(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    add_column(folder, "partition", ["0", "1", "2", "0"])
    add_column(folder, "camera", ["a", "b", "c", "d"])
    assert load_faces(str(folder)).task.label_names == LABELS


def test_a_partition_column_of_two_sets_is_no_label_by_itself(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    add_column(folder, "partition", ["0", "1", "0", "1"])
    assert load_faces(str(folder)).task.label_names == LABELS


def test_label_columns_are_taken_in_the_order_given(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    everything = load_faces(str(folder))
    chosen = load_faces(str(folder), label_columns=["Smiling", "Glasses"])
    assert chosen.task.label_names == ("Smiling", "Glasses")
    assert chosen.labels.equal(everything.labels[:, [2, 0]])


def test_a_class_column_gives_single_label(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    only(folder, "label", ["old", "young", "old", "middle"])
    faces = load_faces(str(folder))
    assert faces.task.kind == "single_label"
    assert faces.task.label_names == ("middle", "old", "young")
    assert faces.labels.tolist() == [1, 2, 1, 0]


def test_classes_that_are_numbers_are_in_their_order(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    only(folder, "age", ["10", "9", "-1", "100"])
    faces = load_faces(str(folder))
    assert faces.task.label_names == ("-1", "9", "10", "100")
    assert faces.labels.tolist() == [2, 1, 0, 3]


def test_a_class_column_is_taken_when_it_is_named(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    add_column(folder, "mood", ["sad", "glad", "sad", "calm"])
    faces = load_faces(str(folder), label_columns=["mood"])
    assert faces.task.kind == "single_label"
    assert faces.task.label_names == ("calm", "glad", "sad")


def test_the_guess_does_not_change_with_the_photos_that_are_there(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=3)
    only(folder, "label", ["a", "b", "c", "a", "b", "c"])
    add_column(folder, "grade", ["0", "1", "2", "0", "1", "2"])
    for person in (0, 1):  # what is left of `grade` is 0 and 1
        (folder / f"p{person:02d}/2.png").unlink()
    faces = load_faces(str(folder))
    assert faces.task.label_names == ("a", "b", "c")
    assert faces.labels.tolist() == [0, 1, 0, 1]


def test_a_named_binary_column_with_one_value_is_still_binary(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    add_column(folder, "Alive", ["1", "1", "1", "1"])
    faces = load_faces(str(folder), label_columns=["Alive"])
    assert faces.task.kind == "multi_label"
    assert faces.labels.tolist() == [[1], [1], [1], [1]]


def test_rows_without_an_image_are_left_out_and_counted(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    (folder / "p01/0.png").unlink()
    for _ in range(2):  # the second load reads the cache
        faces = load_faces(str(folder))
        assert faces.keys == ["p00/0.png", "p00/1.png", "p01/1.png"]
        assert faces.notes == ("1 rows of metadata.csv without an image were left out.",)


def test_a_photo_added_is_seen_on_the_next_load(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    before = load_faces(str(folder))
    portrait(5, 5).save(folder / "new.png")
    with (folder / "metadata.csv").open("a") as file:
        file.write("new.png,p99,1,0,1\n")
    after = load_faces(str(folder))
    assert (len(before), len(after)) == (4, 5)
    assert after.people == ["p00", "p01", "p99"]
    assert after.labels[4].tolist() == [1, 0, 1]


def test_a_photo_replaced_by_one_of_another_size_is_a_new_data_set_on_disk(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    before = load_faces(str(folder)).cache
    portrait(5, 5, (48, 48)).save(folder / "p00/0.png")
    assert load_faces(str(folder)).cache != before


def test_a_folder_that_has_moved_is_found_where_data_dir_says(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    before = load_faces(str(folder)).fingerprint
    moved = folder.rename(folder.with_name("moved"))
    assert load_faces(str(folder), moved).fingerprint == before


def test_the_name_of_the_current_folder_is_its_own(photo_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photo_folder(people=2, photos=2))
    assert load_faces(".").name == "photos"


def test_a_broken_link_beside_the_photos_does_no_harm(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    (folder / ".#metadata.csv").symlink_to("nowhere")  # an editor's lock
    assert len(load_faces(str(folder))) == 4


def test_one_label_named_twice_is_refused(photo_folder: MakeFolder) -> None:
    with pytest.raises(UsageError, match="Hat"):
        load_faces(str(photo_folder()), label_columns=["Hat", "Hat"])


def test_an_empty_label_cell_does_not_take_its_column_away(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    lines = (folder / "metadata.csv").read_text().splitlines()
    lines[2] = lines[2].rpartition(",")[0] + ","
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    for columns in ((), ("Smiling",), ("Hat", "Smiling")):
        with pytest.raises(OneshuiError, match=r"Line 3 of .*metadata\.csv has no Smiling"):
            load_faces(str(folder), label_columns=columns)


def test_a_folder_that_does_not_exist_is_named() -> None:
    with pytest.raises(UsageError, match="'no/such/folder' is neither a data set nor a folder"):
        load_faces("no/such/folder")


def test_a_folder_without_metadata_shows_the_tree(tmp_path: Path) -> None:
    with pytest.raises(OneshuiError, match=r"(?s)holds no metadata\.csv\. Expected:\n.*DIR/metadata\.csv"):
        load_faces(str(tmp_path))


@pytest.mark.parametrize("column", ["file_name", "identity"])
def test_a_missing_column_is_named(photo_folder: MakeFolder, column: str) -> None:
    folder = photo_folder()
    text = (folder / "metadata.csv").read_text()
    (folder / "metadata.csv").write_text(text.replace(column, "other", 1))
    with pytest.raises(OneshuiError, match=rf"metadata\.csv has no column '{column}'"):
        load_faces(str(folder))


@pytest.mark.parametrize("empty", ["", " "])
@pytest.mark.parametrize(("old", "column"), [("p00/1.png,p00,", "identity"), ("p00/1.png,p00,", "file_name")])
def test_an_empty_cell_names_its_line(photo_folder: MakeFolder, old: str, column: str, empty: str) -> None:
    folder = photo_folder()
    text = (folder / "metadata.csv").read_text()
    new = f"p00/1.png,{empty}," if column == "identity" else f"{empty},p00,"
    (folder / "metadata.csv").write_text(text.replace(old, new))
    with pytest.raises(OneshuiError, match=rf"Line 3 of .*metadata\.csv has no {column}"):
        load_faces(str(folder))


def test_blank_lines_do_not_shift_the_line_that_is_named(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    lines = (folder / "metadata.csv").read_text().splitlines()
    lines[2] = "\n" + lines[2].replace("p00,", ",", 1)
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(OneshuiError, match=r"Line 4 of .*metadata\.csv has no identity"):
        load_faces(str(folder))


def test_a_label_left_empty_is_not_read_as_zero(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    lines = (folder / "metadata.csv").read_text().splitlines()
    lines[2] = lines[2].rpartition(",")[0]  # a row that ends early
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(OneshuiError, match=r"Line 3 of .*metadata\.csv has no Smiling"):
        load_faces(str(folder))


def test_a_row_with_too_many_columns_is_refused(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    with (folder / "metadata.csv").open("a") as file:
        file.write("p00/0.png,p00,0,0,0,0\n")
    with pytest.raises(OneshuiError, match=r"metadata\.csv is not a readable CSV file: .*line 14"):
        load_faces(str(folder))


def test_a_photo_named_twice_is_refused(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    with (folder / "metadata.csv").open("a") as file:
        file.write("p00/0.png,p01,0,0,0\n")
    with pytest.raises(OneshuiError, match=r"p00/0\.png"):
        load_faces(str(folder))


def test_an_unknown_label_column_names_the_nearest(photo_folder: MakeFolder) -> None:
    with pytest.raises(UsageError, match="has no column 'Smilling'. Did you mean 'Smiling'"):
        load_faces(str(photo_folder()), label_columns=["Smilling"])


def test_a_class_column_beside_others_is_refused(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    add_column(folder, "mood", ["sad", "glad", "sad", "calm"])
    with pytest.raises(UsageError, match="Label column 'mood' holds 3 values; several labels must each be 0/1"):
        load_faces(str(folder), label_columns=["Hat", "mood"])


def test_no_column_that_could_be_a_label_is_refused(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    only(folder, "camera", ["a", "b", "c", "d"])
    with pytest.raises(OneshuiError, match="name the label columns with --label-columns"):
        load_faces(str(folder))


def test_no_image_of_the_file_is_there(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    for file in folder.glob("*/*.png"):
        file.unlink()
    with pytest.raises(OneshuiError, match="None of the images that .* names is there"):
        load_faces(str(folder))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00\x01"])
def test_a_file_that_is_no_csv_is_refused(photo_folder: MakeFolder, content: bytes) -> None:
    folder = photo_folder()
    (folder / "metadata.csv").write_bytes(content)
    with pytest.raises(OneshuiError, match=r"metadata\.csv is not a readable CSV file"):
        load_faces(str(folder))


def test_the_real_folder_is_read_with_its_forty_attributes(assets: Path) -> None:
    faces = load_faces(str(assets / "faces/folder"))
    assert len(faces) == 1200
    assert len(faces.people) == 100
    names = faces.task.label_names
    assert len(names) == 40, [name for name in names if name in ("partition", "source_name")]
    assert faces.task.kind == "multi_label"
    named = load_faces(str(assets / "faces/folder"), label_columns=names)
    assert named.fingerprint == faces.fingerprint

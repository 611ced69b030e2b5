"""A user's folder with `metadata.csv`: its content, the columns that are inferred as labels, and errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from oneshui_hf.data.load import load_faces
from oneshui_hf.data.schema import Exclusions
from oneshui_hf.errors import OneshuiError, UsageError
from support.faces import LABELS, bits, portrait

MakeFolder = Callable[..., Path]


def add_column(folder: Path, name: str, values: list[str]) -> None:
    file = folder / "metadata.csv"
    lines = file.read_text().splitlines()
    file.write_text("".join(f"{line},{value}\n" for line, value in zip(lines, [name, *values], strict=True)))


def replace_labels(folder: Path, name: str, values: list[str]) -> None:
    """Replace all label columns by one column."""
    file = folder / "metadata.csv"
    rows = [line.split(",")[:2] for line in file.read_text().splitlines()]
    file.write_text("".join(",".join([*row, v]) + "\n" for row, v in zip(rows, [name, *values], strict=True)))


def rename(folder: Path, names: dict[str, str]) -> None:
    """Rename columns."""
    head, _, rows = (folder / "metadata.csv").read_text().partition("\n")
    (folder / "metadata.csv").write_text(",".join(names.get(name, name) for name in head.split(",")) + "\n" + rows)


def test_identities_labels_and_keys_are_those_of_the_file(photo_folder: MakeFolder) -> None:
    faces = load_faces(str(photo_folder(people=2, photos=3)))
    assert faces.name == "photos"
    assert faces.keys == ["p00/0.png", "p00/1.png", "p00/2.png", "p01/0.png", "p01/1.png", "p01/2.png"]
    assert faces.people == ["p00", "p01"]
    assert faces.identities.tolist() == [0, 0, 0, 1, 1, 1]
    assert faces.task.kind == "multi_label"
    assert faces.task.label_names == LABELS
    assert faces.labels.tolist() == [[0, 0, 0], [1, 1, 1], bits(0, 2, 3), bits(1, 0, 3), bits(1, 1, 3), bits(1, 2, 3)]


def test_path_and_data_dir_are_equivalent(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    by_path, by_option = load_faces(str(folder)), load_faces("folder", folder)
    assert by_path.fingerprint == by_option.fingerprint
    assert by_path.name == by_option.name == "photos"


def test_order_of_rows_does_not_change_the_fingerprint(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    before = load_faces(str(folder))
    head, *rows = (folder / "metadata.csv").read_text().splitlines()
    (folder / "metadata.csv").write_text("\n".join([head, *reversed(rows)]) + "\n")
    after = load_faces(str(folder))
    assert after.keys == before.keys[::-1]
    assert after.fingerprint == before.fingerprint


@pytest.mark.parametrize(("zero", "one"), [("-1", "1"), ("false", "true"), ("False", "True"), (" 0", "1 ")])
def test_spellings_of_binary_values_are_equivalent(photo_folder: MakeFolder, zero: str, one: str) -> None:
    plain, spelt = photo_folder(name="plain"), photo_folder(name="spelt")
    head, *rows = (spelt / "metadata.csv").read_text().splitlines()
    rows = [",".join(r.split(",")[:2] + [one if v == "1" else zero for v in r.split(",")[2:]]) for r in rows]
    (spelt / "metadata.csv").write_text("\n".join([head, *rows]))
    assert load_faces(str(spelt)).fingerprint == load_faces(str(plain)).fingerprint


def test_bom_and_crlf_are_accepted(photo_folder: MakeFolder) -> None:
    plain, other = photo_folder(name="plain"), photo_folder(name="other")
    text = (other / "metadata.csv").read_text()
    (other / "metadata.csv").write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    assert load_faces(str(other)).fingerprint == load_faces(str(plain)).fingerprint


def test_non_binary_column_is_not_inferred_as_a_label(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    add_column(folder, "partition", ["0", "1", "2", "0"])
    add_column(folder, "camera", ["a", "b", "c", "d"])
    assert load_faces(str(folder)).task.label_names == LABELS


def test_binary_partition_column_is_not_inferred_as_a_label(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    add_column(folder, "partition", ["0", "1", "0", "1"])
    assert load_faces(str(folder)).task.label_names == LABELS


def test_label_columns_keep_the_requested_order(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    everything = load_faces(str(folder))
    chosen = load_faces(str(folder), label_columns=["Smiling", "Glasses"])
    assert chosen.task.label_names == ("Smiling", "Glasses")
    assert chosen.labels.equal(everything.labels[:, [2, 0]])


def test_class_column_gives_single_label(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    replace_labels(folder, "label", ["old", "young", "old", "middle"])
    faces = load_faces(str(folder))
    assert faces.task.kind == "single_label"
    assert faces.task.label_names == ("middle", "old", "young")
    assert faces.labels.tolist() == [1, 2, 1, 0]


def test_numeric_classes_are_sorted_by_value(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    replace_labels(folder, "age", ["10", "9", "-1", "100"])
    faces = load_faces(str(folder))
    assert faces.task.label_names == ("-1", "9", "10", "100")
    assert faces.labels.tolist() == [2, 1, 0, 3]


def test_requested_class_column_is_used(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    add_column(folder, "mood", ["sad", "glad", "sad", "calm"])
    faces = load_faces(str(folder), label_columns=["mood"])
    assert faces.task.kind == "single_label"
    assert faces.task.label_names == ("calm", "glad", "sad")


def test_inferred_labels_do_not_depend_on_missing_photos(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=3)
    replace_labels(folder, "label", ["a", "b", "c", "a", "b", "c"])
    add_column(folder, "grade", ["0", "1", "2", "0", "1", "2"])
    for person in (0, 1):  # the remaining values of `grade` are 0 and 1
        (folder / f"p{person:02d}/2.png").unlink()
    faces = load_faces(str(folder))
    assert faces.task.label_names == ("a", "b", "c")
    assert faces.labels.tolist() == [0, 1, 0, 1]


def test_requested_binary_column_with_one_value_is_binary(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    add_column(folder, "Alive", ["1", "1", "1", "1"])
    faces = load_faces(str(folder), label_columns=["Alive"])
    assert faces.task.kind == "multi_label"
    assert faces.labels.tolist() == [[1], [1], [1], [1]]


def test_rows_without_an_image_are_excluded_and_counted(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    (folder / "p01/0.png").unlink()
    for _ in range(2):  # the second load reads the cache
        faces = load_faces(str(folder))
        assert faces.keys == ["p00/0.png", "p00/1.png", "p01/1.png"]
        assert faces.exclusions == Exclusions(without_image=["p01/0.png"])
        assert faces.exclusions.messages() == ("Excluded: annotated photos without an image (1).",)


def test_photos_without_a_row_are_excluded_and_counted(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    portrait(5, 5).save(folder / "p01/extra.JPEG")
    (folder / "notes.txt").write_text("no photo")
    for _ in range(2):
        faces = load_faces(str(folder))
        assert len(faces) == 4
        assert faces.exclusions == Exclusions(without_row=["p01/extra.JPEG"])


def test_unused_columns_are_noted(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    add_column(folder, "camera", ["a", "b", "c", "d"])
    note = "3 columns are labels; camera is not (choose with --label-columns)."
    assert load_faces(str(folder)).exclusions.messages() == (note,)
    assert load_faces(str(folder), label_columns=LABELS).exclusions.messages() == ()


def test_requested_columns_of_other_names_are_used(photo_folder: MakeFolder) -> None:
    plain, other = photo_folder(name="plain"), photo_folder(name="other")
    rename(other, {"file_name": "where", "identity": "who"})
    faces = load_faces(str(other), image_column="where", identity_column="who")
    assert faces.fingerprint == load_faces(str(plain)).fingerprint


def test_requested_columns_override_common_names(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    add_column(folder, "family", ["x", "y", "x", "y"])
    assert load_faces(str(folder), identity_column="family").people == ["x", "y"]


@pytest.mark.parametrize(
    ("image", "person"),
    [("photo", "subject"), ("image", "celeb_id"), ("picture", "person_id"), ("File_Name", "Identity"), ("face", "people")],
)
def test_columns_are_inferred_from_common_names(photo_folder: MakeFolder, image: str, person: str) -> None:
    plain, other = photo_folder(name="plain"), photo_folder(name="other")
    rename(other, {"file_name": image, "identity": person})
    assert load_faces(str(other)).fingerprint == load_faces(str(plain)).fingerprint


@pytest.mark.parametrize("option", ["image_column", "identity_column"])
def test_missing_requested_column_raises_with_a_suggestion(photo_folder: MakeFolder, option: str) -> None:
    with pytest.raises(UsageError, match=r"metadata\.csv has no column 'Smilling'\. Did you mean 'Smiling'"):
        load_faces(str(photo_folder()), **{option: "Smilling"})


def test_empty_cell_of_a_requested_image_column_raises_with_its_line(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    add_column(folder, "mine", ["p00/0.png", "p00/1.png", "", "p01/1.png"])
    with pytest.raises(OneshuiError, match=r"Line 4 of .*metadata\.csv has no mine"):
        load_faces(str(folder), image_column="mine")


def test_empty_cell_of_a_requested_identity_column_leaves_the_photo_out(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    add_column(folder, "mine", ["x", "y", "", "x"])
    faces = load_faces(str(folder), identity_column="mine")
    assert faces.people == ["x", "y"]
    assert faces.exclusions.without_identity == ["p01/0.png"]


def test_requested_columns_for_a_named_data_set_raise(celeba_folder: MakeFolder) -> None:
    for option in ("image_column", "identity_column"):
        with pytest.raises(UsageError, match=f"--{option.replace('_', '-')} applies to your own folder or table, not to 'celeba'"):
            load_faces("celeba", celeba_folder(name=option), **{option: "image"})


def test_folder_has_no_subsets(photo_folder: MakeFolder) -> None:
    with pytest.raises(UsageError, match="has no subsets; omit --subset"):
        load_faces(str(photo_folder()), subset="cleaned")


@pytest.mark.parametrize("name", ["../outside.png", "p00/../../outside.png", "..", "/etc/outside.png"])
def test_photo_outside_the_folder_raises(photo_folder: MakeFolder, tmp_path: Path, name: str) -> None:
    folder = photo_folder(people=2, photos=2)
    portrait(5, 5).save(tmp_path / "outside.png")
    with (folder / "metadata.csv").open("a") as file:
        file.write(f"{name},p99,1,0,1\n")
    with pytest.raises(OneshuiError, match=rf"Line 6 of .*metadata\.csv names {name}, which is outside of .*photos; move the photo there"):
        load_faces(str(folder))


@pytest.mark.parametrize("name", ["..a.png", "...png", "..p/0.png", "p00/..0.png"])
def test_file_name_may_begin_with_two_dots(photo_folder: MakeFolder, name: str) -> None:
    folder = photo_folder(people=2, photos=2)
    (folder / name).parent.mkdir(exist_ok=True)
    portrait(5, 5).save(folder / name, "PNG")
    with (folder / "metadata.csv").open("a") as file:
        file.write(f"{name},p99,1,0,1\n")
    faces = load_faces(str(folder))
    assert faces.encoded_image(faces.keys.index(name)) == str(folder / name)
    assert faces.exclusions.messages() == ()


def test_path_with_parent_references_is_normalised(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    (folder / "metadata.csv").write_text((folder / "metadata.csv").read_text().replace("p00/0.png", "./p01/../p00/0.png"))
    faces = load_faces(str(folder))
    assert faces.encoded_image(0) == str(folder / "p00/0.png")
    assert faces.exclusions.messages() == ()


def test_circular_links_are_ignored(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    (folder / "loop").symlink_to("loop")
    (folder / "p00/0.png").unlink()
    (folder / "p00/0.png").symlink_to("0.png")
    assert load_faces(str(folder)).exclusions.without_image == ["p00/0.png"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace(",", ";"), "is separated by ;, not by commas"),
        (lambda text: text.replace(",", "\t"), "is separated by tabs, not by commas"),
        (lambda text: text.replace("Hat", "Glasses"), "has two columns called 'Glasses'"),
        (lambda text: text.replace("p00/0.png,", "p00/0.png,1,", 1), "its first row has more columns than its header"),
    ],
)
def test_ambiguous_table_raises(photo_folder: MakeFolder, change: Callable[[str], str], words: str) -> None:
    folder = photo_folder(people=2, photos=2)
    (folder / "metadata.csv").write_text(change((folder / "metadata.csv").read_text()))
    with pytest.raises(OneshuiError, match=words):
        load_faces(str(folder))


def test_class_column_with_one_value_raises(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    replace_labels(folder, "label", ["young"] * 4)
    with pytest.raises(OneshuiError, match="Label column 'label' of metadata.csv has one distinct value"):
        load_faces(str(folder))


def test_identity_column_as_label_raises(photo_folder: MakeFolder) -> None:
    with pytest.raises(UsageError, match="Column 'identity' of metadata.csv names photos or people and is not a label"):
        load_faces(str(photo_folder()), label_columns=["identity"])


def test_folder_of_a_named_data_set_raises_with_its_name(celeba_folder: MakeFolder) -> None:
    folder = celeba_folder()
    with pytest.raises(UsageError, match=f"{folder} has the layout of celeba; name it with --dataset celeba --data-dir {folder}"):
        load_faces(str(folder))


@pytest.mark.parametrize("file", ["dataset_info.json", "folder-train.arrow"])
def test_damaged_arrow_cache_raises_with_a_remedy(photo_folder: MakeFolder, file: str) -> None:
    folder = photo_folder(people=2, photos=2)
    cache = load_faces(str(folder)).cache
    for content in (b"", b"{", b"\xff\xfe", (cache / file).read_bytes()[:-200]):
        (cache / file).write_bytes(content)
        with pytest.raises(OneshuiError, match="The Arrow data in .* is damaged .*; remove that folder and run again"):
            load_faces(str(folder))


def test_typo_in_a_label_column_raises_with_its_line(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=6, photos=4)
    add_column(folder, "Beard", ["0", "1"] * 11 + ["0", "q"])
    with pytest.raises(OneshuiError, match=r"Line 25 of .*metadata\.csv has 'q' as Beard, which is 0 or 1 elsewhere"):
        load_faces(str(folder))
    assert load_faces(str(folder), label_columns=LABELS).task.label_names == LABELS


def test_single_value_in_an_empty_column_is_not_a_typo(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=6, photos=4)
    add_column(folder, "remark", [""] * 23 + ["blurred"])
    assert load_faces(str(folder)).task.label_names == LABELS


@pytest.mark.parametrize(
    ("content", "message"),
    [("<!DOCTYPE html>\n<html></html>\n", "is a web page"), ("version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer")],
)
def test_placeholder_of_a_download_raises(photo_folder: MakeFolder, content: str, message: str) -> None:
    folder = photo_folder()
    (folder / "metadata.csv").write_text(content)
    with pytest.raises(OneshuiError, match=rf"metadata\.csv {message}"):
        load_faces(str(folder))


def test_added_photo_is_read_on_the_next_load(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    before = load_faces(str(folder))
    portrait(5, 5).save(folder / "new.png")
    with (folder / "metadata.csv").open("a") as file:
        file.write("new.png,p99,1,0,1\n")
    after = load_faces(str(folder))
    assert (len(before), len(after)) == (4, 5)
    assert after.people == ["p00", "p01", "p99"]
    assert after.labels[4].tolist() == [1, 0, 1]


def test_replaced_photo_of_another_file_size_has_a_new_cache(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    before = load_faces(str(folder)).cache
    portrait(5, 5, (48, 48)).save(folder / "p00/0.png")
    assert load_faces(str(folder)).cache != before


def test_moved_folder_is_read_from_data_dir(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    before = load_faces(str(folder)).fingerprint
    moved = folder.rename(folder.with_name("moved"))
    assert load_faces(str(folder), moved).fingerprint == before


def test_name_of_the_current_folder_is_resolved(photo_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photo_folder(people=2, photos=2))
    assert load_faces(".").name == "photos"


def test_broken_link_is_ignored(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    (folder / ".#metadata.csv").symlink_to("nowhere")  # an editor's lock
    assert len(load_faces(str(folder))) == 4


def test_label_requested_twice_raises(photo_folder: MakeFolder) -> None:
    with pytest.raises(UsageError, match="Hat"):
        load_faces(str(photo_folder()), label_columns=["Hat", "Hat"])


def test_empty_label_cell_raises_with_its_line(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    lines = (folder / "metadata.csv").read_text().splitlines()
    lines[2] = lines[2].rpartition(",")[0] + ","
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    for columns in ((), ("Smiling",), ("Hat", "Smiling")):
        with pytest.raises(OneshuiError, match=r"Line 3 of .*metadata\.csv has no Smiling"):
            load_faces(str(folder), label_columns=columns)


def test_missing_folder_raises() -> None:
    with pytest.raises(UsageError, match="'no/such/folder' is neither a data set nor a folder"):
        load_faces("no/such/folder")


def test_empty_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(OneshuiError, match=f"{tmp_path} contains neither metadata\\.csv nor a readable table"):
        load_faces(str(tmp_path))


@pytest.mark.parametrize("column", ["file_name", "identity"])
def test_missing_column_raises(photo_folder: MakeFolder, column: str) -> None:
    folder = photo_folder()
    text = (folder / "metadata.csv").read_text()
    (folder / "metadata.csv").write_text(text.replace(column, "other", 1))
    with pytest.raises(OneshuiError, match=rf"metadata\.csv has no column '{column}'; name the column .* with --.*: .*other, .*Smiling\."):
        load_faces(str(folder))


@pytest.mark.parametrize("empty", ["", " "])
def test_empty_file_name_raises_with_its_line(photo_folder: MakeFolder, empty: str) -> None:
    folder = photo_folder()
    text = (folder / "metadata.csv").read_text()
    (folder / "metadata.csv").write_text(text.replace("p00/1.png,p00,", f"{empty},p00,"))
    with pytest.raises(OneshuiError, match=r"Line 3 of .*metadata\.csv has no file_name"):
        load_faces(str(folder))


@pytest.mark.parametrize("empty", ["", " ", "nan"])
def test_photo_without_an_identity_is_left_out_counted_and_named(photo_folder: MakeFolder, empty: str) -> None:
    folder = photo_folder()
    text = (folder / "metadata.csv").read_text()
    (folder / "metadata.csv").write_text(text.replace("p00/1.png,p00,", f"p00/1.png,{empty},"))
    for _ in range(2):  # the second load reads the cache
        faces = load_faces(str(folder))
        assert len(faces) == 11
        assert "p00/1.png" not in faces.keys
        assert faces.exclusions.without_identity == ["p00/1.png"]
        assert faces.exclusions.without_row == []
        note, counted = faces.exclusions.messages()
        assert note.startswith("1 row has no identity (")
        assert "p00/1.png" in note
        assert counted == "Excluded: photos without an identity (1)."


def test_blank_lines_do_not_change_line_numbers(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    lines = (folder / "metadata.csv").read_text().splitlines()
    lines[2] = "\n" + lines[2].replace("p00/1.png", "", 1)
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(OneshuiError, match=r"Line 4 of .*metadata\.csv has no file_name"):
        load_faces(str(folder))


def test_missing_label_is_not_read_as_zero(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    lines = (folder / "metadata.csv").read_text().splitlines()
    lines[2] = lines[2].rpartition(",")[0]  # a row that ends early
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(OneshuiError, match=r"Line 3 of .*metadata\.csv has no Smiling"):
        load_faces(str(folder))


def test_row_with_too_many_columns_raises(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    with (folder / "metadata.csv").open("a") as file:
        file.write("p00/0.png,p00,0,0,0,0\n")
    with pytest.raises(OneshuiError, match=r"metadata\.csv is not a readable CSV file: .*line 14"):
        load_faces(str(folder))


def test_duplicate_photo_raises(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    with (folder / "metadata.csv").open("a") as file:
        file.write("p00/0.png,p01,0,0,0\n")
    with pytest.raises(OneshuiError, match=r"p00/0\.png"):
        load_faces(str(folder))


def test_unknown_label_column_raises_with_a_suggestion(photo_folder: MakeFolder) -> None:
    with pytest.raises(UsageError, match="has no column 'Smilling'. Did you mean 'Smiling'"):
        load_faces(str(photo_folder()), label_columns=["Smilling"])


def test_class_column_among_several_labels_raises(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    add_column(folder, "mood", ["sad", "glad", "sad", "calm"])
    with pytest.raises(UsageError, match="Label column 'mood' has 3 values; several labels must each be 0/1"):
        load_faces(str(folder), label_columns=["Hat", "mood"])


def test_table_without_label_columns_raises(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    replace_labels(folder, "camera", ["a", "b", "c", "d"])
    with pytest.raises(OneshuiError, match="name the label columns with --label-columns"):
        load_faces(str(folder))


def test_folder_without_any_annotated_photo_raises(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    for file in folder.glob("*/*.png"):
        file.unlink()
    with pytest.raises(OneshuiError, match="None of the 12 annotated photos \\(such as p00/0\\.png\\) exists"):
        load_faces(str(folder))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00\x01"])
def test_file_that_is_not_csv_raises(photo_folder: MakeFolder, content: bytes) -> None:
    folder = photo_folder()
    (folder / "metadata.csv").write_bytes(content)
    with pytest.raises(OneshuiError, match=r"metadata\.csv is not a readable CSV file"):
        load_faces(str(folder))


def test_real_folder_is_read_with_its_forty_attributes(assets: Path) -> None:
    faces = load_faces(str(assets / "faces/folder"))
    assert len(faces) == 1200
    assert len(faces.people) == 100
    names = faces.task.label_names
    assert len(names) == 40, [name for name in names if name in ("partition", "source_name")]
    assert faces.task.kind == "multi_label"
    named = load_faces(str(assets / "faces/folder"), label_columns=names)
    assert named.fingerprint == faces.fingerprint

"""CelebA on disk: values, folder layouts, and errors."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from oneshui_hf.data.builders.annotation_files import read_integer_table
from oneshui_hf.data.builders.celeba import ATTRIBUTE_NAMES, EXTRAS, read_attributes, read_identities
from oneshui_hf.data.load import load_faces, load_photo_keys
from oneshui_hf.data.schema import Exclusions
from oneshui_hf.errors import OneshuiError, UsageError
from support.faces import bits, portrait

MakeFolder = Callable[..., Path]


def rewrite(file: Path, change: Callable[[str], str]) -> None:
    file.write_bytes(change(file.read_bytes().decode()).encode())


def as_csv(folder: Path, first: str = "image_id", bom: bool = False, newline: str = "\n") -> None:
    """Replace both text files by CSV files with the same content."""
    attributes, identities = folder / "list_attr_celeba.txt", folder / "identity_CelebA.txt"
    rows = [line.split() for line in attributes.read_text().splitlines()[1:]]
    rows[0] = [first, *rows[0]]
    people = [[first, "identity"], *(line.split() for line in identities.read_text().splitlines())]
    for file, table in ((attributes, rows), (identities, people)):
        text = "".join(",".join(row) + newline for row in table)
        file.with_suffix(".csv").write_bytes(text.encode("utf-8-sig" if bom else "utf-8"))
        file.unlink()


def nest(folder: Path) -> Path:
    """Move the images into a nested folder of the same name, as in the archive from Kaggle."""
    images = folder / "img_align_celeba"
    images.rename(folder / "moved")
    images.mkdir()
    (folder / "moved").rename(images / "img_align_celeba")
    return folder


def extra_file(folder: Path, column: str, rows: dict[str, list[int]], kind: str = "txt") -> None:
    """Write an optional file in its published format: text with count and header (the partition without), or CSV with a header."""
    (files, columns), number = EXTRAS[column], {"txt": 0, "csv": 1}
    if kind == "csv":
        lines = [",".join(("image_id", *columns)), *(",".join(map(str, (name, *values))) for name, values in rows.items())]
    else:
        head = [] if column == "partition" else [str(len(rows)), " ".join(columns)]
        lines = [*head, *(name + "".join(f" {value:3d}" for value in values) + "  " for name, values in rows.items())]
    (folder / files[number[kind]]).write_bytes("".join(f"{line}\r\n" for line in lines).encode())


def test_identities_labels_and_keys_are_those_of_the_files(celeba_folder: MakeFolder) -> None:
    faces = load_faces("celeba", celeba_folder(people=3, photos=2))
    assert faces.keys == [f"{n:06d}.jpg" for n in range(1, 7)]
    assert faces.people == ["101", "102", "103"]
    assert faces.identities.tolist() == [0, 0, 1, 1, 2, 2]
    assert faces.task.kind == "multi_label"
    assert faces.task.label_names == ATTRIBUTE_NAMES
    assert faces.labels.tolist() == [bits(p, m, 40) for p in range(3) for m in range(2)]
    assert faces.exclusions == Exclusions()
    assert faces.exclusions.messages() == ()


def test_forty_attributes_in_the_published_order() -> None:
    assert len(ATTRIBUTE_NAMES) == len(set(ATTRIBUTE_NAMES)) == 40
    assert ATTRIBUTE_NAMES[0] == "5_o_Clock_Shadow"
    assert ATTRIBUTE_NAMES[20] == "Male"
    assert ATTRIBUTE_NAMES[39] == "Young"


@pytest.mark.parametrize(
    ("first", "bom", "newline"),
    [("image_id", False, "\n"), ("", False, "\n"), ("id", True, "\r\n"), ("image_id", True, "\n")],
)
def test_csv_and_text_are_equivalent(celeba_folder: MakeFolder, first: str, bom: bool, newline: str) -> None:
    text, csv = celeba_folder(name="text"), celeba_folder(name="csv")
    as_csv(csv, first, bom, newline)
    assert load_faces("celeba", csv).fingerprint == load_faces("celeba", text).fingerprint


@pytest.mark.parametrize("header", ["image identity\n", "img label\r\n"])
def test_header_of_the_identity_file_is_ignored(celeba_folder: MakeFolder, header: str) -> None:
    plain, headed = celeba_folder(name="plain"), celeba_folder(name="headed")
    rewrite(headed / "identity_CelebA.txt", lambda text: header + text)
    assert load_faces("celeba", headed).fingerprint == load_faces("celeba", plain).fingerprint


def test_lf_and_a_missing_count_line_are_accepted(celeba_folder: MakeFolder) -> None:
    plain, changed = celeba_folder(name="plain"), celeba_folder(name="changed")
    rewrite(changed / "list_attr_celeba.txt", lambda text: text.replace("\r\n", "\n").partition("\n")[2] + "\n")
    assert load_faces("celeba", changed).fingerprint == load_faces("celeba", plain).fingerprint


def test_parent_of_the_folder_is_accepted(celeba_folder: MakeFolder) -> None:
    folder = celeba_folder()
    assert load_faces("celeba", folder.parent).fingerprint == load_faces("celeba", folder).fingerprint


def test_nested_image_folder_of_the_kaggle_archive_is_accepted(celeba_folder: MakeFolder) -> None:
    plain, nested = celeba_folder(name="plain"), nest(celeba_folder(name="nested"))
    as_csv(nested)
    assert load_faces("celeba", nested).fingerprint == load_faces("celeba", plain).fingerprint


@pytest.mark.parametrize(("below", "times"), [("img_align_celeba", 1), ("img_align_celeba", 2), ("img_align_celeba/img_align_celeba", 2)])
def test_folder_a_level_too_low_names_the_right_one(celeba_folder: MakeFolder, below: str, times: int) -> None:
    folder = celeba_folder()
    if times == 2:
        nest(folder)
    with pytest.raises(OneshuiError, match=f"{re.escape(str(folder / below))} .*a level too low; name {re.escape(str(folder))} instead"):
        load_faces("celeba", folder / below)


@pytest.mark.parametrize("name", ["mine", "archive/mine", "archive/celeba"])
def test_folder_a_level_too_high_names_the_right_one(celeba_folder: MakeFolder, tmp_path: Path, name: str) -> None:
    folder = celeba_folder(name=name)
    (tmp_path / "other").mkdir()
    with pytest.raises(OneshuiError, match=f"a level too high; name {re.escape(str(folder))} instead"):
        load_faces("celeba", tmp_path)


def test_photo_keys_include_missing_photos(celeba_folder: MakeFolder) -> None:
    folder = celeba_folder(people=2, photos=2)
    (folder / "img_align_celeba" / "000001.jpg").unlink()
    options = {"subset": None, "image_column": None, "identity_column": None, "label_columns": ()}
    assert load_photo_keys("celeba", folder, **options) == {"101": ["000001.jpg", "000002.jpg"], "102": ["000003.jpg", "000004.jpg"]}


def test_subset_of_the_images_has_the_right_rows(celeba_folder: MakeFolder) -> None:
    folder = celeba_folder(people=3, photos=3)
    for number in (2, 4, 5, 6):
        (folder / "img_align_celeba" / f"{number:06d}.jpg").unlink()
    faces = load_faces("celeba", folder)
    assert faces.keys == [f"{n:06d}.jpg" for n in (1, 3, 7, 8, 9)]
    assert faces.people == ["101", "103"]
    assert faces.labels.tolist() == [bits(p, m, 40) for p, m in ((0, 0), (0, 2), (2, 0), (2, 1), (2, 2))]
    assert faces.exclusions == Exclusions(without_image=["000002.jpg", "000004.jpg", "000005.jpg", "000006.jpg"])
    assert faces.exclusions.messages() == ("Excluded: annotated photos without an image (4).",)


def test_images_without_a_row_are_counted_on_every_load(celeba_folder: MakeFolder) -> None:
    folder = celeba_folder(people=2, photos=2)
    portrait(9, 9).save(folder / "img_align_celeba" / "900000.jpg")
    rewrite(folder / "identity_CelebA.txt", lambda text: text.partition("\r\n")[2])
    for _ in range(2):  # the second load reads the cache
        faces = load_faces("celeba", folder)
        assert faces.keys == ["000002.jpg", "000003.jpg", "000004.jpg"]
        assert faces.exclusions == Exclusions(without_row=["900000.jpg"], without_identity=["000001.jpg"])
        assert faces.exclusions.messages() == ("Excluded: photos without an annotation row (1), photos without an identity (1).",)


def test_added_photo_is_read_on_the_next_load(celeba_folder: MakeFolder) -> None:
    folder = celeba_folder(people=2, photos=2)
    before = load_faces("celeba", folder)
    portrait(1, 9).save(folder / "img_align_celeba" / "000005.jpg")
    rewrite(folder / "list_attr_celeba.txt", lambda text: text + "000005.jpg " + " 1" * 40 + "\r\n")
    rewrite(folder / "identity_CelebA.txt", lambda text: text + "000005.jpg 7\r\n")
    after = load_faces("celeba", folder)
    assert (len(before), len(after)) == (4, 5)
    assert after.people == ["101", "102", "7"]
    assert after.labels[4].tolist() == [1.0] * 40
    assert after.fingerprint != before.fingerprint


def test_changed_label_is_read_on_the_next_load(celeba_folder: MakeFolder) -> None:
    folder = celeba_folder(people=2, photos=2)
    before = load_faces("celeba", folder).labels
    rewrite(folder / "list_attr_celeba.txt", lambda text: text.replace("-1", " 1", 1))
    assert (load_faces("celeba", folder).labels - before).abs().sum() == 1


@pytest.mark.parametrize("kind", ["txt", "csv"])
@pytest.mark.parametrize("column", ["partition", "bbox", "landmarks"])
def test_optional_file_becomes_a_column_outside_the_fingerprint(celeba_folder: MakeFolder, column: str, kind: str) -> None:
    folder = celeba_folder(people=2, photos=2)
    before = load_faces("celeba", folder)
    width = len(EXTRAS[column][1])
    rows = {f"{n:06d}.jpg": list(range(100 * n, 100 * n + width)) for n in (4, 1, 3, 9)}  # photo 2 has no row; 9 is not a photo
    extra_file(folder, column, rows, kind)
    faces = load_faces("celeba", folder)
    expected = [rows.get(key, [-1] * width) for key in faces.keys]
    assert list(faces.arrow_dataset[column]) == (expected if width > 1 else [values[0] for values in expected])
    assert faces.fingerprint == before.fingerprint
    assert set(before.arrow_dataset.column_names) == {"key", "image", "identity", "labels"}
    assert set(faces.arrow_dataset.column_names) == {"key", "image", "identity", "labels", column}


@pytest.mark.parametrize("column", ["partition", "bbox", "landmarks"])
def test_changed_optional_file_is_read_on_the_next_load(celeba_folder: MakeFolder, column: str) -> None:
    folder = celeba_folder(people=2, photos=1)
    width = len(EXTRAS[column][1])
    for value in (1, 2):
        extra_file(folder, column, {"000001.jpg": [value] * width, "000002.jpg": [0] * width})
        assert np.ravel(list(load_faces("celeba", folder).arrow_dataset[column])).tolist() == [value] * width + [0] * width


def test_optional_columns_follow_a_subset_of_the_images(celeba_folder: MakeFolder) -> None:
    folder = celeba_folder(people=2, photos=2)
    for column, (_, columns) in EXTRAS.items():
        extra_file(folder, column, {f"{n:06d}.jpg": [n] * len(columns) for n in range(1, 5)})
    (folder / "img_align_celeba" / "000002.jpg").unlink()
    rows = load_faces("celeba", folder).arrow_dataset
    assert list(rows["partition"]) == [1, 3, 4]
    assert list(rows["bbox"]) == [[n] * 4 for n in (1, 3, 4)]
    assert list(rows["landmarks"]) == [[n] * 10 for n in (1, 3, 4)]


def test_damaged_optional_file_raises_with_its_line(celeba_folder: MakeFolder) -> None:
    folder = celeba_folder()
    extra_file(folder, "bbox", {"000001.jpg": [1, 2, 3, 4], "000002.jpg": [1, 2, 3]})
    with pytest.raises(OneshuiError, match=r"Line 4 of .*list_bbox_celeba\.txt has 4 columns instead of 5"):
        load_faces("celeba", folder)


def test_missing_data_dir_raises_with_the_expected_tree() -> None:
    with pytest.raises(UsageError, match=r"--data-dir.*DIR/img_align_celeba/.*DIR/identity_CelebA\.txt"):
        load_faces("celeba")


def test_missing_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--data-dir .*absent is not a folder.*DIR/img_align_celeba/"):
        load_faces("celeba", tmp_path / "absent")


def test_folder_without_images_raises_with_the_expected_tree(tmp_path: Path) -> None:
    with pytest.raises(OneshuiError, match=r"contains no folder img_align_celeba/.*DIR/list_attr_celeba\.txt"):
        load_faces("celeba", tmp_path)


@pytest.mark.parametrize("file", ["list_attr_celeba.txt", "identity_CelebA.txt"])
def test_incomplete_folder_raises_with_the_missing_file(celeba_folder: MakeFolder, file: str) -> None:
    folder = celeba_folder()
    (folder / file).unlink()
    with pytest.raises(OneshuiError, match=rf"celeba lacks {file}\. Expected: .*DIR"):
        load_faces("celeba", folder)


def test_images_without_any_row_raise(celeba_folder: MakeFolder) -> None:
    folder = celeba_folder()
    shutil.rmtree(folder / "img_align_celeba")
    (folder / "img_align_celeba").mkdir()
    portrait(0, 0).save(folder / "img_align_celeba" / "other.png")
    with pytest.raises(OneshuiError, match=r"None of the 9 annotated photos \(such as 000001\.jpg\) exists\. Expected: .*img_align"):
        load_faces("celeba", folder)


def test_line_with_too_few_columns_raises(celeba_folder: MakeFolder) -> None:
    folder = celeba_folder()
    rewrite(
        folder / "list_attr_celeba.txt",
        lambda text: text.replace("000003.jpg -1", "000003.jpg").replace("000003.jpg  1", "000003.jpg"),
    )
    with pytest.raises(OneshuiError, match=r"Line 5 of .*list_attr_celeba\.txt has 40 columns instead of 41"):
        load_faces("celeba", folder)


def test_identity_line_with_too_many_columns_raises(celeba_folder: MakeFolder) -> None:
    folder = celeba_folder()
    rewrite(folder / "identity_CelebA.txt", lambda text: text.replace("000004.jpg 102", "000004.jpg 102 3"))
    with pytest.raises(OneshuiError, match=r"Line 4 of .*identity_CelebA\.txt has 3 columns instead of 2"):
        load_faces("celeba", folder)


@pytest.mark.parametrize("value", ["x", "1.0", "nan", "99999999999", "²"])
def test_value_that_is_not_an_integer_raises(celeba_folder: MakeFolder, value: str) -> None:
    folder = celeba_folder()
    rewrite(folder / "identity_CelebA.txt", lambda text: text.replace("000002.jpg 101", f"000002.jpg {value}"))
    with pytest.raises(OneshuiError, match=r"Line 2 of .*identity_CelebA\.txt"):
        load_faces("celeba", folder)


def test_attribute_other_than_minus_one_and_one_raises(celeba_folder: MakeFolder) -> None:
    folder = celeba_folder()
    rewrite(folder / "list_attr_celeba.txt", lambda text: text.replace(" 1\r\n", " 7\r\n", 1))
    with pytest.raises(OneshuiError, match=r"Line \d+ of .*list_attr_celeba\.txt"):
        load_faces("celeba", folder)


def test_labels_of_zero_and_one_are_equivalent(celeba_folder: MakeFolder) -> None:
    plain, binary = celeba_folder(name="plain"), celeba_folder(name="binary")
    rewrite(binary / "list_attr_celeba.txt", lambda text: text.replace("-1", " 0"))
    assert load_faces("celeba", binary).fingerprint == load_faces("celeba", plain).fingerprint


def test_label_column_of_minus_one_and_zero_raises(celeba_folder: MakeFolder) -> None:
    folder = celeba_folder()  # in the third row, the first attribute becomes 0; it is -1 in another
    rewrite(
        folder / "list_attr_celeba.txt", lambda text: re.sub("(00000[12].jpg) ..", r"\1 -1", text).replace("000001.jpg -1", "000001.jpg  0")
    )
    with pytest.raises(OneshuiError, match=r"Label column '5_o_Clock_Shadow' of .*list_attr_celeba\.txt contains -1 and 0"):
        load_faces("celeba", folder)


def test_order_of_attribute_columns_does_not_matter(celeba_folder: MakeFolder) -> None:
    plain, turned = celeba_folder(name="plain"), celeba_folder(name="turned")
    as_csv(turned)
    lines = [line.split(",") for line in (turned / "list_attr_celeba.csv").read_text().splitlines()]
    (turned / "list_attr_celeba.csv").write_text("".join(",".join([name, *reversed(rest)]) + "\n" for name, *rest in lines))
    assert load_faces("celeba", turned).fingerprint == load_faces("celeba", plain).fingerprint


def test_header_of_other_attributes_raises(celeba_folder: MakeFolder) -> None:
    folder = celeba_folder()
    rewrite(folder / "list_attr_celeba.txt", lambda text: text.replace("Male", "Female"))
    with pytest.raises(OneshuiError, match=r"Line 2 of .*list_attr_celeba\.txt does not name the 40 attributes"):
        load_faces("celeba", folder)


def test_photo_with_two_identity_rows_raises(celeba_folder: MakeFolder) -> None:
    folder = celeba_folder()
    rewrite(folder / "identity_CelebA.txt", lambda text: text + "000001.jpg 102\r\n")
    with pytest.raises(OneshuiError, match=r"Line 10 of .*identity_CelebA\.txt contains 000001\.jpg a second time"):
        load_faces("celeba", folder)


@pytest.mark.parametrize("file", ["list_attr_celeba.txt", "identity_CelebA.txt"])
def test_html_page_instead_of_a_file_raises(celeba_folder: MakeFolder, file: str) -> None:
    folder = celeba_folder()
    (folder / file).write_text("<!DOCTYPE html>\n<html><head><title>Quota exceeded</title></head></html>\n")
    with pytest.raises(OneshuiError, match=rf"{file} is a web page, not the annotation file"):
        load_faces("celeba", folder)


@pytest.mark.parametrize("file", ["list_attr_celeba.txt", "identity_CelebA.txt"])
def test_git_lfs_pointer_instead_of_a_file_raises(celeba_folder: MakeFolder, file: str) -> None:
    folder = celeba_folder()
    (folder / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(OneshuiError, match=rf"{file} is a Git LFS pointer, not the file itself; run `git lfs pull`"):
        load_faces("celeba", folder)


@pytest.mark.parametrize(("content", "message"), [(b"", "is empty"), (b"\r\n\r\n", "is empty"), (b"\xff\xd8\xff", "is not a text")])
def test_file_without_text_raises(celeba_folder: MakeFolder, content: bytes, message: str) -> None:
    folder = celeba_folder()
    (folder / "identity_CelebA.txt").write_bytes(content)
    with pytest.raises(OneshuiError, match=message):
        load_faces("celeba", folder)


def test_label_columns_for_celeba_raise(celeba_folder: MakeFolder) -> None:
    with pytest.raises(UsageError, match="--label-columns applies to your own folder or table, not to 'celeba'"):
        load_faces("celeba", celeba_folder(), ["Male"])


def test_unknown_data_set_raises_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="'celebA-x' is neither a data set nor a folder. Did you mean 'celeba'"):
        load_faces("celebA-x")


def test_published_annotations_are_read_completely(assets: Path) -> None:
    attributes = read_attributes(assets / "annotations/celeba/list_attr_celeba.txt")
    people = read_identities(assets / "annotations/celeba/identity_CelebA.txt")
    assert attributes.shape == (202_599, 40)
    assert set(np.unique(attributes.to_numpy())) == {-1, 1}
    assert int((attributes["Male"] > 0).sum()) == 84_434  # as published
    assert people.shape == (202_599,)
    assert people.nunique() == 10_177
    assert people["000001.jpg"] == 2880
    blank = read_attributes(assets / "annotations/celeba/list_attr_celeba.first2000_blankheader.csv")
    assert blank.equals(attributes.loc[blank.index])
    assert len(blank) == 2000


@pytest.mark.parametrize("variant", ["header_image_identity", "header_img_label_CRLF"])
def test_known_variants_are_read(assets: Path, variant: str) -> None:
    people = read_identities(assets / f"annotations/variants/identity_CelebA.{variant}.head.txt")
    assert people["000001.jpg"] == 2880
    assert people["000002.jpg"] == 2937
    assert len(people) == 4


@pytest.mark.parametrize(
    "variant", ["list_eval_partition.LF.head.txt", "list_eval_partition.BOM.head.csv", "list_eval_partition.header_id.head.csv"]
)
def test_variants_of_the_partition_are_equivalent(assets: Path, variant: str) -> None:
    part = read_integer_table(assets / "annotations/variants" / variant, ("partition",))["partition"]
    whole = read_integer_table(assets / "annotations/celeba/list_eval_partition.txt", ("partition",))["partition"]
    assert part.to_dict() == whole[: len(part)].to_dict()
    assert part.index[0] == "000001.jpg"


def test_published_partition_as_text_equals_csv(assets: Path) -> None:
    text, csv = (read_integer_table(assets / f"annotations/celeba/list_eval_partition.{kind}", ("partition",)) for kind in ("txt", "csv"))
    assert text.equals(csv)
    assert text["partition"].value_counts().to_dict() == {0: 162_770, 1: 19_867, 2: 19_962}  # as published


def test_published_landmarks_are_read(assets: Path) -> None:
    landmarks = read_integer_table(assets / "annotations/variants/list_landmarks_align_celeba.head.csv", EXTRAS["landmarks"][1])
    assert landmarks.loc["000001.jpg"].tolist() == [69, 109, 106, 113, 77, 142, 73, 152, 108, 154]
    assert landmarks.shape == (6, 10)


def test_real_photos_are_read(assets: Path) -> None:
    faces = load_faces("celeba", assets / "faces")
    assert len(faces) == 6113
    assert len(faces.people) == 299
    assert faces.exclusions == Exclusions()
    assert set(faces.arrow_dataset["partition"]) <= {0, 1, 2}

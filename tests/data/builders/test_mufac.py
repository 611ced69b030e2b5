"""MUFAC in the layout of its authors: parts concatenated, and without near-duplicates across people and parts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oneshui_hf.data.builders.mufac import CLASSES, PARTS, read_part
from oneshui_hf.data.image_hashes import NEAR_DUPLICATE_BITS, find_near_duplicates, hash_images
from oneshui_hf.data.load import load_faces, load_photo_keys
from oneshui_hf.data.schema import Exclusions
from oneshui_hf.errors import OneshuiError, UsageError
from support.faces import portrait

HEADER = "family_id,person_id,age_class,image_path"

# Each part's rows: family, person, class, photo.
ROWS = {
    "train": ["F1,D,a,F1_AGE_D_18_a1.jpg", "F1,D,b,F1_AGE_D_18_b1.JPG", "F1,M,c,F1_AGE_M_48_c1.jpg"],
    "val": ["F2,D,d,F2_AGE_D_9_d1.jpg", "F2,D2,e,F2_AGE_D2_9_e1.jpg"],
    "test": ["F3,F,h,F3_AGE_F_81_h1.JPG", "F1,D,a,F1_AGE_D_19_a2.jpg"],
}
NAMES = [row.rpartition(",")[2] for part in PARTS for row in ROWS[part]]

MakeFolder = Callable[..., Path]


def face(number: int) -> Image.Image:
    return portrait(number, 0, (64, 64))


@pytest.fixture
def mufac_folder(tmp_path: Path) -> MakeFolder:
    """A factory of folders in MUFAC's layout; each photo is generated from its row number unless `photos` contains its image."""

    def make(rows: dict[str, list[str]] = ROWS, photos: dict[str, Image.Image] | None = None, name: str = "mufac") -> Path:
        folder, number = tmp_path / name, 0
        for part in PARTS:
            (folder / f"{part}_images").mkdir(parents=True)
            (folder / f"custom_{part}_dataset.csv").write_text("\n".join([HEADER, *rows.get(part, [])]) + "\n")
            for row in rows.get(part, []):
                photo = row.rpartition(",")[2]
                (photos or {}).get(photo, face(number)).save(folder / f"{part}_images" / photo, quality=95)
                number += 1
        return folder

    return make


def rows_of(*people: str, part: str = "train") -> dict[str, list[str]]:
    """Return rows with one photo for each "family_person", called 0.jpg, 1.jpg, ..."""
    return {part: [f"{person.replace('_', ',')},a,{number}.jpg" for number, person in enumerate(people)]}


def save_again(folder: Path, source: str, target: str, quality: int = 85) -> None:
    """Replace a photo by another one, saved at another quality."""
    Image.open(folder / source).save(folder / target, quality=quality)


def test_identities_labels_and_keys_are_those_of_the_files(mufac_folder: MakeFolder) -> None:
    faces = load_faces("mufac", mufac_folder())
    assert faces.keys == NAMES
    assert [faces.people[i] for i in faces.identities] == ["F1_D", "F1_D", "F1_M", "F2_D", "F2_D2", "F3_F", "F1_D"]
    assert faces.task.kind == "single_label"
    assert faces.task.label_names == CLASSES == tuple("abcdefgh")
    assert faces.labels.tolist() == [0, 1, 2, 3, 4, 7, 0]
    assert faces.exclusions == Exclusions()


def test_parent_of_the_folder_is_accepted(mufac_folder: MakeFolder) -> None:
    folder = mufac_folder()
    assert load_faces("mufac", folder.parent).fingerprint == load_faces("mufac", folder).fingerprint


def test_published_data_set_is_the_default(mufac_folder: MakeFolder) -> None:
    folder = mufac_folder()
    save_again(folder / "train_images", "F1_AGE_D_18_a1.jpg", "F1_AGE_M_48_c1.jpg")
    assert len(load_faces("mufac", folder)) == len(load_faces("mufac", folder, subset="published")) == 7
    assert len(load_faces("mufac", folder, subset="cleaned")) == 6


def test_missing_photo_of_a_part_is_found_in_the_fixed_folder(mufac_folder: MakeFolder) -> None:
    folder = mufac_folder()
    before = load_faces("mufac", folder).fingerprint
    for part, photo in (("val", NAMES[3]), ("test", NAMES[5])):
        (folder / f"fixed_{part}_dataset" / "deeper").mkdir(parents=True)
        (folder / f"{part}_images" / photo).rename(folder / f"fixed_{part}_dataset" / "deeper" / photo)
    faces = load_faces("mufac", folder)
    assert faces.fingerprint == before
    assert faces.encoded_image(3) == str(folder / "fixed_val_dataset" / "deeper" / NAMES[3])
    assert faces.exclusions == Exclusions()


def test_photo_of_the_part_folder_has_priority(mufac_folder: MakeFolder) -> None:
    folder = mufac_folder()
    shutil.copytree(folder / "val_images", folder / "fixed_val_dataset")
    faces = load_faces("mufac", folder)
    assert faces.encoded_image(3) == str(folder / "val_images" / NAMES[3])
    assert faces.exclusions == Exclusions()


@pytest.mark.parametrize("place", ["fixed_train_dataset", "fixed_val_dataset", "fixed_test_dataset", "train_images"])
def test_added_photo_is_read_on_the_next_load(mufac_folder: MakeFolder, place: str) -> None:
    folder, part = mufac_folder(), place.split("_")[-2]
    photo = next(name for name in NAMES if (folder / f"{part}_images" / name).exists()) if part in PARTS else NAMES[0]
    part = next(part for part in PARTS if (folder / f"{part}_images" / photo).exists())
    (folder / f"{part}_images" / photo).unlink()
    assert load_faces("mufac", folder).exclusions == Exclusions(without_image=[photo])
    (folder / place).mkdir(exist_ok=True)
    face(99).save(folder / place / photo)
    assert load_faces("mufac", folder).exclusions == Exclusions()


def test_missing_photos_and_rows_are_reported(mufac_folder: MakeFolder) -> None:
    folder = mufac_folder()
    (folder / "train_images" / NAMES[1]).unlink()
    (folder / "test_images" / NAMES[5]).unlink()
    face(50).save(folder / "val_images" / "unknown.jpg")
    for subset in ("published", "cleaned"):
        faces = load_faces("mufac", folder, subset=subset)
        assert len(faces) == 5
        assert faces.people == ["F1_D", "F1_M", "F2_D", "F2_D2"]
        assert faces.exclusions == Exclusions(without_image=[NAMES[1], NAMES[5]], without_row=["val_images/unknown.jpg"])


def test_folder_without_any_annotated_photo_raises(mufac_folder: MakeFolder) -> None:
    folder = mufac_folder()
    for photo in folder.glob("*_images/*"):
        photo.unlink()
    for subset in ("published", "cleaned"):
        with pytest.raises(OneshuiError, match="None of the 7 annotated photos .* exists"):
            load_faces("mufac", folder, subset=subset)


@pytest.mark.parametrize("part", PARTS)
def test_incomplete_folder_raises_with_the_missing_file(mufac_folder: MakeFolder, part: str) -> None:
    folder = mufac_folder()
    (folder / f"custom_{part}_dataset.csv").unlink()
    with pytest.raises(OneshuiError, match=rf"mufac lacks custom_{part}_dataset\.csv\. Expected: .*DIR/train_images/"):
        load_faces("mufac", folder)


def test_folder_of_one_part_is_a_level_too_low(mufac_folder: MakeFolder) -> None:
    folder = mufac_folder()
    with pytest.raises(OneshuiError, match=f"a level too low; name {folder} instead"):
        load_faces("mufac", folder / "val_images")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("F9,D,i,x.jpg", "Line 6 of .*val_dataset.csv has the age class 'i', which is not one of a to h"),
        ("F9,D,A,x.jpg", "Line 6 of .*val_dataset.csv has the age class 'A'"),
        ("F9,D,,x.jpg", "Line 6 of .*val_dataset.csv has no age_class"),
        (",D,a,x.jpg", "Line 6 of .*val_dataset.csv has no family_id"),
        ("F9, ,a,x.jpg", "Line 6 of .*val_dataset.csv has no person_id"),
        ("F9,D,a", "Line 6 of .*val_dataset.csv has no image_path"),
    ],
)
def test_invalid_cell_raises_with_its_line_after_blank_lines(mufac_folder: MakeFolder, row: str, message: str) -> None:
    folder = mufac_folder()
    (folder / "custom_val_dataset.csv").write_text("\n".join([HEADER, "", ROWS["val"][0], ",,,", ROWS["val"][1], row]))
    with pytest.raises(OneshuiError, match=message):
        load_faces("mufac", folder)


def test_blank_lines_byte_order_mark_crlf_and_padding_are_accepted(mufac_folder: MakeFolder) -> None:
    plain, changed = mufac_folder(name="plain"), mufac_folder(name="changed")
    lines = ["age_class,image_path,family_id,person_id,more", ""]
    for family, person, letter, photo in (row.split(",") for row in ROWS["train"]):
        lines += [f" {letter}, {photo} ,{family},{person},x", ",,,,"]
    (changed / "custom_train_dataset.csv").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    assert load_faces("mufac", changed).fingerprint == load_faces("mufac", plain).fingerprint


@pytest.mark.parametrize("part", ["train", "test"])
def test_photo_in_two_rows_raises(mufac_folder: MakeFolder, part: str) -> None:
    folder = mufac_folder()
    with (folder / f"custom_{part}_dataset.csv").open("a") as file:
        file.write(f"F7,D,a,{NAMES[0]}\n")
    with pytest.raises(OneshuiError, match=rf"contains {NAMES[0]} in two rows"):
        load_faces("mufac", folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html><body>Sign in</body></html>", "is a web page, not the annotation file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (b"", "is not a readable CSV file"),
        (b"\xff\xd8\xff", "is not a readable CSV file"),
        (b"family_id,person_id\nF1,D\n", "has no column age_class and image_path; it needs family_id, person_id, age_class, image_path"),
    ],
)
def test_invalid_annotation_file_raises(mufac_folder: MakeFolder, content: bytes, message: str) -> None:
    folder = mufac_folder()
    (folder / "custom_test_dataset.csv").write_bytes(content)
    with pytest.raises(OneshuiError, match=rf"custom_test_dataset\.csv {message}"):
        load_faces("mufac", folder)


def test_unknown_subset_raises_with_the_known_ones(mufac_folder: MakeFolder) -> None:
    with pytest.raises(UsageError, match="'mufac' has no subset 'clean'; it has cleaned and published"):
        load_faces("mufac", mufac_folder(), subset="clean")


def test_cleaned_without_near_duplicates_equals_published(mufac_folder: MakeFolder) -> None:
    folder = mufac_folder()
    cleaned = load_faces("mufac", folder, subset="cleaned")
    assert cleaned.fingerprint == load_faces("mufac", folder).fingerprint
    assert cleaned.exclusions == Exclusions()


def test_cleaned_excludes_near_duplicates_across_people_and_parts(mufac_folder: MakeFolder) -> None:
    folder = mufac_folder()
    save_again(folder / "train_images", NAMES[0], NAMES[2])  # F1_D as F1_M
    save_again(folder, f"train_images/{NAMES[1]}", f"test_images/{NAMES[6]}")  # F1_D again, in another part
    for _ in range(2):  # the second load reads the cache
        faces = load_faces("mufac", folder, subset="cleaned")
        assert faces.keys == [NAMES[0], NAMES[1], NAMES[3], NAMES[4], NAMES[5]]
        assert faces.labels.tolist() == [0, 1, 3, 4, 7]
        assert faces.people == ["F1_D", "F2_D", "F2_D2", "F3_F"]
        repeats = [{"photo": NAMES[2], "repeats": NAMES[0]}, {"photo": NAMES[6], "repeats": NAMES[1]}]
        assert faces.exclusions.near_duplicates == repeats
        assert json.loads((faces.cache / "near-duplicates.json").read_text()) == repeats
        note, counted = faces.exclusions.messages()
        assert f"{faces.cache}/near-duplicates.json lists each" in note
        assert counted == "Excluded: near-duplicates (2)."


def test_cleaned_keeps_near_duplicates_of_the_same_person_and_part(mufac_folder: MakeFolder) -> None:
    folder = mufac_folder()
    save_again(folder / "train_images", NAMES[0], NAMES[1])
    assert load_faces("mufac", folder, subset="cleaned").keys == NAMES


def test_cleaned_keeps_exactly_one_of_each_group(mufac_folder: MakeFolder) -> None:
    people = ["F1_D", "F2_D", "F3_D", "F4_D", "F5_D", "F6_D"]
    folder = mufac_folder(rows_of(*people))
    for number, quality in ((2, 85), (3, 80), (5, 90)):
        save_again(folder / "train_images", f"{number % 2}.jpg", f"{number}.jpg", quality)
    faces = load_faces("mufac", folder, subset="cleaned")
    assert faces.keys == ["0.jpg", "1.jpg", "4.jpg"]
    repeats = [("2.jpg", "0.jpg"), ("3.jpg", "1.jpg"), ("5.jpg", "1.jpg")]
    assert faces.exclusions.near_duplicates == [{"photo": photo, "repeats": kept} for photo, kept in repeats]


def test_cleaned_keeps_both_duplicated_photos_of_one_person(mufac_folder: MakeFolder) -> None:
    folder = mufac_folder(rows_of("F1_D", "F1_D", "F2_D"))
    for number, quality in ((1, 90), (2, 80)):
        save_again(folder / "train_images", "0.jpg", f"{number}.jpg", quality)
    faces = load_faces("mufac", folder, subset="cleaned")
    assert faces.keys == ["0.jpg", "1.jpg"]
    assert faces.exclusions.near_duplicates == [{"photo": "2.jpg", "repeats": "0.jpg"}]


@pytest.mark.parametrize(("order", "kept"), [((0, 1, 2), ["0.jpg", "2.jpg"]), ((1, 0, 2), ["0.jpg"]), ((0, 2, 1), ["0.jpg", "1.jpg"])])
def test_only_near_duplicates_of_kept_photos_are_excluded(mufac_folder: MakeFolder, order: tuple[int, ...], kept: list[str]) -> None:
    one, other = face(0), portrait(0, 1, (64, 64))
    chain = [Image.blend(one, other, share) for share in (0.0, 0.15, 0.3)]  # the first and the last are no near-duplicates
    folder = mufac_folder(rows_of("F1_D", "F2_D", "F3_D"), {f"{n}.jpg": chain[place] for n, place in enumerate(order)})
    photos = [str(folder / "train_images" / f"{order.index(place)}.jpg") for place in range(3)]
    assert find_near_duplicates(hash_images(photos)["hash"], NEAR_DUPLICATE_BITS).tolist() == [[0, 1], [1, 2]]
    faces = load_faces("mufac", folder, subset="cleaned")
    assert faces.keys == kept
    assert {repeat["repeats"] for repeat in faces.exclusions.near_duplicates} <= set(kept)
    assert len(kept) + len(faces.exclusions.near_duplicates) == 3


def test_cleaned_ignores_unreadable_photos(mufac_folder: MakeFolder) -> None:
    folder = mufac_folder()
    for photo in NAMES[:2]:
        (folder / "train_images" / photo).write_bytes(b"no photo")
    faces = load_faces("mufac", folder, subset="cleaned")
    assert faces.keys == NAMES
    assert faces.exclusions == Exclusions()


def test_published_annotations_are_read_completely(assets: Path) -> None:
    frames = {part: read_part(assets / f"annotations/mufac/custom_{part}_dataset.csv") for part in PARTS}
    assert [len(frames[part]) for part in PARTS] == [10_025, 1_539, 1_504]
    people = [f"{family}_{person}" for frame in frames.values() for family, person in zip(frame.family_id, frame.person_id, strict=True)]
    assert (len(people), len(set(people))) == (13_068, 1_216)
    assert np.unique(np.concatenate([frame.age_class for frame in frames.values()])).tolist() == list(CLASSES)


def test_published_annotations_give_a_data_set(assets: Path, tmp_path: Path) -> None:
    photos = []
    for part in PARTS:
        (tmp_path / f"{part}_images").mkdir()
        file = assets / f"annotations/mufac/custom_{part}_dataset.csv"
        (tmp_path / file.name).symlink_to(file)
        photos.append(file.read_text().split()[-1].rpartition(",")[2])
        (tmp_path / f"{part}_images" / photos[-1]).touch()  # an empty file, which is not decoded
    faces = load_faces("mufac", tmp_path)
    assert faces.keys == photos
    assert len(faces.exclusions.without_image) == 13_068 - 3


def test_photo_keys_of_the_cleaned_subset_need_all_photos(mufac_folder: MakeFolder) -> None:
    folder = mufac_folder()
    assert load_photo_keys("mufac", folder, subset="cleaned") == load_photo_keys("mufac", folder)
    (folder / "train_images" / NAMES[0]).unlink()
    assert sum(map(len, load_photo_keys("mufac", folder).values())) == 7
    with pytest.raises(UsageError, match="1 photos are missing, and subset 'cleaned' depends on all of them"):
        load_photo_keys("mufac", folder, subset="cleaned")

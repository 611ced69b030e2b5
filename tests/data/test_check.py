"""Checks of a data set: a case of every finding, and no finding for a clean data set."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from oneshui_hf.data.check import check_dataset
from oneshui_hf.data.load import load_faces
from oneshui_hf.data.schema import Faces
from oneshui_hf.data.split import Split, make_split
from oneshui_hf.errors import OneshuiError
from support.faces import portrait

MakeFolder = Callable[..., Path]
FINDINGS = (
    "rows_without_image",
    "images_without_row",
    "images_without_identity",
    "near_duplicates_removed",
    "unreadable",
    "tiny",
    "not_rgb",
    "single_image_identities",
    "contradictory_labels",
    "constant_labels",
    "exact_duplicates",
    "near_duplicates",
    "breaks",
)


def check_folder(folder: Path, split: Split | None = None, fixed_labels: Sequence[str] = ()) -> dict[str, Any]:
    report = check_dataset(load_faces(str(folder)), split, fixed_labels)
    assert json.loads(json.dumps(report)) == report
    return report


def findings(report: dict[str, Any]) -> set[str]:
    return {name for name in FINDINGS if report[name]}


def write_rows(folder: Path, columns: str, rows: dict[str, str]) -> None:
    lines = [f"file_name,identity,{columns}", *(f"{key},{key.partition('/')[0]},{labels}" for key, labels in rows.items())]
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


def save_again(photo: Path, other: Path) -> None:
    """Save the same photo at a lower quality."""
    with Image.open(photo) as image:
        image.resize((36, 36), Image.Resampling.BICUBIC).save(other, "JPEG", quality=85)


def folder_and_split(photo_folder: MakeFolder) -> tuple[Path, Split]:
    folder = photo_folder(people=12, photos=4)
    return folder, make_split(load_faces(str(folder)).photos_by_identity(), 0, 2)


def test_clean_data_set_has_no_findings(photo_folder: MakeFolder) -> None:
    folder, split = folder_and_split(photo_folder)
    report = check_folder(folder, split)
    assert findings(report) == set()
    assert report["images"] == 48
    assert report["identities"] == 12
    assert report["images_per_identity"] == {"min": 4, "median": 4, "mean": 4, "max": 4}
    assert report["duplicates_across_sets"] == []
    assert report["split_notes"] == []


def test_photos_of_each_person_are_counted(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=4, photos=3)
    for key in ("p01/0.png", "p01/1.png", "p02/2.png"):
        (folder / key).unlink()
    report = check_folder(folder)
    assert report["images_per_identity"] == {"min": 1, "median": 2.5, "mean": 2.25, "max": 3}
    assert report["single_image_identities"] == ["p01"]


def test_rows_without_photo_and_photos_without_row_are_reported(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    (folder / "p01/2.png").rename(folder / "p01/stray.png")
    report = check_folder(folder)
    assert report["rows_without_image"] == ["p01/2.png"]
    assert report["images_without_row"] == ["p01/stray.png"]
    assert findings(report) == {"rows_without_image", "images_without_row"}


def test_unreadable_photos_are_reported_with_a_reason(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    (folder / "p01/2.png").write_bytes(b"")
    (folder / "p02/0.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    portrait(0, 0, (15, 40)).save(folder / "p03/1.png")
    report = check_folder(folder)
    assert [item["photo"] for item in report["unreadable"]] == ["p01/2.png", "p02/0.png", "p03/1.png"]
    reasons = [item["reason"] for item in report["unreadable"]]
    assert reasons[0].startswith("is not an image that can be read")
    assert reasons[1].startswith("is a Git LFS pointer, not the photo itself")
    assert reasons[2] == "is 15x40 pixels; a portrait needs at least 16 a side."
    assert findings(report) == {"unreadable"}
    assert report["images"] == 12 - 3


def test_deleted_photo_is_reported_with_a_reason(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    faces = load_faces(str(folder))
    (folder / "p01/2.png").unlink()
    (item,) = check_dataset(faces)["unreadable"]
    assert item == {"photo": "p01/2.png", "reason": "does not exist."}


def test_restored_photo_has_another_reason(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    faces = load_faces(str(folder))
    (folder / "p01/2.png").rename(folder / "aside")
    check_dataset(faces)
    (folder / "aside").rename(folder / "p01/2.png")
    (item,) = check_dataset(faces)["unreadable"]
    assert item["reason"].startswith("could not be read when it was first checked; remove ")


def test_small_photos_are_reported_with_their_size(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    portrait(1, 0, (31, 40)).save(folder / "p01/0.png")
    portrait(1, 1, (32, 40)).save(folder / "p01/1.png")
    report = check_folder(folder)
    assert report["tiny"] == [{"photo": "p01/0.png", "width": 31, "height": 40}]
    assert findings(report) == {"tiny"}


def test_photos_not_in_rgb_are_reported_with_their_mode(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    modes = {"p00/0.png": "L", "p01/1.png": "RGBA", "p02/2.png": "P"}
    for key, mode in modes.items():
        with Image.open(folder / key) as image:
            converted = image.convert(mode)
        converted.save(folder / key)
    report = check_folder(folder)
    assert report["not_rgb"] == [{"photo": key, "mode": mode} for key, mode in modes.items()]
    assert findings(report) == {"not_rgb"}


def test_people_with_one_photo_are_reported(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    (folder / "p02/0.png").write_bytes(b"")
    (folder / "p02/1.png").unlink()
    report = check_folder(folder)
    assert report["single_image_identities"] == ["p02"]  # one of three is readable


def with_male(folder: Path) -> None:
    """Write labels in which p01 is not Male on one photo of three."""
    rows = {f"p{person:02d}/{photo}.png": f"{person % 2},{int(photo > 0)}" for person in range(4) for photo in range(3)}
    rows["p01/2.png"] = "0,1"
    write_rows(folder, "Male,Smiling", rows)


def test_people_with_contradictory_labels_are_reported(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    with_male(folder)
    report = check_folder(folder)
    assert report["contradictory_labels"] == [{"identity": "p01", "label": "Male", "values": {"0": 1, "1": 2}}]
    assert findings(report) == {"contradictory_labels"}


def test_fixed_labels_can_be_chosen(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    with_male(folder)
    contradictory = check_folder(folder, fixed_labels=["Smiling"])["contradictory_labels"]
    assert [item["identity"] for item in contradictory] == ["p00", "p01", "p02", "p03"]
    assert {item["label"] for item in contradictory} == {"Smiling"}
    assert len(check_folder(folder, fixed_labels=["Smiling", "Male"])["contradictory_labels"]) == 5


def test_constant_labels_are_reported(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    rows = {f"p{person:02d}/{photo}.png": f"0,{photo % 2},1" for person in range(4) for photo in range(3)}
    write_rows(folder, "Hat,Smiling,Awake", rows)
    report = check_folder(folder)
    assert report["constant_labels"] == ["Hat", "Awake"]
    assert report["class_balance"] == {"Hat": 0, "Smiling": 0.3333, "Awake": 1}


def test_label_with_one_deviation_in_a_large_data_set_is_not_constant(photo_folder: MakeFolder) -> None:
    from oneshui_hf.data.check import _constant_labels

    faces = load_faces(str(photo_folder()))
    labels = torch.zeros(30_000, 3)
    labels[0, 0] = labels[1:, 1] = 1
    many = replace(faces, keys=["photo"] * 30_000, labels=labels)
    assert _constant_labels(many) == ["Smiling"]


def test_class_shares_and_classes_without_a_photo_are_reported(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    rows = {f"p{person:02d}/{photo}.png": "young" if photo else "old" for person in range(4) for photo in range(3)}
    rows["p03/2.png"] = "unsure"
    write_rows(folder, "label", rows)
    (folder / "p03/2.png").write_bytes(b"")
    report = check_folder(folder)
    assert report["class_balance"] == {"old": 0.3636, "unsure": 0, "young": 0.6364}
    assert report["constant_labels"] == ["unsure"]
    assert report["contradictory_labels"] == []


def test_share_of_photos_with_each_label_is_reported(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=5, photos=3)
    faces = load_faces(str(folder))
    expected = {name: round(float(share), 4) for name, share in zip(faces.task.label_names, faces.labels.mean(dim=0), strict=True)}
    assert check_folder(folder)["class_balance"] == expected


def test_equal_files_are_found_within_and_across_people(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    shutil.copy(folder / "p00/0.png", folder / "p00/2.png")
    shutil.copy(folder / "p01/1.png", folder / "p03/0.png")
    shutil.copy(folder / "p01/1.png", folder / "p02/2.png")
    report = check_folder(folder)
    assert report["exact_duplicates"] == [
        {"photos": ["p00/0.png", "p00/2.png"], "identities": ["p00"]},
        {"photos": ["p01/1.png", "p02/2.png", "p03/0.png"], "identities": ["p01", "p02", "p03"]},
    ]
    assert findings(report) == {"exact_duplicates"}


def test_photos_saved_again_are_near_duplicates(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    save_again(folder / "p00/0.png", folder / "p00/2.png")
    save_again(folder / "p01/1.png", folder / "p03/0.png")
    shutil.copy(folder / "p01/1.png", folder / "p02/2.png")
    report = check_folder(folder)
    assert report["near_duplicates"] == [
        {"photos": ["p00/0.png", "p00/2.png"], "identities": ["p00"]},
        {"photos": ["p01/1.png", "p02/2.png", "p03/0.png"], "identities": ["p01", "p02", "p03"]},
    ]
    assert report["exact_duplicates"] == [{"photos": ["p01/1.png", "p02/2.png"], "identities": ["p01", "p02"]}]
    assert findings(report) == {"near_duplicates", "exact_duplicates"}


@pytest.mark.parametrize("repeat", [shutil.copy, save_again], ids=["the same file", "saved again"])
def test_support_photo_in_the_training_set_is_reported(photo_folder: MakeFolder, repeat: Callable[[Path, Path], Any]) -> None:
    folder, split = folder_and_split(photo_folder)
    person = split.forget[0]
    held = {*split.support.values(), *split.reserved.values()}
    trained = next(key for key in (f"{person}/{photo}.png" for photo in range(4)) if key not in held)
    repeat(folder / split.support[person], folder / trained)
    (group,) = check_folder(folder, split)["duplicates_across_sets"]
    assert group["sets"] == ["forget", "support"]
    assert group["photos"] == sorted([trained, split.support[person]])
    assert group["identities"] == [person]


def test_duplicates_are_reported_across_sets_but_not_within_training(photo_folder: MakeFolder) -> None:
    folder, split = folder_and_split(photo_folder)
    held = {*split.reserved.values(), *split.support.values()}
    trained = [key for p in split.people["train"] if p not in split.forget for key in (f"{p}/{n}.png" for n in range(4)) if key not in held]
    tested = f"{split.people['test'][0]}/0.png"
    shutil.copy(folder / trained[0], folder / tested)
    shutil.copy(folder / trained[1], folder / trained[-1])
    report = check_folder(folder, split)
    assert len(report["exact_duplicates"]) == 2
    (group,) = report["duplicates_across_sets"]
    assert group["sets"] == ["retain", "test"]
    assert set(group["photos"]) == {trained[0], tested}


def test_missing_photos_of_a_split_are_noted(photo_folder: MakeFolder) -> None:
    folder, split = folder_and_split(photo_folder)
    (folder / split.support[split.forget[0]]).write_bytes(b"")
    report = check_folder(folder, split)
    assert "1 of 2 forget identities lack the support photo and are excluded." in report["split_notes"]
    assert report["breaks"] == []


def test_split_of_other_data_is_a_blocking_problem(photo_folder: MakeFolder) -> None:
    folder, split = folder_and_split(photo_folder)
    others = replace(split, people={name: [f"x{person}" for person in people] for name, people in split.people.items()})
    (sentence,) = check_folder(folder, others)["breaks"]
    assert sentence.startswith("The split does not fit this data")


def test_overlapping_split_is_a_blocking_problem(photo_folder: MakeFolder) -> None:
    folder, split = folder_and_split(photo_folder)
    people = split.people | {"val": [*split.people["val"], split.people["test"][0]]}
    (sentence,) = check_folder(folder, replace(split, people=people))["breaks"]
    assert "keep each person in one set" in sentence


def test_too_few_people_are_a_blocking_problem(photo_folder: MakeFolder) -> None:
    (sentence,) = check_folder(photo_folder(people=2))["breaks"]
    assert sentence == "2 people are too few to split by identity: no person remains for test."


def test_people_without_two_photos_are_a_blocking_problem(photo_folder: MakeFolder) -> None:
    (sentence,) = check_folder(photo_folder(people=8, photos=1))["breaks"]
    assert sentence == "No person has two photos, so no person has both a support photo and a photo to forget."


def test_unreadable_data_set_is_a_blocking_problem(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=4, photos=3)
    split = make_split(load_faces(str(folder)).photos_by_identity(), 0, 1)
    for photo in folder.glob("*/*.png"):
        photo.write_bytes(b"")
    report = check_folder(folder, split)
    assert report["breaks"][0] == "None of the 12 photos can be read."
    assert report["images"] == report["identities"] == 0
    assert report["images_per_identity"] == {"min": 0, "median": 0, "mean": 0, "max": 0}
    assert len(report["unreadable"]) == 12
    assert findings(report) <= {"unreadable", "breaks", "constant_labels"}


def test_second_check_does_not_read_photos(photo_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = load_faces(str(photo_folder()))
    first = check_dataset(faces)

    def read_again(self: Faces, row: int) -> str:
        raise AssertionError(f"photo {row} was read again")

    monkeypatch.setattr(Faces, "encoded_image", read_again)
    assert check_dataset(faces) == first


def test_damaged_hash_cache_raises(photo_folder: MakeFolder) -> None:
    faces = load_faces(str(photo_folder()))
    check_dataset(faces)
    file = faces.cache / "looks.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(OneshuiError, match=r"looks\.npy is damaged at row 11; remove it"):
        check_dataset(faces)


def test_embedded_photos_are_check_folder(tmp_path: Path) -> None:
    import datasets

    def embedded(person: int, photo: int) -> dict[str, Any]:
        buffer = io.BytesIO()
        portrait(person, photo).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    images = [embedded(person, photo) for person in range(6) for photo in range(2)]
    images[3], images[9] = {"bytes": b"no photo", "path": None}, images[0]
    columns = {"image": images, "identity": np.repeat(list("abcdef"), 2).tolist(), "Hat": [0, 1] * 6, "Male": [1, 1] * 6}
    kinds = {"image": datasets.Image(), "identity": datasets.Value("string"), "Hat": datasets.Value("int8"), "Male": datasets.Value("int8")}
    datasets.Dataset.from_dict(columns, features=datasets.Features(kinds)).to_parquet(str(tmp_path / "faces.parquet"))
    report = check_folder(tmp_path / "faces.parquet")
    assert len(report["unreadable"]) == 1
    assert [group["identities"] for group in report["exact_duplicates"]] == [["a", "e"]]
    assert report["constant_labels"] == ["Male"]
    assert report["single_image_identities"] == ["b"]


@pytest.mark.slow
def test_findings_of_real_faces_are_the_known_ones(assets: Path) -> None:
    faces = load_faces("celeba", assets / "faces" / "celeba")
    report = check_dataset(faces, make_split(faces.photos_by_identity(), 0, 5))
    json.dumps(report)
    assert (report["images"], report["identities"]) == (6113, 299)
    assert len(report["contradictory_labels"]) == 21
    assert {item["label"] for item in report["contradictory_labels"]} == {"Male"}
    assert len(report["exact_duplicates"]) == 10
    assert sum(len(group["identities"]) > 1 for group in report["exact_duplicates"]) == 8
    assert 70 <= len(report["near_duplicates"]) <= 82  # 76 by Pillow 13
    assert findings(report) == {"contradictory_labels", "exact_duplicates", "near_duplicates"}

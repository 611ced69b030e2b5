"""Checking a data set: every finding from a planted case, and nothing found where nothing is wrong."""

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

from oneshui_hf.data.check import check
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


def checked(folder: Path, split: Split | None = None, fixed: Sequence[str] = ()) -> dict[str, Any]:
    report = check(load_faces(str(folder)), split, fixed)
    assert json.loads(json.dumps(report)) == report
    return report


def found(report: dict[str, Any]) -> set[str]:
    return {name for name in FINDINGS if report[name]}


def write_rows(folder: Path, columns: str, rows: dict[str, str]) -> None:
    lines = [f"file_name,identity,{columns}", *(f"{key},{key.partition('/')[0]},{labels}" for key, labels in rows.items())]
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


def save_again(photo: Path, other: Path) -> None:
    """The same photo at a lower quality."""
    with Image.open(photo) as image:
        image.resize((36, 36), Image.Resampling.BICUBIC).save(other, "JPEG", quality=85)


def folder_and_split(photo_folder: MakeFolder) -> tuple[Path, Split]:
    folder = photo_folder(people=12, photos=4)
    return folder, make_split(load_faces(str(folder)).photos(), 0, 2)


def test_nothing_is_found_where_nothing_is_wrong(photo_folder: MakeFolder) -> None:
    folder, split = folder_and_split(photo_folder)
    report = checked(folder, split)
    assert found(report) == set()
    assert report["images"] == 48
    assert report["identities"] == 12
    assert report["images_per_identity"] == {"min": 4, "median": 4, "mean": 4, "max": 4}
    assert report["duplicates_across_sets"] == []
    assert report["split_notes"] == []


def test_photos_of_each_person_are_counted(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=4, photos=3)
    for key in ("p01/0.png", "p01/1.png", "p02/2.png"):
        (folder / key).unlink()
    report = checked(folder)
    assert report["images_per_identity"] == {"min": 1, "median": 2.5, "mean": 2.25, "max": 3}
    assert report["single_image_identities"] == ["p01"]


def test_rows_without_a_photo_and_photos_without_a_row_are_named(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    (folder / "p01/2.png").rename(folder / "p01/stray.png")
    report = checked(folder)
    assert report["rows_without_image"] == ["p01/2.png"]
    assert report["images_without_row"] == ["p01/stray.png"]
    assert found(report) == {"rows_without_image", "images_without_row"}


def test_photos_that_cannot_be_read_are_named_with_the_reason(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    (folder / "p01/2.png").write_bytes(b"")
    (folder / "p02/0.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    portrait(0, 0, (15, 40)).save(folder / "p03/1.png")
    report = checked(folder)
    assert [item["photo"] for item in report["unreadable"]] == ["p01/2.png", "p02/0.png", "p03/1.png"]
    reasons = [item["reason"] for item in report["unreadable"]]
    assert reasons[0].startswith("is not an image that can be read")
    assert reasons[1].startswith("is a Git LFS pointer, not the photo itself")
    assert reasons[2] == "is 15x40 pixels; a portrait needs at least 16 a side."
    assert found(report) == {"unreadable"}
    assert report["images"] == 12 - 3


def test_a_photo_that_is_gone_is_named_with_the_reason(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    faces = load_faces(str(folder))
    (folder / "p01/2.png").unlink()
    (item,) = check(faces)["unreadable"]
    assert item == {"photo": "p01/2.png", "reason": "There is no image at its place."}


def test_a_photo_that_came_back_is_told_apart(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    faces = load_faces(str(folder))
    (folder / "p01/2.png").rename(folder / "aside")
    check(faces)
    (folder / "aside").rename(folder / "p01/2.png")
    (item,) = check(faces)["unreadable"]
    assert item["reason"].startswith("could not be read at first; remove ")


def test_small_photos_are_named_with_their_size(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    portrait(1, 0, (31, 40)).save(folder / "p01/0.png")
    portrait(1, 1, (32, 40)).save(folder / "p01/1.png")
    report = checked(folder)
    assert report["tiny"] == [{"photo": "p01/0.png", "width": 31, "height": 40}]
    assert found(report) == {"tiny"}


def test_photos_not_in_rgb_are_named_with_their_mode(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    modes = {"p00/0.png": "L", "p01/1.png": "RGBA", "p02/2.png": "P"}
    for key, mode in modes.items():
        with Image.open(folder / key) as image:
            converted = image.convert(mode)
        converted.save(folder / key)
    report = checked(folder)
    assert report["not_rgb"] == [{"photo": key, "mode": mode} for key, mode in modes.items()]
    assert found(report) == {"not_rgb"}


def test_people_with_one_photo_are_named(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    (folder / "p02/0.png").write_bytes(b"")
    (folder / "p02/1.png").unlink()
    report = checked(folder)
    assert report["single_image_identities"] == ["p02"]  # one of three is readable


def with_male(folder: Path) -> None:
    """p01 is Male on one photo of three, and Smiling on two."""
    rows = {f"p{person:02d}/{photo}.png": f"{person % 2},{int(photo > 0)}" for person in range(4) for photo in range(3)}
    rows["p01/2.png"] = "0,1"
    write_rows(folder, "Male,Smiling", rows)


def test_people_who_are_male_and_not_are_named(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    with_male(folder)
    report = checked(folder)
    assert report["contradictory_labels"] == [{"identity": "p01", "label": "Male", "values": {"0": 1, "1": 2}}]
    assert found(report) == {"contradictory_labels"}


def test_which_labels_are_fixed_can_be_chosen(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    with_male(folder)
    contradictions = checked(folder, fixed=["Smiling"])["contradictory_labels"]
    assert [item["identity"] for item in contradictions] == ["p00", "p01", "p02", "p03"]
    assert {item["label"] for item in contradictions} == {"Smiling"}
    assert len(checked(folder, fixed=["Smiling", "Male"])["contradictory_labels"]) == 5


def test_labels_that_never_vary_are_named(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    rows = {f"p{person:02d}/{photo}.png": f"0,{photo % 2},1" for person in range(4) for photo in range(3)}
    write_rows(folder, "Hat,Smiling,Awake", rows)
    report = checked(folder)
    assert report["constant_labels"] == ["Hat", "Awake"]
    assert report["class_balance"] == {"Hat": 0, "Smiling": 0.3333, "Awake": 1}


def test_a_label_that_varies_once_in_a_large_data_set_is_not_constant(photo_folder: MakeFolder) -> None:
    from oneshui_hf.data.check import _constant

    faces = load_faces(str(photo_folder()))
    labels = torch.zeros(30_000, 3)
    labels[0, 0] = labels[1:, 1] = 1
    many = replace(faces, keys=["photo"] * 30_000, labels=labels)
    assert _constant(many) == ["Smiling"]


def test_classes_are_counted_and_those_without_a_photo_named(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    rows = {f"p{person:02d}/{photo}.png": "young" if photo else "old" for person in range(4) for photo in range(3)}
    rows["p03/2.png"] = "unsure"
    write_rows(folder, "label", rows)
    (folder / "p03/2.png").write_bytes(b"")
    report = checked(folder)
    assert report["class_balance"] == {"old": 0.3636, "unsure": 0, "young": 0.6364}
    assert report["constant_labels"] == ["unsure"]
    assert report["contradictory_labels"] == []


def test_the_share_of_photos_with_each_label_is_told(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=5, photos=3)
    faces = load_faces(str(folder))
    expected = {name: round(float(share), 4) for name, share in zip(faces.task.label_names, faces.labels.mean(dim=0), strict=True)}
    assert checked(folder)["class_balance"] == expected


def test_equal_files_are_found_within_and_across_people(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    shutil.copy(folder / "p00/0.png", folder / "p00/2.png")
    shutil.copy(folder / "p01/1.png", folder / "p03/0.png")
    shutil.copy(folder / "p01/1.png", folder / "p02/2.png")
    report = checked(folder)
    assert report["exact_duplicates"] == [
        {"photos": ["p00/0.png", "p00/2.png"], "identities": ["p00"]},
        {"photos": ["p01/1.png", "p02/2.png", "p03/0.png"], "identities": ["p01", "p02", "p03"]},
    ]
    assert found(report) == {"exact_duplicates"}


def test_photos_saved_again_are_near_duplicates(photo_folder: MakeFolder) -> None:
    folder = photo_folder()
    save_again(folder / "p00/0.png", folder / "p00/2.png")
    save_again(folder / "p01/1.png", folder / "p03/0.png")
    shutil.copy(folder / "p01/1.png", folder / "p02/2.png")
    report = checked(folder)
    assert report["near_duplicates"] == [
        {"photos": ["p00/0.png", "p00/2.png"], "identities": ["p00"]},
        {"photos": ["p01/1.png", "p02/2.png", "p03/0.png"], "identities": ["p01", "p02", "p03"]},
    ]
    assert report["exact_duplicates"] == [{"photos": ["p01/1.png", "p02/2.png"], "identities": ["p01", "p02"]}]
    assert found(report) == {"near_duplicates", "exact_duplicates"}


@pytest.mark.parametrize("repeat", [shutil.copy, save_again], ids=["the same file", "saved again"])
def test_a_photo_handed_in_that_was_trained_on_is_found(photo_folder: MakeFolder, repeat: Callable[[Path, Path], Any]) -> None:
    folder, split = folder_and_split(photo_folder)
    person = split.forget[0]
    held = {*split.support.values(), *split.reserved.values()}
    trained = next(key for key in (f"{person}/{photo}.png" for photo in range(4)) if key not in held)
    repeat(folder / split.support[person], folder / trained)
    (group,) = checked(folder, split)["duplicates_across_sets"]
    assert group["sets"] == ["forget", "support"]
    assert group["photos"] == sorted([trained, split.support[person]])
    assert group["identities"] == [person]


def test_a_photo_in_training_and_test_is_found_and_one_twice_in_training_is_not(photo_folder: MakeFolder) -> None:
    folder, split = folder_and_split(photo_folder)
    held = {*split.reserved.values(), *split.support.values()}
    trained = [key for p in split.people["train"] if p not in split.forget for key in (f"{p}/{n}.png" for n in range(4)) if key not in held]
    tested = f"{split.people['test'][0]}/0.png"
    shutil.copy(folder / trained[0], folder / tested)
    shutil.copy(folder / trained[1], folder / trained[-1])
    report = checked(folder, split)
    assert len(report["exact_duplicates"]) == 2
    (group,) = report["duplicates_across_sets"]
    assert group["sets"] == ["retain", "test"]
    assert set(group["photos"]) == {trained[0], tested}


def test_what_a_split_has_lost_is_noted(photo_folder: MakeFolder) -> None:
    folder, split = folder_and_split(photo_folder)
    (folder / split.support[split.forget[0]]).write_bytes(b"")
    report = checked(folder, split)
    assert "1 of 2 people who ask have lost the photo to hand in and are left out." in report["split_notes"]
    assert report["breaks"] == []


def test_a_split_for_other_data_breaks_a_run(photo_folder: MakeFolder) -> None:
    folder, split = folder_and_split(photo_folder)
    others = replace(split, people={name: [f"x{person}" for person in people] for name, people in split.people.items()})
    (sentence,) = checked(folder, others)["breaks"]
    assert sentence.startswith("The split does not fit this data")


def test_a_split_that_leaks_breaks_a_run(photo_folder: MakeFolder) -> None:
    folder, split = folder_and_split(photo_folder)
    people = split.people | {"val": [*split.people["val"], split.people["test"][0]]}
    (sentence,) = checked(folder, replace(split, people=people))["breaks"]
    assert "keep each person in one set" in sentence


def test_too_few_people_break_a_run(photo_folder: MakeFolder) -> None:
    (sentence,) = checked(photo_folder(people=2))["breaks"]
    assert sentence == "2 people are too few to split by identity: nobody is left for test."


def test_people_of_whom_nobody_can_ask_break_a_run(photo_folder: MakeFolder) -> None:
    (sentence,) = checked(photo_folder(people=8, photos=1))["breaks"]
    assert sentence == "Nobody has two photos, so nobody could hand in one and be forgotten on another."


def test_a_data_set_of_which_nothing_can_be_read_breaks_a_run(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=4, photos=3)
    split = make_split(load_faces(str(folder)).photos(), 0, 1)
    for photo in folder.glob("*/*.png"):
        photo.write_bytes(b"")
    report = checked(folder, split)
    assert report["breaks"][0] == "None of the 12 photos can be read."
    assert report["images"] == report["identities"] == 0
    assert report["images_per_identity"] == {"min": 0, "median": 0, "mean": 0, "max": 0}
    assert len(report["unreadable"]) == 12
    assert found(report) <= {"unreadable", "breaks", "constant_labels"}


def test_a_second_check_reads_no_photo(photo_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = load_faces(str(photo_folder()))
    first = check(faces)

    def image(self: Faces, row: int) -> str:
        raise AssertionError(f"photo {row} was read again")

    monkeypatch.setattr(Faces, "image", image)
    assert check(faces) == first


def test_damaged_looks_are_refused(photo_folder: MakeFolder) -> None:
    faces = load_faces(str(photo_folder()))
    check(faces)
    file = faces.cache / "looks.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(OneshuiError, match=r"looks\.npy is damaged at row 11; remove it"):
        check(faces)


def test_embedded_photos_are_checked_too(tmp_path: Path) -> None:
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
    report = checked(tmp_path / "faces.parquet")
    assert len(report["unreadable"]) == 1
    assert [group["identities"] for group in report["exact_duplicates"]] == [["a", "e"]]
    assert report["constant_labels"] == ["Male"]
    assert report["single_image_identities"] == ["b"]


@pytest.mark.slow
def test_real_faces_have_the_findings_that_are_known_of_them(assets: Path) -> None:
    faces = load_faces("celeba", assets / "faces" / "celeba")
    report = check(faces, make_split(faces.photos(), 0, 5))
    json.dumps(report)
    assert (report["images"], report["identities"]) == (6113, 299)
    assert len(report["contradictory_labels"]) == 21
    assert {item["label"] for item in report["contradictory_labels"]} == {"Male"}
    assert len(report["exact_duplicates"]) == 10
    assert sum(len(group["identities"]) > 1 for group in report["exact_duplicates"]) == 8
    assert 70 <= len(report["near_duplicates"]) <= 82  # 76 by Pillow 13
    assert found(report) == {"contradictory_labels", "exact_duplicates", "near_duplicates"}

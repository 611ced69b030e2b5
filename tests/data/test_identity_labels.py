"""Labels that name people: what the check reports, and which label names may be published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from oneshui_hf.data.check import check_dataset
from oneshui_hf.data.identity_labels import describe_labels, labels_of_one_identity, names_people, publish_people
from oneshui_hf.data.load import load_faces
from support.faces import LABELS

MakeFolder = Callable[..., Path]
PEOPLE = 6


def labelled(folder: Path, header: str, label: Callable[[int, int], str]) -> Path:
    """Replace the labels of a folder; `label` gets the numbers of person and photo."""
    lines = ["file_name,identity," + header]
    for line in (folder / "metadata.csv").read_text().splitlines()[1:]:
        name, person = line.split(",")[:2]
        lines.append(f"{name},{person},{label(int(person[1:]), int(Path(name).stem))}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def one_hot(person: int, photo: int) -> str:
    return ",".join(str(int(person == other)) for other in range(PEOPLE))


@pytest.mark.parametrize(
    ("header", "label"),
    [
        ("label", lambda person, photo: f"p{person:02d}"),
        ("label", lambda person, photo: f"Name {7 * person}"),
        ("label", lambda person, photo: f"p{person:02d}_{photo % 2}"),
        (",".join(f"p{person:02d}" for person in range(PEOPLE)), one_hot),
        (",".join(f"is{person}" for person in range(PEOPLE)), one_hot),
    ],
)
def test_label_that_is_the_person_cannot_be_learned(photo_folder: MakeFolder, header: str, label: Callable[[int, int], str]) -> None:
    faces = load_faces(str(labelled(photo_folder(people=PEOPLE, photos=4), header, label)))
    found = labels_of_one_identity(faces)
    assert found == list(faces.task.label_names)
    assert names_people(faces, found)
    report = check_dataset(faces)
    assert report["labels_of_one_identity"] == found
    assert report["breaks"] == []
    assert "occurs for one identity only, so it cannot be learned across people" in report["notes"][-1]
    assert "which name people" in report["notes"][-2]
    assert not any(name in note for note in report["notes"] for name in faces.task.label_names)
    assert publish_people(faces.task.label_names, faces.people, is_people=True)


def test_single_class_of_one_person_is_named(photo_folder: MakeFolder) -> None:
    folder = labelled(photo_folder(people=PEOPLE, photos=4), "label", lambda person, photo: "rare" if person == 0 else "abc"[photo % 3])
    report = check_dataset(load_faces(str(folder)))
    assert report["labels_of_one_identity"] == ["rare"]
    assert report["notes"][-1] == "1 of 4 labels ('rare') occurs for one identity only, so it cannot be learned across people."


def test_usual_labels_are_listed_without_a_warning(photo_folder: MakeFolder) -> None:
    faces = load_faces(str(photo_folder(people=PEOPLE, photos=4)))
    assert check_dataset(faces)["notes"] == ["3 labels: Glasses, Hat, Smiling."]
    ages = load_faces(str(labelled(photo_folder(people=PEOPLE, photos=4, name="ages"), "age", lambda person, photo: str(photo))))
    assert describe_labels(ages) == "4 classes: 0, 1, 2, 3."


def test_long_list_of_labels_is_shortened(photo_folder: MakeFolder) -> None:
    names = [f"label{number}" for number in range(60)]
    folder = labelled(photo_folder(people=PEOPLE, photos=4), ",".join(names), lambda person, photo: ",".join(["1", "0"] * 30))
    assert describe_labels(load_faces(str(folder))).endswith("label39 and 20 more.")


@pytest.mark.parametrize(
    ("labels", "people", "is_people", "expected"),
    [
        (LABELS, ["anna", "bo"], None, False),
        (["anna", "bo"], ["anna", "bo"], None, True),
        (["Young", " ANNA "], ["anna", "bo"], False, True),
        (["Zo\u00eb"], ["Zoe\u0308"], False, True),
        (["0", "1", "2"], ["1", "2", "7"], None, False),  # ages
        (["0", "1", "2"], ["1", "2"], None, True),  # a record without the information: the classes may be the people
        (["0", "1", "2"], ["1", "2"], False, False),
        (["x", "y"], ["1", "2"], True, True),
        (["0", "1"], [], None, False),
    ],
)
def test_label_names_that_name_people(labels: list[str], people: list[str], is_people: bool | None, expected: bool) -> None:
    assert publish_people(labels, people, is_people=is_people) == expected

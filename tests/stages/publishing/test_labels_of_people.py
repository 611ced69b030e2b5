"""Labels that name people: training says so, and neither a run nor a data set with such labels is published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oneshui_hf.data.load import load_faces
from oneshui_hf.errors import OneshuiError
from oneshui_hf.runs import Run
from oneshui_hf.stages.publishing.dataset import collect_dataset_files
from oneshui_hf.stages.publishing.model import collect_public_files
from support.commands import Oneshui

MakeFolder = Callable[..., Path]
Label = Callable[[int, int], str]
PEOPLE, PHOTOS = 8, 3


def labelled(folder: Path, label: Label, identity: Callable[[int], str] = "person{}".format, column: str = "label") -> Path:
    lines = [f"file_name,identity,{column}"]
    for line in (folder / "metadata.csv").read_text().splitlines()[1:]:
        name, person = line.split(",")[:2]
        lines.append(f"{name},{identity(int(person[1:]))},{label(int(person[1:]), int(Path(name).stem))}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


NAMES: dict[str, dict[str, Any]] = {
    "the identity": {"label": lambda person, photo: f"person{person}"},
    "the identity as a number": {"label": lambda person, photo: str(person), "identity": str},
    "another name of it": {"label": lambda person, photo: f"Name {7 * person}"},
    "a part of it": {"label": lambda person, photo: f"Name {7 * person} {photo % 2}"},
    "one label for each": {
        "label": lambda person, photo: ",".join(str(int(person == other)) for other in range(PEOPLE)),
        "column": ",".join(f"PERSON{other}" for other in range(PEOPLE)),
    },
}


@pytest.mark.parametrize("kind", NAMES)
def test_labels_that_name_people_are_trained_with_a_warning_and_not_published(
    oneshui: Oneshui, photo_folder: MakeFolder, tmp_path: Path, kind: str
) -> None:
    folder = labelled(photo_folder(people=PEOPLE, photos=PHOTOS), **NAMES[kind])
    train = ["train", "--dataset", folder, "--model", "tiny", "--image-size", 32, "--epochs", 1, "--forget", 1]
    code, _, err = oneshui(*train, "--output-dir", tmp_path / "run")
    assert code == 0, err
    text = " ".join(err.split())
    assert "occurs for one identity only, so it cannot be learned across people" in text
    assert f"{len(load_faces(str(folder)).task.label_names)} {'label' if 'each' in kind else 'class'}" in text
    assert "Name 7" not in text
    public = tmp_path / "public"
    public.mkdir()
    with pytest.raises(OneshuiError, match=r"Labels of .* are names of its identities, .* so nothing was sent"):
        collect_public_files(Run.open(tmp_path / "run"), public)
    assert not list(public.iterdir())
    with pytest.raises(OneshuiError, match="Labels of 'photos' are names of its people, .* so nothing was sent"):
        collect_dataset_files(load_faces(str(folder)), public, keep_names=False)
    assert not list(public.iterdir())
    collect_dataset_files(load_faces(str(folder)), public, keep_names=True)  # the names are published on request


def test_run_from_before_the_check_is_refused_by_its_split(oneshui: Oneshui, photo_folder: MakeFolder, tmp_path: Path) -> None:
    folder = labelled(photo_folder(people=PEOPLE, photos=PHOTOS), lambda person, photo: f"person{person}")
    oneshui("train", "--dataset", folder, "--model", "tiny", "--epochs", 1, "--forget", 1, "--output-dir", tmp_path / "run")
    record = json.loads((tmp_path / "run" / "oneshui.json").read_text())
    del record["dataset"]["labels_name_people"]
    (tmp_path / "run" / "oneshui.json").write_text(json.dumps(record))
    (tmp_path / "public").mkdir()
    with pytest.raises(OneshuiError, match="names of its identities"):
        collect_public_files(Run.open(tmp_path / "run"), tmp_path / "public")


def test_usual_classes_are_listed_and_published(oneshui: Oneshui, photo_folder: MakeFolder, tmp_path: Path) -> None:
    folder = labelled(photo_folder(people=PEOPLE, photos=PHOTOS), lambda person, photo: str((person + photo) % 4), identity=str)
    train = ["train", "--dataset", folder, "--model", "tiny", "--image-size", 32, "--epochs", 1, "--forget", 1]
    code, _, err = oneshui(*train, "--output-dir", tmp_path / "run")
    assert code == 0
    assert "4 classes: 0, 1, 2, 3." in err
    assert "one identity only" not in err
    for name in ("run", "data"):
        (tmp_path / "public" / name).mkdir(parents=True)
    collect_public_files(Run.open(tmp_path / "run"), tmp_path / "public" / "run")
    collect_dataset_files(load_faces(str(folder)), tmp_path / "public" / "data", keep_names=False)
    assert "labels_name_people" not in (tmp_path / "public" / "run" / "oneshui.json").read_text()


def test_labels_are_listed_where_columns_are_inferred_and_where_they_are_given(
    oneshui: Oneshui, photo_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = photo_folder(people=PEOPLE, photos=PHOTOS)
    lines = (folder / "metadata.csv").read_text().splitlines()
    extra = ["n_faces,is_train", *(f"1,{number % 2}" for number in range(len(lines) - 1))]
    (folder / "metadata.csv").write_text("".join(f"{line},{more}\n" for line, more in zip(lines, extra, strict=True)))
    train = ["train", "--dataset", folder, "--model", "tiny", "--image-size", 32, "--epochs", 1, "--forget", 1]
    code, _, err = oneshui(*train, "--output-dir", tmp_path / "inferred")
    assert (code, "3 labels: Glasses, Hat, Smiling." in err) == (0, True)
    assert "n_faces, is_train are not (choose with --label-columns)" in " ".join(err.split())
    code, _, err = oneshui(*train, "--label-columns", "Hat,is_train", "--output-dir", tmp_path / "given")
    assert (code, "2 labels: Hat, is_train." in err) == (0, True)
    code, out, _ = oneshui("data", "check", "--dataset", folder)
    assert (code, "3 labels: Glasses, Hat, Smiling." in out) == (0, True)

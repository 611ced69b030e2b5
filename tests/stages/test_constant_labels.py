"""Photos on which no label varies have no mAP. Every stage states that, and none stops with a traceback."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import oneshui_hf
from oneshui_hf.data.split import load_split
from oneshui_hf.runs import METRICS, read_json
from oneshui_hf.stages.training.loop import _is_better
from support.commands import Oneshui
from support.faces import LABELS, portrait

RECIPE: dict[str, Any] = {"model": "tiny", "image_size": 32, "forget": 1, "epochs": 2, "optimizer": "adamw", "lr": 1e-3, "augment": "flip"}


def label_folder(folder: Path, labels: Callable[[int, int], list[int]], people: int = 20, photos: int = 4) -> Path:
    """Write a folder of portraits with the given labels of each person and photo."""
    lines = [",".join(("file_name", "identity", *LABELS))]
    for person in range(people):
        (folder / f"p{person:02d}").mkdir(parents=True)
        for photo in range(photos):
            file = f"p{person:02d}/{photo}.png"
            portrait(person, photo).save(folder / file)
            lines.append(f"{file},p{person:02d},{','.join(map(str, labels(person, photo)))}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def words(text: str) -> str:
    """Return a text without line breaks."""
    return " ".join(text.split())


def of_person(person: int, photo: int) -> list[int]:
    """Labels that are the same on all photos of a person."""
    return [person % 2, person // 2 % 2, 1]


@pytest.mark.slow
def test_person_whose_labels_never_vary_has_no_score_at_any_stage(tmp_path: Path, oneshui: Oneshui) -> None:
    folder = label_folder(tmp_path / "photos", of_person)
    run = oneshui_hf.train(dataset=str(folder), **RECIPE, output_dir=str(tmp_path / "original"))
    oracle = oneshui_hf.retrain(run)
    code, _, error = oneshui("prepare", run.path, "--method", "gradient-ascent")
    assert code == 1
    assert "No label varies over the forget photos of a simulated request" in words(error)
    assert not run.prepared
    code, _, error = oneshui("prepare", run.path, "--method", "metaunlearn", "--steps", 2, "--calibration", 0)
    assert code == 0, error
    code, _, error = oneshui("tune", run.path, "--method", "ssd", "--trials", 1, "--requests", 1)
    assert code == 1
    assert "No label varies over the forget photos" in words(error)
    assert not (run.path / "tuned").exists()
    unlearned = oneshui_hf.unlearn(run, method="metaunlearn", from_split=True)
    code, out, error = oneshui("evaluate", unlearned.path, "--oracle", oracle.path, "--references", 1)
    assert code == 0, error
    assert "No attribute varies over the photos of forget" in words(out)
    assert "ToW and gap closure are unknown, because a set has no score." in words(out)
    found = read_json(unlearned.path / METRICS)
    assert (found["forget"]["map"], found["tow"], found["gap_closure"]) == (None, None, None)
    assert found["forget"]["labels_left_out"] == len(LABELS)
    assert found["retain"]["labels_left_out"] == 1  # the third label
    assert oneshui("show", unlearned.path)[0] == 0
    assert oneshui("show", run.path)[0] == 0
    pytest.importorskip("matplotlib")
    assert oneshui("report", unlearned.path)[0] == 0


@pytest.mark.parametrize("sharded", [None, 2])
def test_val_on_which_no_label_varies_keeps_the_last_epoch(tmp_path: Path, oneshui: Oneshui, sharded: int | None) -> None:
    plain = label_folder(tmp_path / "plain", lambda person, photo: [person % 2, photo % 2, 1])
    split = load_split(oneshui_hf.train(dataset=str(plain), **RECIPE, output_dir=str(tmp_path / "plain-run")).path / "split.json")
    val = {int(person.removeprefix("p")) for person in split.people["val"]}
    folder = label_folder(tmp_path / "photos", lambda person, photo: [1, 0, 1] if person in val else [person % 2, photo % 2, 1])
    recipe = ["--epochs", 2, "--forget", 1, "--optimizer", "adamw", "--model", "tiny", "--image-size", 32]
    recipe += ["--sharded", sharded] if sharded else []
    code, out, error = oneshui("train", "--dataset", folder, *recipe, "--output-dir", tmp_path / "run")
    assert code == 0, error
    assert "No label varies over the photos of val, so no epoch has a score there; the last epoch is kept." in words(error)
    assert "nan" not in out
    report = json.loads((tmp_path / "run" / "oneshui.json").read_text())["report"]
    assert not any(name.startswith("val_") for name in report)
    if not sharded:
        assert report["best_epoch"] is None
        assert all(set(epoch) == {"epoch", "train_loss"} for epoch in report["history"])
    assert oneshui("show", tmp_path / "run")[0] == 0
    assert "val_map" not in repr(oneshui_hf.Run.open(tmp_path / "run"))


def test_score_after_nan_is_better() -> None:
    """An epoch with diverged weights does not stay the best one."""
    assert _is_better(50.0, None)
    assert _is_better(math.nan, None)
    assert _is_better(50.0, math.nan)
    assert not _is_better(math.nan, 50.0)
    assert not _is_better(50.0, 50.0)


def test_requests_without_a_score_are_not_used_for_calibration(tmp_path: Path) -> None:
    """Labels vary on the photos of every second person only; the step length is chosen on requests of these people."""
    folder = label_folder(tmp_path / "photos", lambda person, photo: [int(person % 2 == 0 and photo % 2), person % 2, 1])
    run = oneshui_hf.train(dataset=str(folder), **RECIPE, output_dir=str(tmp_path / "original"))
    oneshui_hf.prepare(run, method="gradient-ascent")
    unlearned = oneshui_hf.unlearn(run, method="gradient-ascent", from_split=True)
    assert unlearned.has_weights

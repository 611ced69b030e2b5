"""A small model that was not trained, as a run, and photos as files."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from oneshui_hf.data.schema import Task
from oneshui_hf.models.load import save_model
from oneshui_hf.models.new import new_model
from oneshui_hf.runs import Record, Run, hash_settings, hash_weights, write_record
from oneshui_hf.stages.command_options import TrainOptions
from support.faces import portrait

LABELS = ("Smiling", "Young", "<b>Glasses</b>")
RANGE = {"given": [0.2, 0.9], "predicted": [0.1, 0.6], "photos": 40, "people": 8}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("runs") / "original"
    path.mkdir()
    model, preprocess = new_model("tiny", Task("multi_label", LABELS), 32, 0)
    save_model(model, preprocess, path)
    dataset = {"name": "photos", "fingerprint": "a" * 64, "task": "multi_label", "labels": list(LABELS), "images": 60, "identities": 9}
    counts = {"images": {"train": 30, "retain": 20, "forget": 10}, "forget_identities": 2}
    options = asdict(TrainOptions(dataset="photos", model="tiny", image_size=32, forget=2))
    report = {"split": counts, "epochs": 1, "best_epoch": 1, "history": [{"epoch": 1, "train_loss": 0.5}], "unseen_loss": RANGE}
    record = Record(kind="original", seed=3, options=options, dataset=dataset, weights=hash_weights(path), report=report)
    record.settings = hash_settings(path)
    write_record(path, record)
    return Run.open(path)


@pytest.fixture(scope="session")
def photo_bytes() -> Callable[[int], bytes]:
    """The file of a generated portrait, by its number."""

    def make(number: int) -> bytes:
        stream = io.BytesIO()
        portrait(number, 0).resize((64, 64)).save(stream, "PNG")
        return stream.getvalue()

    return make


@pytest.fixture
def photo_file(photo_bytes: Callable[[int], bytes], tmp_path: Path) -> Path:
    file = tmp_path / "ada canary.png"
    file.write_bytes(photo_bytes(1))
    return file


@pytest.fixture(autouse=True)
def no_dlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not load the detector of faces, which takes seconds."""
    from oneshui_hf.app import workbench

    monkeypatch.setattr(workbench, "dlib_is_installed", lambda: False)

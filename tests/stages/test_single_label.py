"""The whole pipeline with one class per photo, as with ages: cross-entropy, softmax, accuracy."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

import oneshui_hf
from oneshui_hf.errors import UsageError
from oneshui_hf.runs import Run

AGES = ("child", "adult", "old")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    from PIL import Image

    from oneshui_hf.data.load import load_faces

    folder, source = tmp_path_factory.mktemp("ages"), load_faces("synthetic")
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "identity", "age"])
        for row in range(0, 280):
            name = source.keys[row].replace("/", "-")
            Image.open(io.BytesIO(source.arrow_dataset[row]["image"]["bytes"])).save(folder / name)
            person = int(source.identities[row])
            writer.writerow([name, person, AGES[person % 3]])
    path = str(tmp_path_factory.mktemp("runs") / "original")
    return oneshui_hf.train(
        dataset=str(folder), model="tiny", forget=2, epochs=12, optimizer="adamw", keep="last", augment="flip", output_dir=path
    )


@pytest.mark.slow
def test_the_pipeline_on_classes(trained: Run, tmp_path: Path) -> None:
    assert trained.record.dataset["task"] == "single_label"
    assert trained.record.dataset["labels"] == sorted(AGES)
    oracle = oneshui_hf.retrain(trained)
    for method in ("gradient-ascent", "metaunlearn"):
        options = {"steps": 2} if method == "metaunlearn" else {}
        oneshui_hf.prepare(trained, method=method, calibration=1, **options)
        run = oneshui_hf.unlearn(trained, from_split=True, method=method, output_dir=str(tmp_path / method))
        result = oneshui_hf.evaluate(run, oracle=oracle)
        assert 0 <= result["forget"]["accuracy"] <= 100
        assert result["tow"] is not None
    original = oneshui_hf.evaluate(trained, oracle=oracle)
    assert original["retain"]["accuracy"] > 60 > original["test"]["accuracy"]


def test_labels_of_a_request_take_one_class(trained: Run, tmp_path: Path) -> None:
    photo = next(Path(trained.record.options["dataset"]).glob("*.png"))
    run = oneshui_hf.unlearn(trained, images=[photo], labels="old", method="gradient-ascent", output_dir=str(tmp_path / "out"))
    assert run.record.report["labels"] == "given"
    with pytest.raises(UsageError, match="takes one"):
        oneshui_hf.unlearn(trained, images=[photo], labels="old,child", method="gradient-ascent", output_dir=str(tmp_path / "no"))


def test_transformers_pipeline_loads_the_run(trained: Run) -> None:
    from PIL import Image
    from transformers import pipeline

    predictions = pipeline("image-classification", model=str(trained.path))(Image.new("RGB", (48, 48)))
    assert sum(row["score"] for row in predictions) == pytest.approx(1, abs=1e-4)

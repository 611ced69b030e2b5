"""The pipeline on real faces with a pretrained backbone, if this machine has them (ONESHUI_TEST_ASSETS)."""

from __future__ import annotations

from pathlib import Path

import pytest

import oneshui_hf

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dataset", ["folder", "celeba"])
def test_pipeline_on_real_faces(assets: Path, tmp_path: Path, dataset: str) -> None:
    options = {"model": str(assets / "models" / "dinov2_small_first4_fp16"), "image_size": 28, "forget": 3, "epochs": 1}
    options |= {
        "optimizer": "adamw",
        "lr": 1.5e-4,
        "warmup_epochs": 0,
        "batch_size": 64,
        "augment": "flip",
        "output_dir": str(tmp_path / "run"),
    }
    source = {"dataset": str(assets / "faces" / "folder")}
    if dataset == "celeba":
        source = {"dataset": "celeba", "data_dir": str(assets / "faces" / "celeba")}
    run = oneshui_hf.train(**source, **options)
    history = run.record.report["history"]
    assert run.record.dataset["images"] == {"folder": 1200, "celeba": 6113}[dataset]
    assert len(run.record.dataset["labels"]) == 40
    assert history[0]["train_loss"] < 0.65  # ln 2 is the loss of an untrained model

    oneshui_hf.prepare(run, method="metaunlearn", steps=2, calibration=0, images_per_set=16)
    photo = next((assets / "faces").rglob("*.jpg"))
    unlearned = oneshui_hf.unlearn(run, images=[photo], method="metaunlearn", output_dir=str(tmp_path / "out"))
    assert unlearned.weights != run.weights

    from transformers import pipeline

    answer = pipeline("image-classification", model=str(unlearned.path), top_k=40)(str(photo))
    assert len(answer) == 40

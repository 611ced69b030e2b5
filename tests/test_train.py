"""Training: the recipe is followed, resuming changes nothing, and the oracle never sees what it must not."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import oneshui_hf
from oneshui_hf.data.split import load_split
from oneshui_hf.errors import UsageError
from oneshui_hf.randomness import generator, seeded
from oneshui_hf.runs import Run, hash_file
from oneshui_hf.stages import checkpoint
from oneshui_hf.stages.options import TrainOptions
from oneshui_hf.stages.train import _set_rate

RECIPE: dict[str, Any] = {"dataset": "synthetic", "forget": 2, "epochs": 3, "optimizer": "adamw", "keep": "best", "augment": "crop"}


def weights(run: Path) -> str:
    return hash_file(run / "model.safetensors")


def test_same_seed_same_bytes_another_seed_others(tmp_path: Path) -> None:
    short = RECIPE | {"epochs": 1}
    runs = [oneshui_hf.train(**short, seed=seed, output_dir=str(tmp_path / name)) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    assert runs[0].weights == runs[1].weights != runs[2].weights
    assert (tmp_path / "a" / "split.json").read_bytes() == (tmp_path / "b" / "split.json").read_bytes()
    assert (tmp_path / "a" / "split.json").read_bytes() != (tmp_path / "c" / "split.json").read_bytes()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_resuming_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    recipe = RECIPE | {"optimizer": optimizer}
    whole = oneshui_hf.train(**recipe, output_dir=str(tmp_path / "whole"))
    save = checkpoint.save

    def stop_after_two(run: Path, epoch: int, *rest: Any) -> None:
        save(run, epoch, *rest)
        if epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        oneshui_hf.train(**recipe, output_dir=str(tmp_path / "cut"))
    monkeypatch.undo()
    assert Run.open(tmp_path / "cut").record.state == "training"
    assert [p.name for p in (tmp_path / "cut").glob("checkpoint-*")] == ["checkpoint-2"]
    resumed = oneshui_hf.train(dataset="synthetic", resume=True, output_dir=str(tmp_path / "cut"))
    assert resumed.weights == whole.weights
    assert resumed.record.report == whole.record.report
    assert not list((tmp_path / "cut").glob("checkpoint-*"))


def test_resume_refuses_other_options(tmp_path: Path) -> None:
    oneshui_hf.train(**RECIPE | {"epochs": 1}, output_dir=str(tmp_path / "run"))
    with pytest.raises(UsageError, match="--lr"):
        oneshui_hf.train(dataset="synthetic", lr=0.5, resume=True, output_dir=str(tmp_path / "run"))


def test_the_oracle_trains_on_retain_alone_from_the_same_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from oneshui_hf.stages import train as stage

    seen: dict[str, Any] = {}
    fit = stage.fit

    def spy(model: Any, faces: Any, *rest: Any) -> Any:
        seen[str(rest[4].name)] = ({k: v.clone() for k, v in model.state_dict().items()}, set(faces.rows.tolist()), faces)
        return fit(model, faces, *rest)

    monkeypatch.setattr(stage, "fit", spy)
    short = RECIPE | {"epochs": 1}
    original = oneshui_hf.train(**short, output_dir=str(tmp_path / "run"))
    oracle = oneshui_hf.retrain(original)
    start, rows, faces = seen["run"]
    oracle_start, oracle_rows, _ = seen["run-oracle"]
    assert all(torch.equal(start[name], oracle_start[name]) for name in start)
    split = original.record.report["split"]["images"]
    assert (len(rows), len(oracle_rows)) == (split["train"], split["retain"])
    assert len(rows - oracle_rows) == split["forget"]
    forgotten = {faces.people[faces.identities[i]] for i, row in enumerate(faces.rows.tolist()) if row not in oracle_rows}
    assert forgotten == set(load_split(tmp_path / "run" / "split.json").forget)
    assert oracle.record.parent is not None
    assert oracle.record.parent["weights"] == original.weights


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """A checkpoint of a small ViT with a head of its own."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    with seeded(5, "pretrained"):
        ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, **sizes)).save_pretrained(tmp_path / "pretrained")
    return tmp_path / "pretrained"


@pytest.fixture
def folder_and_original(photo_folder: Callable[..., Path], pretrained: Path, tmp_path: Path) -> tuple[Path, Run]:
    """A folder of photos, and an original model that was fine-tuned on them."""
    folder = photo_folder(people=12, photos=4)
    recipe = {"optimizer": "adamw", "lr": 1e-3, "augment": "crop", "batch_size": 8}
    original = oneshui_hf.train(dataset=str(folder), model=str(pretrained), forget=2, epochs=2, output_dir=str(tmp_path / "run"), **recipe)
    return folder, original


def destroy(folder: Path, people: list[str]) -> None:
    """Put noise in place of every photo of these people, and turn all their labels round."""
    lines = (folder / "metadata.csv").read_text().splitlines()
    for number, line in enumerate(lines):
        file, person, *labels = line.split(",")
        if person in people:
            noise = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / file)
            lines[number] = ",".join([file, person, *(str(1 - int(label)) for label in labels)])
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


def test_the_oracle_is_the_same_whatever_the_people_to_forget_look_like(folder_and_original: tuple[Path, Run], tmp_path: Path) -> None:
    folder, original = folder_and_original
    forget = load_split(original.path / "split.json").forget
    oracle = oneshui_hf.retrain(original)
    destroy(folder, forget)
    again = oneshui_hf.retrain(original, output_dir=str(tmp_path / "again"))
    assert again.record.dataset["fingerprint"] != oracle.record.dataset["fingerprint"]  # the change is seen
    assert again.weights == oracle.weights
    assert again.record.report == oracle.record.report  # losses and scores of every epoch, too
    recipe = {
        name: value for name, value in original.record.options.items() if name not in ("output_dir", "split", "forget", "reserve_supports")
    }
    other = oneshui_hf.train(**recipe | {"split": str(original.path / "split.json"), "output_dir": str(tmp_path / "other")})
    assert other.weights != original.weights  # and matters to who trains on these people


def test_the_oracle_is_the_same_whatever_the_weights_of_the_original(folder_and_original: tuple[Path, Run], tmp_path: Path) -> None:
    _, original = folder_and_original
    oracle = oneshui_hf.retrain(original)
    file = original.path / "model.safetensors"
    noise = {name: torch.randn(tensor.shape, generator=generator(0, name)) for name, tensor in load_file(file).items()}
    save_file(noise, file, metadata={"format": "pt"})
    record = json.loads((original.path / "oneshui.json").read_text())
    assert record["weights"] != weights(original.path)
    (original.path / "oneshui.json").write_text(json.dumps(record | {"weights": weights(original.path)}))
    again = oneshui_hf.retrain(original.path, output_dir=str(tmp_path / "again"))
    assert again.weights == oracle.weights != weights(original.path)
    assert again.record.report == oracle.record.report


def test_the_oracle_starts_from_the_pretrained_backbone(
    folder_and_original: tuple[Path, Run], pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oneshui_hf.stages import train as stage

    starts = []
    fit = stage.fit

    def spy(model: Any, *rest: Any) -> Any:
        starts.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return fit(model, *rest)

    monkeypatch.setattr(stage, "fit", spy)
    oneshui_hf.retrain(folder_and_original[1])
    (start,) = starts
    from transformers import ViTForImageClassification

    checkpoint = ViTForImageClassification.from_pretrained(pretrained).state_dict()
    backbone = [name for name in start if not name.startswith("classifier")]
    assert backbone
    assert all(torch.equal(start[name], checkpoint[name]) for name in backbone)


def test_a_split_file_can_be_passed_on(tmp_path: Path) -> None:
    short = RECIPE | {"epochs": 1}
    first = oneshui_hf.train(**short, seed=3, output_dir=str(tmp_path / "first"))
    second = oneshui_hf.train(**short, seed=4, split=str(first.path / "split.json"), output_dir=str(tmp_path / "second"))
    assert (first.path / "split.json").read_bytes() == (second.path / "split.json").read_bytes()


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    options = TrainOptions(dataset="x", epochs=10, warmup_epochs=2, lr=1.0)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=9.0)
    rates = []
    for step in range(100):
        _set_rate(optimizer, options, step, 10)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(1 / 21)
    assert rates[20] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.5)
    assert rates == sorted(rates[:21]) + sorted(rates[21:], reverse=True)
    assert rates[-1] < 1e-3


@pytest.mark.slow
def test_ctrl_c_in_a_real_process(tmp_path: Path) -> None:
    def command(name: str, *more: str) -> list[str]:
        words = ["--dataset", "synthetic", "--epochs", "20", "--forget", "2", "--output-dir", str(tmp_path / name)]
        return [sys.executable, "-m", "oneshui_hf", "train", *words, *more]

    subprocess.run(command("whole"), check=True, capture_output=True)
    # A test run started in the background ignores Ctrl-C, and its children would inherit that.
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command("cut"), stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "cut").glob("checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in err
    assert "Traceback" not in err
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    resumed = subprocess.run(command("cut", "--resume"), capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_half_precision_is_for_training_alone_and_never_on_a_cpu() -> None:
    from oneshui_hf.stages.processes import half_precision, make_accelerator

    assert make_accelerator().mixed_precision == "no"
    layer = torch.nn.Linear(2, 2)
    for wanted in (True, False):
        with half_precision(torch.device("cpu"), wanted):
            assert layer(torch.ones(1, 2)).dtype == torch.float32

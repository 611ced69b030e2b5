"""Training: the recipe is followed, resuming gives the same weights, and the oracle never sees the forget identities."""

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
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.models.load import load_model
from oneshui_hf.models.sharded import ShardedClassifier, shard_of, shard_weights
from oneshui_hf.runs import Run, hash_file
from oneshui_hf.seeding import generator, seeded
from oneshui_hf.stages.command_options import TrainOptions
from oneshui_hf.stages.training import checkpoint
from oneshui_hf.stages.training.loop import set_learning_rate

RECIPE: dict[str, Any] = {"dataset": "synthetic", "forget": 2, "epochs": 3, "optimizer": "adamw", "keep": "best", "augment": "crop"}


def weights(run: Path) -> str:
    return hash_file(run / "model.safetensors")


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    short = RECIPE | {"epochs": 1}
    runs = [oneshui_hf.train(**short, seed=seed, output_dir=str(tmp_path / name)) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    assert runs[0].weights == runs[1].weights != runs[2].weights
    assert (tmp_path / "a" / "split.json").read_bytes() == (tmp_path / "b" / "split.json").read_bytes()
    assert (tmp_path / "a" / "split.json").read_bytes() != (tmp_path / "c" / "split.json").read_bytes()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_resuming_gives_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    recipe = RECIPE | {"optimizer": optimizer}
    uninterrupted = oneshui_hf.train(**recipe, output_dir=str(tmp_path / "uninterrupted"))
    save = checkpoint.save

    def stop_after_two(run: Path, epoch: int, *rest: Any) -> None:
        save(run, epoch, *rest)
        if epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        oneshui_hf.train(**recipe, output_dir=str(tmp_path / "interrupted"))
    monkeypatch.undo()
    assert Run.open(tmp_path / "interrupted").record.state == "training"
    assert sorted(p.name for p in (tmp_path / "interrupted").glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    resumed = oneshui_hf.train(dataset="synthetic", resume=True, output_dir=str(tmp_path / "interrupted"))
    assert resumed.weights == uninterrupted.weights
    assert resumed.record.report == uninterrupted.record.report
    assert not list((tmp_path / "interrupted").glob("checkpoint-*"))


def test_resume_refuses_other_options(tmp_path: Path) -> None:
    oneshui_hf.train(**RECIPE | {"epochs": 1}, output_dir=str(tmp_path / "run"))
    with pytest.raises(UsageError, match="--lr"):
        oneshui_hf.train(dataset="synthetic", lr=0.5, resume=True, output_dir=str(tmp_path / "run"))


def test_the_oracle_trains_on_retain_only_from_the_same_initial_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    """Replace every photo of these identities by noise, and invert all their labels."""
    lines = (folder / "metadata.csv").read_text().splitlines()
    for number, line in enumerate(lines):
        file, person, *labels = line.split(",")
        if person in people:
            noise = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / file)
            lines[number] = ",".join([file, person, *(str(1 - int(label)) for label in labels)])
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


def test_the_oracle_does_not_depend_on_the_photos_of_forget_identities(folder_and_original: tuple[Path, Run], tmp_path: Path) -> None:
    folder, original = folder_and_original
    forget = load_split(original.path / "split.json").forget
    oracle = oneshui_hf.retrain(original)
    destroy(folder, forget)
    again = oneshui_hf.retrain(original, output_dir=str(tmp_path / "again"))
    assert again.record.dataset["fingerprint"] != oracle.record.dataset["fingerprint"]  # the change is detected
    assert again.weights == oracle.weights
    assert again.record.report == oracle.record.report  # including losses and scores of every epoch
    recipe = {
        name: value for name, value in original.record.options.items() if name not in ("output_dir", "split", "forget", "reserve_supports")
    }
    other = oneshui_hf.train(**recipe | {"split": str(original.path / "split.json"), "output_dir": str(tmp_path / "other")})
    assert other.weights != original.weights  # and affects a model that is trained on these identities


def test_the_oracle_does_not_depend_on_the_weights_of_the_original(folder_and_original: tuple[Path, Run], tmp_path: Path) -> None:
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


IN_SHARDS: dict[str, Any] = {
    **{"sharded": 3, "adapter_rank": 4, "optimizer": "adamw", "lr": 1e-2, "augment": "crop", "batch_size": 8},
    **{"forget": 2, "epochs": 2, "seed": 1},
}


@pytest.fixture
def folder_and_shards(photo_folder: Callable[..., Path], pretrained: Path, tmp_path: Path) -> tuple[Path, Run]:
    """A folder of photos, and an original model that was trained on them in shards."""
    folder = photo_folder(people=20, photos=4)
    return folder, oneshui_hf.train(dataset=str(folder), model=str(pretrained), output_dir=str(tmp_path / "run"), **IN_SHARDS)


def adapters(run: Run) -> dict[int, dict[str, torch.Tensor]]:
    model = load_model(run.path)[0]
    assert isinstance(model, ShardedClassifier)
    return {shard: shard_weights(model, shard) for shard in model.config.shards}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_each_shard_is_trained_on_its_own_identities_with_a_frozen_backbone(
    folder_and_shards: tuple[Path, Run], pretrained: Path, tmp_path: Path
) -> None:
    folder, original = folder_and_shards
    split = load_split(original.path / "split.json")
    rows = original.record.report["shards"]
    people = {shard: [p for p in split.people["train"] if shard_of(p, 1, 3) == shard] for shard in range(3)}
    assert {row["shard"]: row["people"] for row in rows} == {shard: len(own) for shard, own in people.items()}
    assert sum(row["photos"] for row in rows) == original.record.report["split"]["images"]["train"]
    assert all(row["trained"] and len(row["history"]) == 2 for row in rows)
    assert not (original.path / "shards").exists()
    checkpoint = load_file(pretrained / "model.safetensors")
    frozen = {name.removeprefix("backbone."): t for name, t in load_file(original.path / "model.safetensors").items()}
    backbone = [name for name in checkpoint if not name.startswith("classifier")]
    assert backbone
    assert all(torch.equal(checkpoint[name], frozen[name]) for name in backbone)

    person = next(p for p in sorted(split.people["train"]) if p not in split.forget)
    before, affected = adapters(original), shard_of(person, 1, 3)
    destroy(folder, [person])
    again = oneshui_hf.train(
        dataset=str(folder),
        model=str(pretrained),
        split=str(original.path / "split.json"),
        output_dir=str(tmp_path / "again"),
        **{name: value for name, value in IN_SHARDS.items() if name != "forget"},
    )
    assert again.record.dataset["fingerprint"] != original.record.dataset["fingerprint"]
    after = adapters(again)
    assert [shard for shard in before if not equal(before[shard], after[shard])] == [affected]


@pytest.mark.slow
def test_reused_shards_equal_shards_trained_again(
    folder_and_shards: tuple[Path, Run], pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, original = folder_and_shards
    affected = {shard_of(person, 1, 3) for person in load_split(original.path / "split.json").forget}
    assert 0 < len(affected) < 3
    oracle = oneshui_hf.retrain(original)
    before, after = adapters(original), adapters(oracle)
    assert {shard for shard in before if not equal(before[shard], after[shard])} == affected
    assert oracle.record.report["shards_trained"] == len(affected)
    assert {row["shard"] for row in oracle.record.report["shards"] if row["trained"]} == affected

    from oneshui_hf.stages.training.shards import Shards

    with monkeypatch.context() as patched:
        patched.setattr(Shards, "reuse_shards", lambda *_: None)
        retrained = oneshui_hf.retrain(original, output_dir=str(tmp_path / "retrained"))
    assert retrained.record.report["shards_trained"] == 3
    assert retrained.weights == oracle.weights
    other = oneshui_hf.retrain(original, seed=2, output_dir=str(tmp_path / "other"))
    assert other.record.report["shards_trained"] == 3
    assert not any(equal(adapters(other)[shard], after[shard]) for shard in after)

    file = pretrained / "model.safetensors"
    checkpoint = file.read_bytes()
    save_file({name: tensor + 0.01 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.raises(OneshuiError, match="has changed since"):
        oneshui_hf.retrain(original, output_dir=str(tmp_path / "elsewhere"))
    assert not (tmp_path / "elsewhere").exists()
    file.write_bytes(checkpoint)
    destroy(folder, load_split(original.path / "split.json").forget)  # the data differs from the original's, so no shard is reused
    later = oneshui_hf.retrain(original, output_dir=str(tmp_path / "later"))
    assert later.record.report["shards_trained"] == 3
    assert later.weights == oracle.weights


@pytest.mark.slow
def test_a_shard_without_retain_identities_is_omitted(folder_and_shards: tuple[Path, Run], pretrained: Path, tmp_path: Path) -> None:
    folder, first = folder_and_shards
    split = load_split(first.path / "split.json")

    def shards(people: Any, seed: int, of: int) -> set[int]:
        return {shard_of(person, seed, of) for person in people}

    retain = set(split.people["train"]) - set(split.forget)
    seed, of = next(
        (seed, of)
        for seed in range(100)
        for of in (4, 5, 6)
        if len(shards(split.people["train"], seed, of)) == of and len(shards(retain, seed, of)) < of
    )
    recipe = {name: value for name, value in IN_SHARDS.items() if name not in ("forget", "seed", "sharded", "epochs")}
    original = oneshui_hf.train(
        dataset=str(folder),
        model=str(pretrained),
        split=str(first.path / "split.json"),
        output_dir=str(tmp_path / "small"),
        epochs=1,
        seed=seed,
        sharded=of,
        **recipe,
    )
    assert set(adapters(original)) == set(range(of))
    assert set(adapters(oneshui_hf.retrain(original))) == shards(retain, seed, of)


@pytest.mark.parametrize("stopped_at", [3, 4])  # in the second shard; after its training, before it is written
@pytest.mark.slow
def test_sharded_training_resumes_to_the_same_weights(
    folder_and_shards: tuple[Path, Run], pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: int
) -> None:
    folder, uninterrupted = folder_and_shards
    saved: list[Path] = []
    save = checkpoint.save

    def stop(run: Path, *rest: Any) -> None:
        save(run, *rest)
        saved.append(run)
        if len(saved) == stopped_at:
            raise KeyboardInterrupt

    arguments = {"dataset": str(folder), "model": str(pretrained), "output_dir": str(tmp_path / "interrupted")}
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            oneshui_hf.train(**arguments, **IN_SHARDS)
    assert len(set(saved)) == 2
    assert (tmp_path / "interrupted" / "shards" / "0" / "adapter.safetensors").exists()
    saved.clear()
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", lambda run, *rest: (saved.append(run), save(run, *rest)))
        resumed = oneshui_hf.train(dataset=str(folder), resume=True, output_dir=str(tmp_path / "interrupted"))
    assert len(saved) == 6 - stopped_at  # the remaining epochs
    assert resumed.weights == uninterrupted.weights
    assert resumed.record.report == uninterrupted.record.report


def test_invalid_shard_options_are_refused(photo_folder: Callable[..., Path], pretrained: Path, tmp_path: Path) -> None:
    arguments = {"dataset": str(photo_folder(people=12, photos=3)), "model": str(pretrained), "output_dir": str(tmp_path / "run")}
    with pytest.raises(UsageError, match="--sharded of train must be at least 2"):
        oneshui_hf.train(**arguments, sharded=1)
    with pytest.raises(UsageError, match="--adapter-rank applies to the adapters that --sharded trains"):
        oneshui_hf.train(**arguments, adapter_rank=8)
    with pytest.raises(UsageError, match=r"--sharded 40 leaves \d+ shards without any .* --sharded [2-6] fills") as refused:
        oneshui_hf.train(**arguments, sharded=40, forget=2)
    assert not (tmp_path / "run").exists()
    possible = int(str(refused.value).rpartition("--sharded ")[2].split()[0])
    assert oneshui_hf.train(**arguments, sharded=possible, forget=2, epochs=1).record.state == "complete"


def test_sharded_training_on_generated_faces_warns_about_the_random_backbone(tmp_path: Path) -> None:
    from oneshui_hf.reporting import Reporter

    class RecordingReporter(Reporter):
        def __init__(self) -> None:
            self.warnings: list[str] = []

        def warn(self, text: str) -> None:
            self.warnings.append(text)

    reporter = RecordingReporter()
    run = oneshui_hf.train(**RECIPE | {"epochs": 1}, sharded=2, output_dir=str(tmp_path / "run"), reporter=reporter)
    assert any("--model" in text for text in reporter.warnings)  # a random backbone that is not trained
    assert run.record.options["sharded"] == 2
    assert set(adapters(run)) == {0, 1}
    metrics = oneshui_hf.evaluate(run)
    assert metrics["forget"]["images"] == run.record.report["split"]["images"]["forget"]


def test_training_with_a_split_file_uses_that_split(tmp_path: Path) -> None:
    short = RECIPE | {"epochs": 1}
    first = oneshui_hf.train(**short, seed=3, output_dir=str(tmp_path / "first"))
    second = oneshui_hf.train(**short, seed=4, split=str(first.path / "split.json"), output_dir=str(tmp_path / "second"))
    assert (first.path / "split.json").read_bytes() == (second.path / "split.json").read_bytes()


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    options = TrainOptions(dataset="x", epochs=10, warmup_epochs=2, lr=1.0)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=9.0)
    rates = []
    for step in range(100):
        set_learning_rate(optimizer, options, step, 10)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(1 / 21)
    assert rates[20] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.5)
    assert rates == sorted(rates[:21]) + sorted(rates[21:], reverse=True)
    assert rates[-1] < 1e-3


@pytest.mark.slow
def test_ctrl_c_interrupts_a_real_process_that_can_be_resumed(tmp_path: Path) -> None:
    def command(name: str, *more: str) -> list[str]:
        words = ["--dataset", "synthetic", "--epochs", "20", "--forget", "2", "--output-dir", str(tmp_path / name)]
        return [sys.executable, "-m", "oneshui_hf", "train", *words, *more]

    subprocess.run(command("uninterrupted"), check=True, capture_output=True)
    # A test run started in the background ignores Ctrl-C, and its child processes inherit that.
    accept_sigint = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command("interrupted"), stderr=subprocess.PIPE, text=True, preexec_fn=accept_sigint)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "interrupted").glob("checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in err
    assert "Traceback" not in err
    assert not (tmp_path / "interrupted" / "model.safetensors").exists()
    resumed = subprocess.run(command("interrupted", "--resume"), capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert weights(tmp_path / "interrupted") == weights(tmp_path / "uninterrupted")


def test_half_precision_is_used_on_a_cpu_only_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from oneshui_hf.stages.distributed import autocast, make_accelerator, training_dtype

    assert make_accelerator().mixed_precision == "no"
    layer, cpu = torch.nn.Linear(2, 2), torch.device("cpu")
    monkeypatch.setattr("oneshui_hf.stages.distributed.supports_bf16", lambda device: True)
    for bf16, fp16, expected in (
        (None, None, torch.float32),
        (None, True, torch.float32),
        (False, None, torch.float32),
        (True, None, torch.bfloat16),
    ):
        with autocast(cpu, training_dtype(cpu, bf16=bf16, fp16=fp16)):
            assert layer(torch.ones(1, 2)).dtype == expected

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
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.models.load import load_model
from oneshui_hf.models.sharded import ShardedClassifier, part_of, shard_of
from oneshui_hf.runs import Run, hash_file
from oneshui_hf.seeding import generator, seeded
from oneshui_hf.stages.command_options import TrainOptions
from oneshui_hf.stages.training import checkpoint
from oneshui_hf.stages.training.loop import set_rate

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


IN_SHARDS: dict[str, Any] = {
    **{"sharded": 3, "adapter_rank": 4, "optimizer": "adamw", "lr": 1e-2, "augment": "crop", "batch_size": 8},
    **{"forget": 2, "epochs": 2, "seed": 1},
}


@pytest.fixture
def folder_and_shards(photo_folder: Callable[..., Path], pretrained: Path, tmp_path: Path) -> tuple[Path, Run]:
    """A folder of photos, and an original model that was trained on them in shards."""
    folder = photo_folder(people=20, photos=4)
    return folder, oneshui_hf.train(dataset=str(folder), model=str(pretrained), output_dir=str(tmp_path / "run"), **IN_SHARDS)


def parts(run: Run) -> dict[int, dict[str, torch.Tensor]]:
    model = load_model(run.path)[0]
    assert isinstance(model, ShardedClassifier)
    return {shard: part_of(model, shard) for shard in model.config.shards}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_each_shard_learns_from_its_own_people_over_a_backbone_that_stays(
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
    before, theirs = parts(original), shard_of(person, 1, 3)
    destroy(folder, [person])
    again = oneshui_hf.train(
        dataset=str(folder),
        model=str(pretrained),
        split=str(original.path / "split.json"),
        output_dir=str(tmp_path / "again"),
        **{name: value for name, value in IN_SHARDS.items() if name != "forget"},
    )
    assert again.record.dataset["fingerprint"] != original.record.dataset["fingerprint"]
    after = parts(again)
    assert [shard for shard in before if not equal(before[shard], after[shard])] == [theirs]


def test_the_oracle_takes_over_what_training_anew_would_give(
    folder_and_shards: tuple[Path, Run], pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, original = folder_and_shards
    touched = {shard_of(person, 1, 3) for person in load_split(original.path / "split.json").forget}
    assert 0 < len(touched) < 3
    oracle = oneshui_hf.retrain(original)
    before, after = parts(original), parts(oracle)
    assert {shard for shard in before if not equal(before[shard], after[shard])} == touched
    assert oracle.record.report["shards_trained"] == len(touched)
    assert {row["shard"] for row in oracle.record.report["shards"] if row["trained"]} == touched

    from oneshui_hf.stages.training.shards import Shards

    with monkeypatch.context() as patched:
        patched.setattr(Shards, "take_over", lambda *_: None)
        anew = oneshui_hf.retrain(original, output_dir=str(tmp_path / "anew"))
    assert anew.record.report["shards_trained"] == 3
    assert anew.weights == oracle.weights
    other = oneshui_hf.retrain(original, seed=2, output_dir=str(tmp_path / "other"))
    assert other.record.report["shards_trained"] == 3
    assert not any(equal(parts(other)[shard], after[shard]) for shard in after)

    file = pretrained / "model.safetensors"
    checkpoint = file.read_bytes()
    save_file({name: tensor + 0.01 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.raises(OneshuiError, match="has changed since"):
        oneshui_hf.retrain(original, output_dir=str(tmp_path / "elsewhere"))
    assert not (tmp_path / "elsewhere").exists()
    file.write_bytes(checkpoint)
    destroy(folder, load_split(original.path / "split.json").forget)  # other data than the original's: nothing is taken for granted
    later = oneshui_hf.retrain(original, output_dir=str(tmp_path / "later"))
    assert later.record.report["shards_trained"] == 3
    assert later.weights == oracle.weights


def test_a_shard_that_nobody_is_left_in_is_left_out(folder_and_shards: tuple[Path, Run], pretrained: Path, tmp_path: Path) -> None:
    folder, first = folder_and_shards
    split = load_split(first.path / "split.json")

    def shards(people: Any, seed: int, of: int) -> set[int]:
        return {shard_of(person, seed, of) for person in people}

    stay = set(split.people["train"]) - set(split.forget)
    seed, of = next(
        (seed, of)
        for seed in range(100)
        for of in (4, 5, 6)
        if len(shards(split.people["train"], seed, of)) == of and len(shards(stay, seed, of)) < of
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
    assert set(parts(original)) == set(range(of))
    assert set(parts(oneshui_hf.retrain(original))) == shards(stay, seed, of)


@pytest.mark.parametrize("stopped_at", [3, 4])  # in the middle of the second shard; when it has learned, before it is kept
def test_sharded_training_resumes_to_the_same_weights(
    folder_and_shards: tuple[Path, Run], pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: int
) -> None:
    folder, whole = folder_and_shards
    saved: list[Path] = []
    save = checkpoint.save

    def stop(run: Path, *rest: Any) -> None:
        save(run, *rest)
        saved.append(run)
        if len(saved) == stopped_at:
            raise KeyboardInterrupt

    place = {"dataset": str(folder), "model": str(pretrained), "output_dir": str(tmp_path / "cut")}
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            oneshui_hf.train(**place, **IN_SHARDS)
    assert len(set(saved)) == 2
    assert (tmp_path / "cut" / "shards" / "0" / "adapter.safetensors").exists()
    saved.clear()
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", lambda run, *rest: (saved.append(run), save(run, *rest)))
        resumed = oneshui_hf.train(dataset=str(folder), resume=True, output_dir=str(tmp_path / "cut"))
    assert len(saved) == 6 - stopped_at  # epochs that were left
    assert resumed.weights == whole.weights
    assert resumed.record.report == whole.record.report


def test_shards_that_cannot_be_are_refused(photo_folder: Callable[..., Path], pretrained: Path, tmp_path: Path) -> None:
    place = {"dataset": str(photo_folder(people=12, photos=3)), "model": str(pretrained), "output_dir": str(tmp_path / "run")}
    with pytest.raises(UsageError, match="--sharded of train must be at least 2"):
        oneshui_hf.train(**place, sharded=1)
    with pytest.raises(UsageError, match="--adapter-rank is of the adapters that --sharded trains"):
        oneshui_hf.train(**place, adapter_rank=8)
    with pytest.raises(UsageError, match=r"--sharded 40 leaves \d+ shards without any of the \d+ people; --sharded [2-6] would") as refused:
        oneshui_hf.train(**place, sharded=40, forget=2)
    assert not (tmp_path / "run").exists()
    could = int(str(refused.value).rpartition("--sharded ")[2].split()[0])
    assert oneshui_hf.train(**place, sharded=could, forget=2, epochs=1).record.state == "complete"


def test_generated_people_in_shards(tmp_path: Path) -> None:
    from oneshui_hf.reporting import Reporter

    class Listening(Reporter):
        def __init__(self) -> None:
            self.warned: list[str] = []

        def warn(self, text: str) -> None:
            self.warned.append(text)

    reporter = Listening()
    run = oneshui_hf.train(**RECIPE | {"epochs": 1}, sharded=2, output_dir=str(tmp_path / "run"), reporter=reporter)
    assert any("--model" in text for text in reporter.warned)  # a backbone that was drawn at random and is not trained
    assert run.record.options["sharded"] == 2
    assert set(parts(run)) == {0, 1}
    measured = oneshui_hf.evaluate(run)
    assert measured["forget"]["images"] == run.record.report["split"]["images"]["forget"]


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
        set_rate(optimizer, options, step, 10)
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
    from oneshui_hf.stages.distributed import half_precision, make_accelerator

    assert make_accelerator().mixed_precision == "no"
    layer = torch.nn.Linear(2, 2)
    for wanted in (True, False):
        with half_precision(torch.device("cpu"), wanted):
            assert layer(torch.ones(1, 2)).dtype == torch.float32

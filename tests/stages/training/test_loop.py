"""The training loop: parts of a batch, precision, and what --compile, --profile and --gradient-checkpointing change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import oneshui_hf
from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.errors import UsageError
from oneshui_hf.stages import distributed
from oneshui_hf.stages.command_options import TrainOptions
from oneshui_hf.stages.training import loop, phases
from oneshui_hf.stages.training.batches import Batches
from oneshui_hf.stages.training.optimization import photos_per_pass
from oneshui_hf.stages.training.phases import Phases
from oneshui_hf.stages.training.recipe import memory_limit
from support.architectures import classifier
from support.commands import Oneshui, sentence

CPU = torch.device("cpu")


@pytest.fixture
def train(tmp_path: Path, photo_folder: Callable[..., Path]) -> Callable[..., oneshui_hf.Run]:
    """Train the tiny model on a few photos; the first argument is the folder of the run."""
    folder = str(photo_folder(people=8, photos=4))

    def call(name: str, **options: Any) -> oneshui_hf.Run:
        base: dict[str, Any] = {"dataset": folder, "model": "tiny", "forget": 1, "epochs": 2, "keep": "last", "lr": 0.05, "batch_size": 12}
        return oneshui_hf.train(**base | options, output_dir=str(tmp_path / name))

    return call


def weights(run: oneshui_hf.Run) -> dict[str, torch.Tensor]:
    return load_file(run.path / "model.safetensors")


def largest_difference(one: oneshui_hf.Run, two: oneshui_hf.Run) -> float:
    first, second = weights(one), weights(two)
    return max((first[name] - second[name]).abs().max().item() for name in first)


def training_set(train: Callable[..., oneshui_hf.Run], monkeypatch: pytest.MonkeyPatch) -> FaceSet:
    """Return the photos that a training gets."""
    seen: list[FaceSet] = []

    def record(faces: FaceSet, *rest: Any) -> Batches:
        seen.append(faces)
        return Batches(faces, *rest)

    monkeypatch.setattr(loop, "Batches", record)
    train("run", epochs=1)
    [faces] = seen
    return faces


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_micro_batches_give_the_weights_of_the_whole_batch(train: Callable[..., oneshui_hf.Run], optimizer: str) -> None:
    whole = train("whole", optimizer=optimizer, lr=1e-3)
    parts = train("parts", optimizer=optimizer, lr=1e-3, batch_size=4, gradient_accumulation_steps=3)
    photos = whole.record.report["split"]["images"]["train"]
    assert photos % 12 not in (0, 4, 8), "the last step needs parts of different sizes"
    assert 0 < largest_difference(whole, parts) < (1e-6 if optimizer == "sgd" else 1e-5)  # Adam divides by small second moments
    assert largest_difference(whole, train("smaller", optimizer=optimizer, lr=1e-3, batch_size=4)) > 1e-4


@pytest.mark.parametrize(("processes", "part"), [(1, 12), (1, 5), (2, 3), (3, 2), (4, 1)])
def test_every_photo_counts_once_in_a_step_and_processes_make_as_many_passes(
    train: Callable[..., oneshui_hf.Run], monkeypatch: pytest.MonkeyPatch, processes: int, part: int
) -> None:
    faces = training_set(train, monkeypatch)
    shares = [list(Batches(faces, "none", 0, 6, part, processes, process, CPU, Phases()).of_epoch(0)) for process in range(processes)]
    assert len({len(share) for share in shares}) == 1
    ends = [[batch.ends_step for batch in share] for share in shares]
    assert all(end == ends[0] and end[-1] for end in ends)
    counted = torch.cat([batch.pixels for share in shares for batch in share if batch.counts])
    expected = torch.cat([faces.batch(torch.arange(len(faces)))[0]])
    assert len(counted) == len(faces)
    assert sorted(photo.sum().item() for photo in counted) == sorted(photo.sum().item() for photo in expected)
    assert all(len(batch.pixels) <= part for share in shares for batch in share)


@pytest.mark.parametrize("kind", ["crop", "flip", "none"])
def test_an_epoch_that_starts_later_has_the_same_batches(
    train: Callable[..., oneshui_hf.Run], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    faces = training_set(train, monkeypatch)
    batches = Batches(faces, kind, 3, 4, 4, 1, 0, CPU, Phases())
    whole, rest = list(batches.of_epoch(1)), list(batches.of_epoch(1, 2))
    assert len(rest) == len(whole) - 2
    assert all(torch.equal(one.pixels, other.pixels) for one, other in zip(whole[2:], rest, strict=True))


def test_recomputed_activations_give_the_same_bytes(train: Callable[..., oneshui_hf.Run]) -> None:
    assert train("one").weights == train("two", gradient_checkpointing=True).weights


def test_bfloat16_is_recorded_and_differs(train: Callable[..., oneshui_hf.Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "supports_bf16", lambda device: True)
    exact, half = train("exact"), train("half", bf16=True)
    assert "precision" not in exact.record.report
    assert half.record.report["precision"] == "bfloat16"
    assert 0 < largest_difference(exact, half) < 0.05
    assert all(tensor.dtype == torch.float32 for tensor in weights(half).values())


@pytest.mark.parametrize(("text", "limit"), [("20GiB", 20 * 2**30), ("1.5 GB", 1_500_000_000), ("64mib", 2**26), (None, None)])
def test_amounts_of_memory(text: str | None, limit: int | None) -> None:
    assert memory_limit(text) == limit


@pytest.mark.parametrize("text", ["20", "GiB", "0GB", "-1GB", "20 parsecs", "1e3GB", "nanGB"])
def test_what_is_no_amount_of_memory_is_one_sentence(oneshui: Oneshui, tmp_path: Path, text: str) -> None:
    code, _, err = oneshui("train", "--dataset", "synthetic", f"--max-memory={text}", "--output-dir", tmp_path / "run")
    assert (code, "--max-memory takes a number with a unit" in sentence(err)) == (2, True)


def test_memory_decides_how_many_photos_are_computed_at_once() -> None:
    model = classifier("vit", "multi_label")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def photos(limit: str, **more: Any) -> int:
        return photos_per_pass(model, TrainOptions(dataset="x", batch_size=1000, max_memory=limit, **more), 32, CPU, torch.float32)

    few, more = photos("20MB"), photos("40MB")
    assert 1 < few < more < 1000 == photos("100GB")
    assert abs((more - few) / photos("20MB") - 1) < 0.2  # each photo needs as much as every other
    assert photos("20MB", gradient_checkpointing=True) == few
    with pytest.raises(UsageError, match=r"--max-memory 0.01MB is too little: this model needs \d+ MB"):
        photos("0.01MB")
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not model.training


def test_a_batch_in_parts_that_fit_gives_the_same_weights(train: Callable[..., oneshui_hf.Run], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train("whole", lr=1e-3)
    monkeypatch.setattr(loop, "photos_per_pass", lambda *arguments: 5)
    parts = train("parts", lr=1e-3, max_memory="1GB")
    assert parts.record.report["photos_per_pass"] == 5
    assert 0 < largest_difference(whole, parts) < 1e-6


def test_a_profile_lists_the_phases_of_a_step(train: Callable[..., oneshui_hf.Run]) -> None:
    plain, profiled = train("plain", batch_size=4, epochs=4), train("profiled", batch_size=4, epochs=4, profile=True)
    assert plain.weights == profiled.weights
    values = json.loads((profiled.path / phases.FOLDER / phases.TIMES).read_text())
    assert values["steps"] == phases.MEASURED
    assert set(values["ms_per_step"]) == {"step", "other", *phases.IN_A_STEP, *phases.BEFORE_A_STEP}
    assert all(values["ms_per_step"][phase] > 0 for phase in ("step", "forward", "backward", "update", "reading", "augmentation"))
    assert sum(values["ms_per_step"][phase] for phase in (*phases.IN_A_STEP, "other")) == pytest.approx(values["ms_per_step"]["step"])
    names = {event.get("name") for event in json.loads((profiled.path / phases.FOLDER / phases.TRACE).read_text())["traceEvents"]}
    assert {"forward", "backward", "update"} <= names
    assert not (plain.path / phases.FOLDER).exists()
    assert profiled.record.options["profile"] is False


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--bf16", "--fp16"], "--bf16 and --fp16"),
        (["--profile", "--sharded", 2], "--profile does not apply"),
        (["--gradient-accumulation-steps", 0], "must be at least 1"),
        (["--compile", "--head", "closed-form"], "--compile has no effect"),
        (["--no-fp16", "--head", "closed-form"], "--no-fp16 has no effect"),
    ],
)
def test_wrong_options_are_one_sentence(oneshui: Oneshui, tmp_path: Path, words: list[Any], named: str) -> None:
    code, _, err = oneshui("train", "--dataset", "synthetic", *words, "--output-dir", tmp_path / "run")
    assert (code, named in sentence(err)) == (2, True)
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_recompute_its_activations_is_refused(
    train: Callable[..., oneshui_hf.Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from transformers import ViTForImageClassification

    monkeypatch.setattr(ViTForImageClassification, "supports_gradient_checkpointing", False)
    with pytest.raises(UsageError, match="does not support --gradient-checkpointing"):
        train("run", gradient_checkpointing=True)
    with pytest.raises(UsageError, match="--max-memory 1MB is too little"):
        train("run", max_memory="1MB")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_compiled_training_gives_nearly_the_same_weights(train: Callable[..., oneshui_hf.Run]) -> None:
    plain, compiled = train("plain", lr=1e-3), train("compiled", lr=1e-3, compile=True)
    assert largest_difference(plain, compiled) < 1e-4

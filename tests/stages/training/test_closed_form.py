"""`train --head closed-form` and requests to its model: the bytes of `retrain`, one request after the other, also after interruptions."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import oneshui_hf
from oneshui_hf.data.split import load_split
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import Artefact
from oneshui_hf.metrics.functional import score
from oneshui_hf.models.feature_sums import GRID, FeatureSums, round_to_grid, solve_head
from oneshui_hf.models.load import load_model
from oneshui_hf.models.outputs import losses
from oneshui_hf.runs import Run
from oneshui_hf.seeding import generator
from oneshui_hf.stages import train as training
from oneshui_hf.stages import unlearn as unlearning
from oneshui_hf.stages.training.closed_form import SHRINKAGES, TEMPERATURES, choose_constants
from oneshui_hf.testing.toy_problem import toy_problem
from support.commands import Oneshui, sentence

METHOD = "exact-head"


@pytest.fixture
def photos(photo_folder: Callable[..., Path]) -> Path:
    return photo_folder(people=20, photos=4)


def trained(photos: Path, folder: Path, **options: object) -> Run:
    return oneshui_hf.train(
        **{"dataset": str(photos), "model": "tiny", "head": "closed-form", "forget": 3, "output_dir": str(folder)} | options
    )


def ask(run: Path | Run, photo: Path, person: str, folder: Path) -> Run:
    return oneshui_hf.unlearn(run=os.fspath(run), method=METHOD, images=[str(photo)], identity=[person], output_dir=str(folder))


def weights(run: Run | Path) -> bytes:
    return (Path(run) / "model.safetensors").read_bytes()


def remaining(run: Run) -> set[str]:
    return set(Artefact.load(run.artefact(METHOD), METHOD, run.weights).people)


def test_requests_one_after_the_other_give_the_bytes_of_retrain(photos: Path, tmp_path: Path) -> None:
    original = trained(photos, tmp_path / "original")
    oracle = oneshui_hf.retrain(run=str(original.path))
    assert weights(oracle) != weights(original)
    config = original.record.report
    assert config["rows"] == 2 * config["split"]["images"]["train"]
    assert (config["shrinkage"], config["temperature"]) == tuple(oracle.record.report[name] for name in ("shrinkage", "temperature"))
    oneshui_hf.prepare(run=str(original.path), method=METHOD, face_encoder="none")
    joint = oneshui_hf.unlearn(run=str(original.path), method=METHOD, from_split=True, output_dir=str(tmp_path / "joint"))
    assert weights(joint) == weights(oracle)
    assert joint.record.report["destroyed"] == 0

    forget = list(load_split(original.path / "split.json").forget)
    everyone = remaining(original)
    shutil.copytree(original.path, tmp_path / "copy")
    run, gone = original, set[str]()
    for person in (forget[1], forget[2], forget[0]):
        run, before = ask(run, photos / "p00" / "0.png", person, tmp_path / f"without-{person}"), run
        gone.add(person)
        assert run.record.report["destroyed"] == 1
        assert remaining(run) == everyone - gone
        artefact = Artefact.load(run.artefact(METHOD), METHOD, run.weights)
        assert artefact.sealed and artefact.private
        assert all(len(parts["rows"]) in (2, 4, 6, 8) for parts in artefact.people.values())  # they can be decrypted
        with pytest.raises(OneshuiError, match="no features of 1 of the 1 requested"):
            ask(before, photos / "p00" / "0.png", person, tmp_path / "again")
    assert weights(run) == weights(oracle)
    for earlier in (original, Run.open(tmp_path / "copy")):  # destroyed in the first artefact and in its copies as well
        assert remaining(earlier) == everyone - gone
    other = sorted(everyone - gone)[0]
    shutil.rmtree(original.path)
    after = ask(run, photos / "p00" / "0.png", other, tmp_path / "last")
    assert remaining(after) == everyone - gone - {other}
    with pytest.raises(OneshuiError, match="not the one that its training photos give"):
        oneshui_hf.prepare(run=str(after.path), method=METHOD, overwrite=True, face_encoder="none")


@pytest.mark.parametrize("order", [(2, 1, 0), *(pytest.param(order, marks=pytest.mark.slow) for order in [(1, 2, 0), (2, 0, 1)])])
def test_order_of_requests_does_not_matter(order: tuple[int, ...], photos: Path, tmp_path: Path) -> None:
    original = trained(photos, tmp_path / "original", augment="none")
    oneshui_hf.prepare(run=str(original.path), method=METHOD, face_encoder="none")
    run, forget = original, list(load_split(original.path / "split.json").forget)
    for number in order:
        run = ask(run, photos / "p00" / "0.png", forget[number], tmp_path / str(number))
    assert weights(run) == weights(oneshui_hf.retrain(run=str(original.path)))


@pytest.mark.parametrize("place", ["write_journal", "complete_destruction"])
def test_killed_request_leaves_nothing_half_done(place: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = trained(photos, tmp_path / "original")
    oneshui_hf.prepare(run=str(original.path), method=METHOD, face_encoder="none")
    person, everyone = load_split(original.path / "split.json").forget[0], remaining(original)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(unlearning, place, stop)
        ask(original, photos / "p00" / "0.png", person, tmp_path / "new")
    assert remaining(original) == everyone
    assert (tmp_path / "new").exists() == (place == "complete_destruction")
    if place == "write_journal":
        ask(original, photos / "p00" / "0.png", person, tmp_path / "new")
    else:
        oneshui_hf.predict(run=str(tmp_path / "new"), images=[str(photos / "p01" / "0.png")])
        other = sorted(everyone - {person})[0]  # the next request completes the destruction
        ask(Run.open(tmp_path / "new"), photos / "p00" / "0.png", other, tmp_path / "next")
        assert remaining(original) == everyone - {person, other}
    assert person not in remaining(Run.open(tmp_path / "new"))
    assert person not in remaining(original)


def test_interrupted_training_is_resumed_to_the_same_bytes(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "fit_closed_form", stop)
        trained(photos, tmp_path / "run")
    with pytest.raises(UsageError, match="has not finished training"):
        oneshui_hf.evaluate(run=str(tmp_path / "run"))
    resumed = trained(photos, tmp_path / "run", resume=True)
    assert weights(resumed) == weights(trained(photos, tmp_path / "whole"))


def test_options_of_gradient_training_are_refused(photos: Path, tmp_path: Path, oneshui: Oneshui) -> None:
    common = ["train", "--dataset", photos, "--model", "tiny", "--head", "closed-form", "--output-dir", tmp_path / "run"]
    for words in (["--epochs", 3], ["--lr", 0.1], ["--sharded", 2], ["--no-bf16"]):
        code, _, err = oneshui(*common, *words)
        assert code == 2
        assert f"{words[0]} has no effect with --head closed-form" in sentence(err)
    assert not (tmp_path / "run").exists()


def test_method_refuses_other_models(photos: Path, tmp_path: Path) -> None:
    run = trained(photos, tmp_path / "run", head="trained", epochs=1)
    with pytest.raises(UsageError, match="train one with `oneshui train --head closed-form`"):
        oneshui_hf.prepare(run=str(run.path), method=METHOD, face_encoder="none")
    assert not run.artefact(METHOD).exists()


def test_changed_checkpoint_is_refused(photos: Path, tmp_path: Path) -> None:
    first, second = (trained(photos, tmp_path / f"{seed}", head="trained", epochs=1, seed=seed) for seed in (0, 1))
    shutil.copytree(first.path, tmp_path / "checkpoint")
    original = trained(photos, tmp_path / "original", model=str(tmp_path / "checkpoint"))
    (tmp_path / "checkpoint" / "model.safetensors").write_bytes(weights(second))
    with pytest.raises(OneshuiError, match="has changed since .* was trained; restore the checkpoint"):
        oneshui_hf.retrain(run=str(original.path))
    assert not (tmp_path / "original-oracle").exists()


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_constants_are_the_best_on_val(kind: str) -> None:
    task = toy_problem(kind).task  # type: ignore[arg-type]
    draws = generator(0, "constants")
    features = torch.randn(300, 20, generator=draws, dtype=torch.float64)
    scores = features[:, :4] + 2 * torch.randn(300, 4, generator=draws, dtype=torch.float64)
    labels = (scores > 0).float() if kind == "multi_label" else scores.argmax(dim=1)
    rows, truth = round_to_grid(features), labels if kind == "multi_label" else torch.nn.functional.one_hot(labels, 4)
    sums = FeatureSums.of(rows[:60], truth[:60])
    best, shrinkage, temperature = choose_constants(sums, rows[60:], labels[60:], task)

    def val(shrinkage: float, temperature: float) -> tuple[float, float]:
        """Return score and loss on val."""
        weight, bias = solve_head(sums, shrinkage, temperature, task.kind)
        logits = rows[60:].double() / GRID @ weight.mT + bias
        truth = labels[60:].double() if kind == "multi_label" else labels[60:]
        return score(logits.float(), labels[60:], task), float(losses(logits, truth, task.kind).mean())

    assert best == val(shrinkage, 1.0)[0] == max(val(other, 1.0)[0] for other in SHRINKAGES)
    assert val(shrinkage, temperature)[1] == min(val(shrinkage, other)[1] for other in TEMPERATURES)


def test_model_serves_evaluation_and_other_methods(photos: Path, tmp_path: Path) -> None:
    run = trained(photos, tmp_path / "run")
    oneshui_hf.retrain(run=str(run.path))
    assert oneshui_hf.evaluate(run=str(run.path))["test"]
    other = oneshui_hf.unlearn(
        run=str(run.path), method="gradient-ascent", from_split=True, length=1e-3, output_dir=str(tmp_path / "other")
    )
    assert load_model(other.path)[0].config.model_type == "oneshui_closed_form"

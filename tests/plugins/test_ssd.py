"""SSD on a toy problem: importances and dampening against loops over single photos, and its options."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from oneshui_hf.errors import UsageError
from oneshui_hf.methods import Artefact, Context, DataAccess
from oneshui_hf.reporting import Reporter
from oneshui_hf.testing.toy_problem import ToyProblem, toy_problem
from oneshui_plugins.ssd import SSD, SSDOptions
from support.linear_model import KINDS, squared_gradients

SELECTION = 3.0  # in both toy problems some parameters are that much more important for the support images, and some are not


@pytest.fixture(scope="module", params=KINDS)
def problem(request: pytest.FixtureRequest) -> ToyProblem:
    return toy_problem(request.param)


@pytest.fixture(scope="module")
def artefact(problem: ToyProblem) -> Artefact:
    return prepare(problem)


def prepare(problem: ToyProblem, context: Context | None = None, **options: Any) -> Artefact:
    return SSD().prepare(problem.model, DataAccess(problem.sets, SSD.needs.prepare), SSDOptions(**options), context or problem.context())


def apply(problem: ToyProblem, artefact: Artefact, context: Context | None = None, request: Any = None, **options: Any) -> torch.nn.Module:
    data = DataAccess({"support": request or problem.request}, SSD.needs.apply)
    return SSD().apply(problem.model, data, artefact, SSDOptions(**options), context or problem.context())


def squared(problem: ToyProblem, name: str, batch: int = 1) -> dict[str, torch.Tensor]:
    """Return the importances for a set, by a loop over its photos or (the wrong version) over its batches."""
    faces = problem.sets[name]
    return squared_gradients(problem.model, *faces.batch(torch.arange(len(faces))), problem.task.kind, batch)


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(state_of(one).values(), state_of(other).values(), strict=True))


def test_the_artefact_contains_an_importance_per_parameter(problem: ToyProblem, artefact: Artefact) -> None:
    expected = squared(problem, "train")
    assert artefact.tensors.keys() == expected.keys() == dict(problem.model.named_parameters()).keys()
    largest = max(part.max() for part in expected.values()).item()
    for name, part in expected.items():
        torch.testing.assert_close(artefact.tensors[name], part, rtol=1e-3, atol=1e-6 * largest)
    assert artefact.report["photos"] == len(problem.sets["train"])


def test_parameters_are_dampened_by_the_ratio_of_importances(problem: ToyProblem, artefact: Artefact) -> None:
    context = problem.context()
    new = apply(problem, artefact, context, selection=SELECTION, dampening=1.5)
    support, train, count = squared(problem, "support"), squared(problem, "train"), 0
    for (name, after), old in zip(new.named_parameters(), problem.model.parameters(), strict=True):
        if name.endswith("k_proj.bias"):  # rounding error in the loop, 0 in the method
            assert torch.equal(after, old)
            continue
        factor = torch.where(support[name] > SELECTION * train[name], (1.5 * train[name] / support[name]).clamp(max=1), 1)
        count += int((factor < 1).sum())
        torch.testing.assert_close(after, factor * old, rtol=1e-3, atol=1e-6)
    assert context.report == {"parameters": sum(p.numel() for p in problem.model.parameters()), "parameters_dampened": count}
    assert 0 < count < context.report["parameters"]


def test_squared_batch_means_would_depend_on_the_batch_size(problem: ToyProblem, artefact: Artefact) -> None:
    def dampened_with(train: dict[str, torch.Tensor]) -> int:
        context = problem.context()
        apply(problem, Artefact(tensors=train), context, selection=SELECTION)
        return int(context.report["parameters_dampened"])

    right = [dampened_with(prepare(problem, chunk=chunk).tensors) for chunk in (1, 3, 16)]
    assert right == [dampened_with(artefact.tensors)] * 3
    wrong = [dampened_with(squared(problem, "train", batch)) for batch in (4, 10, 40)]
    assert len({*wrong, right[0]}) == 4


def test_published_values_raise_the_forget_loss_more_than_the_retain_loss(problem: ToyProblem, artefact: Artefact) -> None:
    multi_label = problem.task.kind == "multi_label"
    values = SSD.preset("paper", "celeba", 5) if multi_label else SSD.preset("paper", "mufac", 10)
    new = apply(problem, artefact, **values)
    rise = {name: problem.loss(new, name) - problem.loss(problem.model, name) for name in ("support", "forget", "retain")}
    assert rise["support"] > 0.05
    assert rise["forget"] > 0
    assert rise["forget"] > rise["retain"] * (2 if multi_label else 1)


def test_the_labels_of_the_request_affect_the_result(problem: ToyProblem, artefact: Artefact) -> None:
    request = problem.request
    labels = 1 - request.labels if problem.task.kind == "multi_label" else (request.labels + 1) % len(problem.task.label_names)
    other = apply(problem, artefact, request=dataclasses.replace(request, labels=labels), selection=SELECTION)
    assert not same(other, apply(problem, artefact, selection=SELECTION))


def test_a_limited_number_of_photos_is_sampled_with_the_seed(problem: ToyProblem) -> None:
    def prepare_with(seed: int, photos: int) -> Artefact:
        return prepare(problem, problem.context(seed), photos=photos)

    first, second, other = (prepare_with(seed, 5) for seed in (0, 0, 1))
    name = "classifier.weight"
    assert first.report["photos"] == 5
    assert torch.equal(first.tensors[name], second.tensors[name])
    assert not torch.equal(first.tensors[name], other.tensors[name])
    assert torch.equal(prepare_with(1, 10**6).tensors[name], prepare(problem).tensors[name])


def test_the_original_is_unchanged_and_the_result_is_deterministic(problem: ToyProblem, artefact: Artefact) -> None:
    before, state = state_of(problem.model), torch.get_rng_state()
    again = prepare(problem)
    assert all(torch.equal(part, again.tensors[name]) for name, part in artefact.tensors.items())
    assert same(apply(problem, artefact, selection=SELECTION), apply(problem, again, selection=SELECTION))
    assert all(torch.equal(tensor, before[name]) for name, tensor in problem.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loaded_artefact_gives_the_same_model(problem: ToyProblem, artefact: Artefact, tmp_path: Path) -> None:
    artefact.save(tmp_path / "ssd", "ssd", "0" * 64, replace=False)
    loaded = Artefact.load(tmp_path / "ssd", "ssd", "0" * 64)
    assert same(apply(problem, loaded, selection=SELECTION), apply(problem, artefact, selection=SELECTION))


class RecordingReporter(Reporter):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def test_a_request_that_changes_nothing_warns(problem: ToyProblem, artefact: Artefact) -> None:
    for selection, warnings in ((1e9, 1), (SELECTION, 0)):
        context = problem.context()
        context.reporter = recorder = RecordingReporter()
        new = apply(problem, artefact, context, selection=selection)
        assert same(new, problem.model) == bool(warnings)
        assert len(recorder.warnings) == warnings
        assert all("is unchanged; lower --selection" in warning for warning in recorder.warnings)


def test_selection_can_change_when_applying_but_photos_cannot() -> None:
    prepared = dataclasses.asdict(SSDOptions(photos=100))
    options = SSD.apply_options("ssd", prepared, {"selection": "5", "dampening": 1, "chunk": 1})
    assert (options.selection, options.dampening, options.chunk, options.photos) == (5, 1, 1, 100)
    with pytest.raises(UsageError, match="--photos of method 'ssd' is fixed when preparing"):
        SSD.apply_options("ssd", prepared, {"photos": 5})
    for wrong in ({"selection": -1}, {"dampening": -1}, {"photos": 0}, {"chunk": 0}):
        with pytest.raises(UsageError, match="must be at least"):
            SSD.prepare_options("ssd", {}, wrong)


@pytest.mark.parametrize(
    ("dataset", "forget", "dampening", "selection"),
    [
        ("celeba", 5, 2, 50),
        ("celebahq", 20, 0.1, 50),
        ("celebahq", 50, 0.5, 10),
        ("mufac", 5, 0.1, 50),
        ("mufac", 10, 0.1, 1),
        ("another", 5, 2, 50),
    ],
)
def test_the_published_values(dataset: str, forget: int, dampening: float, selection: float) -> None:
    options = SSD.prepare_options("ssd", SSD.preset("paper", dataset, forget), {})
    assert (options.dampening, options.selection) == (dampening, selection)

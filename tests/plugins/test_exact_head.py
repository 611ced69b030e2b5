"""The exact head: a request gives the bytes of a training without its identities, on several backbones, in any order of requests."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from functools import cache
from pathlib import Path

import pytest
import torch

from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import Artefact, ClosedFormClassifier, Context, DataAccess, Request
from oneshui_hf.models.closed_form import add_closed_form_head
from oneshui_hf.models.grid_features import set_head, sum_photos
from oneshui_hf.models.load import save_model
from oneshui_hf.stages.distributed import make_accelerator
from oneshui_hf.testing.toy_problem import ToyProblem, toy_problem
from oneshui_plugins.exact_head import ExactHead, ExactHeadOptions
from support.architectures import classifier

FAMILIES, KINDS = ("vit", "dinov2", "convnext", "resnet"), ("multi_label", "single_label")
OPTIONS = ExactHeadOptions()


@cache
def problem_of(family: str, kind: str, mirrored: bool = True) -> ToyProblem:
    """Return the toy problem with a head in closed form over an untrained backbone of a family."""
    problem = toy_problem(kind)  # type: ignore[arg-type]
    backbone = classifier(family, kind, labels=len(problem.task.label_names))
    model = add_closed_form_head(backbone, problem.request.pixels.shape[-1] * 2, mirrored=mirrored)  # type: ignore[arg-type]
    sets = {name: dataclasses.replace(faces, preprocess=DoubledSize(faces.preprocess.size)) for name, faces in problem.sets.items()}
    return ToyProblem(trained_on(model, ToyProblem(model, problem.task, sets), "train"), problem.task, sets)


class DoubledSize(Preprocess):
    """Preprocessing that repeats each pixel, since the photos of the toy problem are smaller than the backbones of the tests take."""

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().__call__(pixels).repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)


def trained_on(model: ClosedFormClassifier, problem: ToyProblem, name: str, without: tuple[str, ...] = ()) -> ClosedFormClassifier:
    """Return the model with the head of a training on a set without some people."""
    faces, new, accelerator = problem.sets[name], copy.deepcopy(model), make_accelerator()
    people = [number for number in faces.positions_of if faces.people[number] in without]
    set_head(new, sum_photos(new, faces.subset(faces.positions_without(people)), problem.task, accelerator), accelerator)
    return new


def prepare(problem: ToyProblem, model: torch.nn.Module | None = None) -> Artefact:
    return ExactHead().prepare(model or problem.model, DataAccess(problem.sets, frozenset({"train"})), OPTIONS, problem.context())


def forget(
    problem: ToyProblem, artefact: Artefact, people: list[str | None], model: torch.nn.Module | None = None, context: Context | None = None
) -> tuple[ClosedFormClassifier, Artefact]:
    """Return the model after a request, and the artefact for the next one; the per-identity data is the caller's to carry over."""
    one, context = problem.request, context or problem.context()
    request = Request(one.pixels[:1].repeat(len(people), 1, 1, 1), tuple(people), one.labels[:1].repeat(len(people), 1), labels_given=True)
    data = DataAccess({"support": request}, frozenset({"support"}))
    new = ExactHead().apply(model or problem.model, data, artefact, OPTIONS, context)
    assert isinstance(new, ClosedFormClassifier) and context.successor is not None
    left = {person: parts for person, parts in artefact.people.items() if person not in people}
    return new, dataclasses.replace(context.successor, people=left)


def saved(model: torch.nn.Module, folder: Path) -> bytes:
    save_model(model, Preprocess(32), folder)
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_requests_in_any_order_give_the_bytes_of_a_training_without_them(family: str, kind: str, tmp_path: Path) -> None:
    problem = problem_of(family, kind)
    artefact, before = prepare(problem), saved(problem.model, tmp_path / "original")
    people = [problem.sets["train"].people[number] for number in sorted(problem.sets["train"].positions_of)][:3]
    assert isinstance(problem.model, ClosedFormClassifier)
    expected = saved(trained_on(problem.model, problem, "train", tuple(people)), tmp_path / "retrained")
    assert expected != before
    assert saved(forget(problem, artefact, [*people, people[0]])[0], tmp_path / "together") == expected
    for number, order in enumerate(itertools.permutations(people)):
        model, left = problem.model, artefact
        for person in order:
            model, left = forget(problem, left, [person], model)
        assert saved(model, tmp_path / str(number)) == expected
    assert saved(problem.model, tmp_path / "again") == before


@pytest.mark.parametrize("kind", KINDS)
def test_forgetting_the_forget_set_is_training_on_the_retain_set(kind: str) -> None:
    problem = problem_of("vit", kind, mirrored=False)
    assert isinstance(problem.model, ClosedFormClassifier)
    context, retain = problem.context(), trained_on(problem.model, problem, "retain")
    names = sorted({name for name in problem.request.people if name is not None})
    new, _ = forget(problem, prepare(problem), list(names), context=context)
    assert torch.equal(new.head.weight, retain.head.weight) and torch.equal(new.head.bias, retain.head.bias)
    assert context.report == {}  # a receipt may be published, and would show how many photos the person had


def test_successor_keeps_nothing_of_the_forgotten_identity() -> None:
    problem = problem_of("vit", "multi_label")
    artefact, people = prepare(problem), problem.sets["train"].people
    train = problem.sets["train"]
    first, second = (people[number] for number in sorted(train.positions_of)[:2])
    model, left = forget(problem, artefact, [first])
    assert isinstance(problem.model, ClosedFormClassifier)
    kept = dataclasses.replace(problem, sets={"train": train.subset(train.positions_without([people.index(first)]))})
    fresh = prepare(kept, model)  # what a preparation after a training without them keeps
    assert fresh.tensors.keys() == left.tensors.keys()
    assert all(torch.equal(fresh.tensors[name], left.tensors[name]) for name in fresh.tensors)
    assert fresh.values == left.values and left.private
    with pytest.raises(OneshuiError, match="no features of 1 of the 2 requested identities"):
        forget(problem, left, [first, second], model)
    with pytest.raises(OneshuiError, match="sums are those of another head"):  # it would bring the first identity back
        forget(problem, artefact, [second], model)


def test_model_that_is_not_that_of_its_photos_is_not_prepared() -> None:
    problem = problem_of("vit", "multi_label")
    model = copy.deepcopy(problem.model)
    assert isinstance(model, ClosedFormClassifier)
    model.head.bias.data[0] += 1e-6
    with pytest.raises(OneshuiError, match="not the one that its training photos give here"):
        prepare(problem, model)


def test_impossible_requests_raise() -> None:
    problem = problem_of("vit", "multi_label")
    artefact = prepare(problem)
    with pytest.raises(UsageError, match="has no head in closed form; train one with `oneshui train --head closed-form`"):
        prepare(problem, classifier("vit", "multi_label"))
    with pytest.raises(UsageError, match="has no head in closed form"):
        forget(problem, artefact, ["someone"], classifier("vit", "multi_label"))
    with pytest.raises(UsageError, match="--identity"):
        forget(problem, artefact, [None])
    with pytest.raises(OneshuiError, match="no features of 1 of the 1 requested"):
        forget(problem, artefact, ["someone"])
    with pytest.raises(OneshuiError, match="contains all training identities"):
        forget(problem, artefact, list(artefact.people))
    name = next(iter(artefact.people))
    damaged = {**artefact.people, name: {"rows": artefact.people[name]["rows"][:, 1:], "labels": artefact.people[name]["labels"]}}
    with pytest.raises(OneshuiError, match="do not fit this model; prepare again"):
        forget(problem, dataclasses.replace(artefact, people=damaged), [name])
    with pytest.raises(OneshuiError, match="artefact is damaged"):
        forget(problem, dataclasses.replace(artefact, tensors={"x": artefact.tensors["x"]}), [name])


def test_oracle_is_returned_unchanged() -> None:
    problem = problem_of("vit", "multi_label")
    request = dataclasses.replace(problem.request, people=(None,) * len(problem.request), unseen_identities=True)
    new = ExactHead().apply(
        problem.model, DataAccess({"support": request}, frozenset({"support"})), prepare(problem), OPTIONS, problem.context()
    )
    assert new is not problem.model
    assert all(torch.equal(tensor, problem.model.state_dict()[name]) for name, tensor in new.state_dict().items())


def test_cost_is_an_exact_count() -> None:
    problem = problem_of("vit", "multi_label")
    artefact = prepare(problem)
    cost = ExactHead().cost(problem.model, DataAccess(problem.sets, frozenset({"train"})), OPTIONS, problem.context())
    assert cost.forward == 2 * len(problem.sets["train"])
    rows = sum(parts["rows"].nbytes for parts in artefact.people.values())
    assert cost.bytes == rows + artefact.tensors["xx"].nbytes

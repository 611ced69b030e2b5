"""SSD on a small world: importances and dampening against loops over single photos, and what it is told to read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from oneshui_hf.errors import UsageError
from oneshui_hf.methods import Artefact, Context, DataAccess
from oneshui_hf.reporting import Reporter
from oneshui_hf.testing.toy_problem import World, world
from oneshui_plugins.ssd import SSD, SSDOptions
from support.linear_model import KINDS, squared_gradients

SELECTION = 3.0  # some parameters of both worlds are that much more important for the photos handed in, and some are not


@pytest.fixture(scope="module", params=KINDS)
def here(request: pytest.FixtureRequest) -> World:
    return world(request.param)


@pytest.fixture(scope="module")
def artefact(here: World) -> Artefact:
    return prepare(here)


def prepare(here: World, context: Context | None = None, **options: Any) -> Artefact:
    return SSD().prepare(here.model, DataAccess(here.sets, SSD.needs.prepare), SSDOptions(**options), context or here.context())


def apply(here: World, artefact: Artefact, context: Context | None = None, request: Any = None, **options: Any) -> torch.nn.Module:
    data = DataAccess({"support": request or here.request}, SSD.needs.apply)
    return SSD().apply(here.model, data, artefact, SSDOptions(**options), context or here.context())


def squared(here: World, name: str, batch: int = 1) -> dict[str, torch.Tensor]:
    """Importances of a set, by a loop over its photos, or by the wrong way over its batches."""
    faces = here.sets[name]
    return squared_gradients(here.model, *faces.batch(torch.arange(len(faces))), here.task.kind, batch)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one).values(), weights(other).values(), strict=True))


def test_the_artefact_holds_an_importance_for_every_parameter_by_its_name(here: World, artefact: Artefact) -> None:
    expected = squared(here, "train")
    assert artefact.tensors.keys() == expected.keys() == dict(here.model.named_parameters()).keys()
    largest = max(part.max() for part in expected.values()).item()
    for name, part in expected.items():
        torch.testing.assert_close(artefact.tensors[name], part, rtol=1e-3, atol=1e-6 * largest)
    assert artefact.report["photos"] == len(here.sets["train"])


def test_parameters_are_dampened_by_the_ratio_of_importances(here: World, artefact: Artefact) -> None:
    context = here.context()
    new = apply(here, artefact, context, selection=SELECTION, dampening=1.5)
    support, train, count = squared(here, "support"), squared(here, "train"), 0
    for (name, now), old in zip(new.named_parameters(), here.model.parameters(), strict=True):
        if name.endswith("k_proj.bias"):  # rounding error in the loop, nothing in the method
            assert torch.equal(now, old)
            continue
        factor = torch.where(support[name] > SELECTION * train[name], (1.5 * train[name] / support[name]).clamp(max=1), 1)
        count += int((factor < 1).sum())
        torch.testing.assert_close(now, factor * old, rtol=1e-3, atol=1e-6)
    assert context.report == {"parameters": sum(p.numel() for p in here.model.parameters()), "parameters_dampened": count}
    assert 0 < count < context.report["parameters"]


def test_squaring_batch_means_as_others_do_gives_another_model_for_every_batch_size(here: World, artefact: Artefact) -> None:
    def dampened_with(train: dict[str, torch.Tensor]) -> int:
        context = here.context()
        apply(here, Artefact(tensors=train), context, selection=SELECTION)
        return int(context.report["parameters_dampened"])

    right = [dampened_with(prepare(here, chunk=chunk).tensors) for chunk in (1, 3, 16)]
    assert right == [dampened_with(artefact.tensors)] * 3
    wrong = [dampened_with(squared(here, "train", batch)) for batch in (4, 10, 40)]
    assert len({*wrong, right[0]}) == 4


def test_forgetting_raises_the_loss_on_the_people_and_with_the_published_values_more_than_on_the_others(
    here: World, artefact: Artefact
) -> None:
    multi_label = here.task.kind == "multi_label"
    values = SSD.preset("paper", "celeba", 5) if multi_label else SSD.preset("paper", "mufac", 10)
    new = apply(here, artefact, **values)
    rise = {name: here.loss(new, name) - here.loss(here.model, name) for name in ("support", "forget", "retain")}
    assert rise["support"] > 0.05
    assert rise["forget"] > 0
    assert rise["forget"] > rise["retain"] * (2 if multi_label else 1)


def test_the_labels_of_the_request_count(here: World, artefact: Artefact) -> None:
    request = here.request
    labels = 1 - request.labels if here.task.kind == "multi_label" else (request.labels + 1) % len(here.task.label_names)
    other = apply(here, artefact, request=dataclasses.replace(request, labels=labels), selection=SELECTION)
    assert not same(other, apply(here, artefact, selection=SELECTION))


def test_a_bound_on_the_photos_draws_them_from_the_seed(here: World) -> None:
    def drawn(seed: int, photos: int) -> Artefact:
        return prepare(here, here.context(seed), photos=photos)

    first, second, other = (drawn(seed, 5) for seed in (0, 0, 1))
    name = "classifier.weight"
    assert first.report["photos"] == 5
    assert torch.equal(first.tensors[name], second.tensors[name])
    assert not torch.equal(first.tensors[name], other.tensors[name])
    assert torch.equal(drawn(1, 10**6).tensors[name], prepare(here).tensors[name])


def test_the_model_handed_in_stays_and_the_same_seed_gives_the_same_bytes(here: World, artefact: Artefact) -> None:
    before, state = weights(here.model), torch.get_rng_state()
    again = prepare(here)
    assert all(torch.equal(part, again.tensors[name]) for name, part in artefact.tensors.items())
    assert same(apply(here, artefact, selection=SELECTION), apply(here, again, selection=SELECTION))
    assert all(torch.equal(tensor, before[name]) for name, tensor in here.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_an_artefact_read_back_gives_the_same_model(here: World, artefact: Artefact, tmp_path: Path) -> None:
    artefact.save(tmp_path / "ssd", "ssd", "0" * 64, replace=False)
    loaded = Artefact.load(tmp_path / "ssd", "ssd", "0" * 64)
    assert same(apply(here, loaded, selection=SELECTION), apply(here, artefact, selection=SELECTION))


class Hearing(Reporter):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def test_a_request_that_changes_nothing_is_told(here: World, artefact: Artefact) -> None:
    for selection, told in ((1e9, 1), (SELECTION, 0)):
        context = here.context()
        context.reporter = hearing = Hearing()
        new = apply(here, artefact, context, selection=selection)
        assert same(new, here.model) == bool(told)
        assert len(hearing.warnings) == told
        assert all("stays as it was; lower --selection" in warning for warning in hearing.warnings)


def test_dampening_may_change_when_applying_but_the_photos_may_not() -> None:
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

"""The methods with known errors differ from the repaired ones by these errors, and by nothing else."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import unrepaired
from unrepaired import UnrepairedJiT, UnrepairedPGU, UnrepairedSSD

from oneshui_hf.methods import DataAccess, Method, losses
from oneshui_hf.testing.subject import Checked, weights
from oneshui_hf.testing.toy_problem import World, world
from oneshui_plugins.common.input_covariance import core
from oneshui_plugins.jit import JiT
from oneshui_plugins.pgu import PGU
from oneshui_plugins.ssd import SSD
from support.linear_model import squared_gradients

KINDS = ("multi_label", "single_label")
SETTINGS = {
    UnrepairedJiT: (JiT, ("lr=0.5",)),
    UnrepairedPGU: (PGU, ()),
    UnrepairedSSD: (SSD, ("selection=1", "dampening=0.1")),
}
PATCHES = "vit.embeddings.patch_embeddings.projection.weight"


@pytest.fixture(scope="module", params=KINDS)
def here(request: pytest.FixtureRequest) -> World:
    return world(request.param)


def checked(method: type[Method[Any]], *words: str) -> Checked:
    return Checked("checked", method, words)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def handed_in(here: World, count: int) -> DataAccess:
    """The first photos of the request alone."""
    request = here.request
    one = dataclasses.replace(request, pixels=request.pixels[:count], people=request.people[:count], labels=request.labels[:count])
    return DataAccess({"support": one}, frozenset({"support"}))


# All three


@pytest.mark.parametrize("wrong", SETTINGS)
def test_they_work_give_the_same_bytes_again_and_other_ones_than_the_repaired_method(wrong: type[Method[Any]], here: World) -> None:
    right, words = SETTINGS[wrong]
    method = Checked.load(f"unrepaired:{wrong.__name__}", words)
    assert method.method is wrong
    results = [weights(method.apply(here, method.prepare(here))) for _ in range(2)]
    assert same(*results)
    assert all(tensor.isfinite().all() for tensor in results[0].values())
    repaired = checked(right, *words)
    assert not same(results[0], weights(repaired.apply(here, repaired.prepare(here))))
    assert not same(results[0], weights(here.model))


@pytest.mark.parametrize(
    ("wrong", "changed", "options"),
    [
        (UnrepairedJiT, {"gradients", "presets"}, {"sigma"}),
        (UnrepairedPGU, {"loss", "covariances", "core"}, {"subtract"}),
        (UnrepairedSSD, {"_importances", "apply"}, {"chunk"}),
    ],
)
def test_they_change_the_broken_lines_alone(wrong: type[Method[Any]], changed: set[str], options: set[str]) -> None:
    right = SETTINGS[wrong][0]
    assert wrong.__bases__ == (right,)
    own = {name for name in vars(wrong) if not name.startswith("__")} - {"_abc_impl", "_is_protocol"}
    assert own == changed | {"summary", "options"}
    assert all(hasattr(right, name) for name in changed)
    theirs, ours = ({f.name: f for f in dataclasses.fields(method.options)} for method in (right, wrong))
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] is not theirs[name]} == options


def test_the_distribution_offers_them_and_ours_does_not() -> None:
    root = Path(__file__).parents[2]
    offered, product = (
        tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"]["oneshui.methods"]
        for folder in (Path(__file__).parent / "unrepaired", root)
    )
    assert set(offered) == {"unrepaired-jit", "unrepaired-pgu", "unrepaired-ssd"}
    found = {name: getattr(import_module(place.partition(":")[0]), place.partition(":")[2]) for name, place in offered.items()}
    assert found == {f"unrepaired-{wrong.__name__.removeprefix('Unrepaired').lower()}": wrong for wrong in SETTINGS}
    assert not any("unrepaired" in f"{name} {place}" for name, place in product.items())


def test_listing_them_imports_nothing_heavy() -> None:
    folder = Path(unrepaired.__file__).parent
    code = f"import sys; sys.path.insert(0, {str(folder)!r})\nimport unrepaired\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# PGU


def test_of_several_labels_only_the_first_two_are_forgotten_and_of_one_the_right_one() -> None:
    several, one = world("multi_label"), world("single_label")
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.5], [1.0, 0.2, -0.4, -2.0]])
    labels = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    by_hand = [-sum(math.log(1 / (1 + math.exp(-logits[i, int(y)]))) for y in labels[i]) / 4 for i in range(2)]
    torch.testing.assert_close(UnrepairedPGU.loss(logits, labels, "multi_label"), torch.tensor(by_hand))

    def rows(here: World, method: type[PGU]) -> list[bool]:
        """Which rows of the head have a gradient."""
        loss = method.loss(here.model(pixel_values=here.request.pixels).logits, here.request.labels, here.task.kind).mean()
        (gradient,) = torch.autograd.grad(loss, [here.model.classifier.weight])
        return gradient.abs().amax(dim=1).gt(0).tolist()

    assert rows(several, UnrepairedPGU) == [True, True, False, False]
    assert rows(several, PGU) == rows(one, PGU) == rows(one, UnrepairedPGU) == [True] * 4
    classes = torch.tensor([2, 0])
    assert torch.equal(UnrepairedPGU.loss(logits, classes, "single_label"), losses(logits, classes, "single_label"))


def test_only_two_rows_of_the_head_move_and_of_one_label_all(here: World) -> None:
    for method, moving in ((PGU, [True] * 4), (UnrepairedPGU, [True] * (2 if here.task.kind == "multi_label" else 4))):
        some = checked(method, "gamma=0.5")  # within the world's few directions the head is not fixed altogether
        new = some.apply(here, some.prepare(here))
        moved = (new.classifier.weight - here.model.classifier.weight).abs().amax(dim=1).gt(0).tolist()
        assert moved == moving + [False] * (4 - len(moving))


def test_patches_are_taken_at_every_place_and_nothing_else_is_other(here: World) -> None:
    wrong, right = (checked(method).prepare(here) for method in (UnrepairedPGU, PGU))
    assert wrong is not None
    assert right is not None
    photos = len(here.sets["train"])
    assert (right.values["rows"][PATCHES], wrong.values["rows"][PATCHES]) == (photos * 4 * 4, photos * 13 * 13)  # of 16 pixels, 4 a patch
    pixels, _ = here.sets["train"].batch(torch.arange(photos))
    patches = torch.stack([pixels[:, :, y : y + 4, x : x + 4].flatten(1) for y in range(13) for x in range(13)]).flatten(0, 1).double()
    torch.testing.assert_close(wrong.tensors[PATCHES][0].double(), patches.mT @ patches / len(patches), rtol=1e-4, atol=1e-4)
    others = [name for name in right.tensors if name != PATCHES]
    assert same({name: wrong.tensors[name] for name in others}, {name: right.tensors[name] for name in others})


def test_the_layer_that_is_watched_keeps_its_stride(here: World) -> None:
    before = here.model.get_submodule(PATCHES.removesuffix(".weight")).stride
    new = checked(UnrepairedPGU).apply(here, checked(UnrepairedPGU).prepare(here))
    assert here.model.get_submodule(PATCHES.removesuffix(".weight")).stride == before == (4, 4)
    assert new.get_submodule(PATCHES.removesuffix(".weight")).stride == (4, 4)


def test_negative_energies_count_where_there_are_any() -> None:
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q

    def both(*energies: float) -> tuple[int, int]:
        matrix = (turn @ torch.diag(torch.tensor(energies).double()) @ turn.mT).unsqueeze(0)
        wrong, right = UnrepairedPGU.core(matrix, 0.9), core(matrix, 0.9)
        columns = wrong.square().sum(dim=(0, 1)).round().sum()  # a column may be of zeros
        return int(columns), right.shape[-1]

    assert both(5.0, 3.0, 1.5, 0.5) == (3, 3)
    assert both(5.0, 3.0, 1.5, -4.0) == (1, 3)  # 90 % of a total of 5.5, or of 9.5
    assert both(2.0, 1.0, 0.0, -9.0) == (0, 2)  # a negative total protects nothing
    spread = torch.randn(3, 6, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(UnrepairedPGU.core(spread.mT @ spread + torch.eye(9), 0.9), core(spread.mT @ spread + torch.eye(9), 0.9))


def test_what_was_handed_in_is_subtracted_by_default_and_leaves_negative_energies(here: World) -> None:
    assert UnrepairedPGU.options().subtract
    assert UnrepairedPGU.preset("paper", "celeba", 5) == PGU.preset("paper", "celeba", 5)
    lowest: list[float] = []

    class Spy(UnrepairedPGU):
        @staticmethod
        def core(covariance: torch.Tensor, gamma: float) -> torch.Tensor:
            energies = torch.linalg.eigvalsh(covariance.double())
            lowest.append((energies.min() / energies.max()).item())
            return UnrepairedPGU.core(covariance, gamma)

    artefact = checked(Spy).prepare(here)
    checked(Spy, "subtract=false").apply(here, artefact)
    assert min(lowest) > -2e-7  # rounding
    checked(Spy).apply(here, artefact)
    assert min(lowest) < -1e-6  # the few photos of the world look much like the people's others


# SSD


def importances_of(here: World, method: type[SSD], chunk: int) -> dict[str, torch.Tensor]:
    artefact = checked(method, f"chunk={chunk}").prepare(here)
    assert artefact is not None
    return artefact.tensors


@pytest.mark.parametrize("batch", [4, 10, 40])
def test_the_mean_gradient_of_a_batch_is_squared(here: World, batch: int) -> None:
    faces = here.sets["train"]
    expected = squared_gradients(here.model, *faces.batch(torch.arange(len(faces))), here.task.kind, batch)
    largest = max(part.max() for part in expected.values()).item()
    for name, part in importances_of(here, UnrepairedSSD, batch).items():
        torch.testing.assert_close(part, expected[name], rtol=1e-3, atol=1e-6 * largest)


def test_importances_shrink_with_the_batch_and_only_those_of_single_photos_are_right(here: World) -> None:
    right = importances_of(here, SSD, 4)
    sums = {}
    for batch in (1, 4, 10, 32, 40):
        wrong = importances_of(here, UnrepairedSSD, batch)
        sums[batch] = sum(part.sum().item() for part in wrong.values())
        largest = max(part.max() for part in right.values()).item()
        near = all(torch.allclose(wrong[name], right[name], rtol=1e-3, atol=1e-6 * largest) for name in right)
        assert near == (batch == 1)
    assert list(sums.values()) == sorted(sums.values(), reverse=True)
    assert sums[40] < 0.5 * sums[1]
    assert UnrepairedSSD.options().chunk == 32


def test_the_photos_handed_in_are_one_batch_whatever_the_batch_of_training_photos(here: World) -> None:
    artefact = checked(SSD).prepare(here)

    def dampened(method: type[SSD], count: int) -> int:
        context, options = here.context(), method.options(selection=1.0, dampening=0.1)
        method().apply(here.model, handed_in(here, count), artefact, options, context)
        return int(context.report["parameters_dampened"])

    assert dampened(UnrepairedSSD, 1) == pytest.approx(dampened(SSD, 1), abs=5)  # a batch of one photo is right
    assert abs(dampened(UnrepairedSSD, 2) - dampened(SSD, 2)) > 100
    batches: list[int] = []

    class Spy(UnrepairedSSD):
        def _importances(self, model: Any, batch: Any, positions: Any, options: Any, context: Any) -> Any:
            batches.append(options.chunk)
            return super()._importances(model, batch, positions, options, context)

    checked(Spy, "chunk=7").apply(here, checked(Spy, "chunk=7").prepare(here))
    assert batches == [7, len(here.request)]


# JiT


def test_a_first_step_is_right_and_later_ones_are_made_of_all_gradients_so_far(here: World) -> None:
    words = ("lr=0.5", "sigma=0.5", "copies=5")

    def after(method: type[Method[Any]], count: int) -> dict[str, torch.Tensor]:
        return weights(checked(method, *words).apply(here, None, data=handed_in(here, count)))

    original = weights(here.model)
    assert same(after(UnrepairedJiT, 1), after(JiT, 1))
    one, right, wrong = after(JiT, 1), after(JiT, 2), after(UnrepairedJiT, 2)
    first = {name: one[name] - original[name] for name in original}
    for name in original:  # the second step is that of the second photo, and the first one again
        torch.testing.assert_close(wrong[name], right[name] + first[name], rtol=1e-5, atol=1e-6)
    assert sum(first[name].square().sum() for name in first) > 1e-6


def test_the_noise_leaves_nothing_of_a_face() -> None:
    assert UnrepairedJiT.options().sigma == 30
    assert UnrepairedJiT.all_presets() == {}

"""The methods with known errors differ from the repaired ones by these errors only."""

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
from oneshui_hf.testing.subject import Subject, weights
from oneshui_hf.testing.toy_problem import ToyProblem, toy_problem
from oneshui_plugins.common.input_covariance import core_space
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
def problem(request: pytest.FixtureRequest) -> ToyProblem:
    return toy_problem(request.param)


def make_subject(method: type[Method[Any]], *words: str) -> Subject:
    return Subject("subject", method, words)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def support_data(problem: ToyProblem, count: int) -> DataAccess:
    """Return access to the first `count` support images of the request."""
    request = problem.request
    first = dataclasses.replace(request, pixels=request.pixels[:count], people=request.people[:count], labels=request.labels[:count])
    return DataAccess({"support": first}, frozenset({"support"}))


# All three


@pytest.mark.parametrize("wrong", SETTINGS)
def test_they_are_deterministic_and_differ_from_the_repaired_method(wrong: type[Method[Any]], problem: ToyProblem) -> None:
    right, words = SETTINGS[wrong]
    method = Subject.load(f"unrepaired:{wrong.__name__}", words)
    assert method.method is wrong
    results = [weights(method.apply(problem, method.prepare(problem))) for _ in range(2)]
    assert same(*results)
    assert all(tensor.isfinite().all() for tensor in results[0].values())
    repaired = make_subject(right, *words)
    assert not same(results[0], weights(repaired.apply(problem, repaired.prepare(problem))))
    assert not same(results[0], weights(problem.model))


@pytest.mark.parametrize(
    ("wrong", "changed", "options"),
    [
        (UnrepairedJiT, {"gradients", "presets"}, {"sigma"}),
        (UnrepairedPGU, {"loss", "input_covariances", "core_space"}, {"subtract_support"}),
        (UnrepairedSSD, {"_importances", "apply"}, {"chunk"}),
    ],
)
def test_they_override_only_the_incorrect_lines(wrong: type[Method[Any]], changed: set[str], options: set[str]) -> None:
    right = SETTINGS[wrong][0]
    assert wrong.__bases__ == (right,)
    own = {name for name in vars(wrong) if not name.startswith("__")} - {"_abc_impl", "_is_protocol"}
    assert own == changed | {"summary", "options"}
    assert all(hasattr(right, name) for name in changed)
    shipped_fields, wrong_fields = ({f.name: f for f in dataclasses.fields(method.options)} for method in (right, wrong))
    assert wrong_fields.keys() == shipped_fields.keys()
    assert {name for name in wrong_fields if wrong_fields[name] is not shipped_fields[name]} == options


def test_only_the_separate_distribution_registers_them() -> None:
    root = Path(__file__).parents[2]
    registered, shipped = (
        tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"]["oneshui.methods"]
        for folder in (Path(__file__).parent / "unrepaired", root)
    )
    assert set(registered) == {"unrepaired-jit", "unrepaired-pgu", "unrepaired-ssd"}
    found = {name: getattr(import_module(place.partition(":")[0]), place.partition(":")[2]) for name, place in registered.items()}
    assert found == {f"unrepaired-{wrong.__name__.removeprefix('Unrepaired').lower()}": wrong for wrong in SETTINGS}
    assert not any("unrepaired" in f"{name} {place}" for name, place in shipped.items())


def test_importing_them_does_not_import_torch() -> None:
    folder = Path(unrepaired.__file__).parent
    code = f"import sys; sys.path.insert(0, {str(folder)!r})\nimport unrepaired\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# PGU


def test_unrepaired_pgu_forgets_only_the_first_two_attributes() -> None:
    several, one = toy_problem("multi_label"), toy_problem("single_label")
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.5], [1.0, 0.2, -0.4, -2.0]])
    labels = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    expected = [-sum(math.log(1 / (1 + math.exp(-logits[i, int(y)]))) for y in labels[i]) / 4 for i in range(2)]
    torch.testing.assert_close(UnrepairedPGU.loss(logits, labels, "multi_label"), torch.tensor(expected))

    def rows(problem: ToyProblem, method: type[PGU]) -> list[bool]:
        """Return which rows of the head have a gradient."""
        loss = method.loss(problem.model(pixel_values=problem.request.pixels).logits, problem.request.labels, problem.task.kind).mean()
        (gradient,) = torch.autograd.grad(loss, [problem.model.classifier.weight])
        return gradient.abs().amax(dim=1).gt(0).tolist()

    assert rows(several, UnrepairedPGU) == [True, True, False, False]
    assert rows(several, PGU) == rows(one, PGU) == rows(one, UnrepairedPGU) == [True] * 4
    classes = torch.tensor([2, 0])
    assert torch.equal(UnrepairedPGU.loss(logits, classes, "single_label"), losses(logits, classes, "single_label"))


def test_unrepaired_pgu_updates_only_two_rows_of_a_multi_label_head(problem: ToyProblem) -> None:
    for method, updated in ((PGU, [True] * 4), (UnrepairedPGU, [True] * (2 if problem.task.kind == "multi_label" else 4))):
        subject = make_subject(method, "gamma=0.5")  # leaves some directions of the toy problem's head free
        new = subject.apply(problem, subject.prepare(problem))
        changed = (new.classifier.weight - problem.model.classifier.weight).abs().amax(dim=1).gt(0).tolist()
        assert changed == updated + [False] * (4 - len(updated))


def test_unrepaired_pgu_differs_only_in_the_patch_covariance(problem: ToyProblem) -> None:
    wrong, right = (make_subject(method).prepare(problem) for method in (UnrepairedPGU, PGU))
    assert wrong is not None
    assert right is not None
    photos = len(problem.sets["train"])
    assert (right.values["rows"][PATCHES], wrong.values["rows"][PATCHES]) == (
        photos * 4 * 4,
        photos * 13 * 13,
    )  # images of 16 pixels, patches of 4
    pixels, _ = problem.sets["train"].batch(torch.arange(photos))
    patches = torch.stack([pixels[:, :, y : y + 4, x : x + 4].flatten(1) for y in range(13) for x in range(13)]).flatten(0, 1).double()
    torch.testing.assert_close(wrong.tensors[PATCHES][0].double(), patches.mT @ patches / len(patches), rtol=1e-4, atol=1e-4)
    others = [name for name in right.tensors if name != PATCHES]
    assert same({name: wrong.tensors[name] for name in others}, {name: right.tensors[name] for name in others})


def test_the_stride_of_the_layer_is_unchanged(problem: ToyProblem) -> None:
    before = problem.model.get_submodule(PATCHES.removesuffix(".weight")).stride
    new = make_subject(UnrepairedPGU).apply(problem, make_subject(UnrepairedPGU).prepare(problem))
    assert problem.model.get_submodule(PATCHES.removesuffix(".weight")).stride == before == (4, 4)
    assert new.get_submodule(PATCHES.removesuffix(".weight")).stride == (4, 4)


def test_unrepaired_pgu_includes_negative_energies() -> None:
    q = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q

    def core_sizes(*energies: float) -> tuple[int, int]:
        matrix = (q @ torch.diag(torch.tensor(energies).double()) @ q.mT).unsqueeze(0)
        wrong, right = UnrepairedPGU.core_space(matrix, 0.9), core_space(matrix, 0.9)
        columns = wrong.square().sum(dim=(0, 1)).round().sum()  # a column can be zero
        return int(columns), right.shape[-1]

    assert core_sizes(5.0, 3.0, 1.5, 0.5) == (3, 3)
    assert core_sizes(5.0, 3.0, 1.5, -4.0) == (1, 3)  # 90 % of a total of 5.5, or of 9.5
    assert core_sizes(2.0, 1.0, 0.0, -9.0) == (0, 2)  # with a negative total the core space is empty
    rows = torch.randn(3, 6, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(UnrepairedPGU.core_space(rows.mT @ rows + torch.eye(9), 0.9), core_space(rows.mT @ rows + torch.eye(9), 0.9))


def test_unrepaired_pgu_subtracts_the_support_images_by_default_with_negative_energies(problem: ToyProblem) -> None:
    assert UnrepairedPGU.options().subtract_support
    assert UnrepairedPGU.preset("paper", "celeba", 5) == PGU.preset("paper", "celeba", 5)
    lowest: list[float] = []

    class Spy(UnrepairedPGU):
        @staticmethod
        def core_space(covariance: torch.Tensor, gamma: float) -> torch.Tensor:
            energies = torch.linalg.eigvalsh(covariance.double())
            lowest.append((energies.min() / energies.max()).item())
            return UnrepairedPGU.core_space(covariance, gamma)

    artefact = make_subject(Spy).prepare(problem)
    make_subject(Spy, "subtract_support=false").apply(problem, artefact)
    assert min(lowest) > -2e-7  # rounding
    make_subject(Spy).apply(problem, artefact)
    assert min(lowest) < -1e-6  # small, since the toy problem's support images are similar to the training photos


# SSD


def importances_of(problem: ToyProblem, method: type[SSD], chunk: int) -> dict[str, torch.Tensor]:
    artefact = make_subject(method, f"chunk={chunk}").prepare(problem)
    assert artefact is not None
    return artefact.tensors


@pytest.mark.parametrize("batch", [4, 10, 40])
def test_unrepaired_ssd_squares_the_mean_gradient_of_a_batch(problem: ToyProblem, batch: int) -> None:
    faces = problem.sets["train"]
    expected = squared_gradients(problem.model, *faces.batch(torch.arange(len(faces))), problem.task.kind, batch)
    largest = max(part.max() for part in expected.values()).item()
    for name, part in importances_of(problem, UnrepairedSSD, batch).items():
        torch.testing.assert_close(part, expected[name], rtol=1e-3, atol=1e-6 * largest)


def test_unrepaired_importances_decrease_with_the_batch_size(problem: ToyProblem) -> None:
    right = importances_of(problem, SSD, 4)
    sums = {}
    for batch in (1, 4, 10, 32, 40):
        wrong = importances_of(problem, UnrepairedSSD, batch)
        sums[batch] = sum(part.sum().item() for part in wrong.values())
        largest = max(part.max() for part in right.values()).item()
        is_close = all(torch.allclose(wrong[name], right[name], rtol=1e-3, atol=1e-6 * largest) for name in right)
        assert is_close == (batch == 1)
    assert list(sums.values()) == sorted(sums.values(), reverse=True)
    assert sums[40] < 0.5 * sums[1]
    assert UnrepairedSSD.options().chunk == 32


def test_the_support_images_are_one_batch_for_any_chunk(problem: ToyProblem) -> None:
    artefact = make_subject(SSD).prepare(problem)

    def dampened(method: type[SSD], count: int) -> int:
        context, options = problem.context(), method.options(selection=1.0, dampening=0.1)
        method().apply(problem.model, support_data(problem, count), artefact, options, context)
        return int(context.report["parameters_dampened"])

    assert dampened(UnrepairedSSD, 1) == pytest.approx(dampened(SSD, 1), abs=5)  # a batch of one photo is correct
    assert abs(dampened(UnrepairedSSD, 2) - dampened(SSD, 2)) > 100
    batches: list[int] = []

    class Spy(UnrepairedSSD):
        def _importances(self, model: Any, load: Any, positions: Any, options: Any, context: Any) -> Any:
            batches.append(options.chunk)
            return super()._importances(model, load, positions, options, context)

    make_subject(Spy, "chunk=7").apply(problem, make_subject(Spy, "chunk=7").prepare(problem))
    assert batches == [7, len(problem.request)]


# JiT


def test_unrepaired_jit_accumulates_gradients_over_photos(problem: ToyProblem) -> None:
    words = ("lr=0.5", "sigma=0.5", "copies=5")

    def after(method: type[Method[Any]], count: int) -> dict[str, torch.Tensor]:
        return weights(make_subject(method, *words).apply(problem, None, data=support_data(problem, count)))

    original = weights(problem.model)
    assert same(after(UnrepairedJiT, 1), after(JiT, 1))
    one, right, wrong = after(JiT, 1), after(JiT, 2), after(UnrepairedJiT, 2)
    first = {name: one[name] - original[name] for name in original}
    for name in original:  # the second step contains the first one again
        torch.testing.assert_close(wrong[name], right[name] + first[name], rtol=1e-5, atol=1e-6)
    assert sum(first[name].square().sum() for name in first) > 1e-6


def test_unrepaired_jit_uses_much_larger_noise() -> None:
    assert UnrepairedJiT.options().sigma == 30
    assert UnrepairedJiT.all_presets() == {}

"""PGU: covariances against per-row loops, core spaces against an SVD of the inputs, and steps that the training photos do not notice."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from oneshui_hf.data.schema import Task
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import Artefact, Context, DataAccess, Request, losses, norm, parameters, seeded
from oneshui_plugins.common.input_covariance import Covariance, core, covariances, input_rows, outside, projectable
from oneshui_plugins.pgu import PGU, PGUOptions
from support.architectures import classifier

TASKS = {
    "multi_label": Task("multi_label", ("a", "b", "c", "d", "e")),
    "single_label": Task("single_label", ("a", "b", "c", "d", "e")),
}
TASK = TASKS["multi_label"]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def labels_for(count: int, kind: str, dtype: torch.dtype = torch.float64, seed: int = 5) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    if kind == "multi_label":
        return torch.randint(0, 2, (count, 5), generator=draws).to(dtype)
    return torch.randint(0, 5, (count,), generator=draws)


class Photos:
    """A set of photos as a method reads it, in any precision."""

    def __init__(self, pixels: torch.Tensor, labels: torch.Tensor | None = None) -> None:
        self.pixels, self.labels = pixels, labels_for(len(pixels), "multi_label") if labels is None else labels

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, positions: torch.Tensor, device: Any = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        return self.pixels[positions], self.labels[positions]


def context(kind: str = "multi_label", accelerator: Any = None) -> Context:
    return Context(TASKS[kind], 0, accelerator or Accelerator(cpu=True))  # type: ignore[index]


def prepared(model: nn.Module, pixels: torch.Tensor, chunk: int = 3, kind: str = "multi_label") -> Artefact:
    data = DataAccess({"train": Photos(pixels)}, frozenset({"train"}))
    return PGU().prepare(model, data, PGUOptions(chunk=chunk), context(kind))


def applied(
    model: nn.Module, artefact: Artefact, pixels: torch.Tensor, labels: torch.Tensor, kind: str = "multi_label", **options: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """The new model, and the report."""
    here = context(kind)
    data = DataAccess({"support": Request(pixels, (None,) * len(pixels), labels, True)}, frozenset({"support"}))
    return PGU().apply(model, data, artefact, PGUOptions(**options), here), here.report


def found(model: nn.Module, pixels: torch.Tensor, chunk: int = 3, accelerator: Any = None) -> dict[str, Covariance]:
    return covariances(model, len(pixels), lambda some: pixels[some], chunk, context(accelerator=accelerator))


def answer(logits: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(logits=logits)


class Flat(nn.Module):
    """One linear layer on the pixels of photos (3, 2, 2)."""

    def __init__(self) -> None:
        super().__init__()
        with seeded(0, "flat"):
            self.head = nn.Linear(12, 5).double()

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return answer(self.head(pixel_values.flatten(1)))


class Tokens(nn.Module):
    """A small network with a patch embedding, a layer over tokens, a grouped convolution, norms, dropout, and a token of its own."""

    def __init__(self) -> None:
        super().__init__()
        with seeded(0, "tokens"):
            self.patch = nn.Conv2d(3, 8, 4, stride=4)
            self.local = nn.Conv2d(8, 8, 3, padding=1, groups=4)
            self.norm = nn.BatchNorm2d(8)
            self.token = nn.Parameter(torch.randn(8))
            self.mix = nn.Linear(8, 8)
            self.drop = nn.Dropout(0.5)
            self.never, self.aside = nn.Linear(8, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, 5)
        self.double()

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        x = self.norm(self.local(self.patch(pixel_values).tanh()))
        x = self.drop(self.mix(x.flatten(2).mT + self.token))
        self.aside(x)  # as a pooler that the head does not listen to
        return answer(self.head(x.tanh().mean(1)))


def low_rank(count: int, rank: int, shape: tuple[int, ...] = (3, 2, 2)) -> torch.Tensor:
    """Photos that lie in a space of few dimensions."""
    basis = noise(rank, int(torch.tensor(shape).prod()), seed=1)
    return (noise(count, rank, seed=2) @ basis).unflatten(1, shape)


# The subspace


def test_the_core_space_is_the_smallest_that_reaches_gamma() -> None:
    turn = torch.linalg.qr(noise(4, 4)).Q
    covariance = (turn @ torch.diag(torch.tensor([5.0, 3.0, 1.5, 0.5]).double()) @ turn.mT).unsqueeze(0)
    for gamma, size in ((0.0, 0), (0.3, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.94, 3), (0.96, 4), (1.0, 4)):
        basis = core(covariance, gamma)[0]
        assert basis.shape == (4, size), gamma
        torch.testing.assert_close(basis @ basis.mT, turn[:, :size] @ turn[:, :size].mT, rtol=0, atol=1e-12)


def test_the_projector_is_idempotent_and_symmetric_and_its_complement_kills_what_is_in_the_core_space() -> None:
    rows = noise(40, 3) @ noise(3, 9, seed=1)  # 3 of 9 dimensions
    basis = core((rows.mT @ rows).unsqueeze(0), 1 - 1e-9)
    assert basis.shape == (1, 9, 3)
    projector = (basis @ basis.mT)[0]
    torch.testing.assert_close(projector @ projector, projector, rtol=0, atol=1e-12)
    torch.testing.assert_close(projector, projector.mT, rtol=0, atol=1e-15)
    gradient = noise(4, 9, seed=3)
    step = outside(gradient, basis)
    assert (step @ rows.mT).abs().max() < 1e-12
    assert (gradient @ rows.mT).abs().max() > 1
    # Against a projector that is computed from the rows themselves.
    v = torch.linalg.svd(rows, full_matrices=False).Vh[:3]
    torch.testing.assert_close(step, gradient - gradient @ v.mT @ v, rtol=0, atol=1e-12)


def test_a_layer_without_energy_protects_nothing() -> None:
    basis = core(torch.zeros(2, 3, 3), 0.9)
    assert basis.shape == (2, 3, 0)
    gradient = noise(4, 3, 1, 1)
    assert torch.equal(outside(gradient, basis), gradient)


# The covariances


def direct(rows: list[torch.Tensor]) -> torch.Tensor:
    """Mean of x x^T, row by row."""
    return sum((torch.outer(x, x) for x in rows), torch.zeros(len(rows[0]), len(rows[0]), dtype=rows[0].dtype)) / len(rows)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100])
def test_the_streamed_covariance_is_the_direct_one_for_any_chunk(chunk: int) -> None:
    model, pixels = Tokens().eval(), noise(7, 3, 8, 8)
    streamed = found(model, pixels, chunk)
    with torch.no_grad():
        patches = [pixels[i, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].flatten() for i in range(7) for y in range(2) for x in range(2)]
        maps = model.patch(pixels).tanh()
        tokens = model.norm(model.local(maps)).flatten(2).mT + model.token
        features = model.mix(tokens).tanh().mean(1)
    expected = {"patch.weight": patches, "mix.weight": list(tokens.flatten(0, 1)), "head.weight": list(features)}
    for name, rows in expected.items():
        assert streamed[name].rows == len(rows)
        torch.testing.assert_close(streamed[name].matrix, direct(rows).unsqueeze(0), rtol=1e-12, atol=1e-12)
    # Of the grouped convolution, each group from its own two channels, padded by a ring of zeros.
    padded = F.pad(maps, (1, 1, 1, 1))
    for group in range(4):
        rows = [padded[i, 2 * group : 2 * group + 2, y : y + 3, x : x + 3].flatten() for i in range(7) for y in range(2) for x in range(2)]
        torch.testing.assert_close(streamed["local.weight"].matrix[group], direct(rows), rtol=1e-12, atol=1e-12)
    assert streamed["local.weight"].rows == 28


def test_in_float32_the_sums_do_not_drift() -> None:
    """Many small rows after large ones: a float32 sum would lose them."""
    model, pixels = Flat().float(), torch.cat([torch.full((1, 3, 2, 2), 3e3), torch.full((400, 3, 2, 2), 0.3)])
    covariance = found(model, pixels, 1)["head.weight"]
    exact = (9e6 + 400 * 0.09) / 401
    assert covariance.matrix[0, 0, 0].item() == pytest.approx(exact, rel=1e-7)
    drifted = torch.tensor(9e6)  # the wrong version
    for _ in range(400):
        drifted = drifted + 0.09
    assert abs(drifted.item() / 401 / exact - 1) > 1e-6


def test_a_layer_that_met_no_row_has_no_covariance() -> None:
    assert set(projectable(Tokens())) - set(found(Tokens(), noise(2, 3, 8, 8))) == {"never.weight"}


CONVOLUTIONS = [
    {},
    {"stride": 2},
    {"stride": (2, 1), "padding": (1, 2)},
    {"dilation": 2, "padding": 2},
    {"groups": 2},
    {"groups": 6, "padding": 1},
    {"padding": "same", "dilation": (1, 2), "kernel_size": (2, 3)},
    {"padding": 1, "padding_mode": "reflect", "groups": 3, "stride": 2},
    {"padding": "valid", "kernel_size": (1, 4), "stride": (1, 4)},
]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_a_convolution_is_its_weight_times_its_rows(options: dict[str, Any]) -> None:
    with seeded(0, "conv"):
        layer = nn.Conv2d(6, 12, **{"kernel_size": 3, **options}).double()
    x = noise(2, 6, 9, 10)
    rows = input_rows(layer, x)
    g, n, d = rows.shape
    assert (g, d) == (layer.groups, layer.weight[0].numel())
    y = layer(x)
    said = (rows @ layer.weight.view(g, -1, d).mT).unflatten(1, (2, -1))  # (g, b, places, out / g)
    said = said.permute(1, 0, 3, 2).reshape(y.shape) + layer.bias.view(-1, 1, 1)
    assert n == 2 * y[0, 0].numel()
    torch.testing.assert_close(said, y, rtol=0, atol=1e-12)


def stride_one(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """The wrong version: patches at every place, whatever the layer's stride."""
    return F.unfold(x, layer.kernel_size).mT.reshape(1, -1, layer.weight[0].numel())


def test_patches_are_taken_at_the_layers_own_stride() -> None:
    layer = Tokens().patch
    tile = noise(3, 4, 4)
    x = torch.cat([a * tile.repeat(1, 4, 4).unsqueeze(0) for a in (1.0, -2.0, 0.5)])  # every patch is a multiple of one
    right, wrong = (rows.mT @ rows for rows in (input_rows(layer, x), stride_one(layer, x)))
    assert core(right, 0.9999).shape[-1] == 1
    assert core(wrong, 0.9999).shape[-1] == 16  # shifted patches, which the layer never sees, are protected, too


def test_processes_share_the_photos_and_add_up() -> None:
    pixels, model = noise(7, 3, 8, 8), Tokens()
    whole = found(model, pixels, 2)

    def share(index: int, count: int) -> dict[str, Covariance]:
        fake = SimpleNamespace(process_index=index, num_processes=count, device=torch.device("cpu"), reduce=lambda t, how: t)
        return found(model, pixels, 2, fake)

    for count in (2, 3, 6):  # six processes, four chunks
        parts = [share(index, count) for index in range(count)]
        for name, covariance in whole.items():
            mine = [part[name] for part in parts if name in part]
            assert len(mine) == min(count, 4)
            assert sum(c.rows for c in mine) == covariance.rows
            total = sum(c.matrix * c.rows for c in mine) / covariance.rows
            torch.testing.assert_close(total, covariance.matrix, rtol=1e-12, atol=1e-12)


# Weights that several uses share


class Twice(nn.Module):
    """One layer used twice in a pass, and another one that is tied to it."""

    def __init__(self) -> None:
        super().__init__()
        with seeded(0, "twice"):
            self.first, self.tied, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 5)
        self.tied.weight = self.first.weight
        self.double()

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        x = pixel_values.flatten(1)
        return answer(self.head(self.tied(self.first(self.first(x).tanh()).tanh()).tanh()))


def test_a_shared_weight_is_protected_at_every_use() -> None:
    model, train = Twice(), low_rank(2, 2)
    assert {name: len(layers) for name, layers in projectable(model).items()} == {"first.weight": 2, "head.weight": 1}
    with torch.no_grad():
        one = train.flatten(1)
        two = model.first(one).tanh()
        three = model.first(two).tanh()
    covariance = found(model, train)["first.weight"]
    assert covariance.rows == 6
    torch.testing.assert_close(covariance.matrix[0], direct([*one, *two, *three]), rtol=1e-12, atol=1e-12)
    new, _ = applied(model, prepared(model, train), noise(3, 3, 2, 2), labels_for(3, "multi_label"), gamma=1 - 1e-9)
    assert new.tied.weight is new.first.weight
    assert (new.first.weight - model.first.weight).abs().max() > 1e-4
    torch.testing.assert_close(new(train).logits, model(train).logits, rtol=0, atol=1e-10)


def test_layers_of_another_arithmetic_are_left_out() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, self.weight / self.weight.norm(), self.bias)

    class Named(nn.Linear):
        """Only another name."""

    reparametrised = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    model = nn.Sequential(Scaled(4, 4), Named(4, 4), reparametrised, nn.Conv1d(4, 4, 1))
    assert set(projectable(model)) == {"1.weight"}


# The method


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
@pytest.mark.parametrize("model", [Flat(), Twice()], ids=["flat", "deep"])
def test_what_lies_in_the_core_space_keeps_its_answers_while_the_loss_of_the_support_rises(model: nn.Module, kind: str) -> None:
    train, support, labels = low_rank(2, 2), noise(4, 3, 2, 2), labels_for(4, kind)
    new, report = applied(model, prepared(model, train), support, labels, kind, gamma=1 - 1e-9, lr=0.5)
    kept = noise(5, 2, seed=8) @ train.flatten(1) if isinstance(model, Flat) else train.flatten(1)
    kept = kept.unflatten(1, (3, 2, 2))  # of one linear layer, whatever the training photos span
    with torch.no_grad():
        torch.testing.assert_close(new(kept).logits, model(kept).logits, rtol=0, atol=1e-10)
        before, after = (losses(m(support).logits, labels, kind).mean().item() for m in (model, new))
    assert after > before + 0.01
    assert 0 < report["core_share"] < 1
    # Without the projection they would change: the same steps with an empty core space.
    bare, _ = applied(model, prepared(model, train), support, labels, kind, gamma=0, lr=0.5)
    assert (bare(kept).logits - model(kept).logits).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_a_step_is_the_gradient_less_its_part_in_the_core_space(kind: str) -> None:
    model, train, support, labels = Flat(), noise(30, 3, 2, 2), noise(3, 3, 2, 2, seed=4), labels_for(3, kind)
    new, report = applied(model, prepared(model, train), support, labels, kind, gamma=0.5, lr=0.3, epochs=1)
    energies, vectors = torch.linalg.svd(train.flatten(1), full_matrices=False)[1:]
    shares = (energies**2).cumsum(0) / (energies**2).sum()
    v = vectors[: int((shares < 0.5).sum()) + 1]
    # The gradient in closed form: (sigmoid - y) x^T / K or (softmax - y) x^T, mean over the photos.
    x = support.flatten(1)
    logits = x @ model.head.weight.mT + model.head.bias
    error = (logits.sigmoid() - labels) / 5 if kind == "multi_label" else logits.softmax(1) - F.one_hot(labels, 5)
    gradient = sum(torch.outer(error[i], x[i]) for i in range(3)) / 3
    expected = model.head.weight + 0.3 * (gradient - gradient @ v.mT @ v)
    torch.testing.assert_close(new.head.weight, expected, rtol=0, atol=1e-12)
    assert report["core_share"] == pytest.approx(len(v) / 12)
    assert report["step_length"] == pytest.approx((expected - model.head.weight).norm().item())


def test_photos_beyond_a_batch_take_their_turns_in_order() -> None:
    model, train, support, labels = Flat(), noise(5, 3, 2, 2), noise(5, 3, 2, 2, seed=4), labels_for(5, "multi_label")
    artefact = prepared(model, train)
    at_once, _ = applied(model, artefact, support, labels, epochs=2, batch_size=2)
    one = model
    for _ in range(2):
        for first in (0, 2, 4):
            some = slice(first, first + 2)
            one, _ = applied(one, artefact, support[some], labels[some], epochs=1)
    assert torch.equal(one.head.weight, at_once.head.weight)


def by_class_number(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The wrong version: 0/1 vectors taken as class numbers."""
    return -F.logsigmoid(logits).gather(1, labels.long()).mean()


def test_every_attribute_is_forgotten_not_the_first_two_alone() -> None:
    model, support, labels = Flat(), noise(3, 3, 2, 2, seed=4), labels_for(3, "multi_label")
    new, _ = applied(model, prepared(model, low_rank(6, 2)), support, labels)
    moved = (new.head.weight - model.head.weight).abs().amax(1)
    assert (moved > 1e-4).all()
    (wrong,) = torch.autograd.grad(by_class_number(model(support).logits, labels), [model.head.weight])
    assert (wrong.abs().amax(1) > 0).tolist() == [True, True, False, False, False]


def test_what_has_no_core_space_does_not_move() -> None:
    model = Tokens().eval()
    new, _ = applied(model, prepared(model, noise(9, 3, 8, 8)), noise(2, 3, 8, 8, seed=3), labels_for(2, "multi_label"))
    moved = {name for name, value in new.state_dict().items() if not torch.equal(value, model.state_dict()[name])}
    assert moved == {"patch.weight", "local.weight", "mix.weight", "head.weight"}


class Grouped(nn.Module):
    """A grouped or depthwise convolution of photos with 12 channels."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        with seeded(0, "grouped"):
            self.local, self.head = nn.Conv2d(12, 12, 3, groups=groups), nn.Linear(12, 5)
        self.double()

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return answer(self.head(self.local(pixel_values).amax((2, 3))))


@pytest.mark.parametrize("groups", [1, 3, 12])
def test_a_grouped_convolution_keeps_its_answers_group_by_group(groups: int) -> None:
    model = Grouped(groups)
    # Each channel has a direction or two of its own, and the last channels none at all: other sizes in other groups.
    train = torch.stack([torch.outer(noise(3, seed=c), noise(3, seed=50 + c)) * (c < 8) for c in range(12)]).unsqueeze(0)
    train = torch.cat([train, train * (torch.arange(12) % 2).view(12, 1, 1)])
    artefact = prepared(model, train)
    ranks = core(artefact.tensors["local.weight"], 1 - 1e-9).square().sum((1, 2)).round().tolist()
    assert ranks == {1: [2], 3: [2, 2, 0], 12: [1.0] * 8 + [0] * 4}[groups]
    new, _ = applied(model, artefact, noise(2, 12, 3, 3, seed=9), labels_for(2, "multi_label"), gamma=1 - 1e-9)
    assert (new.local.weight - model.local.weight).abs().max() > 1e-4
    torch.testing.assert_close(new.local(train), model.local(train), rtol=0, atol=1e-12)
    torch.testing.assert_close(new(train).logits, model(train).logits, rtol=0, atol=1e-12)


def test_gamma_is_chosen_when_somebody_asks() -> None:
    model, support, labels = Flat(), noise(2, 3, 2, 2, seed=4), labels_for(2, "multi_label")
    artefact = prepared(model, noise(40, 3, 2, 2))
    shares, lengths = [], []
    for gamma in (0.2, 0.5, 0.9):
        _, report = applied(model, artefact, support, labels, gamma=gamma)
        shares.append(report["core_share"])
        lengths.append(report["step_length"])
    assert shares == sorted(set(shares))
    assert lengths == sorted(set(lengths), reverse=True)
    PGU.apply_options("pgu", {"gamma": 0.9}, {"gamma": 0.5, "subtract": True, "lr": 0.2, "epochs": 1, "batch_size": 4})
    with pytest.raises(UsageError, match="--chunk of method 'pgu' is fixed when preparing"):
        PGU.apply_options("pgu", {"gamma": 0.9}, {"chunk": 4})


def test_photos_that_use_every_direction_leave_none() -> None:
    model = Flat()
    artefact = prepared(model, noise(40, 3, 2, 2))
    with pytest.raises(UsageError, match="With --gamma 1 the training photos use every direction, so nothing can move"):
        applied(model, artefact, noise(1, 3, 2, 2), labels_for(1, "multi_label"), gamma=1.0)


def test_steps_that_leave_all_bounds_are_refused() -> None:
    model = Twice()
    with pytest.raises(OneshuiError, match="take a smaller --lr"):
        applied(model, prepared(model, low_rank(4, 2)), noise(1, 3, 2, 2), labels_for(1, "multi_label"), lr=1e308, epochs=9)


# Subtracting what was handed in


def test_subtracting_rows_that_were_among_them_leaves_the_others() -> None:
    model, pixels = Flat(), noise(20, 3, 2, 2)
    rest = found(model, pixels)["head.weight"].less(found(model, pixels[15:])["head.weight"])
    torch.testing.assert_close(rest * 20 / 15, found(model, pixels[:15])["head.weight"].matrix, rtol=1e-12, atol=1e-12)


def unclipped(covariance: torch.Tensor, gamma: float) -> torch.Tensor:
    """The wrong version: negative energies count."""
    energies, vectors = torch.linalg.eigh(covariance)
    energies, vectors = energies.flip(-1), vectors.flip(-1)
    needed = energies.cumsum(-1) - energies < gamma * energies.sum(-1)
    return vectors[..., : int(needed.sum())]


def test_subtracting_rows_that_were_not_among_them_still_protects_the_training_photos() -> None:
    train, unseen = torch.eye(4).double()[:2].repeat(5, 1), torch.eye(4).double()[2:3] * 9  # the unseen row lies elsewhere, and is long
    known, other = (Covariance((x.mT @ x / len(x)).unsqueeze(0), len(x)) for x in (train, unseen))
    rest = known.less(other)
    assert torch.linalg.eigvalsh(rest).min() < 0
    basis = core(rest, 0.9)
    projector = (basis @ basis.mT)[0]
    torch.testing.assert_close(train @ projector, train, rtol=0, atol=1e-12)
    # What is left, with zero for the negative eigenvalues, is positive semi-definite: energy of the core space lies between 0 and all.
    energy = (projector @ rest[0] @ projector).trace() / torch.linalg.eigvalsh(rest).clamp(min=0).sum()
    assert 0.9 <= energy <= 1 + 1e-12
    assert unclipped(rest[0], 0.9).shape[-1] == 0  # the total is negative, so nothing is protected


def test_subtracting_frees_the_directions_of_the_photos_handed_in() -> None:
    model, train = Flat(), torch.eye(12).double()[:3].repeat(4, 1).unflatten(1, (3, 2, 2))
    support, labels = train[:1] * 2, labels_for(1, "multi_label")  # four times the energy: all that there is in this direction
    artefact = prepared(model, train)
    kept, with_all = applied(model, artefact, support, labels)
    freed, with_less = applied(model, artefact, support, labels, subtract=True)
    assert with_all["core_share"] == pytest.approx(3 / 12)
    assert with_less["core_share"] == pytest.approx(2 / 12)
    torch.testing.assert_close(kept(support).logits, model(support).logits, rtol=0, atol=1e-12)
    assert losses(freed(support).logits, labels, "multi_label") > losses(model(support).logits, labels, "multi_label") + 0.01
    torch.testing.assert_close(freed(train[1:3]).logits, model(train[1:3]).logits, rtol=0, atol=1e-12)


# As a plugin


def test_the_preset_has_the_values_of_the_paper() -> None:
    few, many = (PGU.prepare_options("pgu", PGU.preset("paper", "celeba", people), {}) for people in (5, 200))
    assert (few.gamma, few.lr, few.epochs, few.subtract) == (0.9, 0.1, 5, True)
    assert (many.gamma, many.lr, many.epochs, many.subtract) == (0.75, 0.01, 10, True)
    assert (PGUOptions().gamma, PGUOptions().lr, PGUOptions().epochs, PGUOptions().subtract) == (0.9, 0.1, 5, False)


@pytest.mark.parametrize("training", [False, True])
def test_the_model_handed_in_stays_as_it_is_and_the_same_seed_gives_the_same_bytes(training: bool) -> None:
    model = Tokens().train(training)
    before, state, calls = copy.deepcopy(model.state_dict()), torch.get_rng_state(), []
    for _ in range(2):
        artefact = prepared(model, noise(9, 3, 8, 8))
        new, _ = applied(model, artefact, noise(2, 3, 8, 8, seed=3), labels_for(2, "multi_label"), subtract=True)
        calls.append((artefact.tensors, new.state_dict()))
        assert new.training == training
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert model.training == training
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_pre_hooks for module in [*model.modules(), *new.modules()])
    for one, two in zip(*calls, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
@pytest.mark.parametrize("name", ["vit", "dinov2", "swin", "convnext", "resnet"])
def test_any_architecture_forgets_the_support_and_training_photos_notice_less(name: str, kind: str) -> None:
    model = classifier(name, kind)
    train, support = noise(12, 3, 32, 32, dtype=torch.float32), noise(3, 3, 32, 32, seed=6, dtype=torch.float32)
    labels = labels_for(3, kind, torch.float32)
    artefact = prepared(model, train, kind=kind)
    assert set(artefact.tensors) == set(projectable(model))
    new, report = applied(model, artefact, support, labels, kind, gamma=0.99, lr=0.01)
    with torch.no_grad():
        before, after = (losses(m(support).logits, labels, kind).mean().item() for m in (model, new))
    assert after > before
    # Per weight: a step of the same length without the projection changes more of what the layers say of the training photos.
    bare, _ = applied(model, artefact, support, labels, kind, gamma=0.0, lr=0.01)
    noticed = [noticing(model, m, artefact) for m in (new, bare)]
    assert noticed[0] < 0.7 * noticed[1]
    assert 0 < report["core_share"] < 1


def noticing(old: nn.Module, new: nn.Module, artefact: Artefact) -> float:
    """Sum over layers of the root mean square of dW x over the training rows, for steps scaled to length 1: sqrt(tr dW C dW^T)."""
    a, b = parameters(old), parameters(new)
    step = {name: b[name] - a[name] for name in artefact.tensors}
    total = 0.0
    for name, matrix in artefact.tensors.items():
        d = step[name].reshape(len(matrix), -1, matrix.shape[1])
        total += (d @ matrix @ d.mT).diagonal(dim1=-2, dim2=-1).sum().clamp(min=0).sqrt().item()
    return total / norm(step).item()

"""Input covariances against per-row loops, and core spaces against an SVD of the inputs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from oneshui_hf.methods import seeded
from oneshui_plugins.common.input_covariance import Covariance, core_space, input_rows, project_out, projectable_layers
from support.projection_models import Flat, Tokens, covariances_of, mean_outer_product, noise

# The core space


def test_the_core_space_is_the_smallest_that_reaches_gamma() -> None:
    q = torch.linalg.qr(noise(4, 4)).Q
    covariance = (q @ torch.diag(torch.tensor([5.0, 3.0, 1.5, 0.5]).double()) @ q.mT).unsqueeze(0)
    for gamma, size in ((0.0, 0), (0.3, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.94, 3), (0.96, 4), (1.0, 4)):
        basis = core_space(covariance, gamma)[0]
        assert basis.shape == (4, size), gamma
        torch.testing.assert_close(basis @ basis.mT, q[:, :size] @ q[:, :size].mT, rtol=0, atol=1e-12)


def test_the_projector_is_idempotent_and_symmetric_and_the_step_vanishes_on_the_core_space() -> None:
    rows = noise(40, 3) @ noise(3, 9, seed=1)  # 3 of 9 dimensions
    basis = core_space((rows.mT @ rows).unsqueeze(0), 1 - 1e-9)
    assert basis.shape == (1, 9, 3)
    projector = (basis @ basis.mT)[0]
    torch.testing.assert_close(projector @ projector, projector, rtol=0, atol=1e-12)
    torch.testing.assert_close(projector, projector.mT, rtol=0, atol=1e-15)
    gradient = noise(4, 9, seed=3)
    step = project_out(gradient, basis)
    assert (step @ rows.mT).abs().max() < 1e-12
    assert (gradient @ rows.mT).abs().max() > 1
    # The same with a projector that is computed from the rows themselves.
    v = torch.linalg.svd(rows, full_matrices=False).Vh[:3]
    torch.testing.assert_close(step, gradient - gradient @ v.mT @ v, rtol=0, atol=1e-12)


def test_a_layer_with_zero_input_has_an_empty_core_space() -> None:
    basis = core_space(torch.zeros(2, 3, 3), 0.9)
    assert basis.shape == (2, 3, 0)
    gradient = noise(4, 3, 1, 1)
    assert torch.equal(project_out(gradient, basis), gradient)


# The covariances


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100])
def test_the_streamed_covariance_equals_the_direct_one_for_any_chunk(chunk: int) -> None:
    model, pixels = Tokens().eval(), noise(7, 3, 8, 8)
    streamed = covariances_of(model, pixels, chunk)
    with torch.no_grad():
        patches = [pixels[i, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].flatten() for i in range(7) for y in range(2) for x in range(2)]
        maps = model.patch(pixels).tanh()
        tokens = model.norm(model.local(maps)).flatten(2).mT + model.token
        features = model.mix(tokens).tanh().mean(1)
    expected = {"patch.weight": patches, "mix.weight": list(tokens.flatten(0, 1)), "head.weight": list(features)}
    for name, rows in expected.items():
        assert streamed[name].num_rows == len(rows)
        torch.testing.assert_close(streamed[name].matrix, mean_outer_product(rows).unsqueeze(0), rtol=1e-12, atol=1e-12)
    # Grouped convolution: each group uses its own two channels, padded with zeros.
    padded = F.pad(maps, (1, 1, 1, 1))
    for group in range(4):
        rows = [padded[i, 2 * group : 2 * group + 2, y : y + 3, x : x + 3].flatten() for i in range(7) for y in range(2) for x in range(2)]
        torch.testing.assert_close(streamed["local.weight"].matrix[group], mean_outer_product(rows), rtol=1e-12, atol=1e-12)
    assert streamed["local.weight"].num_rows == 28


def test_sums_over_float32_rows_do_not_lose_precision() -> None:
    """Small rows after a large one would be lost in a float32 sum."""
    model, pixels = Flat().float(), torch.cat([torch.full((1, 3, 2, 2), 3e3), torch.full((400, 3, 2, 2), 0.3)])
    covariance = covariances_of(model, pixels, 1)["head.weight"]
    exact = (9e6 + 400 * 0.09) / 401
    assert covariance.matrix[0, 0, 0].item() == pytest.approx(exact, rel=1e-7)
    imprecise = torch.tensor(9e6)  # the wrong version
    for _ in range(400):
        imprecise = imprecise + 0.09
    assert abs(imprecise.item() / 401 / exact - 1) > 1e-6


def test_a_layer_without_input_rows_has_no_covariance() -> None:
    assert set(projectable_layers(Tokens())) - set(covariances_of(Tokens(), noise(2, 3, 8, 8))) == {"never_used.weight"}


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
def test_a_convolution_equals_its_weight_times_its_input_rows(options: dict[str, Any]) -> None:
    with seeded(0, "conv"):
        layer = nn.Conv2d(6, 12, **{"kernel_size": 3, **options}).double()
    x = noise(2, 6, 9, 10)
    rows = input_rows(layer, x)
    g, n, d = rows.shape
    assert (g, d) == (layer.groups, layer.weight[0].numel())
    y = layer(x)
    output = (rows @ layer.weight.view(g, -1, d).mT).unflatten(1, (2, -1))  # (g, b, patches, out / g)
    output = output.permute(1, 0, 3, 2).reshape(y.shape) + layer.bias.view(-1, 1, 1)
    assert n == 2 * y[0, 0].numel()
    torch.testing.assert_close(output, y, rtol=0, atol=1e-12)


def stride_one(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """The wrong version: patches with stride 1, whatever the layer's stride."""
    return F.unfold(x, layer.kernel_size).mT.reshape(1, -1, layer.weight[0].numel())


def test_patches_use_the_stride_of_the_layer() -> None:
    layer = Tokens().patch
    tile = noise(3, 4, 4)
    x = torch.cat([a * tile.repeat(1, 4, 4).unsqueeze(0) for a in (1.0, -2.0, 0.5)])  # every patch is a multiple of one
    right, wrong = (rows.mT @ rows for rows in (input_rows(layer, x), stride_one(layer, x)))
    assert core_space(right, 0.9999).shape[-1] == 1
    assert core_space(wrong, 0.9999).shape[-1] == 16  # shifted patches, which are not inputs of the layer, are protected too


def test_processes_share_the_photos_and_add_their_sums() -> None:
    pixels, model = noise(7, 3, 8, 8), Tokens()
    expected = covariances_of(model, pixels, 2)

    def share(index: int, count: int) -> dict[str, Covariance]:
        fake = SimpleNamespace(process_index=index, num_processes=count, device=torch.device("cpu"), reduce=lambda t, how: t)
        return covariances_of(model, pixels, 2, fake)

    for count in (2, 3, 6):  # six processes, four chunks
        parts = [share(index, count) for index in range(count)]
        for name, covariance in expected.items():
            shares = [part[name] for part in parts if name in part]
            assert len(shares) == min(count, 4)
            assert sum(c.num_rows for c in shares) == covariance.num_rows
            total = sum(c.matrix * c.num_rows for c in shares) / covariance.num_rows
            torch.testing.assert_close(total, covariance.matrix, rtol=1e-12, atol=1e-12)


def test_layers_with_another_forward_are_left_out() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, self.weight / self.weight.norm(), self.bias)

    class Named(nn.Linear):
        """Only the class name differs."""

    reparametrised = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    model = nn.Sequential(Scaled(4, 4), Named(4, 4), reparametrised, nn.Conv1d(4, 4, 1))
    assert set(projectable_layers(model)) == {"1.weight"}


# Subtracting rows


def test_subtracting_contained_rows_leaves_the_others() -> None:
    model, pixels = Flat(), noise(20, 3, 2, 2)
    remainder = covariances_of(model, pixels)["head.weight"].minus(covariances_of(model, pixels[15:])["head.weight"])
    torch.testing.assert_close(remainder * 20 / 15, covariances_of(model, pixels[:15])["head.weight"].matrix, rtol=1e-12, atol=1e-12)


def unclipped(covariance: torch.Tensor, gamma: float) -> torch.Tensor:
    """The wrong version: negative energies are included."""
    energies, vectors = torch.linalg.eigh(covariance)
    energies, vectors = energies.flip(-1), vectors.flip(-1)
    needed = energies.cumsum(-1) - energies < gamma * energies.sum(-1)
    return vectors[..., : int(needed.sum())]


def test_subtracting_other_rows_still_protects_the_training_photos() -> None:
    train, unseen = (
        torch.eye(4).double()[:2].repeat(5, 1),
        torch.eye(4).double()[2:3] * 9,
    )  # the unseen row is orthogonal, with a larger norm
    known, other = (Covariance((x.mT @ x / len(x)).unsqueeze(0), len(x)) for x in (train, unseen))
    remainder = known.minus(other)
    assert torch.linalg.eigvalsh(remainder).min() < 0
    basis = core_space(remainder, 0.9)
    projector = (basis @ basis.mT)[0]
    torch.testing.assert_close(train @ projector, train, rtol=0, atol=1e-12)
    # With negative eigenvalues set to zero the remainder is positive semi-definite: the core space has 0 to 100 % of its energy.
    energy = (projector @ remainder[0] @ projector).trace() / torch.linalg.eigvalsh(remainder).clamp(min=0).sum()
    assert 0.9 <= energy <= 1 + 1e-12
    assert unclipped(remainder[0], 0.9).shape[-1] == 0  # the total is negative, so the core space is empty

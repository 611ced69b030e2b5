"""SVD projection: scaled retain and forget spaces, and the weights without what the forget space has alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import Artefact, DataAccess, Request, seeded
from oneshui_plugins.common.input_covariance import input_rows, projectable_layers
from oneshui_plugins.svd_projection import SVDProjection, SVDProjectionOptions, remove_discriminatory, scaled_projection
from support.architectures import classifier
from support.projection_models import Flat, Tokens, context, labels_for, low_rank, noise


class Photos:
    """A set of photos with the interface that methods use."""

    def __init__(self, pixels: torch.Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, positions: torch.Tensor, device: Any = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        return self.pixels[positions], positions


def prepare(model: nn.Module, pixels: torch.Tensor, chunk: int = 3) -> Artefact:
    data = DataAccess({"train": Photos(pixels)}, frozenset({"train"}))
    return SVDProjection().prepare(model, data, SVDProjectionOptions(chunk=chunk), context())


def apply(model: nn.Module, artefact: Artefact, pixels: torch.Tensor, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Return the new model and the report."""
    ctx, labels = context(), labels_for(len(pixels), "multi_label")
    data = DataAccess({"support": Request(pixels, (None,) * len(pixels), labels, True)}, frozenset({"support"}))
    return SVDProjection().apply(model, data, artefact, SVDProjectionOptions(**options), ctx), ctx.report


def projection_by_svd(rows: np.ndarray, alpha: float) -> np.ndarray:
    """P = U diag(lambda) U^T from the singular value decomposition of the inputs, one column each."""
    u, s, _ = np.linalg.svd(rows.T, full_matrices=True)
    share = np.zeros(len(u))
    share[: len(s)] = s**2 / (s**2).sum()
    scaled = alpha * share / ((alpha - 1) * share + 1)
    return u @ np.diag(scaled) @ u.T


@pytest.mark.parametrize("alpha", [0.3, 1.0, 30.0, 1e5])
@pytest.mark.parametrize("count", [4, 40])
def test_the_projection_is_that_of_the_decomposition(alpha: float, count: int) -> None:
    rows = noise(count, 12) * torch.linspace(0.1, 3, 12)
    found = scaled_projection((rows.mT @ rows / count).unsqueeze(0), alpha)[0]
    np.testing.assert_allclose(found.numpy(), projection_by_svd(rows.numpy(), alpha), rtol=0, atol=1e-9)


def test_importance_is_between_0_and_1_and_the_scale_does_not_matter() -> None:
    covariance = torch.diag(torch.tensor([8.0, 1.0, 1.0, 0.0])).unsqueeze(0)
    for alpha in (1.0, 10.0, 1e6):
        expected = torch.tensor([0.8, 0.1, 0.1, 0.0]).double()
        expected = alpha * expected / ((alpha - 1) * expected + 1)
        for scale in (1.0, 1e-5):
            torch.testing.assert_close(scaled_projection(scale * covariance, alpha)[0], torch.diag(expected), rtol=1e-5, atol=1e-9)
    assert not scaled_projection(torch.zeros(2, 3, 3), 5.0).any()  # inputs that are zero


@pytest.mark.parametrize(("retain_alpha", "forget_alpha"), [(100.0, 10.0), (1.0, 3.0)])
def test_a_linear_layer_is_projected_by_the_formula_of_the_paper(retain_alpha: float, forget_alpha: float) -> None:
    model, train, support = Flat(), noise(9, 3, 2, 2) * torch.linspace(0.2, 2, 2), noise(2, 3, 2, 2, seed=4)
    new, report = apply(model, prepare(model, train), support, retain_alpha=retain_alpha, forget_alpha=forget_alpha)
    p_r, p_f = (projection_by_svd(x.flatten(1).numpy(), alpha) for x, alpha in ((train, retain_alpha), (support, forget_alpha)))
    w, identity = model.head.weight.detach().numpy(), np.eye(12)
    expected = w @ (identity - p_f @ (identity - p_r)).T
    np.testing.assert_allclose(new.head.weight.detach().numpy(), expected, rtol=0, atol=1e-10)
    assert report["step_length"] == pytest.approx(np.linalg.norm(expected - w))
    assert torch.equal(new.head.bias, model.head.bias)
    # The wrong versions: without the transpose, without the retain space, or removing what both spaces share.
    for wrong in (p_f @ (identity - p_r).T @ identity, p_f.T, (p_f @ p_r).T):
        assert np.abs(w @ (identity - wrong) - expected).max() > 1e-3


def test_what_training_photos_use_is_kept_and_what_only_the_support_images_use_is_removed() -> None:
    train, own = torch.eye(12).double()[:3], torch.eye(12).double()[5:6]
    model, support = Flat(), (own + train[:1]).unflatten(1, (3, 2, 2))
    new, _ = apply(model, prepare(model, train.unflatten(1, (3, 2, 2))), support, retain_alpha=1e6, forget_alpha=100.0)
    with torch.no_grad():
        change = new.head.weight - model.head.weight
        # Along the training photos' shared direction and others of theirs nothing changes, up to 1 / alpha_r.
        assert (change @ train[1:].mT).abs().max() < 1e-5
        removed = -(change @ own[0]) / (model.head.weight @ (own + train[:1])[0] / 2)
    # P_f is lambda / 2 [[1, 1], [1, 1]] in the two directions of the photo, of which P_r keeps the training photos' one.
    assert change[:, 5].abs().max() > 0.01
    assert removed.isfinite().all()
    unprotected, _ = apply(model, prepare(model, train.unflatten(1, (3, 2, 2))), support, retain_alpha=1e-6, forget_alpha=100.0)
    torch.testing.assert_close(unprotected(support).logits, model.head.bias.expand(1, -1), rtol=0, atol=1e-3)


def test_every_use_of_every_layer_counts_and_other_parameters_stay() -> None:
    model, train, support = Tokens().eval(), noise(5, 3, 8, 8), noise(2, 3, 8, 8, seed=3)
    new, _ = apply(model, prepare(model, train), support)
    changed = {name for name, value in new.state_dict().items() if not torch.equal(value, model.state_dict()[name])}
    assert changed == {"patch.weight", "local.weight", "mix.weight", "head.weight", "unused_output.weight"}
    # The patches of a convolution, by an independent path.
    layer = projectable_layers(model)["patch.weight"][0]
    rows = [input_rows(layer, x)[0].numpy() for x in (train, support)]
    p_r, p_f = projection_by_svd(rows[0], 100.0), projection_by_svd(rows[1], 10.0)
    w = model.patch.weight.detach().flatten(1).numpy()
    expected = w - w @ (p_f - p_f @ p_r).T
    np.testing.assert_allclose(new.patch.weight.detach().flatten(1).numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("groups", [3, 12])
def test_a_grouped_convolution_is_projected_group_by_group(groups: int) -> None:
    with seeded(0, "grouped"):
        weight = torch.randn(12, 12 // groups, 3, 3).double()
    d = 12 // groups * 9
    spaces = [noise(groups, d + 2, d, seed=seed) for seed in (1, 2)]
    retain, forget = (scaled_projection(x.mT @ x, 4.0) for x in spaces)
    found = remove_discriminatory(weight, retain, forget).reshape(groups, -1, d)
    for g, w in enumerate(weight.reshape(groups, -1, d)):
        p_r, p_f = (projection_by_svd(x[g].numpy(), 4.0) for x in spaces)
        np.testing.assert_allclose(found[g].numpy(), w.numpy() @ (np.eye(d) - p_f @ (np.eye(d) - p_r)).T, rtol=0, atol=1e-9)


def test_both_factors_can_be_chosen_at_request_time() -> None:
    model, support = Flat(), noise(2, 3, 2, 2, seed=4)
    artefact = prepare(model, low_rank(20, 6))
    lengths = [apply(model, artefact, support, retain_alpha=alpha)[1]["step_length"] for alpha in (1.0, 30.0, 1000.0)]
    assert lengths == sorted(set(lengths), reverse=True)  # more is protected
    lengths = [apply(model, artefact, support, forget_alpha=alpha)[1]["step_length"] for alpha in (0.1, 3.0, 100.0)]
    assert lengths == sorted(set(lengths))  # more is removed
    SVDProjection.apply_options("svd-projection", {"chunk": 4}, {"retain_alpha": 3.0, "forget_alpha": 2.0})
    with pytest.raises(UsageError, match="--chunk of method 'svd-projection' is fixed when preparing"):
        SVDProjection.apply_options("svd-projection", {"chunk": 4}, {"chunk": 8})


def test_an_artefact_of_another_model_is_refused() -> None:
    model = Flat()
    artefact = prepare(model, noise(4, 3, 2, 2))
    artefact.tensors["head.weight"] = artefact.tensors["head.weight"][:, :5, :5]
    with pytest.raises(OneshuiError, match="wrong shape: head.weight"):
        apply(model, artefact, noise(1, 3, 2, 2))


def test_photos_that_are_not_finite_raise() -> None:
    model = Flat()
    with pytest.raises(OneshuiError, match="not finite"):
        apply(model, prepare(model, noise(4, 3, 2, 2)), torch.full((1, 3, 2, 2), torch.inf).double())


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_the_cost_is_one_pass_and_the_covariances(name: str) -> None:
    model, train = classifier(name, "multi_label", layers=1), noise(6, 3, 32, 32, dtype=torch.float32)
    data = DataAccess({"train": Photos(train)}, frozenset({"train"}))
    cost = SVDProjection().cost(model, data, SVDProjectionOptions(), context())
    artefact = prepare(model, train)
    assert (cost.forward, cost.backward) == (6, 0)
    assert cost.bytes == sum(tensor.numel() * tensor.element_size() for tensor in artefact.tensors.values())

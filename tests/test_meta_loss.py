"""The meta-gradient against differentiating twice through the model, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from oneshui_hf.methods import inner, norm, seeded
from oneshui_plugins.meta_loss import MetaLoss, Photos, gradient, meta_gradient, movable, said

KIND = "multi_label"


def classifier(name: str) -> torch.nn.Module:
    from transformers import (
        AutoModelForImageClassification,
        ConvNextConfig,
        Dinov2Config,
        ResNetConfig,
        ViTConfig,
    )

    small = {"num_labels": 5, "problem_type": "multi_label_classification"}
    vit = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 16,
        "patch_size": 8,
    }
    configs = {
        "vit": lambda: ViTConfig(**vit, **small),
        "dinov2": lambda: Dinov2Config(**{**vit, "mlp_ratio": 2}, **small),
        "convnext": lambda: ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], patch_size=2, image_size=16, **small),
        "resnet": lambda: ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic", **small),
    }
    with seeded(0, name):
        model = AutoModelForImageClassification.from_config(configs[name]())
        for parameter in model.parameters():  # some are initialised to a constant, which would hide a mistake
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model.double().eval()


def setting(name: str) -> tuple[torch.nn.Module, MetaLoss, Photos, torch.Tensor, torch.Tensor]:
    model = classifier(name)
    draws = torch.Generator().manual_seed(1)
    pixels = torch.randn(3, 3, 16, 16, generator=draws, dtype=torch.float64)
    target = torch.randint(0, 2, (3, 5), generator=draws).double()
    features = said(model, movable(model, True), pixels, KIND).shape[1]
    with seeded(0, "h"):
        h = MetaLoss(features, 5, 2).double().train()
    data = torch.randn(4, 3, 16, 16, generator=draws, dtype=torch.float64)
    labels = torch.randint(0, 2, (4, 5), generator=draws).double()
    return model, h, Photos(pixels, target, torch.tensor([0, 1, 2])), data, labels


def objective_value(model, theta, data, labels):
    logits = torch.func.functional_call(model, theta, kwargs={"pixel_values": data}).logits
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("name", ["vit", "dinov2", "convnext", "resnet"])
def test_equals_double_backward(name: str, normalised: bool) -> None:
    model, h, photos, data, labels = setting(name)
    theta = movable(model, True)
    length = 0.3

    def objective(model, theta_u):
        leaves = {n: p.requires_grad_() for n, p in theta_u.items()}
        value = objective_value(model, leaves, data, labels)
        parts = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        return value.item(), {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(leaves.items(), parts, strict=True)}

    value, ours, by_length = meta_gradient(model, theta, h, photos, objective, KIND, length=length, normalised=normalised, seed=7)

    # The same from the definition: one graph through the step, differentiated as a whole. Dropout draws from the same seed.
    leaves = {n: p.clone().requires_grad_() for n, p in theta.items()}
    r = torch.tensor(length, dtype=torch.float64, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH):
        u = said(model, leaves, photos.pixels, KIND)
        with seeded(7, "mask"):
            m = h(u, photos.target, photos.person).mean()
        parts = torch.autograd.grad(m, list(leaves.values()), create_graph=True, allow_unused=True)
        g = {n: torch.zeros_like(p) if part is None else part for (n, p), part in zip(leaves.items(), parts, strict=True)}
        factor = r / norm(g) if normalised else r
        expected_value = objective_value(model, {n: p - factor * g[n] for n, p in leaves.items()}, data, labels)
        expected = torch.autograd.grad(expected_value, [*h.parameters(), r], allow_unused=True)

    assert value == pytest.approx(expected_value.item(), rel=1e-12)
    flat_ours = torch.cat([p.flatten() for p in ours])
    flat = torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(h.parameters(), expected[:-1], strict=True)])
    assert flat.norm() > 0
    assert (flat_ours - flat).norm() / flat.norm() < 1e-10
    if normalised:
        assert by_length == pytest.approx(expected[-1].item(), rel=1e-9)


def test_dropout_acts() -> None:
    model, h, photos, *_ = setting("vit")
    theta = movable(model, True)
    steps = []
    for seed in (1, 2):
        with seeded(seed, "mask"):
            steps.append(gradient(model, theta, h, photos, KIND)[0])
    assert inner(steps[0], steps[1]) < norm(steps[0]) * norm(steps[1]) * 0.9999

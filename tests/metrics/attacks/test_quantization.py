"""Rounded weights against torch's own quantisation, and an update that is smaller than half a quantum."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from oneshui_hf.metrics.attacks.quantization import PRECISIONS, round_tensor, round_weights, update_kept
from oneshui_hf.testing.toy_problem import toy_problem
from support.affine_model import affine_model, same_weights
from support.architectures import classifier
from support.timm_stand_in import install

LARGEST = {"int8": 127, "int4": 7}


def weights(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize(("bits", "largest"), [(8, 127), (4, 7), (2, 1)])
@pytest.mark.parametrize("shape", [(5, 16), (6, 3, 4, 4)])
def test_rounding_is_that_of_torch(bits: int, largest: int, shape: tuple[int, ...]) -> None:
    original = weights(*shape)
    original[2] = 0  # a channel without a scale
    scale = original.flatten(1).abs().amax(dim=1) / largest
    scale = torch.where(scale > 0, scale, 1)
    expected = torch.fake_quantize_per_channel_affine(original, scale, torch.zeros(len(scale), dtype=torch.int32), 0, -largest, largest)
    found = round_tensor(original, bits, tuple(range(1, len(shape))))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert max(len(channel.unique()) for channel in found) <= 2 * largest + 1
    assert ((found - original).flatten(1).abs() <= scale[:, None] / 2 + 1e-6).all()


def test_each_factor_of_an_adapter_has_a_quantum_per_output() -> None:
    up = weights(2, 5, 3)
    found, exact = round_tensor(up, 4, (-1,)).double().numpy(), up.double().numpy()
    for shard in range(2):
        for output in range(5):
            quantum = np.abs(exact[shard, output]).max() / 7
            np.testing.assert_allclose(found[shard, output], np.round(exact[shard, output] / quantum) * quantum, atol=1e-6)


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("name", ["vit", "dinov2", "convnext", "resnet", "swin", "timm"])
def test_weights_of_linear_and_convolution_layers_are_rounded(name: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "timm":
        install(monkeypatch)
    model = classifier(name, "multi_label")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    before = copy.deepcopy(model)
    rounded = round_weights(model, precision)  # type: ignore[arg-type]
    assert same_weights(model, before)
    layers = {n: m for n, m in rounded.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert len(layers) >= 3
    for layer in layers.values():
        assert max(len(channel.unique()) for channel in layer.weight.detach()) <= 2 * LARGEST[precision] + 1
    own = dict(model.named_parameters())
    changed = {n for n, parameter in rounded.named_parameters() if not torch.equal(parameter, own[n])}
    assert changed <= {f"{n}.weight" for n in layers}
    assert len(changed) > len(layers) / 2


def test_adapters_of_a_sharded_model_and_a_head_in_closed_form_are_rounded() -> None:
    for made in ({"sharded": True}, {"closed_form": True}):
        model = toy_problem("multi_label", **made).model
        rounded = round_weights(model, "int4")
        names = {"up", "down", "weight"} if "sharded" in made else {"weight"}
        own = dict(model.named_parameters())
        assert {n.rpartition(".")[2] for n, p in rounded.named_parameters() if not torch.equal(p, own[n])} == names
        assert len(rounded.head.weight[0].unique()) <= 15


def test_bfloat16_rounds_all_parameters_and_buffers() -> None:
    model = classifier("resnet", "multi_label")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=torch.Generator().manual_seed(0)))
    expected, found = copy.deepcopy(model).bfloat16().float().state_dict(), round_weights(model, "bf16").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not same_weights(model, round_weights(model, "bf16"))
    assert next(round_weights(model, "bf16").parameters()).dtype == torch.float32


def pair(step: float) -> tuple[nn.Module, nn.Module]:
    """Return an original whose weights are multiples of an int4 quantum, and a model with an update of `step` quanta."""
    original, unlearned = affine_model(), affine_model()
    with torch.no_grad():
        codes = torch.randint(-6, 7, original.linear.weight.shape, generator=torch.Generator().manual_seed(0)).float()
        codes[:, 0] = 7  # keeps the quantum the same in both models
        original.linear.weight.copy_(codes / 64)
        codes[:, 1:] += step
        unlearned.linear.weight.copy_(codes / 64)
    return unlearned, original


def test_an_update_smaller_than_half_a_quantum_vanishes_in_int4() -> None:
    unlearned, original = pair(0.45)
    assert not same_weights(unlearned, original)
    assert same_weights(round_weights(unlearned, "int4"), round_weights(original, "int4"))
    assert update_kept(unlearned, original, "int4") == 0
    assert update_kept(unlearned, original, "int8") == pytest.approx(1, abs=0.1)
    assert update_kept(unlearned, original, "bf16") == pytest.approx(1, abs=0.05)


def test_a_larger_update_is_kept() -> None:
    unlearned, original = pair(0.55)
    assert update_kept(unlearned, original, "int4") == pytest.approx(1 / 0.55, rel=1e-5)
    assert update_kept(*pair(1.0), "int4") == pytest.approx(1, rel=1e-5)


def test_equal_models_and_models_of_other_shapes_have_no_update() -> None:
    for precision in PRECISIONS:
        assert update_kept(affine_model(), affine_model(), precision) is None
        assert update_kept(affine_model(), classifier("vit", "multi_label"), precision) is None

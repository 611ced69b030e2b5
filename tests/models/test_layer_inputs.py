"""Energies of layer inputs in row spaces, against their definition in float64."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from oneshui_hf.metrics.attacks.weight_difference import row_spaces
from oneshui_hf.models.layer_inputs import layer_energies, linear_layers
from support.attack_data import normal, rng
from support.token_model import TokenModel, inputs_of, photos_of_people


def changed(model: TokenModel, seed: int = 5) -> dict[str, torch.Tensor]:
    return {name: weight + normal(rng(seed), *weight.shape).float() / 50 for name, weight in model.state_dict().items()}


def expected_energies(inputs: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    """Return the energies of inputs (n, tokens, in) in the row space of an update, by numpy's singular value decomposition."""
    _, values, directions = np.linalg.svd(update.numpy(), full_matrices=False)
    energies = values**2 / (values**2).sum()
    centred = inputs.numpy() - inputs.numpy().mean(axis=(0, 1))
    shares = ((centred @ directions.T) ** 2 @ (energies / (energies + 1 / update.shape[1]))) / (centred**2).sum(-1)
    return torch.from_numpy(shares)


@pytest.mark.parametrize("size", [144, 50, 7])
def test_energies_match_their_definition(size: int) -> None:
    model, pixels = TokenModel(), photos_of_people()
    before, after = model.state_dict(), changed(model)
    found = layer_energies(model, row_spaces(after, before), pixels.split(size), "cpu")
    assert set(found) == {"first.weight", "second.weight"}  # the model does not call `unused`, and a convolution is no linear layer
    for name, inputs in inputs_of(model, pixels).items():
        expected = expected_energies(inputs, after[name].double() - before[name].double())
        assert found[name].dtype == torch.float64
        assert torch.allclose(found[name], expected.mean(1), rtol=1e-4, atol=1e-7)
        assert 0 < found[name].min() <= found[name].max() < 1


def test_an_iterator_of_batches_gives_the_same_as_a_list() -> None:
    model, pixels = TokenModel(), photos_of_people()
    spaces = row_spaces(changed(model), model.state_dict())
    first, second = (layer_energies(model, spaces, batches, "cpu") for batches in (pixels.split(9), iter(pixels.split(9))))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_model_is_left_as_it_was() -> None:
    model = TokenModel().train()
    layer_energies(model, row_spaces(changed(model), model.state_dict()), photos_of_people().split(20), "cpu")
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_parts_of_a_photo_and_repeated_calls_are_its_tokens() -> None:
    class Windows(nn.Module):
        """Halves of each photo are rows of their own, and the layer is called twice."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
            halves = pixel_values.reshape(2 * len(pixel_values), 1, 6)
            return SimpleNamespace(logits=self.layer(halves) + self.layer(2 * halves))

    model, pixels = Windows(), normal(rng(0), 5, 3, 2, 2).float()
    update = normal(rng(1), 4, 6)
    after = {"layer.weight": model.layer.weight.detach() + update.float(), "layer.bias": model.layer.bias.detach()}
    found = layer_energies(model, row_spaces(after, model.state_dict()), [pixels], "cpu")["layer.weight"]
    halves = pixels.double().reshape(5, 2, 6)
    expected = expected_energies(torch.cat([halves, 2 * halves], dim=1), update)
    assert torch.allclose(found, expected.mean(1), rtol=1e-4)


def test_subclasses_of_linear_layers_are_left_out() -> None:
    class Adapted(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(2, 2), Adapted(2, 2), nn.LayerNorm(2))
    assert list(linear_layers(model, model.state_dict())) == ["0.weight"]

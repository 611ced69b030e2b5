"""The building blocks of the attacks on keys are correct, so that a low figure is due to the key."""

from __future__ import annotations

import numpy as np
import torch
from read_keys import correlation, own_ranks, reconstruct, record_inputs, with_one_key_per_photo
from scipy.stats import rankdata

from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.methods import generator
from oneshui_hf.testing.toy_problem import toy_problem
from oneshui_plugins.forget_keys.low_rank import LowRankUpdate, Updates, merge, select_identities, target_layers
from oneshui_plugins.forget_keys.method import matrix_shapes

PEOPLE, RANK = 3, 2


def random_updates() -> Updates:
    model = toy_problem("multi_label").model
    rng = generator(0, "keys")
    return {
        name: LowRankUpdate(0.1 * torch.randn(PEOPLE, out, RANK, generator=rng), 0.1 * torch.randn(PEOPLE, RANK, d, generator=rng))
        for name, (out, d) in matrix_shapes(model, target_layers(model, 1.0)).items()
    }


def one_photo_per_person() -> torch.Tensor:
    faces = toy_problem("multi_label").sets["train"]
    return faces.batch(torch.arange(0, 5 * PEOPLE, 5))[0]


def test_ranks_are_those_of_scipy() -> None:
    scores = torch.randint(0, 4, (9, 9), generator=generator(0, "scores")).float()
    expected = [rankdata(-row)[index] for index, row in enumerate(scores.numpy())]
    assert own_ranks(scores).tolist() == expected
    assert len(set(expected)) > 3


def test_correlations_are_those_of_numpy() -> None:
    rng = generator(0, "pictures")
    one, two = torch.rand(3, 3, 4, 4, generator=rng), torch.rand(5, 3, 4, 4, generator=rng)
    expected = np.corrcoef(one.flatten(1).double(), two.flatten(1).double())[:3, 3:]
    np.testing.assert_allclose(correlation(one, two), expected, atol=1e-6)
    assert not correlation(torch.full((1, 3, 4, 4), 0.3), two).any()


def test_recorded_inputs_reproduce_the_outputs_of_the_layers() -> None:
    model = toy_problem("multi_label").model
    layers = target_layers(model, 1.0)
    outputs: dict[str, torch.Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda layer, inputs, output, name=name: outputs.update({name: output}))
        for name, users in layers.items()
        for layer in users
    ]
    try:
        with torch.no_grad(), record_inputs(layers) as inputs:
            model(pixel_values=one_photo_per_person())
    finally:
        for hook in hooks:
            hook.remove()
    for name, (layer,) in layers.items():
        output = outputs[name]
        expected = output.flatten(2).mT if isinstance(layer, torch.nn.Conv2d) else output.view(PEOPLE, -1, output.shape[-1])
        assert layer.bias is not None
        torch.testing.assert_close(inputs[name] @ layer.weight.flatten(1).mT + layer.bias, expected, atol=1e-5, rtol=1e-4)


def test_each_photo_gets_its_own_key() -> None:
    model, updates, pixels = toy_problem("multi_label").model, random_updates(), one_photo_per_person()
    with torch.no_grad():
        with with_one_key_per_photo(target_layers(model, 1.0), updates):
            logits = model(pixel_values=pixels).logits
        singles = [select_identities(updates, [index]) for index in range(PEOPLE)]
        expected = torch.cat([merge(model, [single], 1.0)(pixel_values=pixels[[index]]).logits for index, single in enumerate(singles)])
        before = model(pixel_values=pixels).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert (logits - before).abs().max() > 0.1


def test_reconstruction_finds_a_picture_that_maximises_the_score() -> None:
    rng = generator(0, "hidden")
    hidden = torch.rand(2, 3, 4, 4, generator=rng).repeat_interleave(4, 2).repeat_interleave(4, 3)
    preprocess = Preprocess(16)
    target = preprocess(255 * hidden)
    start = torch.full_like(hidden, 0.5)
    found = reconstruct(start, lambda pixels: -10 * (pixels - target).square().mean(dim=(1, 2, 3)), preprocess, steps=100)
    assert correlation(found, hidden).diagonal().min() > 0.95

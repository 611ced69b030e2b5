"""The attacks that tell what a forget key gives away: what they are built of is right, so that a low figure is the key's doing."""

from __future__ import annotations

import numpy as np
import torch
from read_keys import applied, correlation, heard, ranks, reconstruct
from scipy.stats import rankdata

from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.methods import generator
from oneshui_hf.testing.toy_problem import world
from oneshui_plugins.forget_keys.low_rank import Factors, Keys, keyed, opened
from oneshui_plugins.forget_keys.method import matrices

PEOPLE, RANK = 3, 2


def random_keys() -> Keys:
    model = world("multi_label").model
    draws = generator(0, "keys")
    return {
        name: Factors(0.1 * torch.randn(PEOPLE, out, RANK, generator=draws), 0.1 * torch.randn(PEOPLE, RANK, d, generator=draws))
        for name, (out, d) in matrices(model, keyed(model, 1.0)).items()
    }


def photos() -> torch.Tensor:
    faces = world("multi_label").sets["train"]
    return faces.batch(torch.arange(0, 5 * PEOPLE, 5))[0]


def test_ranks_are_those_of_scipy() -> None:
    scores = torch.randint(0, 4, (9, 9), generator=generator(0, "scores")).float()
    expected = [rankdata(-line)[place] for place, line in enumerate(scores.numpy())]
    assert ranks(scores).tolist() == expected
    assert len(set(expected)) > 3


def test_correlations_are_those_of_numpy() -> None:
    draws = generator(0, "pictures")
    one, two = torch.rand(3, 3, 4, 4, generator=draws), torch.rand(5, 3, 4, 4, generator=draws)
    expected = np.corrcoef(one.flatten(1).double(), two.flatten(1).double())[:3, 3:]
    np.testing.assert_allclose(correlation(one, two), expected, atol=1e-6)
    assert not correlation(torch.full((1, 3, 4, 4), 0.3), two).any()


def test_what_is_heard_is_what_the_weights_are_multiplied_with() -> None:
    model = world("multi_label").model
    layers = keyed(model, 1.0)
    said: dict[str, torch.Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda layer, inputs, output, name=name: said.update({name: output}))
        for name, users in layers.items()
        for layer in users
    ]
    try:
        with torch.no_grad(), heard(layers) as rows:
            model(pixel_values=photos())
    finally:
        for hook in hooks:
            hook.remove()
    for name, (layer,) in layers.items():
        expected = said[name].flatten(2).mT if isinstance(layer, torch.nn.Conv2d) else said[name].view(PEOPLE, -1, said[name].shape[-1])
        assert layer.bias is not None
        torch.testing.assert_close(rows[name] @ layer.weight.flatten(1).mT + layer.bias, expected, atol=1e-5, rtol=1e-4)


def test_each_photo_meets_its_own_key() -> None:
    model, keys, pixels = world("multi_label").model, random_keys(), photos()
    with torch.no_grad():
        with applied(keyed(model, 1.0), keys):
            said = model(pixel_values=pixels).logits
        alone = [{name: Factors(f.up[[place]], f.down[[place]]) for name, f in keys.items()} for place in range(PEOPLE)]
        expected = torch.cat([opened(model, [key], 1.0)(pixel_values=pixels[[place]]).logits for place, key in enumerate(alone)])
        before = model(pixel_values=pixels).logits
    torch.testing.assert_close(said, expected, atol=1e-4, rtol=1e-4)
    assert (said - before).abs().max() > 0.1


def test_the_inversion_finds_a_picture_that_is_there_to_be_found() -> None:
    draws = generator(0, "hidden")
    hidden = torch.rand(2, 3, 4, 4, generator=draws).repeat_interleave(4, 2).repeat_interleave(4, 3)
    preprocess = Preprocess(16)
    wanted = preprocess(255 * hidden)
    start = torch.full_like(hidden, 0.5)
    found = reconstruct(start, lambda pixels: -10 * (pixels - wanted).square().mean(dim=(1, 2, 3)), preprocess, steps=100)
    assert correlation(found, hidden).diagonal().min() > 0.95

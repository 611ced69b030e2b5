"""Keys on a model: attached or added to the weights, they say the same; and each photo is felt by the keys it is meant for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from oneshui_plugins.forget_keys.low_rank import Factors, Keys, attached, keyed, opened, some_of
from support.architectures import classifier

ARCHITECTURES = ("vit", "dinov2", "swin", "convnext", "resnet")


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def keys_of(model: nn.Module, people: int, share: float = 1.0, rank: int = 2) -> Keys:
    weights = dict(model.named_parameters())
    return {
        name: Factors(0.1 * noise(people, len(weights[name]), rank, seed=i), noise(people, rank, weights[name][0].numel(), seed=i + 100))
        for i, name in enumerate(keyed(model, share))
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_attached_and_added_say_the_same(name: str) -> None:
    model, photos = classifier(name, "multi_label").double(), noise(3, 3, 32, 32, seed=7)
    keys = keys_of(model, 3)
    before = model(pixel_values=photos).logits
    with attached(keyed(model, 1.0), keys):
        with_keys = model(pixel_values=photos).logits
    torch.testing.assert_close(with_keys, opened(model, [keys], 1.0)(pixel_values=photos).logits, rtol=1e-9, atol=1e-9)
    assert (with_keys - before).abs().max() > 1e-3
    assert torch.equal(model(pixel_values=photos).logits, before)  # nothing is left behind


def test_what_is_added_is_the_sum_of_products() -> None:
    factors = Factors(noise(2, 3, 4), noise(2, 4, 5, seed=1))
    by_hand = sum(torch.outer(factors.up[p, :, r], factors.down[p, r]) for p in range(2) for r in range(4))
    torch.testing.assert_close(factors.added(), by_hand)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_a_photo_is_felt_by_the_keys_it_is_meant_for_alone(name: str) -> None:
    model, photos = classifier(name, "multi_label").double(), noise(2, 3, 32, 32, seed=7)
    keys = keys_of(model, 2)
    for factors in keys.values():
        factors.up.requires_grad_()
        factors.down.requires_grad_()
    layers = keyed(model, 1.0)
    own = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)

    with attached(layers, keys):
        whole = model(pixel_values=photos).logits.square().sum(dim=1)
    full = [torch.autograd.grad(whole[photo], [f.up for f in keys.values()], retain_graph=True) for photo in range(2)]
    with attached(layers, keys, own):
        masked = model(pixel_values=photos).logits.square().sum(dim=1)
    torch.testing.assert_close(masked, whole)  # what is said is the same
    felt = [torch.autograd.grad(masked[photo], [f.up for f in keys.values()], retain_graph=True) for photo in range(2)]
    for all_of, mine in zip(full[0], felt[0], strict=True):
        torch.testing.assert_close(mine[0], all_of[0])  # through the later layers, too
        assert not mine[1].any()
    for all_of, mine in zip(full[1], felt[1], strict=True):
        torch.testing.assert_close(mine, all_of)


def test_keys_add_up_in_any_order_and_one_after_the_other() -> None:
    model = classifier("vit", "multi_label")
    keys = {name: Factors(f.up.float(), f.down.float()) for name, f in keys_of(model, 5).items()}
    singles = [some_of(keys, [person]) for person in range(5)]
    at_once = opened(model, singles, 1.0).state_dict()
    backwards = opened(model, singles[::-1], 1.0).state_dict()
    in_turn = model
    for single in singles:
        in_turn = opened(in_turn, [single], 1.0)
    for name, weight in at_once.items():
        bound = 5 * torch.finfo(torch.float32).eps * max(1.0, float(weight.abs().max()))  # a rounding of the weight for each person
        assert (backwards[name] - weight).abs().max() <= torch.finfo(torch.float32).eps * weight.abs().max()
        assert (in_turn.state_dict()[name] - weight).abs().max() <= bound


def test_strength_is_a_factor_and_the_model_handed_in_stays() -> None:
    model = classifier("vit", "multi_label").double()
    keys = keys_of(model, 1)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    half, whole = opened(model, [keys], 0.5).state_dict(), opened(model, [keys], 1.0).state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])
        torch.testing.assert_close(2 * (half[name] - weight), whole[name] - weight)


def test_a_share_is_counted_from_the_head_and_grouped_convolutions_are_left_out() -> None:
    model = classifier("vit", "multi_label")
    names, last = list(keyed(model, 1.0)), list(keyed(model, 0.2))
    assert names[-1] == "classifier.weight"
    assert last == names[-round(0.2 * len(names)) :]
    assert list(keyed(model, 0.0)) == ["classifier.weight"]
    grouped = [f"{name}.weight" for name, layer in classifier("convnext", "multi_label").named_modules() if getattr(layer, "groups", 1) > 1]
    assert grouped
    assert not set(grouped) & set(keyed(classifier("convnext", "multi_label"), 1.0))

"""Low-rank updates of a model: attached and merged updates give equal outputs, and the gradient mask selects the updates."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from oneshui_plugins.forget_keys.low_rank import (
    LowRankUpdate,
    Updates,
    merge,
    select_identities,
    target_layers,
    with_adapters,
    with_photo_batches,
)
from support.architectures import classifier

ARCHITECTURES = ("vit", "dinov2", "swin", "convnext", "resnet")


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_updates(model: nn.Module, identities: int, fraction: float = 1.0, rank: int = 2) -> Updates:
    weights = dict(model.named_parameters())
    return {
        name: LowRankUpdate(
            0.1 * noise(identities, len(weights[name]), rank, seed=i), noise(identities, rank, weights[name][0].numel(), seed=i + 100)
        )
        for i, name in enumerate(target_layers(model, fraction))
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_adapters_and_merged_weights_give_the_same_logits(name: str) -> None:
    model, photos = classifier(name, "multi_label").double(), noise(3, 3, 32, 32, seed=7)
    updates = random_updates(model, 3)
    before = model(pixel_values=photos).logits
    with with_adapters(target_layers(model, 1.0), updates):
        with_updates = model(pixel_values=photos).logits
    torch.testing.assert_close(with_updates, merge(model, [updates], 1.0)(pixel_values=photos).logits, rtol=1e-9, atol=1e-9)
    assert (with_updates - before).abs().max() > 1e-3
    assert torch.equal(model(pixel_values=photos).logits, before)  # no hook remains


def test_delta_weight_is_the_sum_of_products() -> None:
    update = LowRankUpdate(noise(2, 3, 4), noise(2, 4, 5, seed=1))
    by_hand = sum(torch.outer(update.up[p, :, r], update.down[p, r]) for p in range(2) for r in range(4))
    torch.testing.assert_close(update.delta_weight(), by_hand)


@pytest.mark.parametrize("name", ["vit", "resnet", "swin", "convnext"])  # Swin's first dimension is the windows of all photos
def test_gradient_mask_restricts_the_gradient_of_a_photo_to_the_selected_updates(name: str) -> None:
    model, photos = classifier(name, "multi_label").double(), noise(2, 3, 32, 32, seed=7)
    updates = random_updates(model, 2)
    for update in updates.values():
        update.up.requires_grad_()
        update.down.requires_grad_()
    layers = target_layers(model, 1.0)
    mask = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)

    with with_adapters(layers, updates):
        unmasked = model(pixel_values=photos).logits.square().sum(dim=1)
    full_gradients = [torch.autograd.grad(unmasked[photo], [u.up for u in updates.values()], retain_graph=True) for photo in range(2)]
    with with_adapters(layers, updates, mask):
        masked = model(pixel_values=photos).logits.square().sum(dim=1)
    torch.testing.assert_close(masked, unmasked)  # the mask does not change the outputs
    masked_gradients = [torch.autograd.grad(masked[photo], [u.up for u in updates.values()], retain_graph=True) for photo in range(2)]
    for full, selected in zip(full_gradients[0], masked_gradients[0], strict=True):
        torch.testing.assert_close(selected[0], full[0])  # through the later layers, too
        assert not selected[1].any()
    for full, selected in zip(full_gradients[1], masked_gradients[1], strict=True):
        torch.testing.assert_close(selected, full)


class Mixed(nn.Module):
    """Layers whose inputs are batches of photos, of windows, of tokens before photos, and of a table that all photos share."""

    def __init__(self) -> None:
        super().__init__()
        self.photos, self.windows, self.tokens, self.mixed, self.table, self.unused = (nn.Linear(4, 4) for _ in range(6))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = self.photos(pixel_values.flatten(1).unflatten(1, (-1, 4)))  # (n, t, 4)
        x = self.windows(x.unflatten(1, (2, -1)).flatten(0, 1)).unflatten(0, (-1, 2)).flatten(1, 2)
        x = self.tokens(x.transpose(0, 1)).transpose(0, 1)
        x = self.mixed(x.transpose(0, 1).flatten(0, 1)).unflatten(0, (-1, len(x))).transpose(0, 1)
        return x + self.table(torch.arange(4.0).repeat(2, 1)).sum()


def test_layers_whose_inputs_are_not_batches_of_photos_get_no_updates() -> None:
    model = Mixed()
    found = with_photo_batches(model, target_layers(model, 1.0), noise(2, 3, 4, 4).float())
    assert {name.partition(".")[0] for name, users in found.items() if users} == {"photos", "windows", "unused"}
    assert list(found) == list(target_layers(model, 1.0))  # a key's shapes do not depend on it
    for name in ("vit", "dinov2", "swin", "convnext", "resnet"):
        model = classifier(name, "multi_label")
        assert all(with_photo_batches(model, target_layers(model, 1.0), noise(2, 3, 32, 32).float()).values())
    swinv2 = classifier("swinv2", "multi_label")
    shared = {
        name for name, users in with_photo_batches(swinv2, target_layers(swinv2, 1.0), noise(2, 3, 32, 32).float()).items() if not users
    }
    assert shared
    assert all("position_bias" in name for name in shared)


def test_updates_merge_in_any_order_and_one_after_the_other() -> None:
    model = classifier("vit", "multi_label")
    updates = {name: LowRankUpdate(u.up.float(), u.down.float()) for name, u in random_updates(model, 5).items()}
    singles = [select_identities(updates, [index]) for index in range(5)]
    at_once = merge(model, singles, 1.0).state_dict()
    backwards = merge(model, singles[::-1], 1.0).state_dict()
    in_turn = model
    for single in singles:
        in_turn = merge(in_turn, [single], 1.0)
    for name, weight in at_once.items():
        bound = 5 * torch.finfo(torch.float32).eps * max(1.0, float(weight.abs().max()))  # one rounding of the weight per identity
        assert (backwards[name] - weight).abs().max() <= torch.finfo(torch.float32).eps * weight.abs().max()
        assert (in_turn.state_dict()[name] - weight).abs().max() <= bound


def test_strength_is_a_factor_and_merging_leaves_the_given_model_unchanged() -> None:
    model = classifier("vit", "multi_label").double()
    updates = random_updates(model, 1)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    half, whole = merge(model, [updates], 0.5).state_dict(), merge(model, [updates], 1.0).state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])
        torch.testing.assert_close(2 * (half[name] - weight), whole[name] - weight)


def test_target_layers_are_counted_from_the_head_and_exclude_grouped_convolutions() -> None:
    model = classifier("vit", "multi_label")
    names, last = list(target_layers(model, 1.0)), list(target_layers(model, 0.2))
    assert names[-1] == "classifier.weight"
    assert last == names[-round(0.2 * len(names)) :]
    assert list(target_layers(model, 0.0)) == ["classifier.weight"]
    grouped = [f"{name}.weight" for name, layer in classifier("convnext", "multi_label").named_modules() if getattr(layer, "groups", 1) > 1]
    assert grouped
    assert not set(grouped) & set(target_layers(classifier("convnext", "multi_label"), 1.0))

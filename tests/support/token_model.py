"""A model with two linear layers on tokens, photos of people whose tokens resemble each other, and updates of its weights."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from support.attack_data import normal, rng

PEOPLE, PHOTOS, TOKENS, WIDTH = 24, 6, 4, 48
IDENTITIES = torch.arange(PEOPLE).repeat_interleave(PHOTOS)


class TokenModel(nn.Module):
    """Photos (n, 3, 8, 8) are 4 tokens of 48 numbers; two linear layers process each token, and a convolution has other weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, 32), nn.Linear(32, 5)
        self.unused = nn.Linear(WIDTH, 2)
        self.convolution = nn.Conv2d(3, 3, 1)
        for seed, weights in enumerate(self.parameters()):
            weights.data = normal(rng(seed), *weights.shape).float() / 4

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        hidden = torch.tanh(self.first(tokens_of(self.convolution(pixel_values))))
        return SimpleNamespace(logits=self.second(hidden).mean(1))


def tokens_of(pixels: torch.Tensor) -> torch.Tensor:
    """Return the tokens of photos, (n, 4, 48)."""
    return pixels.reshape(len(pixels), TOKENS, WIDTH)


def photos_of_people(seed: int = 0, shared: float = 3.0) -> torch.Tensor:
    """Return photos (n, 3, 8, 8): a large part that all share, a part of the person, a part of the photo."""
    shape = (3, 8, 8)
    generator = rng(seed)
    everyone, person, photo = (normal(generator, count, *shape) for count in (1, PEOPLE, len(IDENTITIES)))
    return (shared * everyone + person[IDENTITIES] + photo / 2).float()


def inputs_of(model: TokenModel, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the inputs of both layers, by the name of the weight, float64 (n, 4, in)."""
    with torch.no_grad():
        first = tokens_of(model.convolution(pixels))
        return {"first.weight": first.double(), "second.weight": torch.tanh(model.first(first)).double()}

"""A stand-in for the package timm, which cannot be installed beside the CPU build of torch: one small model, made by `create_model`.

It proves that this package calls transformers' wrapper of timm rightly, not that timm's own models work.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn


class StandIn(nn.Module):
    """A small model with the functions of a timm model that transformers calls. It has no `forward_intermediates`, as some of timm."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 8, stride=8)
        self.norm = nn.BatchNorm2d(12)
        self.mix = nn.Linear(12, 24)
        self.fc = nn.Linear(24, num_classes)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix(self.norm(self.stem(x)).relu().flatten(2).mT).tanh()

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.mean(dim=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def create_model(architecture: str, pretrained: bool, num_classes: int, **settings: Any) -> StandIn:
    assert architecture == "stand_in"
    assert not pretrained
    assert not settings
    return StandIn(num_classes)


def install(patch: pytest.MonkeyPatch) -> None:
    """Make transformers use the stand-in as timm."""
    from transformers.models.timm_wrapper import modeling_timm_wrapper

    patch.setattr(modeling_timm_wrapper, "timm", SimpleNamespace(create_model=create_model, __version__="0"), raising=False)
    patch.setattr(modeling_timm_wrapper, "requires_backends", lambda *_: None)

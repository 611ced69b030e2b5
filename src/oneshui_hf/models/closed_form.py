"""A classifier with a head in closed form: a frozen pretrained backbone, pooled features of several layers, and a linear head.

The head is not trained by gradients but computed from sums over the training photos (`feature_sums`), so that subtracting a person's photos
from the sums gives the head of a training without them. The model itself is an ordinary one: it does not round, and is differentiable.

Importing this module registers the architecture with transformers (see `register`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from ..errors import UsageError, first_line
from ..seeding import seeded
from .nested_config import nested_config, read_nested_config
from .outputs import find_head, module_name
from .pool_bands import BANDS, pool_bands

# Pairs of layers whose features are tried, by depth. The middle ones predict best for a whole pretrained model, the last ones for a model's
# first blocks.
DEPTHS = ((0.5, 1.0), (1 / 3, 2 / 3))
EPSILON = 1e-6  # of the normalisation


class ClosedFormConfig(PreTrainedConfig):  # type: ignore[misc]
    """The architecture of a classifier with a head in closed form, and the constants with which its head was computed.

    Attributes:
        backbone: The config of the backbone.
        layers: Numbers of the hidden states whose features are used; 0 is the input of the first block.
        bands: Horizontal bands of a hidden state that are pooled separately.
        feature_size: Number of features of a photo.
        mirrored: Whether mirror images are training photos.
        shrinkage: See `feature_sums.solve_head`.
        temperature: See `feature_sums.solve_head`.
    """

    model_type = "oneshui_closed_form"

    backbone: dict[str, Any] = dataclasses.field(default_factory=dict)
    layers: list[int] = dataclasses.field(default_factory=lambda: [0])
    bands: int = BANDS
    feature_size: int = 1
    mirrored: bool = True
    shrinkage: float = 1.0
    temperature: float = 1.0


class ClosedFormClassifier(PreTrainedModel):  # type: ignore[misc]
    """A frozen backbone and a linear head on pooled features of some of its layers."""

    config_class = ClosedFormConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ClosedFormConfig) -> None:
        super().__init__(config)
        self.backbone = AutoModelForImageClassification.from_config(read_nested_config(config.backbone), trust_remote_code=False)
        self.backbone.set_submodule(module_name(self.backbone, find_head(self.backbone)), nn.Identity())
        self.head = nn.Linear(config.feature_size, config.num_labels)
        self.post_init()

    def train(self, mode: bool = True) -> ClosedFormClassifier:
        """Set the mode. The backbone stays in evaluation mode: its features must not depend on other photos."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **_: Any) -> ImageClassifierOutput:
        """Return the logits of photos (n, 3, S, S), and the hidden states if they are asked for."""
        hidden = _hidden_states(self.backbone, pixel_values)
        logits = self.head(self._pool(hidden))
        return ImageClassifierOutput(logits=logits, hidden_states=hidden if output_hidden_states else None)

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the input of the head, (n, feature_size)."""
        return self._pool(_hidden_states(self.backbone, pixel_values))

    def _pool(self, hidden: tuple[torch.Tensor, ...]) -> torch.Tensor:
        pooled = [part for layer in self.config.layers for part in pool_bands(hidden[layer], self.config.bands)]
        return torch.cat([F.layer_norm(part, part.shape[1:], eps=EPSILON) for part in pooled], dim=1)


AutoConfig.register(ClosedFormConfig.model_type, ClosedFormConfig, exist_ok=True)
AutoModelForImageClassification.register(ClosedFormConfig, ClosedFormClassifier, exist_ok=True)


def _hidden_states(backbone: nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(backbone(pixel_values=pixels, output_hidden_states=True).hidden_states)


def add_closed_form_head(
    backbone: PreTrainedModel, size: int, *, mirrored: bool, depths: Sequence[float] = DEPTHS[0]
) -> ClosedFormClassifier:
    """Return a classifier over the backbone of another one, in evaluation mode. Its head is zero until it is computed.

    Args:
        backbone: Any image classifier of transformers; its head is not used.
        size: Side of its photos in pixels.
        mirrored: Whether mirror images are training photos.
        depths: Of the layers whose features are used: 0 is the input of the first block, 1 the output of the last.

    Raises:
        UsageError: The backbone returns no hidden states.
    """
    try:
        with torch.no_grad():
            hidden = _hidden_states(backbone.eval(), torch.zeros(1, 3, size, size))
    except (TypeError, ValueError, AttributeError) as error:  # some models of timm refuse to return them
        reason = first_line(error)
        raise UsageError(f"--head closed-form needs the hidden states of {type(backbone).__name__}, which has none ({reason}).") from None
    layers = sorted({round(depth * (len(hidden) - 1)) for depth in depths})
    config = ClosedFormConfig(
        backbone=nested_config(backbone.config),
        layers=layers,
        feature_size=sum(part.shape[1] for layer in layers for part in pool_bands(hidden[layer], BANDS)),
        mirrored=mirrored,
        id2label=backbone.config.id2label,
        label2id=backbone.config.label2id,
        problem_type=backbone.config.problem_type,
    )
    with seeded(0, "replaced at once"):
        model = ClosedFormClassifier(config)
    own = model.backbone.state_dict()
    model.backbone.load_state_dict({name: tensor for name, tensor in backbone.state_dict().items() if name in own})
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    return model.eval()

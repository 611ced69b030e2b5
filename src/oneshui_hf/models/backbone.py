"""A classifier over a vision model for which transformers has no image classifier: backbone, pooled features, linear head.

DINOv3, ViT-MAE and the image encoders of CLIP and SigLIP are such models. A checkpoint is saved and loaded like any other: importing this
module registers the architecture with transformers (see `register`).
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from ..errors import OneshuiError, first_line
from ..seeding import seeded
from .nested_config import nested_config, read_nested_config

CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")  # names of the parameter


class BackboneConfig(PreTrainedConfig):  # type: ignore[misc]
    """The architecture of a backbone with pooled features and a linear head.

    Attributes:
        backbone: The config of the backbone.
        pooling: How features are made from its output: "pooler" (its own pooled output), "first" (the class token) or "mean" (over all
            tokens or places).
        feature_size: Number of features of a photo.
    """

    model_type = "oneshui_backbone"

    backbone: dict[str, Any] = dataclasses.field(default_factory=dict)
    pooling: str = "mean"
    feature_size: int = 1


class BackboneClassifier(PreTrainedModel):  # type: ignore[misc]
    """A vision model for which transformers has no classifier, and a linear head on its pooled features."""

    config_class = BackboneConfig
    main_input_name = "pixel_values"

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        self.backbone = AutoModel.from_config(read_nested_config(config.backbone), trust_remote_code=False)
        self.backbone.requires_grad_(True)  # also what pre-training kept fixed, such as the position embeddings of ViT-MAE
        self.head = nn.Linear(config.feature_size, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **_: Any) -> ImageClassifierOutput:
        """Return the logits of photos (n, 3, S, S), and the hidden states if they are asked for and the backbone has some."""
        output = _run(self.backbone, pixel_values, output_hidden_states)
        features = _pool(output, self.config.pooling)
        return ImageClassifierOutput(logits=self.head(features), hidden_states=getattr(output, "hidden_states", None))


AutoConfig.register(BackboneConfig.model_type, BackboneConfig, exist_ok=True)
AutoModelForImageClassification.register(BackboneConfig, BackboneClassifier, exist_ok=True)


def _run(backbone: nn.Module, pixels: torch.Tensor, hidden_states: bool | None = None) -> Any:
    """Return the output of a backbone for photos (n, 3, S, S), the same in every pass.

    A masked autoencoder shuffles the patches by random numbers, which it accepts as an input, and drops some. `mask_ratio` 0 drops none
    (see `headless_config`), and increasing numbers keep their order.
    """
    settings: dict[str, Any] = {}
    if hidden_states:
        settings["output_hidden_states"] = True
    if "noise" in inspect.signature(backbone.forward).parameters:
        config: Any = backbone.config
        side = config.patch_size
        height, width = (side, side) if isinstance(side, int) else side
        patches = (pixels.shape[-2] // height) * (pixels.shape[-1] // width)
        settings["noise"] = torch.arange(patches, device=pixels.device, dtype=torch.float32).repeat(len(pixels), 1)
    return backbone(pixel_values=pixels, **settings)


def _pool(output: Any, pooling: str) -> torch.Tensor:
    """Return the features (n, d) of a backbone's output."""
    if pooling == "pooler":
        return output.pooler_output.flatten(1)
    hidden = output.last_hidden_state
    if hidden.dim() == 4:
        hidden = hidden.flatten(2).mT  # maps (n, d, h, w) to places (n, h * w, d)
    return hidden[:, 0] if pooling == "first" else hidden.mean(dim=1)


def headless_config(config: PreTrainedConfig) -> PreTrainedConfig | None:
    """Return the config of the vision model of a checkpoint for which transformers has no image classifier; None if there is none.

    It is the whole config, or the part of a model that also reads text. Masking is turned off in it.
    """
    from transformers import MODEL_MAPPING

    parts: tuple[Any, ...] = (config, getattr(config, "vision_config", None))
    for part in parts:
        kinds = MODEL_MAPPING.get(type(part), ()) if isinstance(part, PreTrainedConfig) else ()
        kind = kinds[0] if isinstance(kinds, list | tuple) and kinds else kinds
        if getattr(kind, "main_input_name", None) == "pixel_values" and takes_photos_alone(kind):
            if hasattr(part, "mask_ratio"):
                part.mask_ratio = 0.0
            return part
    return None


def takes_photos_alone(kind: type[nn.Module]) -> bool:
    """Return whether no other input of a model than its photos is required."""
    inputs = list(inspect.signature(kind.forward).parameters.values())[1:]
    required = {p.name for p in inputs if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    return required <= {"pixel_values"}


def add_head(backbone: PreTrainedModel, missing: Collection[str], size: int, labels: Mapping[str, Any], name: str) -> BackboneClassifier:
    """Return a classifier over a vision model, in evaluation mode; its head is not initialised from a seed.

    Args:
        backbone: A vision model that accepts photos of this size.
        missing: The names of its tensors that are not in the checkpoint.
        size: Side of a photo in pixels.
        labels: `num_labels`, `id2label`, `label2id` and `problem_type`.
        name: Of the checkpoint, for messages.

    Raises:
        OneshuiError: The model does not map photos to tokens or maps, or the checkpoint lacks weights that its features depend on.
    """
    backbone = backbone.eval().requires_grad_(True)
    pooling, feature_size = _choose_pooling(backbone, missing, size, name)
    config = BackboneConfig(backbone=nested_config(backbone.config), pooling=pooling, feature_size=feature_size, **labels)
    with seeded(0, "replaced at once"):
        model = BackboneClassifier(config)
    model.backbone.load_state_dict(backbone.state_dict())
    return model.eval()


def _choose_pooling(backbone: PreTrainedModel, missing: Collection[str], size: int, name: str) -> tuple[str, int]:
    """Return the pooling, and the number of features of a photo.

    The model's own pooled output is used if the checkpoint has all weights that it needs, else the class token, else the mean.

    Raises:
        OneshuiError: None of them can be used.
    """
    kind = type(backbone).__name__
    try:
        with torch.enable_grad():
            output = _run(backbone, torch.zeros(1, 3, size, size))
    except Exception as error:  # models that read text, boxes or several frames fail in many ways
        raise OneshuiError(
            f"{name} cannot be loaded as an image classifier: {kind} does not accept photos of {size}x{size} alone ({first_line(error)})."
        ) from None
    has_class_token = any(parameter.rpartition(".")[2] in CLASS_TOKENS for parameter, _ in backbone.named_parameters())
    candidates = ("pooler", "first" if has_class_token else "mean")
    sizes = {pooling: features for pooling in candidates if (features := _features(output, pooling)) is not None}
    if not sizes:
        raise OneshuiError(f"{name} cannot be loaded as an image classifier: {kind} does not return one feature vector per photo.")
    absent = [parameter for parameter_name, parameter in backbone.named_parameters() if parameter_name in missing]
    for pooling, features in sizes.items():
        used = torch.autograd.grad(features.sum(), absent, allow_unused=True, retain_graph=True) if absent else ()
        if all(gradient is None for gradient in used):
            return pooling, features.shape[1]
    raise OneshuiError(f"{name} lacks {len(absent)} of the weights of {kind}, such as {sorted(missing)[0]}; use a complete checkpoint.")


def _features(output: Any, pooling: str) -> torch.Tensor | None:
    """Return the features of one photo (1, d), or None if the output has no tensors for this pooling."""
    tensor = getattr(output, "pooler_output" if pooling == "pooler" else "last_hidden_state", None)
    if not isinstance(tensor, torch.Tensor) or len(tensor) != 1 or tensor.dim() not in ((2, 4) if pooling == "pooler" else (3, 4)):
        return None
    return _pool(output, pooling)

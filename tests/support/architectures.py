"""Image classifiers of many architectures, small enough for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from oneshui_hf.methods import seeded

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


SIDE = 32  # of a photo in pixels
ARCHITECTURES = ("vit", "deit", "beit", "dinov2", "swin", "convnext", "resnet", "clip", "siglip", "timm", "dinov3", "vit_mae", "swinv2")


def classifier(name: str, kind: str, layers: int = 2, dropout: float = 0.0, labels: int = 5) -> nn.Module:
    """Return a randomly initialised classifier of an architecture; `layers` and `dropout` apply to the ViT.

    `timm` needs the fixture or the function `support.timm_stand_in.install`.
    """
    from transformers import (
        AutoModelForImageClassification,
        BeitConfig,
        CLIPConfig,
        ConvNextConfig,
        DeiTConfig,
        Dinov2Config,
        DINOv3ViTConfig,
        ResNetConfig,
        SiglipConfig,
        SwinConfig,
        Swinv2Config,
        TimmWrapperConfig,
        ViTConfig,
        ViTMAEConfig,
    )

    from oneshui_hf.models.backbone import BackboneConfig
    from oneshui_hf.models.nested_config import nested_config

    small = {"num_labels": labels, "problem_type": f"{kind}_classification"}
    vit = {
        "hidden_size": 24,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "image_size": 32,
        "patch_size": 8,
    }
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 8}
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    windows = {"image_size": 32, "patch_size": 4, "embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}

    def headless(config: PreTrainedConfig, pooling: str) -> BackboneConfig:
        return BackboneConfig(backbone=nested_config(config), pooling=pooling, feature_size=24, **small)

    configs = {
        "vit": lambda: ViTConfig(**vit, hidden_dropout_prob=dropout, **small),
        "dinov2": lambda: Dinov2Config(**{**vit, "mlp_ratio": 2}, **small),
        "swin": lambda: SwinConfig(
            image_size=32, patch_size=4, embed_dim=12, depths=[1, 1], num_heads=[2, 2], window_size=4, mlp_ratio=2.0, **small
        ),
        "convnext": lambda: ConvNextConfig(depths=[1, 1], hidden_sizes=[12, 24], num_stages=2, image_size=32, **small),
        "resnet": lambda: ResNetConfig(embedding_size=12, hidden_sizes=[12, 24], depths=[1, 1], layer_type="basic", **small),
        "deit": lambda: DeiTConfig(**vit, **small),
        "beit": lambda: BeitConfig(**vit, use_relative_position_bias=True, **small),
        "clip": lambda: CLIPConfig(vision_config=dict(vit), text_config={**text, **tokens}, projection_dim=8, **small),
        "siglip": lambda: SiglipConfig(vision_config=dict(vit), text_config={**text, **tokens}, **small),
        "swinv2": lambda: Swinv2Config(**windows, mlp_ratio=2.0, **small),
        "timm": lambda: TimmWrapperConfig(architecture="stand_in", **small),
        "dinov3": lambda: headless(DINOv3ViTConfig(**vit, num_register_tokens=2), "pooler"),
        "vit_mae": lambda: headless(ViTMAEConfig(**vit, mask_ratio=0.0), "first"),
    }
    with seeded(0, name):
        config = configs[name]()
        config.architectures = config.architectures or []
        model = AutoModelForImageClassification.from_config(config)
        for parameter in model.parameters():  # some are initialised to a constant, which would hide errors
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()

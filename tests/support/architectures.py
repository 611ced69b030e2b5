"""Image classifiers of five architectures, small enough for tests."""

from __future__ import annotations

import torch
from torch import nn

from oneshui_hf.methods import seeded


def classifier(name: str, kind: str, layers: int = 2, dropout: float = 0.0) -> nn.Module:
    """Return a randomly initialised classifier of one of five architectures; `layers` and `dropout` apply to the ViT."""
    from transformers import AutoModelForImageClassification, ConvNextConfig, Dinov2Config, ResNetConfig, SwinConfig, ViTConfig

    small = {"num_labels": 5, "problem_type": f"{kind}_classification"}
    vit = {
        "hidden_size": 24,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "image_size": 32,
        "patch_size": 8,
    }
    configs = {
        "vit": lambda: ViTConfig(**vit, hidden_dropout_prob=dropout, **small),
        "dinov2": lambda: Dinov2Config(**{**vit, "mlp_ratio": 2}, **small),
        "swin": lambda: SwinConfig(
            image_size=32, patch_size=4, embed_dim=12, depths=[1, 1], num_heads=[2, 2], window_size=4, mlp_ratio=2.0, **small
        ),
        "convnext": lambda: ConvNextConfig(depths=[1, 1], hidden_sizes=[12, 24], num_stages=2, image_size=32, **small),
        "resnet": lambda: ResNetConfig(embedding_size=12, hidden_sizes=[12, 24], depths=[1, 1], layer_type="basic", **small),
    }
    with seeded(0, name):
        model = AutoModelForImageClassification.from_config(configs[name]())
        for parameter in model.parameters():  # some are initialised to a constant, which would hide errors
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()

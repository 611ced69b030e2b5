"""A linear model whose gradients are known in closed form, and photos for it."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional

from oneshui_hf.data.schema import Task
from oneshui_hf.methods import Context, seeded
from oneshui_hf.stages.distributed import make_accelerator
from oneshui_plugins.common.parameter_importance import Weights

ARCHITECTURES = ("vit", "dinov2", "swin", "convnext", "resnet")


KINDS = ("multi_label", "single_label")


LABELS = 5


class Linear(nn.Module):
    """f(x) = W x + b of flattened photos; `dead` takes part in nothing."""

    def __init__(self, inputs: int = 12, outputs: int = LABELS) -> None:
        super().__init__()
        self.map = nn.Linear(inputs, outputs)
        self.dead = nn.Parameter(torch.ones(3))

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.map(pixel_values.flatten(1)))


def linear(**sizes: int) -> Linear:
    with seeded(0, "linear"):
        return Linear(**sizes).double()


def classifier(name: str, kind: str = "multi_label") -> nn.Module:
    from transformers import AutoModelForImageClassification, ConvNextConfig, Dinov2Config, ResNetConfig, SwinConfig, ViTConfig

    small = {"num_labels": LABELS, "problem_type": f"{kind}_classification"}
    vit = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    stages = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]}
    configs = {
        "vit": lambda: ViTConfig(**vit, intermediate_size=64, hidden_dropout_prob=0.3, **small),
        "dinov2": lambda: Dinov2Config(**vit, mlp_ratio=2, drop_path_rate=0.3, **small),
        "swin": lambda: SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, **small),
        "convnext": lambda: ConvNextConfig(**stages, patch_size=2, image_size=32, **small),
        "resnet": lambda: ResNetConfig(**stages, embedding_size=8, layer_type="basic", **small),
    }
    with seeded(0, name):
        model = AutoModelForImageClassification.from_config(configs[name]())
        for parameter in model.parameters():  # some are initialised to a constant, which would hide a mistake
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model.double().eval()


def photos(count: int, kind: str = "multi_label", side: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    pixels = torch.randn(count, 3, side, side, generator=draws, dtype=torch.float64)
    if kind == "multi_label":
        return pixels, torch.randint(0, 2, (count, LABELS), generator=draws).double()
    return pixels, torch.randint(0, LABELS, (count,), generator=draws)


def context(kind: str = "multi_label", process: int = 0, processes: int = 1) -> Context:
    """A context; with several processes, of one whose sums are not yet those of all."""
    accelerator = make_accelerator()
    if processes > 1:
        accelerator = SimpleNamespace(process_index=process, num_processes=processes, reduce=lambda part, how: part, device="cpu")
    return Context(Task(kind, tuple("abcde")), 0, accelerator)


def plain_loss(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, kind: str) -> torch.Tensor:
    logits = model(pixel_values=pixels).logits
    return (
        functional.binary_cross_entropy_with_logits(logits, labels) if kind == "multi_label" else functional.cross_entropy(logits, labels)
    )


def squared_gradients(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, kind: str, batch: int) -> Weights:
    """The mean over batches of the squared gradient of the batch's mean loss: right for batches of one, and others' error for larger."""
    batches = list(zip(pixels.split(batch), labels.split(batch), strict=True))
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for some, answers in batches:
        gradients = torch.autograd.grad(plain_loss(model, some, answers, kind), list(model.parameters()), allow_unused=True)
        for name, gradient in zip(sums, gradients, strict=True):
            sums[name] += 0 if gradient is None else gradient**2
    return {name: part / len(batches) for name, part in sums.items()}


def assert_close(one: Weights, other: Weights, tolerance: float = 1e-9) -> None:
    assert one.keys() == other.keys()
    largest = max(part.max() for part in other.values()).item()
    assert largest > 0
    for name, part in other.items():
        assert one[name].shape == part.shape
        torch.testing.assert_close(one[name], part, rtol=tolerance, atol=tolerance**2 * largest)

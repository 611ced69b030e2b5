"""A linear model whose gradients have a closed form, small classifiers, and random photos."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional

from oneshui_hf.data.schema import Task
from oneshui_hf.methods import Context, Weights, seeded
from oneshui_hf.stages.distributed import make_accelerator

ARCHITECTURES = ("vit", "dinov2", "swin", "convnext", "resnet")
KINDS = ("multi_label", "single_label")
LABELS = 5


class Linear(nn.Module):
    """f(x) = W x + b of flattened photos; the output does not depend on `unused`."""

    def __init__(self, inputs: int = 12, outputs: int = LABELS) -> None:
        super().__init__()
        self.map = nn.Linear(inputs, outputs)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.map(pixel_values.flatten(1)))


def linear_model(**sizes: int) -> Linear:
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
        for parameter in model.parameters():  # some are initialised to a constant, which would hide errors
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model.double().eval()


def random_photos(count: int, kind: str = "multi_label", side: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    pixels = torch.randn(count, 3, side, side, generator=rng, dtype=torch.float64)
    if kind == "multi_label":
        return pixels, torch.randint(0, 2, (count, LABELS), generator=rng).double()
    return pixels, torch.randint(0, LABELS, (count,), generator=rng)


def context(kind: str = "multi_label", process: int = 0, processes: int = 1) -> Context:
    """Return a context. With several processes it belongs to one of them, and its reduce returns the process's own sum."""
    accelerator = make_accelerator()
    if processes > 1:
        accelerator = SimpleNamespace(process_index=process, num_processes=processes, reduce=lambda part, how: part, device="cpu")
    return Context(Task(kind, tuple("abcde")), 0, accelerator)


def mean_loss(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, kind: str) -> torch.Tensor:
    logits = model(pixel_values=pixels).logits
    return (
        functional.binary_cross_entropy_with_logits(logits, labels) if kind == "multi_label" else functional.cross_entropy(logits, labels)
    )


def squared_gradients(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, kind: str, batch: int) -> Weights:
    """Return the mean over batches of the squared gradient of the batch's mean loss: correct for batches of one photo only."""
    batches = list(zip(pixels.split(batch), labels.split(batch), strict=True))
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for batch_pixels, batch_labels in batches:
        gradients = torch.autograd.grad(mean_loss(model, batch_pixels, batch_labels, kind), list(model.parameters()), allow_unused=True)
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

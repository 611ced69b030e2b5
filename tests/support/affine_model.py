"""An affine model whose SGD has a closed form, random face sets for it, and SGD from its definition."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.data.schema import Task
from oneshui_hf.methods import Context, DataAccess, Method, generator, losses, seeded

KINDS = ["multi_label", "single_label"]
SIZE, CLASSES = 4, 3


class Affine(torch.nn.Module):
    """The smallest model: logits are an affine map of the pixels. They do not depend on `unused`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.linear = torch.nn.Linear(3 * SIZE * SIZE, config.num_labels)
        self.unused = torch.nn.Parameter(torch.ones(5))

    def forward(self, pixel_values: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.linear(pixel_values.flatten(1)))


def affine_model(seed: int = 0) -> Affine:
    with seeded(seed, "affine"):
        return Affine(SimpleNamespace(num_labels=CLASSES)).eval()


def task(kind: str) -> Task:
    return Task(kind, ("a", "b", "c"))  # type: ignore[arg-type]


def context(kind: str, seed: int = 0) -> Context:
    return Context(task(kind), seed, Accelerator(cpu=True))


def face_set(kind: str, photos: int, seed: int = 0, size: int = SIZE) -> FaceSet:
    """Return photos of noise with random labels."""
    rng = np.random.default_rng([seed, photos])
    store = rng.integers(0, 256, (photos, 3, size, size)).astype(np.uint8)
    if kind == "multi_label":
        labels = torch.from_numpy(rng.integers(0, 2, (photos, CLASSES))).float()
    else:
        labels = torch.from_numpy(rng.integers(0, CLASSES, photos))
    return FaceSet(store, np.arange(photos), labels, torch.arange(photos) // 2, Preprocess(size), tuple("abcdefghijklmnopqrst"))


def apply_method(
    method: type[Method[Any]], model: torch.nn.Module, retain: FaceSet, forget: FaceSet, ctx: Context, **values: Any
) -> torch.nn.Module:
    """Apply a method as the core does."""
    options = method.apply_options("it", {}, values)
    return method().apply(model, DataAccess({"retain": retain, "forget": forget}, method.needs.apply), None, options, ctx)


def mean_loss(model: torch.nn.Module, faces: FaceSet, kind: str) -> float:
    pixels, labels = faces.batch(torch.arange(len(faces)))
    with torch.no_grad():
        return losses(model(pixel_values=pixels).logits, labels, kind).mean().item()  # type: ignore[arg-type]


Gradient = Callable[[torch.Tensor], torch.Tensor]


def theta(model: Affine) -> torch.Tensor:
    """Return weight and bias as one matrix (K, d + 1) in float64, with the bias in the last column."""
    return torch.cat([model.linear.weight, model.linear.bias[:, None]], dim=1).detach().double()


def design_matrix(faces: FaceSet, positions: torch.Tensor) -> torch.Tensor:
    """Return the flattened photos (n, d + 1) in float64, with a last column of ones for the bias."""
    pixels = faces.batch(positions)[0].flatten(1).double()
    return torch.cat([pixels, torch.ones(len(pixels), 1, dtype=torch.float64)], dim=1)


def probabilities(logits: torch.Tensor, kind: str) -> torch.Tensor:
    return 1 / (1 + (-logits).exp()) if kind == "multi_label" else logits.exp() / logits.exp().sum(dim=1, keepdim=True)


def theta_gradient(x: torch.Tensor, by_logits: torch.Tensor, kind: str) -> torch.Tensor:
    """Return the gradient by theta of a mean over photos (and attributes), from each photo's gradient by its logits (n, K)."""
    return by_logits.T @ x / len(x) / (CLASSES if kind == "multi_label" else 1)


def task_gradient(x: torch.Tensor, labels: torch.Tensor, kind: str) -> Gradient:
    targets = labels.double() if kind == "multi_label" else torch.eye(CLASSES, dtype=torch.float64)[labels]
    return lambda w: theta_gradient(x, probabilities(x @ w.T, kind) - targets, kind)


def kl_gradient(x: torch.Tensor, teacher: torch.Tensor, kind: str, temperature: float = 1.0) -> Gradient:
    """Return the gradient by theta, from d/ds T^2 KL(t || s) = T (p(s / T) - p(t / T)), with p the probabilities."""
    t = temperature
    return lambda w: theta_gradient(x, t * (probabilities(x @ w.T / t, kind) - probabilities(teacher / t, kind)), kind)


def batch_order(name: str, cycle: int, photos: int, batch: int, seed: int = 0) -> list[torch.Tensor]:
    return list(torch.randperm(photos, generator=generator(seed, "order", name, cycle)).split(batch))


def sgd(
    w: torch.Tensor,
    steps: Iterable[tuple[float, Gradient]],
    momentum: float,
    decay: float,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the weights after SGD by its definition; with a mask, weights outside of it do not change."""
    velocity, start = torch.zeros_like(w), w
    for lr, gradient in steps:
        velocity = momentum * velocity + gradient(w) + decay * w
        w = w - lr * velocity
        if mask is not None:
            w = torch.where(mask, w, start)
    return w


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def classifier(name: str, kind: str) -> torch.nn.Module:
    import transformers as t

    vit = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8}
    configs: dict[str, Any] = {
        "vit": lambda: t.ViTConfig(image_size=32, **vit),
        "dinov2": lambda: t.Dinov2Config(image_size=32, mlp_ratio=2, **vit),
        "swin": lambda: t.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4),
        "convnext": lambda: t.ConvNextConfig(image_size=32, depths=[1, 1], hidden_sizes=[8, 16], num_stages=2),
        "resnet": lambda: t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic"),
    }
    config = configs[name]()
    config.num_labels, config.problem_type = CLASSES, task(kind).problem_type
    with seeded(0, name):
        return t.AutoModelForImageClassification.from_config(config).eval()

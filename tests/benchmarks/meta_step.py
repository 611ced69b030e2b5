"""One step of the training of MetaUnlearn's loss network on a random problem: as the method computes it, and by double backward.

Double backward keeps the graph of the update and differentiates through it, as the original code does. Both give the same gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import ViTConfig, ViTForImageClassification

from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.data.schema import Task
from oneshui_hf.methods import Weights, losses, norm, seeded
from oneshui_plugins.metaunlearn.loss_network import MetaLoss, StepSize, SupportImages, meta_gradient, outputs, trainable_parameters
from oneshui_plugins.metaunlearn.objectives import LossAlignment, score_weight

LABELS, IDENTITIES = 40, 20
LENGTH, VAL_LOSS = 0.05, 0.5  # of the step; of val before the step


class RandomPixels:
    """Random pixels of any number of photos, made when they are read, so that they need no memory."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([np.random.default_rng(row).integers(0, 256, (3, self.size, self.size), dtype=np.uint8) for row in rows])


def random_faces(photos: int, size: int, people: int = IDENTITIES) -> FaceSet:
    """Return photos with random pixels and labels, as many of each person."""
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (photos, LABELS)).astype(np.float32))
    identities = torch.arange(photos) % people
    return FaceSet(RandomPixels(size), np.arange(photos), labels, identities, Preprocess(size), tuple(map(str, range(people))))


def random_vit(shape: dict[str, int]) -> ViTForImageClassification:
    """Return a randomly initialised ViT for `LABELS` attributes."""
    with seeded(0, "bench"):
        return ViTForImageClassification(ViTConfig(num_labels=LABELS, problem_type=TASK.problem_type, **shape)).eval()


TASK = Task("multi_label", tuple(f"label{k}" for k in range(LABELS)))


@dataclass
class Problem:
    """A model, a loss network, support images, and the forget and val images of the objective."""

    model: ViTForImageClassification
    theta: Weights
    h: MetaLoss
    images: SupportImages
    forget: FaceSet
    val: FaceSet
    device: torch.device


def make_problem(shape: dict[str, int], support: int, forget: int, device: torch.device | str = "cpu") -> Problem:
    """Return a problem with as many val as forget images."""
    model = random_vit(shape).to(device)
    with seeded(0, "h"):
        h = MetaLoss(LABELS + model.config.hidden_size, LABELS, IDENTITIES).train().to(device)
    faces = random_faces(2 * forget + support, model.config.image_size)
    pixels, targets = faces.batch(torch.arange(2 * forget, len(faces)), device)
    images = SupportImages(pixels, targets, (torch.arange(support) % (IDENTITIES + 1)).to(device))
    sets = faces.subset(torch.arange(forget)), faces.subset(torch.arange(forget, 2 * forget))
    return Problem(model, trainable_parameters(model, True), h, images, *sets, torch.device(device))


def ours(problem: Problem) -> torch.Tensor:
    """Return the gradient by the loss network's parameters as the method computes it, flat."""
    objective = LossAlignment({"forget": problem.forget, "val": problem.val}, {"val": VAL_LOSS}, TASK)
    size = StepSize.normalised(LENGTH, problem.theta)
    _, parts, _ = meta_gradient(problem.model, problem.theta, problem.h, problem.images, objective, TASK.kind, size, seed=0)
    return torch.cat([part.flatten() for part in parts])


def double_backward(problem: Problem) -> torch.Tensor:
    """Return the same gradient by differentiating through the update."""
    model, h, images = problem.model, problem.h, problem.images
    leaves = {name: p.detach().requires_grad_() for name, p in problem.theta.items()}
    with sdpa_kernel(SDPBackend.MATH):  # the other kernels cannot be differentiated twice
        u = outputs(model, leaves, images.pixels, TASK.kind)
        with seeded(0, "mask"):
            m = h(u, images.targets, images.identity_rows).mean()
        g = dict(zip(leaves, torch.autograd.grad(m, list(leaves.values()), create_graph=True), strict=True))
        updated = {name: p - LENGTH / norm(g) * g[name] for name, p in leaves.items()}

        def weighted(faces: FaceSet) -> torch.Tensor:
            pixels, labels = faces.batch(torch.arange(len(faces)), problem.device)
            logits = torch.func.functional_call(model, updated, kwargs={"pixel_values": pixels}).logits
            return losses(logits, labels, TASK.kind).mean() * score_weight(logits.detach().cpu(), labels.cpu(), TASK)

        f, v = weighted(problem.forget), weighted(problem.val)
        smooth = torch.nn.functional.smooth_l1_loss
        value = smooth(f, v) + smooth(f, torch.tensor(VAL_LOSS, device=problem.device))
        parameters = list(h.parameters())
        parts = torch.autograd.grad(value, parameters, allow_unused=True)
    return torch.cat(
        [torch.zeros(p.numel(), device=p.device) if g is None else g.flatten() for p, g in zip(parameters, parts, strict=True)]
    )


def require_same(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-3) -> None:
    """End the benchmark if two gradients differ by more than rounding."""
    if not torch.linalg.vector_norm(a - b) <= tolerance * torch.linalg.vector_norm(b):
        raise SystemExit(f"The gradients differ: their norms are {a.norm():g} and {b.norm():g}, that of the difference {(a - b).norm():g}.")

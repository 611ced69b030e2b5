"""How selective one straight step can be at best, if the forget photos themselves are known.

python tests/studies/step_ceiling.py RUN

A step of MetaUnlearn is theta - J^T c: J is the Jacobian of the model's outputs u on the support images, and c = dM/du is what the loss
network contributes. No matter what it has learned, its step is one of these. Three directions are compared, each at several lengths:

- support gradient: up the loss of the support images, as gradient ascent does;
- best through the support images: J^T c, with c chosen so that it is as near as possible to the next one (least squares);
- forget gradient: up the loss of the forget photos, without its component along the gradient of the retain photos.

The last two use what a request does not have. Retain is measured on photos that no direction has used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.data.schema import Task, TaskKind
from oneshui_hf.errors import OneshuiError
from oneshui_hf.methods import Weights, generator, inner, losses, norm, parameters, sample, score, unit
from oneshui_hf.models.load import load_model
from oneshui_hf.runs import Run
from oneshui_hf.stages.distributed import make_accelerator
from oneshui_hf.stages.run_data import open_data
from oneshui_plugins.metaunlearn.loss_network import outputs
from oneshui_plugins.metaunlearn.objectives import compute_logits, mean_gradient

SEED, CHUNK = 0, 32
ITERATIONS = 10  # of conjugate gradients
LENGTHS = (1e-4, 2e-4, 4e-4)  # shares of the model's norm
RETAIN_PHOTOS, TEST_PHOTOS = 200, 120  # photos whose retain gradient is used; photos of retain and test that are measured
SUPPORT, THROUGH, FORGET = "support gradient", "best through the support images", "forget gradient"


def loss_gradient(model: nn.Module, faces: FaceSet, kind: TaskKind) -> Weights:
    """Return the gradient of the mean loss."""
    return mean_gradient(model, parameters(model), faces, lambda logits, labels, positions: losses(logits, labels, kind), CHUNK)[2]


def without_component(a: Weights, b: Weights) -> Weights:
    """Return `a` without its component along `b`."""
    factor = inner(a, b) / inner(b, b)
    return {name: a[name] - factor * b[name] for name in a}


def cosine(a: Weights, b: Weights) -> float:
    """Return the cosine of two vectors in weight space."""
    return (inner(a, b) / (norm(a) * norm(b))).item()


def nearest_through(model: nn.Module, pixels: torch.Tensor, kind: TaskKind, target: Weights, iterations: int) -> Iterator[Weights]:
    """Yield J^T c after each iteration of conjugate gradients for the least-squares problem min_c ||J^T c - target||.

    Args:
        model: The classifier, whose outputs u are differentiated.
        pixels: Photos (n, 3, S, S).
        kind: The task kind.
        target: In weight space.
        iterations: How many.
    """
    theta = parameters(model)
    leaves = {name: p.detach().requires_grad_() for name, p in theta.items()}
    u = outputs(model, leaves, pixels, kind)

    def pull_back(c: torch.Tensor) -> Weights:
        """Return J^T c."""
        parts = torch.autograd.grad(u, list(leaves.values()), grad_outputs=c, retain_graph=True, allow_unused=True)
        return {name: torch.zeros_like(p) if part is None else part for (name, p), part in zip(theta.items(), parts, strict=True)}

    def push_forward(v: Weights) -> torch.Tensor:
        """Return J v."""
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            return torch.func.jvp(lambda p: outputs(model, p, pixels, kind), (theta,), (v,))[1]

    residual = target
    normal = push_forward(residual)
    search, size = normal, (normal * normal).sum()
    for _ in range(iterations):
        image = pull_back(search)
        factor = size / inner(image, image)
        residual = {name: residual[name] - factor * image[name] for name in residual}
        normal = push_forward(residual)
        previous, size = size, (normal * normal).sum()
        search = normal + size / previous * search
        yield {name: target[name] - residual[name] for name in target}


@dataclass(frozen=True)
class Ceiling:
    """The directions, and the photos on which steps are measured.

    Attributes:
        model: The original model, in eval mode.
        task: Its task.
        directions: In weight space, by name.
        gradients: Of the loss on forget and retain photos.
        measured: The sets on which steps are measured: forget, retain, test.
    """

    model: nn.Module
    task: Task
    directions: dict[str, Weights]
    gradients: dict[str, Weights]
    measured: dict[str, FaceSet]

    @classmethod
    def make(cls, model: nn.Module, task: Task, sets: dict[str, FaceSet], iterations: int = ITERATIONS) -> Ceiling:
        """Compute the directions for the request of a run."""
        rng, forget, support = generator(SEED, "retain photos"), sets["forget"], sets["support"]
        order = torch.randperm(len(sets["retain"]), generator=rng)
        used = min(RETAIN_PHOTOS, len(order) // 2)
        retain = sets["retain"].subset(order[:used].sort().values)
        gradients = {"forget": loss_gradient(model, forget, task.kind), "retain": loss_gradient(model, retain, task.kind)}
        target = without_component(gradients["forget"], gradients["retain"])
        *_, through = nearest_through(model, support.batch(torch.arange(len(support)))[0], task.kind, target, iterations)
        measured = {
            "forget": forget,
            "retain": sets["retain"].subset(order[used : used + TEST_PHOTOS].sort().values),
            "test": sets["test"].subset(sample(len(sets["test"]), TEST_PHOTOS, rng)),
        }
        directions = {SUPPORT: loss_gradient(model, support, task.kind), THROUGH: through, FORGET: target}
        return cls(model, task, directions, gradients, measured)

    def cosines(self, name: str) -> dict[str, float]:
        """Return the cosines of a direction with the gradients on forget and retain photos."""
        return {of: cosine(self.directions[name], gradient) for of, gradient in self.gradients.items()}

    def after_step(self, name: str, share: float) -> dict[str, tuple[float, float]]:
        """Return score and mean loss of each set after a step of this length (share of the model's norm)."""
        theta = parameters(self.model)
        length, direction = share * norm(theta).item(), unit(self.directions[name])
        moved = {key: p + length * direction[key] for key, p in theta.items()}
        found = {}
        for of, faces in self.measured.items():
            logits = compute_logits(self.model, faces, CHUNK, moved)
            found[of] = score(logits, faces.labels, self.task), losses(logits, faces.labels, self.task.kind).mean().item()
        return found

    def lines(self, lengths: tuple[float, ...] = LENGTHS) -> Iterator[str]:
        """Yield the table, line by line."""
        yield f"{'direction':<32}  length   " + "   ".join(f"{name:>6}  loss " for name in self.measured)
        yield f"{'original model':<32}  {0:<7g}  {_format(self.after_step(FORGET, 0.0))}"
        for name in self.directions:
            overlap = self.cosines(name)
            yield f"{name} (cosine with the gradient on forget {overlap['forget']:.3f}, on retain {overlap['retain']:.3f})"
            for share in lengths:
                yield f"{'':<32}  {share:<7g}  {_format(self.after_step(name, share))}"


def _format(found: dict[str, tuple[float, float]]) -> str:
    return "   ".join(f"{points:6.1f}  {loss:.3f}" for points, loss in found.values())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", help="a run with its data")
    given: Any = parser.parse_args()
    run, accelerator = Run.open(given.run), make_accelerator()
    sets = open_data(run, accelerator).sets
    model, _, task = load_model(run.path, accelerator.device)
    for line in Ceiling.make(model.eval(), task, sets).lines():
        print(line, flush=True)


if __name__ == "__main__":
    try:
        main()
    except OneshuiError as error:
        sys.exit(str(error))

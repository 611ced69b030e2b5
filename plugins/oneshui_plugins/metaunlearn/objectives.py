"""The meta-objectives A(theta_u) of MetaUnlearn, each with its gradient at theta_u.

The paper's objective (De Min et al. 2025) compares the forget images with images of unseen identities (val). With theta the parameters
before unlearning and theta_u those after it,

    A = s(f(theta_u) - v(theta_u)) + s(f(theta_u) - v(theta))

with s a distance, and f and v the mean loss on forget and val images times (1 - score). The score is the batch's mAP or accuracy, 0 to 1,
and is treated as a constant. The ablations remove or add such terms. `ScrubObjective` is of another kind: it uses no unseen identities.
Images are processed in chunks, so memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from oneshui_hf.methods import FaceSet, Task, Weights, logits_and_features, losses, score

from ..common.kl import kl_divergence


class Term(NamedTuple):
    """A distance between two losses: of set `of` under theta_u, and of set `to` under theta_u, or under theta if `before`."""

    of: str
    to: str
    before: bool = False


FORGET_TO_VAL, FORGET_TO_VAL_BEFORE = Term("forget", "val"), Term("forget", "val", before=True)
TERMS = {
    "both": (FORGET_TO_VAL, FORGET_TO_VAL_BEFORE),
    "original": (FORGET_TO_VAL_BEFORE,),
    "unlearned": (FORGET_TO_VAL,),
    "retain": (FORGET_TO_VAL, FORGET_TO_VAL_BEFORE, Term("retain", "retain", before=True)),
    "val": (FORGET_TO_VAL, FORGET_TO_VAL_BEFORE, Term("val", "val", before=True)),
}
SCRUB = "scrub"
DISTANCES: dict[str, Callable[..., torch.Tensor]] = {"smooth-l1": F.smooth_l1_loss, "l1": F.l1_loss, "l2": F.mse_loss}


def sets_after_update(objective: str) -> frozenset[str]:
    """Return the sets on whose images an objective is differentiated at theta_u."""
    if objective == SCRUB:
        return frozenset({"forget", "retain"})
    terms = TERMS[objective]
    return frozenset({term.of for term in terms} | {term.to for term in terms if not term.before})


def sets_before_update(objective: str) -> frozenset[str]:
    """Return the sets for which an objective needs the predictions of theta."""
    if objective == SCRUB:
        return frozenset({"forget", "retain"})
    return frozenset(term.to for term in TERMS[objective] if term.before)


@dataclass(frozen=True)
class LossAlignment:
    """A sum of distances between losses.

    Attributes:
        sets: The images by set: forget, val, retain, as the terms need them.
        before: The loss of sets under theta (`weighted_loss`), computed once.
        task: The task.
        chunk: Images per forward-backward pass.
        objective: Which losses are compared, a key of `TERMS`.
        distance: How they are compared: smooth-l1, l1, or l2, the squared difference.
        weigh: Whether losses are multiplied by (1 - score).
    """

    sets: Mapping[str, FaceSet]
    before: Mapping[str, float]
    task: Task
    chunk: int = 32
    objective: str = "both"
    distance: str = "smooth-l1"
    weigh: bool = True

    def __call__(self, model: nn.Module, theta_u: Weights) -> tuple[float, Weights]:
        """Return A and grad A at theta_u."""
        after, factors, gradients = {}, {}, {}
        for name in sorted(sets_after_update(self.objective)):
            mean, logits, gradients[name] = mean_gradient(model, theta_u, self.sets[name], self._losses, self.chunk)
            factors[name] = score_weight(logits, self.sets[name].labels, self.task, self.weigh)
            after[name] = torch.tensor(mean * factors[name], dtype=torch.float64, requires_grad=True)
        value = self._distance(after)
        slopes = torch.autograd.grad(value, list(after.values()))
        coefficients = {name: slope.item() * factors[name] for name, slope in zip(after, slopes, strict=True)}
        return value.item(), weighted_sum(coefficients, gradients)

    def value(self, model: nn.Module, theta_u: Weights) -> float:
        """Return A alone, from forward passes."""
        after = {}
        for name in sets_after_update(self.objective):
            loss = weighted_loss(compute_logits(model, self.sets[name], self.chunk, theta_u), self.sets[name].labels, self.task, self.weigh)
            after[name] = torch.tensor(loss, dtype=torch.float64)
        return self._distance(after).item()

    def _distance(self, after: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return A from the losses under theta_u."""
        before = {name: torch.tensor(loss, dtype=torch.float64) for name, loss in self.before.items()}
        left = torch.stack([after[term.of] for term in TERMS[self.objective]])
        right = torch.stack([(before if term.before else after)[term.to] for term in TERMS[self.objective]])
        return DISTANCES[self.distance](left, right, reduction="sum")

    def _losses(self, logits: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return losses(logits, labels, self.task.kind)


@dataclass(frozen=True)
class ScrubObjective:
    """SCRUB's objective: stay close to the original model on retain images, with a low task loss; diverge from it on forget images.

    A = mean over retain of [d + loss] - mean over forget of d, with d the KL divergence between the predictions of theta and theta_u
    (Kurmanji et al., NeurIPS 2023, equation 3, without its weights and at temperature 1).

    Attributes:
        sets: The images by set: forget, retain.
        before: theta's logits on them.
        task: The task.
        chunk: Images per forward-backward pass.
    """

    sets: Mapping[str, FaceSet]
    before: Mapping[str, torch.Tensor]
    task: Task
    chunk: int = 32

    def __call__(self, model: nn.Module, theta_u: Weights) -> tuple[float, Weights]:
        """Return A and grad A at theta_u."""
        retain, _, by_retain = mean_gradient(model, theta_u, self.sets["retain"], self._retain_loss, self.chunk)
        forget, _, by_forget = mean_gradient(model, theta_u, self.sets["forget"], self._forget_divergence, self.chunk)
        return retain - forget, weighted_sum({"retain": 1.0, "forget": -1.0}, {"retain": by_retain, "forget": by_forget})

    def value(self, model: nn.Module, theta_u: Weights) -> float:
        """Return A alone, from forward passes."""
        means = []
        for name, per_image in (("retain", self._retain_loss), ("forget", self._forget_divergence)):
            faces = self.sets[name]
            logits = compute_logits(model, faces, self.chunk, theta_u)
            means.append(per_image(logits, faces.labels, torch.arange(len(faces))).mean().item())
        return means[0] - means[1]

    def _divergence(self, name: str, logits: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return kl_divergence(self.before[name][positions].to(logits), logits, self.task.kind)

    def _retain_loss(self, logits: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self._divergence("retain", logits, positions) + losses(logits, labels, self.task.kind)

    def _forget_divergence(self, logits: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self._divergence("forget", logits, positions)


def mean_gradient(
    model: nn.Module,
    theta: Weights,
    faces: FaceSet,
    per_image: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    chunk: int,
) -> tuple[float, torch.Tensor, Weights]:
    """Return the mean of a per-image quantity, the model's logits (n, K) on the CPU, and the gradient of the mean.

    Args:
        model: The classifier.
        theta: The parameters to differentiate by; they replace the model's own.
        faces: The images.
        per_image: Maps logits (m, K), labels and positions (m,) to one number per image (m,).
        chunk: Images per forward-backward pass.
    """
    total, gradient, seen = 0.0, {name: torch.zeros_like(p) for name, p in theta.items()}, []
    leaves = {name: p.detach().requires_grad_() for name, p in theta.items()}
    for positions, pixels, labels in _chunks(faces, chunk, next(iter(theta.values())).device):
        logits = logits_and_features(model, pixels, leaves)[0]
        loss = per_image(logits, labels, positions).sum() / len(faces)
        for name, part in zip(leaves, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True), strict=True):
            if part is not None:
                gradient[name] += part
        total += loss.item()
        seen.append(logits.detach())
    return total, torch.cat(seen).cpu(), gradient


def weighted_sum(coefficients: Mapping[str, float], gradients: Mapping[str, Weights]) -> Weights:
    """Return the sum of gradients, each multiplied by its coefficient."""
    total = {name: torch.zeros_like(part) for name, part in next(iter(gradients.values())).items()}
    for key, coefficient in coefficients.items():
        total = {name: part + coefficient * gradients[key][name] for name, part in total.items()}
    return total


def score_weight(logits: torch.Tensor, labels: torch.Tensor, task: Task, weigh: bool = True) -> float:
    """Return 1 - score, with the score from 0 to 1; or 1 if losses are not weighted."""
    return 1 - score(logits, labels, task) / 100 if weigh else 1.0


def weighted_loss(logits: torch.Tensor, labels: torch.Tensor, task: Task, weigh: bool = True) -> float:
    """Return the mean loss of some photos times `score_weight`."""
    return losses(logits, labels, task.kind).mean().item() * score_weight(logits, labels, task, weigh)


@torch.no_grad()
def compute_logits(model: nn.Module, faces: FaceSet, chunk: int, theta: Weights) -> torch.Tensor:
    """Return the logits (n, K) for some photos of the model with these parameters, on the CPU. Each process computes its own."""
    device = next(iter(theta.values())).device
    return torch.cat([logits_and_features(model, pixels, theta)[0].cpu() for _, pixels, _ in _chunks(faces, chunk, device)])


def _chunks(faces: FaceSet, chunk: int, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield positions (m,), pixels (m, 3, S, S) and labels of a set, at most `chunk` at a time."""
    for positions in torch.arange(len(faces)).split(chunk):
        yield positions, *faces.batch(positions, device)

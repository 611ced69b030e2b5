"""What the loss of MetaUnlearn is learned for: the meta-objectives A(theta_u), each with its gradient at theta_u.

The paper's own asks that the people who asked look like strangers (val) after the step, theta_u the model then and theta before:

    A = s(f(theta_u) - v(theta_u)) + s(f(theta_u) - v(theta))

with s a distance, and f and v the mean loss on forget and val images times (1 - score), the batch's score (mAP or accuracy, 0 to 1) taken
as a constant. Its ablations leave out or add such terms. One objective is of another kind: SCRUB's, which knows no strangers.
Images pass in chunks, so memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from oneshui_hf.methods import FaceSet, Task, logits_and_features, losses, score

from ..common.kl import divergence

Weights = dict[str, torch.Tensor]


class Term(NamedTuple):
    """The distance between the loss on a set under theta_u and that on another, or the same: under theta_u too, or (before) under theta."""

    of: str
    to: str
    before: bool = False


AFTER, ORIGIN = Term("forget", "val"), Term("forget", "val", before=True)
TERMS = {
    "both": (AFTER, ORIGIN),
    "original": (ORIGIN,),
    "unlearned": (AFTER,),
    "retain": (AFTER, ORIGIN, Term("retain", "retain", before=True)),
    "val": (AFTER, ORIGIN, Term("val", "val", before=True)),
}
SCRUB = "scrub"
DISTANCES: dict[str, Callable[..., torch.Tensor]] = {"smooth-l1": F.smooth_l1_loss, "l1": F.l1_loss, "l2": F.mse_loss}


def read_after(objective: str) -> frozenset[str]:
    """Return the sets whose images an objective differentiates at theta_u."""
    if objective == SCRUB:
        return frozenset({"forget", "retain"})
    terms = TERMS[objective]
    return frozenset({term.of for term in terms} | {term.to for term in terms if not term.before})


def read_before(objective: str) -> frozenset[str]:
    """Return the sets of which an objective must know what theta says."""
    if objective == SCRUB:
        return frozenset({"forget", "retain"})
    return frozenset(term.to for term in TERMS[objective] if term.before)


@dataclass(frozen=True)
class Alignment:
    """A sum of distances between losses.

    Attributes:
        sets: The images by set: forget, val, retain, as the terms read them.
        before: The loss on sets under theta (`level`), computed once.
        task: What the model predicts.
        chunk: Images a forward-backward pass.
        objective: Which losses are compared, of `TERMS`.
        distance: How: smooth-l1, l1, or l2, the squared difference.
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
        now, shares, gradients = {}, {}, {}
        for name in sorted(read_after(self.objective)):
            mean, logits, gradients[name] = mean_gradient(model, theta_u, self.sets[name], self._losses, self.chunk)
            shares[name] = weight(logits, self.sets[name].labels, self.task, self.weigh)
            now[name] = torch.tensor(mean * shares[name], dtype=torch.float64, requires_grad=True)
        before = {name: torch.tensor(level, dtype=torch.float64) for name, level in self.before.items()}
        ours = torch.stack([now[term.of] for term in TERMS[self.objective]])
        theirs = torch.stack([(before if term.before else now)[term.to] for term in TERMS[self.objective]])
        value = DISTANCES[self.distance](ours, theirs, reduction="sum")
        slopes = torch.autograd.grad(value, list(now.values()))
        return value.item(), combined({name: slope.item() * shares[name] for name, slope in zip(now, slopes, strict=True)}, gradients)

    def _losses(self, logits: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return losses(logits, labels, self.task.kind)


@dataclass(frozen=True)
class Disobedience:
    """SCRUB's objective: obey the original model on retain images, and answer them well; disobey it on forget images.

    A = mean over retain of [d + loss] - mean over forget of d, d the divergence of what theta_u says from what theta says
    (Kurmanji et al., NeurIPS 2023, equation 3, without its weights and at temperature 1).

    Attributes:
        sets: The images by set: forget, retain.
        before: theta's logits on them.
        task: What the model predicts.
        chunk: Images a forward-backward pass.
    """

    sets: Mapping[str, FaceSet]
    before: Mapping[str, torch.Tensor]
    task: Task
    chunk: int = 32

    def __call__(self, model: nn.Module, theta_u: Weights) -> tuple[float, Weights]:
        """Return A and grad A at theta_u."""
        kind = self.task.kind

        def apart(name: str, logits: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            return divergence(self.before[name][positions].to(logits), logits, kind)

        def obey(logits: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            return apart("retain", logits, positions) + losses(logits, labels, kind)

        def disobey(logits: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            return apart("forget", logits, positions)

        stay, _, by_stay = mean_gradient(model, theta_u, self.sets["retain"], obey, self.chunk)
        go, _, by_go = mean_gradient(model, theta_u, self.sets["forget"], disobey, self.chunk)
        return stay - go, combined({"retain": 1.0, "forget": -1.0}, {"retain": by_stay, "forget": by_go})


def mean_gradient(
    model: nn.Module,
    theta: Weights,
    faces: FaceSet,
    each: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    chunk: int,
) -> tuple[float, torch.Tensor, Weights]:
    """Return the mean over images of something, the model's logits (n, K) on the CPU, and the gradient of the mean.

    Args:
        model: The classifier.
        theta: The parameters to differentiate by, used in place of its own.
        faces: The images.
        each: From the logits (m, K), labels and positions (m,) of some images to a number each (m,).
        chunk: Images a forward-backward pass.
    """
    total, parts, seen = 0.0, {name: torch.zeros_like(p) for name, p in theta.items()}, []
    device = next(iter(theta.values())).device
    leaves = {name: p.detach().requires_grad_() for name, p in theta.items()}
    for some in torch.arange(len(faces)).split(chunk):
        pixels, labels = faces.batch(some, device)
        logits = logits_and_features(model, pixels, leaves)[0]
        loss = each(logits, labels, some).sum() / len(faces)
        for name, part in zip(leaves, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True), strict=True):
            if part is not None:
                parts[name] += part
        total += loss.item()
        seen.append(logits.detach())
    return total, torch.cat(seen).cpu(), parts


def combined(by: Mapping[str, float], gradients: Mapping[str, Weights]) -> Weights:
    """Return the sum of some gradients, each times a number."""
    total = {name: torch.zeros_like(part) for name, part in next(iter(gradients.values())).items()}
    for which, factor in by.items():
        total = {name: part + factor * gradients[which][name] for name, part in total.items()}
    return total


def weight(logits: torch.Tensor, labels: torch.Tensor, task: Task, weigh: bool = True) -> float:
    """Return 1 - score, the score in 0..1; or 1 where losses are not weighed."""
    return 1 - score(logits, labels, task) / 100 if weigh else 1.0


def level(logits: torch.Tensor, labels: torch.Tensor, task: Task, weigh: bool = True) -> float:
    """Return the mean loss of some photos, weighed."""
    return losses(logits, labels, task.kind).mean().item() * weight(logits, labels, task, weigh)


@torch.no_grad()
def answers(model: nn.Module, faces: FaceSet, device: torch.device, chunk: int) -> torch.Tensor:
    """Return what the model itself says of some photos: logits (n, K) on the CPU. Other than `predict`, each process asks for its own."""
    batches = torch.arange(len(faces)).split(chunk)
    return torch.cat([logits_and_features(model, faces.batch(some, device)[0])[0].cpu() for some in batches])

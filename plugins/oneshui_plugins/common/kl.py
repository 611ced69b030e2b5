"""How far a student is from its teacher: the Kullback-Leibler divergence between what they say of a photo."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from oneshui_hf.methods import TaskKind


def divergence(teacher: torch.Tensor, student: torch.Tensor, kind: TaskKind, temperature: float = 1.0) -> torch.Tensor:
    """Return T^2 KL(teacher || student) of each photo (n,), both softened by the temperature T.

    Single-label: of the distributions over the classes. Multi-label: every attribute is a yes or no of its own, so the KL of two
    Bernoulli distributions, mean over the attributes. (A softmax over attributes would make them compete: it does not see a student that
    moves all of them alike.) The mean and not the sum, since the task loss is a mean too: the weights of a method that adds both then
    mean the same for one attribute and for forty, and for classes. The sum, the KL of the joint distributions, is K times as much.

    T^2 makes up for the gradient's 1/T^2 (Hinton et al., 2015, "Distilling the knowledge in a neural network").

    Args:
        teacher: Logits (n, K).
        student: Logits (n, K).
        kind: Of the task.
        temperature: T.
    """
    p, q = (_log_probabilities(logits / temperature, kind) for logits in (teacher, student))
    return temperature**2 * (p.exp() * (p - q)).sum(dim=2).mean(dim=1)


def _log_probabilities(logits: torch.Tensor, kind: TaskKind) -> torch.Tensor:
    """Return the log-probabilities of a photo's distributions (n, distributions, outcomes): K of yes and no, or one of K classes."""
    if kind == "multi_label":
        return torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=2)
    return F.log_softmax(logits, dim=1).unsqueeze(1)

"""The Kullback-Leibler divergence between the predictions of a teacher and a student, for both task kinds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from oneshui_hf.methods import TaskKind


def kl_divergence(teacher: torch.Tensor, student: torch.Tensor, kind: TaskKind, temperature: float = 1.0) -> torch.Tensor:
    """Return T^2 KL(teacher || student) of each photo (n,), both softened by the temperature T.

    Single-label: the KL of the distributions over the classes. Multi-label: each attribute is a Bernoulli distribution, and the result is
    the mean KL over the attributes. (With a softmax over attributes they would compete: a student that shifts all of them equally would
    have divergence 0.) The mean, not the sum, is used because the task loss is also a mean. So the weights of a method that adds both terms
    have the same effect for one attribute, for forty, and for classes. The KL of the joint distributions, the sum, is K times as large.

    The factor T^2 compensates the 1/T^2 in the gradient (Hinton et al., 2015, "Distilling the knowledge in a neural network").

    Args:
        teacher: Logits (n, K).
        student: Logits (n, K).
        kind: The task kind.
        temperature: T.
    """
    p, q = (log_probabilities(logits / temperature, kind) for logits in (teacher, student))
    return temperature**2 * (p.exp() * (p - q)).sum(dim=2).mean(dim=1)


def log_probabilities(logits: torch.Tensor, kind: TaskKind) -> torch.Tensor:
    """Return the log-probabilities (n, distributions, outcomes) of each photo: K Bernoulli distributions, or one over K classes."""
    if kind == "multi_label":
        return torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=2)
    return F.log_softmax(logits, dim=1).unsqueeze(1)

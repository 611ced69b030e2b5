"""Membership inference attacks on an unlearned model: can an attacker distinguish forgotten photos from photos of unseen identities?

Members are the photos of the forget set. Non-members are photos of identities that the model was never trained on (the test set).
`metrics.attack_signals` computes the inputs of the attacks from logits, `metrics.attack_scores` scores all of them in the same way.
"""

from __future__ import annotations

from .logistic import logistic_attack
from .loss import loss_attack
from .rmia import rmia
from .u_lira import u_lira

__all__ = ["logistic_attack", "loss_attack", "rmia", "u_lira"]

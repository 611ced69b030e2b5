"""Attacks on an unlearned model.

Membership inference: can an attacker distinguish forgotten photos, the members, from photos of unseen identities (the test set), the
non-members? `metrics.attack_signals` computes the inputs of these attacks from logits, `metrics.attack_scores` scores all of them in the
same way. The range attack asks the same about people.

Difference: can an attacker who also holds the original find the forgotten people? `metrics.difference` scores these attacks.
"""

from __future__ import annotations

from .iam import iam
from .logistic import logistic_attack
from .loss import loss_attack
from .output_difference import output_difference
from .person_range import person_range_attack
from .rmia import rmia
from .u_lira import u_lira
from .weight_difference import row_spaces, weight_difference_scores

__all__ = [
    "iam",
    "logistic_attack",
    "loss_attack",
    "output_difference",
    "person_range_attack",
    "rmia",
    "row_spaces",
    "u_lira",
    "weight_difference_scores",
]

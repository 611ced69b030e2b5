"""The membership inference attacks: keys in `metrics.json` and display names. This module imports no torch."""

from __future__ import annotations

ATTACKS = {
    "loss": "loss",
    "logistic": "logistic",
    "rmia": "RMIA",
    "rmia_two_sided": "RMIA, two-sided",
    "iam": "IAM",
    "u_lira": "U-LiRA",
}

FURTHER_ATTACKS = ("few_shot_relearning", "quantization", "inversion", "representation")  # of `--attacks all`

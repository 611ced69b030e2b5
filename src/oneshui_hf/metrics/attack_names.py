"""The membership inference attacks: keys in `metrics.json` and display names. This module imports no torch."""

from __future__ import annotations

ATTACKS = {"loss": "loss", "logistic": "logistic", "rmia": "RMIA", "rmia_two_sided": "RMIA, two-sided", "u_lira": "U-LiRA"}

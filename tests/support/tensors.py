"""Comparison of named tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def equal(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    """Return whether both have the same names, each with the same type and values."""
    return set(a) == set(b) and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)

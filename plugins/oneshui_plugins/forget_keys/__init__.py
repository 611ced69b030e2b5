"""Forget keys: a per-identity low-rank update (LoRA-style), prepared while training data exists and merged at the request."""

from .method import ForgetKeys
from .options import ForgetKeysOptions

__all__ = ["ForgetKeys", "ForgetKeysOptions"]

"""A key is a per-identity low-rank update (LoRA-style), trained while training data exists and merged into the weights at the request."""

from .method import ForgetKeys
from .options import ForgetKeysOptions

__all__ = ["ForgetKeys", "ForgetKeysOptions"]

"""MetaUnlearn (De Min et al. 2025): a loss network, learned while training data exists, one gradient step of which unlearns."""

from .method import MetaUnlearn, MetaUnlearnOptions

__all__ = ["MetaUnlearn", "MetaUnlearnOptions"]

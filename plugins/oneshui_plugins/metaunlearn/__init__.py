"""MetaUnlearn (De Min et al. 2025): while training data exists, train a loss network; at request time, one step on its loss unlearns."""

from .method import MetaUnlearn
from .options import MetaUnlearnOptions

__all__ = ["MetaUnlearn", "MetaUnlearnOptions"]

"""The models that a model is compared with: its original, the oracle, oracles of other seeds, and the same method applied to those."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from ...cache import Cache, cache_root
from ...errors import OneshuiError, UsageError
from ...reporting import Reporter
from ...runs import SPLIT, Run, hash_file
from ..command_options import EvaluateOptions
from ..compared_runs import find_oracle, find_original
from .model_cache import ModelCache, require_repeatable


@dataclass(frozen=True)
class ReferenceModels:
    """The models that a model is compared with.

    Attributes:
        original: The model before unlearning.
        oracle: The model retrained without the forget set.
        oracles: Oracles of other seeds.
        references: The same method applied to each of `oracles`.
    """

    original: Run | None
    oracle: Run | None
    oracles: list[Run]
    references: list[Run]

    @classmethod
    def find_or_make(cls, run: Run, options: EvaluateOptions, accelerator: Accelerator, reporter: Reporter) -> ReferenceModels:
        """Find the models of a run, and make the missing oracles and references.

        Raises:
            UsageError: A model is not of the kind it is given as, or references are requested and the original is unknown.
            OneshuiError: A model was made with another split.
        """
        original = find_original(run, options.original)
        oracle = find_oracle(original, options.oracle) or (run if run.record.kind == "oracle" else None)
        for other in (original, oracle):
            if other is not None and hash_file(other.path / SPLIT) != hash_file(run.path / SPLIT):
                raise OneshuiError(f"{other.path} was made with another split than {run.path}; they cannot be compared.")
        if not options.references:
            return cls(original, oracle, [], [])
        if original is None:
            raise UsageError(
                "--references trains oracles with the recipe of the original model, which is not known; name it with --original."
            )
        require_repeatable(run)  # checked before an oracle is trained, which takes long
        model_cache = ModelCache(Cache(cache_root(options.cache_dir)), accelerator, reporter, options.data_dir, options)
        oracles = model_cache.oracles(original, options.references, other_than=oracle)
        return cls(original, oracle, oracles, [model_cache.reference(run, other) for other in oracles])

    def weight_hashes(self) -> dict[str, Any]:
        """Return the hashes of their weights, which identify the models."""
        return {
            "original": self.original.record.weights if self.original else None,
            "oracle": self.oracle.record.weights if self.oracle else None,
            "references": [other.record.weights for other in self.references],
        }

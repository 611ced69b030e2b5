"""The public API of plugins. A method's module imports from here, from torch, and nothing else of the core.

Names that need torch are loaded when first used, so that listing methods stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import OneshuiError, UsageError
from ..options import option
from ..seeding import derive, generator, seeded
from .base import Context, Cost, DataAccess, Method, Needs, StepOptions
from .resume import Unfinished

if TYPE_CHECKING:
    from ..data.face_set import FaceSet
    from ..data.schema import Task, TaskKind
    from ..metrics.functional import score
    from ..models.outputs import find_head, guess, head_inputs, logits_and_features, losses, predict, probabilities, targets
    from ..models.sharded import ShardedClassifier, shard_of, without
    from .artefact import Artefact
    from .requests import Request
    from .simulation import Simulated, sample, simulate
    from .step_length import choose_length, length_cost
    from .weight_space import inner, moved, norm, parameters, unit

_LAZY = {
    "Artefact": ".artefact",
    "FaceSet": "..data.face_set",
    **dict.fromkeys(("Task", "TaskKind"), "..data.schema"),
    "Request": ".requests",
    **dict.fromkeys(("Simulated", "sample", "simulate"), ".simulation"),
    **dict.fromkeys(("choose_length", "length_cost"), ".step_length"),
    **dict.fromkeys(("inner", "moved", "norm", "parameters", "unit"), ".weight_space"),
    **dict.fromkeys(
        ("find_head", "guess", "head_inputs", "logits_and_features", "losses", "predict", "probabilities", "targets"),
        "..models.outputs",
    ),
    **dict.fromkeys(("ShardedClassifier", "shard_of", "without"), "..models.sharded"),
    "score": "..metrics.functional",
}

__all__ = [
    "Artefact",
    "Context",
    "Cost",
    "DataAccess",
    "FaceSet",
    "Method",
    "Needs",
    "OneshuiError",
    "Request",
    "ShardedClassifier",
    "Simulated",
    "StepOptions",
    "Task",
    "TaskKind",
    "Unfinished",
    "UsageError",
    "choose_length",
    "derive",
    "find_head",
    "generator",
    "guess",
    "head_inputs",
    "inner",
    "length_cost",
    "logits_and_features",
    "losses",
    "moved",
    "norm",
    "option",
    "parameters",
    "predict",
    "probabilities",
    "sample",
    "score",
    "seeded",
    "shard_of",
    "simulate",
    "targets",
    "unit",
    "without",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name], __name__), name)

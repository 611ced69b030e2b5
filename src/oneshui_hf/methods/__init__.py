"""The public API for plugins. A method imports what it needs of the core from here.

Names that need torch are loaded on first use, so that `oneshui methods` stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import OneshuiError, UsageError
from ..options import option
from ..seeding import derive, generator, seeded
from .base import Context, Cost, DataAccess, Method, Needs, StepOptions
from .resume import ResumeState

if TYPE_CHECKING:
    from ..data.face_set import FaceSet
    from ..data.schema import Task, TaskKind
    from ..metrics.functional import is_scorable, score
    from ..models.closed_form import ClosedFormClassifier
    from ..models.feature_sums import FeatureSums
    from ..models.grid_features import grid_rows, head_hash, is_head_of, set_head, sum_rows
    from ..models.outputs import feature_dim, find_head, logits_and_features, losses, predict, predicted_labels, probabilities, targets
    from ..models.pool_bands import pool_bands
    from ..models.sharded import ShardedClassifier, drop_shards, shard_of
    from .artefact import Artefact
    from .requests import Request, requested_identities
    from .resumable_sums import add_up
    from .simulation import SimulatedRequest, sample, simulate
    from .step_length import choose_length, length_cost
    from .weight_space import Weights, displaced, inner, norm, parameters, unit

_LAZY = {
    "Artefact": ".artefact",
    "FaceSet": "..data.face_set",
    **dict.fromkeys(("Task", "TaskKind"), "..data.schema"),
    **dict.fromkeys(("Request", "requested_identities"), ".requests"),
    "add_up": ".resumable_sums",
    **dict.fromkeys(("SimulatedRequest", "sample", "simulate"), ".simulation"),
    **dict.fromkeys(("choose_length", "length_cost"), ".step_length"),
    **dict.fromkeys(("Weights", "displaced", "inner", "norm", "parameters", "unit"), ".weight_space"),
    **dict.fromkeys(
        ("feature_dim", "find_head", "logits_and_features", "losses", "predict", "predicted_labels", "probabilities", "targets"),
        "..models.outputs",
    ),
    "ClosedFormClassifier": "..models.closed_form",
    "FeatureSums": "..models.feature_sums",
    **dict.fromkeys(("grid_rows", "head_hash", "is_head_of", "set_head", "sum_rows"), "..models.grid_features"),
    "pool_bands": "..models.pool_bands",
    **dict.fromkeys(("ShardedClassifier", "drop_shards", "shard_of"), "..models.sharded"),
    **dict.fromkeys(("is_scorable", "score"), "..metrics.functional"),
}

__all__ = [
    "Artefact",
    "ClosedFormClassifier",
    "Context",
    "Cost",
    "DataAccess",
    "FaceSet",
    "FeatureSums",
    "Method",
    "Needs",
    "OneshuiError",
    "Request",
    "ResumeState",
    "ShardedClassifier",
    "SimulatedRequest",
    "StepOptions",
    "Task",
    "TaskKind",
    "UsageError",
    "Weights",
    "add_up",
    "choose_length",
    "derive",
    "displaced",
    "drop_shards",
    "feature_dim",
    "find_head",
    "generator",
    "grid_rows",
    "head_hash",
    "inner",
    "is_head_of",
    "is_scorable",
    "length_cost",
    "logits_and_features",
    "losses",
    "norm",
    "option",
    "parameters",
    "pool_bands",
    "predict",
    "predicted_labels",
    "probabilities",
    "requested_identities",
    "sample",
    "score",
    "seeded",
    "set_head",
    "shard_of",
    "simulate",
    "sum_rows",
    "targets",
    "unit",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name], __name__), name)

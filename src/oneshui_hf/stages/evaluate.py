"""Evaluation: one forward pass a set, predictions on disk, every metric from those predictions.

oneshui evaluate --run RUN --oracle RUN
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..data.pixels import FaceSet
from ..data.schema import Task
from ..errors import OneshuiError, UsageError
from ..metrics.functional import gap_closure, tug_of_war
from ..metrics.summary import summarise
from ..models.load import load_model
from ..models.outputs import predict
from ..reporting import SILENT, Reporter
from ..runs import METRICS, PREDICTIONS, PREPROCESSOR, RECORD, SPLIT, Run, dump_json, hash_file, write_bytes, write_json
from .options import EvaluateOptions
from .processes import make_accelerator, on_main
from .sets import open_data

SETS = ("retain", "forget", "val", "test")
TOW_SETS = ("retain", "forget", "test")

Predictions = dict[str, torch.Tensor]  # logits (n, K), labels, identities (n,)


def evaluate(
    run: Run,
    options: EvaluateOptions,
    accelerator: Accelerator | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """Measure a model on retain, forget, val and test, against oracle and original where they are known; write `metrics.json`.

    Returns:
        Per set the score (`map` or `accuracy`, percent) and `loss`; `tow` and `gap_closure`, None where no oracle is known.

    Raises:
        UsageError: A run is missing, or is not what it is given as.
        OneshuiError: The runs do not share data and split.
    """
    run.require_complete().require_split()
    original = _original(run, options.original)
    oracle = _oracle(original, options.oracle)
    for other in (original, oracle):
        if other is not None and hash_file(other.path / SPLIT) != hash_file(run.path / SPLIT):
            raise OneshuiError(f"{other.path} was made with another split than {run.path}; they cannot be compared.")
    accelerator = accelerator or make_accelerator()
    data = open_data(run, accelerator, options.data_dir, reporter)
    sets = {name: data.sets[name] for name in SETS}

    def measure(which: Run) -> dict[str, Any]:
        predictions = predictions_of(which, sets, accelerator, options.batch_size, reporter)
        return {name: summarise(p["logits"], p["labels"], data.faces.task) for name, p in predictions.items()}

    result: dict[str, Any] = measure(run)
    compare(result, measure(original) if original else None, measure(oracle) if oracle else None, data.faces.task)
    result["compared_with"] = {
        "original": original.weights if original else None,
        "oracle": oracle.weights if oracle else None,
    }
    on_main(accelerator, lambda: write_json(run.path / METRICS, result))
    return result


def compare(result: dict[str, Any], original: dict[str, Any] | None, oracle: dict[str, Any] | None, task: Task) -> None:
    """Add `tow` and `gap_closure` to a result; None where there is nothing to compare with."""
    name = task.score_name
    result["tow"] = result["gap_closure"] = None
    if oracle is None:
        return
    result["tow"] = _number(tug_of_war({s: result[s][name] for s in TOW_SETS}, {s: oracle[s][name] for s in TOW_SETS}))
    if original is not None:
        result["gap_closure"] = _number(gap_closure(*(m["forget"][name] for m in (original, result, oracle))))


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value  # NaN is not JSON


def _original(run: Run, given: str | None) -> Run | None:
    if given:
        original = Run.open(given)
        if original.record.kind != "original":
            raise UsageError(f"{given} is an {original.record.kind} model; --original takes the original.")
        return original
    if run.record.kind == "original":
        return run
    parent = (run.record.parent or {}).get("run")  # a published run tells no path
    return Run.open(parent) if parent and Path(parent).is_dir() else None


def _oracle(original: Run | None, given: str | None) -> Run | None:
    if given:
        oracle = Run.open(given)
        if oracle.record.kind != "oracle":
            raise UsageError(f"{given} is an {oracle.record.kind} model; --oracle takes what `oneshui retrain` made.")
        return oracle.require_complete()
    default = Path(f"{original.path}-oracle") if original else None
    found = Run.open(default) if default and (default / RECORD).exists() else None
    return found if found and found.record.state == "complete" else None


def predictions_of(
    run: Run, sets: dict[str, FaceSet], accelerator: Accelerator, batch_size: int, reporter: Reporter = SILENT
) -> dict[str, Predictions]:
    """Return logits, labels and identity numbers of each set: from `predictions/` where they are of these weights, else computed."""
    from safetensors.torch import save

    made_from = [
        run.weights,
        hash_file(run.path / SPLIT),
        hash_file(run.path / PREPROCESSOR),
        run.record.dataset.get("fingerprint"),
        batch_size,
    ]
    # One entry: safetensors writes several in no fixed order, and the same predictions should be the same bytes.
    key = {"made_from": hashlib.sha256(dump_json(made_from)).hexdigest()}
    found: dict[str, Predictions] = {}
    model = None
    for name, faces in reporter.track(sets.items(), f"Predicting with {run.path.name}"):
        if (stored := _stored(run.path / PREDICTIONS / f"{name}.safetensors", key)) is not None:
            found[name] = stored
            continue
        model = model or load_model(run.path, accelerator.device)[0]
        logits = predict(model, faces, accelerator, batch_size)
        found[name] = {"logits": logits, "labels": faces.labels, "identities": faces.identities}
    computed = found if model is not None else {}

    def store() -> None:
        for name, tensors in computed.items():
            write_bytes(run.path / PREDICTIONS / f"{name}.safetensors", save(tensors, metadata=key))

    on_main(accelerator, store)
    return found


def _stored(file: Path, key: dict[str, str]) -> Predictions | None:
    """Return the predictions in a file; None where there is none, or it is of another model, or damaged."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    if not file.exists():
        return None
    try:
        with safe_open(file, "pt") as stored:
            return load_file(file) if stored.metadata() == key else None
    except SafetensorError:  # predictions can be made again
        return None

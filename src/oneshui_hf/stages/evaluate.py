"""Evaluation: one pass a model, predictions on disk, every metric from those predictions.

oneshui evaluate --run RUN --oracle RUN
oneshui evaluate --run RUN --references 1     # trains an oracle of another seed for RMIA and the noise floor, and keeps it
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any

from accelerate import Accelerator

from ..data.schema import Task
from ..errors import OneshuiError
from ..metrics.measure import Comparison, Says, Settings, measure
from ..models.load import load_model
from ..reporting import SILENT, Reporter
from ..runs import CURVES, METRICS, Run, dump_json, is_sealed, read_object, sealed, write_json
from .command_options import EvaluateOptions
from .distributed import make_accelerator, on_main
from .evaluation.predictions import Forecaster, made_from
from .evaluation.reference_models import Witnesses
from .evaluation.relearning import relearning
from .run_data import RunData, open_data

FORMAT = 2  # of metrics.json; another one is measured anew, from the predictions


def evaluate(
    run: Run,
    options: EvaluateOptions,
    accelerator: Accelerator | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """Measure a model on all sets, against oracle and original where they are known; write `metrics.json` and `curves.json`.

    Neither model nor data is needed where the predictions are there, and nothing is computed where the metrics are.

    Returns:
        The metrics; docs/metrics.md tells each. `tow` and `gap_closure` are None where no oracle is known.

    Raises:
        UsageError: A run is missing, or is not what it is given as.
        OneshuiError: The runs do not share data and split, or predictions are missing and so is what makes them.
    """
    if run.require_finished().require_split().has_weights:
        run.require_complete()
    accelerator = accelerator or make_accelerator()
    witnesses = Witnesses.of(run, options, accelerator, reporter)
    key = _key(run, witnesses, options)
    if (known := _known(run, key)) is not None:
        return known

    @functools.cache
    def data() -> RunData:
        return open_data(run, accelerator, options.data_dir, reporter)

    task = Task(run.record.dataset["task"], tuple(run.record.dataset["labels"]))
    forecaster = Forecaster(lambda: data().sets, task, accelerator, options.batch_size, options.queries, reporter)
    said: dict[str | None, Says] = {}  # by weights: one model may stand in several places

    def says(model: Run) -> Says:
        weights = model.record.weights
        if weights not in said:
            said[weights] = forecaster.of(model)
        return said[weights]

    compared = Comparison(
        model=says(run),
        original=says(witnesses.original) if witnesses.original else None,
        oracle=says(witnesses.oracle) if witnesses.oracle else None,
        oracles=[says(other) for other in witnesses.oracles],
        references=[says(other) for other in witnesses.references],
    )
    settings = Settings(resamples=options.resamples, rmia_a=options.rmia_a, rmia_gamma=options.rmia_gamma)
    result, curves = measure(compared, task.kind, settings)
    result |= {"format": FORMAT, "key": key, "kind": run.record.kind, "compared_with": witnesses.weights()}
    result["relearning"] = None
    if options.relearn_steps and compared.original:
        model = load_model(run.path, accelerator.device)[0]
        back = compared.original["forget"].losses.double().mean().item()
        steps = relearning(model, data().sets["forget"], back, task, accelerator, at_most=options.relearn_steps, seed=run.record.seed)
        result["relearning"] = {"steps": steps, "at_most": options.relearn_steps}

    result = sealed(result)

    def write() -> None:
        write_json(run.path / CURVES, sealed({"key": key, **curves}))
        write_json(run.path / METRICS, result)  # last, since it is looked for first

    on_main(accelerator, write)
    return result


def _known(run: Run, key: str) -> dict[str, Any] | None:
    """Return the metrics that are there, if they are what would be computed."""
    if not ((run.path / METRICS).exists() and (run.path / CURVES).exists()):
        return None
    try:
        metrics, curves = (read_object(run.path / file) for file in (METRICS, CURVES))
    except OneshuiError:  # damaged; they can be made again
        return None
    return metrics if metrics.get("key") == curves.get("key") == key and is_sealed(metrics) and is_sealed(curves) else None


def _key(run: Run, witnesses: Witnesses, options: EvaluateOptions) -> str:
    """Return the hash of all that the metrics depend on."""
    models = (run, witnesses.original, witnesses.oracle, *witnesses.oracles, *witnesses.references)
    parts = {
        "format": FORMAT,
        "kind": run.record.kind,
        "predictions": [made_from(model, options.batch_size) if model else None for model in models],
        "seed": run.record.seed,
        "settings": {
            name: getattr(options, name) for name in ("references", "queries", "rmia_a", "rmia_gamma", "resamples", "relearn_steps")
        },
    }
    return hashlib.sha256(dump_json(parts)).hexdigest()

"""Evaluation: one pass per model, predictions stored on disk, all metrics computed from those predictions.

oneshui evaluate --run RUN --oracle RUN
oneshui evaluate --run RUN --references 1     # trains an oracle of another seed for RMIA and the noise floor, and caches it
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any

from accelerate import Accelerator

from ..data.schema import Task
from ..errors import OneshuiError
from ..metrics.comparison import Comparison, PredictionsBySet, Settings
from ..metrics.measure import measure
from ..metrics.schema import MeasuredMetrics
from ..models.load import load_model
from ..processes import on_main
from ..reporting import SILENT, Reporter
from ..runs import CURVES, METRICS, Run, dump_json, read_checked, with_checksum, write_json
from ..validation import check_fields
from .command_options import EvaluateOptions
from .distributed import make_accelerator
from .evaluation.further_attacks import further_attacks
from .evaluation.predictions import Predictor, predictions_key
from .evaluation.reference_models import ReferenceModels
from .evaluation.relearning import relearning_steps
from .evaluation.weight_energies import WeightEnergyMeter, can_measure_weight_energies
from .recovery import locked_run
from .run_data import RunData, open_data

FORMAT = 4  # of metrics.json; files of another format are computed again, from the predictions
SETTINGS = ("references", "queries", "rmia_a", "rmia_gamma", "resamples", "relearn_steps", "attacks")  # that change the metrics


def evaluate(
    run: Run,
    options: EvaluateOptions,
    accelerator: Accelerator | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """Measure a model on all sets, compare it with oracle and original if known, and write `metrics.json` and `curves.json`.

    Stored predictions need neither model nor data. Stored metrics with the same inputs are returned as they are.

    Returns:
        The metrics; docs/metrics.md describes each. `tow` and `gap_closure` are None if no oracle is known.

    Raises:
        UsageError: A run is missing, or is not of the kind it is given as.
        OneshuiError: The runs do not share data and split, predictions are missing and so is the model or the data to make them, or another
            process is evaluating or replacing the run.
    """
    if run.require_finished().require_split().has_weights:
        run.require_complete()
    accelerator = accelerator or make_accelerator()
    with locked_run(run.path, accelerator, reporter):
        return _evaluate(run.require_unchanged(), options, accelerator, reporter)


def _evaluate(run: Run, options: EvaluateOptions, accelerator: Accelerator, reporter: Reporter) -> dict[str, Any]:
    compared = ReferenceModels.find_or_make(run, options, accelerator, reporter)
    key = _metrics_key(run, compared, options)
    if (stored := _load_metrics(run, key)) is not None:
        return stored

    @functools.cache
    def data() -> RunData:
        return open_data(run, accelerator, options.data_dir, reporter)

    task = Task(run.task, run.labels)
    predictor = Predictor(lambda: data().sets, task, accelerator, options.batch_size, options.queries, reporter)
    by_weights: dict[str | None, PredictionsBySet] = {}  # one model may have several roles

    def predictions(model: Run) -> PredictionsBySet:
        weights = model.record.weights
        if weights not in by_weights:
            by_weights[weights] = predictor.predictions(model)
        return by_weights[weights]

    differs = _differs_from_original(run, compared)
    weight_energies = WeightEnergyMeter(compared.original, lambda: data().sets, accelerator, options.batch_size, reporter)
    comparison = Comparison(
        model=predictions(run),
        original=predictions(compared.original) if compared.original else None,
        oracle=predictions(compared.oracle) if compared.oracle else None,
        oracles=[predictions(other) for other in compared.oracles],
        references=[predictions(other) for other in compared.references],
        weight_energies=weight_energies.of(run) if differs else None,
        oracle_weight_energies=weight_energies.of(compared.oracle) if differs else None,
    )
    settings = Settings(resamples=options.resamples, rmia_a=options.rmia_a, rmia_gamma=options.rmia_gamma, labels=task.label_names)
    result, curves = measure(comparison, task.kind, settings)
    result |= {"format": FORMAT, "key": key, "kind": run.record.kind, "compared_with": compared.weight_hashes()}
    result["relearning"] = None
    if options.relearn_steps and comparison.original:
        model = load_model(run.path, accelerator.device)[0]
        target_loss = comparison.original["forget"].losses.double().mean().item()
        forget = data().sets["forget"]
        steps = relearning_steps(model, forget, target_loss, task, accelerator, at_most=options.relearn_steps, seed=run.record.seed)
        result["relearning"] = {"steps": steps, "at_most": options.relearn_steps}
    result["further"] = None
    if options.attacks == "all":
        sets = lambda: data().sets  # noqa: E731
        result["further"] = further_attacks(run, compared, comparison, sets, task.kind, settings, accelerator, options.batch_size, reporter)

    result = with_checksum(result)

    def write() -> None:
        write_json(run.path / CURVES, with_checksum({"key": key, **curves}), private=True)
        write_json(run.path / METRICS, result)  # written last, because it is checked first

    on_main(accelerator, write)
    return result


def _differs_from_original(run: Run, compared: ReferenceModels) -> bool:
    """Return whether a model has an original with other weights."""
    return compared.original is not None and run.record.weights != compared.original.record.weights


def _load_metrics(run: Run, key: str) -> dict[str, Any] | None:
    """Return the stored metrics if their key is the given one; otherwise None."""
    if not ((run.path / METRICS).exists() and (run.path / CURVES).exists()):
        return None
    try:
        metrics, curves = (read_checked(run.path / file) for file in (METRICS, CURVES))
        check_fields(MeasuredMetrics, metrics, run.path / METRICS)
    except OneshuiError:  # damaged or changed; they can be made again
        return None
    return metrics if metrics.get("key") == curves.get("key") == key else None


def _metrics_key(run: Run, compared: ReferenceModels, options: EvaluateOptions) -> str:
    """Return the hash of everything the metrics depend on."""
    models = (run, compared.original, compared.oracle, *compared.oracles, *compared.references)
    parts = {
        "format": FORMAT,
        "kind": run.record.kind,
        "predictions": [predictions_key(model, options.batch_size) if model else None for model in models],
        "weight_energies": [
            can_measure_weight_energies(model, compared.original, options.batch_size)
            for model in (run, compared.oracle)
            if _differs_from_original(run, compared)
        ],
        "seed": run.record.seed,
        "settings": {name: getattr(options, name) for name in SETTINGS},
    }
    return hashlib.sha256(dump_json(parts)).hexdigest()

"""The demo: the whole pipeline on generated faces, with a model small enough for a laptop's CPU.

oneshui demo
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..plugins import METHODS, Plugins
from ..recognition.encoders import NONE
from ..reporting import SILENT, Reporter
from ..runs import Run
from .checks import check_demo
from .command_options import DEFAULT_METHOD, DemoOptions, EvaluateOptions, PrepareOptions, RetrainOptions, TrainOptions, UnlearnOptions
from .evaluate import evaluate
from .prepare import prepare
from .train import retrain, train
from .unlearn import unlearn

FORGET = 4


def demo(options: DemoOptions, reporter: Reporter = SILENT) -> dict[str, Any]:
    """Train, retrain, prepare, unlearn and evaluate on generated faces.

    Returns:
        `rows`, one per model with its metrics; `folder`; `next`, a command to continue with.

    Raises:
        UsageError: The folder exists.
    """
    folder = Path(options.output_dir)
    check_demo(options)

    recipe = TrainOptions(
        dataset="synthetic",
        forget=FORGET,
        seed=options.seed,
        epochs=30,
        batch_size=32,
        optimizer="adamw",
        lr=1e-3,
        augment="flip",
        keep="last",
        output_dir=str(folder / "original"),
        overwrite=options.overwrite,
    )
    original = train(recipe, reporter=reporter)
    oracle = retrain(original, RetrainOptions(overwrite=options.overwrite), reporter=reporter)
    rows = [_row("original", original, oracle, reporter), _row("oracle", oracle, oracle, reporter)]
    for name in (*_demo_methods(), DEFAULT_METHOD):
        if Plugins(METHODS).load(name).prepares != "never":
            prepare(original, PrepareOptions(method=name, seed=options.seed, face_encoder=NONE), reporter=reporter)
        request = UnlearnOptions(method=name, from_split=True, seed=options.seed, overwrite=options.overwrite)
        rows.append(_row(name, unlearn(original, request, reporter=reporter), oracle, reporter))
    return {
        "folder": str(folder),
        "rows": rows,
        "next": f"oneshui unlearn {original.path} --method {DEFAULT_METHOD} --image PHOTO",
    }


def _demo_methods() -> list[str]:
    """Return the methods that the demo compares with the default one. Methods that cannot be loaded are skipped."""
    return [name for name, method in Plugins(METHODS).loadable().items() if method.in_demo]


def _row(name: str, run: Run, oracle: Run, reporter: Reporter) -> dict[str, Any]:
    metrics = evaluate(run, EvaluateOptions(oracle=str(oracle.path)), reporter=reporter)
    return {"model": name, "run": str(run.path), "metrics": metrics}

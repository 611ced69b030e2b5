"""The run that the Python functions return: a run directory with shortcuts for a notebook."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import runs
from .api_options import AnyRun, run_path
from .errors import OneshuiError, UsageError
from .metrics.schema import read_metrics
from .option_values import expand_home
from .options import resolve
from .reporting import Reporter, default_reporter
from .runs import METRICS, RECORD, RUNS, Kind
from .sets import EVALUATED
from .stages.command_options import PredictOptions, ReportOptions
from .stages.recovery import clear_killed_work
from .stages.show import kept_epoch, prepared_methods

if TYPE_CHECKING:
    from transformers import Pipeline, PreTrainedModel


class Run(runs.Run):
    """A run directory.

    Attributes:
        path: The folder.
        record: The contents of `oneshui.json`.
    """

    @classmethod
    def of(cls, run: runs.Run) -> Run:
        """Return a run with the shortcuts of this class."""
        return cls(run.path, run.record)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """Open an existing run.

        Raises:
            UsageError: The folder is missing or is no run.
            OneshuiError: Its record cannot be read.
        """
        return cls.of(runs.Run.open(path))

    @property
    def metrics(self) -> dict[str, Any] | None:
        """What `evaluate` measured; None if the run is not evaluated."""
        return read_metrics(self.path) if (self.path / METRICS).exists() else None

    @property
    def history(self) -> list[dict[str, Any]]:
        """One entry per epoch: `epoch`, `train_loss`, and the score on val in percent. Empty for unlearned models."""
        return list(self.record.report.get("history") or [])

    @property
    def prepared(self) -> list[str]:
        """The names of the methods that are prepared for this model."""
        return prepared_methods(self)

    def model(self, device: str = "cpu") -> PreTrainedModel:
        """Load the model, in evaluation mode.

        Raises:
            OneshuiError: The weights are missing or are not those of the record.
        """
        from .models.load import load_model

        return load_model(self._require_weights(), device)[0]

    def pipeline(self, **settings: Any) -> Pipeline:
        """Return a transformers pipeline for image classification. It decodes photos as training did, unlike `transformers.pipeline`.

        Args:
            **settings: Further arguments of `transformers.pipeline`. By default `top_k` is the number of labels.
        """
        from transformers import pipeline

        from .models.load import load_model
        from .models.pipeline import PhotoPipeline
        from .models.processors import load_processor

        folder = self._require_weights()
        loaded = {"model": load_model(folder)[0], "image_processor": load_processor(str(folder))}
        settings = {"top_k": len(self.labels), "pipeline_class": PhotoPipeline, **loaded, **settings}
        return pipeline("image-classification", **settings)

    def predict(self, images: str | Path | Sequence[str | Path], *, top_k: int = 5) -> list[dict[str, Any]]:
        """Predict the labels of image files; see `oneshui_hf.predict`."""
        options = resolve(PredictOptions, {"images": images, "top_k": top_k}, "predict")
        from .stages.predict import predict

        return predict(self, options, default_reporter())

    def report(self, **options: Any) -> dict[str, Any]:
        """Write the HTML report of this run, which must be evaluated; see `oneshui_hf.report`."""
        resolved = resolve(ReportOptions, {**options, "source": self}, "report")
        from .stages.report import report

        return report(resolved, default_reporter())

    def _require_weights(self) -> Path:
        if not self.has_weights:
            raise OneshuiError(f"{self.path} has no weights: only its predictions were kept.")
        return self.require_complete().path

    def _facts(self) -> dict[str, str]:
        """Return what the one-line and the HTML representation show."""
        record, metrics = self.record, self.metrics or {}
        facts = {"kind": record.kind, "dataset": str(record.dataset.get("name")), "seed": str(record.seed)}
        if record.state != "complete":
            facts["state"] = record.state
        if method := record.report.get("method"):
            facts["method"] = str(method)
        for name, value in (kept_epoch(record.report) or {}).items():
            if name.startswith("val_"):
                facts[name] = f"{value:.1f}"
        if self.prepared:
            facts["prepared"] = ", ".join(self.prepared)
        for name in ("tow", "gap_closure"):
            if isinstance(value := metrics.get(name), float | int):
                facts[name] = f"{value:.3g}"
        return facts

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}={value}" for name, value in self._facts().items())
        return f"Run({str(self.path)!r}: {facts})"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th style='text-align:left'>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in self._rows())
        return f"<table>{rows}</table>"

    def _rows(self) -> list[tuple[str, str]]:
        rows = [("run", str(self.path)), *self._facts().items()]
        metrics = self.metrics or {}
        score = metrics.get("score")
        for name in EVALUATED:
            if (found := metrics.get(name)) and found.get(score) is not None:
                rows.append((f"{score} on {name}", f"{found[score]:.1f}"))
        return rows


def open_run(run: AnyRun, kinds: tuple[Kind, ...], reporter: Reporter, where: str, output: str | None = None) -> runs.Run:
    """Open a run, after clearing what killed commands left at it and at the output. Without a name open the newest run and print a note."""
    path = run.path if isinstance(run, runs.Run) else run_path(run, where)
    named = [Path(expand_home(os.fspath(place))) for place in (path, output) if place]
    clear_killed_work(*named, reporter=reporter)
    if isinstance(run, runs.Run):
        return run
    if path is not None:
        return runs.Run.open(path)
    found = newest_run(RUNS, kinds)
    clear_killed_work(found.path, reporter=reporter)
    reporter.note(f"Using the newest run, {found.path}.")
    return found


def newest_run(root: Path, kinds: tuple[Kind, ...] = ("original",)) -> runs.Run:
    """Return the newest finished run below `root`. Runs that cannot be read are skipped.

    Raises:
        UsageError: There is none.
    """
    runs.restore_replaced(root)
    found, unreadable = list[runs.Run](), []
    for file in sorted(root.glob(f"*/{RECORD}")):
        if file.parent.name.startswith("."):  # a temporary folder of a killed process
            continue
        try:
            found.append(runs.Run.open(file.parent))
        except OneshuiError:
            unreadable.append(file.parent.name)
    found = [run for run in found if run.record.kind in kinds and run.record.state == "complete"]
    if not found:
        detail = f" ({', '.join(unreadable)} cannot be read)" if unreadable else ""
        raise UsageError(f"There is no finished run in {root}/{detail}; train one with `oneshui train`, or name one with --run.")
    return max(found, key=lambda run: (run.path / RECORD).stat().st_mtime)

"""The commands as Python functions with keyword options. The command line and a notebook call the same functions.

Each function takes the options of its command by name. Where a method is involved, the method's own options are added to them. An unknown
option is an error that names the nearest known one. Options are checked before anything heavy is imported. The signatures and the lists of
options in the docstrings are generated from the options dataclasses. Progress is printed on a terminal and in a notebook.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import runs
from .api_app import *  # noqa: F403
from .api_desk import *  # noqa: F403  the functions of the request desk
from .api_hub import *  # noqa: F403  those for a repository on the Hub
from .api_options import AnyRun, read_options, split_options, with_options
from .api_run import Run, open_run
from .imports import heavy_imports
from .options import fields
from .reporting import SILENT, Reporter, default_reporter
from .runs import Kind
from .stages import checks
from .stages.audit_options import AuditOptions, check_audit
from .stages.cache_options import CacheListOptions, ClearOptions, EnvironmentOptions
from .stages.command_options import (
    BenchmarkOptions,
    CheckOptions,
    DataOptions,
    DemoOptions,
    DrawOptions,
    EvaluateOptions,
    PredictOptions,
    PrepareOptions,
    ReportOptions,
    RetrainOptions,
    RunsOptions,
    ShowOptions,
    TrainOptions,
    TuneOptions,
    UnlearnOptions,
)
from .stages.download import with_hub_copy
from .stages.method_choice import with_method
from .stages.publishing.card_metadata import check_card_options
from .stages.publishing.options import DataPushOptions, PullOptions, PushOptions
from .stages.recovery import reserved_output

if TYPE_CHECKING:
    import datasets

Paths = str | Path | Sequence[str | Path]
ANY_KIND: tuple[Kind, ...] = ("original", "oracle", "unlearned")


@with_options(TrainOptions)
def train(*, reporter: Reporter | None = None, **options: Any) -> Run:
    """Train the original model on all training identities and return its run."""
    resolved = with_hub_copy(read_options(TrainOptions, options, "train"))
    with reserved_output(checks.check_train(resolved), "--output-dir"):
        from .stages.train import train as stage

        return Run.of(stage(resolved, reporter=reporter or default_reporter()))


@with_options(RetrainOptions)
def retrain(run: AnyRun = None, *, reporter: Reporter | None = None, **options: Any) -> Run:
    """Train the oracle of an original model, by the same recipe without the forget set, and return its run."""
    reporter = reporter or default_reporter()
    resolved = read_options(RetrainOptions, options, "retrain")
    original = open_run(run, ("original",), reporter, "retrain")
    with reserved_output(checks.check_retrain(original, resolved), "--output-dir", original.path):
        from .stages.train import retrain as stage

        return Run.of(stage(original, resolved, reporter=reporter))


@with_options(PrepareOptions, method=True)
def prepare(run: AnyRun = None, *, reporter: Reporter | None = None, **options: Any) -> Run | dict[str, Any]:
    """Prepare a method for a run's model and return the run; with `dry_run` return the estimated cost."""
    found = prepare_artefact(run, reporter=reporter, **options)
    return found if isinstance(found, dict) else Run.open(found.parent.parent)  # RUN/methods/METHOD


@with_options(PrepareOptions, method=True)
def prepare_artefact(run: AnyRun = None, *, reporter: Reporter | None = None, **options: Any) -> Path | dict[str, Any]:
    """Prepare a method for a run's model and return the artefact's folder; with `dry_run` return the estimated cost."""
    reporter = reporter or default_reporter()
    own, methods = split_options(PrepareOptions, options)
    resolved = read_options(PrepareOptions, own, "prepare")
    original = open_run(run, ("original",), reporter, "prepare")
    checks.check_prepare(original, resolved, methods)
    if resolved.dry_run:
        from .stages.prepare import estimate_preparation

        return estimate_preparation(original, resolved, methods, reporter=reporter)
    with reserved_output(original.artefact(resolved.method)):
        from .stages.prepare import prepare as stage

        return stage(original, resolved, methods, reporter=reporter)


@with_options(TuneOptions, method=True)
def tune(run: AnyRun = None, *, reporter: Reporter | None = None, **options: Any) -> Path:
    """Search a method's options on simulated requests and return the preset file, which `preset` of `prepare` and `unlearn` takes."""
    reporter = reporter or default_reporter()
    own, methods = split_options(TuneOptions, options)
    resolved = read_options(TuneOptions, own, "tune")
    original = open_run(run, ("original",), reporter, "tune")
    with reserved_output(checks.check_tune(original, resolved, methods), "--output"):
        from .stages.tune import tune as stage

        return stage(original, resolved, methods, reporter=reporter)


@with_options(UnlearnOptions, method=True)
def unlearn(run: AnyRun = None, images: Paths = (), *, reporter: Reporter | None = None, **options: Any) -> Run:
    """Forget the identities on the support images and return the run of the new model.

    Without `method`, the method is chosen by what the run has prepared, and a note names it.
    """
    reporter = reporter or default_reporter()
    own, methods = split_options(UnlearnOptions, options)
    given = {} if isinstance(images, tuple) and not images else {"images": images}  # the option may be given as `image`
    resolved = read_options(UnlearnOptions, given | own, "unlearn")
    original = open_run(run, ("original",), reporter, "unlearn", resolved.output_dir)
    checks.check_request(resolved)
    resolved = with_method(original.require_finished(), resolved, methods, reporter)
    with reserved_output(checks.check_unlearn(original, resolved, methods), "--output-dir", original.path):
        with heavy_imports():
            from .stages.unlearn import unlearn as stage

        return Run.of(stage(original, resolved, methods, reporter=reporter))


@with_options(EvaluateOptions)
def evaluate(run: AnyRun = None, oracle: AnyRun = None, *, reporter: Reporter | None = None, **options: Any) -> dict[str, Any]:
    """Measure a model and return the metrics, which `Run.metrics` reads later."""
    reporter = reporter or default_reporter()
    resolved = read_options(EvaluateOptions, {**options, "oracle": oracle}, "evaluate")
    evaluated = open_run(run, ANY_KIND, reporter, "evaluate")
    checks.check_evaluate(evaluated, resolved)
    with reserved_output(evaluated.path):
        from .stages.evaluate import evaluate as stage

        return stage(evaluated, resolved, reporter=reporter)


@with_options(PredictOptions)
def predict(run: AnyRun, images: Paths, *, reporter: Reporter | None = None, **options: Any) -> list[dict[str, Any]]:
    """Predict the labels of image files and return, per image, the most probable labels with their probabilities."""
    reporter = reporter or default_reporter()
    resolved = read_options(PredictOptions, {**options, "images": images}, "predict")
    predicting = open_run(run, ANY_KIND, reporter, "predict")
    checks.check_predict(predicting, resolved)
    with heavy_imports():
        from .stages.predict import predict as stage

    return stage(predicting, resolved, reporter)


@with_options(AuditOptions)
def audit(unlearned: runs.Run | str | Path, *, reporter: Reporter | None = None, **options: Any) -> dict[str, Any]:
    """Attack the difference of two models with photos of candidates and return who stands out, by name."""
    resolved = read_options(AuditOptions, {**options, "unlearned": unlearned}, "audit")
    check_audit(resolved)
    from .stages.audit import audit as stage

    return stage(resolved, reporter or default_reporter())


@with_options(BenchmarkOptions)
def benchmark(grid: str | Path, *, reporter: Reporter | None = None, **options: Any) -> dict[str, Any]:
    """Run the open jobs of a grid, write its tables and return a summary; with `dry_run` return the jobs and their estimated cost."""
    reporter = reporter or default_reporter()
    resolved = read_options(BenchmarkOptions, {**options, "grid": grid}, "benchmark")
    from .stages.benchmarking.setup import check_benchmark

    check_benchmark(resolved)
    if resolved.dry_run:
        from .stages.benchmarking.estimate import estimate_benchmark

        return estimate_benchmark(resolved, reporter=reporter)
    from .stages.benchmark import benchmark as stage

    return stage(resolved, reporter=reporter)


@with_options(ReportOptions)
def report(source: runs.Run | str | Path, *, reporter: Reporter | None = None, **options: Any) -> dict[str, Any]:
    """Write the report of an evaluated run or of a benchmark and return the paths of `report` (HTML) and `figures` (SVG)."""
    resolved = read_options(ReportOptions, {**options, "source": source}, "report")
    checks.check_report(resolved)
    from .stages.report import report as stage

    return stage(resolved, reporter or default_reporter())


@with_options(PushOptions)
def push(run: AnyRun, repo_id: str, *, reporter: Reporter | None = None, **options: Any) -> str:
    """Publish a run on the Hub and return its address. A new repository is private by default."""
    reporter = reporter or default_reporter()
    resolved = read_options(PushOptions, {**options, "repo_id": repo_id}, "push")
    checks.check_people_flags(resolved)
    check_card_options(resolved)
    published = open_run(run, ANY_KIND, reporter, "push")
    from .stages.publishing.model import push as stage

    return stage(published, resolved, reporter)


@with_options(PullOptions)
def pull(repo_id: str, *, reporter: Reporter | None = None, **options: Any) -> Run:
    """Download a published run and return it."""
    resolved = read_options(PullOptions, {**options, "repo_id": repo_id}, "pull")
    checks.check_pull(resolved)
    from .stages.publishing.model import pull as stage

    return Run.of(stage(resolved, reporter or default_reporter()))


def load_dataset(
    dataset: str,
    data_dir: str | Path | None = None,
    *,
    subset: str | None = None,
    dataset_revision: str | None = None,
    image_column: str | None = None,
    identity_column: str | None = None,
    label_columns: str | Sequence[str] = (),
    reporter: Reporter | None = None,
) -> datasets.DatasetDict:
    """Load a face data set as `train` reads it.

    Args:
        dataset: Name of a data set, folder with metadata.csv, Hub id, or path that `datasets` reads.
        data_dir: Folder of a named data set on disk.
        subset: Configuration of the data set, if it has several.
        dataset_revision: Branch, tag or commit of a data set of the Hub.
        image_column: Your own data: the image column.
        identity_column: Your own data: the identity column.
        label_columns: Your own data: the label columns.
        reporter: Receives progress; automatic by default.

    Returns:
        A `DatasetDict` with one split, "train", of columns `key`, `image`, `identity` and `labels`. `oneshui data split` divides the
        identities into train, val and test.

    Raises:
        UsageError: The name is unknown, or an option does not apply to it.
        OneshuiError: The files are missing or damaged.
    """
    source = {"dataset": dataset, "data_dir": data_dir, "dataset_revision": dataset_revision, "subset": subset}
    columns = {"image_column": image_column, "identity_column": identity_column, "label_columns": label_columns}
    resolved = read_options(DataOptions, source | columns, "load_dataset")
    import datasets

    from .data.load import load_faces

    faces = load_faces(**resolved.source(), reporter=reporter or default_reporter())
    return datasets.DatasetDict(train=faces.arrow_dataset.cast_column("image", datasets.Image()))


@with_options(CheckOptions)
def check_data(*, reporter: Reporter | None = None, **options: Any) -> dict[str, Any]:
    """Check every image and row of a data set and return the findings."""
    resolved = read_options(CheckOptions, options, "data check")
    checks.check_source(resolved)
    from .stages.data_commands import check_data as stage

    return stage(resolved, reporter or default_reporter())


@with_options(DrawOptions)
def draw_split(*, reporter: Reporter | None = None, **options: Any) -> dict[str, Any]:
    """Draw a split of the identities, write its file and return a summary."""
    resolved = read_options(DrawOptions, options, "data split")
    checks.check_source(resolved)
    from .stages.data_commands import draw_split as stage

    return stage(resolved, reporter or default_reporter())


@with_options(DataPushOptions)
def push_data(repo_id: str, *, reporter: Reporter | None = None, **options: Any) -> str:
    """Publish a data set on the Hub and return its address. A new repository is private by default."""
    resolved = read_options(DataPushOptions, {**options, "repo_id": repo_id}, "data push")
    checks.check_source(resolved)
    from .stages.publishing.dataset import push_data as stage

    return stage(resolved, reporter or default_reporter())


@with_options(RunsOptions)
def list_runs(*, reporter: Reporter = SILENT, **options: Any) -> list[dict[str, Any]]:
    """Return a row per run below a folder, the newest first."""
    del reporter
    from .stages.list_runs import list_runs as stage

    return stage(read_options(RunsOptions, options, "runs"))


@with_options(ShowOptions)
def show(run: AnyRun = None, *, reporter: Reporter | None = None, **options: Any) -> dict[str, Any]:
    """Describe a run: what it is, what it was made from, its scores, and which methods are prepared."""
    read_options(ShowOptions, options, "show")
    described = open_run(run, ANY_KIND, reporter or default_reporter(), "show")
    from .stages.show import show as stage

    return stage(described)


@with_options(EnvironmentOptions)
def environment(*, reporter: Reporter = SILENT, **options: Any) -> dict[str, Any]:
    """Return versions, devices and disk use, for a bug report. Nothing in it is personal."""
    del reporter
    resolved = read_options(EnvironmentOptions, options, "env")
    from .stages.environment import environment as stage

    return stage(resolved)


@with_options(CacheListOptions)
def list_cache(*, reporter: Reporter = SILENT, **options: Any) -> dict[str, Any]:
    """Return the entries of the cache."""
    del reporter
    resolved = read_options(CacheListOptions, options, "cache list")
    from .stages.cache_commands import list_cache as stage

    return stage(resolved)


@with_options(ClearOptions)
def clear_cache(*, reporter: Reporter = SILENT, **options: Any) -> dict[str, Any]:
    """Remove entries of the cache that no process uses, and return a summary."""
    del reporter
    resolved = read_options(ClearOptions, options, "cache clear")
    from .stages.cache_commands import clear_cache as stage

    return stage(resolved)


@with_options(DemoOptions)
def demo(*, reporter: Reporter | None = None, **options: Any) -> dict[str, Any]:
    """Run the whole pipeline on generated faces and return the comparison."""
    resolved = read_options(DemoOptions, options, "demo")
    checks.check_demo(resolved)
    from .stages.demo import demo as stage

    return stage(resolved, reporter or default_reporter())


def installed(what: str) -> list[dict[str, Any]]:
    """Return a row per installed plugin; `what` is "methods" or "datasets"."""
    from .plugins import Plugins

    return Plugins(f"oneshui.{what}").rows()


def method(name: str) -> dict[str, Any]:
    """Describe a method: paper, data that it needs, options with default, range and choices, presets."""
    from .options import flag
    from .plugins import METHODS, Plugins

    found = Plugins(METHODS).load(name)
    options = [
        {
            "option": flag(option.name),
            "default": option.default,
            "help": option.metadata["help"],
            "choices": list(option.metadata["choices"]),
            "min": option.metadata["min"],
            "max": option.metadata["max"],
            "at": option.metadata["at"],
            "search": option.metadata["search"],
        }
        for option in fields(found.options).values()
    ]
    about = {"name": name, "from": Plugins(METHODS).origin(name), "summary": found.summary, "paper": found.paper}
    about |= {"situation": found.situation(), "needs": str(found.needs), "prepares": found.prepares}
    return about | {"options": options, "presets": found.all_presets()}

"""The stages as plain functions of keyword options: the one layer that the command line and a notebook both call.

Each takes the options of its stage by name, and where a method is involved the method's own beside them; an unknown one is an error that
names the nearest. Nothing heavy is imported before the options are known to be right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .options import field_name, names, resolve
from .reporting import SILENT, Reporter
from .runs import RUNS, Kind, Run, newest
from .stages.command_options import (
    BenchmarkOptions,
    CacheListOptions,
    CheckOptions,
    ClearOptions,
    DataPushOptions,
    DemoOptions,
    DrawOptions,
    EvaluateOptions,
    PrepareOptions,
    PullOptions,
    PushOptions,
    ReportOptions,
    RetrainOptions,
    TrainOptions,
    TuneOptions,
    UnlearnOptions,
)

AnyRun = Run | str | Path | None


def train(*, reporter: Reporter = SILENT, **options: Any) -> Run:
    """Train the original model; see `TrainOptions`."""
    resolved = resolve(TrainOptions, options, "train")
    from .stages.train import train as stage

    return stage(resolved, reporter=reporter)


def retrain(run: AnyRun = None, *, reporter: Reporter = SILENT, **options: Any) -> Run:
    """Train the oracle of an original model; see `RetrainOptions`."""
    resolved = resolve(RetrainOptions, options, "retrain")
    original = open_run(run, ("original",), reporter)
    from .stages.train import retrain as stage

    return stage(original, resolved, reporter=reporter)


def prepare(run: AnyRun = None, *, reporter: Reporter = SILENT, **options: Any) -> Path | dict[str, Any]:
    """Prepare a method for a run's model; see `PrepareOptions`, the method's own options go beside them.

    Returns:
        The artefact's folder; with `dry_run` what preparing would take.
    """
    own, methods = split_options(PrepareOptions, options)
    resolved = resolve(PrepareOptions, own, "prepare")
    original = open_run(run, ("original",), reporter)
    from .stages import prepare as stage

    return (stage.foresee if resolved.dry_run else stage.prepare)(original, resolved, methods, reporter=reporter)


def tune(run: AnyRun = None, *, reporter: Reporter = SILENT, **options: Any) -> Path:
    """Look for a method's options on simulated requests; see `TuneOptions`, those of the method's own that are given keep their value.

    Returns:
        The preset's file, which `preset` of `prepare` and `unlearn` takes.
    """
    own, methods = split_options(TuneOptions, options)
    resolved = resolve(TuneOptions, own, "tune")
    original = open_run(run, ("original",), reporter)
    from .stages.tune import tune as stage

    return stage(original, resolved, methods, reporter=reporter)


def unlearn(run: AnyRun = None, images: Sequence[str | Path] = (), *, reporter: Reporter = SILENT, **options: Any) -> Run:
    """Forget the people on the photos; see `UnlearnOptions`, the method's own options go beside them."""
    own, methods = split_options(UnlearnOptions, options)
    resolved = resolve(UnlearnOptions, {**own, "images": tuple(map(str, images))}, "unlearn")
    original = open_run(run, ("original",), reporter)
    from .stages.unlearn import unlearn as stage

    return stage(original, resolved, methods, reporter=reporter)


def evaluate(run: AnyRun = None, oracle: AnyRun = None, *, reporter: Reporter = SILENT, **options: Any) -> dict[str, Any]:
    """Measure a model; see `EvaluateOptions`."""
    if oracle is not None:
        options["oracle"] = str(oracle.path if isinstance(oracle, Run) else oracle)
    resolved = resolve(EvaluateOptions, options, "evaluate")
    evaluated = open_run(run, ("original", "oracle", "unlearned"), reporter)
    from .stages.evaluate import evaluate as stage

    return stage(evaluated, resolved, reporter=reporter)


def benchmark(grid: str | Path, *, reporter: Reporter = SILENT, **options: Any) -> dict[str, Any]:
    """Do what is left of a grid, and write its tables; see `BenchmarkOptions`.

    Returns:
        What there is; with `dry_run` what is to be done and would take.
    """
    resolved = resolve(BenchmarkOptions, {**options, "grid": str(grid)}, "benchmark")
    if resolved.dry_run:
        from .stages.benchmarking.estimate import foresee

        return foresee(resolved, reporter=reporter)
    from .stages.benchmark import benchmark as stage

    return stage(resolved, reporter=reporter)


def report(source: Run | str | Path, *, reporter: Reporter = SILENT, **options: Any) -> dict[str, Any]:
    """Write the report of an evaluated run, or of a benchmark; see `ReportOptions`.

    Returns:
        `report`, the HTML file, and `figures`, the SVG files.
    """
    resolved = resolve(ReportOptions, {**options, "source": str(source.path if isinstance(source, Run) else source)}, "report")
    from .stages.report import report as stage

    return stage(resolved, reporter)


def push(run: AnyRun, repo_id: str, *, reporter: Reporter = SILENT, **options: Any) -> str:
    """Publish a run on the Hub, in a private repository unless told otherwise; see `PushOptions`."""
    resolved = resolve(PushOptions, {**options, "repo_id": repo_id}, "push")
    published = open_run(run, ("original", "oracle", "unlearned"), reporter)
    from .stages.publishing.model import push as stage

    return stage(published, resolved, reporter)


def pull(repo_id: str, *, reporter: Reporter = SILENT, **options: Any) -> Run:
    """Fetch a published run; see `PullOptions`."""
    resolved = resolve(PullOptions, {**options, "repo_id": repo_id}, "pull")
    from .stages.publishing.model import pull as stage

    return stage(resolved, reporter)


def check_data(*, reporter: Reporter = SILENT, **options: Any) -> dict[str, Any]:
    """Look at every photo and row of a data set; see `CheckOptions`."""
    resolved = resolve(CheckOptions, options, "data check")
    from .stages.data_commands import check_data as stage

    return stage(resolved, reporter)


def draw_split(*, reporter: Reporter = SILENT, **options: Any) -> dict[str, Any]:
    """Draw a split and write its file; see `DrawOptions`."""
    resolved = resolve(DrawOptions, options, "data split")
    from .stages.data_commands import draw_split as stage

    return stage(resolved, reporter)


def push_data(repo_id: str, *, reporter: Reporter = SILENT, **options: Any) -> str:
    """Publish a data set on the Hub, in a private repository unless told otherwise; see `DataPushOptions`."""
    resolved = resolve(DataPushOptions, {**options, "repo_id": repo_id}, "data push")
    from .stages.publishing.dataset import push_data as stage

    return stage(resolved, reporter)


def list_cache(*, reporter: Reporter = SILENT, **options: Any) -> dict[str, Any]:
    """Return what is kept in the cache; see `CacheListOptions`."""
    del reporter
    resolved = resolve(CacheListOptions, options, "cache list")
    from .stages.cache_commands import list_cache as stage

    return stage(resolved)


def clear_cache(*, reporter: Reporter = SILENT, **options: Any) -> dict[str, Any]:
    """Remove what is kept in the cache, except what a process works with; see `ClearOptions`."""
    del reporter
    resolved = resolve(ClearOptions, options, "cache clear")
    from .stages.cache_commands import clear_cache as stage

    return stage(resolved)


def demo(*, reporter: Reporter = SILENT, **options: Any) -> dict[str, Any]:
    """Run the whole road on generated faces; see `DemoOptions`."""
    resolved = resolve(DemoOptions, options, "demo")
    from .stages.demo import demo as stage

    return stage(resolved, reporter)


def open_run(run: AnyRun, kinds: tuple[Kind, ...], reporter: Reporter) -> Run:
    """Open a run, or the newest of these kinds where none is named, and say which."""
    if isinstance(run, Run):
        return run
    if run is not None:
        return Run.open(str(run))
    found = newest(RUNS, kinds)
    reporter.note(f"Using the newest run, {found.path}.")
    return found


def split_options(stage: type[Any], values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide options into a stage's and, all others, the method's."""
    known = names(stage)
    own = {key: value for key, value in values.items() if field_name(key) in known}
    return own, {key: value for key, value in values.items() if key not in own}


def installed(what: str) -> list[dict[str, Any]]:
    """Return a row per installed plugin: `what` is "methods" or "datasets"."""
    from .plugins import Plugins

    return Plugins(f"oneshui.{what}").rows()


def method(name: str) -> dict[str, Any]:
    """Return what is to be known of a method: paper, needs, options with type, default and range, presets."""
    from .options import fields, flag
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
    return about | {"needs": str(found.needs), "prepares": found.prepares, "options": options, "presets": found.all_presets()}

"""The command `oneshui`: its commands, each a line of `api` with its options and the way its result is shown."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from .. import api
from ..stages import command_options as o
from . import printing, show, show_benchmark, show_data, show_metrics
from .commands import command
from .errors import guarded

app = typer.Typer(
    name="oneshui",
    help="Forget a person from a vision model when all you have is one photo of them.",
    epilog="Start with: oneshui demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Forget a person from a vision model when all you have is one photo of them."""
    if version:
        from importlib import metadata

        print(metadata.version("oneshui-hf"))
        raise typer.Exit


command(
    app, "demo", o.DemoOptions, api.demo, show_metrics.demo,
    help="Run the whole road on generated faces: train, retrain, prepare, unlearn, evaluate. No download; minutes on a CPU.",
)  # fmt: skip
command(
    app, "train", o.TrainOptions, api.train, show.run, as_json=show.run_json,
    help="Train the original model on all training people.",
    epilog="Example: oneshui train --dataset celeba --data-dir DIR --forget 5",
)  # fmt: skip
command(
    app, "retrain", o.RetrainOptions, api.retrain, show.run, as_json=show.run_json,
    help="Train the oracle: the same recipe without the people who ask to be forgotten.",
    epilog="Example: oneshui retrain --run runs/celeba-seed0",
)  # fmt: skip
command(
    app, "prepare", o.PrepareOptions, api.prepare, show.artefact, as_json=show.artefact_json, with_method=True,
    stopped="nothing was prepared; where the method had saved what it had, --resume goes on from there",
    help="Prepare a method while training data exists. The method's own options follow; `oneshui methods show NAME` lists them.",
    epilog=f"Example: oneshui prepare --method {o.DEFAULT_METHOD} --run runs/celeba-seed0 --epochs 3",
)  # fmt: skip
command(
    app, "tune", o.TuneOptions, api.tune, show.tuned, as_json=show.tuned_json, with_method=True,
    help="Look for a method's options on simulated requests and write them as a preset. Those of its own that are given keep their value.",
    epilog=f"Example: oneshui tune --method {o.DEFAULT_METHOD} --run runs/celeba-seed0 --trials 20 --steps 50",
)  # fmt: skip
command(
    app, "unlearn", o.UnlearnOptions, api.unlearn, show.run, as_json=show.run_json, with_method=True,
    help="Forget the person on a photo. Needs the model, the prepared method and the photo; no training data.",
    epilog=f"Example: oneshui unlearn --method {o.DEFAULT_METHOD} --image face.jpg",
)  # fmt: skip
command(
    app, "evaluate", o.EvaluateOptions, api.evaluate, show_metrics.metrics, stopped="what was finished of reference models is kept",
    help="Measure a model on retain, forget, val and test, against the oracle and the original.",
    epilog=f"Example: oneshui evaluate --run runs/celeba-seed0-{o.DEFAULT_METHOD} --oracle runs/celeba-seed0-oracle",
)  # fmt: skip
command(
    app, "benchmark", o.BenchmarkOptions, api.benchmark, show_benchmark.benchmark, positional=("grid",), fails=show_benchmark.unfinished,
    stopped="what was finished is kept, and the same command goes on from there",
    help="Measure methods on data sets, request sizes and seeds, from one YAML file. Stopped, it goes on with the same command.",
    epilog="Example: oneshui benchmark demo --dry-run",
)  # fmt: skip
command(
    app, "report", o.ReportOptions, api.report, show_benchmark.report, positional=("source",),
    help="Write a report with tables and figures, of an evaluated run or of a benchmark: one HTML file that reads by itself.",
    epilog=f"Example: oneshui report runs/celeba-seed0-{o.DEFAULT_METHOD}",
)  # fmt: skip
command(
    app, "push", o.PushOptions, api.push, show.link, as_json=show.link_json, positional=("run", "repo_id"),
    help="Publish a run on the Hub with a model card. Private unless told otherwise; no photo, path or name goes along.",
    epilog=f"Example: oneshui push runs/celeba-seed0-{o.DEFAULT_METHOD} USER/NAME",
)  # fmt: skip
command(
    app, "pull", o.PullOptions, api.pull, show.run, as_json=show.run_json, positional=("repo_id",),
    help="Fetch a published run.",
    epilog="Example: oneshui pull USER/NAME --output-dir runs/NAME",
)  # fmt: skip

data = typer.Typer(no_args_is_help=True, help="Check a data set, draw a split of its people, publish it.")
app.add_typer(data, name="data")

command(
    data, "check", o.CheckOptions, api.check_data, show_data.check, fails=show_data.breaks,
    help="Look at every photo and row: what is missing, broken, contradictory or there twice. Fails only for what would break a run.",
    epilog="Example: oneshui data check --dataset celeba --data-dir DIR --split split.json",
)  # fmt: skip
command(
    data, "split", o.DrawOptions, api.draw_split, show_data.split,
    help="Draw a split of the people and write its file: the same bytes everywhere for the same annotations.",
    epilog="Example: oneshui data split --dataset celeba --data-dir DIR --seed 0 --forget 5 --output split.json",
)  # fmt: skip
command(
    data, "push", o.DataPushOptions, api.push_data, show.link, as_json=show.link_json, positional=("repo_id",),
    help="Publish a data set on the Hub with a data card. Private unless told otherwise; people and photos go by numbers, not names.",
    epilog="Example: oneshui data push USER/NAME --dataset DIR",
)  # fmt: skip

cache = typer.Typer(no_args_is_help=True, help="Look at the models that were made once and are kept, and remove them.")
app.add_typer(cache, name="cache")

command(
    cache, "list", o.CacheListOptions, api.list_cache, show.cache,
    help="List what is kept: oracles of other seeds, for one. The last used comes first.",
    epilog="Example: oneshui cache list --cache-dir DIR",
)  # fmt: skip
command(
    cache, "clear", o.ClearOptions, api.clear_cache, show.cleared,
    help="Remove what is kept, all of it unless told otherwise. What a process works with stays.",
    epilog="Example: oneshui cache clear --kind oracle --older-than 30",
)  # fmt: skip

Json = Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")]


methods = typer.Typer(invoke_without_command=True, help="List the installed methods; `methods show NAME` lists options and presets.")
app.add_typer(methods, name="methods")


@methods.callback()
def methods_list(ctx: typer.Context, json: Json = False) -> None:
    """List the installed methods; `methods show NAME` lists options and presets."""
    if ctx.invoked_subcommand is None:
        _list(api.installed("methods"), json)


@methods.command("show")
def methods_show(name: Annotated[str, typer.Argument(help="The method's name.")], json: Json = False) -> None:
    """Show a method: paper, needs, options with defaults, presets."""
    about = api.method(name)
    if json:
        printing.print_json(about)
    else:
        show.method(about)


@app.command()
def datasets(json: Json = False) -> None:
    """List the data sets that can be read."""
    _list(api.installed("datasets"), json)


def _list(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        printing.print_json(rows)
    else:
        show.plugins(rows)


def main() -> None:
    """Run the command line."""
    sys.exit(guarded(lambda: app(standalone_mode=False)))

"""The command `oneshui`. Each command is a function of `api`, its options, and the way its result is printed."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import api
from ..stages import command_options as o
from ..stages.app_options import AppOptions
from ..stages.audit_options import AuditOptions
from ..stages.cache_options import CacheListOptions, ClearOptions, EnvironmentOptions
from ..stages.hub_options import HistoryOptions, RepositoryOptions, SquashOptions
from ..stages.publishing import options as publishing
from ..stages.purge_options import PurgeOptions
from . import show, show_audit, show_benchmark, show_data, show_hub, show_metrics, show_purge
from .commands import Command
from .desk import add_desk
from .errors import guarded, prepare_process
from .printing import print_json

PIPELINE, RUNS, DESK, STUDIES = "Pipeline", "Runs", "Request desk", "Benchmark"  # panels of `oneshui --help`
DATA = "Data, methods, machine"
HELP = {"help_option_names": ["-h", "--help"]}
TITLE = "Forget a person from a vision model when all you have is one photo of them."

app = typer.Typer(
    name="oneshui",
    help=TITLE,
    epilog="Examples:\n$ oneshui demo\n$ oneshui train --dataset celeba --data-dir DIR\n$ oneshui unlearn --image face.jpg",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings=HELP,
)


@app.callback(invoke_without_command=True)
def root(ctx: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Forget a person from a vision model when all you have is one photo of them."""
    if version:
        from importlib import metadata

        print(metadata.version("oneshui-hf"))
    elif ctx.invoked_subcommand is None:
        print_help(ctx)


def print_help(ctx: typer.Context) -> None:
    """Print the help of a group that was called without a command."""
    typer.echo(ctx.get_help())


def group(name: str, help: str, panel: str) -> typer.Typer:
    """Add a group of commands that prints its help when called without one."""
    made = typer.Typer(help=help, rich_markup_mode="rich", context_settings=HELP)

    @made.callback(invoke_without_command=True)
    def callback(ctx: typer.Context) -> None:
        if ctx.invoked_subcommand is None:
            print_help(ctx)

    app.add_typer(made, name=name, rich_help_panel=panel)
    return made


Command(
    "demo", o.DemoOptions, api.demo, show_metrics.demo, panel=PIPELINE,
    summary="Run the whole pipeline on generated faces in minutes.",
    details="Trains, retrains, prepares, unlearns and evaluates on the CPU, without a download.",
    examples=("oneshui demo",),
).add_to(app)  # fmt: skip
Command(
    "train", o.TrainOptions, show_hub.train_after_question, show.run, as_json=show.run_json, panel=PIPELINE,
    summary="Train the original model on all training identities.",
    details="Names of TrainingArguments are accepted, too: --num-train-epochs, --per-device-train-batch-size, --learning-rate.",
    examples=("oneshui train --dataset celeba --data-dir DIR --forget 5", "oneshui train --dataset synthetic --epochs 10"),
).add_to(app)  # fmt: skip
Command(
    "retrain", o.RetrainOptions, api.retrain, show.run, as_json=show.run_json, positional=("run",), panel=PIPELINE,
    summary="Train the oracle: the same recipe without the forget set.",
    examples=("oneshui retrain runs/celeba-seed0",),
).add_to(app)  # fmt: skip
Command(
    "prepare", o.PrepareOptions, api.prepare_artefact, show.artefact, as_json=show.artefact_json, positional=("run",),
    method_step="prepare", panel=PIPELINE,
    stopped="nothing was prepared. If the method saves its state, --resume continues from there",
    summary="Prepare a method while training data exists.",
    details="The options of the method that --method names are listed below.",
    examples=(f"oneshui prepare --method {o.DEFAULT_METHOD} --help", "oneshui prepare runs/celeba-seed0 --seed 1"),
).add_to(app)  # fmt: skip
Command(
    "tune", o.TuneOptions, api.tune, show.tuned, as_json=show.tuned_json, positional=("run",), method_step="tune", panel=PIPELINE,
    summary="Search a method's options on simulated requests.",
    details="The best setting is written as a preset. Options of the method that are given keep their value.",
    examples=(f"oneshui tune runs/celeba-seed0 --method {o.DEFAULT_METHOD} --trials 20 --steps 50",),
).add_to(app)  # fmt: skip
Command(
    "unlearn", o.UnlearnOptions, api.unlearn, show.run, as_json=show.run_json, positional=("run",), method_step="apply", panel=PIPELINE,
    summary="Forget the person on a support image.",
    details="Needs the model, the prepared method and the image; no training data. With --method, that method's options are listed, too.",
    examples=("oneshui unlearn --image face.jpg", "oneshui unlearn runs/celeba-seed0 --image face.jpg --identity 4711 --json"),
).add_to(app)  # fmt: skip
Command(
    "evaluate", o.EvaluateOptions, api.evaluate, show_metrics.metrics, positional=("run",), panel=PIPELINE,
    stopped="finished reference models are kept",
    summary="Measure a model against the oracle and the original.",
    details="Scores, membership inference attacks and their intervals on retain, forget, val and test.",
    examples=(f"oneshui evaluate runs/celeba-seed0-{o.DEFAULT_METHOD} --oracle runs/celeba-seed0-oracle",),
).add_to(app)  # fmt: skip

Command(
    "runs", o.RunsOptions, api.list_runs, show.runs, positional=("root",), panel=RUNS,
    summary="List the runs below a folder, the newest first.",
    examples=("oneshui runs", "oneshui runs demo"),
).add_to(app)  # fmt: skip
Command(
    "show", o.ShowOptions, api.show, show.details, positional=("run",), panel=RUNS,
    summary="Show one run: origin, scores, prepared methods.",
    examples=("oneshui show runs/celeba-seed0",),
).add_to(app)  # fmt: skip
Command(
    "predict", o.PredictOptions, api.predict, show.predictions, positional=("run", "images"), panel=RUNS,
    summary="Predict the labels of image files.",
    examples=("oneshui predict runs/celeba-seed0 face.jpg",),
).add_to(app)  # fmt: skip
Command(
    "app", AppOptions, api.serve_app, show.address, positional=("run",), panel=RUNS, stopped="the page is closed",
    summary="Show in the browser what forgetting a person would change.",
    details="Try methods on one photo, and forget through the request desk. On this machine only, unless --host and --auth are given.",
    examples=("oneshui app demo/original", "oneshui app runs/celeba-seed0 --samples photos --desk requests"),
).add_to(app)  # fmt: skip
Command(
    "audit", AuditOptions, api.audit, show_audit.audit, positional=("unlearned",), panel=RUNS,
    summary="Find who was forgotten from two models and photos.",
    details="For anyone with both models and photos of candidates: no training data and no run are needed. Names are printed here only.",
    examples=(
        "oneshui audit unlearned --original original --candidates photos",
        "oneshui audit USER/NEW --original USER/OLD --candidates photos --forgotten 4711 --output-dir audit",
    ),
).add_to(app)  # fmt: skip
Command(
    "report", o.ReportOptions, api.report, show_benchmark.report, positional=("source",), panel=RUNS,
    summary="Write an HTML report of a run, a benchmark or an audit.",
    details="One self-contained file with tables and figures.",
    examples=(f"oneshui report runs/celeba-seed0-{o.DEFAULT_METHOD}",),
).add_to(app)  # fmt: skip
Command(
    "push", publishing.PushOptions, api.push, show.link, as_json=show.link_json, positional=("run", "repo_id"), panel=RUNS,
    summary="Publish a run on the Hub with a model card.",
    details="A new repository is private by default. No image, path or name is published.",
    examples=(f"oneshui push runs/celeba-seed0-{o.DEFAULT_METHOD} USER/NAME",),
).add_to(app)  # fmt: skip
Command(
    "pull", publishing.PullOptions, api.pull, show.run, as_json=show.run_json, positional=("repo_id",), panel=RUNS,
    summary="Download a published run.",
    examples=("oneshui pull USER/NAME --output-dir runs/NAME",),
).add_to(app)  # fmt: skip

Command(
    "purge", PurgeOptions, api.purge, show_purge.purge, panel=RUNS,
    stopped="what was removed stays removed, and the same command continues",
    summary="Remove a person from the files of runs and from caches.",
    details="From splits, predictions, prepared data, checkpoints, Arrow data and pixels. Weights stay: `oneshui unlearn` is for them.",
    examples=("oneshui purge --identity 4711 --dry-run", "oneshui purge --identity 4711 --run runs/celeba-seed0"),
).add_to(app)  # fmt: skip
hub = group("hub", "Earlier revisions and derived models on the Hub.", RUNS)
Command(
    "history", HistoryOptions, api.list_revisions, show_hub.history, positional=("repo_id",), group="hub",
    summary="List which revisions of a repository contain which weights.",
    details="Of all branches, tags and pull requests, by the hashes that the Hub lists. No weights are downloaded.",
    examples=("oneshui hub history USER/NAME",),
).add_to(hub)  # fmt: skip
Command(
    "squash", SquashOptions, show_hub.squash_after_questions, show_hub.squashed, positional=("repo_id",), group="hub",
    stopped="what was already removed stays removed, and the same command continues",
    summary="End the earlier revisions of a repository for good.",
    details="Leaves one commit per branch, and deletes the large files that no revision refers to any more. Asks twice.",
    examples=("oneshui hub squash USER/NAME --dry-run", "oneshui hub squash USER/NAME --yes --confirm USER/NAME"),
).add_to(hub)  # fmt: skip
Command(
    "derived", RepositoryOptions, api.list_derived_models, show_hub.derived, positional=("repo_id",), group="hub",
    summary="List the models that name a repository as their base.",
    examples=("oneshui hub derived USER/NAME",),
).add_to(hub)  # fmt: skip

add_desk(app, group("requests", "Requests of erasure, from receipt to answer.", DESK), DESK)

Command(
    "benchmark", o.BenchmarkOptions, api.benchmark, show_benchmark.benchmark, positional=("grid",), panel=STUDIES,
    failure=show_benchmark.unfinished, stopped="what was finished is kept, and the same command continues from there",
    summary="Compare methods over data sets, sizes and seeds.",
    details="Reads one YAML file. If it is interrupted, the same command resumes it.",
    examples=("oneshui benchmark demo --dry-run", "oneshui benchmark grid.yaml --shard 1/4"),
).add_to(app)  # fmt: skip

data = group("data", "List, check, split and publish data sets.", DATA)
Command(
    "check", o.CheckOptions, api.check_data, show_data.check, failure=show_data.blocking_findings, group="data",
    summary="Check every image and row of a data set.",
    details="Lists what is missing, damaged, contradictory or duplicate. Fails only for what would break a run.",
    examples=("oneshui data check --dataset celeba --data-dir DIR --split split.json",),
).add_to(data)  # fmt: skip
Command(
    "split", o.DrawOptions, api.draw_split, show_data.split, group="data",
    summary="Draw a split of the identities and write its file.",
    details="The same annotations and seed give the same bytes on every machine.",
    examples=("oneshui data split --dataset celeba --data-dir DIR --seed 0 --forget 5 --output split.json",),
).add_to(data)  # fmt: skip
Command(
    "push", publishing.DataPushOptions, api.push_data, show.link, as_json=show.link_json, positional=("repo_id",), group="data",
    summary="Publish a data set on the Hub with a data card.",
    details="A new repository is private by default. Identities and images are published under numbers.",
    examples=("oneshui data push USER/NAME --dataset DIR",),
).add_to(data)  # fmt: skip

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


@data.command("list")
def data_list(json: Json = False) -> None:
    """List the data sets that can be read."""
    rows = api.installed("datasets")
    (print_json if json else show.plugins)(rows)


app.command("datasets", hidden=True)(data_list)  # the spelling of earlier versions

methods = typer.Typer(help="List the methods, or show one: paper, options, presets.", rich_markup_mode="rich", context_settings=HELP)
app.add_typer(methods, name="methods", rich_help_panel=DATA)


@methods.callback(invoke_without_command=True)
def methods_list(ctx: typer.Context, json: Json = False) -> None:
    """List the methods, or show one: paper, options, presets."""
    if ctx.invoked_subcommand is None:
        rows = api.installed("methods")
        (print_json if json else show.methods)(rows)


@methods.command("show")
def methods_show(name: Annotated[str, typer.Argument(help="Name of the method.")], json: Json = False) -> None:
    """Show a method: paper, needs, options with defaults, presets."""
    about = api.method(name)
    (print_json if json else show.method)(about)


cache = group("cache", "List and remove cached models.", DATA)
Command(
    "list", CacheListOptions, api.list_cache, show.cache, group="cache",
    summary="List the cached models, the last used first.",
    examples=("oneshui cache list --cache-dir DIR",),
).add_to(cache)  # fmt: skip
Command(
    "clear", ClearOptions, api.clear_cache, show.cleared, group="cache",
    summary="Remove cached models that no process uses.",
    examples=("oneshui cache clear --kind oracle --older-than 30",),
).add_to(cache)  # fmt: skip

Command(
    "env", EnvironmentOptions, api.environment, show.environment, panel=DATA,
    summary="Print versions, devices and disk use for a bug report.",
    examples=("oneshui env --json",),
).add_to(app)  # fmt: skip


def run() -> int:
    """Run the command line and return its exit code."""
    prepare_process()
    return guarded(lambda: app(standalone_mode=False))

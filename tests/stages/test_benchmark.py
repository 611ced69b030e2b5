"""The benchmark: a small grid that runs every job once, with interruptions, failures and shards."""

from __future__ import annotations

import copy
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import yaml

import oneshui_hf
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import Artefact, Context, DataAccess, Method, Needs, option
from oneshui_hf.runs import Run, read_json, with_checksum, write_json
from oneshui_hf.stages import benchmark as benchmark_module
from oneshui_hf.stages.benchmarking.jobs import read_row
from support.commands import Oneshui, sentence

METHODS = ["do-nothing", {"method": "jit", "options": {"copies": 2}}, "failing"]
GRID: dict[str, Any] = {
    "name": "tiny",
    "datasets": [{"dataset": "synthetic", "epochs": 1, "optimizer": "adamw", "augment": "none", "keep": "last"}],
    "forget": [2, 3],
    "seeds": [0],
    "methods": METHODS,
    "evaluate": {"references": 1, "queries": 1, "resamples": 100},
}
JOBS = 2 * 5  # cells, and rows of each: original, oracle, methods
TABLES = ("results.csv", "tables.md", "tables.tex")


@dataclass(frozen=True)
class Options:
    """Options of the method that fails."""

    rate: float = option(0.01, "Not used.", at="apply")


class Failing(Method[Options]):
    """Fails on requests of three identities while `fails` is set."""

    summary, paper, options = "fails", "-", Options
    needs = Needs(apply=frozenset({"support"}))
    fails: ClassVar[bool] = True
    calls: ClassVar[int] = 0

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
        type(self).calls += 1
        if self.fails and len(data.support) == 3:
            raise ValueError("It is set to fail.\nA second line.")
        return copy.deepcopy(model)


@pytest.fixture(scope="module", autouse=True)
def failing() -> Iterator[type[Failing]]:
    """Install the method as `failing`."""
    from oneshui_hf import plugins

    patched = pytest.MonkeyPatch()
    load, origin = plugins.Plugins.load, plugins.Plugins.origin
    patched.setattr(plugins.Plugins, "origin", lambda self, name: "here 1.0" if name == "failing" else origin(self, name))
    patched.setattr(plugins.Plugins, "load", lambda self, name: Failing if name == "failing" else load(self, name))
    yield Failing
    patched.undo()


def write(folder: Path, **changes: Any) -> Path:
    file = folder / "grid.yaml"
    file.write_text(yaml.safe_dump(GRID | changes, sort_keys=False))
    return file


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished benchmark; the grid is next to its folder."""
    folder = tmp_path_factory.mktemp("benchmarks")
    oneshui_hf.benchmark(write(folder), output_dir=str(folder / "output"))
    return folder / "output"


@pytest.fixture
def done_copy(done: Path, tmp_path: Path) -> Path:
    """A copy of the finished benchmark."""
    shutil.copy(done.parent / "grid.yaml", tmp_path / "grid.yaml")
    return Path(shutil.copytree(done, tmp_path / "output"))


def hashes_of(folder: Path) -> dict[str, str]:
    """Return hashes of all files in a benchmark's folder except its cache and lock."""
    files = [
        file for file in folder.rglob("*") if file.is_file() and "cache" not in file.relative_to(folder).parts and file.name != ".lock"
    ]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {file.stem: read_json(file) for file in sorted((folder / "rows").glob("*.json"))}


def results_of(folder: Path) -> dict[str, Any]:
    """Return what must be the same in every run: tables, and rows without their cost and without their checksum, which covers the cost."""
    excluded = ("cost", "content")
    rows = {key: {name: value for name, value in row.items() if name not in excluded} for key, row in rows_of(folder).items()}
    return {"rows": rows, **{name: (folder / name).read_bytes() for name in TABLES}}


def test_every_cell_has_a_row_per_model_and_method(done: Path) -> None:
    rows = rows_of(done)
    assert len(rows) == JOBS
    described = {(row["dataset"], row["forget"], row["seed"], row["method"]) for row in rows.values()}
    assert described == {
        ("synthetic", forget, 0, name) for forget in (2, 3) for name in ("original", "oracle", "do-nothing", "jit", "failing")
    }
    for row in rows.values():
        assert set(row) == {
            "dataset",
            "forget",
            "seed",
            "row",
            "method",
            "reads",
            "state",
            "reason",
            "metrics",
            "curves",
            "cost",
            "content",
        }
        if row["state"] == "done":
            assert row["metrics"]["forget"]["people"] == row["forget"]
            assert row["metrics"]["key"] == row["curves"]["key"]
            assert row["metrics"]["attacks"]["rmia"]
            assert row["reads"] == ([] if row["row"] != "method" else row["reads"])
    by_name = {(row["forget"], row["method"]): row for row in rows.values()}
    for forget in (2, 3):
        original, oracle, do_nothing = (by_name[forget, name]["metrics"] for name in ("original", "oracle", "do-nothing"))
        assert original["gap_closure"] in (0, None)  # after one epoch the gap may be within the noise
        assert oracle["tow"] == 100
        for name in ("forget", "test", "tow", "to_oracle"):
            assert do_nothing[name] == original[name]
        assert by_name[forget, "jit"]["metrics"]["forget"] != original["forget"]
        assert by_name[forget, "jit"]["cost"]["apply_s"] >= 0
        assert by_name[forget, "original"]["cost"] is None
    assert set(read_json(done / "benchmark.json")["rows"]) == set(rows)


@pytest.mark.slow
def test_row_equals_the_result_of_the_single_commands(done: Path, tmp_path: Path) -> None:
    original = oneshui_hf.train(**GRID["datasets"][0], forget=2, output_dir=str(tmp_path / "original"))
    oneshui_hf.retrain(original)
    run = oneshui_hf.unlearn(original, method="jit", from_split=True, copies=2, output_dir=str(tmp_path / "jit"))
    by_hand = oneshui_hf.evaluate(run, cache_dir=str(tmp_path / "cache"), **GRID["evaluate"])
    (row,) = (row for row in rows_of(done).values() if (row["forget"], row["method"]) == (2, "jit"))
    assert row["metrics"] == by_hand
    assert row["curves"] == read_json(run.path / "curves.json")


def test_second_run_changes_nothing(done_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = hashes_of(done_copy)
    monkeypatch.setattr(benchmark_module, "run_job", None)
    found = oneshui_hf.benchmark(done_copy.parent / "grid.yaml", output_dir=str(done_copy))
    assert hashes_of(done_copy) == before
    assert (found["rows"], found["missing"], len(found["failed"])) == (JOBS, 0, 1)


def test_failed_job_is_reported_and_does_not_stop_the_others(oneshui: Oneshui, done_copy: Path, failing: type[Failing]) -> None:
    rows = rows_of(done_copy)
    (failed,) = (row for row in rows.values() if row["state"] == "failed")
    assert (failed["method"], failed["forget"]) == ("failing", 3)
    assert failed["reason"] == "ValueError: It is set to fail."
    assert (failed["metrics"], failed["curves"], failed["cost"]) == (None, None, None)
    calls = failing.calls
    words = ("benchmark", done_copy.parent / "grid.yaml", "--output-dir", done_copy)
    code, out, err = oneshui(*words)
    assert code == 1
    message = sentence(err)
    assert message.startswith(
        f"Error: 1 of {JOBS} jobs failed. The first is failing on synthetic, 3 forget identities, seed 0: ValueError: It is set to fail."
    )
    assert message.endswith("Repeat them with --retry.")
    assert "jit" in out  # the tables are printed nevertheless
    assert failing.calls == calls  # without --retry, the failed job does not run again
    code, _, err = oneshui(*words, "--retry")
    assert (code, failing.calls) == (1, calls + 1)
    assert rows_of(done_copy) == rows
    failing.fails = False
    try:
        code, out, err = oneshui(*words, "--retry", "--json")
    finally:
        failing.fails = True
    assert code == 0, err
    assert json.loads(out)["failed"] == []
    after = rows_of(done_copy)
    assert {key for key in rows if rows[key] != after[key]} == {key for key, row in rows.items() if row is failed}
    assert {row["state"] for row in after.values()} == {"done"}
    assert ",failed,1" not in (done_copy / "results.csv").read_text()


@pytest.mark.slow
def test_shards_together_give_the_same_results_as_one_run(done: Path, tmp_path: Path) -> None:
    shared: dict[str, Any] = {"output_dir": str(tmp_path / "output"), "cache_dir": str(done / "cache")}
    first = oneshui_hf.benchmark(write(tmp_path), shard="1/2", **shared)
    assert (first["rows"], first["missing"]) == (JOBS // 2, JOBS // 2)
    second = oneshui_hf.benchmark(write(tmp_path), shard="2/2", **shared)
    assert (second["rows"], second["missing"]) == (JOBS, 0)
    assert results_of(tmp_path / "output") == results_of(done)


def test_shards_partition_the_jobs() -> None:
    jobs: Any = list(range(11))
    parts: Any
    for count in (1, 2, 3, 5, 11, 12):
        parts = [benchmark_module.jobs_of_shard(jobs, f"{number}/{count}") for number in range(1, count + 1)]
        assert sorted(job for part in parts for job in part) == jobs
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert benchmark_module.jobs_of_shard(jobs, None) == jobs
    parts = [benchmark_module.jobs_of_shard(jobs[:8], f"{number}/2") for number in (1, 2)]
    assert parts == [[0, 2, 4, 6], [5, 7, 1, 3]]  # each shard starts at another position


def test_dry_run_prints_the_plan_and_writes_nothing(oneshui: Oneshui, done: Path, tmp_path: Path) -> None:
    file, output = write(tmp_path), tmp_path / "output"

    def plan(*words: object) -> dict[str, Any]:
        code, out, err = oneshui("benchmark", file, "--dry-run", "--json", *words)
        assert code == 0, err
        return dict(json.loads(out))

    found = plan("--output-dir", output)
    assert not output.exists()
    assert (found["jobs"], found["done"]) == (JOBS, 0)
    assert [(row["forget"], row["jobs"], row["done"], row["models_cached"], row["models_to_train"]) for row in found["plan"]] == [
        (2, 5, 0, 0, 3),
        (3, 5, 0, 0, 3),
    ]
    assert found["seconds"] > 0
    assert found["at_least"]
    half = plan("--output-dir", output, "--shard", "1/2")
    assert (half["jobs"], sum(row["jobs"] for row in half["plan"])) == (JOBS // 2, JOBS // 2)

    before = hashes_of(done)
    found = plan("--output-dir", done)
    assert (found["jobs"], found["done"], found["seconds"]) == (JOBS, JOBS, 0)
    assert [(row["models_cached"], row["models_to_train"]) for row in found["plan"]] == [(3, 0)] * 2
    assert plan("--output-dir", done, "--retry")["done"] == JOBS - 1
    assert hashes_of(done) == before
    code, out, err = oneshui("benchmark", file, "--dry-run", "--output-dir", done)
    assert code == 0, err
    assert f"tiny: {JOBS} jobs, {JOBS} done" in out


def test_dry_run_estimates_a_head_in_closed_form_without_epochs(oneshui: Oneshui, tmp_path: Path) -> None:
    def seconds(**recipe: object) -> float:
        cell = {"dataset": "synthetic", "forget": 2, "seeds": 0, **recipe}
        (tmp_path / "grid.yaml").write_text(json.dumps({"name": "g", "datasets": [cell], "methods": ["forget-keys", *methods]}))
        code, out, err = oneshui("benchmark", tmp_path / "grid.yaml", "--dry-run", "--json", "--output-dir", tmp_path / "output")
        assert (code, err, json.loads(out)["problems"]) == (0, "", [])
        return float(json.loads(out)["seconds"])

    methods = ["exact-head"]
    closed = seconds(head="closed-form")
    methods = []
    assert 0 < closed < seconds(epochs=30) / 2


def test_weights_of_unlearned_models_are_kept_on_request_only(done_copy: Path) -> None:
    cache = done_copy / "cache"

    def folders(kind: str) -> set[Path]:
        return {path for path in cache.glob(f"{kind}-*") if path.is_dir()}

    before = folders("unlearned")
    assert len(before) == 2 * 2 * 2 + 2  # two methods: a model and a reference in each cell; the third: in one cell
    assert not [path for path in before if list(path.glob("*.safetensors"))]
    # The predictions of each are kept, in its folder or in that of a model with the same weights.
    with_predictions = {Run.open(path.parent).record.weights for path in cache.glob("*/predictions")}
    assert {Run.open(path).record.weights for path in before} <= with_predictions
    assert all(list(path.glob("*.safetensors")) for kind in ("original", "oracle") for path in folders(kind))
    methods = [{"method": "jit", "options": {"copies": 3}}]
    oneshui_hf.benchmark(write(done_copy.parent, forget=[2], methods=methods), output_dir=str(done_copy), keep_models=True)
    kept = folders("unlearned") - before
    assert len(kept) == 2
    assert all((path / "model.safetensors").exists() for path in kept)


@pytest.mark.slow
def test_evicted_models_are_made_again_for_other_evaluation_options(done_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train", "retrain"):
        monkeypatch.setattr(f"oneshui_hf.stages.evaluation.model_cache.{name}", None)
    evaluate = {"references": 1, "queries": 2, "resamples": 100, "relearn_steps": 1}
    methods = ["do-nothing", METHODS[1]]
    found = oneshui_hf.benchmark(write(done_copy.parent, forget=[2], methods=methods, evaluate=evaluate), output_dir=str(done_copy))
    assert (found["failed"], found["rows"]) == ([], 4)
    assert {
        row["relearning"]["at_most"]
        for row in (rows_of(done_copy)[key]["metrics"] for key in read_json(done_copy / "benchmark.json")["rows"])
    } == {1}
    assert not list((done_copy / "cache").glob("unlearned-*/model.safetensors"))


def test_results_csv_contains_the_numbers_of_the_rows(done: Path) -> None:
    names = {"original": "do nothing", "oracle": "oracle"}
    rows = {(row["forget"], names.get(row["row"], row["method"])): row for row in rows_of(done).values()}
    seen = set()
    with (done / "results.csv").open(newline="") as stream:
        for line in csv.DictReader(stream):
            row = rows[int(line["forget"]), line["method"]]
            assert (line["dataset"], line["seed"]) == ("synthetic", "0")
            seen.add((row["forget"], row["method"]))
            if row["state"] == "failed":
                assert (line["metric"], line["value"]) == ("failed", "1")
                continue
            value: Any = row["metrics"]
            of, metric = line["set"], line["metric"]
            if metric == "noise_floor" or metric.startswith("noise_floor."):
                value = value["noise_floor"][of or metric.removeprefix("noise_floor.")]
            elif metric.startswith("to_oracle."):
                value = value["to_oracle"][of][metric.removeprefix("to_oracle.")]
            elif metric == "attack.strongest.auc_either_way":
                value = value["attacks"][value["attacks"]["strongest"]]["auc_either_way"]
            elif metric.startswith("attack."):
                _, name, key = metric.split(".", 2)
                attack = value["attacks"][name]
                value = attack["tpr"][key.removeprefix("tpr_at_")] if key.startswith("tpr_at_") else attack[key]
            elif metric.startswith("probe."):
                value = value["probe"][metric.removeprefix("probe.")]
            elif metric.startswith("collapse."):
                value = value["collapse"][of][metric.removeprefix("collapse.")]
            elif metric.startswith(("bystanders.groups.retain.", "bystanders.groups.test.")):
                _, _, part, rest = metric.split(".", 3)
                name, _, key = rest.rpartition(".")
                groups = value["bystanders"]["groups"][part]
                [group] = [one for one in groups if name == (str(one["label"]) if one["name"] is None else one["name"])]
                if key == "difference":
                    ends = group["interval"] or (None, None)
                    assert [line["low"], line["high"]] == ["" if end is None else f"{end:.10g}" for end in ends]
                value = group[key]
            elif metric.startswith(("person_level.", "difference.", "bystanders.")):
                for key in metric.split("."):
                    value = value[key]
            else:
                low_high = value["intervals"].get(of, {}).get(metric) if of else value["intervals"].get(metric)
                assert [line["low"], line["high"]] == ["" if end is None else f"{end:.10g}" for end in low_high or (None, None)]
                value = value[of][metric] if of else value[metric]
            assert line["value"] == ("" if value is None else f"{value:.10g}"), line
    assert seen == {(row["forget"], row["method"]) for row in rows.values()}
    tables = (done / "tables.md").read_text()
    for _, name in rows:
        name = "do nothing" if name == "do-nothing" else name  # the method's numbers are the baseline's
        assert f"| {name}" in tables or f"| **{name}" in tables
    assert "noise floor" in tables
    assert (done / "tables.tex").read_text().count(r"\begin{tabular}") == 2
    with (done / "costs.csv").open(newline="") as stream:
        assert {line["method"] for line in csv.DictReader(stream)} == {"do-nothing", "jit", "failing"}


def test_output_folder_may_only_contain_this_benchmark(tmp_path: Path) -> None:
    from oneshui_hf.stages.benchmarking.grid import read_grid
    from oneshui_hf.stages.command_options import BenchmarkOptions

    grid, output = read_grid(str(write(tmp_path))), tmp_path / "output"
    options = BenchmarkOptions(grid="-", output_dir=str(output))
    assert benchmark_module.resolve_output_dir(options, grid) == output
    output.mkdir()
    assert benchmark_module.resolve_output_dir(options, grid) == output
    (output / ".benchmark.json.0123abcd.partial").write_text("{")  # left by a killed process
    assert benchmark_module.resolve_output_dir(options, grid) == output
    (output / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="contains other files than a benchmark"):
        benchmark_module.resolve_output_dir(options, grid)
    (output / "benchmark.json").write_text('{"name": "tiny"}')
    assert benchmark_module.resolve_output_dir(options, grid) == output
    (output / "benchmark.json").write_text('{"name": "other"}')
    with pytest.raises(UsageError, match="contains benchmark 'other', not 'tiny'"):
        benchmark_module.resolve_output_dir(options, grid)
    (output / "benchmark.json").write_text("{")
    with pytest.raises(OneshuiError, match="is not JSON"):
        benchmark_module.resolve_output_dir(options, grid)
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "sub"):
        with pytest.raises(UsageError, match="is a file; name another folder with --output-dir"):
            benchmark_module.resolve_output_dir(BenchmarkOptions(grid="-", output_dir=str(place)), grid)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("demmo",), "Did you mean 'demo'?"),
        (("GRID", "--shard", "3/2"), "--shard takes I/N, such as 1/4 for the first of four parts, not '3/2'."),
        (("GRID", "--shard", "0/2"), "not '0/2'."),
        (("GRID", "--shard", "x"), "not 'x'."),
        (("GRID", "--shard", "1/"), "not '1/'."),
        (("GRID", "--shard", "-1/2"), "not '-1/2'."),
        (("GRID", "--data-dir", "somewhere"), "--data-dir takes NAME=DIR here, not 'somewhere'"),
        (("GRID", "--data-dir", "synthetic="), "--data-dir takes NAME=DIR here"),
        (("GRID", "--data-dir", "synthetc=DIR"), "The grid has no data set 'synthetc'. Did you mean 'synthetic'?"),
        (("GRID", "--data-dir", "synthetic=DIR"), "--data-dir applies to data sets"),
        (("GRID", "--output-dir", "OTHER"), "contains other files than a benchmark; name another folder with --output-dir."),
        (("GRID", "--cache-dir", "OTHER"), "is not a cache and contains other files"),
        (("paper",), "--data-dir"),
    ],
)
def test_invalid_arguments_are_an_error(
    oneshui: Oneshui, tmp_path: Path, words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    values = {"GRID": write(tmp_path), "OTHER": other}
    code, out, err = oneshui("benchmark", *(values.get(word, word) for word in words))
    assert message in sentence(err)
    assert code == 2
    assert not out
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]
    assert not (tmp_path / "benchmarks").exists()


# ---------------------------------------------------------------- killed processes


def wait_for_first_job(process: subprocess.Popen[bytes], output: Path, before: int) -> float:
    """Wait until a benchmark starts its jobs, and return the time. Loading torch takes long; killing it there would test little."""
    while process.poll() is None and manifest_time(output) == before:
        time.sleep(0.02)
    return time.monotonic()


def manifest_time(output: Path) -> int:
    """Return when the manifest was written; this happens before the first job."""
    file = output / "benchmark.json"
    return file.stat().st_mtime_ns if file.exists() else 0


@pytest.mark.slow
def test_benchmark_killed_at_random_times_ends_with_the_same_results(tmp_path: Path) -> None:
    methods = ["do-nothing", {"method": "jit", "options": {"copies": 2}}, {"method": "lfssd", "options": {"photos": 40}}]
    file = write(tmp_path, forget=[2], methods=methods)

    def start(name: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "oneshui_hf", "benchmark", str(file), "--output-dir", str(tmp_path / name)]
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})

    uninterrupted = start("uninterrupted")
    started = wait_for_first_job(uninterrupted, tmp_path / "uninterrupted", 0)
    err = uninterrupted.communicate()[1].decode()
    assert uninterrupted.returncode == 0, err
    running_time, rng, killed = time.monotonic() - started, random.Random(5), 0
    for _ in range(5):
        before = manifest_time(tmp_path / "killed")
        process = start("killed")
        wait_for_first_job(process, tmp_path / "killed", before)
        time.sleep(rng.uniform(0, 0.35) * running_time)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate()
    assert killed >= 3
    last = start("killed")
    err = last.communicate()[1].decode()
    assert last.returncode == 0, err
    assert results_of(tmp_path / "killed") == results_of(tmp_path / "uninterrupted")
    assert set(read_json(tmp_path / "killed" / "benchmark.json")["rows"]) == set(rows_of(tmp_path / "killed"))
    assert not list((tmp_path / "killed" / "cache").glob("*/checkpoint-*"))


def test_damaged_row_counts_as_not_done(tmp_path: Path) -> None:
    job: Any = SimpleNamespace(key="job")
    file = tmp_path / "rows" / "job.json"
    assert read_row(tmp_path, job) is None
    write_json(file, with_checksum({"state": "done", "metrics": {"tow": 61.5}}))
    intact = file.read_bytes()
    assert read_row(tmp_path, job) == read_json(file)
    for bad in (intact[:20], b"{}", intact.replace(b"done", b"odd"), intact.replace(b"61.5", b'"high"')):
        file.write_bytes(bad)
        assert read_row(tmp_path, job) is None

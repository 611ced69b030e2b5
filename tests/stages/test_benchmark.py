"""The benchmark: a small grid that is done once, whatever stops it, fails in it, or shares it."""

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
from oneshui_hf.runs import Run, read_json, sealed, write_json
from oneshui_hf.stages import benchmark as stage
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
    """Of the method that fails."""

    rate: float = option(0.01, "Not used.", at="apply")


class Failing(Method[Options]):
    """Fails as long as it is told to, on requests of three people."""

    summary, paper, options = "fails", "-", Options
    needs = Needs(apply=frozenset({"support"}))
    fails: ClassVar[bool] = True
    asked: ClassVar[int] = 0

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
        type(self).asked += 1
        if self.fails and len(data.support) == 3:
            raise ValueError("It was told to fail.\nAnd says more.")
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
    """A benchmark that ran through; the grid lies beside its folder."""
    folder = tmp_path_factory.mktemp("benchmarks")
    oneshui_hf.benchmark(write(folder), output_dir=str(folder / "output"))
    return folder / "output"


@pytest.fixture
def again(done: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copy(done.parent / "grid.yaml", tmp_path / "grid.yaml")
    return Path(shutil.copytree(done, tmp_path / "output"))


def bytes_of(folder: Path) -> dict[str, str]:
    """Return hashes of everything in a benchmark's folder but its cache and lock."""
    files = [
        file for file in folder.rglob("*") if file.is_file() and "cache" not in file.relative_to(folder).parts and file.name != ".lock"
    ]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {file.stem: read_json(file) for file in sorted((folder / "rows").glob("*.json"))}


def results_of(folder: Path) -> dict[str, Any]:
    """Return what must be the same from run to run: rows without what they cost (and without their hash, which tells of it), and tables."""
    apart = ("cost", "content")
    rows = {key: {name: value for name, value in row.items() if name not in apart} for key, row in rows_of(folder).items()}
    return {"rows": rows, **{name: (folder / name).read_bytes() for name in TABLES}}


def test_every_cell_has_its_rows(done: Path) -> None:
    rows = rows_of(done)
    assert len(rows) == JOBS
    places = {(row["dataset"], row["forget"], row["seed"], row["method"]) for row in rows.values()}
    assert places == {
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
        original, oracle, nothing = (by_name[forget, name]["metrics"] for name in ("original", "oracle", "do-nothing"))
        assert original["gap_closure"] in (0, None)  # after one epoch there may be no gap beyond noise
        assert oracle["tow"] == 100
        for name in ("forget", "test", "tow", "to_oracle"):
            assert nothing[name] == original[name]
        assert by_name[forget, "jit"]["metrics"]["forget"] != original["forget"]
        assert by_name[forget, "jit"]["cost"]["apply_s"] >= 0
        assert by_name[forget, "original"]["cost"] is None
    assert set(read_json(done / "benchmark.json")["rows"]) == set(rows)


def test_a_row_is_what_the_commands_measure(done: Path, tmp_path: Path) -> None:
    original = oneshui_hf.train(**GRID["datasets"][0], forget=2, output_dir=str(tmp_path / "original"))
    oneshui_hf.retrain(original)
    run = oneshui_hf.unlearn(original, method="jit", from_split=True, copies=2, output_dir=str(tmp_path / "jit"))
    by_hand = oneshui_hf.evaluate(run, cache_dir=str(tmp_path / "cache"), **GRID["evaluate"])
    (row,) = (row for row in rows_of(done).values() if (row["forget"], row["method"]) == (2, "jit"))
    assert row["metrics"] == by_hand
    assert row["curves"] == read_json(run.path / "curves.json")


def test_a_second_run_does_nothing(again: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = bytes_of(again)
    monkeypatch.setattr(stage, "do", None)
    found = oneshui_hf.benchmark(again.parent / "grid.yaml", output_dir=str(again))
    assert bytes_of(again) == before
    assert (found["rows"], found["missing"], len(found["failed"])) == (JOBS, 0, 1)


def test_a_failing_job_is_told_and_stops_no_other(oneshui: Oneshui, again: Path, failing: type[Failing]) -> None:
    rows = rows_of(again)
    (failed,) = (row for row in rows.values() if row["state"] == "failed")
    assert (failed["method"], failed["forget"]) == ("failing", 3)
    assert failed["reason"] == "ValueError: It was told to fail."
    assert (failed["metrics"], failed["curves"], failed["cost"]) == (None, None, None)
    asked = failing.asked
    words = ("benchmark", again.parent / "grid.yaml", "--output-dir", again)
    code, out, err = oneshui(*words)
    assert code == 1
    told = sentence(err)
    assert told.startswith(
        f"Error: 1 of {JOBS} jobs failed; the first, failing on synthetic, 3 people, seed 0: ValueError: It was told to fail."
    )
    assert told.endswith("Try them again with --retry.")
    assert "jit" in out  # the tables are shown nevertheless
    assert failing.asked == asked  # and it is not tried again by itself
    code, _, err = oneshui(*words, "--retry")
    assert (code, failing.asked) == (1, asked + 1)
    assert rows_of(again) == rows
    failing.fails = False
    try:
        code, out, err = oneshui(*words, "--retry", "--json")
    finally:
        failing.fails = True
    assert code == 0, err
    assert json.loads(out)["failed"] == []
    after = rows_of(again)
    assert {key for key in rows if rows[key] != after[key]} == {key for key, row in rows.items() if row is failed}
    assert {row["state"] for row in after.values()} == {"done"}
    assert ",failed,1" not in (again / "results.csv").read_text()


def test_shards_together_are_one_run(done: Path, tmp_path: Path) -> None:
    shared: dict[str, Any] = {"output_dir": str(tmp_path / "output"), "cache_dir": str(done / "cache")}
    first = oneshui_hf.benchmark(write(tmp_path), shard="1/2", **shared)
    assert (first["rows"], first["missing"]) == (JOBS // 2, JOBS // 2)
    second = oneshui_hf.benchmark(write(tmp_path), shard="2/2", **shared)
    assert (second["rows"], second["missing"]) == (JOBS, 0)
    assert results_of(tmp_path / "output") == results_of(done)


def test_shares_are_parts_of_the_whole() -> None:
    plan: Any = list(range(11))
    parts: Any
    for count in (1, 2, 3, 5, 11, 12):
        parts = [stage.share(plan, f"{number}/{count}") for number in range(1, count + 1)]
        assert sorted(job for part in parts for job in part) == plan
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert stage.share(plan, None) == plan
    parts = [stage.share(plan[:8], f"{number}/2") for number in (1, 2)]
    assert parts == [[0, 2, 4, 6], [5, 7, 1, 3]]  # each begins elsewhere


def test_a_plan_counts_and_writes_nothing(oneshui: Oneshui, done: Path, tmp_path: Path) -> None:
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

    before = bytes_of(done)
    found = plan("--output-dir", done)
    assert (found["jobs"], found["done"], found["seconds"]) == (JOBS, JOBS, 0)
    assert [(row["models_cached"], row["models_to_train"]) for row in found["plan"]] == [(3, 0)] * 2
    assert plan("--output-dir", done, "--retry")["done"] == JOBS - 1
    assert bytes_of(done) == before
    code, out, err = oneshui("benchmark", file, "--dry-run", "--output-dir", done)
    assert code == 0, err
    assert f"tiny: {JOBS} jobs, {JOBS} done" in out


def test_weights_of_unlearned_models_are_kept_only_where_wanted(again: Path) -> None:
    cache = again / "cache"

    def folders(kind: str) -> set[Path]:
        return {path for path in cache.glob(f"{kind}-*") if path.is_dir()}

    before = folders("unlearned")
    assert len(before) == 2 * 2 * 2 + 2  # of two methods a model and a reference in each cell, of the third in one
    assert not [path for path in before if list(path.glob("*.safetensors"))]
    # What each said is kept: beside it, or beside a model of the same weights.
    said = {Run.open(path.parent).record.weights for path in cache.glob("*/predictions")}
    assert {Run.open(path).record.weights for path in before} <= said
    assert all(list(path.glob("*.safetensors")) for kind in ("original", "oracle") for path in folders(kind))
    methods = [{"method": "jit", "options": {"copies": 3}}]
    oneshui_hf.benchmark(write(again.parent, forget=[2], methods=methods), output_dir=str(again), keep_models=True)
    kept = folders("unlearned") - before
    assert len(kept) == 2
    assert all((path / "model.safetensors").exists() for path in kept)


def test_models_that_were_let_go_are_made_again_for_another_question(again: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train", "retrain"):
        monkeypatch.setattr(f"oneshui_hf.stages.evaluation.model_cache.{name}", None)
    evaluate = {"references": 1, "queries": 2, "resamples": 100, "relearn_steps": 1}
    methods = ["do-nothing", METHODS[1]]
    found = oneshui_hf.benchmark(write(again.parent, forget=[2], methods=methods, evaluate=evaluate), output_dir=str(again))
    assert (found["failed"], found["rows"]) == ([], 4)
    assert {
        row["relearning"]["at_most"] for row in (rows_of(again)[key]["metrics"] for key in read_json(again / "benchmark.json")["rows"])
    } == {1}
    assert not list((again / "cache").glob("unlearned-*/model.safetensors"))


def test_the_results_are_the_numbers_of_the_rows(done: Path) -> None:
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
            else:
                low_high = value["intervals"].get(of, {}).get(metric) if of else value["intervals"].get(metric)
                assert [line["low"], line["high"]] == ["" if end is None else f"{end:.10g}" for end in low_high or (None, None)]
                value = value[of][metric] if of else value[metric]
            assert line["value"] == ("" if value is None else f"{value:.10g}"), line
    assert seen == {(row["forget"], row["method"]) for row in rows.values()}
    tables = (done / "tables.md").read_text()
    for _, name in rows:
        assert f"| {name}" in tables or f"| **{name}" in tables
    assert "noise floor" in tables
    assert (done / "tables.tex").read_text().count(r"\begin{tabular}") == 2
    with (done / "costs.csv").open(newline="") as stream:
        assert {line["method"] for line in csv.DictReader(stream)} == {"do-nothing", "jit", "failing"}


def test_a_copied_manifest_or_a_shard_at_work_is_no_other_thing(tmp_path: Path) -> None:
    from oneshui_hf.stages.benchmarking.grid import read_grid
    from oneshui_hf.stages.command_options import BenchmarkOptions

    grid, output = read_grid(str(write(tmp_path))), tmp_path / "output"
    options = BenchmarkOptions(grid="-", output_dir=str(output))
    assert stage.claim_output(options, grid) == output
    output.mkdir()
    assert stage.claim_output(options, grid) == output
    (output / ".benchmark.json.x7f3").write_text("{")  # what a killed process was writing
    assert stage.claim_output(options, grid) == output
    (output / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="holds other things than a benchmark"):
        stage.claim_output(options, grid)
    (output / "benchmark.json").write_text('{"name": "tiny"}')
    assert stage.claim_output(options, grid) == output
    (output / "benchmark.json").write_text('{"name": "other"}')
    with pytest.raises(UsageError, match="holds benchmark 'other', not 'tiny'"):
        stage.claim_output(options, grid)
    (output / "benchmark.json").write_text("{")
    with pytest.raises(OneshuiError, match="is not JSON"):
        stage.claim_output(options, grid)
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "sub"):
        with pytest.raises(UsageError, match="cannot be written there"):
            stage.claim_output(BenchmarkOptions(grid="-", output_dir=str(place)), grid)


@pytest.mark.parametrize(
    ("words", "told"),
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
        (("GRID", "--data-dir", "synthetic=DIR"), "--data-dir goes with a data set"),
        (("GRID", "--output-dir", "OTHER"), "holds other things than a benchmark; name another folder with --output-dir."),
        (("GRID", "--cache-dir", "OTHER"), "holds other things than a cache"),
        (("paper",), "--data-dir"),
    ],
)
def test_wrong_words(oneshui: Oneshui, tmp_path: Path, words: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    places = {"GRID": write(tmp_path), "OTHER": other}
    code, out, err = oneshui("benchmark", *(places.get(word, word) for word in words))
    assert told in sentence(err)
    assert code == 2
    assert not out
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]
    assert not (tmp_path / "benchmarks").exists()


# ---------------------------------------------------------------- killed


def begun(process: subprocess.Popen[bytes], output: Path, before: int) -> float:
    """Wait until a benchmark works at its jobs, and return when that was; loading torch takes long, and kills there tell little."""
    while process.poll() is None and stamp(output) == before:
        time.sleep(0.02)
    return time.monotonic()


def stamp(output: Path) -> int:
    """Return when the manifest was written, which is done before the first job."""
    file = output / "benchmark.json"
    return file.stat().st_mtime_ns if file.exists() else 0


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    methods = ["do-nothing", {"method": "jit", "options": {"copies": 2}}, {"method": "lfssd", "options": {"photos": 40}}]
    file = write(tmp_path, forget=[2], methods=methods)

    def start(name: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "oneshui_hf", "benchmark", str(file), "--output-dir", str(tmp_path / name)]
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})

    whole = start("whole")
    started = begun(whole, tmp_path / "whole", 0)
    err = whole.communicate()[1].decode()
    assert whole.returncode == 0, err
    working, draws, killed = time.monotonic() - started, random.Random(5), 0
    for _ in range(5):
        before = stamp(tmp_path / "cut")
        process = start("cut")
        begun(process, tmp_path / "cut", before)
        time.sleep(draws.uniform(0, 0.35) * working)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate()
    assert killed >= 3
    last = start("cut")
    err = last.communicate()[1].decode()
    assert last.returncode == 0, err
    assert results_of(tmp_path / "cut") == results_of(tmp_path / "whole")
    assert set(read_json(tmp_path / "cut" / "benchmark.json")["rows"]) == set(rows_of(tmp_path / "cut"))
    assert not list((tmp_path / "cut" / "cache").glob("*/checkpoint-*"))


def test_a_damaged_row_counts_as_not_done(tmp_path: Path) -> None:
    job: Any = SimpleNamespace(key="job")
    file = tmp_path / "rows" / "job.json"
    assert read_row(tmp_path, job) is None
    write_json(file, sealed({"state": "done", "metrics": {"tow": 61.5}}))
    whole = file.read_bytes()
    assert read_row(tmp_path, job) == read_json(file)
    for bad in (whole[:20], b"{}", whole.replace(b"done", b"odd"), whole.replace(b"61.5", b'"high"')):
        file.write_bytes(bad)
        assert read_row(tmp_path, job) is None

"""The method of a request that names none: each rule of the choice, on folders that have a record and artefacts but no model."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import oneshui_hf
from oneshui_hf.errors import UsageError
from oneshui_hf.options import fields
from oneshui_hf.plugins import METHODS, Plugins
from oneshui_hf.runs import Run, hash_file
from oneshui_hf.stages.command_options import UnlearnOptions
from oneshui_hf.stages.method_choice import with_method
from support.commands import Oneshui, sentence
from support.recording_reporter import RecordingReporter

REQUEST = UnlearnOptions(images=("face.png",))
MakeRun = Callable[..., Run]
PLUGIN = """
from dataclasses import dataclass
from oneshui_hf.methods import Method, Needs, option
@dataclass(frozen=True)
class Options:
    pace: float = option(1.0, "A number.", at="apply")
class M(Method):
    summary, paper, needs, options = "a method", "-", Needs(apply=frozenset({"support", *SETS})), Options
    prepares = "required"
    def apply(self, model, data, artefact, options, context): return model
"""


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A factory of runs: name, the methods with an artefact, the parent run and the method that made the run from it."""

    def make(name: str, *prepared: str, parent: Run | None = None, method: str | None = None, **options: Any) -> Run:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(name.encode())
        report: dict[str, Any] = {"split": {"forget_identities": 2}} | ({"method": method} if method else {})
        data = {"name": "synthetic", "task": "multi_label", "labels": ["Smiling"]}
        record = {
            "format": 1,
            "seed": 0,
            "state": "complete",
            "options": {"dataset": "synthetic", **options},
            "dataset": data,
            "versions": {},
        }
        record |= {"kind": "unlearned" if parent else "original", "weights": hash_file(folder / "model.safetensors"), "report": report}
        record["parent"] = {"run": str(parent.path), "weights": parent.weights} if parent else None
        (folder / "oneshui.json").write_text(json.dumps(record))
        for artefact in prepared:
            prepare(folder, artefact)
        return Run.open(folder)

    return make


def prepare(run: Path, method: str) -> None:
    (run / "methods" / method).mkdir(parents=True)
    (run / "methods" / method / "artefact.json").write_text("{}")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that installs a method next to the built-in ones: its name, and lines that its class has in addition."""
    built_in = list(metadata.entry_points(group=METHODS))
    (tmp_path / "modules").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "modules")

    def make(name: str, attributes: str = "", sets: str = "()") -> None:
        lines = "".join(f"    {line}\n" for line in attributes.splitlines())
        (tmp_path / "modules" / f"plugin_{name}.py").write_text(f"SETS = {sets}{PLUGIN}{lines}")
        monkeypatch.delitem(sys.modules, f"plugin_{name}", raising=False)
        importlib.invalidate_caches()
        built_in.append(metadata.EntryPoint(name, f"plugin_{name}:M", METHODS))

    monkeypatch.setattr(metadata, "entry_points", lambda group: [entry for entry in built_in if entry.group == group])
    return make


def chosen(run: Run) -> tuple[str, str]:
    """Return the chosen method and the one note about it."""
    reporter = RecordingReporter()
    options = with_method(run, REQUEST, {}, reporter)
    assert with_method(run, options, {}, reporter) is options  # a second call changes and prints nothing
    assert reporter.warnings == []
    (note,) = reporter.notes
    return options.method_name, note


@pytest.mark.parametrize(
    ("prepared", "expected"),
    [
        (["metaunlearn"], "metaunlearn"),
        (["forget-keys", "metaunlearn"], "forget-keys"),
        (["forget-keys", "ssd"], "forget-keys"),
        (["exact-head", "forget-keys", "metaunlearn"], "exact-head"),
    ],
)
def test_what_the_run_has_prepared_is_taken_exact_first(make_run: MakeRun, prepared: list[str], expected: str) -> None:
    run = make_run("run", *prepared)
    method, note = chosen(run)
    situation = Plugins(METHODS).load(expected).situation()
    others = [name for name in prepared if name != expected]
    also = f" Also possible with --method: {', '.join(others)}." if others else ""
    assert (method, note) == (expected, f"Method {expected} ({situation}): prepared for {run.path}.{also}")


def test_sharded_training_is_a_preparation(make_run: MakeRun) -> None:
    run = make_run("run", "forget-keys", sharded=5)
    expected = "Method drop-shard (exact by design): trained with --sharded. Also possible with --method: forget-keys."
    assert chosen(run) == ("drop-shard", expected)
    assert chosen(make_run("made", parent=run, method="gradient-ascent", sharded=5))[0] == "drop-shard"
    assert chosen(make_run("plain", "forget-keys", sharded=None))[0] == "forget-keys"
    assert chosen(make_run("exact", "exact-head", sharded=5))[0] == "exact-head"  # one that was prepared comes first


def test_artefact_of_the_nearest_ancestor_is_found(make_run: MakeRun) -> None:
    original = make_run("original", "forget-keys", "metaunlearn")
    first = make_run("first", parent=original, method="forget-keys")
    second = make_run("second", parent=first, method="forget-keys")
    assert chosen(second) == ("forget-keys", f"Method forget-keys (prepared by name): prepared for {original.path}.")
    prepare(first.path, "forget-keys")
    assert f"prepared for {first.path}." in chosen(second)[1]
    prepare(second.path, "metaunlearn")
    assert chosen(second)[0] == "forget-keys"
    other = make_run("other", parent=second, method="metaunlearn")  # neither a sequential method, nor one whose chain is unbroken
    with pytest.raises(UsageError, match=r"No method has been prepared for .*other; name one"):
        chosen(other)


def test_missing_ancestor_is_reported_not_passed_over(make_run: MakeRun) -> None:
    original = make_run("original", "forget-keys")
    run = make_run("run", "metaunlearn", parent=original, method="forget-keys")
    shutil.rmtree(original.path)
    with pytest.raises(
        UsageError, match=r"run was computed from .*original, which is missing or has changed, so the artefact of 'forget-keys'"
    ):
        chosen(run)
    prepare(run.path, "forget-keys")  # then nobody needs the ancestor
    assert chosen(run)[0] == "forget-keys"


@pytest.mark.parametrize("folder", [None, ".forget-keys.unfinished", ".request-0a.json"])
def test_without_a_preparation_the_sentence_names_what_to_do(make_run: MakeRun, folder: str | None) -> None:
    run = make_run("run", *[folder] if folder else [])
    with pytest.raises(UsageError) as caught:
        chosen(run)
    assert str(caught.value) == (
        f"No method has been prepared for {run.path}; name one that needs no preparation with --method, "
        "or run `oneshui prepare` first, while training data exists."
    )


def test_methods_that_are_not_chosen_are_listed(make_run: MakeRun) -> None:
    run = make_run("run", "ssd", "pgu")
    with pytest.raises(
        UsageError, match=r"run has prepared pgu and ssd, which must be named with --method, or run `oneshui prepare` first"
    ):
        chosen(run)
    assert with_method(run, UnlearnOptions(images=("face.png",), method="ssd")).method_name == "ssd"


def test_damaged_artefact_is_chosen_so_that_its_own_error_is_printed(make_run: MakeRun) -> None:
    run = make_run("run", "forget-keys", "metaunlearn")
    (run.path / "methods" / "forget-keys" / "artefact.json").unlink()
    assert chosen(run)[0] == "forget-keys"
    (run.path / "methods" / "forget-keys").rmdir()
    (run.path / "methods" / "forget-keys").write_text("a file")
    assert chosen(run)[0] == "metaunlearn"


def test_selection_of_plugins_limits_the_choice(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run, reporter = make_run("run", "forget-keys", "metaunlearn"), RecordingReporter()
    monkeypatch.setenv("ONESHUI_PLUGINS", "metaunlearn,ssd")
    assert with_method(run, REQUEST, {}, reporter).method_name == "metaunlearn"
    expected = f"The preparation of 'forget-keys' for {run.path} is not used: there is no such method, or ONESHUI_PLUGINS leaves it out."
    assert reporter.warnings == [expected]
    monkeypatch.setenv("ONESHUI_PLUGINS", "ssd")
    with pytest.raises(UsageError, match="No method has been prepared for"):
        with_method(run, REQUEST)


def test_method_of_another_package_is_chosen_by_its_attributes(make_run: MakeRun, install: Callable[..., None]) -> None:
    install("alpha", "per_identity = True")
    install("beta", "exact = True")
    install("delta", "per_identity = True\nsequential = True")
    install("gamma")
    install("reader", "exact = True", sets="('retain',)")
    assert chosen(make_run("a", "alpha", "gamma", "metaunlearn"))[0] == "alpha"
    assert chosen(make_run("b", "alpha", "beta", "forget-keys"))[0] == "beta"
    assert chosen(make_run("c", "reader", "forget-keys"))[0] == "forget-keys"  # it reads training data, so it must be named
    assert chosen(make_run("d", "delta", "alpha"))[0] == "alpha"
    assert chosen(make_run("e", parent=make_run("f", "delta"), method="delta"))[0] == "delta"
    with pytest.raises(UsageError, match="has prepared gamma, which must be named"):
        chosen(make_run("g", "gamma"))


def test_broken_plugin_does_not_break_the_choice(make_run: MakeRun, install: Callable[..., None]) -> None:
    install("broken", "raise ValueError('no')")
    assert chosen(make_run("sharded", "metaunlearn", sharded=5))[0] == "drop-shard"  # all methods are looked at
    run, reporter = make_run("run", "broken", "metaunlearn"), RecordingReporter()
    assert with_method(run, REQUEST, {}, reporter).method_name == "metaunlearn"
    (warning,) = reporter.warnings
    assert warning.startswith(
        f"The preparation of 'broken' for {run.path} is not used: method 'broken' of plugin_broken:M cannot be loaded"
    )


def test_only_methods_in_question_are_loaded(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run, load, loaded = make_run("run", "metaunlearn"), Plugins.load, []

    def record(self: Plugins, name: str) -> Any:
        loaded.append(name)
        return load(self, name)

    monkeypatch.setattr(Plugins, "load", record)
    assert chosen(run)[0] == "metaunlearn"
    assert loaded == ["metaunlearn"]


def test_option_of_a_method_needs_its_name(make_run: MakeRun, install: Callable[..., None], oneshui: Oneshui, tmp_path: Path) -> None:
    install("alpha", "per_identity = True")
    install("broken", "raise ValueError('no')")
    run = make_run("run", "alpha")
    (tmp_path / "face.png").write_bytes(b"x")
    (tmp_path / "c.yaml").write_text("pace: 2\n")
    message = "--pace is an option of alpha; name the method with --method."
    with pytest.raises(UsageError, match=message):
        oneshui_hf.unlearn(run, tmp_path / "face.png", pace=2)
    words = ["unlearn", run.path, "--image", tmp_path / "face.png"]
    for more in (["--pace", "2"], ["--pace=2"], ["--config", tmp_path / "c.yaml"]):
        code, out, err = oneshui(*words, *more)
        assert (code, out, sentence(err)) == (2, "", f"Error: {message}")
    assert "--unseen-support is an option of gradient-ascent, " in sentence(oneshui(*words, "--no-unseen-support")[2])
    with pytest.raises(UsageError, match=r"unlearn has no option --sed\. Did you mean '--seed'"):
        oneshui_hf.unlearn(run, tmp_path / "face.png", sed=2)
    assert "oneshui unlearn has no option --sed." in sentence(oneshui(*words, "--sed", "2")[2])
    (tmp_path / "c.yaml").write_text("sed: 2\n")
    assert "'sed' is no option of 'unlearn'" in sentence(oneshui(*words, "--config", tmp_path / "c.yaml")[2])


def test_wrong_request_is_reported_before_the_choice(make_run: MakeRun, oneshui: Oneshui, tmp_path: Path) -> None:
    run = make_run("run")
    assert sentence(oneshui("unlearn", run.path)[2]).startswith("Error: Give a photo with --image FILE")
    assert "No method has been prepared" in sentence(oneshui("unlearn", run.path, "--image", tmp_path / "face.png")[2])
    assert "There is no method 'keys'" in sentence(oneshui("unlearn", run.path, "--image", "x", "--method", "keys")[2])
    assert "No method has been prepared" in sentence(oneshui("unlearn", run.path, "--from-split")[2])


def test_chosen_method_names_folder_and_note(make_run: MakeRun, oneshui: Oneshui, tmp_path: Path) -> None:
    run = make_run("run", "forget-keys")
    (tmp_path / "run-forget-keys").mkdir()
    (tmp_path / "run-forget-keys" / "mine.txt").write_text("x")
    code, out, err = oneshui("unlearn", run.path, "--image", tmp_path / "face.png")
    note, error = err.strip().splitlines()
    assert (code, out, note) == (2, "", f"Method forget-keys (prepared by name): prepared for {run.path}.")
    assert error.startswith(f"Error: {run.path}-forget-keys exists; name another --output-dir")
    assert oneshui("unlearn", run.path, "--image", tmp_path / "face.png", "--quiet")[2] == f"{error}\n"


def test_help_of_unlearn_names_no_default_method(oneshui: Oneshui) -> None:
    assert fields(UnlearnOptions)["method"].default is None
    out = oneshui("unlearn", "--help")[1]
    assert "Options of " not in out
    assert "Options of forget-keys" in oneshui("unlearn", "--method", "forget-keys", "--help")[1]


def test_methods_are_listed_by_situation(oneshui: Oneshui, install: Callable[..., None]) -> None:
    install("broken", "raise ValueError('no')")
    rows = {row["name"]: row for row in json.loads(oneshui("methods", "--json")[1])}
    assert "error" in rows.pop("broken")
    expected = {
        "drop-shard": "exact by design",
        "exact-head": "exact by design",
        "forget-keys": "prepared by name",
        "metaunlearn": "photo alone",
        "ssd": "photo alone",
        "jit": "photo alone",
        "scrub": "training data",
        "do-nothing": "baseline",
    }
    assert {name: rows[name]["situation"] for name in expected} == expected
    assert (rows["gradient-ascent"]["prepares"], rows["jit"]["prepares"]) == ("optional", "never")
    lines = oneshui("methods")[1].splitlines()
    headings = [line.partition(":")[0] for line in lines if line[:1].isupper()]
    assert headings == [
        *("Exact by design", "Prepared by name", "Photo alone", "Training data", "Baseline"),
        "Without --method, `oneshui unlearn` takes what the run has prepared",
    ]
    listed = [line.split()[0] for line in lines if "  [" in line]
    assert sorted(listed) == sorted([*rows, "broken"])
    assert listed[-1] == "broken"
    assert lines.index("scrub  [oneshui-hf 0.1.0]") > lines.index("metaunlearn  [oneshui-hf 0.1.0]")
    assert "situation: prepared by name" in oneshui("methods", "show", "forget-keys")[1]


def test_list_of_methods_fits_a_narrow_terminal(oneshui: Oneshui, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    lines = oneshui("methods")[1].splitlines()
    assert max(map(len, lines)) <= 80
    names = set(Plugins(METHODS).names)
    assert {
        line.split()[0] for line in lines if line and not line.startswith("    ") and "  [" in line
    } == names  # further lines are indented

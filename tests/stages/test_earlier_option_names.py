"""Options that were renamed: artefacts, resume states, presets, records and cache keys written under the earlier names stay valid."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import oneshui_hf
from oneshui_hf.cache import Cache
from oneshui_hf.errors import UsageError
from oneshui_hf.methods import Artefact, Context, DataAccess, Method, Needs, option
from oneshui_hf.reporting import Reporter
from oneshui_hf.runs import Run, read_json, write_json
from oneshui_hf.stages.command_options import EvaluateOptions, TrainOptions
from oneshui_hf.stages.distributed import make_accelerator
from oneshui_hf.stages.presets import is_preset_file, resolve_preset


@dataclass(frozen=True)
class Before:
    """The options under their earlier names."""

    photos: int = option(4, minimum=1, search=(1, 9))
    shift: float = option(0.5, at="apply", search=(0.1, 1.0))


@dataclass(frozen=True)
class After:
    """The same options, renamed."""

    samples: int = option(4, minimum=1, search=(1, 9), formerly=("photos",))
    step: float = option(0.5, at="apply", search=(0.1, 1.0), formerly=("shift",))


class Renaming(Method[Any]):
    """Subtracts a number from the head's bias. Its options are `Before` or `After`."""

    summary, paper, options, prepares = "renaming", "-", Before, "required"
    needs = Needs(prepare=frozenset({"train"}), apply=frozenset({"support"}))
    interrupt = False

    def prepare(self, model: Any, data: DataAccess, options: Any, context: Context) -> Artefact:
        count = dataclasses.astuple(options)[0]
        saved = context.resume_state.load()
        context.resume_state.save({}, {"count": count})
        if self.interrupt:
            raise KeyboardInterrupt
        return Artefact(values={"count": count, "resumed": saved is not None})

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Any, context: Context) -> Any:
        new = copy.deepcopy(model)
        with torch.no_grad():
            new.classifier.bias -= dataclasses.astuple(options)[1]
        return new

    @classmethod
    def all_presets(cls) -> dict[str, list[dict[str, Any]]]:
        return {"builtin": [{"values": {"photos": 6}}]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "original"
    oneshui_hf.train(dataset="synthetic", forget=2, epochs=1, keep="last", output_dir=str(folder))
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy of a run, with the method installed as `renaming`, before its options are renamed."""
    import shutil

    from oneshui_hf import plugins

    load, origin = plugins.Plugins.load, plugins.Plugins.origin
    monkeypatch.setattr(plugins.Plugins, "load", lambda self, name: Renaming if name == "renaming" else load(self, name))
    monkeypatch.setattr(plugins.Plugins, "origin", lambda self, name: "here 1.0" if name == "renaming" else origin(self, name))
    monkeypatch.setattr(Renaming, "options", Before)
    monkeypatch.setattr(Renaming, "interrupt", False)
    return Run.open(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def rename(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Rename the method's options."""
    return lambda: monkeypatch.setattr(Renaming, "options", After)


class RecordingReporter(Reporter):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def write_preset(file: Path, run: Run, **values: Any) -> Path:
    scores = {"retain": 80.0, "forget": 50.0, "val": 50.0, "tow": 60.0}
    preset = {"format": 1, "method": "renaming", "dataset": "synthetic", "nothing": scores, "scores": scores, "trials": []}
    write_json(file, preset | {"values": values})
    return file


def test_an_artefact_with_earlier_names_is_applied(run: Run, tmp_path: Path, rename: Any) -> None:
    oneshui_hf.prepare(run, method="renaming", photos=7, shift=0.25)
    assert read_json(run.artefact("renaming") / "artefact.json")["options"] == {"photos": 7, "shift": 0.25}
    rename()
    unlearned = oneshui_hf.unlearn(run, method="renaming", from_split=True)
    assert unlearned.record.report["method_options"] == {"samples": 7, "step": 0.25}
    for name in ("step", "shift"):
        other = oneshui_hf.unlearn(run, method="renaming", from_split=True, overwrite=True, **{name: 0.75})
        assert other.record.report["method_options"] == {"samples": 7, "step": 0.75}
    for name in ("samples", "photos"):
        with pytest.raises(UsageError, match="--samples of method 'renaming' is fixed when preparing"):
            oneshui_hf.unlearn(run, method="renaming", from_split=True, overwrite=True, **{name: 3})


@pytest.mark.parametrize("names", [("photos", "shift"), ("samples", "step")])
def test_a_preset_file_agrees_with_an_artefact_under_either_name(run: Run, tmp_path: Path, rename: Any, names: tuple[str, str]) -> None:
    oneshui_hf.prepare(run, method="renaming", photos=7)
    rename()
    reporter = RecordingReporter()
    file = write_preset(tmp_path / "preset.json", run, **dict(zip(names, (7, 0.125), strict=True)))
    unlearned = oneshui_hf.unlearn(run, method="renaming", from_split=True, preset=str(file), reporter=reporter)
    assert unlearned.record.report["method_options"] == {"samples": 7, "step": 0.125}
    assert not reporter.warnings
    write_preset(file, run, **dict(zip(names, (3, 0.125), strict=True)))
    oneshui_hf.unlearn(run, method="renaming", from_split=True, preset=str(file), overwrite=True, reporter=reporter)
    assert len(reporter.warnings) == 1
    assert "the preset's --samples apply to preparation only" in reporter.warnings[0]


def test_a_preparation_interrupted_under_the_earlier_names_is_resumed(run: Run, rename: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Renaming, "interrupt", True)
    with pytest.raises(KeyboardInterrupt):
        oneshui_hf.prepare(run, method="renaming", photos=7)
    monkeypatch.setattr(Renaming, "interrupt", False)
    rename()
    oneshui_hf.prepare(run, method="renaming", samples=7, resume=True)
    artefact = read_json(run.artefact("renaming") / "artefact.json")
    assert artefact["values"] == {"count": 7, "resumed": True}
    assert artefact["options"] == {"samples": 7, "step": 0.5}


def test_a_search_with_earlier_names_is_resumed(run: Run, tmp_path: Path, rename: Any) -> None:
    search: dict[str, Any] = {"method": "renaming", "requests": 1, "output": str(tmp_path / "tuned.json")}
    oneshui_hf.tune(run, **search, photos=2, trials=2)
    rename()
    oneshui_hf.tune(run, **search, samples=2, trials=8, resume=True)
    resumed = read_json(tmp_path / "tuned.json")
    oneshui_hf.tune(run, **search | {"output": str(tmp_path / "other.json")}, samples=2, trials=8)
    assert resumed == read_json(tmp_path / "other.json")
    assert (resumed["given"], set(resumed["searched"])) == ({"samples": 2}, {"step"})


def test_keys_do_not_change_with_a_rename(run: Run, tmp_path: Path) -> None:
    from oneshui_hf.stages.benchmarking.grid import Cell, Grid, MethodEntry
    from oneshui_hf.stages.benchmarking.jobs import _make_job
    from oneshui_hf.stages.evaluation.model_cache import ModelCache

    cell = Cell("synthetic", TrainOptions(dataset="synthetic", forget=2), 2, 0)
    file = write_preset(tmp_path / "preset.json", run, photos=7)
    keys = []
    for options, given in ((Before, {"shift": 0.25}), (After, {"step": 0.25})):
        Renaming.options = options  # the fixture restores it
        entries = [MethodEntry("r", "renaming", preset, given) for preset in (None, "builtin", str(file))]
        grid = Grid("g", (cell,), tuple(entries), EvaluateOptions())
        jobs = [_make_job(grid, cell, {"made": 1}, entry, "method") for entry in entries]
        assert [job.values for job in jobs][1:] == [given | {next(iter(Renaming.options.__dataclass_fields__)): count} for count in (6, 7)]
        cache = ModelCache(Cache(tmp_path / "cache"), make_accelerator())
        keys.append([*(job.key for job in jobs), cache._method_key(run, "renaming", options(7, 0.25), 0)])
    assert keys[0] == keys[1]
    assert len(set(map(str, keys[0]))) == len(keys[0])


@pytest.mark.parametrize(
    ("text", "is_file"), [("paper", False), ("json", False), ("preset.json", True), ("a/b", True), ("./paper", True), ("paper.yaml", False)]
)
def test_a_text_with_a_separator_or_the_suffix_json_is_a_preset_file(text: str, is_file: bool, run: Run) -> None:
    assert is_preset_file(text) == is_file
    with pytest.raises(UsageError, match="There is no preset file" if is_file else "The method has no preset"):
        resolve_preset(text, "renaming", Renaming, "synthetic", 2)

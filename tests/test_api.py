"""The functions for Python: their signatures, their progress, and the run that they return."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

import oneshui_hf
from oneshui_hf import api
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.options import fields, types_of
from oneshui_hf.reporting import SILENT, ConsoleReporter, Reporter, default_reporter, is_interactive
from oneshui_hf.stages import command_options as o
from oneshui_hf.stages.publishing import options as publishing
from support.faces import portrait

FUNCTIONS = [
    (api.train, o.TrainOptions),
    (api.retrain, o.RetrainOptions),
    (api.prepare, o.PrepareOptions),
    (api.tune, o.TuneOptions),
    (api.unlearn, o.UnlearnOptions),
    (api.evaluate, o.EvaluateOptions),
    (api.predict, o.PredictOptions),
    (api.benchmark, o.BenchmarkOptions),
    (api.report, o.ReportOptions),
    (api.push, publishing.PushOptions),
    (api.pull, publishing.PullOptions),
    (api.check_data, o.CheckOptions),
    (api.draw_split, o.DrawOptions),
    (api.push_data, publishing.DataPushOptions),
    (api.demo, o.DemoOptions),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> oneshui_hf.Run:
    folder = tmp_path_factory.mktemp("runs") / "original"
    return oneshui_hf.train(dataset="synthetic", forget=2, epochs=2, output_dir=str(folder), keep="last")


@pytest.mark.parametrize(("function", "options"), FUNCTIONS, ids=[function.__name__ for function, _ in FUNCTIONS])
def test_signature_has_every_option_with_type_and_default(function: Any, options: type[Any]) -> None:
    parameters, types = inspect.signature(function).parameters, types_of(options)
    named = {"run", "images", "oracle", "grid", "source", "repo_id"}
    for name, field in fields(options).items():
        assert name in parameters
        if name in named:  # written out in the function
            continue
        parameter = parameters[name]
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.annotation == types[name]
        required = field.default is dataclasses.MISSING
        assert parameter.default is (inspect.Parameter.empty if required else field.default)
        assert f"    {name}: {field.metadata['help']}" in function.__doc__


def test_required_options_have_no_default() -> None:
    assert inspect.signature(oneshui_hf.train).parameters["dataset"].default is inspect.Parameter.empty
    with pytest.raises(UsageError, match="train needs --dataset"):
        oneshui_hf.train()


def test_every_public_name_exists() -> None:
    assert dir(oneshui_hf) == sorted(oneshui_hf.__all__)
    for name in oneshui_hf.__all__:
        assert callable(getattr(oneshui_hf, name))
    with pytest.raises(AttributeError, match="no attribute 'forget'"):
        _ = oneshui_hf.forget


def test_version_is_that_of_the_distribution() -> None:
    from importlib import metadata

    assert oneshui_hf.__version__ == metadata.version("oneshui-hf")


def test_run_describes_itself_in_one_line(run: oneshui_hf.Run) -> None:
    score = f"{run.history[-1]['val_map']:.1f}"
    assert repr(run) == f"Run({str(run.path)!r}: kind=original, dataset=synthetic, seed=0, val_map={score})"
    assert "\n" not in repr(run)
    assert "<td>synthetic</td>" in run._repr_html_()


def test_html_of_a_run_escapes_its_path(run: oneshui_hf.Run, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(run.path, tmp_path / "<b>bold")
    assert "&lt;b&gt;bold" in oneshui_hf.Run.open(folder)._repr_html_()


def test_run_gives_history_metrics_model_and_pipeline(run: oneshui_hf.Run) -> None:
    import torch

    assert [entry["epoch"] for entry in run.history] == [1, 2]
    assert run.metrics is None
    metrics = oneshui_hf.evaluate(run)
    assert run.metrics == metrics
    assert "gap_closure" not in repr(run)  # without an oracle it is unknown
    model = run.model()
    assert not model.training
    assert torch.equal(model.state_dict()["classifier.weight"], run.model().state_dict()["classifier.weight"])
    labels = run.pipeline()(portrait(1, 1))
    assert len(labels) == len(run.record.dataset["labels"])


def test_prepare_and_unlearn_return_runs(run: oneshui_hf.Run, tmp_path: Path) -> None:
    portrait(1, 1).save(tmp_path / "face.png")
    prepared = oneshui_hf.prepare(run, method="metaunlearn", steps=1, calibration=0)
    assert isinstance(prepared, oneshui_hf.Run)
    assert prepared.path == run.path
    assert prepared.prepared == ["metaunlearn"]
    unlearned = oneshui_hf.unlearn(run, images=[tmp_path / "face.png"], output_dir=str(tmp_path / "new"))
    assert "method=metaunlearn" in repr(unlearned)
    assert unlearned.history == []
    (row,) = unlearned.predict([tmp_path / "face.png"], top_k=2)
    assert len(row["predictions"]) == 2
    assert 1 >= row["predictions"][0]["probability"] >= row["predictions"][1]["probability"] >= 0


def test_report_of_a_run_is_written(run: oneshui_hf.Run, tmp_path: Path) -> None:
    oneshui_hf.evaluate(run)
    written = run.report(output=str(tmp_path / "report.html"))
    assert Path(written["report"]).read_text().lower().startswith("<!doctype html>")


def test_run_without_weights_is_an_error(run: oneshui_hf.Run, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(run.path, tmp_path / "copy")
    (folder / "model.safetensors").unlink()
    with pytest.raises(OneshuiError, match="has no weights"):
        oneshui_hf.Run.open(folder).model()


def test_load_dataset_returns_the_schema() -> None:
    loaded = oneshui_hf.load_dataset("synthetic")
    assert list(loaded) == ["train"]
    assert loaded["train"].column_names == ["key", "image", "identity", "labels"]
    assert loaded["train"][0]["image"].size[0] > 0


def test_load_dataset_reads_a_named_data_set_from_disk(celeba_folder: Any) -> None:
    loaded = oneshui_hf.load_dataset("celeba", data_dir=celeba_folder(people=2, photos=2))
    assert loaded["train"]["identity"][:] == ["101", "101", "102", "102"]
    assert set(loaded["train"][0]["labels"]) >= {"Smiling", "Young"}


def test_progress_is_printed_on_a_terminal_and_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_reporter() is SILENT  # the test's stderr is no terminal
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert is_interactive()
    assert isinstance(default_reporter(), ConsoleReporter)
    monkeypatch.delitem(sys.modules, "ipykernel")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert isinstance(default_reporter(), ConsoleReporter)


def test_a_given_reporter_receives_progress(tmp_path: Path) -> None:
    class Recorder(Reporter):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def info(self, message: str) -> None:
            self.lines.append(message)

    recorder = Recorder()
    oneshui_hf.train(dataset="synthetic", forget=2, epochs=1, output_dir=str(tmp_path / "run"), reporter=recorder)
    assert any("epoch 1/1" in line for line in recorder.lines)

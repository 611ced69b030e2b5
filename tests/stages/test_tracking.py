"""`--report-to`: which numbers reach a tracker, and that nothing personal does."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate.tracking
import pytest
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType

import oneshui_hf
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.reporting import SILENT
from oneshui_hf.stages import tracking
from oneshui_hf.stages.distributed import make_accelerator
from oneshui_hf.stages.tracking import TrackingReporter, check_report_to, tracked
from support.faces import write_photos

CANARY = "Canary Wharf"


class Recorder(GeneralTracker):
    """Keeps all that a tracker receives."""

    name = "trackio"
    requires_logging_directory = False
    received: list[Any] = []  # noqa: RUF012

    def __init__(self, run_name: str, **kwargs: Any) -> None:
        super().__init__()
        self.received.append({"init": run_name, **kwargs})

    @property
    def tracker(self) -> None:
        return None

    def start(self) -> None:
        print("* Created new run")  # as trackio does
        self.received.append("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.received.append({"config": values})

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self.received.append({"step": step, "log": values, **kwargs})

    def finish(self) -> None:
        print("* Run finished")
        self.received.append("finish")


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the tracker named trackio receives."""
    monkeypatch.setattr(tracking, "find_spec", lambda name: object())
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "trackio", Recorder)
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [LoggerType.TRACKIO])
    monkeypatch.setattr(Recorder, "received", [])
    return Recorder.received


def require_impersonal(received: list[Any], folder: Path) -> None:
    """Check that a tracker got no name, no path and no text but public ones."""
    text = json.dumps(received)
    for word in ("canary", "wharf", str(folder).lower(), folder.name.lower(), "photos"):
        assert word not in text.lower(), word
    for entry in received:
        if isinstance(entry, dict) and "log" in entry:
            assert all(isinstance(value, float) for value in entry["log"].values())


@pytest.mark.slow
def test_nothing_personal_is_sent(tmp_path: Path, received: list[Any]) -> None:
    photos = tmp_path / CANARY
    photos.mkdir()
    write_photos(photos, 24, 4, lambda person: f"{CANARY} {person}")
    where = {"dataset": str(photos), "model": "tiny", "image_size": 32, "forget": 2, "augment": "none"}
    run = oneshui_hf.train(**where, epochs=2, report_to="trackio", output_dir=str(tmp_path / f"{CANARY}-run"))
    assert run.record.options["report_to"] == "none"  # of this call, not of the recipe
    assert received[:2] == [{"init": "oneshui"}, "start"]
    assert received[2]["config"]["epochs"] == 2
    assert received[2]["config"]["dataset"] == "a private data set"
    steps = [(entry["step"], set(entry["log"])) for entry in received[3:-1]]
    names = {"train/loss", "train/images_per_second", "train/epoch", "val/map"}
    per_epoch = -(-run.record.report["split"]["images"]["train"] // 32)
    assert steps == [(per_epoch, names), (2 * per_epoch, names)]
    assert received[3]["log"]["train/loss"] == run.record.report["history"][0]["train_loss"]
    assert received[-1] == "finish"
    oneshui_hf.retrain(run, report_to="trackio")
    options = {"targets": "quantile", "steps_per_identity": 1, "rank": 1, "face_encoder": "none"}
    oneshui_hf.prepare(run, method="forget-keys", report_to="trackio", **options)
    assert any("prepare/objective" in entry.get("log", {}) for entry in received if isinstance(entry, dict))
    grid = {
        "name": "canary-grid",
        "datasets": [{"name": "canary-data", **{key: value for key, value in where.items() if key != "forget"}, "epochs": 1}],
        "forget": [2],
        "seeds": [0],
        "methods": [{"label": "canary-label", "method": "gradient-ascent"}],
        "evaluate": {"resamples": 100},
    }
    (tmp_path / "grid.yaml").write_text(json.dumps(grid))
    del received[:]
    done = oneshui_hf.benchmark(str(tmp_path / "grid.yaml"), output_dir=str(tmp_path / "out"), report_to="trackio")
    assert not done["failed"]
    logs = [entry["log"] for entry in received if isinstance(entry, dict) and "log" in entry]
    assert [log["benchmark/failed"] for log in logs] == [0.0, 0.0, 0.0]
    assert {"original/test_map", "oracle/test_map"} <= logs[0].keys() | logs[1].keys()
    assert {"gradient-ascent/tow", "gradient-ascent/forget_map"} <= logs[2].keys()
    require_impersonal(received, tmp_path)


def test_names_of_trackers_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None if name == "wandb" else object())
    assert check_report_to("none") == ()
    assert check_report_to("trackio, tensorboard,trackio") == ("trackio", "tensorboard")
    with pytest.raises(UsageError, match=r"^--report-to takes trackio, tensorboard, wandb, none, not 'tensorbord'. Did you mean"):
        check_report_to("tensorbord")
    with pytest.raises(UsageError, match=r'^wandb is not installed; run `pip install "oneshui-hf\[wandb\]"`, or leave it out'):
        check_report_to("trackio,wandb")


@pytest.mark.parametrize("command", ["train", "retrain", "prepare", "benchmark"])
def test_commands_refuse_an_unknown_tracker_before_anything_is_written(tmp_path: Path, command: str, small_run: Path) -> None:
    if command == "train":
        call = lambda: oneshui_hf.train(dataset="synthetic", output_dir=str(tmp_path / "run"), report_to="mlflow")  # noqa: E731
    elif command == "benchmark":
        call = lambda: oneshui_hf.benchmark("demo", output_dir=str(tmp_path / "run"), report_to="mlflow")  # noqa: E731
    else:
        call = lambda: getattr(oneshui_hf, command)(small_run, report_to="mlflow")  # noqa: E731
    with pytest.raises(UsageError, match="--report-to takes"):
        call()
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    oneshui_hf.train(dataset="synthetic", epochs=1, output_dir=str(path))
    return path


def test_only_finite_numbers_under_plain_names_are_sent(received: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tracked("trackio", tmp_path / "run", {"lr": 0.1, "text": None}, make_accelerator(), SILENT) as reporter:
        reporter.metrics({"train/loss": float("nan"), "val/map": 3}, 1)
        reporter.metrics({"train/loss": float("inf")}, 2)
        with pytest.raises(OneshuiError, match="'Canary Wharf' is no name of a number"):
            reporter.metrics({CANARY: 1.0}, 3)
    assert received[2:] == [{"config": {"lr": 0.1}}, {"step": 1, "log": {"val/map": 3.0}}, "finish"]
    assert capsys.readouterr().out == ""  # it may be read as JSON


def test_trainings_of_one_command_continue_the_steps(received: list[Any], tmp_path: Path) -> None:
    now = [0.0]
    accelerator = make_accelerator()
    with tracked("trackio", tmp_path / "run", {}, accelerator, SILENT):
        reporter = TrackingReporter(SILENT, accelerator, lambda: now[0])
        for _ in range(2):  # two shards
            with reporter.training(1, 4) as progress:
                for _ in range(4):
                    now[0] += 16
                    progress.step(8, lambda: 0.5)
                progress.epoch({"epoch": 1, "train_loss": 0.4})
    logs = [(entry["step"], entry["log"]["train/loss"], entry["log"]["train/epoch"]) for entry in received[3:-1]]
    assert logs == [(2, 0.5, 0.5), (4, 0.5, 1.0), (4, 0.4, 1.0), (6, 0.5, 0.5), (8, 0.5, 1.0), (8, 0.4, 1.0)]


def test_a_tracker_that_fails_is_one_sentence(received: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: Recorder) -> None:
        raise RuntimeError("no server\nmore")

    monkeypatch.setattr(Recorder, "start", start)
    accelerator = make_accelerator()
    with (
        pytest.raises(OneshuiError, match=r"^The trackers trackio cannot be started \(no server\)\.$"),
        tracked("trackio", tmp_path / "run", {}, accelerator, SILENT),
    ):
        pass


def test_tensorboard_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = oneshui_hf.train(dataset="synthetic", epochs=2, report_to="tensorboard", output_dir=str(tmp_path / "run"))
    events = EventAccumulator(str(tmp_path / "logs" / "run" / "oneshui"))
    events.Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx([entry["train_loss"] for entry in run.record.report["history"]], rel=1e-6)
    for file in (tmp_path / "logs").rglob("*"):
        assert not file.is_file() or str(tmp_path).encode() not in file.read_bytes()


def test_wandb_is_started_without_what_it_collects_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[Any, ...]] = []
    accelerator: Any = SimpleNamespace(
        project_configuration=SimpleNamespace(), logging_dir=None, log_with=[], init_trackers=lambda *given: started.append(given)
    )
    monkeypatch.setattr("accelerate.tracking.filter_trackers", lambda names, _: names)
    tracking._start(("wandb",), tmp_path / "run", {"lr": 0.1, "model": None}, accelerator)
    [(project, config, keywords)] = started
    assert (project, config) == ("oneshui", {"lr": 0.1})
    settings = keywords["wandb"]["settings"]
    assert {name: settings[name] for name in ("x_disable_meta", "x_disable_machine_info", "disable_git", "disable_code")} == dict.fromkeys(
        ("x_disable_meta", "x_disable_machine_info", "disable_git", "disable_code"), True
    )
    assert (settings["console"], settings["host"]) == ("off", "-")

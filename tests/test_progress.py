"""Progress of long work: the text, the speed, the time left, and when a line is printed. The clock is the test's own."""

from __future__ import annotations

import re
import sys

import pytest

from oneshui_hf.progress import Interval, TrainingProgress, WorkProgress, clock_time, gigabytes
from oneshui_hf.reporting import SILENT, ConsoleReporter, PrefixedReporter
from support.terminal import Terminal


class Time:
    """A clock that stands still between two calls of `pass_by`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (4324, "1:12:04"), (360000, "100:00:00"), (-3, "0:00:00")]
)
def test_durations(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text


def test_sizes() -> None:
    assert gigabytes(202_599 * (3 * 224 * 224 + 5)) == "30.5 GB"
    assert gigabytes(1_250_000) == "1.2 MB"


def test_an_interval_passes_once() -> None:
    clock = Time()
    interval = Interval(30, clock)
    clock.pass_by(29)
    assert not interval.has_passed()
    clock.pass_by(1)
    assert interval.has_passed()
    assert not interval.has_passed()


def test_text_of_a_training() -> None:
    """170 steps of 99 images an epoch; step 410 is in the third epoch. Each step takes 0.121951 s, so 812 images a second."""
    clock = Time()
    progress = TrainingProgress(30, 170, 0, clock)
    assert str(progress) == "epoch 1/30 step 0/5100"
    for step in range(1, 411):
        clock.pass_by(99 / 812)
        progress.step(99, lambda: 0.41)
        if step % 170 == 0:
            progress.epoch({"epoch": step // 170, "train_loss": 0.5, "val_map": 81.25})
    assert str(progress) == "epoch 3/30 step 410/5100 loss 0.41 812 img/s eta 0:09:32"  # 4690 steps of 0.122 s


def test_text_at_the_end_of_an_epoch() -> None:
    clock = Time()
    progress = TrainingProgress(2, 2, 0, clock)
    for _ in range(2):
        clock.pass_by(1)
        progress.step(8, lambda: 0.3)
    clock.pass_by(2)  # validation: part of the time left, not of the speed of training
    progress.epoch({"epoch": 1, "train_loss": 0.25, "val_map": 81.25})
    assert str(progress) == "epoch 1/2 step 2/4 loss 0.25 val map 81.2 4 img/s eta 0:00:04"


def test_a_resumed_training_counts_its_own_steps_for_the_time_left() -> None:
    clock = Time()
    progress = TrainingProgress(10, 10, 90, clock)
    clock.pass_by(2)
    progress.step(4, lambda: 1.0)
    assert str(progress) == "epoch 10/10 step 91/100 loss 1 2 img/s eta 0:00:18"


def test_text_of_work() -> None:
    clock = Time()
    work = WorkProgress("Reading photos", 200, clock)
    assert str(work) == "Reading photos: 0 done"
    work.done = 50
    clock.pass_by(60)
    assert str(work) == "Reading photos: 25 %, eta 0:03:00"
    assert str(WorkProgress("Reading", 0, clock)) == "Reading: 0 done"


def train(reporter: ConsoleReporter | PrefixedReporter, clock: Time, epochs: int, steps: int, seconds: float) -> int:
    """Imitate a training; return how often the loss was read."""
    read = []
    with reporter.training(epochs, steps) as progress:
        for epoch in range(epochs):
            for _ in range(steps):
                clock.pass_by(seconds)
                progress.step(8, lambda: read.append(1) or 0.5)
            progress.epoch({"epoch": epoch + 1, "train_loss": 0.5})
    return len(read)


def test_without_a_terminal_training_prints_a_line_an_epoch_and_every_30_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Time()
    reads = train(ConsoleReporter(clock=clock), clock, epochs=2, steps=7, seconds=10)
    lines = capsys.readouterr().err.splitlines()
    assert [re.search(r"step (\d+)/14", line).group(1) for line in lines] == ["3", "6", "7", "10", "13", "14"]
    assert lines[2] == "epoch 1/2 step 7/14 loss 0.5 1 img/s eta 0:01:10"
    assert reads == 4  # a loss that nobody reads is not computed: it would wait for the device


def test_a_line_appears_only_if_30_seconds_have_passed(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Time()
    reporter = ConsoleReporter(clock=clock)
    for _ in reporter.track(range(10), "Reading photos"):
        clock.pass_by(2.9)
    assert capsys.readouterr().err == ""
    for _ in reporter.track(iter(range(10)), "Reading photos", 10):
        clock.pass_by(15)
    assert capsys.readouterr().err.splitlines() == [
        "Reading photos: 10 %, eta 0:02:15",  # 29 s of the first loop count
        *(f"Reading photos: {done}0 %, eta {clock_time(15 * (10 - done))}" for done in (3, 5, 7, 9)),
    ]


def test_inside_other_work_epochs_share_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Time()
    reporter = ConsoleReporter(clock=clock)
    for _ in reporter.track(range(3), "Benchmark demo"):
        train(PrefixedReporter(reporter, "job"), clock, epochs=5, steps=1, seconds=5)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # in 75 seconds
    assert [line.split(":")[0].split()[0] for line in lines] == ["epoch", "epoch"]


def test_quiet_prints_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Time()
    reporter = ConsoleReporter(quiet=True, clock=clock)
    assert train(reporter, clock, epochs=2, steps=3, seconds=100) == 0
    assert list(reporter.track(range(2), "Work")) == [0, 1]
    assert train(SILENT, clock, epochs=2, steps=3, seconds=100) == 0
    assert capsys.readouterr() == ("", "")


def test_other_processes_print_no_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    clock = Time()
    assert train(ConsoleReporter(clock=clock), clock, epochs=2, steps=3, seconds=100) == 0
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_one_bar_shows_the_whole_training(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", Terminal(sys.stderr))
    clock = Time()
    reporter = ConsoleReporter(clock=clock)
    assert reporter.draws_bars
    with reporter.training(2, 3) as progress:
        assert not reporter.draws_bars
        bar = ConsoleReporter._bar
        assert bar is not None
        for _ in range(3):
            clock.pass_by(0.4)
            progress.step(8, lambda: 0.5)
        task = bar.tasks[0]
        assert (task.completed, task.total) == (2, 6)  # after 0.8 s; it is drawn at most every 0.5 s
        assert task.description == "epoch 1/2 step 2/6 loss 0.5 20 img/s eta 0:00:02"
        progress.epoch({"epoch": 1, "train_loss": 0.5})
        assert task.completed == 3
    assert ConsoleReporter._bar is None
    assert "epoch 1/2 step 3/6 loss 0.5 20 img/s eta 0:00:01" in capsys.readouterr().err

"""Progress, notes, warnings and questions: what is printed where."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from oneshui_hf.reporting import SILENT, ConsoleReporter, PrefixedReporter, Reporter, is_main_process


class Terminal:
    """A stream that claims to be a terminal."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def isatty(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal(sys.stderr))


def test_info_appears_on_a_terminal_only(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ConsoleReporter().info("training")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stderr", Terminal(sys.stderr))
    ConsoleReporter().info("training")
    out, err = capsys.readouterr()
    assert out == ""
    assert "training" in err


def test_notes_appear_once_and_warnings_every_time(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = ConsoleReporter()
    for _ in range(2):
        reporter.note("newest run")
        reporter.warn("small set")
    assert capsys.readouterr().err.splitlines() == ["newest run", "Warning: small set", "Warning: small set"]


def test_quiet_reporter_prints_warnings_only(capsys: pytest.CaptureFixture[str], terminal: None) -> None:
    reporter = ConsoleReporter(quiet=True)
    reporter.info("training")
    reporter.note("newest run")
    assert list(reporter.track(range(3), "Work")) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    reporter.warn("small set")
    assert "small set" in capsys.readouterr().err


def test_other_processes_print_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: None) -> None:
    monkeypatch.setenv("RANK", "1")
    assert not is_main_process()
    reporter = ConsoleReporter()
    reporter.info("training")
    reporter.note("newest run")
    reporter.warn("small set")
    assert list(reporter.track(range(3), "Work")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_bar_within_a_bar_is_not_drawn(capsys: pytest.CaptureFixture[str], terminal: None) -> None:
    reporter = ConsoleReporter()
    pairs = [(outer, inner) for outer in reporter.track([1, 2], "Outer") for inner in reporter.track([3], "Inner")]
    assert pairs == [(1, 3), (2, 3)]
    assert "Inner" not in capsys.readouterr().err


def test_only_a_terminal_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    asked: list[str] = []

    def confirm(question: str, **more: Any) -> bool:
        asked.append(question)
        return True

    monkeypatch.setattr(typer, "confirm", confirm)
    monkeypatch.setattr(sys, "stderr", Terminal(sys.stderr))
    console = ConsoleReporter()
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115, PTH123
    assert not console.confirm("Sure?")
    assert not SILENT.confirm("Sure?")
    assert not asked
    monkeypatch.setattr(sys, "stdin", Terminal(sys.stdin))
    assert PrefixedReporter(console, "job").confirm("Sure?")
    assert asked == ["Sure?"]


def test_prefix_stands_before_warnings_only() -> None:
    class Recorder(Reporter):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def info(self, message: str) -> None:
            self.lines.append(f"info {message}")

        def note(self, message: str) -> None:
            self.lines.append(f"note {message}")

        def warn(self, message: str) -> None:
            self.lines.append(f"warn {message}")

    recorder = Recorder()
    prefixed = PrefixedReporter(recorder, "job 1")
    prefixed.info("a")
    prefixed.note("b")
    prefixed.warn("c")
    assert recorder.lines == ["info a", "note b", "warn job 1: c"]

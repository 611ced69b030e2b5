"""Progress, notes, warnings and questions: what is printed where."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

from oneshui_hf.reporting import SILENT, ConsoleReporter, PrefixedReporter, Reporter, is_main_process
from support.terminal import Terminal


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function that makes stderr a terminal. Called in the test, since the capture replaces stderr after the fixtures."""

    def call() -> None:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setattr(sys, "stderr", Terminal(sys.stderr))

    return call


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


def test_quiet_reporter_prints_warnings_only(capsys: pytest.CaptureFixture[str], terminal: Callable[[], None]) -> None:
    terminal()
    reporter = ConsoleReporter(quiet=True)
    reporter.info("training")
    reporter.note("newest run")
    assert list(reporter.track(range(3), "Work")) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    reporter.warn("small set")
    assert "small set" in capsys.readouterr().err


def test_other_processes_print_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: Callable[[], None]
) -> None:
    terminal()
    monkeypatch.setenv("RANK", "1")
    assert not is_main_process()
    reporter = ConsoleReporter()
    reporter.info("training")
    reporter.note("newest run")
    reporter.warn("small set")
    assert list(reporter.track(range(3), "Work")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_bar_within_a_bar_is_not_drawn(capsys: pytest.CaptureFixture[str], terminal: Callable[[], None]) -> None:
    terminal()
    reporter = ConsoleReporter()
    pairs = [(outer, inner) for outer in reporter.track([1, 2], "Outer") for inner in reporter.track([3], "Inner")]
    assert pairs == [(1, 3), (2, 3)]
    err = capsys.readouterr().err
    assert "Outer" in err
    assert "Inner" not in err


def screen(output: str, width: int = 80) -> list[str]:
    """Return the lines that a terminal shows after this output: carriage return, line feed, cursor up, erase line."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", output):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif part.endswith("A"):
            row = max(row - int(part[2:-1] or 1), 0)
        elif part.endswith("K"):
            lines[row] = ""
        elif not part.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize("depth", [1, 2])
def test_lines_are_printed_above_a_running_bar(capsys: pytest.CaptureFixture[str], terminal: Callable[[], None], depth: int) -> None:
    terminal()
    library = logging.getLogger("test.library")
    handler = logging.StreamHandler()  # keeps the stream that it finds now
    library.addHandler(handler)
    first, second = ConsoleReporter(), ConsoleReporter()

    def work(depth: int) -> None:
        reporter = PrefixedReporter(second, "job") if depth == 1 else second
        for number in first.track(range(2), f"Bar [{depth}]"):
            first.info(f"info {depth}.{number} [x] :smile:")
            reporter.note(f"note {depth}.{number}")
            reporter.warn(f"warning {depth}.{number}")
            library.warning("log %d.%d", depth, number)
            print(f"python {depth}.{number}", file=sys.stderr)
            if depth < limit:
                work(depth + 1)

    limit = depth
    try:
        work(1)
        shown = screen(capsys.readouterr().err)
    finally:
        library.removeHandler(handler)
    assert handler.stream is sys.stderr
    for level in range(1, depth + 1):
        for number in range(2):
            assert f"info {level}.{number} [x] :smile:" in shown
            assert f"note {level}.{number}" in shown
            assert any(line.endswith(f"warning {level}.{number}") for line in shown)
            assert f"log {level}.{number}" in shown
            assert f"python {level}.{number}" in shown
    assert not any("Bar" in line for line in shown)  # the bar is gone, and was in no line with a message


def test_bar_is_drawn_with_brackets_in_its_label(capsys: pytest.CaptureFixture[str], terminal: Callable[[], None]) -> None:
    terminal()
    assert list(ConsoleReporter().track([1], "Benchmark [/tiny]")) == [1]
    assert "Benchmark [/tiny]" in capsys.readouterr().err


def test_failure_ends_the_bar(terminal: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        for _ in ConsoleReporter().track([1], "Bar"):
            raise ValueError

    terminal()
    stderr = sys.stderr
    for _ in range(2):
        with pytest.raises(ValueError):
            fail()
        assert ConsoleReporter._bar is None
        assert sys.stderr is stderr


def test_question_stops_the_bar(monkeypatch: pytest.MonkeyPatch, terminal: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    terminal()
    running: list[bool] = []

    def confirm(question: str, **more: Any) -> bool:
        assert ConsoleReporter._bar is not None
        running.append(ConsoleReporter._bar.live.is_started)
        return True

    monkeypatch.setattr(typer, "confirm", confirm)
    monkeypatch.setattr(sys, "stdin", Terminal(sys.stdin))
    reporter = ConsoleReporter()
    for _ in reporter.track([1], "Bar"):
        assert reporter.confirm("Sure?")
        assert ConsoleReporter._bar is not None
        assert ConsoleReporter._bar.live.is_started
    assert running == [False]


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

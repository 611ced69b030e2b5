"""Malformed command lines: exit code 0, 1 or 2, at most one sentence, nothing written, nothing sent."""

from __future__ import annotations

from support.malformed_commands import faults, malformed_commands

from .cases import FAILED, RIGHT, SENTENCE, Case, Verdict
from .processes import Job
from .scenes import Stage
from .state import changes, listing

MOST = 5000


def cases(stage: Stage, points: int, seed: int, chosen: tuple[str, ...]) -> list[Case]:
    """Return the command lines by their number."""
    return [Case("commands", "malformed", f"{seed}-{number}", run) for number in range(points)]


def run(stage: Stage, case: Case) -> Verdict:
    """Run a command line, and check that it changed nothing."""
    seed, number = map(int, case.number.split("-"))
    words = _command_lines(stage, seed)[number]
    before = listing(stage.root)
    (result,) = stage.worker.run(Job(words))
    shown = f"oneshui {' '.join(ascii(word)[1:-1][:60] for word in words)}: "
    if problem := result.problem() or "; ".join(faults(result.code, result.err)):
        return Verdict(FAILED, shown + problem)
    if changed := changes(before, listing(stage.root)):
        stage.reset("empty")
        return Verdict(FAILED, f"{shown}changed {changed[0]}")
    if stage.worker.hub.requests:
        stage.worker.hub.requests.clear()
        return Verdict(FAILED, f"{shown}asked the Hub")
    return Verdict(SENTENCE if result.code else RIGHT)


def _command_lines(stage: Stage, seed: int) -> list[list[str]]:
    """Return command lines; the files that they name are written once."""
    key, folder = f"commands {seed}", stage.root / "malformed"
    if not folder.exists():
        stage.reset("empty")
        folder.mkdir()
        stage.kept[key] = list(malformed_commands(seed, MOST, folder))
    return stage.kept[key]

"""Running the cases on two workers, and the table of what happened."""

from __future__ import annotations

import dataclasses
import queue
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import commands, crafted, disk, kills, pairs
from .cases import FAILED, RIGHT, SENTENCE, Case, Verdict
from .injection import compile_shim
from .processes import Worker
from .scenes import Stage

MODULES = {"kills": kills, "disk": disk, "pairs": pairs, "crafted": crafted, "commands": commands}
KINDS = tuple(MODULES)
WORKERS = 2


@dataclass(frozen=True)
class Plan:
    """How many cases of each kind, and of which commands (all by default)."""

    points: dict[str, int]
    commands: tuple[str, ...] = ()

    def narrowed(self, only: str | None, points: int | None) -> Plan:
        """Return the plan of one kind, or with another number of cases."""
        return dataclasses.replace(self, points={kind: points or count for kind, count in self.points.items() if only in (None, kind)})


FULL = Plan({"kills": 260, "disk": 72, "pairs": 36, "crafted": 320, "commands": 320})
QUICK = Plan(
    {"kills": 20, "disk": 5, "pairs": 2, "crafted": 20, "commands": 20},
    (
        *("train", "prepare-again", "unlearn", "unlearn-again", "request-after-prepare"),
        *("unlearn+unlearn", "prepare+prepare", "changed", "damaged", "pulled", "malformed"),
    ),
)


@dataclass(frozen=True)
class Done:
    """A case with its verdict."""

    case: Case
    verdict: Verdict
    seconds: float


def run_drill(
    folder: Path,
    plan: Plan,
    seed: int,
    *,
    case: str | None = None,
    command: str | None = None,
    home: Path | None = None,
    verbose: bool = False,
) -> list[Done]:
    """Run a plan and return its cases with their verdicts.

    Args:
        folder: An empty folder.
        plan: The kinds and numbers of cases.
        seed: Seed of all random draws.
        case: Run this case only, `COMMAND:NUMBER`.
        command: Run cases of this command only.
        home: `HF_HOME` of the commands; in the folder by default.
        verbose: Print every verdict, not only failures.
    """
    folder = folder.resolve()
    shim = compile_shim(folder)
    if shim is None:
        print("No C compiler: faults are injected into the file operations that Python announces, not into writes.", file=sys.stderr)
    waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
    done: list[Done] = []
    errors: list[BaseException] = []
    drawn = threading.Event()

    def work(number: int) -> None:
        worker = Worker(folder / f"worker{number}", home or folder / "home", shim)
        try:
            stage = Stage(worker)
            if number == 0:
                for one in _draw(stage, plan, seed, case, command):
                    waiting.put(one)
                drawn.set()
            drawn.wait()
            while not errors:
                try:
                    one = waiting.get_nowait()
                except queue.Empty:
                    break
                started = time.monotonic()
                verdict = _check(stage, one)
                done.append(Done(one, verdict, time.monotonic() - started))
                if verbose or verdict.outcome == FAILED:
                    print(f"{verdict.outcome.upper()} {one.kind} {one.name}: {verdict.reason}", file=sys.stderr, flush=True)
        except BaseException as error:
            traceback.print_exc()
            errors.append(error)
        finally:
            drawn.set()
            worker.close()

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(1 if case else WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return done


def _check(stage: Stage, case: Case) -> Verdict:
    """Return the verdict on a case; one that cannot be checked has failed."""
    try:
        return case.check(stage, case)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return Verdict(FAILED, f"not checked: {type(error).__name__}: {str(error)[:500]} ({Path(place.filename).name}:{place.lineno})")


def _draw(stage: Stage, plan: Plan, seed: int, name: str | None, command: str | None) -> list[Case]:
    """Return the cases of a plan, or the one of this name."""
    if name is not None:
        (kind,) = plan.points
        command, _, number = name.partition(":")
        return [Case(kind, command, number, MODULES[kind].run)]
    found: list[Case] = []
    for kind, points in plan.points.items():
        chosen = (command,) if command else plan.commands
        found += MODULES[kind].cases(stage, points, seed, chosen)
    return found


def failures(done: Sequence[Done]) -> list[Done]:
    """Return the cases that failed."""
    return [one for one in done if one.verdict.outcome == FAILED]


def print_report(done: Sequence[Done], seed: int) -> None:
    """Print counts for each kind and command, and one line for each failure with the command that repeats it."""
    from rich.console import Console
    from rich.table import Table

    table = Table("kind", "command", *(("tried", "right bytes", "one sentence", "failed", "seconds")), title=f"Drill, seed {seed}")
    for column in table.columns[2:]:
        column.justify = "right"
    groups = sorted({(KINDS.index(one.case.kind), one.case.command) for one in done})
    for number, (kind, command) in enumerate(groups):
        rows = [one for one in done if one.case.kind == KINDS[kind] and one.case.command == command]
        last = number + 1 == len(groups) or groups[number + 1][0] != kind
        table.add_row(KINDS[kind], command, *_counts(rows), end_section=last)
    table.add_row("all", "", *_counts(done))
    console = Console(width=max(100, Console().width), highlight=False)
    console.print(table)
    for one in failures(done):
        repeat = f"nox -s drill -- --seed {seed} --only {one.case.kind} --case {one.case.name}"
        console.print(f"FAILED {one.case.kind} {one.case.name}: {one.verdict.reason}", markup=False, soft_wrap=True)
        console.print(f"  {repeat}", markup=False, soft_wrap=True)


def _counts(rows: Sequence[Done]) -> list[str]:
    outcomes = Counter(one.verdict.outcome for one in rows)
    return [str(len(rows)), *(str(outcomes[outcome]) for outcome in (RIGHT, SENTENCE, FAILED)), f"{sum(one.seconds for one in rows):.0f}"]

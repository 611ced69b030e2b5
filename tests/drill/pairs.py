"""Two commands at once on one run, cache, vault or output: each ends with right bytes or with one sentence, and nothing is a mixture."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from .cases import FAILED, RIGHT, SENTENCE, Case, Verdict
from .processes import Job, Result
from .scenes import FIRST, KEYS, RECIPE, REPOSITORY, SECOND, Stage
from .state import State, differences, leftovers, readable_copies

Check = Callable[[Stage, list[Result]], str]

UNLEARN = "unlearn original --method forget-keys --image face.png --output-dir out --overwrite --identity"
PREPARE = f"prepare original {KEYS} --overwrite"
TRAIN = f"train {RECIPE} --output-dir original"
TUNE = "tune original --method ssd --trials 2 --requests 1 --sample 32"
BENCHMARK = "benchmark grid.yaml --output-dir"


@dataclass(frozen=True)
class Pair:
    """Two commands.

    Attributes:
        base: The start folder.
        first: The first command.
        second: The second command.
        outputs: Folders and files of which each must be as one of the two commands alone leaves it.
        people: The identities whose request each command is.
        is_exclusive: Whether both write another result to the same place, so that one of two that overlap must end with a sentence.
    """

    base: str
    first: str
    second: str
    outputs: tuple[str, ...]
    people: tuple[str, str] = ("", "")
    is_exclusive: bool = False

    @property
    def commands(self) -> tuple[str, str]:
        """Both commands."""
        return self.first, self.second


def _twice(base: str, command: str, *outputs: str) -> Pair:
    return Pair(base, command, command, outputs)


PAIRS = {
    "train+train": Pair("empty", TRAIN, f"{TRAIN} --seed 1", ("original/",), is_exclusive=True),
    "train+train-overwrite": Pair(
        "trained", f"{TRAIN} --seed 2 --overwrite", f"{TRAIN} --seed 1 --overwrite", ("original/",), is_exclusive=True
    ),
    "unlearn+unlearn": Pair("prepared", f"{UNLEARN} {FIRST}", f"{UNLEARN} {SECOND}", ("out/",), (FIRST, SECOND), True),
    "unlearn+prepare": Pair("prepared", f"{UNLEARN} {FIRST}", PREPARE, ("out/",), (FIRST, "")),
    "prepare+prepare": Pair("trained", PREPARE, f"{PREPARE} --seed 1", ("original/methods/",), is_exclusive=True),
    "evaluate+evaluate": _twice("unlearned", "evaluate out --original original --resamples 100", "out/"),
    "tune+tune": Pair("trained", TUNE, f"{TUNE} --seed 1", ("original/tuned/",), is_exclusive=True),
    "benchmark+benchmark": _twice("gridded", f"{BENCHMARK} bench", "bench/"),
    "two-benchmarks-one-cache": Pair(
        "gridded", f"{BENCHMARK} bench --cache-dir cache", f"{BENCHMARK} other --cache-dir cache", ("bench/", "other/")
    ),
    "cache-clear+benchmark": Pair("gridded", "cache clear --cache-dir cache", f"{BENCHMARK} bench --cache-dir cache", ("bench/",)),
    "push+push": _twice("unlearned", f"push out {REPOSITORY}", "published "),
    "pull+pull": _twice("empty", "pull owner/published --output-dir pulled", "pulled/"),
}


def cases(stage: Stage, points: int, seed: int, chosen: tuple[str, ...]) -> list[Case]:
    """Return the chosen pairs, or all, each with several delays."""
    names = [name for name in PAIRS if not chosen or name in chosen]
    turns = math.ceil(points / max(1, len(names)))
    return [Case("pairs", name, f"{seed}-{turn}", run) for name in names for turn in range(turns)]


def run(stage: Stage, case: Case) -> Verdict:
    """Run both commands, the second after a random delay, and compare what they left with what each leaves alone."""
    pair = PAIRS[case.command]
    alone = _alone(stage, case.command)
    draws = random.Random(f"{case.number} {case.command}")
    stage.reset(pair.base)
    delay = draws.choice([0.0, draws.uniform(0, 0.2), draws.uniform(0, alone.seconds)])
    delays = (0.0, delay) if draws.random() < 0.5 else (delay, 0.0)
    results = stage.worker.run(*(Job(words.split(), delay=pause) for words, pause in zip(pair.commands, delays, strict=True)))
    for words, result in zip(pair.commands, results, strict=True):
        if problem := result.problem():
            return Verdict(FAILED, f"`oneshui {words}` beside the other, {max(delays):.2f} s apart: {problem}")
    problem = _pair_problem(stage, pair, alone, results)
    if problem:
        return Verdict(FAILED, f"{max(delays):.2f} s apart, exit codes {[result.code for result in results]}: {problem}")
    return Verdict(RIGHT if all(result.code == 0 for result in results) else SENTENCE)


@dataclass
class Alone:
    """What each of two commands leaves without the other."""

    states: list[State]
    seconds: float


def _alone(stage: Stage, name: str) -> Alone:
    """Return what each command of a pair leaves alone."""
    key = f"pair {name}"
    if key not in stage.kept:
        states, seconds = [], 0.0
        for words in PAIRS[name].commands:
            stage.reset(PAIRS[name].base)
            (result,) = stage.worker.run(Job(words.split()))
            if result.code:
                raise RuntimeError(f"`oneshui {words}` fails alone: {result.err}")
            states.append(stage.state())
            seconds = max(seconds, result.seconds)
        stage.kept[key] = Alone(states, seconds)
    return stage.kept[key]


def _pair_problem(stage: Stage, pair: Pair, alone: Alone, results: list[Result]) -> str:
    """Return what is wrong with the result of two commands; empty if nothing is."""
    if all(result.code for result in results):
        return f"both fail: {results[0].error_lines[0]} {results[1].error_lines[0]}"
    if pair.is_exclusive and not any(result.code for result in results):
        overlap = min(result.job.delay + result.seconds for result in results) - max(result.job.delay for result in results)
        if overlap > alone.seconds / 2:  # less: the second may have looked at the output when the first had ended
            return f"both end with exit code 0 although they overlapped for {overlap:.2f} s, so one result is lost"
    state = stage.state()
    for output in pair.outputs:
        found = _below(state, output)
        succeeded = [left for left, result in zip(alone.states, results, strict=True) if result.code == 0]
        expected = [_below(left, output) for left in succeeded if _below(left, output)]
        if (wrong := [differences(found, one) for one in expected]) and all(wrong):
            return f"{output} is neither of the two results: {min(wrong, key=len)[:3]}"
    for person, result in zip(pair.people, results, strict=True):
        if not person:
            continue
        copies = readable_copies(stage.root, person)
        prepared_again = any(words.startswith("prepare") for words in pair.commands)
        if result.code == 0 and copies and not prepared_again:
            return "the secret of a request survives"
        if result.code and not copies:
            return "a secret is lost although its request failed"
    if left := leftovers(stage.root):
        return f"left behind: {left[0]}"
    return ""


def _below(state: State, prefix: str) -> State:
    return {name: content for name, content in state.items() if name.startswith(prefix)}

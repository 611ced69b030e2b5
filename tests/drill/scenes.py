"""The commands under test, each with the folder in which it starts and what makes it end right after an interruption.

A worker builds the start folders once, always at the path of its case, and runs each command once without a fault: that gives the
operations to choose from and the state to compare with.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .injection import Fault, Operation
from .processes import NO_FAULT, Job, Result, Worker
from .state import State, secrets_of, state_of

RECIPE = "--dataset synthetic --epochs 2 --batch-size 64 --forget 2 --image-size 16"
CHEAP = {"steps_per_identity": 1, "rank": 1, "identities_per_step": 64, "photos_per_identity": 2, "target_fraction": 0.2, "bits": 16}
CHEAP |= {"targets": "quantile"}  # without fold models
KEYS = " ".join(["--method forget-keys --face-encoder none", *(f"--{name.replace('_', '-')} {value}" for name, value in CHEAP.items())])
GRID = f"""\
name: drill
datasets:
  - {{dataset: synthetic, epochs: 1, batch_size: 64, image_size: 16}}
forget: [2]
seeds: [0]
methods:
  - gradient-ascent
  - {{method: forget-keys, options: {json.dumps(CHEAP)}}}
evaluate: {{references: 0, resamples: 100}}
"""
REPOSITORY = "owner/drill"


@dataclass(frozen=True)
class Scene:
    """A command under test.

    Attributes:
        name: Its name in the table.
        base: The start folder.
        command: The words.
        resume: Words that are added first after an interruption.
        people: The identities whose request it is; none for commands that destroy nothing.
        output: The run that a request writes.
        weight: Share of the points, relative to the others.
        script: Python code to run instead of the command.
        datasets: Folder below the case of the cache of data sets; empty for the one that is already filled.
    """

    name: str
    base: str
    command: str
    resume: tuple[str, ...] = ()
    people: tuple[str, ...] = ()
    output: str = ""
    weight: float = 1.0
    script: str = ""
    datasets: str = ""

    def job(self, *more: str, fault: Fault = NO_FAULT) -> Job:
        """Return the command, with more words and a fault."""
        return Job([*self.command.split(), *more], fault, script=self.script, datasets=self.datasets)


FIRST, SECOND = "person006", "person059"  # of the forget set of seed 0

REQUEST = "unlearn original --method forget-keys --image face.png --output-dir out --identity"

SCENES = (
    Scene("train", "empty", f"train {RECIPE} --output-dir original", ("--resume",), weight=1.5),
    Scene("train-again", "trained", f"train {RECIPE} --seed 1 --output-dir original --overwrite"),
    Scene("train-first", "empty", f"train {RECIPE} --output-dir original", ("--resume",), datasets="datasets"),
    Scene("prepare-metaunlearn", "trained", "prepare original --method metaunlearn --steps 2 --calibration 1", ("--resume",)),
    Scene("prepare-keys", "trained", f"prepare original {KEYS}", ("--resume",), weight=1.5),
    Scene("prepare-again", "prepared", f"prepare original {KEYS} --seed 1 --overwrite", weight=1.5),
    Scene(
        "unlearn", "prepared", f"{REQUEST} {FIRST}",
        people=(FIRST,), output="out", weight=2,
    ),
    Scene(
        "unlearn-again", "unlearned", f"{REQUEST} {SECOND} --overwrite",
        people=(SECOND,), output="out", weight=2,
    ),
    Scene(
        "unlearn-two", "prepared",
        f"{REQUEST} {FIRST} --image face.png --identity {SECOND}", people=(FIRST, SECOND), output="out", weight=1.5,
    ),
    Scene("tune", "trained", "tune original --method ssd --trials 2 --requests 1 --sample 32", ("--resume",)),
    Scene("evaluate", "unlearned", "evaluate out --original original --resamples 100"),
    Scene("benchmark", "gridded", "benchmark grid.yaml --output-dir bench", weight=1.5),
    Scene("push", "unlearned", f"push out {REPOSITORY}"),
    Scene("pull", "empty", "pull owner/published --output-dir pulled"),
)  # fmt: skip
BY_NAME = {scene.name: scene for scene in SCENES}


@dataclass
class Reference:
    """A command without a fault: its operations and what it left."""

    operations: list[Operation]
    state: State
    seconds: float
    secrets: set[bytes] = field(default_factory=set)  # of the people, before the request


class Stage:
    """The start folders and references of a worker.

    Attributes:
        worker: The worker.
        root: Where cases run.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker, self.root = worker, worker.root
        self._bases = worker.folder / "bases"
        self._references: dict[str, Reference] = {}
        self.kept: dict[str, Any] = {}  # what the kinds of cases compute once, such as states of other commands without a fault
        self._build()

    def _build(self) -> None:
        """Build the start folders, each from the one before."""
        self._bases.mkdir()
        (self.root / "vault").mkdir(mode=0o700)
        (self.root / "cache").mkdir()
        _write_face(self.root / "face.png", 6)
        self.keep("empty")
        (self.root / "grid.yaml").write_text(GRID)
        self.keep("gridded")
        (self.root / "grid.yaml").unlink()
        self.do(f"train {RECIPE} --output-dir original")
        self.keep("trained")
        self.do(f"prepare original {KEYS}")
        self.do("prepare original --method metaunlearn --steps 1 --calibration 1")  # a second artefact with data of the same people
        self.keep("prepared")
        self.do(f"{REQUEST} {FIRST}")
        self.keep("unlearned")
        self.do("push out owner/published")
        self.do("env")

    def do(self, words: str) -> Result:
        """Run a command that must succeed. The server imports what it has imported, so that later commands start faster."""
        list_file = self.worker.folder / "modules.json"
        modules = json.loads(list_file.read_text()) if list_file.exists() else []
        (result,) = self.worker.run(Job(words.split()), modules=modules, list_modules=list_file)
        if result.code:
            raise RuntimeError(f"`oneshui {words}` fails without any fault: {result.err}")
        return result

    def has(self, name: str) -> bool:
        """Whether a start folder of this name exists."""
        return (self._bases / name).exists()

    def keep(self, name: str) -> None:
        """Keep the case's folder as a start folder."""
        shutil.copytree(self.root, self._bases / name, symlinks=True)

    def reset(self, base: str) -> None:
        """Put a start folder in the case's place; the Hub keeps what start folders published."""
        for path in self.root.rglob("*"):
            if path.is_dir() and not path.is_symlink() and not os.access(path, os.W_OK | os.X_OK):
                path.chmod(0o700)
        for path in self.root.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        shutil.copytree(self._bases / base, self.root, symlinks=True, dirs_exist_ok=True)
        with contextlib.suppress(KeyError):
            del self.worker.hub.repos[REPOSITORY]
        self.worker.hub.requests.clear()

    def reference(self, scene: Scene) -> Reference:
        """Return the command's operations and result without a fault."""
        if scene.name not in self._references:
            self.reset(scene.base)
            secrets = set().union(*(secrets_of(self.root, person) for person in scene.people))
            (result,) = self.worker.run(scene.job())
            if result.code or result.problem():
                raise RuntimeError(f"`oneshui {scene.command}` fails without any fault: {result.problem()} {result.err}")
            self._references[scene.name] = Reference(result.operations, self.state(), result.seconds, secrets)
        return self._references[scene.name]

    def state(self) -> State:
        """Return the state of the case, with what was published."""
        published = self.worker.hub.repos.get(REPOSITORY)
        files = self.worker.hub.files(REPOSITORY) if published else {}
        return state_of(self.root) | {f"published {name}": str(hash(data)) for name, data in files.items() if not name.startswith(".")}


def recover(stage: Stage, scene: Scene, problem_of: Callable[[], str]) -> str:
    """Run an interrupted command again, following the advice in its own messages, until its result is right.

    Args:
        stage: Where it was interrupted.
        scene: The command.
        problem_of: Returns what is wrong with the result now; empty if nothing is.

    Returns:
        What is wrong in the end, or an empty text.
    """
    flags: Sequence[str] = scene.resume
    problem = ""
    for _ in range(4):
        (result,) = stage.worker.run(scene.job(*flags))
        if problem := result.problem():
            return f"the next command {problem}"
        if not (problem := problem_of()):
            return ""
        if result.code == 0:
            return problem
        problem = f"the next command does not get through: {result.error_lines[0]} ({problem})"
        if (following := next(_advised(result, scene, flags), None)) is None:
            break
        flags = following
    return problem


def _advised(result: Result, scene: Scene, tried: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the flags that an error message proposes, and no flags if --resume had nothing to resume."""
    message = result.error_lines[0]
    for flag in ("--resume", "--overwrite", "--retry"):
        if flag in message and flag not in tried and flag not in scene.command:
            yield (flag,)
    if tried:
        yield ()


def _write_face(file: Path, number: int) -> None:
    """Write a photo of a generated person that no data set contains."""
    import numpy as np

    from oneshui_hf.data.builders.synthetic import Person

    image, _ = Person.draw(np.random.default_rng([0, number])).photo(np.random.default_rng([0, number, 99]))
    image.save(file)

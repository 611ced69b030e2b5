"""A full disk, a failing disk, a missing permission at random operations: one sentence, nothing half-written, then the same bytes."""

from __future__ import annotations

import errno
import math
import random
from pathlib import Path

from oneshui_hf.files import LEFTOVER
from oneshui_hf.runs import RECORD, read_object

from .cases import FAILED, RIGHT, SENTENCE, Case, Verdict
from .injection import GROWING, Action, Fault
from .kills import lost_secret, result_problem
from .scenes import SCENES, Stage, recover
from .state import State, leftovers

FULL, BROKEN, DENIED = "full", "broken", "denied"
ERRORS = {FULL: errno.ENOSPC, BROKEN: errno.EIO, DENIED: errno.EACCES}
# What a command keeps when it fails: states that --resume reads, and an artefact whose secrets could not be overwritten (cleared next).
KEPT = ("checkpoint-", ".unfinished", "shards/", "/methods/.")


def cases(stage: Stage, points: int, seed: int, chosen: tuple[str, ...]) -> list[Case]:
    """Return the faults of the chosen commands, or of all; half of them are full disks."""
    found = []
    scenes = [scene for scene in SCENES if not chosen or scene.name in chosen]
    for scene in scenes:
        draws = random.Random(f"{seed} disk {scene.name}")
        operations = stage.reference(scene).operations
        growing = [number for number, operation in enumerate(operations, 1) if operation.kind in GROWING]
        # A lock file that may not be removed stays, whatever the command does.
        others = [number for number, one in enumerate(operations, 1) if one.kind != "unlink" or not LEFTOVER.fullmatch(Path(one.path).name)]
        for turn in range(math.ceil(points / max(1, len(scenes)))):
            what = (FULL, BROKEN, FULL, DENIED)[turn % 4]
            number = draws.choice(growing if what == FULL else others)
            found.append(Case("disk", scene.name, f"{number}-{what}", run))
    return found


def run(stage: Stage, case: Case) -> Verdict:
    """Let an operation fail, check the message and what is left, run the command again, and compare."""
    scene = case.scene
    number, _, what = case.number.partition("-")
    stage.reset(scene.base)
    before = stage.state()
    action = Action.FAIL_FROM_HERE if what == FULL else Action.FAIL_ONCE
    (result,) = stage.worker.run(scene.job(fault=Fault(action, int(number), ERRORS[what])))
    place = int(number) - 1
    operation = result.operations[place] if place < len(result.operations) else None
    at = f"{what} disk at {operation.kind} {operation.path.removeprefix(str(stage.root))}: " if operation else ""
    if problem := result.problem():
        return Verdict(FAILED, f"{at}{problem}")
    if lost := lost_secret(stage, scene):
        return Verdict(FAILED, f"{at}{lost}")
    if result.code == 0 and not result_problem(stage, scene):  # an operation whose failure does no harm
        return Verdict(RIGHT)
    # After other errors, a command that could not remove something is not expected to have cleaned up.
    if result.code and what == FULL and (changed := _half_written(stage, before)):
        return Verdict(FAILED, f"{at}{changed}")
    problem = recover(stage, scene, lambda: result_problem(stage, scene))
    return Verdict(FAILED, f"{at}{problem}") if problem else Verdict(SENTENCE)


def _half_written(stage: Stage, before: State) -> str:
    """Return which scratch a failed command left, or which file it removed; empty if none."""
    if left := [name for name in leftovers(stage.root) if not any(part in name for part in KEPT)]:
        return f"left behind: {left[0]}"
    now = stage.state()
    # `train --overwrite` replaces the old run when it starts, and leaves one that --resume completes.
    resumable = [file.parent.name for file in stage.root.glob(f"*/{RECORD}") if read_object(file).get("state") == "training"]
    lost = [name for name in before if name not in now and name.partition("/")[0] not in resumable]
    return f"lost: {lost[0]}" if lost else ""

"""SIGKILL at the n-th file operation of a command; then the command again, and the same bytes as without the kill."""

from __future__ import annotations

import random
from collections.abc import Sequence

from oneshui_hf.methods.resume import FILE

from .cases import FAILED, RIGHT, Case, Verdict
from .injection import KINDS, Action, Fault, Operation
from .order import order_problem
from .scenes import BY_NAME, SCENES, Scene, Stage, recover
from .state import differences, is_complete, leftovers, readable_copies, stored_secrets

REQUEST_AFTER = "request-after-prepare"  # a preparation is killed, and the next command is a request
ORDER = "order"  # number of a case without a kill, which checks the order of operations instead
AGAIN = 0.25  # of the kill points: the next command is killed, too
SHARES = {"rename": 1.0, "unlink": 0.8, "sync": 0.5, "create": 0.3, "write": 0.3, "mkdir": 0.1, "link": 1.0}  # of the operations


def choose(operations: Sequence[Operation], count: int, draws: random.Random) -> list[int]:
    """Return numbers of operations: spread over the kinds, those that change names first; one of each kind and folder at least."""
    numbers: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for number, operation in enumerate(operations, 1):
        numbers[operation.kind].append(number)
    wanted = {kind: SHARES[kind] * len(found) for kind, found in numbers.items()}
    scale = min(1.0, count / max(1.0, sum(wanted.values())))
    chosen: list[int] = []
    for kind, found in numbers.items():
        size = min(len(found), max(bool(found), round(scale * wanted[kind])))
        chosen += draws.sample(found, size)
    rest = [number for number in range(1, len(operations) + 1) if number not in chosen]
    draws.shuffle(chosen)
    chosen = chosen[:count] + draws.sample(rest, max(0, min(len(rest), count - len(chosen))))
    return sorted(chosen)


def cases(stage: Stage, points: int, seed: int, chosen: tuple[str, ...]) -> list[Case]:
    """Return the kill points of the chosen commands, or of all."""
    scenes = [scene for scene in SCENES if not chosen or scene.name in chosen]
    total = sum(scene.weight for scene in scenes)
    found = []
    for scene in scenes:
        draws = random.Random(f"{seed} {scene.name}")
        for number in choose(stage.reference(scene).operations, max(1, round(points * scene.weight / total)), draws):
            again = f"+{draws.randint(1, number)}" if draws.random() < AGAIN else ""
            found.append(Case("kills", scene.name, f"{number}{again}", run))
        if scene.people:
            found.append(Case("kills", scene.name, ORDER, run))
    if not chosen or REQUEST_AFTER in chosen:
        draws = random.Random(f"{seed} {REQUEST_AFTER}")
        operations = stage.reference(BY_NAME["prepare-again"]).operations
        numbers = choose(operations, max(1, round(points / max(total, 1.0))), draws)
        found += [Case("kills", REQUEST_AFTER, str(number), run) for number in numbers]
    return found


def run(stage: Stage, case: Case) -> Verdict:
    """Kill the command, check the secrets, run it again, and compare."""
    if case.command == REQUEST_AFTER:
        return _request_after_preparation(stage, int(case.number))
    scene = case.scene
    stage.reference(scene)
    if case.number == ORDER:
        problem = _order_problem(stage, scene)
        return Verdict(FAILED, problem) if problem else Verdict(RIGHT)
    stage.reset(scene.base)
    killed_at = []
    for flags, number in zip(((), scene.resume), case.number.split("+"), strict=False):
        (killed,) = stage.worker.run(scene.job(*flags, fault=Fault(Action.KILL, int(number))))
        if killed.killed and killed.operations:
            killed_at.append(f"{killed.operations[-1].kind} {killed.operations[-1].path.removeprefix(str(stage.root))}")
        if problem := (not killed.killed and killed.problem()) or lost_secret(stage, scene):
            return Verdict(FAILED, f"killed at {', then at '.join(killed_at)}: {problem}")
    problem = recover(stage, scene, lambda: result_problem(stage, scene))
    return Verdict(FAILED if problem else RIGHT, f"killed at {', then at '.join(killed_at)}{problem and ': '}{problem}")


def _order_problem(stage: Stage, scene: Scene) -> str:
    reference = stage.reference(scene)
    if not any(operation.kind == "write" for operation in reference.operations):  # the hooks of Python do not see writes
        return ""
    files = [name.partition("/")[2] for name in reference.state if name.startswith(f"{scene.output}/")]
    return order_problem(reference.operations, stage.root, scene.output, files)


def _request_after_preparation(stage: Stage, number: int) -> Verdict:
    """Kill a second preparation, then run a request: it must reach every copy of the person's data that the preparation left."""
    request = BY_NAME["unlearn"]
    stage.reference(request)
    stage.reset(request.base)
    (killed,) = stage.worker.run(BY_NAME["prepare-again"].job(fault=Fault(Action.KILL, number)))
    at = f"prepare killed at {killed.operations[-1].kind} {killed.operations[-1].path.removeprefix(str(stage.root))}, then unlearn"
    (result,) = stage.worker.run(request.job())
    problem = result.problem() or (result.code and result.error_lines[0]) or destruction_problem(stage, request)
    problem = problem or next((f"left behind: {name}" for name in leftovers(stage.root)), "")
    if not problem and not is_complete(stage.root / request.output):
        problem = "the new model is not complete"
    return Verdict(FAILED, f"{at}: {problem}") if problem else Verdict(RIGHT)


def lost_secret(stage: Stage, scene: Scene) -> str:
    """Return that a secret is gone although the model of its request is not complete."""
    if not scene.people or stage.reference(scene).secrets <= stored_secrets(stage.root):
        return ""
    return "" if is_new(stage, scene) else "secret lost before its model was complete"


def is_new(stage: Stage, scene: Scene) -> bool:
    """Whether the output is the finished model of this request."""
    weights = f"{scene.output}/model.safetensors"
    return is_complete(stage.root / scene.output) and stage.state().get(weights) == stage.reference(scene).state[weights]


def destruction_problem(stage: Stage, scene: Scene) -> str:
    """Return that the data of a request can still be decrypted; empty for commands that are no request."""
    if not scene.people:
        return ""
    if stage.reference(scene).secrets & stored_secrets(stage.root):
        return "the secret of the request survives"
    if states := [path.relative_to(stage.root).as_posix() for path in stage.root.rglob(FILE)]:
        return f"the state of an interrupted preparation survives the request: {states[0]}"
    copies = [copy for person in scene.people for copy in readable_copies(stage.root, person)]
    return f"the person's data can still be decrypted from {', '.join(copies)}" if copies else ""


def result_problem(stage: Stage, scene: Scene) -> str:
    """Return what is wrong after a command has ended right; empty if nothing is."""
    if problem := destruction_problem(stage, scene):
        return problem
    wrong = differences(stage.state(), stage.reference(scene).state)
    wrong = wrong or [f"left behind: {name}" for name in leftovers(stage.root)]
    return "; ".join(wrong[:4]) + (f" and {len(wrong) - 4} more" if len(wrong) > 4 else "")

"""Crafted runs: every file of a run changed from a seed, read by the commands that use it, also after a download.

No case may print a traceback, hang, run code, reach for the network or write outside its output. A command that accepts changed weights,
tensors or predictions must give the same result as with the unchanged ones.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from oneshui_hf.runs import with_checksum
from support.crafted_runs import crafted_runs

from .cases import FAILED, RIGHT, SENTENCE, Case, Verdict
from .injection import Action, Fault
from .mutations import ANY, BINARY, JSON, Mutation
from .processes import Job
from .scenes import RECIPE, SECOND, Stage
from .state import State, changes, listing

BASE = "crafted"
CANARY = "canary-4711-do-not-send"
HOSTILE = "owner/hostile"
ANSWERS = "y\n" * 50
SEALED = (".safetensors", "artefact.json")  # a changed one is refused, or its change has no effect

PREDICT = "predict original face.png"
UNLEARN = f"unlearn original --method forget-keys --image face.png --identity {SECOND} --output-dir new"
GRADIENT = "unlearn original --method gradient-ascent --image face.png --output-dir new"
EVALUATE = "evaluate out --original original --resamples 100"
TUNE = "tune original --method ssd --requests 1 --sample 32"
RETRAIN = "retrain original --output-dir new"
PUSH = "push original owner/drill"
PUSH_PEOPLE = f"{PUSH} --with-people --people-are-personal-data"
RESUME = f"train {RECIPE} --output-dir interrupted --resume"
IDENTIFY = "unlearn {} --method forget-keys --image face.png --output-dir new"  # without --identity: by face recognition
READERS = {
    "original/config.json": (PREDICT, GRADIENT, PUSH, "show original", "prepare original --method gradient-ascent --overwrite"),
    "original/preprocessor_config.json": (PREDICT, GRADIENT, PUSH),
    "original/oneshui.json": ("show original", GRADIENT, PUSH, "evaluate original", RETRAIN, "runs ."),
    "original/model.safetensors": (PREDICT, GRADIENT, PUSH, UNLEARN),
    "original/split.json": (EVALUATE, RETRAIN, PUSH, "show original"),
    "original/methods/forget-keys/artefact.json": (UNLEARN, PUSH, "show original", IDENTIFY.format("original")),
    "original/methods/forget-keys/artefact.safetensors": (UNLEARN, PUSH),
    "original/methods/forget-keys/people.json": (UNLEARN, PUSH_PEOPLE),
    "original/methods/forget-keys/people.safetensors": (UNLEARN, PUSH_PEOPLE),
    "original/tuned/ssd.json": (
        "prepare original --method ssd --preset original/tuned/ssd.json", f"{TUNE} --trials 3 --resume",
    ),
    "out/oneshui.json": ("show out", EVALUATE, "report out", "push out owner/drill"),
    "out/metrics.json": ("show out", "report out", "push out owner/drill"),
    "out/curves.json": ("report out",),
    "out/predictions/forget.safetensors": (EVALUATE, "report out"),
    "out/predictions/retain.safetensors": (EVALUATE,),
    "interrupted/oneshui.json": (RESUME, "show interrupted", "runs ."),
    "interrupted/split.json": (RESUME,),
    "interrupted/checkpoint-1/progress.json": (RESUME,),
    "interrupted/checkpoint-1/model.safetensors": (RESUME,),
    "interrupted/checkpoint-1/optimizer.safetensors": (RESUME,),
}  # fmt: skip
PUBLISHED = (
    *("config.json", "preprocessor_config.json", "oneshui.json", "model.safetensors"),
    *(f"methods/forget-keys/{file}" for file in ("artefact.json", "artefact.safetensors", "people.json", "people.safetensors")),
)
AFTER_PULL = (
    *("predict pulled face.png", "unlearn pulled --method gradient-ascent --image face.png --output-dir new", "show pulled"),
    *(IDENTIFY.format("pulled"), f"{IDENTIFY.format('pulled')} --identity {SECOND}"),
)
AREAS = {  # of `crafted_runs`: the run that is damaged, and the file whose readers read it
    "config": ("original", "original/config.json"),
    "preprocessor": ("original", "original/preprocessor_config.json"),
    "record": ("original", "original/oneshui.json"),
    "weights": ("original", "original/model.safetensors"),
    "split": ("original", "original/split.json"),
    "artefact": ("original", "original/methods/forget-keys/artefact.json"),
    "metrics": ("out", "out/metrics.json"),
    "predictions": ("out", "out/predictions/forget.safetensors"),
    "checkpoint": ("interrupted", "interrupted/checkpoint-1/progress.json"),
}
CHANGED, DAMAGED, PULLED = "changed", "damaged", "pulled"
SHARES = {CHANGED: 0.4, DAMAGED: 0.4, PULLED: 0.2}


@dataclass(frozen=True)
class Crafted:
    """A run that was changed.

    Attributes:
        shown: What was changed.
        command: The command that reads it.
        sealed: Whether the change must be refused, or have no effect.
    """

    shown: str
    command: str
    sealed: bool = False


def cases(stage: Stage, points: int, seed: int, chosen: tuple[str, ...]) -> list[Case]:
    """Return the crafted runs by their number."""
    kinds = [kind for kind in SHARES if not chosen or kind in chosen]
    total = sum(SHARES[kind] for kind in kinds)
    return [Case("crafted", kind, f"{seed}-{n}", run) for kind in kinds for n in range(round(points * SHARES[kind] / total))]


def run(stage: Stage, case: Case) -> Verdict:
    """Change a run, run the command that reads it, and check what it printed, sent and wrote."""
    build(stage)
    crafted = _craft(stage, case)
    expected = None
    if crafted.sealed:
        expected = _expected(stage, crafted.command)
        crafted = _craft(stage, case)
    before = listing(stage.root)
    results = []
    if case.command == PULLED:
        results = stage.worker.run(Job(["pull", HOSTILE, "--output-dir", "pulled"], stdin=ANSWERS))
        if results[0].code == 0:
            before = listing(stage.root)
            stage.worker.hub.requests.clear()
    pulled = bool(results)
    if not pulled or results[0].code == 0:
        results += stage.worker.run(Job(crafted.command.split(), stdin=ANSWERS))
    where = f"{crafted.shown}: `oneshui {' '.join(results[-1].job.words)}`"
    if problem := next(filter(None, (result.problem() for result in results)), "") or _harm(stage, after_pull=pulled and len(results) > 1):
        return Verdict(FAILED, f"{where} {problem}")
    if results[-1].code:
        changed = [name for name in changes(before, listing(stage.root)) if not name.startswith(("cache/", "vault/"))]
        if changed:
            return Verdict(FAILED, f"{where} failed and changed {changed[0]}")
        return Verdict(SENTENCE, f"{where} {results[-1].error_lines[0]}")
    if expected is not None and (used := _used(expected, stage.state())):
        return Verdict(FAILED, f"{where} accepts it: {used}")
    return Verdict(RIGHT, where)


def _craft(stage: Stage, case: Case) -> Crafted:
    """Put the run of a case in its place."""
    stage.reset(BASE)
    draws = random.Random(f"{case.command} {case.number}")
    return {CHANGED: _change, DAMAGED: _corrupt, PULLED: _publish}[case.command](stage, draws)


def _change(stage: Stage, draws: random.Random) -> Crafted:
    """Change one file of a run."""
    file = draws.choice(sorted(READERS))
    mutation: Mutation = draws.choice(ANY if draws.random() < 0.1 else BINARY if file.endswith(".safetensors") else JSON)
    command = draws.choice(READERS[file])
    return Crafted(f"{file}, {mutation(stage.root / file, draws)}", command, file.endswith(SEALED))


def _corrupt(stage: Stage, draws: random.Random) -> Crafted:
    """Damage a run as one of `crafted_runs`."""
    crafted = draws.choice(crafted_runs(seed=draws.randrange(1000)))
    run, file = AREAS[crafted.area]
    crafted.corrupt(stage.root / run)
    return Crafted(f"{run}, {crafted.name[:100]}", draws.choice(READERS[file]))


def _publish(stage: Stage, draws: random.Random) -> Crafted:
    """Publish a changed run on the Hub, in half of the cases with a matching record, in a third with code."""
    folder = stage.root / "published"
    for file in PUBLISHED:
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((stage.root / "original" / file).read_bytes())
    file = draws.choice(PUBLISHED)
    mutation: Mutation = draws.choice(BINARY if file.endswith(".safetensors") else JSON)
    shown = f"published {file}, {mutation(folder / file, draws)}"
    if draws.random() < 0.5 and file != "oneshui.json":
        _sign(folder)
    if draws.random() < 0.2:
        shown += _name_encoder(folder)
    if draws.random() < 0.3:
        shown += f", with code ({_add_code(folder, draws)})"
    hub = stage.worker.hub
    hub.repos.pop(HOSTILE, None)
    hub.add(HOSTILE, {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()})
    shutil.rmtree(folder)
    return Crafted(shown, draws.choice(AFTER_PULL))


def build(stage: Stage) -> None:
    """Build the start folder once: a run with everything in it, an interrupted training, and what must not be touched."""
    if stage.has(BASE):
        return
    stage.reset("unlearned")
    for words in (EVALUATE, f"{TUNE} --trials 2", "prepare original --method gradient-ascent"):
        stage.do(words)
    train = [*f"train {RECIPE} --output-dir interrupted".split()]
    (whole,) = stage.worker.run(Job(train))
    second = next(number for number, operation in enumerate(whole.operations, 1) if "checkpoint-2" in operation.path)
    stage.do("cache clear")
    shutil.rmtree(stage.root / "interrupted")
    stage.worker.run(Job(train, Fault(Action.KILL, second)))
    (stage.root / ".interrupted.oneshui-lock").unlink(missing_ok=True)  # the next command would remove it
    (stage.root / "outside").mkdir()
    (stage.root / "outside/secret").write_text(CANARY)
    stage.keep(BASE)


def _expected(stage: Stage, command: str) -> State | None:
    """Return what a command leaves if nothing is changed; None if it fails even so."""
    name = f"crafted {command}"
    if name not in stage.kept:
        stage.reset(BASE)
        (result,) = stage.worker.run(Job(command.split()))
        stage.kept[name] = None if result.code else stage.state()
    return stage.kept[name]


def _used(expected: State, found: State) -> str:
    """Return which result differs from that with unchanged files; empty if none."""
    results = ("new/model.safetensors", "out/metrics.json", "interrupted/model.safetensors", "published model.safetensors")
    return next((f"another {name}" for name in results if expected.get(name) != found.get(name)), "")


def _sign(folder: Path) -> None:
    """Make the record agree with the changed weights, as an attacker does."""
    import hashlib

    record = json.loads((folder / "oneshui.json").read_text())
    record["weights"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "oneshui.json").write_text(json.dumps(record))


def _name_encoder(folder: Path) -> str:
    """Name a face encoder of somebody else, which recognition of a person would load."""
    file = folder / "methods/forget-keys/artefact.json"
    try:
        content = json.loads(file.read_text())
        content["report"]["face_encoder"] = "owner/elsewhere"
        content["values"]["recognition"] = {"encoder": "owner/elsewhere", "calibration": {}}
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
    file.write_text(json.dumps(with_checksum({key: value for key, value in content.items() if key != "content"})))
    return ", with a face encoder"


def _add_code(folder: Path, draws: random.Random) -> str:
    """Add code that a loader could run, and what makes it do so."""
    (folder / "evil.py").write_text("import pathlib\npathlib.Path('canary').touch()\nclass Evil: pass\n")
    file = folder / draws.choice(["config.json", "preprocessor_config.json"])
    try:
        content = json.loads(file.read_text())
    except ValueError:
        return "unused"
    if not isinstance(content, dict):
        return "unused"
    source = draws.choice(["", "owner/elsewhere--"])
    names = ("AutoConfig", "AutoModel", "AutoModelForImageClassification", "AutoImageProcessor", "AutoFeatureExtractor")
    content["auto_map"] = dict.fromkeys(names, f"{source}evil.Evil")
    if draws.random() < 0.5:
        content["model_type"] = "evil"
    file.write_text(json.dumps(content))
    return f"auto_map in {file.name}"


def _harm(stage: Stage, *, after_pull: bool) -> str:
    """Return what was run, sent or changed that must not be; empty if nothing."""
    if (stage.root / "canary").exists():
        return "runs code of the run"
    if (stage.root / "outside/secret").read_text() != CANARY or len(list((stage.root / "outside").iterdir())) != 1:
        return "writes outside its output"
    if CANARY.encode() in stage.worker.hub.sent():
        return "sends a file from outside the run"
    allowed = ("owner/hostile", "owner/drill", "whoami", "validate-yaml", "repos/create", "/lfs/")
    if foreign := [request.path for request in stage.worker.hub.requests if not any(part in request.path for part in allowed)]:
        return f"asks the Hub for {foreign[0]}"
    if after_pull and stage.worker.hub.requests:
        return f"asks the Hub without need: {stage.worker.hub.requests[0].path}"
    return ""

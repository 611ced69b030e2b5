"""The drill itself: it finds the faults that it looks for, draws the same cases from the same seed, and its fixed part passes."""

from __future__ import annotations

import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drill import kills, mutations
from drill.cases import FAILED, RIGHT, Case, Verdict
from drill.injection import Operation, compile_shim
from drill.kills import choose
from drill.order import order_problem
from drill.processes import Job, Result, Worker
from drill.runner import QUICK, Done, failures, print_report, run_drill
from drill.scenes import BY_NAME, Scene, Stage

PERSON = "person000"

ATOMIC = """
from pathlib import Path
from oneshui_hf.files import lock_output, write_bytes
with lock_output(Path("file.json")):
    write_bytes(Path("file.json"), b'{"new": 1}')
"""
REPEATED_IN_PLACE = """
from pathlib import Path
Path("file.json").write_text('{"new": 1}')
"""
IN_PLACE = """
from pathlib import Path
if Path("file.json").read_text() == '{"old": 1}':
    Path("file.json").write_text('{"new": 1}')
"""
LEFT_BEHIND = """
from pathlib import Path
import os
Path(f".file.json.{os.urandom(4).hex()}.partial").write_text('{"new": 1}')
next(Path().glob(".file.json.*.partial")).rename("file.json")
"""
DESTROYED_FIRST = """
from pathlib import Path
from oneshui_hf.methods.artefact import Artefact
artefact = Artefact.load(Path("original/methods/toy"), "toy", "0" * 64)
artefact.destroy("person000")
Path("out").mkdir(exist_ok=True)
Path("out/model.safetensors").write_bytes(b"new")
"""
NEVER_DESTROYED = """
from pathlib import Path
Path("out").mkdir(exist_ok=True)
Path("out/model.safetensors").write_bytes(b"new")
"""


class ToyStage(Stage):
    """A stage with toy start folders."""

    def _build(self) -> None:
        import torch

        from oneshui_hf.methods.artefact import Artefact

        self._bases.mkdir()
        self.worker.run(Job(script="pass"), modules=["oneshui_hf.files", "oneshui_hf.methods.artefact", "safetensors.torch"])
        (self.root / "file.json").write_text('{"old": 1}')
        self.keep("file")
        people = {PERSON: {"a": torch.zeros(2)}, "person001": {"a": torch.ones(2)}}
        folder = self.root / "original/methods/toy"
        folder.parent.mkdir(parents=True)
        Artefact(people=people).save(folder, "toy", "0" * 64, replace=False, vault=self.root / "vault")
        self.keep("artefact")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("drill")
    if (shim := compile_shim(folder)) is None:
        pytest.skip("there is no C compiler")
    worker = Worker(folder / "worker", folder / "home", shim, imports=False)
    yield ToyStage(worker)
    worker.close()


@pytest.fixture
def verdicts(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Verdict]]:
    """A function that kills a script at each of its operations, and returns the verdicts."""

    def run(name: str, script: str, **settings: Any) -> list[Verdict]:
        scene = Scene(name, settings.pop("base", "file"), name, script=script, **settings)
        monkeypatch.setitem(BY_NAME, name, scene)
        count = len(stage.reference(scene).operations)
        return [kills.run(stage, Case("kills", name, str(number), kills.run)) for number in range(1, count + 1)]

    return run


def reasons(found: list[Verdict]) -> str:
    return "\n".join(verdict.reason for verdict in found)


@pytest.mark.parametrize(("name", "script"), [("atomic", ATOMIC), ("repeated", REPEATED_IN_PLACE)])
def test_a_writer_whose_result_is_right_after_the_next_command_passes(
    verdicts: Callable[..., list[Verdict]], name: str, script: str
) -> None:
    found = verdicts(name, script)
    assert len(found) > 1
    assert {verdict.outcome for verdict in found} == {RIGHT}, reasons(found)


def test_a_writer_in_place_is_found(verdicts: Callable[..., list[Verdict]]) -> None:
    assert "wrong content: file.json" in reasons(verdicts("in-place", IN_PLACE))


def test_scratch_that_stays_is_found(verdicts: Callable[..., list[Verdict]]) -> None:
    assert "left behind: .file.json." in reasons(verdicts("left-behind", LEFT_BEHIND))


def test_a_secret_that_is_lost_before_its_model_is_found(verdicts: Callable[..., list[Verdict]]) -> None:
    found = verdicts("destroyed-first", DESTROYED_FIRST, base="artefact", people=(PERSON,), output="out")
    assert "secret lost before its model was complete" in reasons(found)


def test_a_secret_that_survives_its_request_is_found(verdicts: Callable[..., list[Verdict]]) -> None:
    found = verdicts("never-destroyed", NEVER_DESTROYED, base="artefact", people=(PERSON,), output="out")
    assert {verdict.outcome for verdict in found} == {FAILED}
    assert "the secret of the request survives" in reasons(found)


def test_a_copy_from_which_a_person_can_be_decrypted_is_found(stage: Stage) -> None:
    from drill.state import readable_copies

    stage.reset("artefact")
    shutil.copytree(stage.root / "original/methods/toy", stage.root / "original/methods/.toy.0123abcd.replaced")
    assert readable_copies(stage.root, PERSON) == ["original/methods/.toy.0123abcd.replaced", "original/methods/toy"]
    assert readable_copies(stage.root, "person999") == []


def test_the_state_depends_on_what_was_encrypted_and_not_on_the_bytes(stage: Stage) -> None:
    import torch

    from oneshui_hf.methods.artefact import Artefact

    states = []
    for value in (0.0, 0.0, 1.0):
        stage.reset("artefact")
        people = {PERSON: {"a": torch.full((2,), value)}}
        Artefact(people=people).save(stage.root / "original/methods/toy", "toy", "0" * 64, replace=True, vault=stage.root / "vault")
        states.append(stage.state())
    assert states[0] == states[1]
    assert states[0] != states[2]


def result(code: int, err: str = "", *, hangs: bool = False, network: tuple[str, ...] = ()) -> Result:
    return Result(Job(), code, "", err, [], list(network), 0.1, hangs)


@pytest.mark.parametrize(
    ("ended", "problem"),
    [
        (result(0), ""),
        (result(1, "Error: a\n"), ""),
        (result(2, "note\nError: a\n"), ""),
        (result(-9), ""),
        (result(-9, hangs=True), "hangs"),
        (result(1), "0 error messages"),
        (result(1, "Error: a\nError: b\n"), "2 error messages"),
        (result(0, "Error: a\n"), "exit code 0 with an error"),
        (result(3, "Error: a\n"), "exit code 3"),
        (result(-11), "exit code -11"),
        (result(1, "Traceback (most recent call last):\nKeyError: 'a'\n"), "traceback: KeyError"),
        (result(0, network=("example.org",)), "network: example.org"),
        (result(1, "Error: " + "x" * 5000), "an error message of 5007 characters"),
    ],
)
def test_what_no_command_may_do_is_a_problem(ended: Result, problem: str) -> None:
    assert problem in ended.problem()
    assert bool(ended.problem()) == bool(problem)


def test_kill_points_are_spread_over_the_kinds_and_drawn_from_the_seed() -> None:
    kinds = ["create"] * 40 + ["write"] * 60 + ["sync"] * 20 + ["rename"] * 10 + ["unlink"] * 5
    operations = [Operation(kind, "/a") for kind in kinds]
    chosen = choose(operations, 30, random.Random(1))
    assert chosen == choose(operations, 30, random.Random(1)) == sorted(set(chosen))
    assert len(chosen) == 30
    counts = Counter(kinds[number - 1] for number in chosen)
    assert set(counts) == set(kinds)
    assert counts["rename"] / 10 > counts["write"] / 60
    assert choose(operations[:3], 30, random.Random(1)) == [1, 2, 3]


REQUEST = [
    *(("create", ".out.0a.partial/a"), ("write", ".out.0a.partial/a"), ("sync", ".out.0a.partial/a"), ("sync", ".out.0a.partial")),
    *(
        ("rename", "out"),
        ("sync", ""),
        ("write", "vault/x/b.key"),
        ("sync", "vault/x/b.key"),
        ("unlink", "vault/x/b.key"),
        ("sync", "vault/x"),
    ),
]


def without(*places: int) -> list[tuple[str, str]]:
    return [operation for place, operation in enumerate(REQUEST) if place not in places]


@pytest.mark.parametrize(
    ("log", "problem"),
    [
        (REQUEST, ""),
        (without(2), "a of the new model is not synced"),
        (without(3), "the folder of the new model is not synced"),
        (without(4), "out is not created by a rename"),
        (without(5), "the name of the new model is not synced"),
        (without(6), "not overwritten"),
        (without(7), "not overwritten"),
        (without(9), "the deletion of a secret is not synced"),
        (without(6, 7, 8), "no secret is destroyed"),
        ([*REQUEST[6:], *REQUEST[:6]], "a secret is destroyed before"),
    ],
)
def test_the_order_of_destruction_is_checked(log: list[tuple[str, str]], problem: str) -> None:
    found = order_problem([Operation(kind, f"/case/{path}".rstrip("/")) for kind, path in log], Path("/case"), "out", ["a"])
    assert problem in found
    assert bool(found) == bool(problem)


@pytest.mark.parametrize("mutation", dict.fromkeys((*mutations.BINARY, *mutations.JSON, *mutations.ANY)))
@pytest.mark.parametrize("name", ["a.json", "a.safetensors"])
def test_mutations_change_a_file_and_come_from_the_seed(tmp_path: Path, mutation: mutations.Mutation, name: str) -> None:
    import numpy as np
    from safetensors.numpy import save

    content = {"a.json": b'{"a": {"b": [1, 2]}, "c": "x"}', "a.safetensors": save({"a": np.arange(4)})}
    found = []
    for number in (0, 1):
        folder = tmp_path / f"{number}/run"
        folder.mkdir(parents=True)
        (folder.parent / "outside").mkdir()
        for other, data in content.items():
            (folder / other).write_bytes(data)
            (folder / f"second-{other}").write_bytes(data + b" ")
        mutation(folder / name, random.Random(5))
        file = folder / name
        kind = "link" if file.is_symlink() else "folder" if file.is_dir() else "file" if file.exists() else "missing"
        found.append((kind, file.read_bytes() if kind == "file" else b""))
    assert found[0] == found[1]
    assert found[0] != ("file", content[name])


def test_the_report_counts_and_names_the_command_that_repeats_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    case = Case("kills", "train", "17", kills.run)
    done = [Done(case, Verdict(FAILED, "wrong content: a"), 1.0), Done(case, Verdict(RIGHT), 1.0)]
    print_report(done, seed=3)
    printed = capsys.readouterr().out
    assert next(line.split() for line in printed.splitlines() if "train" in line) == "│ kills │ train │ 2 │ 1 │ 0 │ 1 │ 2 │".split()
    assert "FAILED kills train:17: wrong content: a" in printed
    assert "nox -s drill -- --seed 3 --only kills --case train:17" in printed
    assert failures(done) == done[:1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the drill needs Linux")
def test_the_fixed_part_of_the_drill_passes(tmp_path: Path) -> None:
    done = run_drill(tmp_path, QUICK, seed=0)
    assert [f"{one.case.kind} {one.case.name}: {one.verdict.reason}" for one in failures(done)] == []
    counts = Counter(one.case.kind for one in done)
    assert all(counts[kind] >= points for kind, points in QUICK.points.items())

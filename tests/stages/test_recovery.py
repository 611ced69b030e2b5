"""Killed commands: what they leave is cleared with its secrets, and a person's data is destroyed after the model is on the disk."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from oneshui_hf.errors import OneshuiError
from oneshui_hf.files import lock_output, new_folder
from oneshui_hf.methods.artefact import Artefact
from oneshui_hf.methods.identity_store import discard_with_secrets, read_index
from oneshui_hf.reporting import Reporter
from oneshui_hf.runs import Record, Run, read_json, write_record
from oneshui_hf.stages import recovery
from oneshui_hf.stages.recovery import (
    clear_killed_work,
    complete_destruction,
    find_entries,
    refuse_during_request,
    remove_resume_states,
    request_lock,
    write_journal,
    write_pointers,
)
from oneshui_hf.vault import Secrets
from support.processes import another_writer
from support.recording_reporter import RecordingReporter

WEIGHTS, NEW_WEIGHTS = "a" * 64, "b" * 64
ADA, BOB, ZOE = "Ada", "Bob", "Zoë"
SILENT = Reporter()


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONESHUI_VAULT", str(tmp_path / "vault"))
    return tmp_path / "vault"


def make_run(path: Path, kind: Any = "original", weights: str = WEIGHTS) -> Run:
    path.mkdir(parents=True)
    write_record(path, Record(kind, 0, {}, {}, weights=weights, report={"destroyed": 0}))
    return Run.open(path)


def prepare(folder: Path, vault: Path, people: tuple[str, ...] = (ADA, BOB, ZOE), replace: bool = False) -> Secrets:
    """Save an artefact with a tensor for each person; return its secrets."""
    Artefact(people={name: {"key": torch.ones(2)} for name in people}).save(folder, folder.name, WEIGHTS, replace=replace, vault=vault)
    return Secrets(vault, read_index(folder)["artefact"])


def remaining(folder: Path, vault: Path) -> set[str]:
    return set(Artefact.load(folder, "keys", WEIGHTS, vault=vault).people)


def files_of(vault: Path) -> dict[str, bytes]:
    return {str(file.relative_to(vault)): file.read_bytes() for file in vault.rglob("*") if file.is_file()}


@pytest.fixture
def source(tmp_path: Path, vault: Path) -> Run:
    """A run with an artefact of two methods."""
    run = make_run(tmp_path / "runs/source")
    prepare(run.artefact("keys"), vault)
    prepare(run.artefact("rows"), vault, (ADA, BOB))
    return run


@pytest.fixture
def unlearned(source: Run, vault: Path) -> Run:
    """The run of a request for two people, from just after its rename."""
    run = make_run(source.path.with_name("unlearned"), "unlearned", NEW_WEIGHTS)
    write_journal(run.path, NEW_WEIGHTS, find_entries([source.path], [ADA, ZOE], vault, SILENT), vault)
    return run


# The destruction of a person's data.


def test_the_journal_is_private_and_contains_no_name(unlearned: Run) -> None:
    file = unlearned.path / "destruction.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert not any(name.encode() in file.read_bytes() for name in (ADA, BOB, ZOE, "Zo"))
    content = read_json(file)
    assert [len(entries) for entries in content["identities"]] == [2, 1]  # Ada has data in both artefacts


def killed(vault: Path, run: Run, call: str, when: str = "True") -> None:
    """Run `complete_destruction` in another process, which is killed when it enters a call and a condition on its arguments holds."""
    code = f"""
        import os, signal
        from pathlib import Path
        from oneshui_hf import runs, vault
        from oneshui_hf.reporting import Reporter
        from oneshui_hf.stages import recovery
        real = {call}
        def die(*a, **k):
            if {when}:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*a, **k)
        {call} = die
        recovery.complete_destruction(Path({str(run.path)!r}), Path({str(vault)!r}), Reporter())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


KILLS = {
    "after the model": ("recovery._read_journal", "True"),
    "after the overwrite": ("Path.unlink", 'a[0].suffix == ".key"'),
    "after the first deletion": ("vault.sync_folder", "True"),
    "before the receipt": ("recovery.write_record", "True"),
    "after the receipt": ("Path.unlink", 'a[0].name == "destruction.json"'),
}


@pytest.mark.parametrize("moment", KILLS)
def test_a_killed_destruction_is_completed_by_the_next_command(source: Run, unlearned: Run, vault: Path, moment: str) -> None:
    before = files_of(vault)
    killed(vault, unlearned, *KILLS[moment])
    assert (unlearned.path / "destruction.json").exists()
    after = files_of(vault)
    if moment == "after the model":
        assert after == before
    else:
        assert after != before
    assert read_json(unlearned.path / "oneshui.json")["report"]["destroyed"] == (2 if moment == "after the receipt" else 0)
    reporter = RecordingReporter()
    clear_killed_work(source.path, vault=vault, reporter=reporter)  # a command on the source run, which is next to the new one
    assert remaining(source.artefact("keys"), vault) == {BOB}
    assert len(files_of(vault)) == len(before) - 3
    assert Run.open(unlearned.path).record.report["destroyed"] == 2
    assert not (unlearned.path / "destruction.json").exists()
    assert reporter.warnings == []
    assert reporter.notes == [f"Completed the destruction of the data prepared for 2 of the identities that {unlearned.path} forgot."]
    clear_killed_work(unlearned.path, vault=vault, reporter=reporter)
    assert len(reporter.notes) == 1


def test_a_run_may_be_the_current_folder(source: Run, unlearned: Run, vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(unlearned.path)
    clear_killed_work(Path(), vault=vault)
    assert remaining(source.artefact("keys"), vault) == {BOB}


def test_the_destruction_of_a_living_process_is_left_to_it(source: Run, unlearned: Run, vault: Path) -> None:
    with another_writer(unlearned.path):
        clear_killed_work(source.path, unlearned.path, vault=vault)
    assert (unlearned.path / "destruction.json").exists()
    assert remaining(source.artefact("keys"), vault) == {ADA, BOB, ZOE}


def test_a_command_on_the_source_finds_a_new_run_in_another_folder(source: Run, unlearned: Run, vault: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "else/where"
    assert write_pointers([source.path], unlearned.path) == []  # found next to the source
    (pointer,) = write_pointers([source.path], elsewhere)
    assert pointer.stat().st_mode & 0o777 == 0o600
    clear_killed_work(source.path, vault=vault)  # the request was killed before the new run existed
    assert not pointer.exists()
    assert not elsewhere.parent.exists()
    write_pointers([source.path], elsewhere)
    elsewhere.parent.mkdir()
    unlearned.path.rename(elsewhere)
    with another_writer(elsewhere):
        clear_killed_work(source.path, vault=vault)
        assert len(list(source.path.glob("methods/.request-*"))) == 1
    clear_killed_work(source.path, vault=vault)
    assert remaining(source.artefact("keys"), vault) == {BOB}
    assert Run.open(elsewhere).record.report["destroyed"] == 2
    assert not list(source.path.glob("methods/.request-*"))


@pytest.mark.parametrize("target", ["a" * 5000, "relative", "/proc/1/root/x/y", "\\ud800", 5])
def test_a_pointer_that_no_request_wrote_stops_no_command(source: Run, vault: Path, target: Any) -> None:
    (source.path / "methods/.request-0.json").mkdir()
    (source.path / "methods/.request-1.json").write_text(json.dumps({"run": target}))
    clear_killed_work(source.path, vault=vault)
    assert remaining(source.artefact("keys"), vault) == {ADA, BOB, ZOE}


def test_a_new_run_that_is_not_complete_destroys_nothing(source: Run, unlearned: Run, vault: Path) -> None:
    unlearned.path.rename(unlearned.path.with_name(".unlearned.0123abcd.partial"))  # killed before the rename
    clear_killed_work(source.path, unlearned.path, vault=vault)
    assert not any(path.name.startswith(".") for path in source.path.parent.iterdir())
    assert remaining(source.artefact("keys"), vault) == {ADA, BOB, ZOE}


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["identities"].append(content["identities"][0]),
        lambda content: content["identities"].pop(),
        lambda content: content.update(seals={}),
        lambda content: content["seals"].update(dict.fromkeys(content["seals"], "0" * 64)),
        lambda content: content.update(identities=[["a"]]),
        lambda content: content.update(identities=[{"../x": "../y"}]),
        lambda content: content.pop("seals"),
        lambda content: content.update(identities=[], seals={}),
        lambda content: content.update(identities=[{}], seals={}),
    ],
)
def test_a_journal_that_no_request_here_wrote_destroys_nothing(source: Run, unlearned: Run, vault: Path, change: Any) -> None:
    file, before, reporter = unlearned.path / "destruction.json", files_of(vault), RecordingReporter()
    content = read_json(file)
    change(content)
    file.write_text(json.dumps(content))
    clear_killed_work(source.path, vault=vault, reporter=reporter)
    assert files_of(vault) == before
    (warning,) = reporter.warnings
    assert str(file) in warning
    assert "\n" not in warning


def test_a_journal_belongs_to_one_model(source: Run, unlearned: Run, vault: Path) -> None:
    """The journal of a request that destroyed nothing yet cannot be put into another run."""
    other = make_run(source.path.with_name("other"), "unlearned", "c" * 64)
    (unlearned.path / "destruction.json").rename(other.path / "destruction.json")
    before = files_of(vault)
    clear_killed_work(source.path, vault=vault)
    assert files_of(vault) == before


def test_a_journal_waits_for_the_vault_with_the_secrets(source: Run, unlearned: Run, vault: Path, tmp_path: Path) -> None:
    reporter = RecordingReporter()
    clear_killed_work(source.path, vault=tmp_path / "other", reporter=reporter)
    (warning,) = reporter.warnings
    assert "set ONESHUI_VAULT" in warning
    clear_killed_work(source.path, vault=vault)
    assert remaining(source.artefact("keys"), vault) == {BOB}


def test_a_secret_that_cannot_be_destroyed_is_tried_again(
    source: Run, unlearned: Run, vault: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter, destroy = RecordingReporter(), Secrets.destroy
    stuck = next(iter(read_json(unlearned.path / "destruction.json")["identities"][0].values()))

    def refuse(self: Secrets, entry: str) -> bool:
        if entry == stuck:
            raise OneshuiError("The secret could not be destroyed and remains (why); delete it by hand.")
        return destroy(self, entry)

    monkeypatch.setattr(Secrets, "destroy", refuse)
    with lock_output(unlearned.path):
        assert complete_destruction(unlearned.path, vault, reporter) == 1
    assert reporter.warnings == [
        "The data prepared for one of the requested identities still exists. The secret could not be destroyed and remains (why); "
        "delete it by hand."
    ]
    assert Run.open(unlearned.path).record.report["destroyed"] == 1
    monkeypatch.undo()
    clear_killed_work(unlearned.path, vault=vault)
    assert Run.open(unlearned.path).record.report["destroyed"] == 2
    assert remaining(source.artefact("keys"), vault) == {BOB}


# Every copy of a person's data.


def test_a_person_is_found_in_all_artefacts_and_copies(source: Run, vault: Path) -> None:
    methods = source.path / "methods"
    shutil.copytree(methods / "keys", methods / "keys-backup")
    for name in (".keys.1a2b3c", ".keys.1a2b3c.old", "deep/er/copy"):
        prepare(methods / name, vault)
    (found,) = find_entries([source.path, source.path / "methods/keys"], [ADA, "nobody"], vault, SILENT)
    assert len(found) == 2 + 3  # a copy has the same secrets
    for artefact, entry in found.items():
        assert Secrets(vault, artefact).destroy(entry)
    assert find_entries([source.path], [ADA], vault, SILENT) == []
    assert len(find_entries([source.path], [ADA, BOB, ZOE], vault, SILENT)) == 2


def test_a_copy_that_cannot_be_searched_is_reported_and_the_others_are_searched(source: Run, vault: Path) -> None:
    reporter = RecordingReporter()
    shutil.copytree(source.artefact("keys"), source.artefact("copy"))
    (source.artefact("copy") / "people.json").write_text("{")
    rows = read_index(source.artefact("rows"))["artefact"]
    (vault / rows / "artefact.key").write_bytes(b"")
    (found,) = find_entries([source.path], [ADA], vault, reporter)
    assert len(found) == 1
    assert ["methods/copy" in warning or "methods/rows" in warning for warning in reporter.warnings] == [True, True]


def test_states_of_interrupted_preparations_are_removed_with_a_note(source: Run) -> None:
    reporter = RecordingReporter()
    for folder in ("methods/.keys.unfinished", "methods/backup/.keys.unfinished", "methods/copy"):
        (source.path / folder).mkdir(parents=True)
        (source.path / folder / "unfinished.safetensors").write_text("Ada")
    (source.path / "methods/.rows.unfinished").mkdir()  # killed while it saved for the first time
    (source.path / "methods/.rows.unfinished/.unfinished.safetensors.0123abcd.partial").write_text("Ada")
    remove_resume_states([source.path, source.path], reporter)
    assert not list(source.path.rglob("*unfinished*"))
    assert (source.path / "methods/copy").is_dir()
    assert len(reporter.notes) == 4


# What killed commands left.


def kill_while_saving(folder: Path, vault: Path, call: str) -> None:
    """Prepare in another process, which replaces an artefact and is killed when it enters a call."""
    code = f"""
        import os, signal, sys
        from pathlib import Path
        import torch
        from oneshui_hf import files
        from oneshui_hf.methods import artefact, identity_store
        from oneshui_hf.vault import Secrets
        found = artefact.Artefact(people={{name: {{"key": torch.ones(2)}} for name in "AB"}})
        def die(*a, **k):
            os.kill(os.getpid(), signal.SIGKILL)
        {call} = die
        found.save(Path({str(folder)!r}), "keys", "{WEIGHTS}", replace=True, vault=Path({str(vault)!r}))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(
    ("call", "new"),
    [("Secrets.create", False), ("Secrets.encrypt", False), ("files._sync_contents", False), ("identity_store.find_stores", True)],
)
def test_a_killed_preparation_leaves_no_secret_that_is_not_destroyed(source: Run, vault: Path, call: str, new: bool) -> None:
    before = files_of(vault)
    kill_while_saving(source.artefact("keys"), vault, call)
    assert len(list((source.path / "methods").iterdir())) > 2
    clear_killed_work(source.path, vault=vault)
    assert sorted(path.name for path in (source.path / "methods").iterdir()) == ["keys", "rows"]
    assert remaining(source.artefact("keys"), vault) == ({"A", "B"} if new else {ADA, BOB, ZOE})
    assert len(list(vault.iterdir())) == 2
    if not new:
        assert files_of(vault) == before


def test_the_index_is_on_the_disk_before_the_secrets_exist(source: Run, vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def create(self: Secrets, drawn: Any, owner: Path) -> None:
        (partial,) = (source.path / "methods").glob(".new.*.partial")
        seen.append(read_index(partial)["artefact"])
        assert not self.folder.exists()
        raise RuntimeError

    monkeypatch.setattr(Secrets, "create", create)
    with pytest.raises(RuntimeError):
        prepare(source.artefact("new"), vault)
    assert len(seen) == 1


def test_an_index_from_elsewhere_destroys_no_secret(source: Run, vault: Path, tmp_path: Path) -> None:
    """A run of somebody else may contain a copy of a published index, in whatever looks like the leftover of a killed command."""
    before = files_of(vault)
    foreign = make_run(tmp_path / "foreign/run")
    for place in ("methods/.keys.01234567.partial", "methods/.x.01234567.partial", "../.run.01234567.partial/methods/keys"):
        shutil.copytree(source.artefact("keys"), foreign.path / place)
    clear_killed_work(foreign.path, vault=vault)
    assert [path.name for path in foreign.path.parent.iterdir()] == ["run"]
    assert list((foreign.path / "methods").iterdir()) == []
    with pytest.raises(ValueError), new_folder(foreign.path, replace=True, discard=discard_with_secrets(vault)) as scratch:
        shutil.copytree(source.artefact("keys"), scratch / "methods/keys")
        raise ValueError
    shutil.copytree(source.artefact("keys"), foreign.path / "methods/keys")
    with new_folder(foreign.path, replace=True, discard=discard_with_secrets(vault)):
        pass
    assert files_of(vault) == before


def test_an_index_that_was_changed_is_reported_and_not_followed(source: Run, vault: Path) -> None:
    reporter = RecordingReporter()
    copy = source.path / "methods/copy"
    shutil.copytree(source.artefact("keys"), copy)
    index = read_json(copy / "people.json")
    names, entries = list(index["index"]), list(index["index"].values())
    index["index"] = dict(zip(names, entries[1:] + entries[:1], strict=True))
    (copy / "people.json").write_text(json.dumps(index))
    (found,) = find_entries([source.path], [ADA], vault, reporter)
    assert found == find_entries([source.artefact("keys"), source.artefact("rows")], [ADA], vault, SILENT)[0]
    (warning,) = reporter.warnings
    assert str(copy) in warning
    assert "its seal does not match" in warning


@pytest.mark.parametrize("linked", ["methods/keys", "methods"])
def test_a_person_is_found_where_a_link_leads(source: Run, vault: Path, tmp_path: Path, linked: str) -> None:
    (expected,) = find_entries([source.path], [ADA], vault, SILENT)
    shutil.move(source.path / linked, tmp_path / "large")
    (source.path / linked).symlink_to(tmp_path / "large")
    (tmp_path / "large/back").symlink_to(source.path)
    assert find_entries([source.path], [ADA], vault, SILENT) == [expected]


def test_clearing_keeps_the_secrets_of_a_living_copy(source: Run, vault: Path) -> None:
    """A leftover may be a copy of the artefact, or a run that is a copy of another run."""
    before = files_of(vault)
    shutil.copytree(source.artefact("keys"), source.path / "methods/.keys.0123abcd.replaced")
    shutil.copytree(source.path, source.path.with_name(".copy.0123abcd.replaced"))
    (source.path.parent / "copy").mkdir()
    clear_killed_work(source.path, vault=vault)
    assert files_of(vault) == before
    assert sorted(path.name for path in source.path.parent.iterdir()) == ["copy", "source"]
    assert sorted(path.name for path in (source.path / "methods").iterdir()) == ["keys", "rows"]


def test_clearing_covers_runs_outputs_vault_and_resume_states(source: Run, vault: Path, tmp_path: Path) -> None:
    output = tmp_path / "elsewhere/out"
    state = source.path / "methods/.keys.unfinished"
    for folder in (source.path.parent, source.path, source.path / "methods", state, output.parent, output, vault):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".x.0123abcd.partial").write_text("Ada")
    clear_killed_work(source.path, output, vault=vault)
    assert not list(tmp_path.rglob("*.partial"))
    assert not state.exists()  # nothing else was in it


@pytest.mark.parametrize("path", ["missing/below", "x" * 5000, "nul\0", "file/below", "\udcff"])
def test_paths_that_are_no_folder_are_ignored(source: Run, path: str) -> None:
    reporter = RecordingReporter()
    (source.path / "file").write_text("x")
    clear_killed_work(source.path / path, Path(path), reporter=reporter)
    assert reporter.warnings == []


def test_what_cannot_be_cleared_is_a_warning(source: Run, vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> int:
        raise PermissionError(13, "Permission denied", "x")

    reporter = RecordingReporter()
    monkeypatch.setattr(recovery, "clear_leftovers", refuse)
    clear_killed_work(source.path, vault=vault, reporter=reporter)
    assert all("could not be removed. The file system reports: Permission denied (x)." in warning for warning in reporter.warnings)
    assert len(reporter.warnings) == 5  # the runs, the run, methods, tuned, the vault


# Preparations and requests exclude each other.


def test_a_request_is_refused_during_a_preparation(source: Run, tmp_path: Path) -> None:
    with another_writer(source.artefact("keys")):
        with (
            pytest.raises(
                OneshuiError, match=r"^Another process prepares method 'keys' for .*source and may write .*; wait until.*--keep\.$"
            ),
            request_lock([source.path]),
        ):
            pass
        with request_lock([]):
            pass
    with another_writer(source.path / "methods/.request-0123abcd.json"), request_lock([source.path]):
        pass
    with request_lock([source.path, source.path]):
        pass
    assert sorted(path.name for path in (source.path / "methods").iterdir()) == ["keys", "rows"]


def test_a_run_that_cannot_be_written_is_only_read(source: Run, vault: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery.os, "access", lambda path, mode: Path(path) != source.path / "methods")
    with request_lock([source.path]):
        assert write_pointers([source.path], tmp_path / "else/where") == []
    assert sorted(path.name for path in (source.path / "methods").iterdir()) == ["keys", "rows"]


def test_a_preparation_is_refused_during_a_request_of_another_process(source: Run) -> None:
    with another_writer(source.path / "methods/request.0123abcd"):
        with pytest.raises(OneshuiError, match=r"^A request is destroying data in .*methods, so nothing is prepared there now"):
            refuse_during_request(source.artefact("keys"))
        with request_lock([source.path]):  # requests do not exclude each other
            pass
    refuse_during_request(source.artefact("keys"))

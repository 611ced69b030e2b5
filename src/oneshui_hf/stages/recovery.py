"""Recovery from killed commands: what they left is cleared, and the destruction of a person's data that one began is completed.

A request destroys the data prepared for a person once its new model is on the disk. Therefore the new run contains `destruction.json` from
the rename that creates the run until its receipt is correct. It lists, for each person, the entry in every artefact, without names. It is
sealed under the artefacts' own secrets, so a run from elsewhere cannot destroy anything. A command finds it in the runs that it reads or
writes, in those next to them, and where `methods/.request-<hex>.json` of these runs names the new run.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OneshuiError
from ..files import LEFTOVER, clear_leftovers, is_locked, lock_output, remove, sync_folder
from ..methods.identity_store import discard_with_secrets, find_entry, find_stores
from ..methods.resume import STATE_FILES, UNFINISHED
from ..processes import locked_output, on_main
from ..reporting import SILENT, Reporter
from ..runs import DESTRUCTION, METHODS, TUNED, Run, dump_json, read_object, write_json, write_record
from ..vault import Secrets, is_id, vault_root

if TYPE_CHECKING:
    from accelerate import Accelerator

POINTERS = f"{METHODS}/.request-*.json"
REQUEST = re.compile(r"request\.[0-9a-f]{8}")  # name of a running request's lock in `methods`; a method's name contains no dot
Entries = dict[str, str]  # what was prepared for one person: id of an artefact -> id of the entry


# Killed commands


def clear_killed_work(*paths: Path, vault: Path | None = None, reporter: Reporter = SILENT) -> None:
    """Clear what killed commands left at, next to and in runs, and complete the destructions that they began.

    Failures are warnings: they do not concern the command that is about to start.

    Args:
        paths: Runs that a command reads or writes; they need not exist.
        vault: Folder of the secrets; the user's vault by default.
        reporter: For warnings, and a note about completed destructions.
    """
    vault = vault or vault_root()
    discard = discard_with_secrets(vault)
    places = [path.absolute() for path in paths]  # the parent of "." is "."
    parents, runs = ({place for place in group if _is_folder(place)} for group in ([place.parent for place in places], places))
    states = {state for run in runs for state in run.glob(f"{METHODS}/.*{UNFINISHED}")}
    for folder in sorted({vault, *parents, *runs, *(run / inside for run in runs for inside in (METHODS, TUNED)), *states}):
        try:
            clear_leftovers(folder, discard)
            if folder.name.endswith(UNFINISHED) and not any(folder.iterdir()):
                folder.rmdir()
        except (OneshuiError, OSError) as error:
            reporter.warn(f"What a killed command left in {folder} could not be removed. {_reason(error)}")
    _complete_destructions(parents, runs, vault, reporter)


def _complete_destructions(parents: Iterable[Path], runs: Iterable[Path], vault: Path, reporter: Reporter) -> None:
    """Complete what killed requests began to destroy: those whose new run is in one of some folders, or which runs point to."""
    pointers = {pointer: target for run in runs for pointer in run.glob(POINTERS) if (target := _read_pointer(pointer)) is not None}
    near = {journal.parent for parent in parents for journal in parent.glob(f"*/{DESTRUCTION}")}
    discard = discard_with_secrets(vault)
    for run in sorted(run for run in {*near, *pointers.values()} if (run / DESTRUCTION).exists()):
        if LEFTOVER.fullmatch(run.name) or is_locked(run):  # its process lives
            continue
        try:
            with lock_output(run, discard):
                destroyed = complete_destruction(run, vault, reporter)
        except (OneshuiError, OSError) as error:
            reporter.warn(f"The destruction of a person's data that {run} began is not complete. {_reason(error)}")
        else:
            reporter.note(f"Completed the destruction of the data prepared for {destroyed} of the identities that {run} forgot.")
    for pointer, run in pointers.items():
        try:
            if not run.parent.is_dir() or not ((run / DESTRUCTION).exists() or is_locked(run)):
                pointer.unlink(missing_ok=True)
        except OSError as error:
            reporter.warn(f"{pointer} could not be removed. {_reason(error)}")


@contextlib.contextmanager
def locked_run(path: Path, accelerator: Accelerator, reporter: Reporter, flag: str | None = None) -> Iterator[None]:
    """Clear what killed commands left at a run, then let no other command write it until the block ends; see `locked_output`.

    Args:
        path: The run; it need not exist.
        accelerator: For several processes.
        reporter: For warnings.
        flag: The option that names the run, for the message.

    Raises:
        OneshuiError: Another command is writing it.
    """
    on_main(accelerator, lambda: clear_killed_work(path, reporter=reporter))
    with locked_output(path, accelerator, discard_with_secrets(vault_root()), flag):
        yield


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # no file can have this name
        return False


@contextlib.contextmanager
def reserved_output(path: Path, flag: str | None = None, *kept: Path) -> Iterator[None]:
    """Let no other command write an output from before torch is imported, which takes seconds. The stage locks the same output again.

    Of several processes, only the stage's main one locks, since the others learn of a refusal through it.

    Args:
        path: The output.
        flag: The option that names it, for the message.
        kept: Runs whose artefacts keep their secrets if what a killed command left is removed.

    Raises:
        OneshuiError: Another command is writing it.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        yield
        return
    with lock_output(path, discard_with_secrets(vault_root(), *kept), flag):
        yield


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"The file system reports: {error.strerror or error} ({error.filename})."
    return str(error)


# The destruction of a person's data


def find_entries(folders: Iterable[Path], people: Iterable[str], vault: Path, reporter: Reporter) -> list[Entries]:
    """Return what was prepared for people and can still be decrypted, in every artefact of some folders and every copy of one.

    Args:
        folders: Runs and folders of artefacts.
        people: Identities.
        vault: Folder of the secrets.
        reporter: Warns about artefacts that cannot be searched.
    """
    stores = {store.resolve(): store for folder in folders for store in find_stores(folder, follow_links=True)}.values()
    found: dict[str, Entries] = {person: {} for person in sorted(people)}
    for store in stores if found else ():
        try:
            for person, entries in found.items():
                if (entry := find_entry(store, person, vault)) and entries.setdefault(*entry) != entry[1]:
                    raise OneshuiError("It names another entry than a copy of it.")
        except OneshuiError as error:
            reporter.warn(f"Data prepared for the requested identities may remain in {store}. {error}")
    return [entries for entries in found.values() if entries]


def remove_resume_states(runs: Iterable[Path], reporter: Reporter) -> None:
    """Remove the states of interrupted preparations, and copies of their files: they contain the data of all people, unencrypted."""
    for run in sorted({run.resolve() for run in runs}):
        states = [state for state in run.rglob(f".*{UNFINISHED}") if state.is_dir()]
        for state in (*states, *(file for file in run.rglob(STATE_FILES) if file.parent not in states)):
            remove(state)
            reporter.note(f"Removed {state}: the state of an interrupted preparation contains the data of all people, unencrypted.")


def write_journal(folder: Path, weights: str | None, identities: list[Entries], vault: Path) -> None:
    """Write `destruction.json` to the folder of a new run.

    Args:
        folder: The folder.
        weights: Hash of the new run's weights.
        identities: What to destroy, for each person.
        vault: Folder of the secrets.
    """
    message = _message(identities, weights)
    seals = {artefact: Secrets(vault, artefact).seal(message) for entries in identities for artefact in entries}
    write_json(folder / DESTRUCTION, {"identities": identities, "seals": seals}, private=True)


def write_pointers(runs: Iterable[Path], run: Path) -> list[Path]:
    """Write to the runs whose data a request destroys where its new run will be, unless it is next to them.

    Returns:
        The files, to be removed when the destruction is complete.
    """
    target = run.resolve()
    sources = {source.resolve() for source in runs}
    far = [source for source in sources if source.parent != target.parent and _is_writable(source)]
    pointers = [source / POINTERS.replace("*", secrets.token_hex(4)) for source in far]
    for pointer in pointers:
        write_json(pointer, {"run": str(target)}, private=True)
    return pointers


def _read_pointer(pointer: Path) -> Path | None:
    """Return the run that a file of `write_pointers` names; None if it is damaged, or names none that can exist."""
    with contextlib.suppress(OneshuiError, OSError, ValueError):
        run = Path(str(read_object(pointer).get("run")))
        (run / DESTRUCTION).exists()  # an error for a name that is too long, for example
        return run if run.is_absolute() else None
    return None


def complete_destruction(run: Path, vault: Path, reporter: Reporter) -> int:
    """Destroy what `destruction.json` of a run lists, correct the receipt, and remove the file.

    All that can be destroyed is destroyed. If something remains, so does the file. An interrupted call can be repeated.

    Args:
        run: The run, whose lock the caller holds.
        vault: Folder of the secrets.
        reporter: Warns about data that still exists.

    Returns:
        Number of people whose data was destroyed, which the receipt states.

    Raises:
        OneshuiError: The file or the record is damaged, or this vault does not contain the artefacts' secrets.
    """
    record = Run.open(run).record
    identities = _read_journal(run, record.weights, vault)
    destroyed = 0
    for entries in identities:
        try:
            for artefact, entry in entries.items():
                Secrets(vault, artefact).destroy(entry)
        except OneshuiError as error:
            reporter.warn(f"The data prepared for one of the requested identities still exists. {error}")
        else:
            destroyed += 1
    record.report["destroyed"] = destroyed
    write_record(run, record)
    if destroyed == len(identities):
        (run / DESTRUCTION).unlink()
        sync_folder(run)
    return destroyed


def _message(identities: Any, weights: str | None) -> bytes:
    return dump_json({"destroy": identities, "weights": weights})


def _read_journal(run: Path, weights: str | None, vault: Path) -> list[Entries]:
    """Return the entries of `destruction.json`.

    Raises:
        OneshuiError: The file is damaged or its seals do not match, or this vault does not contain the artefacts' secrets.
    """
    file = run / DESTRUCTION
    content = read_object(file)
    identities, seals = content.get("identities"), content.get("seals")
    if not isinstance(identities, list) or not isinstance(seals, dict) or not identities or not all(map(_is_entries, identities)):
        raise OneshuiError(f"{file} is damaged, so it is not known what to destroy; repeat the request, then remove the file.")
    for artefact in {artefact for entries in identities for artefact in entries}:
        owner = Secrets(vault, artefact)
        if not owner.exist:
            raise OneshuiError(f"The secrets of the artefact that {file} names are not on this machine ({vault}); set ONESHUI_VAULT.")
        if not owner.has_sealed(_message(identities, weights), seals.get(artefact)):
            raise OneshuiError(f"{file} was not written by a request on this machine (its seal does not match); remove it.")
    return identities


def _is_entries(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(is_id(artefact) and is_id(entry) for artefact, entry in value.items())


# Preparations and requests that exclude each other


@contextlib.contextmanager
def request_lock(runs: Iterable[Path]) -> Iterator[None]:
    """Let no preparation of some runs start until the block ends: it might write data of a person that the block destroys.

    Other requests are not affected.

    Raises:
        OneshuiError: A preparation of one of the runs is running in another process.
    """
    with contextlib.ExitStack() as held:
        for run in {run.resolve() for run in runs}:
            if not _is_writable(run):  # this user cannot prepare it
                continue
            held.enter_context(lock_output(run / METHODS / f"request.{secrets.token_hex(4)}"))
            names = [name for name in _locked_names(run / METHODS) if not name.startswith(".")]  # of artefacts, and of requests
            if running := [name for name in names if not REQUEST.fullmatch(name)]:
                raise OneshuiError(
                    f"Another process prepares method '{running[0]}' for {run} and may write data of a person whose data this request "
                    "destroys; wait until it has ended, or keep the data with --keep."
                )
        yield


def _is_writable(run: Path) -> bool:
    """Whether this user can write an artefact of a run."""
    folder = run / METHODS
    return os.access(folder if folder.exists() else run, os.W_OK | os.X_OK)


def refuse_during_request(folder: Path) -> None:
    """Check that no request destroys data of a run. Call it with the lock of the artefact held.

    Args:
        folder: The artefact's folder.

    Raises:
        OneshuiError: One does.
    """
    if any(REQUEST.fullmatch(name) for name in _locked_names(folder.parent)):
        raise OneshuiError(f"A request is destroying data in {folder.parent}, so nothing is prepared there now; wait until it has ended.")


def _locked_names(folder: Path) -> list[str]:
    """Return the names in a folder that other processes hold the lock of."""
    found = {match["name"] for entry in os.scandir(folder) if (match := LEFTOVER.fullmatch(entry.name))}
    return sorted(name for name in found if is_locked(folder / name))

"""The ledger: an append-only file of signed entries, one JSON object a line, each with the hash of the line before.

Every line is the canonical JSON of its entry, so there is one way to write it, and every other byte is a change. The first entry contains
the public key. What a killed process left of a last line is completed, if it lacks only the end of the line, or else cut, and the next
entry notes it. Whoever has the key can rewrite the whole file, and anyone can cut its end: a hash of an entry that is kept elsewhere, the
anchor, shows both.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import OneshuiError, UsageError
from ..files import open_regular, sync_folder, wait_for_lock
from ..json_text import MAX_BYTES, parse_json
from ..runs import versions
from .entries import (
    CLOCK_WENT_BACK,
    FORMAT,
    LINE_WAS_COMPLETED,
    LINE_WAS_CUT,
    Draft,
    Entry,
    check_entry,
    parse_moment,
    write_moment,
)
from .signing import SigningKey, canonical_json, has_valid_signature
from .states import Request, follow

LEDGER = "ledger.jsonl"
MAX_LINE = 256 * 2**10  # bytes; a batch of a thousand requests has 20 KB
NO_ENTRY = "0" * 64  # the hash before the first entry


@dataclass
class Chain:
    """The entries that a ledger contains, and what they amount to.

    Attributes:
        file: The ledger, for messages.
        entries: The entries whose fields are valid.
        requests: The requests by id.
        hashes: The SHA-256 of each line, valid or not.
        problems: What is wrong, a sentence each.
        torn: What follows the last complete line.
    """

    file: Path
    entries: list[Entry] = field(default_factory=list)
    requests: dict[str, Request] = field(default_factory=dict)
    hashes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    torn: bytes = b""

    @property
    def head(self) -> str:
        """The hash of the last line."""
        return self.hashes[-1] if self.hashes else NO_ENTRY

    @property
    def desk(self) -> str:
        """The desk's id."""
        return str(self.entries[0].content["desk"])

    @property
    def public_key(self) -> str | None:
        """The key of the first entry; None if that one is damaged."""
        first = self.entries[0] if self.entries else None
        return str(first.content["public_key"]) if first is not None and first.kind == "opened" else None

    def require_whole(self) -> Chain:
        """Return self.

        Raises:
            OneshuiError: An entry is damaged, missing, or was changed.
        """
        if self.problems:
            raise OneshuiError(f"{self.problems[0]} Restore the ledger from a copy; nothing is appended to it.")
        return self

    def add(self, line: bytes) -> None:
        """Examine the next line, without its end. A problem of it is recorded, and the lines after it are still examined."""
        number, previous = len(self.hashes) + 1, self.head
        self.hashes.append(hashlib.sha256(line).hexdigest())
        place = f"{self.file}, line {number}"
        try:
            value = self._parse(line, place)
            entry = Entry(number, parse_moment(value["time"]), value["kind"], value["request"], value["content"], self.head)
            self._check_place(value, entry, previous, place)
            self.entries.append(entry)
            try:
                follow(self.requests, entry)
            except UsageError as error:
                raise OneshuiError(f"{place} is not possible: {error}") from None
        except OneshuiError as error:
            self.problems.append(str(error))

    def _parse(self, line: bytes, place: str) -> Any:
        """Return the object of a line.

        Raises:
            OneshuiError: It is damaged, or is not written as entries are.
        """
        try:
            value = parse_json(line) if len(line) <= MAX_LINE else None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise OneshuiError(f"{place} is damaged: it is no entry.")
        check_entry(value, place)
        if canonical_json(value) != line:
            raise OneshuiError(f"{place} was changed: it is not written as entries are.")
        return value

    def _check_place(self, value: dict[str, Any], entry: Entry, previous: str, place: str) -> None:
        """Check that an entry follows the one before, and is signed.

        Raises:
            OneshuiError: It does not, or is not.
        """
        if entry.number != value["number"] or value["previous"] != previous:
            raise OneshuiError(f"{place} does not follow the line before: one of them was changed, or lines are missing.")
        if (entry.kind == "opened") != (entry.number == 1):
            raise OneshuiError(f"{place} is not possible: the first entry, and no other, opens the desk.")
        key = entry.content["public_key"] if entry.kind == "opened" else self.public_key
        if key is None or not has_valid_signature(value, key):
            raise OneshuiError(f"{place} was changed: its signature is not valid.")
        is_earlier = bool(self.entries) and entry.time < self.entries[-1].time
        if is_earlier != (CLOCK_WENT_BACK in value["notes"]):
            raise OneshuiError(f"{place} has a time that does not fit its note about the clock.")


def read_chain(file: Path) -> Chain:
    """Read a ledger and examine each line. A last line without an end is not examined; see `Chain.torn`.

    Raises:
        UsageError: It is missing.
        OneshuiError: It cannot be read, or is too large.
    """
    return examine(read_bytes(file), file)


def read_bytes(file: Path) -> bytes:
    """Return the bytes of a ledger.

    Raises:
        UsageError: It is missing.
        OneshuiError: It cannot be read, or is too large.
    """
    try:
        with open_regular(file) as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(f"There is no ledger at {file}; `oneshui requests receive` opens a request desk.") from None
    except OSError as error:
        raise OneshuiError(f"{file} cannot be read ({error.strerror}).") from None
    if len(data) > MAX_BYTES:
        raise OneshuiError(f"{file} has more than {MAX_BYTES // 2**20} MB, so it is no ledger.")
    return data


def examine(data: bytes, file: Path) -> Chain:
    """Return the chain of a ledger's bytes.

    Args:
        data: The bytes.
        file: The ledger, for messages.
    """
    *lines, torn = data.split(b"\n")
    chain = Chain(file, torn=torn)
    for line in lines:
        chain.add(line)
    return chain


class Ledger:
    """A ledger to which this machine can append, if its vault has the key.

    Attributes:
        file: The file.
    """

    def __init__(self, file: Path, vault: Path) -> None:
        """Name a ledger.

        Args:
            file: The file, which need not exist.
            vault: Folder of the secrets.
        """
        self.file, self._vault = file, vault

    def read(self) -> Chain:
        """Return the entries.

        Raises:
            UsageError: There is no ledger.
            OneshuiError: An entry is damaged, missing, or was changed.
        """
        return read_chain(self.file).require_whole()

    def append(self, draft: Callable[[Chain, SigningKey], Sequence[Draft]], now: datetime | None = None) -> Chain:
        """Append entries; a new ledger is opened first. No other process appends meanwhile. A call that fails leaves the file as it was.

        Args:
            draft: Returns the entries to append, from the chain as it is now. It may sign other files with the key.
            now: The time of the entries; that of the clock by default.

        Returns:
            The chain with the new entries.

        Raises:
            UsageError: An entry may not follow.
            OneshuiError: The ledger is damaged, or its key is not in the vault.
        """
        moment = write_moment(now or datetime.now(UTC))
        with wait_for_lock(self.file):
            data = read_bytes(self.file) if self.file.exists() else b""
            chain, start, notes = _repair(data, self.file)
            key = SigningKey(self._vault, chain.desk) if chain.entries else SigningKey.create(self._vault, self.file.parent)
            if chain.public_key not in (None, key.public):
                raise OneshuiError(f"The key of this desk in the vault ({self._vault}) is not the one that {self.file} names.")
            lines = []
            if not chain.entries:
                opening = Draft("opened", None, {"format": FORMAT, "desk": key.desk, "public_key": key.public})
                lines.append(_extend(chain, key, opening, moment, notes))
            for entry in draft(chain, key):
                lines.append(_extend(chain, key, entry, moment, [] if lines else notes))
            if lines:
                _write(self.file, len(data), start, b"".join(lines))
            return chain


def _repair(data: bytes, file: Path) -> tuple[Chain, bytes, list[str]]:
    """Return the chain without or with its torn line, what of the file is kept, and the note of the next entry.

    Raises:
        OneshuiError: An entry is damaged, missing, or was changed.
    """
    chain = examine(data, file).require_whole()
    if not chain.torn:
        return chain, data, []
    completed = examine(data + b"\n", file)
    if not completed.problems:
        return completed, data + b"\n", [LINE_WAS_COMPLETED]
    kept = data[: len(data) - len(chain.torn)]
    return examine(kept, file), kept, [LINE_WAS_CUT]


def _extend(chain: Chain, key: SigningKey, draft: Draft, moment: str, notes: Sequence[str]) -> bytes:
    """Add an entry to a chain and return its line.

    Raises:
        UsageError: It may not follow.
        OneshuiError: Its fields are not valid.
    """
    number, time = len(chain.hashes) + 1, parse_moment(moment)
    went_back = [CLOCK_WENT_BACK] if chain.entries and time < chain.entries[-1].time else []
    value = key.sign(
        {
            "number": number,
            "time": moment,
            "kind": draft.kind,
            "request": draft.request,
            "content": draft.content,
            "notes": [*notes, *went_back],
            "versions": versions(),
            "previous": chain.head,
        }
    )
    check_entry(value, f"The entry '{draft.kind}'")
    line = canonical_json(value)
    entry = Entry(number, time, draft.kind, draft.request, draft.content, hashlib.sha256(line).hexdigest())
    follow(chain.requests, entry)
    chain.entries.append(entry)
    chain.hashes.append(entry.hash)
    return line + b"\n"


def _write(file: Path, size: int, kept: bytes, lines: bytes) -> None:
    """Append lines to a file after its torn line was repaired, and wait until they are on the disk.

    Args:
        file: The file.
        size: Its size in bytes.
        kept: Its content after the repair, which differs at its end only.
        lines: What to append.
    """
    start = min(size, len(kept))
    handle = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
    rest = memoryview(kept[start:] + lines)
    with os.fdopen(handle, "r+b", buffering=0) as stream:  # a buffer would be written again when it is closed after a failure
        try:
            stream.truncate(start)
            stream.seek(start)
            while rest:
                rest = rest[stream.write(rest) :]
            os.fsync(handle)
        except OSError:  # no space is left, for example
            stream.truncate(start)
            raise
    sync_folder(file.parent)

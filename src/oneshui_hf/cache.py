"""Things that were made once and are found again by what they were made from.

ROOT/
  CACHE.json            makes the folder a cache; nothing is written to, or removed from, a folder that holds other things
  KIND-<hash>/          an entry: a run, or what its maker puts there. Its own files say whether it is complete
  KIND-<hash>.vault/    the secrets of what the entry holds of single people, which go when it goes
  KIND-<hash>.json      what it was made from and what it is about; written anew, and so dated, whenever the entry is used
  .locks/               one file an entry, locked while a process works with it; the lock ends with the process, however that ends
  .KIND-<hash>.*        scratch of processes at work, or killed ones

Local, never published: what an entry was made from may tell paths.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import OneshuiError, UsageError, did_you_mean
from .reporting import SILENT, Reporter
from .runs import dump_json, read_object, write_json

if TYPE_CHECKING:
    from accelerate import Accelerator
    from filelock import BaseFileLock

MARKER = "CACHE.json"
LOCKS = ".locks"
VAULT = ".vault"
FORMAT = 1
WHAT = "models and preparations kept by oneshui"  # in the marker: other programs, too, may call a file so
KINDS = ("original", "oracle", "artefact", "unlearned")
POLL = 0.5  # seconds between two tries for a lock: short beside any training, long beside a look at a file
DAY = 86400.0

NAME = re.compile(rf"\.?(?P<key>({'|'.join(KINDS)})-[0-9a-f]{{20}})(\..+)?")  # of everything that belongs to an entry


@dataclass(frozen=True)
class Entry:
    """An entry as it lies in a cache.

    Attributes:
        key: Its folder's name.
        kind: One of `KINDS`.
        about: What its maker tells of it.
        bytes: The size of its files.
        last_used: When it was last entered, in seconds since 1970.
        locked: Whether a process works with it.
    """

    key: str
    kind: str
    about: dict[str, Any]
    bytes: int
    last_used: float
    locked: bool


@dataclass(frozen=True)
class Cleared:
    """What was removed from a cache, or would be.

    Attributes:
        entries: How many entries.
        bytes: The size of their files and of what killed processes left behind.
        in_use: How many entries stay because a process works with them.
    """

    entries: int
    bytes: int
    in_use: int


def cache_root(given: str | None = None) -> Path:
    """Return where things are kept: `given`, else $ONESHUI_CACHE, else $XDG_CACHE_HOME/oneshui, else ~/.cache/oneshui."""
    if named := given or os.environ.get("ONESHUI_CACHE"):
        return Path(named).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "oneshui"


class Cache:
    """A cache folder. It is made when the first entry is."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def key(self, kind: str, made_from: Mapping[str, Any]) -> str:
        """Return the name of what is made from this: the kind and 80 bits of a SHA-256.

        Raises:
            UsageError: The kind is unknown.
        """
        _check(kind)
        return f"{kind}-{hashlib.sha256(dump_json(dict(made_from))).hexdigest()[:20]}"

    @contextlib.contextmanager
    def entry(
        self,
        kind: str,
        made_from: Mapping[str, Any],
        about: Mapping[str, Any] | None = None,
        accelerator: Accelerator | None = None,
        reporter: Reporter = SILENT,
    ) -> Iterator[Path]:
        """Yield the folder of an entry, which nobody else works with until the block is left.

        The folder may be missing, half made or complete; its maker can tell and this cannot. Waits while another process works with
        the entry. A block must not enter the same entry once more: it would wait for itself.

        Args:
            kind: One of `KINDS`.
            made_from: All that decides what the entry is, as JSON.
            about: What `entries` tells of it; no part of the key.
            accelerator: With several processes: all of them enter and leave together, the main one holds the lock for all.
            reporter: Is told once where there is a wait.

        Raises:
            UsageError: The kind is unknown, or the root is a file or a folder that holds other things.
        """
        key = self.key(kind, made_from)
        told = {"key": key, "kind": kind, "made_from": dict(made_from), "about": dict(about or {})}
        lock = self._lock(key)  # taken by the main process alone

        def enter() -> bool:
            self._make()
            if not _taken(lock):
                return False
            write_json(self._told(key), told)
            return True

        waiting = False
        try:
            while not _on_main_for_all(enter, accelerator):
                if not waiting:
                    reporter.note(f"Another process works with the same {kind} ({key}); waiting for it.")
                    waiting = True
                time.sleep(POLL)  # between collectives, not inside one: a wait may outlast their time limit
            yield self.root / key
            if accelerator is not None:
                accelerator.wait_for_everyone()
        finally:
            lock.release()

    def entries(self) -> list[Entry]:
        """Return what is kept, the last used first.

        Raises:
            UsageError: The root is a file, or a folder that holds other things.
        """
        found = []
        for key in self._keys():
            with self._alone(key) as alone:
                locked = not alone
            if parts := self._parts(key):  # another process may have removed it by now
                found.append(Entry(key, _kind(key), self._about(key), _bytes(parts), self._last_used(key), locked))
        return sorted(found, key=lambda entry: (-entry.last_used, entry.key))

    def clear(self, kinds: Collection[str] | None = None, older_than_days: float | None = None, *, dry_run: bool = False) -> Cleared:
        """Remove entries that no process works with, and what killed processes left behind, however old that is.

        Args:
            kinds: Which kinds; all by default.
            older_than_days: Only entries that were last used so many days ago, or earlier.
            dry_run: Remove nothing, only tell.

        Raises:
            UsageError: A kind is unknown, the days are negative, or the root is a file or a folder that holds other things.
        """
        for kind in kinds or ():
            _check(kind)
        if older_than_days is not None and not older_than_days >= 0:
            raise UsageError(f"Entries cannot be {older_than_days} days old; give a number from 0 on.")
        limit = math.inf if older_than_days is None else time.time() - older_than_days * DAY
        entries = size = in_use = 0
        for key in self._keys():
            if kinds and _kind(key) not in kinds:
                continue
            with self._alone(key) as alone:
                parts = self._parts(key)
                chosen = bool(parts) and self._last_used(key) <= limit
                if not alone:
                    in_use += chosen
                    continue
                entries += chosen
                size += _bytes([*self._scratch(key), *(parts if chosen else ())])
                if not dry_run:
                    self._remove(key, entry=chosen)
        return Cleared(entries, size, in_use)

    def _is_made(self) -> bool:
        """Return whether this is a cache; False where nothing is there yet.

        Raises:
            UsageError: It is a file, or a folder that holds other things.
            OneshuiError: A later version made it.
        """
        for place in (self.root, *self.root.parents):
            if place.exists() and not place.is_dir():
                raise UsageError(f"{place} is a file; name another folder for the cache.")
        if not self.root.is_dir():
            return False
        # Listed before the marker is looked for: the process that makes the cache writes the marker before all else.
        names = [path.name for path in self.root.iterdir() if not path.name.startswith(f".{MARKER}.")]
        marker = self.root / MARKER
        if not marker.exists() and not names:
            return False
        found = read_object(marker) if marker.is_file() else {}
        if found.get("what") != WHAT:
            raise UsageError(f"{self.root} holds other things than a cache, so it is left alone; name another folder, or an empty one.")
        if found.get("format") != FORMAT:
            raise OneshuiError(f"{marker} has format {found.get('format')}, this version reads {FORMAT}: upgrade oneshui-hf.")
        return True

    def _make(self) -> None:
        if not self._is_made():
            self.root.mkdir(parents=True, exist_ok=True)
            write_json(self.root / MARKER, {"what": WHAT, "format": FORMAT})
        (self.root / LOCKS).mkdir(exist_ok=True)

    def _lock(self, key: str) -> BaseFileLock:
        from filelock import FileLock

        # The file stays when the lock is released: removing it would let two processes lock two files of one name.
        return FileLock(self.root / LOCKS / f"{key}.lock")

    @contextlib.contextmanager
    def _alone(self, key: str) -> Iterator[bool]:
        """Yield whether no other process works with an entry; none begins to before the block is left."""
        (self.root / LOCKS).mkdir(exist_ok=True)
        lock = self._lock(key)
        try:
            yield _taken(lock)
        finally:
            lock.release()

    def _keys(self) -> list[str]:
        """Return the keys of all entries, also of those of which only scratch is left."""
        found = (NAME.fullmatch(path.name) for path in (self.root.iterdir() if self._is_made() else ()))
        return sorted({match["key"] for match in found if match})

    def _told(self, key: str) -> Path:
        return self.root / f"{key}.json"

    def _parts(self, key: str) -> list[Path]:
        return [path for path in (self.root / key, self.root / f"{key}{VAULT}", self._told(key)) if path.exists()]

    def _scratch(self, key: str) -> list[Path]:
        return [path for path in self.root.iterdir() if path.name.startswith(f".{key}.")]

    def _about(self, key: str) -> dict[str, Any]:
        try:
            about = read_object(self._told(key)).get("about")
        except OneshuiError:  # somebody removed or damaged it; the entry itself may be sound
            return {}
        return about if isinstance(about, dict) else {}

    def _last_used(self, key: str) -> float:
        for stamp in (self._told(key), self.root / key):
            with contextlib.suppress(FileNotFoundError):
                return stamp.stat().st_mtime
        return 0.0

    def _remove(self, key: str, *, entry: bool) -> None:
        """Remove an entry's scratch and, where `entry`, the entry itself: out of sight at once, whatever happens while files go."""
        if entry:
            aside = Path(tempfile.mkdtemp(dir=self.root, prefix=f".{key}."))
            for part in self._parts(key):
                part.rename(aside / part.name)
        for path in self._scratch(key):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _check(kind: str) -> None:
    if kind not in KINDS:
        raise UsageError(f"A cache keeps no '{kind}'.{did_you_mean(kind, KINDS)}")


def _kind(key: str) -> str:
    return key.partition("-")[0]


def _taken(lock: BaseFileLock) -> bool:
    """Take a lock if nobody holds it; return whether it was taken."""
    from filelock import Timeout

    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def _bytes(paths: Iterable[Path]) -> int:
    """Return the size of files, and of all files in folders. One that vanishes meanwhile does not count."""
    size = 0
    for path in paths:
        inside = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
        for file in (path, *inside):
            with contextlib.suppress(FileNotFoundError):
                found = file.lstat()
                size += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return size


def _on_main_for_all(work: Callable[[], bool], accelerator: Accelerator | None) -> bool:
    """Do `work` on the main process; return on all processes what it returned, and raise on all what it raised."""
    if accelerator is None or accelerator.num_processes == 1:
        return work()
    from accelerate.utils import broadcast_object_list

    told: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            told[0] = work()
        except Exception as error:  # whatever it is: the others would wait for ever
            told[1] = error
    broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    return bool(told[0])

"""A cache of models and preparations, each stored under a hash of its inputs.

ROOT/
  CACHE.json            marks the folder as a cache; nothing is written to or removed from a folder without it that contains other files
  KIND-<hash>/          an entry: a run, or other files that its creator writes. Those files state whether it is complete
  KIND-<hash>.vault/    the secrets of the entry's per-identity data, deleted together with the entry
  KIND-<hash>.json      the entry's inputs and description; rewritten on every use, so its date is the last use
  .locks/               one file per entry, locked while a process uses the entry; the lock ends with the process, even if it is killed
  .KIND-<hash>.*        locks, and temporary files of running or killed processes; see `files`

Local, never published: the inputs of an entry may contain paths.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import OneshuiError, UsageError, did_you_mean
from .files import Discard, remove
from .option_values import expand_home
from .processes import on_main
from .reporting import SILENT, Reporter
from .runs import dump_json, read_object, restore_replaced, write_json

if TYPE_CHECKING:
    from accelerate import Accelerator
    from filelock import BaseFileLock

MARKER = "CACHE.json"
LOCKS = ".locks"
VAULT = ".vault"
FORMAT = 1
WHAT = "models and preparations kept by oneshui"  # in the marker file: other programs may use the same file name
KINDS = ("original", "oracle", "fold", "artefact", "unlearned")
POLL = 0.5  # seconds between two attempts to lock: short compared with a training, long compared with a file access
DAY = 86400.0

NAME = re.compile(rf"\.?(?P<key>({'|'.join(KINDS)})-[0-9a-f]{{20}})(\..+)?")  # every file and folder of an entry


@dataclass(frozen=True)
class Entry:
    """An entry of a cache.

    Attributes:
        key: Name of its folder.
        kind: One of `KINDS`.
        about: A description given by its creator.
        bytes: Size of its files.
        last_used: Time of the last use, in seconds since 1970.
        locked: Whether a process is using it.
    """

    key: str
    kind: str
    about: dict[str, Any]
    bytes: int
    last_used: float
    locked: bool


@dataclass(frozen=True)
class ClearResult:
    """What was removed from a cache, or would be removed.

    Attributes:
        entries: Number of entries removed.
        bytes: Size of their files and of temporary files of killed processes.
        in_use: Number of entries kept because a process is using them.
    """

    entries: int
    bytes: int
    in_use: int


def cache_root(given: str | None = None) -> Path:
    """Return the cache folder: `given`, else $ONESHUI_CACHE, else $XDG_CACHE_HOME/oneshui, else ~/.cache/oneshui."""
    if chosen := given or os.environ.get("ONESHUI_CACHE"):
        return Path(expand_home(chosen))
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(expand_home(caches)) if caches else Path.home() / ".cache") / "oneshui"


class Cache:
    """A cache folder. It is created with its first entry.

    Args:
        root: The folder.
        discard: Removes what killed processes left.
    """

    def __init__(self, root: str | Path, discard: Discard = remove) -> None:
        self.root, self._discard = Path(root), discard

    def key(self, kind: str, made_from: Mapping[str, Any]) -> str:
        """Return the key of an entry: its kind and 80 bits of the SHA-256 of its inputs.

        Raises:
            UsageError: The kind is unknown.
        """
        _require_kind(kind)
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
        """Lock an entry and yield its folder; see `hold`. The folder may be missing, incomplete or complete; the caller checks that.

        Args:
            kind: One of `KINDS`.
            made_from: All inputs that determine the entry, as JSON.
            about: A description for `entries`; not part of the key.
            accelerator: With several processes, all of them enter and leave together; the main process holds the lock.
            reporter: Receives one note if the call has to wait.

        Raises:
            UsageError: The kind is unknown, or the root is a file or a folder that contains other files.
        """
        key = self.key(kind, made_from)
        description = {"key": key, "kind": kind, "made_from": dict(made_from), "about": dict(about or {})}
        with self.hold(key, accelerator, reporter) as folder:
            on_main(accelerator, lambda: write_json(self._description_file(key), description, private=True))
            yield folder

    @contextlib.contextmanager
    def hold(self, key: str, accelerator: Accelerator | None = None, reporter: Reporter = SILENT) -> Iterator[Path]:
        """Lock an entry and yield its folder; no other process can use the entry until the block ends.

        Waits while another process uses the entry. A block must not hold the same entry again: it would wait for itself.

        Args:
            key: Its key.
            accelerator: As in `entry`.
            reporter: As in `entry`.

        Raises:
            UsageError: The root is a file or a folder that contains other files.
        """
        lock = self._lock(key)  # acquired by the main process only

        def enter() -> bool:
            self._create()
            if not _try_acquire(lock):
                return False
            restore_replaced(self.root)
            return True

        waiting = False
        try:
            while not on_main(accelerator, enter):
                if not waiting:
                    reporter.note(f"Another process is using the same {_kind(key)} ({key}); waiting for it.")
                    waiting = True
                time.sleep(POLL)  # between collective operations, not inside one: a wait may exceed their time limit
            yield self.root / key
            if accelerator is not None:
                accelerator.wait_for_everyone()
        finally:
            lock.release()

    def entries(self) -> list[Entry]:
        """Return all entries, most recently used first.

        Raises:
            UsageError: The root is a file, or a folder that contains other files.
        """
        entries = []
        for key in self._keys():
            with self._try_lock(key) as acquired:
                locked = not acquired
            if paths := self._paths(key):  # another process may have removed the entry by now
                entries.append(Entry(key, _kind(key), self._about(key), _size(paths), self._last_used(key), locked))
        return sorted(entries, key=lambda entry: (-entry.last_used, entry.key))

    def clear(
        self,
        kinds: Collection[str] | None = None,
        older_than_days: float | None = None,
        *,
        dry_run: bool = False,
        selects: Callable[[Sequence[Path]], bool] = lambda paths: True,
    ) -> ClearResult:
        """Remove entries that no process is using, and temporary files of killed processes, of any age.

        Args:
            kinds: Kinds to remove; all by default.
            older_than_days: Remove only entries last used at least this many days ago.
            dry_run: Remove nothing, only return what would be removed.
            selects: Remove only entries for whose files and folders it returns True.

        Raises:
            UsageError: A kind is unknown, the days are negative, or the root is a file or a folder that contains other files.
        """
        for kind in kinds or ():
            _require_kind(kind)
        if older_than_days is not None and not older_than_days >= 0:
            raise UsageError(f"Entries cannot be {older_than_days} days old; give a number that is 0 or more.")
        limit = math.inf if older_than_days is None else time.time() - older_than_days * DAY
        entries = size = in_use = 0
        for key in self._keys():
            if kinds and _kind(key) not in kinds:
                continue
            with self._try_lock(key) as acquired:
                paths = self._paths(key)
                chosen = bool(paths) and self._last_used(key) <= limit and selects(paths)
                if not acquired:
                    in_use += chosen
                    continue
                entries += chosen
                size += _size([*self._temporary(key), *(paths if chosen else ())])
                if not dry_run:
                    self._remove(key, entry=chosen)
        return ClearResult(entries, size, in_use)

    def _exists(self) -> bool:
        """Return whether the root is a cache; False if it is missing or empty.

        Raises:
            UsageError: It is a file, or a folder that contains other files.
            OneshuiError: A later version created it.
        """
        for path in (self.root, *self.root.parents):
            if path.exists() and not path.is_dir():
                raise UsageError(f"{path} is a file; name another folder for the cache.")
        if not self.root.is_dir():
            return False
        # List the folder before checking for the marker: a process that creates the cache writes the marker first.
        names = [path.name for path in self.root.iterdir() if not path.name.startswith(f".{MARKER}.")]
        marker = self.root / MARKER
        if not marker.exists() and not names:
            return False
        found = read_object(marker) if marker.is_file() else {}
        if found.get("what") != WHAT:
            raise UsageError(
                f"{self.root} is not a cache and contains other files, so nothing was changed; name another folder, or an empty one."
            )
        if found.get("format") != FORMAT:
            raise OneshuiError(f"{marker} has format {found.get('format')}, this version reads {FORMAT}: upgrade oneshui-hf.")
        return True

    def _create(self) -> None:
        if not self._exists():
            self.root.parent.mkdir(parents=True, exist_ok=True)
            self.root.mkdir(mode=0o700, exist_ok=True)  # the inputs of entries contain paths, and runs name people
            write_json(self.root / MARKER, {"what": WHAT, "format": FORMAT})
        (self.root / LOCKS).mkdir(exist_ok=True)

    def _lock(self, key: str) -> BaseFileLock:
        from filelock import FileLock

        # The file is kept when the lock is released: deleting it would let two processes lock two files of the same name.
        return FileLock(self.root / LOCKS / f"{key}.lock")

    @contextlib.contextmanager
    def _try_lock(self, key: str) -> Iterator[bool]:
        """Yield whether the entry could be locked; if so, no other process can use it until the block ends."""
        (self.root / LOCKS).mkdir(exist_ok=True)
        lock = self._lock(key)
        try:
            yield _try_acquire(lock)
        finally:
            lock.release()

    def _keys(self) -> list[str]:
        """Return the keys of all entries, including those with temporary files only."""
        found = (NAME.fullmatch(path.name) for path in (self.root.iterdir() if self._exists() else ()))
        return sorted({match["key"] for match in found if match})

    def _description_file(self, key: str) -> Path:
        return self.root / f"{key}.json"

    def _paths(self, key: str) -> list[Path]:
        return [path for path in (self.root / key, self.root / f"{key}{VAULT}", self._description_file(key)) if path.exists()]

    def _temporary(self, key: str) -> list[Path]:
        return [path for path in self.root.iterdir() if path.name.startswith(f".{key}.")]

    def _about(self, key: str) -> dict[str, Any]:
        try:
            about = read_object(self._description_file(key)).get("about")
        except OneshuiError:  # the file was removed or damaged; the entry itself may be intact
            return {}
        return about if isinstance(about, dict) else {}

    def _last_used(self, key: str) -> float:
        for path in (self._description_file(key), self.root / key):
            with contextlib.suppress(FileNotFoundError):
                return path.stat().st_mtime
        return 0.0

    def _remove(self, key: str, *, entry: bool) -> None:
        """Remove an entry's temporary files and, if `entry`, the entry itself. It is hidden first, so a failure leaves no partial entry."""
        if entry:
            hidden = Path(tempfile.mkdtemp(dir=self.root, prefix=f".{key}."))
            for path in self._paths(key):
                path.rename(hidden / path.name)
        for path in self._temporary(key):
            self._discard(path)


def _require_kind(kind: str) -> None:
    if kind not in KINDS:
        raise UsageError(f"A cache has no entries of kind '{kind}'.{did_you_mean(kind, KINDS)}")


def _kind(key: str) -> str:
    return key.partition("-")[0]


def _try_acquire(lock: BaseFileLock) -> bool:
    """Acquire a lock if it is free; return whether it was acquired."""
    from filelock import Timeout

    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def _size(paths: Iterable[Path]) -> int:
    """Return the total size in bytes of files, and of all files in folders. A file that is removed meanwhile does not count."""
    size = 0
    for path in paths:
        inside = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
        for file in (path, *inside):
            with contextlib.suppress(FileNotFoundError):
                found = file.lstat()
                size += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return size

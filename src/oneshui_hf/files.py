"""Durable and atomic writes of files and folders, one writer for each, and removal of what killed processes left.

A file or folder NAME is written next to its place and renamed. While a process writes it, these are in the same folder:

  .NAME.oneshui-lock       locked by the writer; the lock ends with its process, even if it is killed
  .NAME.<hex>.partial      the new file or folder, not complete yet
  .NAME.<hex>.replaced     the old folder, from just before the rename until it is deleted

So what is left of a NAME whose lock is free belongs to a killed process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import OneshuiError

if TYPE_CHECKING:
    from filelock import BaseFileLock

PARTIAL, REPLACED, LOCK = "partial", "replaced", "oneshui-lock"
LEFTOVER = re.compile(rf"\.(?P<name>.+)\.(?:{LOCK}|[0-9a-f]{{8}}\.(?:{PARTIAL}|{REPLACED}))", re.DOTALL)
FOREVER = -1
PROBE = 0.5  # seconds to wait for a lock: `is_locked` and `clear_leftovers` of another process hold it for a moment

_written_here: set[Path] = set()  # partial and replaced files and folders of this process, which are in use

Discard = Callable[[Path], None]


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with its contents."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def open_regular(file: Path) -> BufferedReader:
    """Open a file to read its bytes. It must be a regular one: a pipe would wait for a writer, and a device may have no end.

    Raises:
        FileNotFoundError: It is missing.
        OneshuiError: It is something else than a regular file, or a link that leads to itself.
    """
    try:
        handle = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except NotADirectoryError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file)) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OneshuiError(f"{file} is a link that leads to itself.") from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OneshuiError(f"{file} is not a regular file.")
    return os.fdopen(handle, "rb")


def write_bytes(file: Path, data: bytes, *, private: bool = False) -> None:
    """Write a file atomically and durably: readers see the old file or the complete new one, also after a power cut.

    Args:
        file: The file.
        data: Its new content.
        private: Whether only the owner may read it; otherwise the user's umask decides.
    """
    with _locked(file, wait=FOREVER), _partial(file) as partial:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
        sync_folder(file.parent)


@contextlib.contextmanager
def new_folder(path: Path, *, replace: bool = False, private: bool = False, discard: Discard = remove) -> Iterator[Path]:
    """Yield an empty folder next to `path`. It is renamed to `path` if the block succeeds and removed if it fails.

    Everything in it is on the disk before the rename. If the process is killed, `clear_leftovers` restores a replaced folder or removes it.

    Args:
        path: The folder to create.
        replace: Replace a folder of this name.
        private: Whether only the owner may enter it; otherwise the user's umask decides.
        discard: Removes the replaced folder, or the new one if the block fails.

    Raises:
        OneshuiError: Another process writes this folder, or has created it meanwhile.
    """
    with lock_output(path, discard), _partial(path, discard) as partial:
        path = _place(path)
        partial.mkdir(mode=0o700 if private else 0o777)
        yield partial
        _sync_contents(partial)
        if not replace and path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise OneshuiError(f"{path} exists: another process created it meanwhile; name another folder.")
        replaced = _next_to(path, REPLACED)
        _written_here.add(replaced)
        try:
            if path.exists():
                path.rename(replaced)
            try:
                partial.rename(path)
            except BaseException:
                if replaced.exists():
                    replaced.rename(path)
                raise
            sync_folder(path.parent)
            if replaced.exists():
                discard(replaced)
        finally:
            _written_here.discard(replaced)


@contextlib.contextmanager
def scratch_folder(folder: Path, purpose: str) -> Iterator[Path]:
    """Yield an empty folder inside `folder` that only the owner may enter. It is removed when the block ends.

    It is named so that `clear_leftovers` removes it if the process is killed.
    """
    path = folder / f"{purpose}-{secrets.token_hex(4)}"
    with _locked(path, wait=PROBE), _partial(path) as partial:
        partial.mkdir(mode=0o700)
        yield partial


@contextlib.contextmanager
def lock_output(path: Path, discard: Discard = remove, flag: str | None = None) -> Iterator[None]:
    """Let no other process write a file or folder until the block ends; then clear what killed writers of it left.

    A process may enter it several times. Missing parent folders are created, and removed again if they are still empty at the end.

    Args:
        path: The file or folder.
        discard: Removes a folder that a killed process left.
        flag: The option that names the path, for the message.

    Raises:
        OneshuiError: Another process is writing it, or has written it during this call.
    """
    before = _identity(path)
    with _new_parents(path.parent), _locked(path, wait=PROBE, flag=flag):
        if _identity(path) != before:
            raise OneshuiError(f"Another process has just written {path}; look at it before you repeat this command.")
        _clear(_place(path), discard)
        yield


@contextlib.contextmanager
def wait_for_lock(path: Path) -> Iterator[None]:
    """Let no other process write a file until the block ends; first wait for one that is writing it.

    A process may enter it several times. For files to which many processes append, each in a moment.
    """
    with _locked(path, wait=FOREVER):
        yield


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what distinguishes a file or folder from one that replaces it; None if there is none."""
    with contextlib.suppress(OSError, ValueError):
        found = path.lstat()
        return found.st_dev, found.st_ino
    return None


def is_locked(path: Path) -> bool:
    """Whether another process is writing a file or folder."""
    try:
        with _locked(path, wait=0):
            return False
    except OneshuiError:
        return True


def clear_leftovers(folder: Path, discard: Discard = remove) -> int:
    """Remove what killed processes left in a folder; a folder that was being replaced is restored.

    Args:
        folder: The folder; not those inside it.
        discard: Removes a folder that a killed process left.

    Returns:
        How many files and folders were removed.
    """
    cleared = 0
    try:
        found = {match["name"] for entry in os.scandir(folder) if (match := LEFTOVER.fullmatch(entry.name))}
    except (FileNotFoundError, NotADirectoryError):
        return 0
    for name in sorted(found):
        with contextlib.suppress(OneshuiError), _locked(folder / name, wait=0):  # its writer lives
            cleared += _clear(folder / name, discard)
    return cleared


def sync_folder(folder: Path) -> None:
    """Wait until the names of a folder are on the disk."""
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_contents(folder: Path) -> None:
    """Wait until all files in a folder, and their names, are on the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with (Path(parent) / name).open("rb") as stream:
                os.fsync(stream.fileno())
        sync_folder(Path(parent))


def _clear(path: Path, discard: Discard) -> int:
    """Restore or remove what is left of `path`, whose lock this process holds; return how many were removed."""
    pattern = re.compile(re.escape(f".{path.name}.") + rf"[0-9a-f]{{8}}\.(?:{PARTIAL}|{REPLACED})")
    left = [path.parent / entry.name for entry in os.scandir(path.parent) if pattern.fullmatch(entry.name)]
    left = [leftover for leftover in left if leftover not in _written_here]
    replaced = [leftover for leftover in left if leftover.name.endswith(REPLACED)]
    if replaced and not path.exists():
        replaced[0].rename(path)
        sync_folder(path.parent)
        left.remove(replaced[0])
    for leftover in left:
        discard(leftover)
    return len(left)


@contextlib.contextmanager
def _partial(path: Path, discard: Discard = remove) -> Iterator[Path]:
    """Yield the name of a new file or folder next to `path`; what still has this name at the end is removed."""
    partial = _next_to(path, PARTIAL)
    _written_here.add(partial)
    try:
        yield partial
    finally:
        if partial.exists():
            discard(partial)
        _written_here.discard(partial)


def _place(path: Path) -> Path:
    """Return a path with its last name, which "." and ".." lack; a link itself, not what it leads to."""
    return path.parent.resolve() / path.name if path.name not in ("", "..") else path.resolve()


def _next_to(path: Path, kind: str) -> Path:
    place = _place(path)
    return place.with_name(f".{place.name}.{secrets.token_hex(4)}.{kind}")


@contextlib.contextmanager
def _locked(path: Path, *, wait: float, flag: str | None = None) -> Iterator[None]:
    """Hold the lock of a file or folder.

    Args:
        path: The file or folder.
        wait: For how many seconds to wait for another process that holds it.
        flag: As in `lock_output`.

    Raises:
        OneshuiError: Another process still holds it.
    """
    from filelock import Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock(path)
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        alternative = f", or name another {flag}" if flag else ""
        raise OneshuiError(f"Another process is writing {path}; wait until it has ended{alternative}.") from None
    try:
        yield
    finally:
        if lock.lock_counter == 1:  # held by nobody else in this process
            with contextlib.suppress(OSError):
                Path(lock.lock_file).unlink()  # before the release: who opened it meanwhile sees that it is gone and opens another
        lock.release()


def _lock(path: Path) -> BaseFileLock:
    from filelock import FileLock

    place = _place(path)
    # One object for each file, so that a process that holds a lock may enter it again.
    return FileLock(place.with_name(f".{place.name}.{LOCK}"), is_singleton=True, thread_local=False)


@contextlib.contextmanager
def _new_parents(folder: Path) -> Iterator[None]:
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for place in missing:
            with contextlib.suppress(OSError):  # it has contents now
                place.rmdir()


def link_or_copy(file: Path, target: Path) -> None:
    """Give a large file a second name, where the file system has this, instead of copying it. It is only read."""
    with contextlib.suppress(OSError):
        os.link(file, target, follow_symlinks=False)
        return
    shutil.copyfile(file, target, follow_symlinks=False)

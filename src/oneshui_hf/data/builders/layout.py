"""Finds the files of a data set below a folder, and hashes them to detect changes."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import OneshuiError, UsageError
from ...option_values import expand_home
from ...runs import MANIFEST, RECORD
from ..images import SUFFIXES


@dataclass(frozen=True)
class Layout:
    """The expected files of a data set below its folder.

    Attributes:
        name: The data set's name on the command line.
        home: Usual name of its folder inside a folder of several data sets.
        images: Its image folders.
        files: Its annotation files, each with all its possible names.
        content: What the folder contains, for error messages.
    """

    name: str
    home: str
    images: tuple[str, ...]
    files: tuple[tuple[str, ...], ...]
    content: str

    def locate(self, data_dir: str | Path | None) -> Path:
        """Return the folder of the data set: the given folder, or `home` inside it.

        Raises:
            UsageError: No folder is given, or it does not exist.
            OneshuiError: The folder is a level too high or too low (the message names the right one), or files are missing.
        """
        if not data_dir:
            raise UsageError(f"Data set '{self.name}' is read from a folder on disk: name it with --data-dir. It contains: {self.content}.")
        given = Path(expand_home(str(data_dir)))
        if not given.is_dir():
            raise UsageError(f"--data-dir {data_dir} is not a folder. That of '{self.name}' contains: {self.content}.")
        partial = [folder for folder in (given, given / self.home) if self._has_any(folder)]
        for folder in partial:
            if not self._missing(folder):
                return folder
        if hint := self.suggest_folder(given):
            raise OneshuiError(hint)
        if partial:
            raise OneshuiError(f"{partial[0]} lacks {' and '.join(self._missing(partial[0]))}. Expected: {self.content}.")
        expected = f"folder {self.images[0]}/" if self.images else self.files[0][0]
        raise OneshuiError(f"{given} contains no {expected}. Expected: {self.content}.")

    def suggest_folder(self, given: Path) -> str | None:
        """Return a sentence that names the data set's folder if it is one or two levels above or below the given one."""
        for folder in given.absolute().parents[:2]:
            if self.is_complete(folder):
                return f"{given} is inside the data set's folder, a level too low; name {folder} instead."
        for folder in _below(given):
            if self.is_complete(folder):
                return f"{given} is above the data set's folder, a level too high; name {folder} instead."
        return None

    def find(self, folder: Path, names: Sequence[str]) -> Path | None:
        """Return the first of these files that exists, or None."""
        return next((folder / name for name in names if (folder / name).is_file()), None)

    def require(self, folder: Path, names: Sequence[str]) -> Path:
        """Return the first of these files that exists. One does, since `locate` checks this."""
        return self.find(folder, names) or folder / names[0]

    def _has_any(self, folder: Path) -> bool:
        """Return whether any image folder or annotation file exists."""
        return any((folder / name).is_dir() for name in self.images) or any(self.find(folder, names) for names in self.files)

    def _missing(self, folder: Path) -> list[str]:
        return [names[0] for names in self.files if self.find(folder, names) is None]

    def is_complete(self, folder: Path) -> bool:
        """Return whether all annotation files and an image folder exist."""
        has_images = not self.images or any((folder / name).is_dir() for name in self.images)
        return has_images and not self._missing(folder)


def _below(folder: Path) -> Iterator[Path]:
    """Yield the folders one and two levels below: at most a hundred per folder, without hidden and unreadable ones."""
    for current, names, _ in os.walk(folder):
        depth = len(Path(current).relative_to(folder).parts)
        names[:] = sorted(name for name in names if not name.startswith("."))[: 100 if depth < 2 else 0]
        if depth:
            yield Path(current)


def hash_files(files: Sequence[Path | None], photos: Sequence[tuple[Path, Collection[str]]]) -> str:
    """Return a hash of the annotation files' contents and of the photos' names, sizes and modification times.

    Other files in the folders do not count: runs, notes, thumbnails.

    Args:
        files: The annotation files.
        photos: Folders, each with the paths below it of the photos that the annotation files name.
    """
    digest = hashlib.sha256()
    for file in filter(None, files):
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    for folder, names in photos:
        for name, entry in walk_files(folder):
            if name not in names:
                continue
            with contextlib.suppress(FileNotFoundError):  # removed in the meantime
                status = entry.stat()
                digest.update(os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"))
        digest.update(b"\0")
    return digest.hexdigest()[:32]


def first_words(file: Path) -> set[str]:
    """Return the first word of every line of an annotation file: the photos that it names, and its header."""
    words = set()
    for line in file.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines():
        cells = line.split(b",", 1) if b"," in line else line.split(None, 1)
        if cells:
            words.add(cells[0].strip().strip(b'"').decode(errors="replace"))
    return words


def walk_files(folder: Path, *, skip_runs: bool = False) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield (relative path, entry) of every file below a folder, in the same order on every machine.

    Links are followed, each folder is visited once, and broken links are ignored. `skip_runs` leaves out the folders of runs and benchmarks
    below it.
    """
    stack: list[str] = [str(folder)]
    visited: set[Path] = set()
    start = len(os.path.join(folder, ""))  # noqa: PTH118 - of 200,000 paths, cutting the text is faster than relative_to
    while stack:
        current = stack.pop()
        if (real := Path(current).resolve()) in visited or not real.is_dir():
            continue
        if skip_runs and visited and any((real / name).is_file() for name in (RECORD, MANIFEST)):
            continue
        visited.add(real)
        with os.scandir(current) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                with contextlib.suppress(OSError):  # a link to itself
                    if entry.is_dir():
                        stack.append(entry.path)
                    elif entry.is_file():
                        yield entry.path[start:], entry


def file_names(folder: Path) -> set[str]:
    """Return the relative paths of all files below a folder."""
    return {name for name, _ in walk_files(folder)}


def photo_names(folder: Path) -> set[str]:
    """Return the relative paths of all photos below a folder, without those in runs."""
    return {name for name, _ in walk_files(folder, skip_runs=True) if name.lower().endswith(SUFFIXES)}

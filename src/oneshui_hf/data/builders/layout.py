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

DATA_VARIABLE = "ONESHUI_DATA"  # a folder of data sets
PLACES = (f"${DATA_VARIABLE}", ".", "./data")  # where the folder of a named data set is looked for without --data-dir, in this order


@dataclass(frozen=True)
class HubCopy:
    """A copy of a data set on the Hub, which `datasets` reads. Its photos have other names than those on disk.

    Attributes:
        repo_id: The repository.
        size: Size of its files, in words.
    """

    repo_id: str
    size: str


@dataclass(frozen=True)
class Layout:
    """The expected files of a data set below its folder.

    Attributes:
        name: The data set's name on the command line.
        home: Usual name of its folder inside a folder of several data sets.
        images: Its image folders.
        files: Its annotation files, each with all its possible names.
        content: What the folder contains, for error messages.
        hub_copy: Where the Hub has it; None if no copy is known.
    """

    name: str
    home: str
    images: tuple[str, ...]
    files: tuple[tuple[str, ...], ...]
    content: str
    hub_copy: HubCopy | None = None

    def locate(self, data_dir: str | Path | None) -> Path:
        """Return the folder of the data set: the given folder, or `home` inside it; without a given folder, see `usual_folder`.

        Raises:
            UsageError: No folder is given or found, or it does not exist.
            OneshuiError: The folder is a level too high or too low (the message names the right one), or files are missing.
        """
        data_dir = data_dir or self.usual_folder()
        if not data_dir:
            raise UsageError(self._not_found())
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

    def usual_folder(self) -> Path | None:
        """Return the folder to read without `--data-dir`: the first of $ONESHUI_DATA/NAME, ./NAME and ./data/NAME that has its files.

        NAME is the name of the data set or its `home`. A folder that lacks some of the files is only returned if none has all of them.
        """
        roots = [Path(expand_home(os.environ[DATA_VARIABLE]))] if os.environ.get(DATA_VARIABLE) else []
        folders = [root / name for root in (*roots, Path(), Path("data")) for name in dict.fromkeys((self.name, self.home))]
        started = [folder.resolve() for folder in folders if self._has_any(folder) or self._has_any(folder / self.home)]
        return next((folder for folder in started if self.is_complete(folder) or self.is_complete(folder / self.home)), (*started, None)[0])

    def _not_found(self) -> str:
        """Return the sentence for a data set whose folder is neither given nor found."""
        places = ", ".join(f"{place}/{self.name}" for place in PLACES)
        copy = self.hub_copy
        hub = f", or take the copy on the Hub with --dataset {copy.repo_id} ({copy.size}, no files needed)" if copy else ""
        ask = "; `oneshui train --download` asks before it fetches that copy" if copy else ""
        return (
            f"Data set '{self.name}' is in none of the folders {places}: name its folder with --data-dir{hub}{ask}. "
            f"The folder contains: {self.content}."
        )

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

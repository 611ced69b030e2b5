"""The photos of candidates: one sub-folder per person, a table `metadata.csv`, or photos without either, each a candidate of its own."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from ...data.builders.annotation_files import read_text_table
from ...data.builders.layout import photo_names
from ...data.column_inference import (
    CLASS_COLUMNS,
    IDENTITY_COLUMNS,
    IMAGE_COLUMNS,
    METADATA,
    Table,
    choose_label_columns,
    read_labels,
    resolve_column,
)
from ...data.face_set import FaceSet
from ...data.identities import read_identities
from ...data.images import ImageError, decode, to_pixels
from ...data.preprocess import Preprocess
from ...data.schema import Task, encode_identities
from ...errors import OneshuiError, UsageError
from ...metrics.outliers import MIN_VALUES
from ...reporting import Reporter
from ..audit_options import AuditOptions

MAX_NAMED = 3  # unreadable photos named in a warning


@dataclass(frozen=True)
class CandidatePhotos:
    """Photos of candidates, as files.

    Attributes:
        folder: The folder.
        files: Paths below the folder.
        people: The person on each photo.
        table: The row of metadata.csv of each photo; None without such a table.
        notes: Sentences on how they were read. They name no photo and no person.
    """

    folder: Path
    files: list[str]
    people: list[str]
    table: Table | None
    notes: tuple[str, ...]


def find_photos(options: AuditOptions, reporter: Reporter) -> CandidatePhotos:
    """List the photos of the candidates.

    Raises:
        UsageError: A column is named that does not exist.
        OneshuiError: There are no photos, fewer than three candidates, or the table is damaged.
    """
    folder = Path(options.candidates)
    if (folder / METADATA).is_file():
        found = _from_table(folder, options, reporter)
    elif flags := options.column_flags():
        raise UsageError(f"{flags[0]} names a column of {METADATA}, which {folder} does not have; omit it.")
    else:
        found = _from_folders(folder)
    if not found.files:
        raise OneshuiError(f"{folder} contains no photos; put the photos of each person into a sub-folder of it.")
    _require_people(found.people, folder)
    return found


def _require_people(people: Sequence[str], folder: Path, when: str = "") -> None:
    if (count := len(set(people))) < MIN_VALUES:
        raise OneshuiError(
            f"{folder} has photos of {count} candidate{'s' * (count != 1)}{when}, and an audit compares {MIN_VALUES} or more; "
            "add photos of people who were certainly not forgotten."
        )


def _from_folders(folder: Path) -> CandidatePhotos:
    """Read one person per sub-folder; where there are none, one per photo."""
    names = sorted(name for name in photo_names(folder) if not any(part.startswith(".") for part in name.split("/")))
    inside = [name for name in names if "/" in name]
    if not inside:
        note = "The photos are not in sub-folders, so each photo is a candidate of its own."
        return CandidatePhotos(folder, names, names, None, (note,) if names else ())
    outside = len(names) - len(inside)
    notes = (f"{_photos(outside)} in no sub-folder, so the person is not known: left out.",) if outside else ()
    return CandidatePhotos(folder, inside, [name.split("/", 1)[0] for name in inside], None, notes)


def _from_table(folder: Path, options: AuditOptions, reporter: Reporter) -> CandidatePhotos:
    table = read_text_table(folder / METADATA)
    columns = list(table.cells)
    image = resolve_column(columns, options.image_column, IMAGE_COLUMNS, "--image-column", "file names", METADATA)
    identity = resolve_column(columns, options.identity_column, IDENTITY_COLUMNS, "--identity-column", "people", METADATA)
    table.require_no_empty_cells([image])
    names = [posixpath.normpath(name.strip()) for name in table.cells[image].tolist()]
    for row, name in enumerate(names):
        if posixpath.isabs(name) or name.split("/")[0] == "..":
            raise OneshuiError(f"{table.where(row)} names {name}, which is not a path inside {folder}; move the photo there.")
    if len(set(names)) < len(names):
        row = next(row for row, name in enumerate(names) if name in names[:row])
        raise OneshuiError(f"{table.where(row)} contains {names[row]} a second time; remove one of its lines.")
    people = read_identities(table, identity, names)
    for note in people.notes:
        reporter.note(note)
    rows = people.kept
    without = len(names) - len(rows)
    notes = (f"{_photos(without)} without an identity: left out.",) if without else ()
    kept = table.take(rows)
    kept = replace(kept, cells=kept.cells.drop(columns=[image, identity]))
    return CandidatePhotos(folder, [names[row] for row in rows], [people.names[row] for row in rows], kept, notes)


@dataclass(frozen=True)
class Candidates:
    """The photos of candidates as pixels.

    Attributes:
        photos: Those that could be read.
        pixels: uint8 (n, 3, S, S).
        notes: As in `CandidatePhotos`, and how many photos could not be read.
    """

    photos: CandidatePhotos
    pixels: np.ndarray
    notes: tuple[str, ...]

    @cached_property
    def _encoded(self) -> tuple[list[str], np.ndarray]:
        return encode_identities(self.photos.people)

    @property
    def people(self) -> list[str]:
        """The names of the candidates, sorted, P."""
        return self._encoded[0]

    @property
    def identities(self) -> torch.Tensor:
        """The index of the candidate on each photo, int64 (n,)."""
        return torch.from_numpy(self._encoded[1])

    @property
    def photo_counts(self) -> torch.Tensor:
        """The number of photos of each candidate, int64 (P,)."""
        return torch.bincount(self.identities, minlength=len(self.people))

    def face_set(self, preprocess: Preprocess, labels: torch.Tensor) -> FaceSet:
        """Return the photos as the input of a model."""
        rows = np.arange(len(self.pixels))
        return FaceSet(self.pixels, rows, labels, self.identities, preprocess, tuple(self.people))


def read_pixels(photos: CandidatePhotos, size: int, reporter: Reporter) -> Candidates:
    """Decode and resize the photos. Those that cannot be read are left out, with a warning.

    Raises:
        OneshuiError: No photo, or photos of too few candidates, can be read.
    """
    kept, pixels, reasons = [], [], []
    for row, file in enumerate(reporter.track(photos.files, "Reading photos", len(photos.files))):
        try:
            pixels.append(to_pixels(decode(photos.folder / file), size))
            kept.append(row)
        except ImageError as error:
            reasons.append(str(error))
    if not kept:
        raise OneshuiError(f"None of the {len(photos.files)} photos in {photos.folder} can be read: {reasons[0]}")
    notes = photos.notes
    if reasons:
        more = f" And {len(reasons) - MAX_NAMED} more." if len(reasons) > MAX_NAMED else ""
        reporter.warn(f"{_photos(len(reasons))} of {len(photos.files)} cannot be read: {' '.join(reasons[:MAX_NAMED])}{more}")
        notes = (*notes, f"{_photos(len(reasons))} of {len(photos.files)} cannot be read: left out.")
        rows = np.array(kept)
        photos = replace(
            photos,
            files=[photos.files[row] for row in kept],
            people=[photos.people[row] for row in kept],
            table=photos.table.take(rows) if photos.table else None,
        )
        _require_people(photos.people, photos.folder, " that can be read")
    return Candidates(photos, np.stack(pixels), notes)


def true_labels(photos: CandidatePhotos, task: Task, requested: Sequence[str]) -> torch.Tensor | None:
    """Return the labels of the photos in metadata.csv, float32 (n, K) or int64 (n,); None if it has no column of the model's labels.

    Args:
        photos: The photos.
        task: The task of the models.
        requested: The label columns that the user named; inferred if empty.

    Raises:
        UsageError: The requested columns do not exist or are not the labels of the model.
        OneshuiError: A label is missing.
    """
    if photos.table is None:
        return None
    table, columns = photos.table, list(photos.table.cells)
    if task.kind == "multi_label":
        if not requested and not set(task.label_names) <= set(columns):
            return None
        chosen = choose_label_columns(table, columns, requested) if requested else task.label_names
        if set(chosen) != set(task.label_names):
            raise UsageError(f"--label-columns names other labels than those of the model: {_listed(task.label_names)}.")
        return torch.from_numpy(read_labels(table, columns, task.label_names).values.astype(np.float32))
    if not requested:
        fitting = [
            name for name in columns if name.lower() in CLASS_COLUMNS and set(table.cells[name].str.strip()) <= set(task.label_names)
        ]
        if len(fitting) != 1:
            return None
        requested = fitting
    chosen = choose_label_columns(table, columns, requested)
    table.require_no_empty_cells(chosen)
    number = {name: index for index, name in enumerate(task.label_names)}
    cells = table.cells[chosen[0]].str.strip()
    if len(chosen) != 1 or not set(cells) <= set(number):
        raise UsageError(f"--label-columns takes one column with classes of the model: {_listed(task.label_names)}.")
    return torch.tensor([number[cell] for cell in cells])


def _listed(names: Sequence[str]) -> str:
    return ", ".join([*names[:10], *[f"and {len(names) - 10} more"] * (len(names) > 10)])


def _photos(count: int) -> str:
    return f"{count:,} photo{'s' * (count != 1)}"

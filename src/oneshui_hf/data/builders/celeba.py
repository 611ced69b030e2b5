"""CelebA (Liu et al. 2015): 202,599 photos of 10,177 people with 40 attributes, or any subset of its images.

Read from the folder that people have on disk. The text files are padded with spaces and end lines in CRLF; the `.csv` variants
from Kaggle name the photo column `image_id`, `id` or nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import OneshuiError
from ..images import SUFFIXES
from ..schema import Task
from .base import Annotations, FaceBuilder, hash_files, require_data_dir, walk

if TYPE_CHECKING:
    import pandas as pd

TREE = """\
  DIR/img_align_celeba/000001.jpg ...
  DIR/list_attr_celeba.txt   (or .csv)
  DIR/identity_CelebA.txt
The files come from the CelebA project page (Align&Cropped Images, attributes, identities)."""

IMAGES = "img_align_celeba"
ATTRIBUTES = ("list_attr_celeba.txt", "list_attr_celeba.csv")
IDENTITIES = ("identity_CelebA.txt", "identity_CelebA.csv")
WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,9}")  # what an int32 holds for certain

ATTRIBUTE_NAMES = tuple(
    """5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair Blurry Brown_Hair
    Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male Mouth_Slightly_Open Mustache
    Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks Sideburns Smiling Straight_Hair Wavy_Hair
    Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace Wearing_Necktie Young""".split()
)


class CelebA(FaceBuilder):
    """CelebA in the layout that people have on disk."""

    summary = "CelebA: 40 attributes, 10,177 people"
    needs = "--data-dir with img_align_celeba/, list_attr_celeba.txt (or .csv), identity_CelebA.txt"

    def task(self) -> Task:
        """Return the 40 attributes."""
        return Task("multi_label", ATTRIBUTE_NAMES)

    @classmethod
    def fingerprint(cls, data_dir: Path | None) -> str:
        """Return a hash of the annotation files and of the images' names, sizes and times of change."""
        folder = locate(str(data_dir) if data_dir else None)
        return hash_files([_first(folder, ATTRIBUTES), _first(folder, IDENTITIES)], _images(folder))

    def annotations(self) -> Annotations:
        """Read attributes and identities, and keep the rows whose image is there."""
        folder = locate(self.config.data_dir)
        attributes = read_attributes(_first(folder, ATTRIBUTES))
        people = read_identities(_first(folder, IDENTITIES))
        images = _images(folder)
        names = {name for name, _, _ in walk(images)}
        present, known = attributes.index.isin(list(names)), attributes.index.isin(people.index)
        usable = present & known
        if not usable.any():
            raise OneshuiError(f"No image in {images} has a row in both annotation files. Expected:\n{TREE}")
        notes = []
        if unlabelled := sum(name.lower().endswith(SUFFIXES) for name in names - set(attributes.index)):
            notes.append(f"{unlabelled} images without an attribute row were left out.")
        if nameless := int((present & ~known).sum()):
            notes.append(f"{nameless} images without an identity were left out.")
        rows = attributes[usable]
        keys = rows.index.tolist()
        return Annotations(
            keys=keys,
            images=[str(images / key) for key in keys],
            identities=people.loc[keys].astype(str).tolist(),
            labels=(rows.to_numpy() > 0).astype(np.int8),
            notes=tuple(notes),
        )


def locate(data_dir: str | None) -> Path:
    """Find the CelebA folder: the one given, or `celeba/` in it.

    Raises:
        UsageError: No folder was given.
        OneshuiError: Something is missing; the message shows the expected tree.
    """
    given = require_data_dir(data_dir, "celeba", TREE)
    for folder in (given, given / "celeba"):
        if (folder / IMAGES).is_dir():
            missing = [names[0] for names in (ATTRIBUTES, IDENTITIES) if not any((folder / n).is_file() for n in names)]
            if missing:
                raise OneshuiError(f"{folder} lacks {' and '.join(missing)}. Expected:\n{TREE}")
            return folder
    raise OneshuiError(f"{given} holds no folder {IMAGES}/. Expected:\n{TREE}")


def _images(folder: Path) -> Path:
    """Return the folder of the photos; Kaggle's archive holds it twice, one inside the other."""
    nested = folder / IMAGES / IMAGES
    return nested if nested.is_dir() else folder / IMAGES


def _first(folder: Path, names: tuple[str, ...]) -> Path:
    return next(folder / name for name in names if (folder / name).is_file())


def read_attributes(file: Path) -> pd.DataFrame:
    """Read the attribute file: one row a photo (its name is the index), one column an attribute, -1 or 1.

    Raises:
        OneshuiError: A line has the wrong number of columns (file and line are named), a value is neither -1, 0 nor 1, or a photo has
            two lines.
    """
    lines = _lines(file)
    comma = file.suffix == ".csv"
    start = 0 if comma or not lines[0].strip().isdigit() else 1  # the text file begins with the number of rows
    split = (lambda line: line.split(",")) if comma else str.split
    header = tuple(split(lines[start])[1 if comma else 0 :])
    if header != ATTRIBUTE_NAMES:
        raise OneshuiError(f"Line {start + 1} of {file} does not name CelebA's 40 attributes; is it the right file?")
    frame = _frame(file, lines, start + 1, header, split)
    wrong = np.flatnonzero((np.abs(frame.to_numpy()) > 1).any(axis=1))
    if wrong.size:
        raise OneshuiError(f"Line {start + 2 + wrong[0]} of {file} holds an attribute other than -1, 0 and 1; repair or remove it.")
    return frame


def read_identities(file: Path) -> pd.Series:
    """Read the identity file: photo name to person, with or without a header line.

    Raises:
        OneshuiError: A line has the wrong number of columns (file and line are named), a person is no number, or a photo has two lines.
    """
    lines = _lines(file)
    split = (lambda line: line.split(",")) if "," in lines[0] else str.split
    first = split(lines[0])
    # A first line with a photo's name in it is a row, whatever else is wrong with it: taken for a header, it would vanish.
    headed = not first or ("." not in first[0] and not WHOLE_NUMBER.fullmatch(first[-1].strip()))
    return _frame(file, lines, 1 if headed else 0, ("identity",), split)["identity"]


def _lines(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise OneshuiError(f"{file} is not a text file.") from None
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise OneshuiError(f"{file} is empty.")
    return lines


def _frame(file: Path, lines: list[str], start: int, columns: tuple[str, ...], split: object) -> pd.DataFrame:
    import pandas as pd

    assert callable(split)
    cells = [split(line) for line in lines[start:]]
    for number, row in enumerate(cells, start + 1):
        if len(row) != len(columns) + 1:
            raise OneshuiError(
                f"Line {number} of {file} has {len(row)} columns where {len(columns) + 1} are expected; repair or remove it."
            )
    try:
        values = np.array([row[1:] for row in cells], dtype=np.int32)
    except (ValueError, OverflowError):
        number, cell = next((n, c) for n, row in enumerate(cells, start + 1) for c in row[1:] if not WHOLE_NUMBER.fullmatch(c.strip()))
        raise OneshuiError(
            f"Line {number} of {file} holds '{cell.strip()}' where a whole number of up to 9 digits is expected; repair or remove it."
        ) from None
    photos = pd.Index([row[0].strip() for row in cells])
    twice = np.flatnonzero(photos.duplicated())
    if twice.size:
        raise OneshuiError(f"Line {start + 1 + twice[0]} of {file} names {photos[twice[0]]} a second time; remove one of its lines.")
    return pd.DataFrame(values, index=photos, columns=list(columns))

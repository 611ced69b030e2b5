"""MUFAC (Choi and Na 2023): 13,068 photos of 1,216 members of Korean families, in eight age classes.

A person is a family and a member of it ("F0001" and "D2"), the label the class letter; the number in a file's name is the age at the time
of the photo. Two configurations: `published` pools the three parts, as the 1-SHUI paper does before it splits by identity; `cleaned` leaves
out photos that nearly repeat one of another person or another part.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy as np

from ...errors import OneshuiError
from ..image_hashes import NEAR, look_at, near_pairs
from ..images import SUFFIXES
from ..schema import LeftOut, Task
from .annotation_files import read_words
from .base import Annotations, FaceBuilder
from .layout import Layout, hash_files, walk

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("train", "val", "test")
CLASSES = ("a", "b", "c", "d", "e", "f", "g", "h")
COLUMNS = ("family_id", "person_id", "age_class", "image_path")

LAYOUT = Layout(
    name="mufac",
    home="mufac",
    images=tuple(f"{part}_images" for part in PARTS),
    files=tuple((f"custom_{part}_dataset.csv",) for part in PARTS),
    tree="""\
  DIR/train_images/  DIR/val_images/  DIR/test_images/
  DIR/custom_train_dataset.csv  DIR/custom_val_dataset.csv  DIR/custom_test_dataset.csv
The folders fixed_val_dataset/ and fixed_test_dataset/ may be there and are searched for photos that a part's own folder lacks.""",
)


@dataclass
class MufacConfig(datasets.BuilderConfig):  # type: ignore[misc]
    """Whether near-duplicates across people and parts are left out."""

    cleaned: bool = False


class Mufac(FaceBuilder):
    """MUFAC in the layout that its authors publish."""

    BUILDER_CONFIG_CLASS = MufacConfig
    BUILDER_CONFIGS = tuple(
        MufacConfig(name, version=FaceBuilder.VERSION, cleaned=name == "cleaned")  # a version of its own would hide the builder's
        for name in ("published", "cleaned")
    )
    DEFAULT_CONFIG_NAME = "published"
    summary = "MUFAC: 8 age classes, 1,216 people; --subset cleaned leaves near-duplicates out"
    needs = "--data-dir with {train,val,test}_images/ and custom_{train,val,test}_dataset.csv"
    layout = LAYOUT

    def task(self) -> Task:
        """Return the eight age classes."""
        return Task("single_label", CLASSES)

    @classmethod
    def fingerprint(cls, data_dir: Path | None) -> str:
        """Return a hash of the annotation files and of the images' names, sizes and times of change."""
        folder = LAYOUT.locate(data_dir)
        places = [place for part in PARTS for place in _places(folder, part)]
        return hash_files([LAYOUT.find(folder, names) for names in LAYOUT.files], places)

    def annotations(self) -> Annotations:
        """Pool the rows of the three parts."""
        import pandas as pd

        folder = LAYOUT.locate(self.config.data_dir)
        frames = [read_part(folder / f"custom_{part}_dataset.csv").assign(part=part) for part in PARTS]
        frame = pd.concat(frames, ignore_index=True)
        twice = np.flatnonzero(frame["image_path"].duplicated())
        if twice.size:
            name = frame["image_path"][twice[0]]
            raise OneshuiError(f"{folder} names {name} in two rows of its annotation files; remove one of them.")
        photos = _photos(folder)
        paths = {part: {path.name: str(path) for path in found} for part, found in photos.items()}
        images = [paths[part].get(name) for part, name in zip(frame["part"], frame["image_path"], strict=True)]
        used = set(filter(None, images))
        found = Annotations(
            keys=frame["image_path"].tolist(),
            images=images,
            identities=(frame["family_id"] + "_" + frame["person_id"]).tolist(),
            labels=frame["age_class"].map(CLASSES.index).to_numpy(dtype=np.int64),
            left_out=LeftOut(
                without_row=sorted(
                    path.relative_to(folder).as_posix()
                    for part in PARTS
                    for path in photos[part]
                    if str(path) not in used and path.parent.name == f"{part}_images"
                )
            ),
        )
        return self._without_repeats(found, frame["part"].tolist()) if self.config.cleaned else found

    def _without_repeats(self, found: Annotations, parts: list[str]) -> Annotations:
        """Leave out each photo that nearly repeats an earlier one, kept itself, of another person or part."""
        there = {row: image for row, image in enumerate(found.images) if image is not None}
        rows, looks = list(there), look_at(list(there.values()), self.reporter)
        seen = np.flatnonzero(looks["readable"])
        repeats: dict[int, list[int]] = {}
        for first, second in near_pairs(looks["hash"][seen], NEAR).tolist():
            one, other = rows[seen[first]], rows[seen[second]]
            if (found.identities[one], parts[one]) != (found.identities[other], parts[other]):
                repeats.setdefault(max(one, other), []).append(min(one, other))
        removed: dict[int, int] = {}
        for row in sorted(repeats):
            if kept := [earlier for earlier in sorted(repeats[row]) if earlier not in removed]:
                removed[row] = kept[0]
        rest = [row for row in range(len(found.keys)) if row not in removed]
        listed = [{"photo": found.keys[row], "repeats": found.keys[kept]} for row, kept in removed.items()]
        return Annotations(
            keys=[found.keys[row] for row in rest],
            images=[found.images[row] for row in rest],
            identities=[found.identities[row] for row in rest],
            labels=found.labels[rest],
            left_out=LeftOut(without_row=found.left_out.without_row, near_duplicates=listed),
            by_looks=True,
        )


def read_part(file: Path) -> pd.DataFrame:
    """Read one part's annotations: family_id, person_id, age_class, image_path, as text.

    Raises:
        OneshuiError: The file is no such table, or a row has an empty cell or another class than a to h (the line is named).
    """
    table = read_words(file)
    if missing := [name for name in COLUMNS if name not in table.cells]:
        raise OneshuiError(f"{file} has no column {' and '.join(missing)}; it needs {', '.join(COLUMNS)}.")
    table.require_filled(COLUMNS)
    frame = table.cells[list(COLUMNS)].apply(lambda column: column.str.strip())
    if (wrong := np.flatnonzero(~frame["age_class"].isin(CLASSES))).size:
        value = frame["age_class"][wrong[0]]
        raise OneshuiError(f"{table.where(wrong[0])} has the age class '{value}', which is none of a to h; repair or remove it.")
    return frame


def _places(folder: Path, part: str) -> list[Path]:
    """Return the folders of a part's photos; its own comes last."""
    return [folder / f"fixed_{part}_dataset", folder / f"{part}_images"]


def _photos(folder: Path) -> dict[str, list[Path]]:
    """Return the photos of each part; of two of one name, the one in the part's own folder comes last and counts."""
    return {
        part: [place / name for place in _places(folder, part) for name, _ in walk(place) if name.lower().endswith(SUFFIXES)]
        for part in PARTS
    }

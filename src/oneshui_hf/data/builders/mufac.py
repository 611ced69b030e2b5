"""MUFAC (Choi and Na 2023): 13,068 photos of 1,216 members of Korean families, in eight age classes.

A person is identified by family and member ("F0001" and "D2"); the label is the class letter; the number in a file's name is the age at
the time of the photo. There are two configurations: `published` concatenates the three parts, as the 1-SHUI paper does before the split by
identity; `cleaned` excludes near-duplicates of photos of another person or another part.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy as np

from ...errors import OneshuiError
from ..image_hashes import NEAR_DUPLICATE_BITS, find_near_duplicates, hash_images
from ..images import SUFFIXES
from ..missing_values import MISSING
from ..schema import Exclusions, Task
from .annotation_files import read_text_column, read_text_table
from .base import Annotations, FaceBuilder
from .layout import Layout, hash_files, walk_files

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
    content=(
        "DIR/train_images/, DIR/val_images/, DIR/test_images/, "
        "DIR/custom_train_dataset.csv, DIR/custom_val_dataset.csv, DIR/custom_test_dataset.csv; "
        "fixed_val_dataset/ and fixed_test_dataset/ are optional and searched for photos that a part's own folder lacks"
    ),
)


@dataclass
class MufacConfig(datasets.BuilderConfig):  # type: ignore[misc]
    """Whether near-duplicates across people and parts are excluded."""

    cleaned: bool = False


class Mufac(FaceBuilder):
    """MUFAC in the folder layout of its authors."""

    BUILDER_CONFIG_CLASS = MufacConfig
    BUILDER_CONFIGS = tuple(
        MufacConfig(name, version=FaceBuilder.VERSION, cleaned=name == "cleaned")  # a different version would override the builder's
        for name in ("published", "cleaned")
    )
    DEFAULT_CONFIG_NAME = "published"
    summary = "MUFAC: 8 age classes, 1,216 people; --subset cleaned excludes near-duplicates"
    needs = "--data-dir with {train,val,test}_images/ and custom_{train,val,test}_dataset.csv"
    layout = LAYOUT

    def task(self) -> Task:
        """Return the eight age classes."""
        return Task("single_label", CLASSES)

    @classmethod
    def fingerprint(cls, data_dir: Path | None) -> str:
        """Return a hash of the annotation files and of the images' names, sizes and modification times."""
        folder = LAYOUT.locate(data_dir)
        photos = []
        for part in PARTS:
            named = _named_photos(folder, part)  # without folders
            photos += [
                (images, {path for path, entry in walk_files(images) if entry.name in named}) for images in _image_folders(folder, part)
            ]
        return hash_files([LAYOUT.find(folder, names) for names in LAYOUT.files], photos)

    def photos_without_row(self) -> list[str]:
        """Return the photos of each part's own folder that its annotation file does not name."""
        folder = LAYOUT.locate(self.config.data_dir)
        return sorted(
            path.relative_to(folder).as_posix()
            for part, photos in _photos(folder).items()
            for named in [_named_photos(folder, part)]
            for path in photos
            if path.parent.name == f"{part}_images" and path.name not in named
        )

    def annotations(self) -> Annotations:
        """Concatenate the rows of the three parts."""
        import pandas as pd

        folder = LAYOUT.locate(self.config.data_dir)
        frames = [read_part(folder / f"custom_{part}_dataset.csv").assign(part=part) for part in PARTS]
        frame = pd.concat(frames, ignore_index=True)
        duplicates = np.flatnonzero(frame["image_path"].duplicated())
        if duplicates.size:
            name = frame["image_path"][duplicates[0]]
            raise OneshuiError(f"{folder} contains {name} in two rows of its annotation files; remove one of them.")
        photos = _photos(folder)
        paths = {part: {path.name: str(path) for path in found} for part, found in photos.items()}
        images = [paths[part].get(name) for part, name in zip(frame["part"], frame["image_path"], strict=True)]
        annotations = Annotations(
            keys=frame["image_path"].tolist(),
            images=images,
            identities=(frame["family_id"] + "_" + frame["person_id"]).tolist(),
            labels=frame["age_class"].map(CLASSES.index).to_numpy(dtype=np.int64),
        )
        return self._drop_near_duplicates(annotations, frame["part"].tolist()) if self.config.cleaned else annotations

    def _drop_near_duplicates(self, annotations: Annotations, parts: list[str]) -> Annotations:
        """Exclude each near-duplicate of an earlier photo of another person or part that is itself kept."""
        present = {row: image for row, image in enumerate(annotations.images) if image is not None}
        rows, properties = list(present), hash_images(list(present.values()), self.reporter)
        readable = np.flatnonzero(properties["readable"])
        earlier_duplicates: dict[int, list[int]] = {}
        for first, second in find_near_duplicates(properties["hash"][readable], NEAR_DUPLICATE_BITS).tolist():
            one, other = rows[readable[first]], rows[readable[second]]
            if (annotations.identities[one], parts[one]) != (annotations.identities[other], parts[other]):
                earlier_duplicates.setdefault(max(one, other), []).append(min(one, other))
        removed: dict[int, int] = {}
        for row in sorted(earlier_duplicates):
            if kept := [earlier for earlier in sorted(earlier_duplicates[row]) if earlier not in removed]:
                removed[row] = kept[0]
        rest = [row for row in range(len(annotations.keys)) if row not in removed]
        duplicates = [{"photo": annotations.keys[row], "repeats": annotations.keys[kept]} for row, kept in removed.items()]
        return Annotations(
            keys=[annotations.keys[row] for row in rest],
            images=[annotations.images[row] for row in rest],
            identities=[annotations.identities[row] for row in rest],
            labels=annotations.labels[rest],
            exclusions=Exclusions(near_duplicates=duplicates),
            depends_on_images=True,
        )


def read_part(file: Path) -> pd.DataFrame:
    """Read one part's annotations: family_id, person_id, age_class, image_path, as text.

    Raises:
        OneshuiError: A column is missing, or a row has an empty cell or an unknown class (the message names the line).
    """
    table = read_text_table(file)
    if missing := [name for name in COLUMNS if name not in table.cells]:
        raise OneshuiError(f"{file} has no column {' and '.join(missing)}; it needs {', '.join(COLUMNS)}.")
    table.require_no_empty_cells(COLUMNS)
    frame = table.cells[list(COLUMNS)].apply(lambda column: column.str.strip())
    for column in ("family_id", "person_id"):
        if (unknown := np.flatnonzero(frame[column].str.casefold().isin(MISSING))).size:
            raise OneshuiError(
                f"{table.where(unknown[0])} has '{frame[column][unknown[0]]}' as {column}, which is no name; fill it in or remove the line."
            )
    if (invalid := np.flatnonzero(~frame["age_class"].isin(CLASSES))).size:
        value = frame["age_class"][invalid[0]]
        raise OneshuiError(f"{table.where(invalid[0])} has the age class '{value}', which is not one of a to h; repair or remove it.")
    return frame


def _named_photos(folder: Path, part: str) -> frozenset[str]:
    """Return the photo names in a part's annotation file; an invalid file is reported when it is read."""
    file = folder / f"custom_{part}_dataset.csv"
    names = read_text_column(file, lambda columns: COLUMNS[-1] if COLUMNS[-1] in columns else columns[0])
    return frozenset(name.strip() for name in names)


def _image_folders(folder: Path, part: str) -> list[Path]:
    """Return the folders of a part's photos, its own folder last."""
    return [folder / f"fixed_{part}_dataset", folder / f"{part}_images"]


def _photos(folder: Path) -> dict[str, list[Path]]:
    """Return the photos of each part. The part's own folder comes last, so its photo is used if several have the same name."""
    return {
        part: [
            images / name for images in _image_folders(folder, part) for name, _ in walk_files(images) if name.lower().endswith(SUFFIXES)
        ]
        for part in PARTS
    }

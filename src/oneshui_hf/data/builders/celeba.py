"""CelebA (Liu et al. 2015): 202,599 photos of 10,177 people with 40 attributes, or any subset of its images.

It is read from a folder on disk. The text files are padded with spaces and have CRLF line ends; the `.csv` variants from Kaggle name the
photo column `image_id`, `id`, or do not name it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import OneshuiError
from ..schema import Exclusions, Task
from .annotation_files import line_of, read_integer_table
from .base import Annotations, FaceBuilder
from .layout import HubCopy, Layout, file_names, first_words, hash_files, photo_names

if TYPE_CHECKING:
    import pandas as pd

IMAGES = "img_align_celeba"
ATTRIBUTES = ("list_attr_celeba.txt", "list_attr_celeba.csv")
IDENTITIES = ("identity_CelebA.txt", "identity_CelebA.csv")

# Additional columns, if their file exists: the publishers' annotations of each photo that are not used in training.
EXTRAS = {
    "partition": (("list_eval_partition.txt", "list_eval_partition.csv"), ("partition",)),
    "bbox": (("list_bbox_celeba.txt", "list_bbox_celeba.csv"), ("x", "y", "width", "height")),
    "landmarks": (
        ("list_landmarks_align_celeba.txt", "list_landmarks_align_celeba.csv"),
        tuple(f"{point}_{axis}" for point in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth") for axis in "xy"),
    ),
}

LAYOUT = Layout(
    name="celeba",
    home="celeba",
    images=(IMAGES,),
    files=(ATTRIBUTES, IDENTITIES),
    content=(
        "DIR/img_align_celeba/000001.jpg and so on, DIR/list_attr_celeba.txt (or .csv), DIR/identity_CelebA.txt; "
        "the files come from the CelebA project page (Align&Cropped Images, attributes, identities)"
    ),
    hub_copy=HubCopy("flwrlabs/celeba", "11.7 GB"),
)

ATTRIBUTE_NAMES = tuple(
    """5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair Blurry Brown_Hair
    Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male Mouth_Slightly_Open Mustache
    Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks Sideburns Smiling Straight_Hair Wavy_Hair
    Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace Wearing_Necktie Young""".split()
)


class CelebA(FaceBuilder):
    """CelebA in its published folder layout."""

    summary = "CelebA: 40 attributes, 10,177 people"
    needs = "--data-dir with img_align_celeba/, list_attr_celeba.txt (or .csv), identity_CelebA.txt"
    layout = LAYOUT

    def task(self) -> Task:
        """Return the 40 attributes."""
        return Task("multi_label", ATTRIBUTE_NAMES)

    def extras(self) -> dict[str, int]:
        """Return the optional columns whose file exists."""
        folder = LAYOUT.locate(self.config.data_dir)
        return {name: len(columns) for name, (files, columns) in EXTRAS.items() if LAYOUT.find(folder, files)}

    @classmethod
    def fingerprint(cls, data_dir: Path | None) -> str:
        """Return a hash of the annotation files and of the images' names, sizes and modification times."""
        folder = LAYOUT.locate(data_dir)
        extras = [LAYOUT.find(folder, files) for files, _ in EXTRAS.values()]
        attributes = LAYOUT.require(folder, ATTRIBUTES)
        photos = [(image_folder(folder / IMAGES), first_words(attributes))]
        return hash_files([attributes, LAYOUT.find(folder, IDENTITIES), *extras], photos)

    def photos_without_row(self) -> list[str]:
        """Return the photos that the attribute file does not name."""
        folder = LAYOUT.locate(self.config.data_dir)
        return sorted(photo_names(image_folder(folder / IMAGES)) - first_words(LAYOUT.require(folder, ATTRIBUTES)))

    def annotations(self) -> Annotations:
        """Read attributes, identities and the optional columns."""
        folder = LAYOUT.locate(self.config.data_dir)
        people = read_identities(LAYOUT.require(folder, IDENTITIES))
        annotations = join_annotations(LAYOUT.require(folder, ATTRIBUTES), people, folder / IMAGES)
        for name, (files, columns) in EXTRAS.items():
            if file := LAYOUT.find(folder, files):
                values = read_integer_table(file, columns).reindex(annotations.keys, fill_value=-1).to_numpy(dtype=np.int32)
                annotations.extras[name] = values[:, 0] if len(columns) == 1 else values
        return annotations


def join_annotations(file: Path, people: pd.Series, images: Path) -> Annotations:
    """Join an attribute file in CelebA's format with the identities and the existing photos.

    Raises:
        OneshuiError: The attribute file is damaged.
    """
    attributes = read_attributes(file)
    images = image_folder(images)
    names, folder = file_names(images), str(images)
    known = attributes.index.isin(people.index)
    rows = attributes[known]
    keys = rows.index.tolist()
    return Annotations(
        keys=keys,
        images=[f"{folder}/{key}" if key in names else None for key in keys],
        identities=list(map(str, people.loc[keys].tolist())),
        labels=(rows.to_numpy() > 0).astype(np.int8),
        exclusions=Exclusions(
            without_identity=sorted(name for name in attributes.index[~known] if name in names),
        ),
    )


def image_folder(folder: Path) -> Path:
    """Return the folder of the photos. Kaggle's archive contains a folder of this name inside a folder of this name."""
    nested = folder / folder.name
    return nested if nested.is_dir() else folder


def read_attributes(file: Path) -> pd.DataFrame:
    """Read an attribute file: one row per photo (its name is the index), one column per attribute, -1 or 1 (or 0 or 1).

    Raises:
        OneshuiError: The file is damaged (see `read_table`), or an attribute has another value, or has all three values.
    """
    frame = read_integer_table(file, ATTRIBUTE_NAMES, named=True)
    values = frame.to_numpy()
    if (invalid := np.flatnonzero((np.abs(values) > 1).any(axis=1))).size:
        where = f"Line {line_of(file, invalid[0])} of {file}"
        raise OneshuiError(f"{where} contains an attribute value other than -1, 0 and 1; repair or remove it.")
    if (mixed := np.flatnonzero((values == 0).any(axis=0) & (values == -1).any(axis=0))).size:
        raise OneshuiError(
            f"Label column '{ATTRIBUTE_NAMES[mixed[0]]}' of {file} contains -1 and 0; an attribute must be -1 or 1, or 0 or 1."
        )
    return frame


def read_identities(file: Path) -> pd.Series:
    """Read an identity file: photo name to person, with or without a header line.

    Raises:
        OneshuiError: The file is damaged; see `read_table`.
    """
    return read_integer_table(file, ("identity",))["identity"]

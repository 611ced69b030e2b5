"""CelebA-HQ (Karras et al. 2018), as CelebAMask-HQ publishes it: 30,000 photos of 6,217 people with CelebA's 40 attributes.

Photos are numbered files; the numbers need not be contiguous, so any subset of the images works.
"""

from __future__ import annotations

from pathlib import Path

from ..schema import Task
from .base import Annotations, FaceBuilder
from .celeba import ATTRIBUTE_NAMES, image_folder, join_annotations, read_identities
from .layout import Layout, first_words, hash_files, photo_names

IMAGES = "CelebA-HQ-img"
ATTRIBUTES = ("CelebAMask-HQ-attribute-anno.txt",)
IDENTITIES = ("CelebA-HQ-identity.txt",)

LAYOUT = Layout(
    name="celebahq",
    home="CelebAMask-HQ",
    images=(IMAGES,),
    files=(ATTRIBUTES, IDENTITIES),
    content=(
        "DIR/CelebA-HQ-img/0.jpg and so on, DIR/CelebAMask-HQ-attribute-anno.txt, DIR/CelebA-HQ-identity.txt; "
        "the images and attributes come with CelebAMask-HQ, the identities with CelebA-HQ"
    ),
)


class CelebAHQ(FaceBuilder):
    """CelebA-HQ in CelebAMask-HQ's layout."""

    summary = "CelebA-HQ: 40 attributes, 6,217 people"
    needs = "--data-dir with CelebA-HQ-img/, CelebAMask-HQ-attribute-anno.txt, CelebA-HQ-identity.txt"
    layout = LAYOUT

    def task(self) -> Task:
        """Return the 40 attributes."""
        return Task("multi_label", ATTRIBUTE_NAMES)

    @classmethod
    def fingerprint(cls, data_dir: Path | None) -> str:
        """Return a hash of the annotation files and of the images' names, sizes and modification times."""
        folder = LAYOUT.locate(data_dir)
        attributes = LAYOUT.require(folder, ATTRIBUTES)
        return hash_files([attributes, LAYOUT.find(folder, IDENTITIES)], [(image_folder(folder / IMAGES), first_words(attributes))])

    def photos_without_row(self) -> list[str]:
        """Return the photos that the attribute file does not name."""
        folder = LAYOUT.locate(self.config.data_dir)
        return sorted(photo_names(image_folder(folder / IMAGES)) - first_words(LAYOUT.require(folder, ATTRIBUTES)))

    def annotations(self) -> Annotations:
        """Read attributes and identities."""
        folder = LAYOUT.locate(self.config.data_dir)
        people = read_identities(LAYOUT.require(folder, IDENTITIES))
        return join_annotations(LAYOUT.require(folder, ATTRIBUTES), people, folder / IMAGES)

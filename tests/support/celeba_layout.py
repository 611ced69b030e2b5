"""Generated people in the layouts of CelebA, CelebA-HQ and MUFAC, and a small model in the place of the default backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .faces import bits, portrait

SIZE = (32, 32)


def write_celeba(folder: Path, people: Sequence[int], photos: int = 4) -> None:
    """Write CelebA's files below a folder. Each person has a portrait, and labels, of their own.

    Args:
        folder: The folder; it may exist.
        people: The numbers of the people.
        photos: Photos of each.
    """
    _write_attributes(folder, ("img_align_celeba", "list_attr_celeba.txt", "identity_CelebA.txt"), "{:06d}.jpg", people, photos)


def write_celebahq(folder: Path, people: Sequence[int], photos: int = 4) -> None:
    """Write CelebA-HQ's files below a folder; see `write_celeba`."""
    names = ("CelebA-HQ-img", "CelebAMask-HQ-attribute-anno.txt", "CelebA-HQ-identity.txt")
    _write_attributes(folder, names, "{}.jpg", people, photos)


def _write_attributes(folder: Path, names: tuple[str, str, str], file_name: str, people: Sequence[int], photos: int) -> None:
    from oneshui_hf.data.builders.celeba import ATTRIBUTE_NAMES

    images, attribute_file, identity_file = names
    (folder / images).mkdir(parents=True)
    attributes, identities = [], []
    for place, person in enumerate(people):
        for photo in range(photos):
            file = file_name.format(place * photos + photo + 1)
            portrait(person, photo, SIZE).save(folder / images / file)
            attributes.append(f"{file} " + " ".join(str(2 * bit - 1) for bit in bits(person, photo, len(ATTRIBUTE_NAMES))))
            identities.append(f"{file} {person}")
    header = [str(len(attributes)), " ".join(ATTRIBUTE_NAMES)]
    (folder / attribute_file).write_text("\n".join([*header, *attributes]) + "\n")
    (folder / identity_file).write_text("\n".join(identities) + "\n")


def write_mufac(folder: Path, people: int = 30, photos: int = 4) -> None:
    """Write MUFAC's files below a folder: the people, one after the other, in its three parts."""
    from oneshui_hf.data.builders.mufac import CLASSES, COLUMNS, PARTS

    rows: dict[str, list[str]] = {part: [",".join(COLUMNS)] for part in PARTS}
    for person in range(people):
        part = PARTS[person % len(PARTS)]
        (folder / f"{part}_images").mkdir(parents=True, exist_ok=True)
        for photo in range(photos):
            file = f"{person}-{photo}.jpg"
            portrait(person, photo, SIZE).save(folder / f"{part}_images" / file)
            rows[part].append(f"F{person},D,{CLASSES[(person + photo) % len(CLASSES)]},{file}")
    for part, lines in rows.items():
        (folder / f"custom_{part}_dataset.csv").write_text("\n".join(lines) + "\n")


def small_backbone() -> dict[str, bytes]:
    """Return the files of an untrained ViT of 32 pixels, under the names of a repository on the Hub."""
    import tempfile

    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    settings = {"image_size": SIZE[0], "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    with tempfile.TemporaryDirectory() as folder:
        ViTForImageClassification(ViTConfig(**settings, intermediate_size=64)).save_pretrained(folder)
        ViTImageProcessorPil(size={"height": SIZE[0], "width": SIZE[1]}).save_pretrained(folder)
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}

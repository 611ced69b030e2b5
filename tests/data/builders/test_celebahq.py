"""CelebA-HQ in the layout of CelebAMask-HQ: numbered photos, some of which may be missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from oneshui_hf.data.builders.celeba import ATTRIBUTE_NAMES, join_annotations, read_identities
from oneshui_hf.data.builders.celebahq import CelebAHQ
from oneshui_hf.data.load import load_faces, open_builder
from oneshui_hf.data.schema import Exclusions
from oneshui_hf.errors import OneshuiError, UsageError
from support.faces import bits, portrait

ATTRIBUTES, IDENTITIES = "CelebAMask-HQ-attribute-anno.txt", "CelebA-HQ-identity.txt"
NO_COLUMNS = {"image_column": None, "identity_column": None, "label_columns": ()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with photos 0 to 5 of people 10, 20 and 30, two of each; attributes are padded after the name."""
    folder = tmp_path / "CelebAMask-HQ"
    (folder / "CelebA-HQ-img").mkdir(parents=True)
    attributes, identities = ["6", " ".join(ATTRIBUTE_NAMES)], []
    for number in range(6):
        portrait(number // 2, number % 2).save(folder / "CelebA-HQ-img" / f"{number}.jpg")
        values = (str(2 * bit - 1) for bit in bits(number // 2, number % 2, 40))
        attributes.append(f"{number}.jpg  {' '.join(values)}")
        identities.append(f"{number}.jpg {10 * (1 + number // 2)}")
    (folder / ATTRIBUTES).write_text("\n".join(attributes) + "\n")
    (folder / IDENTITIES).write_text("\n".join(identities) + "\n")
    return folder


def test_identities_labels_and_keys_are_those_of_the_files(folder: Path) -> None:
    faces = load_faces("celebahq", folder)
    assert faces.name == "celebahq"
    assert faces.keys == [f"{n}.jpg" for n in range(6)]
    assert faces.people == ["10", "20", "30"]
    assert faces.identities.tolist() == [0, 0, 1, 1, 2, 2]
    assert faces.task.label_names == ATTRIBUTE_NAMES
    assert faces.labels.tolist() == [bits(p, m, 40) for p in range(3) for m in range(2)]
    assert faces.exclusions == Exclusions()


def test_numbers_need_not_be_contiguous(folder: Path) -> None:
    for number in (0, 2, 3):
        (folder / "CelebA-HQ-img" / f"{number}.jpg").unlink()
    portrait(9, 9).save(folder / "CelebA-HQ-img" / "29999.jpg")
    faces = load_faces("celebahq", folder)
    assert faces.keys == ["1.jpg", "4.jpg", "5.jpg"]
    assert faces.people == ["10", "30"]
    assert faces.labels.tolist() == [bits(p, m, 40) for p, m in ((0, 1), (2, 0), (2, 1))]
    assert faces.exclusions == Exclusions(without_image=["0.jpg", "2.jpg", "3.jpg"], without_row=["29999.jpg"])


def test_parent_of_the_folder_is_accepted(folder: Path) -> None:
    assert load_faces("celebahq", folder.parent).fingerprint == load_faces("celebahq", folder).fingerprint


def test_image_folder_is_a_level_too_low(folder: Path) -> None:
    with pytest.raises(OneshuiError, match=f"a level too low; name {folder} instead"):
        load_faces("celebahq", folder / "CelebA-HQ-img")


def test_archive_folder_is_a_level_too_high(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    moved = folder.rename(tmp_path / "archive" / "celebahq")
    with pytest.raises(OneshuiError, match=f"a level too high; name {moved} instead"):
        load_faces("celebahq", tmp_path)


@pytest.mark.parametrize("file", [ATTRIBUTES, IDENTITIES])
def test_incomplete_folder_raises_with_the_missing_file(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(OneshuiError, match=rf"CelebAMask-HQ lacks {file}\. Expected: .*DIR/CelebA-HQ-img/0\.jpg"):
        load_faces("celebahq", folder)


def test_missing_images_raise_with_the_expected_tree(folder: Path) -> None:
    shutil.rmtree(folder / "CelebA-HQ-img")
    with pytest.raises(OneshuiError, match=r"None of the 6 annotated photos .* exists.*CelebA-HQ-img"):
        load_faces("celebahq", folder)


def test_empty_folder_raises_with_the_expected_tree(tmp_path: Path) -> None:
    with pytest.raises(OneshuiError, match=r"contains no folder CelebA-HQ-img/\. Expected: .*CelebA-HQ-identity\.txt"):
        load_faces("celebahq", tmp_path)


def test_celeba_mapping_instead_of_the_identities_raises(folder: Path) -> None:
    (folder / IDENTITIES).write_text("0          119613     119614.jpg\n1          99094      099095.jpg\n")
    with pytest.raises(OneshuiError, match=rf"Line 1 of .*{IDENTITIES} has 3 columns instead of 2"):
        load_faces("celebahq", folder)


def test_changed_identity_is_read_on_the_next_load(folder: Path) -> None:
    assert load_faces("celebahq", folder).people == ["10", "20", "30"]
    (folder / IDENTITIES).write_text((folder / IDENTITIES).read_text().replace(" 30", " 31"))
    assert load_faces("celebahq", folder).people == ["10", "20", "31"]


def test_subset_raises(folder: Path) -> None:
    with pytest.raises(UsageError, match="'celebahq' has no subsets"):
        load_faces("celebahq", folder, subset="cleaned")


def test_published_annotations_are_joined(assets: Path, tmp_path: Path) -> None:
    (tmp_path / "CelebA-HQ-img").mkdir()
    for number in (0, 12_345, 29_999):  # empty files, which are not decoded
        (tmp_path / "CelebA-HQ-img" / f"{number}.jpg").touch()
    for file in (ATTRIBUTES, IDENTITIES):
        (tmp_path / file).symlink_to(assets / "annotations/celebahq" / file)
    builder, name = open_builder("celebahq", tmp_path, None, NO_COLUMNS)
    assert isinstance(builder, CelebAHQ)
    assert name == "celebahq"
    found = builder.annotations()
    assert len(found.keys) == 30_000
    assert len(found.photos_by_identity()) == 6_217
    assert found.labels.shape == (30_000, 40)
    assert sum(image is not None for image in found.images) == 3
    assert found.exclusions == Exclusions()
    assert load_faces("celebahq", tmp_path).keys == ["0.jpg", "12345.jpg", "29999.jpg"]


def test_published_annotations_equal_a_plain_parser(assets: Path, tmp_path: Path) -> None:
    place = assets / "annotations/celebahq"
    found = join_annotations(place / ATTRIBUTES, read_identities(place / IDENTITIES), tmp_path)
    lines = [line.split() for line in (place / ATTRIBUTES).read_text().splitlines()[2:]]
    assert found.keys == [name for name, *_ in lines]
    assert found.labels[::997].tolist() == [[int(value == "1") for value in values] for _, *values in lines[::997]]
    people = dict(line.split() for line in (place / IDENTITIES).read_text().splitlines())
    assert found.identities == [people[key] for key in found.keys]

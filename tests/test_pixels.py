"""The pixel cache beside the Arrow data, and sets of photos that are gathered from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import portrait
from oneshui_hf.data.images import ImageError, decode, to_pixels
from oneshui_hf.data.load import load_faces
from oneshui_hf.data.pixels import FaceSet, face_sets, load_pixels
from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.data.split import make_split
from oneshui_hf.errors import OneshuiError
from oneshui_hf.reporting import Reporter

MakeFolder = Callable[..., Path]


class Counting(Reporter):
    def __init__(self) -> None:
        self.tracked = 0

    def track(self, items: Iterable[Any], label: str, total: int | None = None) -> Iterator[Any]:
        self.tracked += 1
        yield from items


def face_set(identities: list[int]) -> FaceSet:
    """Photos 0, 10, 20, ... of a store in which every value of photo i is i."""
    count = len(identities)
    store = np.repeat(np.arange(10 * count, dtype=np.uint8), 3 * 4 * 4).reshape(-1, 3, 4, 4)
    return FaceSet(
        store=store,
        rows=np.arange(count) * 10,
        labels=torch.arange(2.0 * count).view(count, 2),
        identities=torch.tensor(identities),
        preprocess=Preprocess(4, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        people=("a", "b", "c", "d"),
    )


def test_pixels_equal_each_photo_decoded_and_resized(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    faces = load_faces(str(folder))
    pixels = load_pixels(faces, 24)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.stack([to_pixels(decode(folder / key), 24) for key in faces.keys]))


def test_pixels_of_embedded_photos_are_read_too() -> None:
    faces = load_faces("synthetic")
    pixels = load_pixels(faces, 16)
    image = decode(faces.rows[3]["image"]["bytes"])
    assert np.array_equal(pixels[3], to_pixels(image, 16))


def test_photos_are_decoded_once_a_size(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    faces, reporter = load_faces(str(folder)), Counting()
    first = load_pixels(faces, 24, reporter)
    for photo in folder.glob("*/*.png"):
        photo.unlink()
    assert np.array_equal(load_pixels(faces, 24, reporter), first)
    assert reporter.tracked == 1
    with pytest.raises(ImageError):
        load_pixels(faces, 16, reporter)


def test_a_damaged_photo_is_named_and_leaves_no_file(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    (folder / "p01/0.png").write_bytes((folder / "p01/0.png").read_bytes()[:200])
    faces = load_faces(str(folder))
    before = sorted(faces.cache.iterdir())
    with pytest.raises(ImageError, match=r"photo p01/0\.png of 'photos' is damaged or truncated .*Repair it, or remove it"):
        load_pixels(faces, 24)
    assert sorted(faces.cache.iterdir()) == before


def test_a_failing_write_leaves_no_file(photo_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = load_faces(str(photo_folder(people=2, photos=2)))
    before = sorted(faces.cache.iterdir())

    def full(*arguments: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    monkeypatch.setattr("os.rename", full)
    with pytest.raises((OneshuiError, OSError), match="No space left on device"):
        load_pixels(faces, 24)
    assert sorted(faces.cache.iterdir()) == before


def test_a_repaired_photo_is_read_on_the_next_call(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    (folder / "p01/0.png").write_bytes(b"")
    with pytest.raises(ImageError):
        load_pixels(load_faces(str(folder)), 24)
    portrait(1, 0).save(folder / "p01/0.png")
    assert len(load_pixels(load_faces(str(folder)), 24)) == 4


def test_a_photo_replaced_by_one_of_the_same_size_is_read_anew(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    photo = folder / "p00/0.png"
    portrait(0, 0).save(photo, "BMP")  # uncompressed: its size on disk follows from its sides
    load_pixels(load_faces(str(folder)), 24)
    portrait(7, 7).save(photo, "BMP")
    assert np.array_equal(load_pixels(load_faces(str(folder)), 24)[0], to_pixels(decode(photo), 24))


def test_a_cache_of_another_shape_is_refused(photo_folder: MakeFolder) -> None:
    faces = load_faces(str(photo_folder(people=2, photos=2)))
    np.save(faces.cache / "pixels-24.npy", np.zeros((1, 3, 24, 24), dtype=np.uint8))
    with pytest.raises(OneshuiError, match=r"pixels-24\.npy does not fit its data set; remove it"):
        load_pixels(faces, 24)


def test_a_cache_that_is_no_array_is_refused(photo_folder: MakeFolder) -> None:
    faces = load_faces(str(photo_folder(people=2, photos=2)))
    (faces.cache / "pixels-24.npy").write_bytes(b"nonsense")
    with pytest.raises(OneshuiError, match=r"pixels-24\.npy"):
        load_pixels(faces, 24)


def test_a_batch_is_the_photos_at_the_positions() -> None:
    faces = face_set([0, 1, 1, 2])
    positions = torch.tensor([2, 0])
    pixels, labels = faces.batch(positions)
    assert faces.raw(positions)[:, 0, 0, 0].tolist() == [20, 0]
    assert pixels.shape == (2, 3, 4, 4)
    assert pixels[:, 0, 0, 0].tolist() == pytest.approx([(20 / 255 - 0.5) / 0.25, -2])
    assert labels.tolist() == [[4, 5], [0, 1]]


def test_a_subset_holds_the_photos_at_the_positions() -> None:
    faces = face_set([0, 1, 1, 2])
    part = faces.subset(torch.tensor([3, 1]))
    assert len(part) == 2
    assert part.rows.tolist() == [30, 10]
    assert part.identities.tolist() == [2, 1]
    assert part.labels.tolist() == [[6, 7], [2, 3]]
    assert torch.equal(part.batch(torch.tensor([0]))[0], faces.batch(torch.tensor([3]))[0])
    assert part.people == faces.people


def test_an_empty_subset_is_empty() -> None:
    part = face_set([0, 1]).subset(torch.tensor([], dtype=torch.int64))
    assert len(part) == 0
    assert part.batch(torch.arange(0))[0].shape == (0, 3, 4, 4)
    assert part.positions_of == {}


def test_positions_of_finds_each_persons_photos() -> None:
    found = face_set([2, 0, 2, 3, 0, 2]).positions_of
    assert {person: photos.tolist() for person, photos in found.items()} == {0: [1, 4], 2: [0, 2, 5], 3: [3]}


def test_the_sets_of_a_split_share_numbers_and_only_train_has_reserved_photos(photo_folder: MakeFolder) -> None:
    faces = load_faces(str(photo_folder(people=12, photos=3)))
    split = make_split(faces, 0, 1, reserve_supports=2)
    sets = face_sets(faces, split.sets(faces), Preprocess(16))
    assert {name for name, part in sets.items() if part.reserved is not None} == {"train"}
    reserved = sets["train"].reserved
    assert reserved is not None
    assert sorted(faces.keys[row] for row in reserved.rows) == sorted(split.reserved.values())
    for name, part in sets.items():
        assert [faces.people[i] for i in faces.identities[part.rows]] == [part.people[i] for i in part.identities], name
        assert torch.equal(part.labels, faces.labels[part.rows])
    assert {sets["forget"].people[i] for i in sets["forget"].identities} == set(split.forget)

"""The pixel cache, and the image sets that read it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from oneshui_hf.data.face_set import FaceSet, face_sets
from oneshui_hf.data.images import decode, to_pixels
from oneshui_hf.data.load import load_faces
from oneshui_hf.data.pixels import load_pixels
from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.data.split import make_split
from oneshui_hf.errors import OneshuiError
from oneshui_hf.reporting import Reporter
from support.faces import portrait

MakeFolder = Callable[..., Path]


POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 1\n"
)


class RecordingReporter(Reporter):
    def __init__(self) -> None:
        self.tracked, self.warnings = 0, list[str]()

    def track(self, items: Iterable[Any], label: str, total: int | None = None) -> Iterator[Any]:
        self.tracked += 1
        yield from items

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def cached_files(cache: Path) -> list[str]:
    return sorted(file.name for file in cache.iterdir() if file.suffix != ".lock")


def decoded(folder: Path, keys: Iterable[str], size: int = 24) -> np.ndarray:
    return np.stack([to_pixels(decode(folder / key), size) for key in keys])


def truncated(photo: Path) -> bytes:
    image = portrait(3, 3, (64, 64))
    image.save(photo, "JPEG")
    return photo.read_bytes()[:-200]


def tiny(photo: Path) -> bytes:
    portrait(3, 3, (15, 15)).save(photo, "PNG")
    return photo.read_bytes()


BAD: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "empty": (lambda photo: b"", "is not an image that can be read"),
    "truncated": (truncated, "is damaged or truncated"),
    "text": (lambda photo: b"<!DOCTYPE html><html></html>", "is not an image that can be read"),
    "pointer": (lambda photo: POINTER, "is a Git LFS pointer, not the photo itself; run `git lfs pull`"),
    "tiny": (tiny, "is 15x15 pixels; a portrait needs at least 16 a side"),
}


def corrupt(folder: Path, *keys: str) -> None:
    for key in keys:
        (folder / key).write_bytes(b"no photo")


def face_set(identities: list[int]) -> FaceSet:
    """Return a set of photos 0, 10, 20, ... of a store in which all values of photo i are i."""
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
    folder, reporter = photo_folder(people=2, photos=2), RecordingReporter()
    faces, pixels = load_pixels(load_faces(str(folder)), 24, reporter)
    assert len(faces) == 4
    assert pixels[faces.arrow_rows].dtype == np.uint8
    assert np.array_equal(pixels[faces.arrow_rows], decoded(folder, faces.keys))
    assert pixels.unreadable_rows().size == 0
    assert reporter.warnings == []


def test_pixels_of_embedded_photos_are_read() -> None:
    faces, pixels = load_pixels(load_faces("synthetic"), 16)
    image = decode(faces.arrow_dataset[3]["image"]["bytes"])
    assert np.array_equal(pixels[np.array([3])][0], to_pixels(image, 16))


@pytest.mark.slow
def test_pixels_of_real_faces_equal_each_photo_decoded_and_resized(assets: Path) -> None:
    folder = assets / "faces" / "celeba"
    faces, pixels = load_pixels(load_faces("celeba", folder), 56)
    chosen = np.random.default_rng(0).choice(len(faces), 200, replace=False)
    assert len(faces) == 6113
    keys = [faces.keys[i] for i in chosen]
    assert np.array_equal(pixels[faces.arrow_rows[chosen]], decoded(folder / "img_align_celeba", keys, 56))


def test_photos_are_decoded_once_per_size(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    faces, reporter = load_faces(str(folder)), RecordingReporter()
    rows = faces.arrow_rows
    first = load_pixels(faces, 24, reporter)[1][rows]
    for photo in folder.glob("*/*.png"):
        photo.unlink()
    assert np.array_equal(load_pixels(faces, 24, reporter)[1][rows], first)
    assert reporter.tracked == 1
    with pytest.raises(OneshuiError, match="None of the 4 photos of 'photos' can be read: photo p00/0.png does not exist."):
        load_pixels(faces, 16, reporter)


@pytest.mark.parametrize("kind", sorted(BAD))
def test_undecodable_photo_is_excluded_and_named(photo_folder: MakeFolder, kind: str) -> None:
    folder, reporter = photo_folder(people=2, photos=2), RecordingReporter()
    content, reason = BAD[kind]
    photo = folder / "p01/0.png"
    photo.write_bytes(content(photo))
    faces, pixels = load_pixels(load_faces(str(folder)), 24, reporter)
    assert faces.keys == ["p00/0.png", "p00/1.png", "p01/1.png"]
    assert pixels.unreadable_rows().tolist() == [2]
    assert np.array_equal(pixels[faces.arrow_rows], decoded(folder, faces.keys))
    assert len(reporter.warnings) == 1
    assert reporter.warnings[0].startswith(f"1 of 4 photos of 'photos' cannot be read and are excluded: photo p01/0.png {reason}")


def test_nearly_constant_photos_are_named_when_the_file_is_written(photo_folder: MakeFolder) -> None:
    folder, reporter = photo_folder(people=2, photos=2), RecordingReporter()
    Image.new("RGB", (40, 40), (7, 90, 200)).save(folder / "p00/1.png")
    Image.new("RGBA", (40, 40), (7, 90, 200, 0)).save(folder / "p01/0.png")
    faces, _ = load_pixels(load_faces(str(folder)), 24, reporter)
    assert len(faces) == 4
    assert reporter.warnings == ["2 photos have nearly the same colour everywhere and may show nobody: p00/1.png, p01/0.png."]
    load_pixels(load_faces(str(folder)), 24, reporter)
    assert len(reporter.warnings) == 1


def test_photo_deleted_after_loading_is_excluded_and_named(photo_folder: MakeFolder) -> None:
    folder, reporter = photo_folder(people=2, photos=2), RecordingReporter()
    faces = load_faces(str(folder))
    (folder / "p00/1.png").unlink()
    faces, _ = load_pixels(faces, 24, reporter)
    assert faces.keys == ["p00/0.png", "p01/0.png", "p01/1.png"]
    assert reporter.warnings == ["1 of 4 photos of 'photos' cannot be read and are excluded: photo p00/1.png does not exist."]


def test_every_load_warns_about_unreadable_photos(photo_folder: MakeFolder) -> None:
    folder, reporter = photo_folder(people=2, photos=2), RecordingReporter()
    corrupt(folder, "p01/0.png")
    for _ in range(2):
        load_pixels(load_faces(str(folder)), 24, reporter)
    assert reporter.tracked == 1
    assert len(reporter.warnings) == 2
    assert reporter.warnings[0] == reporter.warnings[1]


def test_photo_restored_after_caching_has_another_reason(photo_folder: MakeFolder) -> None:
    folder, reporter = photo_folder(people=2, photos=2), RecordingReporter()
    faces = load_faces(str(folder))
    (folder / "p01/0.png").rename(folder / "aside")
    load_pixels(faces, 24)
    (folder / "aside").rename(folder / "p01/0.png")
    assert len(load_pixels(faces, 24, reporter)[0]) == 3
    assert "photo p01/0.png could not be read when the pixel file was written; remove" in reporter.warnings[0]
    assert "pixels-24.npy to try again." in reporter.warnings[0]


def test_at_most_five_undecodable_photos_are_named(photo_folder: MakeFolder) -> None:
    folder, reporter = photo_folder(people=4, photos=3), RecordingReporter()
    corrupt(folder, *(f"p{person:02d}/{photo}.png" for person in range(4) for photo in (1, 2)))
    faces, _ = load_pixels(load_faces(str(folder)), 24, reporter)
    assert len(faces) == 4
    assert reporter.warnings[0].startswith("8 of 12 photos")
    assert reporter.warnings[0].count("photo p") == 5
    assert reporter.warnings[0].endswith(" And 3 more; `oneshui data check` lists them.")


def test_person_without_a_decodable_photo_is_removed(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=4, photos=2)
    corrupt(folder, "p01/0.png", "p01/1.png", "p03/0.png")
    whole = load_faces(str(folder))
    faces, pixels = load_pixels(whole, 24)
    assert faces.people == ["p00", "p02", "p03"]
    assert faces.keys == ["p00/0.png", "p00/1.png", "p02/0.png", "p02/1.png", "p03/1.png"]
    assert [faces.people[number] for number in faces.identities] == [key[:3] for key in faces.keys]
    assert faces.identities.dtype == np.int64
    assert faces.arrow_rows.tolist() == [0, 1, 4, 5, 7]
    assert torch.equal(faces.labels, whole.labels[faces.arrow_rows])
    assert faces.photos_by_identity() == {"p00": ["p00/0.png", "p00/1.png"], "p02": ["p02/0.png", "p02/1.png"], "p03": ["p03/1.png"]}
    assert np.array_equal(pixels[faces.arrow_rows], decoded(folder, faces.keys))
    assert len(whole) == 8  # the argument is not modified


def test_data_set_without_a_decodable_photo_raises(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=1)
    corrupt(folder, "p00/0.png", "p01/0.png")
    with pytest.raises(OneshuiError, match=r"None of the 2 photos of 'photos' can be read: photo p00/0\.png is not an image"):
        load_pixels(load_faces(str(folder)), 24)


def test_failing_write_leaves_no_file(photo_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = load_faces(str(photo_folder(people=2, photos=2)))
    before = cached_files(faces.cache)

    def full(*arguments: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    monkeypatch.setattr("os.rename", full)
    with pytest.raises((OneshuiError, OSError), match="No space left on device"):
        load_pixels(faces, 24)
    assert cached_files(faces.cache) == before


def test_repaired_photo_is_read_on_the_next_call(photo_folder: MakeFolder) -> None:
    folder, reporter = photo_folder(people=2, photos=2), RecordingReporter()
    (folder / "p01/0.png").write_bytes(b"")
    assert len(load_pixels(load_faces(str(folder)), 24)[0]) == 3
    portrait(1, 0).save(folder / "p01/0.png")
    faces, pixels = load_pixels(load_faces(str(folder)), 24, reporter)
    assert len(faces) == 4
    assert np.array_equal(pixels[faces.arrow_rows], decoded(folder, faces.keys))
    assert reporter.warnings == []


def test_replaced_photo_of_the_same_file_size_is_read_again(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    photo = folder / "p00/0.png"
    portrait(0, 0).save(photo, "BMP")  # uncompressed: the file size depends on the image size only
    load_pixels(load_faces(str(folder)), 24)
    portrait(7, 7).save(photo, "BMP")
    assert np.array_equal(load_pixels(load_faces(str(folder)), 24)[1][np.array([0])][0], to_pixels(decode(photo), 24))


def test_damaged_row_raises_when_it_is_read(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=2)
    faces = load_faces(str(folder))
    load_pixels(faces, 24)
    file = faces.cache / "pixels-24.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    faces, pixels = load_pixels(faces, 24)
    assert np.array_equal(pixels[faces.arrow_rows[:3]], decoded(folder, faces.keys[:3]))
    with pytest.raises(OneshuiError, match=r"pixels-24\.npy is damaged at row 3; remove it and run again"):
        pixels[faces.arrow_rows[3:]]


def test_cache_of_another_shape_raises(photo_folder: MakeFolder) -> None:
    faces = load_faces(str(photo_folder(people=2, photos=2)))
    np.save(faces.cache / "pixels-24.npy", np.zeros((1, 3, 24, 24), dtype=np.uint8))
    with pytest.raises(OneshuiError, match=r"pixels-24\.npy does not fit its data set; remove it"):
        load_pixels(faces, 24)


def test_cache_that_is_not_an_array_raises(photo_folder: MakeFolder) -> None:
    faces = load_faces(str(photo_folder(people=2, photos=2)))
    (faces.cache / "pixels-24.npy").write_bytes(b"nonsense")
    with pytest.raises(OneshuiError, match=r"pixels-24\.npy"):
        load_pixels(faces, 24)


def test_batch_contains_the_photos_at_the_positions() -> None:
    faces = face_set([0, 1, 1, 2])
    positions = torch.tensor([2, 0])
    pixels, labels = faces.batch(positions)
    assert faces.raw_pixels(positions)[:, 0, 0, 0].tolist() == [20, 0]
    assert pixels.shape == (2, 3, 4, 4)
    assert pixels[:, 0, 0, 0].tolist() == pytest.approx([(20 / 255 - 0.5) / 0.25, -2])
    assert labels.tolist() == [[4, 5], [0, 1]]


def test_subset_contains_the_photos_at_the_positions() -> None:
    faces = face_set([0, 1, 1, 2])
    part = faces.subset(torch.tensor([3, 1]))
    assert len(part) == 2
    assert part.rows.tolist() == [30, 10]
    assert part.identities.tolist() == [2, 1]
    assert part.labels.tolist() == [[6, 7], [2, 3]]
    assert torch.equal(part.batch(torch.tensor([0]))[0], faces.batch(torch.tensor([3]))[0])
    assert part.people == faces.people


def test_empty_subset_is_empty() -> None:
    part = face_set([0, 1]).subset(torch.tensor([], dtype=torch.int64))
    assert len(part) == 0
    assert part.batch(torch.arange(0))[0].shape == (0, 3, 4, 4)
    assert part.positions_of == {}


def test_positions_of_maps_people_to_their_photos() -> None:
    found = face_set([2, 0, 2, 3, 0, 2]).positions_of
    assert {person: photos.tolist() for person, photos in found.items()} == {0: [1, 4], 2: [0, 2, 5], 3: [3]}


def test_sets_share_identity_indices_and_only_train_has_reserved_photos(photo_folder: MakeFolder) -> None:
    faces, pixels = load_pixels(load_faces(str(photo_folder(people=12, photos=3))), 16)
    split = make_split(faces.photos_by_identity(), 0, 1, reserve_supports=2)
    sets = face_sets(faces, pixels, split, Preprocess(16))
    assert {name for name, part in sets.items() if part.reserved is not None} == {"train"}
    reserved = sets["train"].reserved
    assert reserved is not None
    assert sorted(faces.keys[row] for row in reserved.rows) == sorted(split.reserved.values())
    for name, part in sets.items():
        assert [faces.people[i] for i in faces.identities[part.rows]] == [part.people[i] for i in part.identities], name
        assert torch.equal(part.labels, faces.labels[part.rows])
    assert {sets["forget"].people[i] for i in sets["forget"].identities} == set(split.forget)


def test_sets_contain_the_right_photos_after_exclusions(photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=12, photos=4)
    corrupt(folder, "p00/0.png", "p02/3.png", *(f"p05/{photo}.png" for photo in range(4)), "p07/1.png", "p11/3.png")
    whole = load_faces(str(folder))
    faces, pixels = load_pixels(whole, 24)
    split = make_split(faces.photos_by_identity(), 0, 2)
    sets, positions = face_sets(faces, pixels, split, Preprocess(24)), split.sets(faces)
    assert sum(len(sets[name]) for name in ("train", "val", "test", "support", "reserved")) == len(faces) == 48 - 8
    for name, part in sets.items():
        keys = [faces.keys[i] for i in positions[name]]
        order = torch.randperm(len(part), generator=torch.Generator().manual_seed(0))
        assert [whole.keys[row] for row in part.rows] == keys
        assert [part.people[number] for number in part.identities] == [key[:3] for key in keys]
        assert torch.equal(part.labels, whole.labels[[whole.keys.index(key) for key in keys]])
        assert np.array_equal(part.raw_pixels(order).numpy(), decoded(folder, [keys[i] for i in order])), name


def test_forget_identities_are_excluded_from_simulation_in_disjoint_splits(photo_folder: MakeFolder) -> None:
    faces, pixels = load_pixels(load_faces(str(photo_folder(people=12, photos=3))), 16)
    excluded = {}
    for kind in ("all", "disjoint"):
        split = make_split(faces.photos_by_identity(), 0, 2, meta_identities=kind)
        sets = face_sets(faces, pixels, split, Preprocess(16))
        excluded[kind] = {faces.people[number] for number in sets["train"].excluded_from_simulation}
        assert not any(part.excluded_from_simulation for name, part in sets.items() if name != "train")
    assert excluded == {"all": set(), "disjoint": set(split.forget)}
    assert len(split.forget) == 2

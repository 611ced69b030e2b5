"""Properties of photos without a model, and the search for near-duplicates."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from oneshui_hf.data.image_hashes import NEAR_DUPLICATE_BITS, TILE, find_near_duplicates, hash_image, hash_images
from oneshui_hf.data.load import load_faces
from support.faces import portrait

SIZE = (89, 109)
VERSIONS: dict[str, Callable[[Image.Image], bytes]] = {
    "unchanged": lambda image: encoded(image, 95),
    "a lower quality": lambda image: encoded(image, 50),
    "slightly larger": lambda image: encoded(image.resize((93, 114), Image.Resampling.BICUBIC)),
    "half the size": lambda image: encoded(image.resize((44, 54), Image.Resampling.BICUBIC)),
    "slightly brighter": lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.1)),
}


def encoded(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def scene(number: int) -> Image.Image:
    """Return noise with the spectrum of photos: amplitude inversely proportional to frequency."""
    width, height = SIZE
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    frequency[0, 0] = 1
    noise = np.random.default_rng(number).normal(size=(3, height, width))
    pixels = np.fft.ifft2(np.fft.fft2(noise) / frequency).real
    pixels = 128 + 35 * (pixels - pixels.mean()) / pixels.std()
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def distance(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.bitwise_count(first["hash"] ^ second["hash"]).sum())


def with_neighbours(seed: int, count: int, neighbours: int, bits: int) -> np.ndarray:
    """Return random hashes; some equal another one with up to bits + 2 flipped bits."""
    draws = np.random.default_rng(seed)
    hashes = draws.integers(0, 2**64, (count, 4), dtype=np.uint64, endpoint=False)
    for _ in range(neighbours if count > 1 else 0):
        source, target = draws.choice(count, 2, replace=False)
        flipped = np.zeros(256, dtype=bool)
        flipped[draws.choice(256, draws.integers(0, bits + 3), replace=False)] = True
        hashes[target] = hashes[source] ^ np.packbits(flipped).view("<u8")
    return hashes


def all_pairs(hashes: np.ndarray, bits: int) -> list[list[int]]:
    found = []
    for row in range(len(hashes)):
        near = np.bitwise_count(hashes[row] ^ hashes[row + 1 :]).sum(axis=1) <= bits
        found += [[row, row + 1 + int(other)] for other in np.flatnonzero(near)]
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0, 1, 2, 63, 64, 65, 127, 128, 200]), st.integers(0, 20), st.integers(0, 40))
def test_exactly_all_near_pairs_are_found(seed: int, count: int, neighbours: int, bits: int) -> None:
    hashes = with_neighbours(seed, count, neighbours, bits)
    assert find_near_duplicates(hashes, bits).tolist() == all_pairs(hashes, bits)


@pytest.mark.parametrize("count", [TILE[1] - 1, TILE[1], TILE[1] + 1])
def test_near_pairs_are_found_across_tile_borders(count: int) -> None:
    hashes = with_neighbours(0, count, 200, NEAR_DUPLICATE_BITS)
    hashes[count - 1] = hashes[0]
    hashes[TILE[0]] = hashes[TILE[0] - 1]
    pairs = find_near_duplicates(hashes, NEAR_DUPLICATE_BITS).tolist()
    assert [0, count - 1] in pairs
    assert [TILE[0] - 1, TILE[0]] in pairs
    assert len(pairs) > 100
    assert pairs == all_pairs(hashes, NEAR_DUPLICATE_BITS)


def test_empty_input_has_no_pairs() -> None:
    pairs = find_near_duplicates(np.zeros((0, 4), dtype=np.uint64), NEAR_DUPLICATE_BITS)
    assert pairs.shape == (0, 2)
    assert pairs.dtype == np.int64


@pytest.mark.parametrize("version", sorted(VERSIONS))
def test_photo_saved_again_is_a_near_duplicate(version: str) -> None:
    for number in range(10):
        assert distance(hash_image(encoded(scene(number), 95)), hash_image(VERSIONS[version](scene(number)))) <= NEAR_DUPLICATE_BITS


def test_different_portraits_are_no_near_duplicates() -> None:
    for draw in (portrait, lambda person, photo: scene(3 * person + photo)):
        records = hash_images([encoded(draw(person, photo)) for person in range(8) for photo in range(3)])
        assert find_near_duplicates(records["hash"], NEAR_DUPLICATE_BITS).tolist() == []


def test_record_contains_size_mode_and_file_hash(tmp_path: Path) -> None:
    file = tmp_path / "face.png"
    portrait(0, 0, (40, 50)).convert("L").save(file)
    record = hash_image(str(file))
    assert record["readable"]
    assert (record["width"], record["height"], record["mode"]) == (40, 50, b"L")
    assert record["file"] == hashlib.sha256(file.read_bytes()).digest().rstrip(b"\0")  # NumPy removes trailing zeros
    assert record == hash_image(file.read_bytes())


def test_rotated_photo_is_hashed_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    scene(0).transpose(Image.Transpose.ROTATE_90).save(buffer, "JPEG", quality=95, exif=exif)
    record = hash_image(buffer.getvalue())
    assert (record["width"], record["height"]) == SIZE
    assert distance(record, hash_image(encoded(scene(0), 95))) <= NEAR_DUPLICATE_BITS


@pytest.mark.parametrize("content", [b"", b"no photo", b"version https://git-lfs.github.com/spec/v1\n", encoded(scene(0))[:-300]])
def test_undecodable_content_is_not_readable(content: bytes) -> None:
    record = hash_image(content)
    assert not record["readable"]
    assert not record["hash"].any()


def test_missing_file_is_not_readable(tmp_path: Path) -> None:
    assert not hash_image(str(tmp_path / "absent.jpg"))["readable"]
    assert not hash_image(str(tmp_path))["readable"]


def test_records_are_in_the_order_of_the_photos() -> None:
    photos = [encoded(portrait(number, 0, (20 + number, 30))) for number in range(20)]
    photos[4] = b""
    records = hash_images(photos)
    assert records["width"].tolist() == [0 if number == 4 else 20 + number for number in range(20)]
    assert all(record == hash_image(photo) for record, photo in zip(records, photos, strict=True))


@pytest.mark.slow
def test_near_duplicates_of_real_faces(assets: Path) -> None:
    faces = load_faces("celeba", assets / "faces" / "celeba")
    records = hash_images([faces.encoded_image(row) for row in range(len(faces))])
    first, second = find_near_duplicates(records["hash"], 48).T
    distances = np.bitwise_count(records["hash"][first] ^ records["hash"][second]).sum(axis=1)
    different_people = (faces.identities[first] != faces.identities[second]) & (records["file"][first] != records["file"][second])
    # Six photos occur under two names with two crops, five of which are similar. Photos of different people differ in at least 50 bits.
    assert np.count_nonzero(different_people) == 6
    assert np.count_nonzero(different_people & (distances <= NEAR_DUPLICATE_BITS)) == 5
    assert distances[different_people].max() < 42
    for row in np.random.default_rng(0).choice(len(faces), 100, replace=False).tolist():
        with Image.open(str(faces.encoded_image(row))) as photo:
            again = ImageEnhance.Brightness(photo.convert("RGB")).enhance(1.1)
            assert max(distance(records[row], hash_image(encoded(again))), distance(records[row], hash_image(encoded(photo, 30)))) <= 16

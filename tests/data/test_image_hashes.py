"""What is told of photos without a model, and that near-duplicates are all found, and nothing else."""

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

from oneshui_hf.data.image_hashes import NEAR, TILE, look, look_at, near_pairs
from oneshui_hf.data.load import load_faces
from support.faces import portrait

SIZE = (89, 109)
WAYS: dict[str, Callable[[Image.Image], bytes]] = {
    "as it is": lambda image: encoded(image, 95),
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
    """Noise with the spectrum of photos: the finer, the fainter."""
    width, height = SIZE
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    frequency[0, 0] = 1
    noise = np.random.default_rng(number).normal(size=(3, height, width))
    pixels = np.fft.ifft2(np.fft.fft2(noise) / frequency).real
    pixels = 128 + 35 * (pixels - pixels.mean()) / pixels.std()
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def distance(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.bitwise_count(first["hash"] ^ second["hash"]).sum())


def with_neighbours(seed: int, count: int, planted: int, bits: int) -> np.ndarray:
    """Random hashes, some of which repeat another with up to bits + 2 of their bits flipped."""
    draws = np.random.default_rng(seed)
    hashes = draws.integers(0, 2**64, (count, 4), dtype=np.uint64, endpoint=False)
    for _ in range(planted if count > 1 else 0):
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
def test_all_near_pairs_are_found_and_no_other(seed: int, count: int, planted: int, bits: int) -> None:
    hashes = with_neighbours(seed, count, planted, bits)
    assert near_pairs(hashes, bits).tolist() == all_pairs(hashes, bits)


@pytest.mark.parametrize("count", [TILE[1] - 1, TILE[1], TILE[1] + 1])
def test_near_pairs_are_found_across_the_borders_of_the_table(count: int) -> None:
    hashes = with_neighbours(0, count, 200, NEAR)
    hashes[count - 1] = hashes[0]
    hashes[TILE[0]] = hashes[TILE[0] - 1]
    pairs = near_pairs(hashes, NEAR).tolist()
    assert [0, count - 1] in pairs
    assert [TILE[0] - 1, TILE[0]] in pairs
    assert len(pairs) > 100
    assert pairs == all_pairs(hashes, NEAR)


def test_no_hashes_have_no_pairs() -> None:
    pairs = near_pairs(np.zeros((0, 4), dtype=np.uint64), NEAR)
    assert pairs.shape == (0, 2)
    assert pairs.dtype == np.int64


@pytest.mark.parametrize("way", sorted(WAYS))
def test_a_photo_saved_again_is_near(way: str) -> None:
    for number in range(10):
        assert distance(look(encoded(scene(number), 95)), look(WAYS[way](scene(number)))) <= NEAR


def test_other_portraits_are_not_near() -> None:
    for draw in (portrait, lambda person, photo: scene(3 * person + photo)):
        looks = look_at([encoded(draw(person, photo)) for person in range(8) for photo in range(3)])
        assert near_pairs(looks["hash"], NEAR).tolist() == []


def test_a_look_tells_size_mode_and_file(tmp_path: Path) -> None:
    file = tmp_path / "face.png"
    portrait(0, 0, (40, 50)).convert("L").save(file)
    seen = look(str(file))
    assert seen["readable"]
    assert (seen["width"], seen["height"], seen["mode"]) == (40, 50, b"L")
    assert seen["file"] == hashlib.sha256(file.read_bytes()).digest().rstrip(b"\0")  # NumPy keeps no zeros at the end
    assert seen == look(file.read_bytes())


def test_a_turned_photo_is_looked_at_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    scene(0).transpose(Image.Transpose.ROTATE_90).save(buffer, "JPEG", quality=95, exif=exif)
    seen = look(buffer.getvalue())
    assert (seen["width"], seen["height"]) == SIZE
    assert distance(seen, look(encoded(scene(0), 95))) <= NEAR


@pytest.mark.parametrize("content", [b"", b"no photo", b"version https://git-lfs.github.com/spec/v1\n", encoded(scene(0))[:-300]])
def test_what_cannot_be_decoded_is_not_readable(content: bytes) -> None:
    seen = look(content)
    assert not seen["readable"]
    assert not seen["hash"].any()


def test_a_file_that_is_not_there_is_not_readable(tmp_path: Path) -> None:
    assert not look(str(tmp_path / "absent.jpg"))["readable"]
    assert not look(str(tmp_path))["readable"]


def test_looks_are_in_the_order_of_the_photos() -> None:
    photos = [encoded(portrait(number, 0, (20 + number, 30))) for number in range(20)]
    photos[4] = b""
    looks = look_at(photos)
    assert looks["width"].tolist() == [0 if number == 4 else 20 + number for number in range(20)]
    assert all(seen == look(photo) for seen, photo in zip(looks, photos, strict=True))


@pytest.mark.slow
def test_real_faces_saved_again_are_near_and_other_people_are_not(assets: Path) -> None:
    faces = load_faces("celeba", assets / "faces" / "celeba")
    looks = look_at([faces.image(row) for row in range(len(faces))])
    first, second = near_pairs(looks["hash"], 48).T
    apart = np.bitwise_count(looks["hash"][first] ^ looks["hash"][second]).sum(axis=1)
    strangers = (faces.identities[first] != faces.identities[second]) & (looks["file"][first] != looks["file"][second])
    # Six photos bear two names and are cropped twice, five of them alike. Photos that are really of two people begin at 50.
    assert np.count_nonzero(strangers) == 6
    assert np.count_nonzero(strangers & (apart <= NEAR)) == 5
    assert apart[strangers].max() < 42
    for row in np.random.default_rng(0).choice(len(faces), 100, replace=False).tolist():
        with Image.open(str(faces.image(row))) as photo:
            again = ImageEnhance.Brightness(photo.convert("RGB")).enhance(1.1)
            assert max(distance(looks[row], look(encoded(again))), distance(looks[row], look(encoded(photo, 30)))) <= 16

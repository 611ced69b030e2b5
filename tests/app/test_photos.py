from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oneshui_hf.app.photos import MAX_SAMPLES, PREVIEW, Photo, fitness_warnings, read_samples
from oneshui_hf.data.images import ImageError
from oneshui_hf.errors import UsageError


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8))


def test_a_good_photo_has_no_warning() -> None:
    assert fitness_warnings(noise(200, 300), 1) == []
    assert fitness_warnings(noise(200, 300), None) == []


@pytest.mark.parametrize(
    ("image", "faces", "words"),
    [
        (noise(200, 200), 0, "No face was found"),
        (noise(200, 200), 3, "shows 3 faces"),
        (noise(31, 200), 1, "31x200 pixels"),
        (Image.new("RGB", (200, 200), (9, 9, 9)), 1, "nearly the same colour everywhere"),
    ],
)
def test_each_problem_is_one_warning(image: Image.Image, faces: int, words: str) -> None:
    (warning,) = fitness_warnings(image, faces)
    assert words in warning


def test_a_preview_is_small_and_has_no_metadata() -> None:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "canary"
    noise(800, 400).save(stream, "JPEG", exif=exif)
    assert b"canary" in stream.getvalue()
    photo = Photo.of(stream.getvalue())
    address = photo.preview()
    import base64

    data = base64.b64decode(address.removeprefix("data:image/jpeg;base64,"))
    assert b"canary" not in data
    assert max(Image.open(io.BytesIO(data)).size) == PREVIEW
    assert "canary" not in repr(photo)


def test_a_file_that_is_no_photo_is_the_command_lines_sentence() -> None:
    with pytest.raises(ImageError, match=r"^The photo is not an image that can be read \(JPEG, PNG, WebP, ...\)\.$"):
        Photo.of(b"no photo")


def test_samples_are_bounded_and_unreadable_files_are_counted(tmp_path: Path, photo_bytes: Callable[[int], bytes]) -> None:
    for number in range(MAX_SAMPLES + 2):
        (tmp_path / f"{number:03d}.png").write_bytes(b"broken" if number == 0 else photo_bytes(number % 3))
    (tmp_path / "notes.txt").write_text("x")
    found = read_samples(str(tmp_path))
    assert (len(found.images), found.unreadable) == (MAX_SAMPLES - 1, 1)
    assert read_samples(None).images == ()


def test_samples_that_are_missing_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no folder .*; name with --samples"):
        read_samples(str(tmp_path / "missing"))
    with pytest.raises(UsageError, match="contains no photo that can be read"):
        read_samples(str(tmp_path))

"""Decoding and resizing of photos: errors, and equality with the image processor of a run."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features

from oneshui_hf.data.images import ImageError, decode, to_pixels
from oneshui_hf.data.preprocess import Preprocess

ORIENTATION = 0x0112
TURNS = {  # EXIF orientation: how the stored pixels differ from the upright ones (the inverse of the decoder's transformation)
    1: lambda upright: upright,
    2: lambda upright: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda upright: upright.transpose(Image.Transpose.ROTATE_180),
    4: lambda upright: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda upright: upright.transpose(Image.Transpose.TRANSPOSE),
    6: lambda upright: upright.transpose(Image.Transpose.ROTATE_90),
    7: lambda upright: upright.transpose(Image.Transpose.TRANSVERSE),
    8: lambda upright: upright.transpose(Image.Transpose.ROTATE_270),
}


def noise(width: int = 24, height: int = 20, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def photo(width: int = 24, height: int = 20) -> Image.Image:
    return Image.fromarray(noise(width, height))


def encoded(image: Image.Image, kind: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def test_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"absent\.jpg does not exist\."):
        decode(tmp_path / "absent.jpg")


def test_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is a folder, not an image"):
        decode(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no picture\n", b"<!DOCTYPE html><html></html>"])
def test_text_file_raises(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "notes.jpg"
    file.write_bytes(content)
    with pytest.raises(ImageError, match=r"notes\.jpg is not an image that can be read"):
        decode(file)


@pytest.mark.parametrize("kind", [bytes, Path, str])
def test_git_lfs_pointer_raises_its_own_message(tmp_path: Path, kind: type) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 51234\n"
    file = tmp_path / "face.jpg"
    file.write_bytes(pointer)
    sentence = r"face\.jpg is a Git LFS pointer, not the photo itself; run `git lfs pull` in its repository\.$"
    with pytest.raises(ImageError, match=sentence):
        decode(pointer if kind is bytes else kind(file), "face.jpg" if kind is bytes else None)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_truncated_file_raises(kind: str) -> None:
    whole = encoded(photo(64, 64), kind)
    decode(whole)
    with pytest.raises(ImageError, match="is damaged or truncated"):
        decode(whole[: len(whole) // 2], "the portrait")


def test_messages_contain_the_given_name() -> None:
    with pytest.raises(ImageError, match="^photo 7 of 'faces' is not an image"):
        decode(b"text", "photo 7 of 'faces'")


def test_one_pixel_raises() -> None:
    with pytest.raises(ImageError, match="is 1x1 pixels; a portrait needs at least 16 a side"):
        decode(Image.new("RGB", (1, 1)))


def test_sixteen_pixels_a_side_are_accepted() -> None:
    assert decode(Image.new("RGB", (16, 16))).size == (16, 16)
    with pytest.raises(ImageError, match="15x16"):
        decode(Image.new("RGB", (15, 16)))


def test_every_kind_of_source_gives_the_same_pixels(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    photo().save(file)
    for source in (file, str(file), file.read_bytes(), photo()):
        assert np.array_equal(np.asarray(decode(source)), noise())


def test_cmyk_jpeg_gives_rgb() -> None:
    grey = Image.new("RGB", (20, 20), (200, 100, 50))
    image = decode(encoded(grey.convert("CMYK"), "JPEG", quality=100))
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - (200, 100, 50)).max() <= 4


@pytest.mark.parametrize("orientation", sorted(TURNS))
def test_exif_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = TURNS[orientation](photo())
    image = decode(encoded(stored, "PNG", exif=exif))
    assert image.size == (24, 20)
    assert np.array_equal(np.asarray(image), noise())


def test_exif_orientation_of_a_jpeg_is_applied() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    upright = np.asarray(decode(encoded(photo(), "JPEG", quality=95)))
    turned = np.asarray(decode(encoded(TURNS[6](photo()), "JPEG", quality=95, exif=exif)))
    assert turned.shape == upright.shape
    assert np.abs(turned.astype(int) - upright).mean() < 12  # two lossy encodings of noise


def test_palette_is_converted_to_rgb() -> None:
    palette = photo().quantize(8)
    image = decode(encoded(palette, "PNG"))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(palette.convert("RGB")))


def test_alpha_is_dropped() -> None:
    rgba = np.dstack([noise(), np.full((20, 24), 255, dtype=np.uint8)])
    assert np.array_equal(np.asarray(decode(encoded(Image.fromarray(rgba), "PNG"))), noise())


def test_grey_gives_three_equal_channels() -> None:
    grey = noise(channels=1)
    image = np.asarray(decode(encoded(Image.fromarray(grey), "PNG")))
    assert np.array_equal(image, np.dstack([grey] * 3))


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    levels = np.linspace(0, 65535, 24 * 20).astype(np.uint16).reshape(20, 24)
    image = np.asarray(decode(encoded(Image.fromarray(levels), "PNG")))
    assert np.abs(image[..., 0].astype(int) - (levels >> 8)).max() <= 1
    assert np.array_equal(image[..., 0], image[..., 2])


def test_first_frame_of_an_animation_is_used() -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    image = decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert set(map(tuple, np.asarray(image).reshape(-1, 3).tolist())) == {(255, 0, 0)}


def bomb(width: int, height: int) -> bytes:
    """Return a PNG of a few hundred bytes that declares width x height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_001, 20_000])
def test_decompression_bomb_raises_without_allocating(side: int) -> None:
    decode(photo())  # imports are not measured
    data, start = bomb(side, side), time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="over the limit of 100 megapixels"):
            decode(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < 1
    assert peak < 5_000_000


def test_input_image_is_not_modified() -> None:
    image = photo()
    image.getexif()[ORIENTATION] = 6
    assert decode(image).size == (20, 24)
    assert image.size == (24, 20)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns about skipped data
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_damaged_bytes_decode_or_raise_one_sentence(kind: str) -> None:
    draws = np.random.default_rng(0)
    whole = encoded(photo(), kind)
    for _ in range(150):
        damaged = bytearray(whole)
        for place in draws.integers(0, len(damaged), 4):
            damaged[place] = draws.integers(0, 256)
        try:
            assert decode(bytes(damaged)).mode == "RGB"
        except ImageError as error:
            assert str(error).startswith("the image is")


@pytest.mark.skipif(not features.check("avif"), reason="this build of Pillow does not read AVIF")
def test_damaged_avif_decodes_or_raises_one_sentence() -> None:
    draws, whole = np.random.default_rng(0), encoded(photo(64, 64), "AVIF")
    for place in draws.integers(0, min(len(whole), 400), 60):
        damaged = bytearray(whole)
        damaged[place] ^= 255
        try:
            assert decode(bytes(damaged)).mode == "RGB"
        except ImageError as error:
            assert str(error).startswith("the image is")


def test_postscript_raises() -> None:  # Pillow would start Ghostscript, which can run programs
    with pytest.raises(ImageError, match="is not an image that can be read"):
        decode(encoded(photo(), "EPS"))


def test_to_pixels_is_channels_first_and_square() -> None:
    pixels = to_pixels(photo(), 32)
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == np.uint8
    assert pixels.flags["C_CONTIGUOUS"]


def test_to_pixels_keeps_an_image_of_that_size() -> None:
    image = photo(32, 32)
    assert np.array_equal(to_pixels(image, 32), np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize("size", [(24, 20), (178, 218), (32, 32), (401, 77)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_pixels_equal_the_image_processor_of_the_run(tmp_path: Path, size: tuple[int, int], mode: str) -> None:
    from transformers import AutoImageProcessor

    preprocess = Preprocess(32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
    preprocess.save(tmp_path)
    image = decode(encoded(photo(*size).convert(mode), "PNG"))
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    theirs = processor(image, return_tensors="pt")["pixel_values"]
    ours = preprocess(torch.from_numpy(to_pixels(image, 32)).unsqueeze(0))
    assert ours.dtype == theirs.dtype == torch.float32
    assert (ours - theirs).abs().max() < 1e-5


def test_image_processor_round_trip(tmp_path: Path) -> None:
    preprocess = Preprocess(40, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
    preprocess.save(tmp_path)
    assert Preprocess.load(tmp_path) == preprocess


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_sixteen_bit_grey_keeps_its_shades_in_either_byte_order(tmp_path: Path, dtype: str) -> None:
    ramp = np.linspace(0, 65535, 64).astype(dtype)[None].repeat(32, 0)
    file = tmp_path / "deep.tiff"
    mode = "I;16" if dtype == "<u2" else "I;16B"
    Image.frombytes(mode, (64, 32), ramp.tobytes()).save(file)
    assert np.abs(np.asarray(decode(file))[..., 0].astype(int) - ramp.astype(int) // 257).max() <= 1


@pytest.mark.parametrize(("mode", "value"), [("I", 70_000), ("F", 0.5)])
def test_grey_of_unknown_range_raises(tmp_path: Path, mode: str, value: float) -> None:
    Image.new(mode, (32, 32), value).save(tmp_path / "deep.tiff")
    with pytest.raises(ImageError, match="contains 32-bit values of unknown range"):
        decode(tmp_path / "deep.tiff")


def test_any_error_of_pillow_is_reported_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "odd.jpg")
    for error in (struct.error("required argument is not an integer"), TypeError("bad operand"), MemoryError()):
        monkeypatch.setattr("oneshui_hf.data.image_modes.to_rgb", _raiser(error))
        with pytest.raises(ImageError, match=r"odd\.jpg is damaged or truncated"):
            decode(tmp_path / "odd.jpg")


def _raiser(error: Exception) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "a/" * 3000 + "b.png"])
def test_name_that_no_file_can_have_is_one_short_sentence(tmp_path: Path, name: str) -> None:
    for source in (tmp_path / name, str(tmp_path / name)):
        with pytest.raises(ImageError, match="cannot be read: File name too long") as caught:
            decode(source)
        assert len(str(caught.value)) < 300


def test_link_to_itself_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("a.png")
    with pytest.raises(ImageError, match="a.png cannot be read: Too many levels of symbolic links"):
        decode(tmp_path / "a.png")

"""Transparent and deep photos look as people see them, in files and in memory."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image, features

from oneshui_hf.data.image_modes import BACKGROUND, is_nearly_constant
from oneshui_hf.data.images import ImageError, decode
from support.image_files import HEIGHT, NOISE, WIDTH, chunk, encoded, exif, photo, png_with, raw_png, tiff

ALPHA = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
ALPHA[:, : WIDTH // 2] = 255
RGBA, LA = np.dstack([NOISE, ALPHA]), np.dstack([NOISE[..., 0], ALPHA])
GREY = np.dstack([NOISE[..., 0]] * 3)
ON_WHITE, GREY_ON_WHITE = (np.where(ALPHA[..., None] == 255, pixels, 255) for pixels in (NOISE, GREY))
PALETTE = photo().quantize(8)


def hide(pixels: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.where(where[..., None], 255, pixels)


def cut_outs() -> dict[str, tuple[bytes | Image.Image, np.ndarray]]:
    rgba, la, colours = Image.fromarray(RGBA), Image.fromarray(LA), np.asarray(PALETTE.convert("RGB"))
    three = np.asarray(PALETTE) == 3
    first, dark = tuple(NOISE[0, 0].tolist()), int(NOISE[0, 0, 0])
    bits = photo().convert("1")
    four = NOISE[..., 0] >> 4
    packed = four[:, 0::2] << 4 | four[:, 1::2]
    animation = {"save_all": True, "append_images": [rgba.transpose(Image.Transpose.ROTATE_180)]}
    return {
        "RGBA PNG": (encoded(rgba, "PNG"), ON_WHITE),
        "RGBA WebP": (encoded(rgba, "WEBP", lossless=True, exact=True), ON_WHITE),
        "RGBA TIFF": (encoded(rgba, "TIFF"), ON_WHITE),
        "APNG": (encoded(rgba, "PNG", **animation), ON_WHITE),
        "animated WebP": (encoded(rgba, "WEBP", lossless=True, exact=True, **animation), ON_WHITE),
        "RGBA in memory": (rgba, ON_WHITE),
        "premultiplied in memory": (rgba.convert("RGBa"), ON_WHITE),
        "LA PNG": (encoded(la, "PNG"), GREY_ON_WHITE),
        "La in memory": (la.convert("La"), GREY_ON_WHITE),
        "PA in memory": (PALETTE.convert("PA"), colours),
        "fully transparent": (encoded(Image.fromarray(np.dstack([NOISE, 0 * ALPHA])), "PNG"), np.full_like(NOISE, 255)),
        "opaque": (encoded(Image.fromarray(np.dstack([NOISE, 0 * ALPHA + 255])), "PNG"), NOISE),
        "one colour of a palette": (encoded(PALETTE, "PNG", transparency=3), hide(colours, three)),
        "GIF": (encoded(PALETTE, "GIF", transparency=3), hide(colours, three)),
        "alpha of a palette": (encoded(PALETTE, "PNG", transparency=bytes([255, 255, 255, 0, 255, 255, 255, 255])), hide(colours, three)),
        "one colour": (encoded(photo(), "PNG", transparency=first), hide(NOISE, np.all(np.equal(NOISE, NOISE[0, 0]), axis=-1))),
        "one grey": (encoded(Image.fromarray(NOISE[..., 0]), "PNG", transparency=dark), hide(GREY, NOISE[..., 0] == dark)),
        "black of two colours": (encoded(bits, "PNG", transparency=0), np.full_like(NOISE, 255)),
        "one of 16 greys": (
            raw_png(packed, 0, 4, chunk(b"tRNS", struct.pack(">H", 3))),
            hide(np.dstack([four * 17] * 3), four == 3),
        ),
        "turned": (png_with(chunk(b"eXIf", exif()), png=encoded(rgba, "PNG")), np.rot90(ON_WHITE, -1)),
    }


@pytest.mark.parametrize("name", sorted(cut_outs()))
def test_transparent_parts_are_white(name: str) -> None:
    source, expected = cut_outs()[name]
    image = decode(source)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), expected)


def test_half_transparent_parts_are_mixed_with_the_background() -> None:
    half = encoded(Image.fromarray(np.dstack([NOISE, np.full((HEIGHT, WIDTH), 128, dtype=np.uint8)])), "PNG")
    expected = (NOISE * 128.0 + np.array(BACKGROUND) * 127.0) / 255
    assert np.abs(np.asarray(decode(half)) - expected).max() < 1


@pytest.mark.skipif(not features.check("avif"), reason="this build of Pillow does not read AVIF")
def test_transparent_parts_of_an_avif_are_white() -> None:
    pixels = np.asarray(decode(encoded(Image.fromarray(RGBA), "AVIF", quality=95)))
    assert pixels[:, WIDTH // 2 + 8 :].min() > 240


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["RGB", "RGBA", "L", "LA"])
def test_16_bit_png_is_scaled_by_what_it_holds(bits: int, kind: str) -> None:
    deep = (NOISE.astype(np.uint32) * ((1 << bits) - 1) // 255).astype(np.uint16)
    alpha = (ALPHA.astype(np.uint32) * ((1 << bits) - 1) // 255).astype(np.uint16)
    values = {"RGB": deep, "RGBA": np.dstack([deep, alpha]), "L": deep[..., 0], "LA": np.dstack([deep[..., 0], alpha])}[kind]
    expected = {"RGB": NOISE, "RGBA": ON_WHITE, "L": GREY, "LA": GREY_ON_WHITE}[kind]
    found = np.asarray(decode(raw_png(values, {"L": 0, "RGB": 2, "LA": 4, "RGBA": 6}[kind], 16))).astype(int)
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("colour_type", [0, 2])
def test_transparent_value_of_a_16_bit_png_is_compared_exactly(colour_type: int) -> None:
    deep = NOISE.astype(np.uint16) << 8 | 7
    deep[0, 1] = deep[0, 0] + 1  # the same high byte
    values, key = (deep, deep[0, 0]) if colour_type else (deep[..., 0], deep[0, 0, :1])
    found = np.asarray(decode(raw_png(values, colour_type, 16, chunk(b"tRNS", key.astype(">u2").tobytes()))))
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[0, 1].tolist() == (NOISE[0, 0].tolist() if colour_type else [NOISE[0, 0, 0]] * 3)


@pytest.mark.parametrize("compressed", [False, True])
def test_12_bit_colours_of_a_tiff_are_scaled(compressed: bool) -> None:
    assert np.array_equal(np.asarray(decode(tiff(NOISE.astype(np.uint16) << 4, compressed=compressed))), NOISE)


def test_deep_pgm_and_32_bit_grey_within_16_bits_are_read() -> None:
    pgm = f"P5 {WIDTH} {HEIGHT} 65535\n".encode() + (NOISE[..., 0].astype(">u2") << 8).tobytes()
    assert np.array_equal(np.asarray(decode(pgm)), GREY)
    assert np.array_equal(np.asarray(decode(Image.fromarray(NOISE[..., 0].astype(np.int32) << 4))), GREY)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.fromarray(NOISE[..., 0].astype(np.int32) - 300), "32-bit values of unknown range"),
        (Image.fromarray(NOISE[..., 0].astype(np.float32)), "32-bit values of unknown range"),
        (Image.new("LAB", (20, 20)), "colour mode LAB"),
    ],
)
def test_values_without_a_known_meaning_are_refused_and_not_called_damaged(image: Image.Image, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as raised:
        decode(image)
    assert "damaged" not in str(raised.value)


@pytest.mark.parametrize(("low", "high", "constant"), [(255, 255, True), (100, 107, True), (100, 108, False), (0, 255, False)])
def test_nearly_constant_photo(low: int, high: int, constant: bool) -> None:
    pixels = np.full((3, 8, 8), low, dtype=np.uint8)
    pixels[1, 3, 3] = high
    assert is_nearly_constant(pixels) == constant

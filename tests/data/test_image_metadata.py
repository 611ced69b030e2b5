"""Metadata of any size or quality never make a photo unreadable, and damaged pixels still do."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oneshui_hf.data.image_hashes import hash_image
from oneshui_hf.data.image_metadata import without_metadata
from oneshui_hf.data.images import ImageError, decode
from support.image_files import NOISE, chunk, encoded, exif, jpeg_with, photo, png_with, raw_png, segment

BOMB = zlib.compress(bytes(3_000_000))
UPRIGHT = np.rot90(NOISE, -1)  # of orientation 6

PNG_METADATA = {
    "profile over 1 MB": chunk(b"iCCP", b"x\0\0" + BOMB),
    "profile with an unknown compression": chunk(b"iCCP", b"x\0\1" + BOMB),
    "profile cut off": chunk(b"iCCP", b"x"),
    "profile that is no profile": chunk(b"iCCP", b"x\0\0garbage"),
    "profile with a wrong checksum": chunk(b"iCCP", b"x\0\0" + BOMB, crc=1),
    "compressed text over 1 MB": chunk(b"zTXt", b"k\0\0" + BOMB),
    "international text over 1 MB": chunk(b"iTXt", b"k\0\1\0\0\0" + BOMB),
    "texts over 64 MB": chunk(b"tEXt", b"k\0" + b"a" * 9_000_000) * 8,
    "text with an unknown compression": chunk(b"zTXt", b"k\0\1abc"),
    "text with a wrong checksum": chunk(b"tEXt", b"k\0abc", crc=1),
    "raw profile that is not hexadecimal": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 10\nzzzz"),
    "compressed XMP over 1 MB": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB),
    "short gamma": chunk(b"gAMA", b"1"),
    "short size": chunk(b"pHYs", b"1"),
    "EXIF that is no EXIF": chunk(b"eXIf", b"garbage!"),
    "EXIF with a wrong checksum": chunk(b"eXIf", exif(orientation=1), crc=1),
    "animation that is none": chunk(b"acTL", b"1"),
}
JPEG_METADATA = {
    "EXIF that is no EXIF": segment(0xE1, b"Exif\0\0garbage!"),
    "short profile": segment(0xE2, b"ICC_PROFILE\0"),
    "profile of 13 MB": b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes([part + 1, 200]) + b"z" * 65_000) for part in range(200)),
    "profile with missing parts": segment(0xE2, b"ICC_PROFILE\0\5\2zz"),
    "short Adobe segment": segment(0xEE, b"Adobe"),
    "Photoshop segment that is none": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\3\355\5ab"),
    "short JFIF segment": segment(0xE0, b"JFIF\0"),
    "several pictures that are not there": segment(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff" + b"\1" * 40),
}


@pytest.mark.parametrize("name", sorted(PNG_METADATA))
def test_png_with_odd_metadata_has_its_pixels(name: str, tmp_path: Path) -> None:
    for before in (b"IDAT", b"IEND"):
        data = png_with(PNG_METADATA[name], before=before)
        assert np.array_equal(np.asarray(decode(data)), NOISE), before
    (tmp_path / "a.png").write_bytes(data)
    assert np.array_equal(np.asarray(decode(tmp_path / "a.png")), NOISE)
    assert hash_image(data)["readable"]
    assert hash_image(data)["mode"] == b"RGB"


@pytest.mark.parametrize("name", sorted(JPEG_METADATA))
def test_jpeg_with_odd_metadata_has_its_pixels(name: str) -> None:
    data = jpeg_with(JPEG_METADATA[name])
    assert np.array_equal(np.asarray(decode(data)), np.asarray(decode(jpeg_with())))
    assert hash_image(data)["readable"]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG", "TIFF"])
def test_unwritable_exif_is_read(kind: str) -> None:
    if kind == "JPEG":
        data, upright = jpeg_with(segment(0xE1, b"Exif\0\0" + exif())), np.rot90(np.asarray(decode(jpeg_with())), -1)
    elif kind == "PNG":
        data, upright = png_with(chunk(b"eXIf", exif())), UPRIGHT
    elif kind == "WEBP":
        data, upright = encoded(photo(), kind, lossless=True, exif=b"Exif\0\0" + exif()), UPRIGHT
    else:
        data, upright = encoded(photo(), kind, tiffinfo={0x0112: 6}), UPRIGHT
    assert np.array_equal(np.asarray(decode(data)), upright)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientation_is_upright(orientation: int) -> None:
    assert np.array_equal(np.asarray(decode(png_with(chunk(b"eXIf", exif(orientation=orientation))))), NOISE)


@pytest.mark.parametrize(
    "turned",
    [
        chunk(b"eXIf", exif()),
        chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b'<x tiff:Orientation="6"/>')),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 46\n" + (b"Exif\0\0" + exif()).hex().encode())),
    ],
)
def test_orientation_is_applied_although_other_metadata_are_refused(turned: bytes) -> None:
    assert np.array_equal(np.asarray(decode(png_with(turned))), UPRIGHT)
    assert np.array_equal(np.asarray(decode(png_with(turned, PNG_METADATA["compressed text over 1 MB"]))), UPRIGHT)


def test_decoded_photo_has_no_metadata() -> None:
    assert decode(png_with(chunk(b"eXIf", exif()), chunk(b"tEXt", b"k\0v"))).info == {}


@pytest.mark.parametrize("name", ["text with a wrong checksum", "compressed text over 1 MB"])
def test_damaged_pixels_are_refused_whatever_the_metadata(name: str) -> None:
    whole = png_with(PNG_METADATA[name])
    with pytest.raises(ImageError):
        decode(whole[: len(whole) - 1500])
    damaged = bytearray(whole)
    damaged[whole.index(b"IDAT") + 40] ^= 255
    with pytest.raises(ImageError):
        decode(bytes(damaged))


def test_photo_over_the_limit_is_refused_whatever_the_metadata() -> None:
    huge = raw_png(np.zeros((1, 1), dtype=np.uint8), 0, 8, PNG_METADATA["text with a wrong checksum"])
    header = chunk(b"IHDR", huge[16:29])
    wide = chunk(b"IHDR", (20_000).to_bytes(4, "big") * 2 + huge[24:29])
    with pytest.raises(ImageError, match="over the limit of 100 megapixels"):
        decode(huge.replace(header, wide))


def test_other_and_incomplete_files_have_nothing_to_remove(tmp_path: Path) -> None:
    whole = png_with()
    (tmp_path / "a.txt").write_text("text")
    for source in (b"", b"text", tmp_path / "a.txt", encoded(photo(), "GIF"), whole[:-20], b"\xff\xd8\xff", jpeg_with()[:300]):
        assert without_metadata(source) is None


def test_only_metadata_are_removed() -> None:
    bare = without_metadata(png_with(chunk(b"eXIf", exif()), chunk(b"tEXt", b"k\0v")), keep_orientation=False)
    assert bare is not None
    assert np.array_equal(np.asarray(decode(bare)), NOISE)
    assert b"eXIf" not in bare
    assert b"tEXt" not in bare
    cmyk = encoded(Image.new("CMYK", (20, 20), (200, 100, 50, 10)), "JPEG")
    stripped = without_metadata(cmyk)
    assert stripped is not None
    assert np.array_equal(np.asarray(decode(stripped)), np.asarray(decode(cmyk)))  # Adobe's segment says how colours are stored

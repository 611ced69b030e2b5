"""Encoded photos whose metadata, depth or transparency Pillow cannot write."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEIGHT, WIDTH = 40, 48
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def photo() -> Image.Image:
    return Image.fromarray(NOISE)


HALF_VISIBLE = np.where(np.arange(WIDTH) < WIDTH // 2, 255, 0).astype(np.uint8)[None].repeat(HEIGHT, 0)
ALPHA_PNG = encoded(Image.fromarray(np.dstack([NOISE, HALF_VISIBLE])), "PNG")


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    """Return a PNG chunk, by default with the right checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)


def png_with(*chunks: bytes, before: bytes = b"IDAT", png: bytes | None = None) -> bytes:
    """Return a PNG with more chunks."""
    png = encoded(photo(), "PNG") if png is None else png
    place = png.index(before) - 4
    return png[:place] + b"".join(chunks) + png[place:]


def segment(marker: int, data: bytes) -> bytes:
    """Return a JPEG segment."""
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def jpeg_with(*segments: bytes) -> bytes:
    """Return a JPEG with more segments."""
    jpeg = encoded(photo(), "JPEG", quality=95)
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def raw_png(values: np.ndarray, colour_type: int, depth: int, *chunks: bytes) -> bytes:
    """Return a PNG with these values, (H, W) or (H, W, C); rows of less than 8 bits per value are packed by the caller."""
    height, width = values.shape[:2]
    if depth < 8:
        width = width * 8 // depth
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else np.uint8).tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    return PNG_SIGNATURE + header + b"".join(chunks) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(values: np.ndarray, *, compressed: bool = False) -> bytes:
    """Return a TIFF of uint16 colours (H, W, 3), with libtiff's deflate or uncompressed."""
    data = zlib.compress(values.astype("<u2").tobytes()) if compressed else values.astype("<u2").tobytes()
    height, width = values.shape[:2]
    after = 8 + 2 + 12 * 9 + 4
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, after), (259, 3, 1, 8 if compressed else 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, after + 6), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, len(data))]
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4) + struct.pack("<HHH", 16, 16, 16) + data


def exif(kind: int = 10, orientation: int = 6) -> bytes:
    """Return EXIF with an orientation and a resolution of -1/0, which Pillow can read and not write."""
    tags = struct.pack("<HHHII", 2, 0x0112, 3, 1, orientation) + struct.pack("<HHII", 0x011A, kind, 1, 38) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + tags + struct.pack("<ii", -1, 0)

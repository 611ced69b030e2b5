"""Removes metadata from an encoded photo. Pillow reads text, colour profiles and the like first, and refuses a photo if it cannot.

Examples are a text of more than a megabyte, a colour profile with a wrong checksum, and a JPEG segment that is too short. None of them
changes a pixel. The photo is decoded again without them, and a compressed text that expands to gigabytes is never expanded.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

MAX_BYTES = 1_000_000_000  # of a photo's file; it is read into memory
MAX_TEXT = 1_000_000  # bytes of a decompressed text, below Pillow's own limit
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
PNG_ORIENTATION = (b"Raw profile type exif", b"XML:com.adobe.xmp")  # keywords of texts that Pillow reads the orientation from
APP0, APP1, APP14, APP15, COMMENT, START_OF_SCAN = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE, 0xDA


def without_metadata(source: str | Path | bytes, *, keep_orientation: bool = True) -> bytes | None:
    """Return a PNG or JPEG file with its pixels and, if requested, its orientation only.

    Returns:
        None for other formats, for a file over a gigabyte, and if the structure of the file is damaged or truncated.
    """
    data = _read(source)
    try:
        if data.startswith(PNG):
            return b"".join([PNG, *_png_chunks(data, keep_orientation)])
        if data.startswith(JPEG):
            return b"".join([data[:2], *_jpeg_segments(data, keep_orientation)])
    except (struct.error, ValueError, IndexError):
        pass
    return None


def _read(source: str | Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    with Path(source).open("rb") as opened:
        start = opened.read(len(PNG))
        if not start.startswith((PNG, JPEG)) or Path(source).stat().st_size > MAX_BYTES:
            return b""
        return start + opened.read()


def _png_chunks(data: bytes, keep_orientation: bool) -> Iterator[bytes]:
    """Yield the chunks to keep, up to the last one.

    Raises:
        ValueError: The file ends before its last chunk.
    """
    position = len(PNG)
    while True:
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise ValueError("truncated")
        content = memoryview(data)[position + 8 : position + 8 + length]
        intact = zlib.crc32(content, zlib.crc32(kind)) == struct.unpack_from(">I", data, end - 4)[0]
        if kind in PNG_PIXELS or (keep_orientation and intact and _may_hold_orientation(kind, content)):
            yield data[position:end]
        if kind == b"IEND":
            return
        position = end


def _may_hold_orientation(kind: bytes, content: memoryview) -> bool:
    """Whether a PNG chunk is EXIF, or a short text of a kind that Pillow reads the orientation from."""
    if kind == b"eXIf":
        return True
    if kind not in (b"tEXt", b"zTXt", b"iTXt"):
        return False
    keyword, _, rest = bytes(content[:MAX_TEXT]).partition(b"\0")
    if keyword not in PNG_ORIENTATION or len(content) > MAX_TEXT:
        return False
    if kind == b"iTXt" and rest[:1] == b"\1":  # flag, method, language, translated keyword, compressed text
        rest = rest[1:2] + rest[2:].split(b"\0", 2)[2]
    elif kind != b"zTXt":
        return True
    inflate = zlib.decompressobj()
    try:
        inflate.decompress(rest[1:], MAX_TEXT)
    except zlib.error:
        return False
    return rest[:1] == b"\0" and not inflate.unconsumed_tail


def _jpeg_segments(data: bytes, keep_orientation: bool) -> Iterator[bytes]:
    """Yield the segments to keep, and everything from the first scan on."""
    position = 2
    while True:
        if data[position] != 0xFF:
            raise ValueError("not a marker")
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == START_OF_SCAN:
            yield data[position:]
            return
        end = position + 2 + struct.unpack_from(">H", data, position + 2)[0]
        content = data[position + 4 : end]
        if _is_needed(marker, content, keep_orientation):
            yield data[position:end]
        position = end


def _is_needed(marker: int, content: bytes, keep_orientation: bool) -> bool:
    """Whether a JPEG segment decides what the pixels are: tables and frame, the colour space, and the orientation."""
    if marker == APP0:
        return content.startswith(b"JFIF\0") and len(content) >= 14
    if marker == APP14:
        return content.startswith(b"Adobe") and len(content) >= 12
    if marker == APP1:
        return keep_orientation and content.startswith((b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"))
    return not (APP0 <= marker <= APP15 or marker == COMMENT)

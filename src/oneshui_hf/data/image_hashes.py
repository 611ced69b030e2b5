"""What can be told of photos without a model: whether they can be read, their size and mode, and which repeat each other.

Two photos repeat each other exactly where their files are equal, and nearly where their perceptual hashes (the signs of low
frequencies, 256 bits) differ in few bits. On 6,113 photos of CelebA, hashes of different people's photos differ in 50 bits and more, but
for those that are one photo under two names (up to 36), and hashes of a photo saved again (smaller, brighter, at a lower quality) in 16
and less. Another crop of a photo may differ in 46: what is found near is a repeat, but not every repeat is found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..reporting import SILENT, Reporter
from .images import ImageError, decode, open_image
from .memmap_cache import WORKERS

MAX_BYTES = 1_000_000_000  # of a photo's file; it is read whole
SIDE = 16  # of the perceptual hash, in bits
NEAR = 32  # of its 256 bits may differ between two versions of a photo
LOOK = np.dtype(
    [
        ("readable", "?"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("mode", "S8"),
        ("file", "S32"),  # SHA-256 of the file
        ("hash", "<u8", (SIDE * SIDE // 64,)),
    ]
)
TILE = (64, 4096)  # of the table of distances: what fits the cache of a core


def look(image: str | bytes) -> np.ndarray:
    """Look at one photo: a record of `LOOK`. One that cannot be decoded is not `readable`."""
    import imagehash

    found = np.zeros((), dtype=LOOK)
    try:
        if not isinstance(image, bytes) and Path(image).stat().st_size > MAX_BYTES:
            return found
        data = image if isinstance(image, bytes) else Path(image).read_bytes()
        found["file"] = hashlib.sha256(data).digest()
        photo = decode(data, "the photo")
    except (ImageError, OSError):
        return found
    found["readable"], found["width"], found["height"] = True, photo.width, photo.height
    found["mode"] = open_image(data).mode.encode()
    found["hash"] = np.packbits(imagehash.phash(photo, hash_size=SIDE).hash).view("<u8")
    return found


def look_at(images: Sequence[str | bytes], reporter: Reporter = SILENT) -> np.ndarray:
    """Look at all photos, several at a time: records of `LOOK` (N,)."""
    found = np.zeros(len(images), dtype=LOOK)
    with ThreadPoolExecutor(WORKERS) as pool:
        for row, record in enumerate(reporter.track(pool.map(look, images), "Looking at photos", total=len(images))):
            found[row] = record
    return found


def near_pairs(hashes: np.ndarray, bits: int, reporter: Reporter = SILENT) -> np.ndarray:
    """Return all pairs of hashes that differ in at most so many bits.

    Args:
        hashes: uint64 (N, W).
        bits: The largest distance.
        reporter: For progress.

    Returns:
        int64 (P, 2), the smaller row first, in order.
    """
    words = np.ascontiguousarray(hashes.T)  # (W, N)

    def compare(start: int) -> np.ndarray:
        found = [np.zeros((0, 2), dtype=np.int64)]
        for column in range(start, len(hashes), TILE[1]):
            rows, columns = words[:, start : start + TILE[0], None], words[:, None, column : column + TILE[1]]
            # Half of the words are enough to rule nearly all pairs out.
            distance = sum(np.bitwise_count(rows[word] ^ columns[word]) for word in range(len(words) // 2))
            first, second = np.nonzero(distance <= bits)
            first, second = first + start, second + column
            distance = np.bitwise_count(hashes[first] ^ hashes[second]).sum(axis=1)
            found.append(np.stack([first, second], axis=1)[(first < second) & (distance <= bits)])
        return np.concatenate(found)

    starts = range(0, len(hashes), TILE[0])
    with ThreadPoolExecutor(WORKERS) as pool:
        found = list(reporter.track(pool.map(compare, starts), "Comparing photos", total=len(starts)))
    pairs = np.concatenate(found) if found else np.zeros((0, 2), dtype=np.int64)
    return pairs[np.lexsort(pairs.T[::-1])]

"""Properties of photos without a model: readability, size, mode, file hash and perceptual hash; and search for duplicates.

Photos are exact duplicates if their files are equal, and near-duplicates if their perceptual hashes (signs of low frequencies, 256 bits)
differ in few bits. On 6,113 photos of CelebA, hashes of photos of different people differ in at least 50 bits, except for one photo under
two names (up to 36 bits). Hashes of a photo that is saved again (smaller, brighter, at a lower quality) differ in at most 16 bits. Another
crop of a photo may differ in 46 bits: pairs that are found are duplicates, but not all duplicates are found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..reporting import SILENT, Reporter
from .images import ImageError, decode, stored_mode
from .memmap_cache import WORKERS

MAX_FILE_BYTES = 1_000_000_000  # of a photo's file; the whole file is read
HASH_SIDE = 16  # of the square perceptual hash, in bits
NEAR_DUPLICATE_BITS = 32  # maximum distance of two near-duplicates, of 256 bits
IMAGE_RECORD = np.dtype(
    [
        ("readable", "?"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("mode", "S8"),
        ("file", "S32"),  # SHA-256 of the file
        ("hash", "<u8", (HASH_SIDE * HASH_SIDE // 64,)),
    ]
)
TILE = (64, 4096)  # block of the distance matrix that fits the cache of a core


def hash_image(image: str | bytes) -> np.ndarray:
    """Return the record of one photo, of dtype `IMAGE_RECORD`. `readable` is False if it cannot be decoded."""
    import imagehash

    record = np.zeros((), dtype=IMAGE_RECORD)
    try:
        if not isinstance(image, bytes) and Path(image).stat().st_size > MAX_FILE_BYTES:
            return record
        data = image if isinstance(image, bytes) else Path(image).read_bytes()
        record["file"] = hashlib.sha256(data).digest()
        photo = decode(data, "the photo")
    except (ImageError, OSError):
        return record
    record["readable"], record["width"], record["height"] = True, photo.width, photo.height
    record["mode"] = stored_mode(data).encode()
    record["hash"] = np.packbits(imagehash.phash(photo, hash_size=HASH_SIDE).hash).view("<u8")
    return record


def hash_images(images: Sequence[str | bytes], reporter: Reporter = SILENT) -> np.ndarray:
    """Return the records of all photos, of dtype `IMAGE_RECORD`, (N,). Runs in several threads."""
    records = np.zeros(len(images), dtype=IMAGE_RECORD)
    with ThreadPoolExecutor(WORKERS) as pool:
        for row, record in enumerate(reporter.track(pool.map(hash_image, images), "Hashing photos", total=len(images))):
            records[row] = record
    return records


def find_near_duplicates(hashes: np.ndarray, bits: int, reporter: Reporter = SILENT) -> np.ndarray:
    """Return all pairs of hashes that differ in at most `bits` bits.

    Args:
        hashes: uint64 (N, W).
        bits: Maximum Hamming distance.
        reporter: For progress.

    Returns:
        Pairs of rows, int64 (P, 2), the smaller row first, sorted.
    """
    words = np.ascontiguousarray(hashes.T)  # (W, N)

    def compare(start: int) -> np.ndarray:
        found = [np.zeros((0, 2), dtype=np.int64)]
        for column in range(start, len(hashes), TILE[1]):
            rows, columns = words[:, start : start + TILE[0], None], words[:, None, column : column + TILE[1]]
            # Half of the words rule out nearly all pairs.
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

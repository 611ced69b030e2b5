"""The memory-mapped cache: files are complete or missing, written once, and verified when read."""

from __future__ import annotations

import errno
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from oneshui_hf.data import memmap_cache
from oneshui_hf.data.memmap_cache import BLOCK, load_memmap_cache
from oneshui_hf.errors import OneshuiError
from support.faces import portrait
from support.recording_reporter import RecordingReporter

LAYOUT = np.dtype([("row", "<u4"), ("pixels", "u1", (3, 5, 5))])
ROWS = 2 * BLOCK + 3

# Decodes photos as in pixels.py and writes a line for each to LOG. Runs in a separate process that can be killed.
BUILD = """
import os, sys, zlib
from pathlib import Path
import numpy as np  # noqa: E402
from oneshui_hf.data.images import decode, to_pixels
from oneshui_hf.data.memmap_cache import load_memmap_cache

file, photos, count, log = Path(sys.argv[1]), sorted(Path(sys.argv[2]).glob("*.jpg")), int(sys.argv[3]), sys.argv[4]
layout = np.dtype([("row", "<u4"), ("pixels", "u1", (3, 24, 24))])
lines = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def make(row):
    os.write(lines, f"{os.getpid()} {row}\\n".encode())
    return np.array((row, to_pixels(decode(photos[row % len(photos)]), 24)), dtype=layout)

decode(photos[0])  # imports are complete
print("ready", flush=True)
sys.stdin.readline()
records = load_memmap_cache(file, layout, count, make, "Reading")
print(zlib.crc32(records.take(np.arange(count), "pixels").tobytes()), flush=True)
"""


def record(row: int) -> np.ndarray:
    pixels = np.random.default_rng(row).integers(0, 256, (3, 5, 5), dtype=np.uint8)
    return np.array((row, pixels), dtype=LAYOUT)


def fail_if_called(row: int) -> np.ndarray:
    raise AssertionError(f"row {row} was computed again")


def load(file: Path, make: Callable[[int], np.ndarray] = fail_if_called, count: int = ROWS) -> np.ndarray:
    return load_memmap_cache(file, LAYOUT, count, make, "Making").take(np.arange(count), "pixels")


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.suffix != ".lock")


@pytest.fixture
def cache_file(tmp_path: Path) -> Path:
    file = tmp_path / "records.npy"
    load(file, record)
    return file


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for person in range(12):
        portrait(person, 0, (400, 400)).save(folder / f"{person:02d}.jpg")
    return folder


def start_writing(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILD, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def continue_process(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def assert_decoded(file: Path, photos: Path, count: int) -> None:
    from oneshui_hf.data.images import decode, to_pixels

    expected = [to_pixels(decode(photo), 24) for photo in sorted(photos.glob("*.jpg"))]
    layout = np.dtype([("row", "<u4"), ("pixels", "u1", (3, 24, 24))])
    records, rows = load_memmap_cache(file, layout, count, fail_if_called, "Reading"), np.arange(count)
    assert np.array_equal(records.take(rows, "row"), rows)
    assert np.array_equal(records.take(rows, "pixels"), np.stack(expected)[rows % len(expected)])


def test_records_equal_the_results_of_make(cache_file: Path) -> None:
    records = load_memmap_cache(cache_file, LAYOUT, ROWS, fail_if_called, "Making")
    expected = [record(row) for row in range(ROWS)]
    assert len(records) == ROWS
    assert np.array_equal(records.take(np.arange(ROWS), "row"), np.arange(ROWS))
    assert np.array_equal(records.take(np.arange(ROWS), "pixels"), np.stack([one["pixels"] for one in expected]))
    assert names(cache_file.parent) == ["records.npy"]


def test_rows_may_be_taken_in_any_order_and_repeatedly(cache_file: Path) -> None:
    rows = np.array([7, 3, 7, ROWS - 1])
    taken = load_memmap_cache(cache_file, LAYOUT, ROWS, fail_if_called, "Making").take(rows, "pixels")
    assert np.array_equal(taken, np.stack([record(row)["pixels"] for row in rows.tolist()]))


def test_several_fields_may_be_taken_at_once(cache_file: Path) -> None:
    taken = load_memmap_cache(cache_file, LAYOUT, ROWS, fail_if_called, "Making").take(np.array([5, 2]), ["row", "pixels"])
    assert taken["row"].tolist() == [5, 2]
    assert np.array_equal(taken["pixels"][1], record(2)["pixels"])


def test_file_is_memory_mapped_and_read_only(cache_file: Path) -> None:
    records = load_memmap_cache(cache_file, LAYOUT, ROWS, fail_if_called, "Making")
    before = cache_file.read_bytes()
    assert isinstance(records.array, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        records.array["record"]["pixels"][0] = 0
    records.take(np.array([0]), "pixels")[:] = 0  # a copy
    assert cache_file.read_bytes() == before


def test_one_of_two_processes_writes_the_file_and_both_read_it(tmp_path: Path, photos: Path) -> None:
    file, log, count = tmp_path / "records.npy", tmp_path / "log", 300
    processes = [start_writing(file, photos, count, log) for _ in range(2)]
    for process in processes:
        continue_process(process)
    answers = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert answers[0] == answers[1]
    lines = [line.split() for line in log.read_text().splitlines()]
    assert len({pid for pid, _ in lines}) == 1
    assert sorted(int(row) for _, row in lines) == list(range(count))
    assert_decoded(file, photos, count)


@pytest.mark.slow
def test_killed_process_leaves_no_file_or_a_complete_one(tmp_path: Path, photos: Path) -> None:
    folder, log, count = tmp_path / "cache", tmp_path / "log", 1500
    folder.mkdir()
    file, delays = folder / "records.npy", random.Random(0)

    def write_for(seconds: float | None) -> float:
        process, begun = start_writing(file, photos, count, log), time.perf_counter()
        continue_process(process)
        try:
            process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()  # SIGKILL
            process.communicate()
        return time.perf_counter() - begun

    duration = write_for(None)
    killed = 0
    for _ in range(10):
        file.unlink(missing_ok=True)
        log.unlink()
        write_for(delays.uniform(0, 1.1 * duration))
        if file.exists():
            assert_decoded(file, photos, count)
        else:
            killed += 1
    assert killed > 2
    file.unlink(missing_ok=True)
    (folder / ".records.npy.part").write_bytes(b"left by a process that was killed")
    write_for(None)
    assert_decoded(file, photos, count)
    assert names(folder) == ["records.npy"]


def test_flipped_bit_is_detected_when_its_row_is_read(cache_file: Path) -> None:
    data, width = bytearray(cache_file.read_bytes()), 4 + LAYOUT.itemsize
    data[len(data) - 3 * width + 40] ^= 1  # in the last row but two
    cache_file.write_bytes(data)
    records = load_memmap_cache(cache_file, LAYOUT, ROWS, fail_if_called, "Making")
    others = np.delete(np.arange(ROWS), ROWS - 3)
    assert np.array_equal(records.take(others, "row"), others)
    for _ in range(2):  # the second read is verified, too
        with pytest.raises(OneshuiError, match=rf"records\.npy is damaged at row {ROWS - 3}; remove it and run again"):
            records.take(np.array([0, ROWS - 3]), "pixels")


def test_swapped_rows_are_detected(cache_file: Path) -> None:
    stored = np.lib.format.open_memmap(cache_file, mode="r+")
    stored[[4, 9]] = stored[[9, 4]]
    stored.flush()
    records = load_memmap_cache(cache_file, LAYOUT, ROWS, fail_if_called, "Making")
    for row in (4, 9):
        with pytest.raises(OneshuiError, match=f"damaged at row {row}"):
            records.take(np.array([row]), "pixels")
    assert records.take(np.array([5]), "row").tolist() == [5]


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.9999])
def test_truncated_file_raises(cache_file: Path, kept: float) -> None:
    data = cache_file.read_bytes()
    cache_file.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(OneshuiError, match=r"records\.npy does not fit its data set; remove it and run again"):
        load(cache_file)


def test_damaged_header_raises_one_sentence(cache_file: Path) -> None:
    content, draws = cache_file.read_bytes(), random.Random(0)
    for place in [*range(10), *draws.choices(range(10, 192), k=150)]:
        data = bytearray(content)
        data[place] = draws.choice([0, 0x20, 0x28, 0x30, 0x7B, data[place] ^ 255])
        cache_file.write_bytes(data)
        try:
            assert np.array_equal(load(cache_file)[3], record(3)["pixels"])  # a space instead of a space
        except OneshuiError as error:
            assert "remove it and run again" in str(error)


def test_other_number_of_rows_raises(cache_file: Path) -> None:
    with pytest.raises(OneshuiError, match="does not fit its data set"):
        load(cache_file, count=ROWS + 1)


def test_other_dtype_raises(cache_file: Path) -> None:
    other = np.dtype([("row", "<u4"), ("pixels", "u1", (3, 6, 6))])
    with pytest.raises(OneshuiError, match="does not fit its data set"):
        load_memmap_cache(cache_file, other, ROWS, fail_if_called, "Making")
    np.save(cache_file, np.zeros(ROWS, dtype=LAYOUT))  # without checksums
    with pytest.raises(OneshuiError, match="does not fit its data set"):
        load(cache_file)


def test_failing_make_leaves_no_file(tmp_path: Path) -> None:
    def fail(row: int) -> np.ndarray:
        if row == ROWS - 1:
            raise RuntimeError("no more")
        return record(row)

    with pytest.raises(RuntimeError, match="no more"):
        load(tmp_path / "records.npy", fail)
    assert names(tmp_path) == []
    load(tmp_path / "records.npy", record)  # a second attempt succeeds


def test_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="No space left on device") as caught:
        load(tmp_path / "records.npy", fail_if_called)
    assert caught.value.filename == str(tmp_path)
    assert names(tmp_path) == []


def test_file_is_written_if_the_file_system_cannot_allocate_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_supported(*arguments: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("os.posix_fallocate", not_supported, raising=False)
    assert np.array_equal(load(tmp_path / "records.npy", record)[8], record(8)["pixels"])


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = ROWS * (4 + LAYOUT.itemsize)
    found = shutil.disk_usage(tmp_path)
    for free in (size - 1, size):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: found._replace(free=free))
        if free < size:
            with pytest.raises(OneshuiError, match=r"^photos\.npy needs 0\.0 MB and \S+ has 0\.0 MB free; free space, or name a folder"):
                load(tmp_path / "photos.npy", fail_if_called)
            assert not [name for name in names(tmp_path) if not name.endswith(".lock")]
        else:
            load(tmp_path / "photos.npy", record)


def test_the_size_of_a_large_file_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memmap_cache, "LARGE", ROWS * (4 + LAYOUT.itemsize))
    reporter = RecordingReporter()
    load_memmap_cache(tmp_path / "pixels-5.npy", LAYOUT, ROWS, record, "Making", reporter)
    load_memmap_cache(tmp_path / "small.npy", LAYOUT, 1, record, "Making", reporter)
    assert reporter.notes == [f"Writing pixels-5.npy in {tmp_path}, 0.0 MB."]

"""Records beside the Arrow data: whole or not there, made once, and never read wrong."""

from __future__ import annotations

import errno
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from oneshui_hf.data.memmap_cache import BLOCK, load_records
from oneshui_hf.errors import OneshuiError
from support.faces import portrait

LAYOUT = np.dtype([("row", "<u4"), ("pixels", "u1", (3, 5, 5))])
ROWS = 2 * BLOCK + 3

# Photos decoded as in pixels.py, and a line for each in LOG. Runs on its own, so that it can be killed.
BUILD = """
import os, sys, zlib
from pathlib import Path
import numpy as np  # noqa: E402
from oneshui_hf.data.images import decode, to_pixels
from oneshui_hf.data.memmap_cache import load_records

file, photos, count, log = Path(sys.argv[1]), sorted(Path(sys.argv[2]).glob("*.jpg")), int(sys.argv[3]), sys.argv[4]
layout = np.dtype([("row", "<u4"), ("pixels", "u1", (3, 24, 24))])
lines = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def make(row):
    os.write(lines, f"{os.getpid()} {row}\\n".encode())
    return np.array((row, to_pixels(decode(photos[row % len(photos)]), 24)), dtype=layout)

decode(photos[0])  # imports are over
print("ready", flush=True)
sys.stdin.readline()
records = load_records(file, layout, count, make, "Reading")
print(zlib.crc32(records.take(np.arange(count), "pixels").tobytes()), flush=True)
"""


def record(row: int) -> np.ndarray:
    pixels = np.random.default_rng(row).integers(0, 256, (3, 5, 5), dtype=np.uint8)
    return np.array((row, pixels), dtype=LAYOUT)


def never(row: int) -> np.ndarray:
    raise AssertionError(f"row {row} was made again")


def load(file: Path, make: Callable[[int], np.ndarray] = never, count: int = ROWS) -> np.ndarray:
    return load_records(file, LAYOUT, count, make, "Making").take(np.arange(count), "pixels")


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.suffix != ".lock")


@pytest.fixture
def made(tmp_path: Path) -> Path:
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


def start_building(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILD, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def assert_decoded(file: Path, photos: Path, count: int) -> None:
    from oneshui_hf.data.images import decode, to_pixels

    expected = [to_pixels(decode(photo), 24) for photo in sorted(photos.glob("*.jpg"))]
    layout = np.dtype([("row", "<u4"), ("pixels", "u1", (3, 24, 24))])
    records, rows = load_records(file, layout, count, never, "Reading"), np.arange(count)
    assert np.array_equal(records.take(rows, "row"), rows)
    assert np.array_equal(records.take(rows, "pixels"), np.stack(expected)[rows % len(expected)])


def test_every_record_is_what_make_returned(made: Path) -> None:
    records = load_records(made, LAYOUT, ROWS, never, "Making")
    expected = [record(row) for row in range(ROWS)]
    assert len(records) == ROWS
    assert np.array_equal(records.take(np.arange(ROWS), "row"), np.arange(ROWS))
    assert np.array_equal(records.take(np.arange(ROWS), "pixels"), np.stack([one["pixels"] for one in expected]))
    assert names(made.parent) == ["records.npy"]


def test_rows_are_taken_in_any_order_and_more_than_once(made: Path) -> None:
    rows = np.array([7, 3, 7, ROWS - 1])
    taken = load_records(made, LAYOUT, ROWS, never, "Making").take(rows, "pixels")
    assert np.array_equal(taken, np.stack([record(row)["pixels"] for row in rows.tolist()]))


def test_several_fields_are_taken_at_once(made: Path) -> None:
    taken = load_records(made, LAYOUT, ROWS, never, "Making").take(np.array([5, 2]), ["row", "pixels"])
    assert taken["row"].tolist() == [5, 2]
    assert np.array_equal(taken["pixels"][1], record(2)["pixels"])


def test_the_file_is_mapped_and_cannot_be_written_to(made: Path) -> None:
    records = load_records(made, LAYOUT, ROWS, never, "Making")
    before = made.read_bytes()
    assert isinstance(records.stored, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        records.stored["record"]["pixels"][0] = 0
    records.take(np.array([0]), "pixels")[:] = 0  # a copy
    assert made.read_bytes() == before


def test_of_two_processes_one_makes_the_file_and_both_read_it(tmp_path: Path, photos: Path) -> None:
    file, log, count = tmp_path / "records.npy", tmp_path / "log", 300
    processes = [start_building(file, photos, count, log) for _ in range(2)]
    for process in processes:
        go(process)
    answers = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert answers[0] == answers[1]
    lines = [line.split() for line in log.read_text().splitlines()]
    assert len({pid for pid, _ in lines}) == 1
    assert sorted(int(row) for _, row in lines) == list(range(count))
    assert_decoded(file, photos, count)


@pytest.mark.slow
def test_a_killed_process_leaves_no_file_or_a_whole_one(tmp_path: Path, photos: Path) -> None:
    folder, log, count = tmp_path / "cache", tmp_path / "log", 1500
    folder.mkdir()
    file, delays = folder / "records.npy", random.Random(0)

    def build_for(seconds: float | None) -> float:
        process, begun = start_building(file, photos, count, log), time.perf_counter()
        go(process)
        try:
            process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()  # SIGKILL
            process.communicate()
        return time.perf_counter() - begun

    whole = build_for(None)
    killed = 0
    for _ in range(10):
        file.unlink(missing_ok=True)
        log.unlink()
        build_for(delays.uniform(0, 1.1 * whole))
        if file.exists():
            assert_decoded(file, photos, count)
        else:
            killed += 1
    assert killed > 2
    file.unlink(missing_ok=True)
    (folder / ".records.npy.part").write_bytes(b"left by a process that was killed")
    build_for(None)
    assert_decoded(file, photos, count)
    assert names(folder) == ["records.npy"]


def test_a_flipped_byte_is_found_when_its_row_is_read(made: Path) -> None:
    data, width = bytearray(made.read_bytes()), 4 + LAYOUT.itemsize
    data[len(data) - 3 * width + 40] ^= 1  # in the last row but two
    made.write_bytes(data)
    records = load_records(made, LAYOUT, ROWS, never, "Making")
    others = np.delete(np.arange(ROWS), ROWS - 3)
    assert np.array_equal(records.take(others, "row"), others)
    for _ in range(2):  # it is not trusted the second time either
        with pytest.raises(OneshuiError, match=rf"records\.npy is damaged at row {ROWS - 3}; remove it and run again"):
            records.take(np.array([0, ROWS - 3]), "pixels")


def test_swapped_rows_are_found(made: Path) -> None:
    stored = np.lib.format.open_memmap(made, mode="r+")
    stored[[4, 9]] = stored[[9, 4]]
    stored.flush()
    records = load_records(made, LAYOUT, ROWS, never, "Making")
    for row in (4, 9):
        with pytest.raises(OneshuiError, match=f"damaged at row {row}"):
            records.take(np.array([row]), "pixels")
    assert records.take(np.array([5]), "row").tolist() == [5]


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.9999])
def test_a_file_that_was_cut_off_is_refused(made: Path, kept: float) -> None:
    data = made.read_bytes()
    made.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(OneshuiError, match=r"records\.npy does not fit its data set; remove it and run again"):
        load(made)


def test_a_damaged_header_is_refused_in_one_sentence(made: Path) -> None:
    whole, draws = made.read_bytes(), random.Random(0)
    for place in [*range(10), *draws.choices(range(10, 192), k=150)]:
        data = bytearray(whole)
        data[place] = draws.choice([0, 0x20, 0x28, 0x30, 0x7B, data[place] ^ 255])
        made.write_bytes(data)
        try:
            assert np.array_equal(load(made)[3], record(3)["pixels"])  # a blank among blanks
        except OneshuiError as error:
            assert "remove it and run again" in str(error)


def test_another_number_of_rows_is_refused(made: Path) -> None:
    with pytest.raises(OneshuiError, match="does not fit its data set"):
        load(made, count=ROWS + 1)


def test_records_of_another_kind_are_refused(made: Path) -> None:
    other = np.dtype([("row", "<u4"), ("pixels", "u1", (3, 6, 6))])
    with pytest.raises(OneshuiError, match="does not fit its data set"):
        load_records(made, other, ROWS, never, "Making")
    np.save(made, np.zeros(ROWS, dtype=LAYOUT))  # without checksums
    with pytest.raises(OneshuiError, match="does not fit its data set"):
        load(made)


def test_a_failing_make_leaves_no_file(tmp_path: Path) -> None:
    def fail(row: int) -> np.ndarray:
        if row == ROWS - 1:
            raise RuntimeError("no more")
        return record(row)

    with pytest.raises(RuntimeError, match="no more"):
        load(tmp_path / "records.npy", fail)
    assert names(tmp_path) == []
    load(tmp_path / "records.npy", record)  # and nothing stands in the way of another try


def test_a_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="No space left on device") as caught:
        load(tmp_path / "records.npy", never)
    assert caught.value.filename == str(tmp_path)
    assert names(tmp_path) == []


def test_a_file_system_that_cannot_reserve_space_is_written_to_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(*arguments: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("os.posix_fallocate", unable, raising=False)
    assert np.array_equal(load(tmp_path / "records.npy", record)[8], record(8)["pixels"])

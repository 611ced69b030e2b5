"""The peak memory of a block: memory freed within the block counts, memory of another block does not."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest
import torch

from oneshui_hf import memory
from oneshui_hf.memory import PeakMemory

MB = 1_000_000
linux = pytest.mark.skipif(platform.system() != "Linux", reason="only Linux reports the peak resident set")


def allocate_and_free(megabytes: int) -> None:
    np.ones(megabytes * MB, dtype=np.uint8)  # ones, so that every page is written


def mb(peak: PeakMemory) -> int:
    assert peak.mb is not None
    return peak.mb


@linux
def test_freed_memory_counts_in_its_block_and_not_in_a_later_block() -> None:
    with PeakMemory() as before:
        pass
    with PeakMemory() as peak:
        allocate_and_free(200)
    with PeakMemory() as after:
        pass
    assert 195 <= mb(peak) - mb(before) <= 230
    assert abs(mb(after) - mb(before)) <= 20


@linux
def test_memory_allocated_before_the_block_counts() -> None:
    with PeakMemory() as before:
        pass
    held = np.ones(100 * MB, dtype=np.uint8)
    with PeakMemory() as peak:
        pass
    assert mb(peak) - mb(before) >= 90
    del held


@linux
@pytest.mark.parametrize("first", [True, False])
def test_a_nested_block_does_not_change_the_outer_peak(first: bool) -> None:
    with PeakMemory() as before:
        pass
    with PeakMemory() as outer:
        allocate_and_free(300 if first else 1)
        with PeakMemory() as inner:
            allocate_and_free(150)  # more than the heap keeps of the freed memory
        allocate_and_free(1 if first else 300)
    assert 295 <= mb(outer) - mb(before) <= 330
    assert 145 <= mb(inner) - mb(before) <= 180


@linux
def test_a_failing_block_is_measured_and_deactivated() -> None:
    peak = PeakMemory()
    with pytest.raises(ValueError), peak:
        raise ValueError
    assert mb(peak) > 0
    assert not memory._active


def test_the_peak_is_none_before_the_block_ends() -> None:
    with PeakMemory() as peak:
        assert peak.mb is None


@pytest.mark.parametrize("name", ["CLEAR_REFS", "STATUS"])
def test_the_peak_is_none_if_the_system_does_not_report_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, name, tmp_path / "no" / "such")
    with PeakMemory() as peak:
        pass
    assert peak.mb is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("spelling", [str, torch.device])
def test_on_cuda_only_tensors_of_the_device_count(spelling: type) -> None:
    with PeakMemory(spelling("cuda")) as peak:
        torch.ones(200 * MB, dtype=torch.uint8, device="cuda")
        allocate_and_free(500)
    with PeakMemory(spelling("cuda:0")) as after:
        pass
    assert 200 <= mb(peak) - mb(after) <= 205

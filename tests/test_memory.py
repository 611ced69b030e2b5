"""The peak memory of a block: memory that is given back in it counts, memory of another block does not."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest
import torch

from oneshui_hf import memory
from oneshui_hf.memory import Peak

MB = 1_000_000
linux = pytest.mark.skipif(platform.system() != "Linux", reason="only Linux tells the peak resident set")


def take_and_give_back(megabytes: int) -> None:
    np.ones(megabytes * MB, dtype=np.uint8)  # ones, so that each page is really there


def mb(peak: Peak) -> int:
    assert peak.mb is not None
    return peak.mb


@linux
def test_memory_given_back_in_the_block_counts_and_a_later_block_does_not_see_it() -> None:
    with Peak() as before:
        pass
    with Peak() as peak:
        take_and_give_back(200)
    with Peak() as after:
        pass
    assert 195 <= mb(peak) - mb(before) <= 230
    assert abs(mb(after) - mb(before)) <= 20


@linux
def test_what_is_held_already_counts() -> None:
    with Peak() as before:
        pass
    held = np.ones(100 * MB, dtype=np.uint8)
    with Peak() as peak:
        pass
    assert mb(peak) - mb(before) >= 90
    del held


@linux
@pytest.mark.parametrize("first", [True, False])
def test_a_block_within_a_block_takes_nothing_from_the_outer_one(first: bool) -> None:
    with Peak() as before:
        pass
    with Peak() as outer:
        take_and_give_back(300 if first else 1)
        with Peak() as inner:
            take_and_give_back(150)  # more than a heap keeps of what was freed before
        take_and_give_back(1 if first else 300)
    assert 295 <= mb(outer) - mb(before) <= 330
    assert 145 <= mb(inner) - mb(before) <= 180


@linux
def test_a_block_that_fails_is_measured_and_leaves_nothing_behind() -> None:
    peak = Peak()
    with pytest.raises(ValueError), peak:
        raise ValueError
    assert mb(peak) > 0
    assert not memory._measured


def test_there_is_no_number_before_the_end() -> None:
    with Peak() as peak:
        assert peak.mb is None


@pytest.mark.parametrize("name", ["CLEAR_REFS", "STATUS"])
def test_none_where_the_system_does_not_tell(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, name, tmp_path / "no" / "such")
    with Peak() as peak:
        pass
    assert peak.mb is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("spelling", [str, torch.device])
def test_on_cuda_the_tensors_of_the_device_count(spelling: type) -> None:
    with Peak(spelling("cuda")) as peak:
        torch.ones(200 * MB, dtype=torch.uint8, device="cuda")
        take_and_give_back(500)
    with Peak(spelling("cuda:0")) as after:
        pass
    assert 200 <= mb(peak) - mb(after) <= 205

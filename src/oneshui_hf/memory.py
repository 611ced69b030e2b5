"""The peak memory of a block of code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
RESET_PEAK = "5"  # man 5 proc: sets the peak resident set, VmHWM, to the current resident set

_active: list[PeakMemory] = []  # the blocks that are being measured, outermost first


class PeakMemory:
    """Measures the peak memory of a block.

        with PeakMemory(device) as peak:
            ...
        peak.mb

    On CUDA it is the peak of the tensors that torch allocated on that device. Elsewhere it is the largest resident set of this process,
    which only Linux reports. The resident set includes memory allocated before the block and pages of mapped files.

    Device and process have one counter each, and every block resets it. Nested blocks are still correct: before the inner block resets the
    counter, the outer blocks read it. Blocks in different threads include each other's memory.

    Attributes:
        mb: The peak in MB (1e6 bytes), set when the block ends; None if the system does not report it.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = device
        self._bytes: int | None = 0
        self.mb: int | None = None

    def __enter__(self) -> PeakMemory:
        for outer in _active:
            outer._update()
        if not _reset_counter(self._device):
            self._bytes = None
        _active.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _active.remove(self)
        self._update()
        self.mb = None if self._bytes is None else round(self._bytes / 1e6)

    def _update(self) -> None:
        """Include the counter's current value in the peak."""
        if self._bytes is not None:
            now = _read_counter(self._device)
            self._bytes = None if now is None else max(self._bytes, now)


def _on_cuda(device: torch.device | str) -> bool:
    return str(device).startswith("cuda")


def _reset_counter(device: torch.device | str) -> bool:
    """Reset the counter; return whether one exists."""
    if _on_cuda(device):
        import torch

        torch.cuda.init()  # a second call does nothing; before the first call no counter exists
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError:  # not Linux, or a sandbox denies it
        return False
    return True


def _read_counter(device: torch.device | str) -> int | None:
    """Return the peak in bytes since the last reset."""
    if _on_cuda(device):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) * 1024 if found else None

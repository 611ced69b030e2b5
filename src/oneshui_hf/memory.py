"""The most memory that a block of work takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
RESET_PEAK = "5"  # man 5 proc: sets the peak resident set, VmHWM, to what is resident now

_measured: list[Peak] = []  # the blocks that are being measured, outermost first


class Peak:
    """Measures the peak memory of a block.

        with Peak(device) as peak:
            ...
        peak.mb

    On CUDA it is the most that torch's tensors took of that device. Elsewhere it is the largest resident set of this process, which
    Linux alone tells. It counts all that the process holds: what was there before the block, too, and pages of files that it maps.

    Device and process have one counter each, which every block starts anew. A block within a block is right nevertheless: before the
    inner one starts the counter anew, the outer ones note what it stood at. Blocks in different threads see each other's memory.

    Attributes:
        mb: The peak in MB (1e6 bytes), once the block is left; None where the system does not tell.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = device
        self._bytes: int | None = 0
        self.mb: int | None = None

    def __enter__(self) -> Peak:
        for outer in _measured:
            outer._note()
        if not _restart(self._device):
            self._bytes = None
        _measured.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _measured.remove(self)
        self._note()
        self.mb = None if self._bytes is None else round(self._bytes / 1e6)

    def _note(self) -> None:
        """Take in what the counter stands at."""
        if self._bytes is not None:
            now = _counter(self._device)
            self._bytes = None if now is None else max(self._bytes, now)


def _on_cuda(device: torch.device | str) -> bool:
    return str(device).startswith("cuda")


def _restart(device: torch.device | str) -> bool:
    """Start the counter anew; return whether there is one."""
    if _on_cuda(device):
        import torch

        torch.cuda.init()  # does nothing the second time; before the first there is no counter
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError:  # no Linux, or a sandbox that refuses
        return False
    return True


def _counter(device: torch.device | str) -> int | None:
    """Return the most bytes since the counter was started."""
    if _on_cuda(device):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) * 1024 if found else None

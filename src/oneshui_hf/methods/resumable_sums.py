"""Sums over photos that survive an interruption: each process adds up its share, and continues from its own sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from ..processes import broadcast_from_main

if TYPE_CHECKING:
    import torch

    from .base import Context
    from .resume import ResumeState

T = TypeVar("T")


def add_up(
    context: Context, name: str, chunks: Sequence[T], sums: Mapping[str, torch.Tensor], add: Callable[[T], None], label: str
) -> None:
    """Call `add` with each chunk of this process's share, in order. The caller then reduces the sums over processes.

    An interrupted preparation continues after the chunks that were added before, with the same bytes as without the interruption. With
    another number of processes it adds them up again.

    Args:
        context: The processes, the resume state and the progress bar.
        name: Name of the sums, different for each call of one preparation.
        chunks: The chunks of all processes, the same in each.
        sums: All that `add` changes, by name; filled in place from a saved state.
        add: Adds a chunk to the sums.
        label: Of the progress bar.
    """
    state, own, processes = context.resume_state.part(name), context.local_share(chunks), context.accelerator.num_processes
    rounds = math.ceil(len(chunks) / processes)
    done = _restore(state, sums, context)
    with state.stoppable():
        for index in context.reporter.track(range(done, rounds), label, rounds - done):
            if index < len(own):
                add(own[index])
            if state.folder is not None and broadcast_from_main(context.accelerator, state.should_save()):
                state.save(_of_all_processes(sums, context), {"done": index + 1, "processes": processes})


def _restore(state: ResumeState, sums: Mapping[str, torch.Tensor], context: Context) -> int:
    """Fill the sums of this process from a saved state; return how many rounds it contains."""
    accelerator = context.accelerator
    found = state.load()
    if found is None or found[1]["processes"] != accelerator.num_processes:
        return 0
    for name, tensor in sums.items():
        tensor.copy_(found[0][f"{accelerator.process_index}/{name}"])
    return int(found[1]["done"])


def _of_all_processes(sums: Mapping[str, torch.Tensor], context: Context) -> dict[str, torch.Tensor]:
    """Return the sums of each process, on the CPU of the main process; nothing elsewhere."""
    accelerator = context.accelerator
    found: dict[str, torch.Tensor] = {}
    for name, tensor in sums.items():
        parts = accelerator.gather(tensor.unsqueeze(0)) if accelerator.num_processes > 1 else tensor.unsqueeze(0)
        if accelerator.is_main_process:
            found |= {f"{process}/{name}": part.cpu() for process, part in enumerate(parts)}
    return found

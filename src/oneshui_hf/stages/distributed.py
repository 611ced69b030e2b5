"""What the stages need of Accelerate: an accelerator, and writing from one process only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType, broadcast_object_list

from ..errors import UsageError

T = TypeVar("T")


def make_accelerator() -> Accelerator:
    """Return an accelerator of full precision; a training that wants less says so itself, see `half_precision`."""
    # Backbones hold parameters that classification never uses (DINOv2's mask token), which DDP must look for.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[unused])
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        # Forward-mode products and exact checkpoints need the whole model in every process.
        kind = accelerator.distributed_type.value
        raise UsageError(f"{kind} splits the model over processes, which is not supported; launch with plain data parallelism.")
    return accelerator


def half_precision(device: torch.device, wanted: bool) -> torch.autocast:
    """Return a block in which a model computes in bfloat16, where that is wanted and the device has it.

    Not by the accelerator: its precision is one for the whole process, and only training may be imprecise.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_half_precision(device) and wanted)


def has_half_precision(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 faster than in full precision. A CPU may, but then one and another differ in their results."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def on_main(accelerator: Accelerator, work: Callable[[], T]) -> T | None:
    """Do `work` on the main process while the others wait for it."""
    result = work() if accelerator.is_main_process else None
    accelerator.wait_for_everyone()
    return result


def agree(accelerator: Accelerator, said: T) -> T:
    """Return what the main process says, so that all processes do the same."""
    told = [said]
    if accelerator.num_processes > 1:
        broadcast_object_list(told)
    return told[0]

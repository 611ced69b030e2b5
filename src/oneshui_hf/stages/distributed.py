"""Helpers for Accelerate: create an accelerator, run code on the main process only, and share a value with all processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType, broadcast_object_list

from ..errors import UsageError

T = TypeVar("T")


def make_accelerator() -> Accelerator:
    """Return an accelerator in full precision; training in bfloat16 uses `bf16_autocast` instead."""
    # Some backbones have parameters that classification never uses (DINOv2's mask token). DDP must detect them.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[unused])
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        # Forward-mode differentiation and exact checkpoints need the whole model in every process.
        kind = accelerator.distributed_type.value
        raise UsageError(f"{kind} splits the model over processes, which is not supported; launch with plain data parallelism.")
    return accelerator


def bf16_autocast(device: torch.device, enabled: bool) -> torch.autocast:
    """Return a context in which a model computes in bfloat16, if that is enabled and the device supports it.

    The accelerator is not used for this: its precision applies to the whole process, and only training may be imprecise.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=supports_bf16(device) and enabled)


def supports_bf16(device: torch.device) -> bool:
    """Whether to use bfloat16 on a device: only on CUDA. Some CPUs support it, but results would differ between CPUs."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def on_main(accelerator: Accelerator, work: Callable[[], T]) -> T | None:
    """Run `work` on the main process while the others wait. Return its result there, and None on the others."""
    result = work() if accelerator.is_main_process else None
    accelerator.wait_for_everyone()
    return result


def broadcast_from_main(accelerator: Accelerator, value: T) -> T:
    """Return the main process's value on all processes."""
    values = [value]
    if accelerator.num_processes > 1:
        broadcast_object_list(values)
    return values[0]

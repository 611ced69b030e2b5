"""What the stages need of Accelerate: an accelerator, and writing from one process only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType

from ..errors import UsageError

T = TypeVar("T")


def make_accelerator(mixed_precision: bool = False) -> Accelerator:
    """Return an accelerator; with bf16 where asked for and the device has it."""
    bf16 = mixed_precision and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    # Backbones hold parameters that classification never uses (DINOv2's mask token), which DDP must look for.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", kwargs_handlers=[unused])
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        # Forward-mode products and exact checkpoints need the whole model in every process.
        kind = accelerator.distributed_type.value
        raise UsageError(f"{kind} splits the model over processes, which is not supported; launch with plain data parallelism.")
    return accelerator


def on_main(accelerator: Accelerator, work: Callable[[], T]) -> T | None:
    """Do `work` on the main process while the others wait for it."""
    result = work() if accelerator.is_main_process else None
    accelerator.wait_for_everyone()
    return result

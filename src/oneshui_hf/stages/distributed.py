"""Helpers for Accelerate: create an accelerator, and choose the precision of a training."""

from __future__ import annotations

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType

from ..errors import UsageError


def make_accelerator() -> Accelerator:
    """Return an accelerator in full precision; training in half precision uses `autocast` instead."""
    # Some backbones have parameters that classification never uses (DINOv2's mask token). DDP must detect them. Training turns this off
    # for the others.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[unused])
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        # Forward-mode differentiation and exact checkpoints need the whole model in every process.
        kind = accelerator.distributed_type.value
        raise UsageError(f"{kind} splits the model over processes, which is not supported; launch with plain data parallelism.")
    return accelerator


def training_dtype(device: torch.device, *, bf16: bool, fp16: bool) -> torch.dtype:
    """Return the precision that training computes in, given what was asked for. Half precision is for CUDA only.

    Some CPUs support it, but results would differ between CPUs.
    """
    if device.type == "cuda" and fp16:
        return torch.float16
    return torch.bfloat16 if bf16 and supports_bf16(device) else torch.float32


def precision_note(device: torch.device, *, bf16: bool, fp16: bool) -> str | None:
    """Return a sentence for the user if training computes in another precision than asked for and the GPU, or the option, is the reason."""
    if fp16 and device.type != "cuda":
        return "--fp16 needs a CUDA GPU; this training computes in full precision."
    if bf16 and not fp16 and device.type == "cuda" and not supports_bf16(device):
        return "This GPU has no native bfloat16, so training computes in full precision; --fp16 is faster."
    return None


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return a context in which a model computes in this precision.

    The accelerator is not used for this: its precision applies to the whole process, and only training may be imprecise.
    """
    half = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if half else torch.bfloat16, enabled=half)


def supports_bf16(device: torch.device) -> bool:
    """Whether to use bfloat16 on a device: on CUDA GPUs that compute in it. Older ones emulate it, which is slower than full precision."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)

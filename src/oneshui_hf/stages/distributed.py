"""The launch of a command: its processes, and what `accelerate config` and the training options say about precision and accumulation.

Only training may be imprecise, so the accelerator itself always computes in full precision: Accelerate's `mixed_precision` becomes the
precision of a training, in which `autocast` lets the model compute.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType

from ..errors import UsageError
from .command_options import TrainOptions
from .training.recipe import CLOSED_FORM

PRECISIONS = ("no", "fp16", "bf16")  # values of Accelerate's mixed_precision that a training can have
FP16_NEEDS_GPU = "--fp16 needs a CUDA GPU; this training computes in full precision."
CPU_LACKS_BF16 = "This CPU has no native bfloat16, so training computes in full precision."
GPU_LACKS_BF16 = "This GPU has no native bfloat16, so training computes in full precision; --fp16 is faster."
CPUS_DIFFER = "Training in bfloat16 on a CPU: other CPUs, and other versions of its libraries, give other weights."


def make_accelerator(*, training: bool = False) -> Accelerator:
    """Return an accelerator in full precision.

    Args:
        training: Whether the command trains by gradients only, so that the model may be divided over the processes (FSDP2).

    Raises:
        UsageError: The launch divides the model in a way that the command does not support.
    """
    _require_supported_launch(os.environ, training=training)
    # Some backbones have parameters that classification never uses (DINOv2's mask token). DDP must detect them. Training turns this off
    # for the others.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[unused])
    if _is_set(os.environ, "ACCELERATE_USE_FSDP") and accelerator.distributed_type != DistributedType.FSDP:
        raise UsageError(  # Accelerate would silently start plain data parallelism
            f"Accelerate's configuration asks for FSDP, which needs several GPUs, and this launch has {accelerator.num_processes} "
            f"process(es) on {accelerator.device.type}; launch with plain data parallelism (DDP) or one process."
        )
    return accelerator


def _require_supported_launch(environment: Mapping[str, str], *, training: bool) -> None:
    """Check how `accelerate launch` divides the model.

    Raises:
        UsageError: By DeepSpeed or Megatron-LM, by FSDP1, or by FSDP2 for a command that needs the whole model.
    """
    for name, variable in (("DeepSpeed", "ACCELERATE_USE_DEEPSPEED"), ("Megatron-LM", "ACCELERATE_USE_MEGATRON_LM")):
        if _is_set(environment, variable):
            raise UsageError(
                f"{name} is not supported: exact checkpoints would need code of its own; launch with FSDP2 (train and retrain), plain data "
                "parallelism (DDP) or one process."
            )
    if not _is_set(environment, "ACCELERATE_USE_FSDP"):
        return
    if environment.get("FSDP_VERSION", "1") != "2":
        raise UsageError("Accelerate's configuration asks for FSDP1, which is not supported; set `fsdp_version: 2` in it for FSDP2.")
    if not training:
        raise UsageError(
            "FSDP divides the model over the processes, and only train and retrain support that: this command differentiates or compares "
            "whole models. Launch it with plain data parallelism (DDP) or one process."
        )


def _is_set(environment: Mapping[str, str], variable: str) -> bool:
    return environment.get(variable, "").lower() in ("1", "true", "yes", "on")


def check_divided_training(options: TrainOptions) -> None:
    """Check that a training can divide its model over the processes.

    Raises:
        UsageError: It uses float16, or computes a head in closed form.
    """
    if options.head == CLOSED_FORM:
        raise UsageError(f"--head {CLOSED_FORM} needs the whole model in every process; launch it with plain data parallelism (DDP).")
    if options.fp16:
        raise UsageError("Loss scaling for float16 is not supported with FSDP; train in bfloat16, or with plain data parallelism (DDP).")


def with_launch_settings(options: TrainOptions, environment: Mapping[str, str] = os.environ) -> tuple[TrainOptions, list[str]]:
    """Return training options with what Accelerate's configuration sets and the options leave open, and notes for the user.

    `accelerate launch` passes its configuration on in environment variables.

    Args:
        options: What the user gave.
        environment: The environment variables.

    Raises:
        UsageError: The configuration has a precision that training does not support, or a number that is none.
    """
    if options.head == CLOSED_FORM:  # it is computed in full precision
        return options, []
    notes: list[str] = []
    configured = environment.get("ACCELERATE_MIXED_PRECISION", "").lower()
    if configured and configured not in PRECISIONS:
        raise UsageError(
            f"Accelerate's configuration asks for mixed_precision {configured}, which is not supported; it can be no, fp16 or bf16."
        )
    given = _given_precision(options)
    if given is not None and configured not in ("", given):
        notes.append(f"Accelerate's configuration asks for mixed_precision {configured}; the options of this training ask for {given}.")
    elif given is None and configured and not (configured == "fp16" and options.fp16 is False):
        options = dataclasses.replace(options, bf16=configured == "bf16", fp16=configured == "fp16")
    steps = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if not steps.isdecimal() or int(steps) < 1:
        raise UsageError(f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS must be a whole number from 1 on, not '{steps}'.")
    if options.gradient_accumulation_steps is None:
        options = dataclasses.replace(options, gradient_accumulation_steps=int(steps) if int(steps) > 1 else None)
    elif int(steps) not in (1, options.gradient_accumulation_steps):
        notes.append(
            f"Accelerate's configuration asks for {steps} gradient accumulation steps; "
            f"the options of this training ask for {options.gradient_accumulation_steps}."
        )
    return options, notes


def _given_precision(options: TrainOptions) -> str | None:
    """Return the precision that options ask for, as Accelerate names it; None if they leave it open."""
    if options.fp16:
        return "fp16"
    if options.bf16 is None:
        return None
    return "bf16" if options.bf16 else "no"


def training_dtype(device: torch.device, *, bf16: bool | None, fp16: bool | None) -> torch.dtype:
    """Return the precision that training computes in, given what was asked for.

    By default, training uses bfloat16 on GPUs that compute in it. On CPUs it must be asked for, since results would differ between CPUs.
    """
    if fp16:
        return torch.float16 if device.type == "cuda" else torch.float32
    wanted = device.type == "cuda" if bf16 is None else bf16
    return torch.bfloat16 if wanted and supports_bf16(device) else torch.float32


def precision_note(device: torch.device, *, bf16: bool | None, fp16: bool | None) -> str | None:
    """Return a sentence for the user if training computes in another precision than asked for, or in one that differs between machines."""
    if fp16:
        return None if device.type == "cuda" else FP16_NEEDS_GPU
    if device.type == "cuda":
        return GPU_LACKS_BF16 if bf16 is not False and not supports_bf16(device) else None
    if device.type == "cpu" and bf16:
        return CPUS_DIFFER if supports_bf16(device) else CPU_LACKS_BF16
    return None


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return a context in which a model computes in this precision."""
    half = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if half else torch.bfloat16, enabled=half)


def supports_bf16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16. Others emulate it, which is slower than full precision."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and any(
        getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )

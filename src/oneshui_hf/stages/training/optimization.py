"""The optimizer of a training, its learning rate, and how much of a batch fits into memory."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import nn

from ...errors import OneshuiError, UsageError, first_line
from ...seeding import seeded
from ..command_options import TrainOptions
from ..distributed import autocast, training_dtype
from .recipe import memory_limit

# Gradients of activations and temporary results of a backward pass, in addition to the activations that are kept for it.
TEMPORARY = 1.5


def make_optimizer(model: nn.Module, options: TrainOptions, device: torch.device) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe. On CUDA each update is one kernel, which rounds differently from the steps one after the other."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fused = device.type == "cuda"
    if options.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay, foreach=not fused, fused=fused
        )
    return torch.optim.AdamW(parameters, lr=options.lr, weight_decay=options.weight_decay, foreach=not fused, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, options: TrainOptions, step: int, steps_per_epoch: int) -> None:
    """Set the learning rate: linear warm-up, then cosine decay to zero. It depends on the step only, so resuming needs no state."""
    warmup, total = options.warmup_epochs * steps_per_epoch, options.epochs * steps_per_epoch
    if step < warmup:
        rate = options.lr * (step + 1) / (warmup + 1)
    else:
        rate = options.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))
    for group in optimizer.param_groups:
        group["lr"] = rate


@contextlib.contextmanager
def recomputed_activations(model: nn.Module, options: TrainOptions) -> Iterator[None]:
    """Let the model compute activations twice instead of keeping them, in the block, if the options ask for it.

    Raises:
        UsageError: Its architecture does not support this.
    """
    _require_checkpointing(model, options)
    if not options.gradient_checkpointing:
        yield
        return
    _checkpointing(model, "enable")({"use_reentrant": False})
    try:
        yield
    finally:
        _checkpointing(model, "disable")()


def _checkpointing(model: nn.Module, verb: str) -> Callable[..., None]:
    """Return the method of a transformers model that turns recomputation on or off; it was renamed for version 6."""
    new, old = (f"{kind}_checkpointing_{verb}" for kind in ("activation", "gradient"))
    return getattr(model, new if hasattr(model, new) else old)  # type: ignore[no-any-return]


def _require_checkpointing(model: nn.Module, options: TrainOptions) -> None:
    if options.gradient_checkpointing and not getattr(model, "supports_gradient_checkpointing", False):
        raise UsageError(f"{type(model).__name__} does not support --gradient-checkpointing; omit it, or use --max-memory.")


def check_model(model: nn.Module, options: TrainOptions, size: int, device: torch.device) -> None:
    """Check that a model can be trained with the options. The arguments are those of `photos_per_pass`.

    Raises:
        UsageError: Its architecture cannot compute activations twice, or not even one photo fits into `--max-memory`.
    """
    _require_checkpointing(model, options)
    photos_per_pass(model, options, size, device, training_dtype(device, bf16=options.bf16, fp16=options.fp16))


def photos_per_pass(model: nn.Module, options: TrainOptions, size: int, device: torch.device, dtype: torch.dtype) -> int:
    """Return how many photos of a batch are computed at once: all, or as many as fit into `--max-memory`.

    The number depends on the model and the options only, not on the machine, so a training can be repeated elsewhere. It does not count on
    what `--gradient-checkpointing` saves, which depends on how memory is reused.

    Args:
        model: The classifier, on any device.
        options: The recipe.
        size: Side of the photos in pixels.
        device: Where it trains.
        dtype: Its precision.

    Raises:
        UsageError: Not even one photo fits.
    """
    limit = memory_limit(options.max_memory)
    if limit is None:
        return options.batch_size
    trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    weights = held + trained * (2 if options.optimizer == "sgd" else 3)  # gradients, and one or two moments
    first, second = (_activation_bytes(model, count, size, device, dtype) for count in (1, 2))
    per_photo = TEMPORARY * max(second - first, 1)
    fixed = weights + TEMPORARY * max(2 * first - second, 0)
    photos = int((limit - fixed) / per_photo)
    if photos < 1:
        need = math.ceil((fixed + per_photo) / 10**6)
        raise UsageError(f"--max-memory {options.max_memory} is too little: this model needs {need:,} MB for a batch of one photo.")
    return min(photos, options.batch_size)


def _activation_bytes(model: nn.Module, count: int, size: int, device: torch.device, dtype: torch.dtype) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, without the parameters. The model is left unchanged."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # the storages stay alive, so that no address is used twice

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}  # batch normalisation changes them
    place = next(model.parameters()).device
    training = model.training
    precision = autocast(place, dtype if place.type == device.type else torch.float32)
    with seeded(0, "memory"), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), precision:
        torch.func.functional_call(model.train(), buffers, kwargs={"pixel_values": torch.zeros(count, 3, size, size, device=place)})
    model.train(training)
    return sum(storage.nbytes() for storage in kept.values())


@contextlib.contextmanager
def compile_errors() -> Iterator[None]:
    """Report that `--compile` fails on this machine, such as without a C++ compiler, in one sentence.

    Raises:
        OneshuiError: It does.
    """
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise OneshuiError(f"--compile fails here ({first_line(error).rstrip('.')}); train without it.") from error

"""Outputs of a classifier: logits, probabilities, losses, and the features before its head."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from ..data.augment import apply_view
from ..data.prefetch import pinned, prefetch
from ..data.schema import Task, TaskKind
from ..errors import OneshuiError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..data.face_set import FaceSet


def losses(logits: torch.Tensor, labels: torch.Tensor, kind: TaskKind) -> torch.Tensor:
    """Return the loss of each photo (n,): binary cross-entropy, mean over the attributes; or cross-entropy."""
    if kind == "multi_label":
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=1)
    return F.cross_entropy(logits, labels, reduction="none")


def probabilities(logits: torch.Tensor, kind: TaskKind) -> torch.Tensor:
    """Return sigmoid (multi-label) or softmax (single-label) of the logits, (n, K)."""
    return logits.sigmoid() if kind == "multi_label" else logits.softmax(dim=1)


def predicted_labels(logits: torch.Tensor, kind: TaskKind) -> torch.Tensor:
    """Return the labels that the model predicts: 0/1 per attribute, or the class."""
    return (logits > 0).to(logits.dtype) if kind == "multi_label" else logits.argmax(dim=1)


def targets(labels: torch.Tensor, task: Task) -> torch.Tensor:
    """Return labels as float vectors (n, K): attributes unchanged, classes one-hot."""
    if task.kind == "multi_label":
        return labels.float()
    return F.one_hot(labels, len(task.label_names)).float()


def find_head(model: nn.Module) -> nn.Linear:
    """Return the classification head: the last linear layer with as many outputs as there are labels.

    Raises:
        OneshuiError: No such layer exists.
    """
    size = _num_labels(model)
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == size]
    if not heads:
        raise OneshuiError(f"{type(model).__name__} has no linear classification head, so its features cannot be found; use another model.")
    return heads[-1]


def module_name(model: nn.Module, module: nn.Module) -> str:
    """Return the name of a module in a model that contains it."""
    return next(name for name, candidate in model.named_modules() if candidate is module)


def _num_labels(model: nn.Module) -> int:
    """Return K, the number of labels of a classifier."""
    return int(model.config.num_labels)  # type: ignore[union-attr, arg-type]


def feature_dim(model: nn.Module) -> int:
    """Return d, the number of inputs of the classification head."""
    return find_head(model).in_features


def logits_and_features(
    model: nn.Module, pixels: torch.Tensor, parameters: Mapping[str, torch.Tensor] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (n, K) and the input of the classification head (n, d).

    Args:
        model: Any transformers image classifier with a linear head.
        pixels: Preprocessed photos (n, 3, S, S).
        parameters: Replace the model's own parameters; `torch.func` can differentiate with respect to them.

    Raises:
        OneshuiError: The head cannot be found, or the logits are not a linear function of one feature vector per photo.
    """
    recorded: list[tuple[torch.Tensor, torch.Tensor]] = []
    head = find_head(model)
    hook = head.register_forward_hook(lambda module, inputs, output: recorded.append((inputs[0], output)))
    try:
        if parameters is None:
            output = model(pixel_values=pixels)
        else:
            output = torch.func.functional_call(model, dict(parameters), kwargs={"pixel_values": pixels})
    finally:
        hook.remove()
    if len(recorded) != 1 or recorded[0][1] is not output.logits or recorded[0][0].dim() != 2:
        raise OneshuiError(
            f"The logits of {type(model).__name__} are not a linear function of one vector per photo, so its features cannot be "
            "found; use another model."
        )
    return output.logits, recorded[0][0]


def predict(model: nn.Module, faces: FaceSet, accelerator: Accelerator, batch_size: int = 64, view: int = 0) -> torch.Tensor:
    """Return the logits of all photos, float32 (n, K) on the CPU, the same on every process.

    Args:
        model: Any image classifier.
        faces: The photos.
        accelerator: Distributes the batches over processes.
        batch_size: Photos per forward pass.
        view: The view of each photo that the model sees, see `data.augment.apply_view`.
    """
    model = accelerator.unwrap_model(model)
    width = _num_labels(model)
    forward = lambda pixels: model(pixel_values=apply_view(pixels, view)).logits  # noqa: E731
    return require_finite_logits(_map_batches(model, faces, accelerator, batch_size, width, forward))


def predict_with_features(
    model: nn.Module, faces: FaceSet, accelerator: Accelerator, batch_size: int = 64
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (n, K) as `predict` does, and the inputs of the classification head, float32 (n, d)."""
    model = accelerator.unwrap_model(model)
    widths = _num_labels(model), feature_dim(model)
    both = _map_batches(model, faces, accelerator, batch_size, sum(widths), lambda pixels: torch.cat(logits_and_features(model, pixels), 1))
    logits, features = both.split(widths, dim=1)
    return require_finite_logits(logits.contiguous()), features.contiguous()


def require_finite_logits(logits: torch.Tensor) -> torch.Tensor:
    """Return logits.

    Raises:
        OneshuiError: Some are NaN or infinite: no label, loss or score follows from them.
    """
    if not logits.isfinite().all():
        raise OneshuiError("The model's predictions are NaN or infinite, so nothing can be computed from them; use another model.")
    return logits


def _map_batches(
    model: nn.Module, faces: FaceSet, accelerator: Accelerator, batch_size: int, width: int, forward: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Return the outputs of `forward` for the preprocessed photos, float32 (n, width) on the CPU.

    Batches are assigned to processes in turn and rows are summed over processes, so the result does not depend on their number.
    """
    mine, own = _batches_of_process(model, len(faces), batch_size, accelerator)
    raw = (pinned(faces.raw_pixels(positions), accelerator.device) for positions in mine)
    training = model.training
    model.eval()
    out = torch.zeros(len(faces), width, device=accelerator.device)
    with torch.no_grad(), contextlib.closing(prefetch(raw) if len(mine) > 1 else raw) as photos:
        for number, pixels in enumerate(photos):
            rows = forward(faces.preprocess(pixels.to(accelerator.device, non_blocking=True))).float()
            if number < own:
                out[mine[number]] = rows
    model.train(training)
    return accelerator.reduce(out, reduction="sum").cpu()


def _batches_of_process(model: nn.Module, count: int, batch_size: int, accelerator: Accelerator) -> tuple[list[torch.Tensor], int]:
    """Return the positions of each forward pass of this process, and how many of the passes count.

    If the parameters are divided over the processes (FSDP), all make as many passes: a pass exchanges parameters.
    """
    batches = list(torch.arange(count).split(batch_size)) if count else []
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    own = len(mine)
    if accelerator.num_processes > 1 and any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
        mine += batches[:1] * (math.ceil(len(batches) / accelerator.num_processes) - own)
    return mine, own

"""Integer features of photos, their sums over a training set, and the head that follows from the sums.

Features are computed in float64 before they are rounded. Batch size, threads and processes change them by about 1e-14, which hardly ever
changes an integer; the integers are compared where it matters (`is_head_of`).
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from ..data.augment import apply_view
from ..data.schema import Task, TaskKind
from ..processes import on_main
from ..reporting import SILENT, Reporter
from .closed_form import ClosedFormClassifier
from .feature_sums import FeatureSums, require_exact, round_to_grid, solve_head
from .outputs import targets

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..data.face_set import FaceSet

PHOTOS_PER_PASS = 64
ROWS_PER_PRODUCT = 1024


def grid_rows(
    model: ClosedFormClassifier, faces: FaceSet, accelerator: Accelerator, *, mirrored: bool, reporter: Reporter = SILENT
) -> torch.Tensor:
    """Return the integer features of all photos and then, if `mirrored`, of their mirror images, int16 (m, d).

    The result is on the CPU, and the same on every process.
    """
    device = _device(accelerator)
    rows = torch.zeros((1 + mirrored) * len(faces), model.config.feature_size, dtype=torch.int16, device=device)
    for index, part in _local_rows(model, faces, accelerator, mirrored, reporter):
        rows[index] = part
    if accelerator.num_processes > 1:  # each row is zero on all processes but one; not every back end adds 16-bit integers
        rows = accelerator.reduce(rows.view(torch.uint8), reduction="sum").view(torch.int16)
    return rows.cpu()


def sum_photos(
    model: ClosedFormClassifier, faces: FaceSet, task: Task, accelerator: Accelerator, reporter: Reporter = SILENT
) -> FeatureSums:
    """Return the sums over a training set, on the CPU of every process. Processes share the photos; memory does not grow with them.

    Raises:
        OneshuiError: There are too many photos for exact sums.
    """
    mirrored = model.config.mirrored
    require_exact((1 + mirrored) * len(faces))
    labels = targets(faces.labels, task)
    sums = FeatureSums.zeros(model.config.feature_size, labels.shape[1], _device(accelerator))
    waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
    for index, rows in _local_rows(model, faces, accelerator, mirrored, reporter):
        waiting.append((rows, labels[index % len(faces)].to(rows.device)))
        if PHOTOS_PER_PASS * len(waiting) >= ROWS_PER_PRODUCT:
            sums, waiting = sums + FeatureSums.of(*map(torch.cat, zip(*waiting, strict=True))), []
    if waiting:
        sums += FeatureSums.of(*map(torch.cat, zip(*waiting, strict=True)))
    parts = {name: accelerator.reduce(getattr(sums, name), reduction="sum").cpu() for name in ("x", "y", "xx", "xy")}
    return dataclasses.replace(sums, count=(1 + mirrored) * len(faces), **parts)


def sum_rows(rows: torch.Tensor, labels: torch.Tensor) -> FeatureSums:
    """Return the sums of rows (n, d) with labels (n, K), 0 or 1."""
    sums = FeatureSums.zeros(rows.shape[1], labels.shape[1])
    for part, own in zip(rows.split(ROWS_PER_PRODUCT), labels.split(ROWS_PER_PRODUCT), strict=True):
        sums += FeatureSums.of(part, own)
    return sums


def set_head(model: ClosedFormClassifier, sums: FeatureSums, accelerator: Accelerator) -> None:
    """Replace the head of a model by that of the sums, with the model's own constants. The main process computes it."""
    weight, bias = _head(model, sums, accelerator)
    model.head.weight.data.copy_(weight)
    model.head.bias.data.copy_(bias)


def is_head_of(model: ClosedFormClassifier, sums: FeatureSums, accelerator: Accelerator) -> bool:
    """Return whether the head of a model is that of the sums, bit for bit."""
    weight, bias = _head(model, sums, accelerator)
    return torch.equal(model.head.weight.cpu(), weight) and torch.equal(model.head.bias.cpu(), bias)


def head_hash(model: ClosedFormClassifier) -> str:
    """Return the SHA-256 of the head's weights."""
    parts = (tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() for tensor in (model.head.weight, model.head.bias))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _head(model: ClosedFormClassifier, sums: FeatureSums, accelerator: Accelerator) -> tuple[torch.Tensor, torch.Tensor]:
    config = model.config
    kind: TaskKind = "multi_label" if config.problem_type == "multi_label_classification" else "single_label"
    weight, bias = on_main(accelerator, lambda: solve_head(sums, config.shrinkage, config.temperature, kind))
    return weight.float(), bias.float()


def _local_rows(
    model: ClosedFormClassifier, faces: FaceSet, accelerator: Accelerator, mirrored: bool, reporter: Reporter
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the places and the integer features of this process's photos; a mirror image has the place of its photo plus their number."""
    device = _device(accelerator)
    precise = copy.deepcopy(model).to(device, torch.float64).eval()
    passes = torch.arange((1 + mirrored) * len(faces)).split(PHOTOS_PER_PASS)
    with torch.no_grad():
        for index in reporter.track(passes[accelerator.process_index :: accelerator.num_processes], "Computing features"):
            pixels = faces.batch(index % len(faces), device)[0].double()
            is_mirrored = (index >= len(faces)).to(device).view(-1, 1, 1, 1)
            yield index, round_to_grid(precise.features(torch.where(is_mirrored, apply_view(pixels, 1), pixels)))


def _device(accelerator: Accelerator) -> torch.device:
    """Return the device of a process, or the CPU if that has no float64."""
    return torch.device("cpu") if accelerator.device.type == "mps" else accelerator.device

"""Training checkpoints: weights, best weights so far and optimizer state, in safetensors and JSON.

Nothing else is needed to resume. The learning rate is a function of the step, and every random draw is named by seed and epoch. The JSON
file is sealed: it has a checksum of itself and the SHA-256 of each tensor file, so that a training never continues from damaged state.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ...errors import NotResumableError, OneshuiError, first_line, is_machine_error
from ...files import new_folder, remove
from ...methods.weight_space import Weights
from ...runs import hash_file, read_checked, with_checksum, write_json

NAME = re.compile(r"checkpoint-(\d{1,9})")
MODEL, BEST, OPTIMIZER, PROGRESS = "model.safetensors", "best.safetensors", "optimizer.safetensors", "progress.json"


def save(run: Path, epoch: int, model: Weights, best: Weights | None, optimizer: dict[str, Any], progress: dict[str, Any]) -> None:
    """Write `checkpoint-<epoch>` atomically, then delete the older checkpoints."""
    moments = {
        f"{index}.{name}": value.contiguous()
        for index, state in optimizer["state"].items()
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }
    folder = run / f"checkpoint-{epoch}"
    with new_folder(folder, replace=True) as scratch:
        save_file({k: v.contiguous() for k, v in model.items()}, scratch / MODEL)
        save_file(moments, scratch / OPTIMIZER)
        if best is not None:
            save_file({k: v.contiguous() for k, v in best.items()}, scratch / BEST)
        write_sealed(scratch / PROGRESS, {"epoch": epoch, **progress})
    for other in _all(run):
        if other != folder:
            remove(other)


def latest(run: Path) -> Path | None:
    """Return the folder of the newest checkpoint; None without one."""
    return max(_all(run), key=_epoch, default=None)


def load(folder: Path) -> tuple[Weights, Weights | None, dict[int, dict[str, torch.Tensor]], dict[str, Any]]:
    """Read weights, best weights, the optimizer's state by parameter index, and progress. Call it inside `reading`.

    Raises:
        OneshuiError: A file is missing or damaged.
    """
    progress = read_sealed(folder / PROGRESS, MODEL, OPTIMIZER)
    model = load_file(folder / MODEL)
    best = load_file(folder / BEST) if progress["best_epoch"] is not None else None
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(folder / OPTIMIZER).items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    return model, best, state, progress


def write_sealed(file: Path, values: dict[str, Any]) -> None:
    """Write a JSON file with a checksum of itself and the SHA-256 of the tensor files next to it."""
    files = {tensors.name: hash_file(tensors) for tensors in file.parent.glob("*.safetensors")}
    write_json(file, with_checksum({**values, "files": files}))


def read_sealed(file: Path, *required: str) -> dict[str, Any]:
    """Read a JSON file that `write_sealed` wrote, and check the tensor files next to it.

    Args:
        file: The file.
        required: Names of tensor files that it must list.

    Raises:
        OneshuiError: It or a tensor file is missing or has changed, or it was written by an earlier version.
    """
    values = read_checked(file)
    files = values.pop("files", None)
    if not isinstance(files, dict) or not files.keys() >= set(required):
        raise OneshuiError(f"{file.name} is of an earlier version.")
    for name, expected in files.items():
        if not (file.parent / name).is_file():
            raise OneshuiError(f"{name} is missing.")
        if hash_file(file.parent / name) != expected:
            raise OneshuiError(f"{name} has changed since it was written.")
    del values["content"]
    return values


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Report every error of the block as damage of a folder, except those of the machine.

    Raises:
        NotResumableError: Something is wrong.
    """
    try:
        yield
    except Exception as error:  # safetensors and torch raise classes of their own, the file system OSError
        if is_machine_error(error):
            raise
        raise NotResumableError(f"{folder} is damaged ({first_line(error).rstrip('.')}); start again with --overwrite.") from error


def _all(run: Path) -> list[Path]:
    return [path for path in run.glob("checkpoint-*") if NAME.fullmatch(path.name)]


def _epoch(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])

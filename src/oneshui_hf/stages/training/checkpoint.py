"""Training checkpoints: weights, best weights so far and optimizer state, in safetensors and JSON.

After an epoch nothing else is needed to resume: the learning rate is a function of the step, and every random draw is named by seed and
epoch. Within an epoch, the state of dropout's generator and the sum of the losses are kept as well, of each process. The JSON file is
sealed: it has a checksum of itself and the SHA-256 of each tensor file, so that a training never continues from damaged state. The two
newest checkpoints are kept: should the newest be damaged, the one before is used.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from ...errors import NotResumableError, OneshuiError, first_line, is_machine_error
from ...files import new_folder, remove
from ...methods.weight_space import Weights
from ...runs import hash_file, read_checked, with_checksum, write_json

NAME = re.compile(r"checkpoint-(\d{1,9})(?:-(\d{1,9}))?")
MODEL, BEST, OPTIMIZER, PROGRESS = "model.safetensors", "best.safetensors", "optimizer.safetensors", "progress.json"
WITHIN = "within.safetensors"  # what a checkpoint within an epoch has in addition
KEPT = 2


def save(
    run: Path,
    epoch: int,
    model: Weights,
    best: Weights | None,
    optimizer: dict[str, Any],
    progress: dict[str, Any],
    *,
    step: int = 0,
    within: Weights | None = None,
) -> None:
    """Write a checkpoint atomically, then delete all but the two newest.

    Args:
        run: The folder in which it is made.
        epoch: Number of complete epochs.
        model: The weights.
        best: The weights of the best epoch.
        optimizer: The state of the optimizer.
        progress: What else is needed, as JSON.
        step: Number of steps of the next epoch that are done.
        within: With steps, the state of the epoch, by name.
    """
    moments = {
        f"{index}.{name}": value.contiguous()
        for index, state in optimizer["state"].items()
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }
    folder = run / (f"checkpoint-{epoch}-{step}" if step else f"checkpoint-{epoch}")
    with new_folder(folder, replace=True) as scratch:
        save_file({k: v.contiguous() for k, v in model.items()}, scratch / MODEL)
        save_file(moments, scratch / OPTIMIZER)
        if best is not None:
            save_file({k: v.contiguous() for k, v in best.items()}, scratch / BEST)
        if within is not None:
            save_file(within, scratch / WITHIN)
        write_sealed(scratch / PROGRESS, {"epoch": epoch, **({"step": step} if step else {}), **progress})
    for other in newest_first(run)[KEPT:]:
        remove(other)


def newest_first(run: Path) -> list[Path]:
    """Return the folders of the checkpoints."""
    return sorted((path for path in run.glob("checkpoint-*") if NAME.fullmatch(path.name)), key=_position, reverse=True)


class State(NamedTuple):
    """A checkpoint.

    Attributes:
        model: The weights.
        best: The weights of the best epoch, if there is one.
        optimizer: The optimizer's state by parameter index.
        within: The state of an incomplete epoch, by name; empty after an epoch.
        progress: What else was saved, with `epoch` and, within an epoch, `step`.
    """

    model: Weights
    best: Weights | None
    optimizer: dict[int, dict[str, torch.Tensor]]
    within: Weights
    progress: dict[str, Any]


def load(folder: Path) -> State:
    """Read a checkpoint. Call it inside `reading`.

    Raises:
        OneshuiError: A file is missing or damaged.
    """
    progress = read_sealed(folder / PROGRESS, MODEL, OPTIMIZER)
    if (progress["epoch"], progress.get("step", 0)) != _position(folder):
        raise OneshuiError(f"{PROGRESS} is that of another checkpoint.")
    model = load_file(folder / MODEL)
    best = load_file(folder / BEST) if progress["best_epoch"] is not None else None
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(folder / OPTIMIZER).items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    within = load_file(folder / WITHIN) if "step" in progress else {}
    return State(model, best, state, within, progress)


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


def _position(checkpoint: Path) -> tuple[int, int]:
    """Return complete epochs, and steps of the next one."""
    found = NAME.fullmatch(checkpoint.name)
    assert found
    return int(found[1]), int(found[2] or 0)

"""Training checkpoints: weights, best weights so far and optimizer state, in safetensors and JSON.

Nothing else is needed to resume. The learning rate is a function of the step, and every random draw is named by seed and epoch.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ...errors import OneshuiError
from ...files import new_folder
from ...methods.weight_space import Weights
from ...runs import read_json, write_json


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
        save_file({k: v.contiguous() for k, v in model.items()}, scratch / "model.safetensors")
        save_file(moments, scratch / "optimizer.safetensors")
        if best is not None:
            save_file({k: v.contiguous() for k, v in best.items()}, scratch / "best.safetensors")
        write_json(scratch / "progress.json", {"epoch": epoch, **progress})
    for other in run.glob("checkpoint-*"):
        if other != folder:
            shutil.rmtree(other)


def latest(run: Path) -> Path | None:
    """Return the folder of the newest checkpoint; None without one."""
    found = sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return found[-1] if found else None


def load(folder: Path) -> tuple[Weights, Weights | None, dict[int, dict[str, torch.Tensor]], dict[str, Any]]:
    """Read weights, best weights, the optimizer's state by parameter index, and progress.

    Raises:
        OneshuiError: A file is missing or damaged.
    """
    try:
        model = load_file(folder / "model.safetensors")
        best_file = folder / "best.safetensors"
        best = load_file(best_file) if best_file.exists() else None
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in load_file(folder / "optimizer.safetensors").items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
    except Exception as error:  # safetensors raises its own class, the file system OSError
        raise OneshuiError(f"{folder} is damaged ({error}); start again with --overwrite.") from error
    return model, best, state, read_json(folder / "progress.json")

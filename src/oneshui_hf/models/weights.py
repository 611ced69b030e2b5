"""The weights of a run's own checkpoint: what the files state is checked before memory is used, and the tensors after they were read."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import OneshuiError, first_line
from ..files import open_regular
from ..json_text import parse_json
from ..runs import read_object

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_HEADER_BYTES = 16 * 2**20  # of a model with 100,000 tensors
SPARE_NUMBERS = 2**25  # that a model may have and its files lack, so that the missing tensors can be named
FLOATS = ("F64", "F32", "F16", "BF16")
NAMED = 3  # tensors that a message names


def load_tensors(folder: Path, skeleton: nn.Module) -> dict[str, torch.Tensor]:
    """Read the weights of a run, under the names of the file.

    Args:
        folder: The run.
        skeleton: The model that they are for, on the meta device.

    Raises:
        OneshuiError: A file is missing, damaged or outside the folder, or the model is much larger than the files.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = _weight_files(folder)
    try:
        headers = [header for file in files for header in _read_header(file).items()]
    except (ValueError, RecursionError) as error:
        raise damaged(folder, error) from None
    _require_size(folder, headers, skeleton)
    try:
        return {name: tensor for file in files for name, tensor in load_file(file).items()}
    except SafetensorError as error:
        raise damaged(folder, error) from None


def damaged(name: str | Path, error: BaseException) -> OneshuiError:
    """Return the error for weights that cannot be read."""
    return OneshuiError(f"The weights of {name} are damaged ({first_line(error)}); download or train them again.")


def read_index(folder: Path) -> dict[str, Any]:
    """Read the list of a checkpoint's files: `weight_map` has the file of each tensor.

    Raises:
        OneshuiError: It is damaged.
    """
    index = read_object(folder / INDEX)
    files = index.get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise OneshuiError(f"{folder / INDEX} is damaged: it lists no files of weights.")
    return index


def _weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a run, one or those of its index.

    Raises:
        OneshuiError: The index is damaged, or a file is not inside the folder.
    """
    names = [WEIGHTS]
    if not (folder / WEIGHTS).exists() and (folder / INDEX).exists():
        names = sorted(set(read_index(folder)["weight_map"].values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors") or (folder / name).resolve().parent != folder.resolve():
            raise OneshuiError(f"The weights of {folder} are not files inside it, and are not read.")
        if not (folder / name).exists():
            raise OneshuiError(f"{folder / name} is missing; download or train it again.")
    return [folder / name for name in names]


def _read_header(file: Path) -> dict[str, tuple[str, int]]:
    """Return the type and the number of elements of each tensor of a safetensors file.

    Raises:
        ValueError: The header is damaged, too long, or describes more data than the file has.
    """
    with open_regular(file) as stream:
        size = stream.seek(0, 2)
        stream.seek(0)
        length = struct.unpack("<Q", stream.read(8).ljust(8, b"\0"))[0]
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {length:,} bytes")
        header = parse_json(stream.read(length))
    if not isinstance(header, dict):
        raise ValueError("no header")
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        try:
            kind, elements, end = str(entry["dtype"]), math.prod(map(int, entry["shape"])), int(entry["data_offsets"][1])
        except (KeyError, TypeError, IndexError, OverflowError):
            raise ValueError("an invalid header") from None
        if not 0 <= end <= size - 8 - length or not 0 <= elements <= size:
            raise ValueError("the header describes more data than the file has")
        found[name] = kind, elements
    return found


def _require_size(folder: Path, headers: list[tuple[str, tuple[str, int]]], skeleton: nn.Module) -> None:
    """Check that memory for the model is about that for its files, and that weights are floating-point numbers.

    Raises:
        OneshuiError: They are not.
    """
    stated = sum(elements for _, (_, elements) in headers)
    expected = sum(tensor.numel() for tensors in (skeleton.parameters(), skeleton.buffers()) for tensor in tensors)
    if expected > stated + SPARE_NUMBERS:
        raise OneshuiError(f"The weights of {folder} do not fit its config.json: they have {stated:,} numbers, and its model {expected:,}.")
    whole = [(name, elements) for name, (kind, elements) in headers if kind not in FLOATS]
    accepted = sum(tensor.numel() for tensor in skeleton.state_dict().values() if not tensor.is_floating_point())
    if sum(elements for _, elements in whole) > accepted:
        raise OneshuiError(f"The weights of {folder} are not all floating-point numbers ({listed(name for name, _ in whole)}).")


def require_all_weights(folder: Path, info: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], model: nn.Module) -> None:
    """Check what transformers reports about loading a run's own weights.

    Args:
        folder: The run.
        info: What transformers reports.
        tensors: The content of the files.
        model: The loaded model.

    Raises:
        OneshuiError: Tensors are missing, not of the model, or have another shape.
    """
    problems = {
        "lack": info["missing_keys"],
        "have another shape in": [key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]],
        "have in excess": info["unexpected_keys"],
    }
    found = [f"they {what} {listed(names)}" for what, names in problems.items() if names]
    if found:
        raise OneshuiError(f"The weights of {folder} do not fit its config.json: {', and '.join(found)}.")
    # Transformers adds and removes prefixes, so two tensors of a file may be for one parameter, and one of them is ignored.
    if sum(tensor.numel() for tensor in tensors.values()) > sum(tensor.numel() for tensor in model.state_dict().values()):
        raise OneshuiError(f"The weights of {folder} do not fit its config.json: they have several tensors for one parameter.")
    if info.get("error_msgs"):
        raise OneshuiError(f"The weights of {folder} do not fit its config.json.")


def require_finite(name: str | Path, model: nn.Module, advice: str = "train again, or restore them") -> None:
    """Check the weights of a model.

    Args:
        name: Its folder, or what it is.
        model: The model.
        advice: What to do, for the message.

    Raises:
        OneshuiError: Some are NaN or infinite.
    """
    require_finite_tensors(name, model.state_dict(), advice)


def require_finite_tensors(name: str | Path, tensors: Mapping[str, torch.Tensor], advice: str) -> None:
    """Check the weights of a model, given by their names, as `require_finite` does."""
    wrong = [key for key, tensor in tensors.items() if not is_finite(tensor)]
    if wrong:
        raise OneshuiError(f"The weights of {name} are NaN or infinite in {listed(wrong)}; {advice}.")


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor contains neither NaN nor infinity."""
    # The sum is several times faster. It is finite only if all elements are; otherwise it may have overflowed.
    return not tensor.is_floating_point() or math.isfinite(tensor.detach().sum().item()) or bool(tensor.isfinite().all())


def listed(names: Iterable[Any]) -> str:
    """Return how many tensors there are, and the first few names."""
    known = sorted(map(str, names))
    shown = ", ".join(name if len(name) <= 80 else f"{name[:80]}..." for name in known[:NAMED])
    return f"{len(known)} tensor{'s' if len(known) > 1 else ''}: {shown}{', ...' if len(known) > NAMED else ''}"

"""What a long preparation remembers while it works, so that it can go on where it was interrupted: one file beside the artefact.

It holds what the artefact will hold, and not encrypted; it lies where the training data still is, and goes when the artefact is written.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OneshuiError
from ..runs import dump_json, write_bytes

if TYPE_CHECKING:
    import torch

EVERY = 60.0  # seconds between two savings
FILE = "unfinished.safetensors"
VALUES, TENSOR = "values", "tensor/"  # in the file: JSON as bytes, and before the name of each tensor


class Unfinished:
    """The state of a preparation.

    Several processes have one each: the main one alone saves, and all load, which they do before the first thing that they do together.

    Args:
        folder: Where it lies; nothing is remembered where None.
        about: What the preparation depends on, as JSON; another one's state is not gone on with.
        saves: Whether this process saves.
    """

    def __init__(self, folder: Path | None = None, about: Mapping[str, Any] | None = None, *, saves: bool = True) -> None:
        self.folder, self.saves = folder, saves
        self.about = json.loads(dump_json(dict(about or {})))  # as it will be read
        self._saved = time.monotonic()

    @property
    def is_there(self) -> bool:
        """Whether anything was remembered."""
        return self.folder is not None and (self.folder / FILE).is_file()

    def due(self) -> bool:
        """Whether it is time for this process to save."""
        return self.folder is not None and self.saves and time.monotonic() - self._saved >= EVERY

    def save(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        """Replace what was remembered."""
        import torch
        from safetensors.torch import save

        if self.folder is None or not self.saves:
            return
        told = torch.frombuffer(bytearray(dump_json({"about": self.about, "values": dict(values)})), dtype=torch.uint8)
        plain = {f"{TENSOR}{name}": tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_bytes(self.folder / FILE, save({VALUES: told, **plain}))
        self._saved = time.monotonic()

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Return what was remembered, if anything was.

        Raises:
            OneshuiError: It is damaged, or of another preparation.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if self.folder is None or not self.is_there:
            return None
        try:
            tensors = load_file(self.folder / FILE)
            found = json.loads(tensors.pop(VALUES).numpy().tobytes())
            about, values = found["about"], dict(found["values"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise OneshuiError(f"{self.folder} is damaged ({error}); start anew with --overwrite.") from None
        if about != self.about:
            raise OneshuiError(
                f"The preparation in {self.folder} was interrupted with other options, or for another model; start anew with --overwrite."
            )
        return {name.removeprefix(TENSOR): tensor for name, tensor in tensors.items()}, values

    def forget(self) -> None:
        """Remove what was remembered, and what a killed process left beside it."""
        if self.folder is not None and self.saves and self.folder.is_dir():
            shutil.rmtree(self.folder)

"""The resume state of a long preparation: one file next to the artefact, read to continue after an interruption.

The file contains what the artefact will contain, and is not encrypted. It is stored where the training data is, readable by its owner only,
and deleted once the artefact is written, or by a request that destroys the data of a person.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OneshuiError, is_machine_error
from ..files import write_bytes
from ..option_values import shown
from ..runs import dump_json, has_valid_checksum, with_checksum

if TYPE_CHECKING:
    import torch

SAVE_INTERVAL = 60.0  # seconds between two saves
FILE = "unfinished.safetensors"
UNFINISHED = ".unfinished"  # end of the name of the folder, which is hidden and next to the artefact
VALUES, TENSOR = "values", "tensor/"  # in the file: the tensor that holds the JSON as bytes, and the prefix of all other tensors' names


class ResumeState:
    """What a preparation needs to continue where it was interrupted.

    Each of several processes has one. Only the main process saves. All processes load, before their first collective operation.

    Args:
        folder: Where the file is stored; None disables saving and loading.
        about: The inputs of the preparation, as JSON. A state with other inputs is not loaded.
        saves: Whether this process saves.
    """

    def __init__(self, folder: Path | None = None, about: Mapping[str, Any] | None = None, *, saves: bool = True) -> None:
        self.folder, self.saves = folder, saves
        self.about = json.loads(dump_json(dict(about or {})))  # a round trip, to compare with what a file contains
        self._last_save = time.monotonic()

    @property
    def exists(self) -> bool:
        """Whether a state was saved."""
        return self.folder is not None and (self.folder / FILE).is_file()

    def should_save(self) -> bool:
        """Return whether this process saves and its last save is at least `SAVE_INTERVAL` seconds ago."""
        return self.folder is not None and self.saves and time.monotonic() - self._last_save >= SAVE_INTERVAL

    def save(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        """Replace the saved state. Does nothing in a process that does not save.

        Args:
            tensors: Tensors by name.
            values: Everything else, as JSON.
        """
        import torch
        from safetensors.torch import save

        if self.folder is None or not self.saves:
            return
        named = {f"{TENSOR}{name}": tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        content = with_checksum({"about": self.about, "values": dict(values), "tensors": _hash(named)})
        header = torch.frombuffer(bytearray(dump_json(content)), dtype=torch.uint8)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_bytes(self.folder / FILE, save({VALUES: header, **named}), private=True)
        self._last_save = time.monotonic()

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Return the saved tensors and values; None if no state was saved.

        Raises:
            OneshuiError: The file is damaged, or belongs to a preparation with other inputs.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if self.folder is None or not self.exists:
            return None
        try:
            tensors = load_file(self.folder / FILE)
            header = json.loads(tensors.pop(VALUES).numpy().tobytes())
            about, values = header["about"], dict(header["values"])
            if not has_valid_checksum(header) or header["tensors"] != _hash(tensors):
                raise ValueError("it does not match its hash")
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
            if is_machine_error(error):
                raise
            raise OneshuiError(f"{self.folder} is damaged ({shown(error)}); start again with --overwrite.") from None
        if about != self.about:
            raise OneshuiError(
                f"The preparation in {self.folder} was interrupted with other options, or for another model; start again with --overwrite."
            )
        return {name.removeprefix(TENSOR): tensor for name, tensor in tensors.items()}, values

    def delete(self) -> None:
        """Delete the folder: the saved state, and temporary files of a killed process. Does nothing in a process that does not save."""
        if self.folder is not None and self.saves and self.folder.is_dir():
            shutil.rmtree(self.folder)


def _hash(tensors: dict[str, torch.Tensor]) -> str:
    from safetensors.torch import save

    return hashlib.sha256(save(tensors)).hexdigest()

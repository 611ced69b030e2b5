"""The resume state of a long preparation: files next to the artefact, read to continue after an interruption.

The files contain what the artefact will contain, and are not encrypted. They are stored where the training data is, readable by their owner
only, and deleted once the artefact is written, or by a request that destroys the data of a person.

Each part of a preparation has two files: the latest state, and the one before it, for the case that the latest is damaged.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OneshuiError, is_machine_error
from ..files import write_bytes
from ..option_values import shown
from ..reporting import SILENT, Reporter
from ..runs import dump_json, has_valid_checksum, with_checksum
from ..stop_signals import StopRequest, deferred_stop

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

SAVE_INTERVAL = 60.0  # seconds between two saves
FILE = "unfinished.safetensors"  # the latest state of the method's own part
STATE_FILES = "unfinished*.safetensors"  # pattern of all files
UNFINISHED = ".unfinished"  # end of the name of the folder, which is hidden and next to the artefact
VALUES, TENSOR = "values", "tensor/"  # in a file: the tensor that holds the JSON as bytes, and the prefix of all other tensors' names

Found = tuple[dict[str, "torch.Tensor"], dict[str, Any]]


class ResumeState:
    """What a preparation needs to continue where it was interrupted.

    Each of several processes has one. Only the main process saves. All processes load, before their first collective operation.

    Args:
        folder: Where the files are stored; None disables saving and loading.
        about: The inputs of the preparation, as JSON. A state with other inputs is not loaded.
        saves: Whether this process saves.
        every: Also save whenever this many units of work are done; None saves by time alone.
        accelerator: The processes, which end together if a signal asks for it.
        reporter: Warns about a damaged state.
    """

    def __init__(
        self,
        folder: Path | None = None,
        about: Mapping[str, Any] | None = None,
        *,
        saves: bool = True,
        every: int | None = None,
        accelerator: Accelerator | None = None,
        reporter: Reporter = SILENT,
    ) -> None:
        self.folder, self.saves, self.every = folder, saves, every
        self.about = json.loads(dump_json(dict(about or {})))  # a round trip, to compare with what a file contains
        self._accelerator, self._reporter, self._name = accelerator, reporter, ""
        self._last_save, self._units, self._warned = time.monotonic(), 0, False
        self._stop: StopRequest | None = None
        self._ends = False

    def part(self, name: str) -> ResumeState:
        """Return the state of another part of the same preparation, which has files of its own."""
        other = ResumeState(
            self.folder, self.about, saves=self.saves, every=self.every, accelerator=self._accelerator, reporter=self._reporter
        )
        other._name = f"{self._name}-{name}"
        return other

    def of_process(self, name: str, accelerator: Accelerator) -> ResumeState:
        """Return the state of a part that each process works on without the others: each saves, and loads what it saved itself.

        It is not loaded with another number of processes.
        """
        other = self.part(f"{name}-{accelerator.process_index}-of-{accelerator.num_processes}")
        other.saves, other._accelerator = True, None
        return other

    @property
    def _files(self) -> tuple[Path, Path]:
        """The latest state, and the one before it."""
        assert self.folder is not None
        latest = self.folder / FILE.replace(".", f"{self._name}.")
        return latest, latest.with_suffix(".before.safetensors")

    @property
    def exists(self) -> bool:
        """Whether a state was saved, of any part."""
        return self.folder is not None and any(self.folder.glob(STATE_FILES))

    @contextlib.contextmanager
    def stoppable(self) -> Iterator[None]:
        """Answer signals that ask the process to end in `should_save` and `save`, until the block ends. All processes enter it."""
        if self.folder is None:
            yield
            return
        with deferred_stop(self._accelerator) as self._stop:
            try:
                yield
            finally:
                self._stop = None

    def should_save(self) -> bool:
        """Return whether to call `save` now. All processes call it after each unit of work.

        That is so if this process saves and its last save is at least `SAVE_INTERVAL` seconds or `every` units ago; and on all processes
        if a signal asks them to end.
        """
        self._units += 1
        self._ends = self._stop is not None and self._stop.requested()
        is_due = time.monotonic() - self._last_save >= SAVE_INTERVAL or (self.every is not None and self._units >= self.every)
        return self.folder is not None and (self._ends or (self.saves and is_due))

    def save(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        """Replace the saved state; a process that does not save writes nothing. Then end, if a signal asked for it.

        Args:
            tensors: Tensors by name.
            values: Everything else, as JSON.
        """
        if self.folder is not None and self.saves:
            self._write(tensors, values)
        if self._ends and self._stop is not None:
            self._stop.end()

    def _write(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        import torch
        from safetensors.torch import save

        named = {f"{TENSOR}{name}": tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        content = with_checksum({"about": self.about, "values": dict(values), "tensors": _hash(named)})
        header = torch.frombuffer(bytearray(dump_json(content)), dtype=torch.uint8)
        latest, before = self._files
        latest.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if latest.exists():
            latest.replace(before)
        write_bytes(latest, save({VALUES: header, **named}), private=True)
        self._last_save, self._units = time.monotonic(), 0

    def load(self) -> Found | None:
        """Return the saved tensors and values; None if no state was saved.

        If the latest state is damaged, the one before it is returned, with a warning.

        Raises:
            OneshuiError: All files are damaged, or one belongs to a preparation with other inputs.
        """
        from safetensors import SafetensorError

        if self.folder is None:
            return None
        defect = ""
        for file in filter(Path.exists, self._files):
            try:
                found = self._read(file)
            except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
                if is_machine_error(error):
                    raise
                defect = defect or f"{self.folder} is damaged ({shown(error)})"
                continue
            if defect and self.saves and not self._warned:
                self._reporter.warn(f"{defect}; continuing from the state that was saved before.")
                self._warned = True
            return found
        if defect:
            raise OneshuiError(f"{defect}; start again with --overwrite.")
        return None

    def _read(self, file: Path) -> Found:
        """Return the tensors and values of a file.

        Raises:
            OneshuiError: It belongs to a preparation with other inputs.
            ValueError: It is damaged. Other errors mean the same.
        """
        from safetensors.torch import load_file

        tensors = load_file(file)
        header = json.loads(tensors.pop(VALUES).numpy().tobytes())
        about, values = header["about"], dict(header["values"])
        if not has_valid_checksum(header) or header["tensors"] != _hash(tensors):
            raise ValueError("it does not match its hash")
        if about != self.about:
            raise OneshuiError(
                f"The preparation in {self.folder} was interrupted with other options, or for another model; start again with --overwrite."
            )
        return {name.removeprefix(TENSOR): tensor for name, tensor in tensors.items()}, values

    def delete(self) -> None:
        """Delete the folder: all parts, and temporary files of a killed process. Does nothing in a process that does not save."""
        if self.folder is not None and self.saves and self.folder.is_dir():
            shutil.rmtree(self.folder)


def _hash(tensors: dict[str, torch.Tensor]) -> str:
    from safetensors.torch import save

    return hashlib.sha256(save(tensors)).hexdigest()

"""What the main process of a launch does for all its processes: each gets the result, or the failure.

The modules that are started without torch import this one, so Accelerate is imported inside the functions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .files import Discard, lock_output, remove

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

T = TypeVar("T")


def on_main(accelerator: Accelerator | None, work: Callable[[], T]) -> T:
    """Run `work` on the main process while the others wait. Return its result, or raise its exception, on all processes."""
    if accelerator is None or accelerator.num_processes == 1:
        return work()
    result: Any = None
    failure: Exception | None = None
    if accelerator.is_main_process:
        try:
            result = work()
        except Exception as error:  # any exception: otherwise the other processes would wait forever
            failure = error
    result, failure = broadcast_from_main(accelerator, (result, failure))
    if failure is not None:
        raise failure
    return result


def broadcast_from_main(accelerator: Accelerator, value: T) -> T:
    """Return the main process's value on all processes."""
    values = [value]
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(values)
    return values[0]


@contextlib.contextmanager
def locked_output(path: Path, accelerator: Accelerator, discard: Discard = remove, flag: str | None = None) -> Iterator[None]:
    """Let no other command write a file or folder until the block ends; then clear what killed ones left. See `files.lock_output`.

    The main process holds the lock for all processes of the launch.

    Args:
        path: The file or folder.
        accelerator: For several processes; all of them enter and leave together.
        discard: Removes a folder that a killed process left.
        flag: The option that names the path, for the message.

    Raises:
        OneshuiError: Another command is writing it. It is raised on all processes.
    """
    with contextlib.ExitStack() as held:
        on_main(accelerator, lambda: held.enter_context(lock_output(path, discard, flag)))
        yield
        accelerator.wait_for_everyone()


class OneProcess:
    """Stands for an accelerator of one process: work that a process of a launch does without the others.

    Attributes:
        device: Of this process.
    """

    num_processes, process_index, is_main_process = 1, 0, True

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def reduce(self, tensor: torch.Tensor, reduction: str = "sum") -> torch.Tensor:
        """Return the tensor itself: there is nothing to add."""
        del reduction
        return tensor

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor itself."""
        return tensor

    def wait_for_everyone(self) -> None:
        """Return at once."""


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """Compute with one thread inside the block: with several, torch adds numbers up in another order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

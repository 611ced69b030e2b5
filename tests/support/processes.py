"""Other processes, real ones: one that is killed at a chosen call, and one that is writing a file or folder."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HOLDER = """
import sys
from pathlib import Path
from oneshui_hf.files import lock_output
with lock_output(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def another_writer(path: Path) -> Iterator[None]:
    """Let another process write a file or folder until the block ends."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "locked\n"
    try:
        yield
    finally:
        process.communicate("\n")


def run_killed(function: Callable[..., object], call: str, number: int, **arguments: Any) -> None:
    """Call a function in another process, which is killed when it enters a call for the n-th time.

    Args:
        function: A function of a module.
        call: The call, such as "os:rename" or "pathlib:Path.rename".
        number: Which of its calls, from 1 on.
        arguments: Arguments of the function.
    """
    context = multiprocessing.get_context("forkserver")  # its children start with torch imported, and without threads
    context.set_forkserver_preload(["torch", "transformers", "datasets", "oneshui_hf.stages.train"])
    process = context.Process(target=_die_at, args=(function, call, number, arguments))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL, f"{call} was not called {number} times"


def _die_at(function: Callable[..., object], call: str, number: int, arguments: dict[str, Any]) -> None:
    module, _, name = call.partition(":")
    *parents, attribute = name.split(".")
    owner: Any = importlib.import_module(module)
    for parent in parents:
        owner = getattr(owner, parent)
    real, calls = getattr(owner, attribute), 0

    def die(*positional: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*positional, **named)

    setattr(owner, attribute, die)
    function(**arguments)

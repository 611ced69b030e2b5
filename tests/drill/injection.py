"""Faults at chosen file operations of a process: `shim.c` where a C compiler is installed, hooks of Python elsewhere.

The hooks see Python's own operations only, and no writes, so they find less. Both write the same log: a line "kind<TAB>path" per operation.
"""

from __future__ import annotations

import ctypes
import enum
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

SOURCE = Path(__file__).with_name("shim.c")
KINDS = ("create", "mkdir", "link", "write", "sync", "rename", "unlink")
GROWING = ("create", "mkdir", "link", "write")  # refused by a full disk
NETWORK = "network"


class Action(enum.IntEnum):
    """What happens at the chosen operation; the values are those of `enum action` in the shim."""

    COUNT = 1
    KILL = 2
    FAIL_ONCE = 3
    FAIL_FROM_HERE = 4  # a full disk: every later operation that needs space fails, too


@dataclass(frozen=True)
class Fault:
    """A fault of one process.

    Attributes:
        action: What happens.
        target: Number of the operation, from 1.
        error: The error number that a failing operation returns.
    """

    action: Action = Action.COUNT
    target: int = 0
    error: int = 0


@dataclass(frozen=True)
class Operation:
    """A file operation of the log."""

    kind: str
    path: str


def compile_shim(folder: Path) -> Path | None:
    """Compile the shim into a folder; None without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "shim.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True, capture_output=True)
    return library


def read_log(file: Path) -> list[Operation]:
    """Return the operations of a log; those of the network have the kind `NETWORK`."""
    lines = file.read_text(errors="replace").split("\n")[:-1]
    return [Operation(*line.split("\t", 1)) for line in lines if "\t" in line]


def arm(fault: Fault, roots: list[str], log: Path) -> None:
    """Count the operations of this process below the roots, and inject the fault. Called in the process under test."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    if os.environ.get("LD_PRELOAD"):
        shim = ctypes.CDLL(None).drill_arm
        shim.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_int]
        shim("\n".join(roots).encode(), fault.target, fault.action, fault.error, descriptor)
    else:
        _Hooks(fault, [os.path.realpath(root) for root in roots], descriptor).install()


class _Hooks:
    """The operations that Python announces to audit hooks, and `os.fsync`."""

    AUDITED: ClassVar = {"os.rename": ("rename", 1), "os.remove": ("unlink", 0), "os.rmdir": ("unlink", 0), "os.mkdir": ("mkdir", 0)}

    def __init__(self, fault: Fault, roots: list[str], log: int) -> None:
        self.fault, self.roots, self.log, self.count = fault, roots, log, 0

    def install(self) -> None:
        sync = os.fsync

        def fsync(descriptor: Any) -> None:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            self.operation("sync", str(Path(f"/proc/self/fd/{number}").readlink()))
            sync(descriptor)

        os.fsync = fsync
        sys.addaudithook(self.audit)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            name, _, flags = arguments
            if isinstance(name, str | bytes) and isinstance(flags, int) and flags & (os.O_CREAT | os.O_TRUNC):
                self.operation("create", os.fsdecode(name))
        elif event in self.AUDITED:
            kind, place = self.AUDITED[event]
            self.operation(kind, os.fsdecode(arguments[place]))
        elif event == "socket.getaddrinfo" and arguments[0] and not str(arguments[0]).startswith(("127.", "localhost")):
            os.write(self.log, f"{NETWORK}\t{arguments[0]}\n".encode())
            raise OSError("no network during the drill")

    def operation(self, kind: str, path: str) -> None:
        path = str(Path(path).parent.resolve() / Path(path).name)  # the file itself may be a link
        if not any(path == root or path.startswith(f"{root}/") for root in self.roots):
            return
        self.count += 1
        os.write(self.log, f"{kind}\t{path}\n".encode())
        match self.fault.action:
            case Action.KILL if self.count == self.fault.target:
                os.kill(os.getpid(), signal.SIGKILL)
            case Action.FAIL_ONCE if self.count == self.fault.target:
                raise OSError(self.fault.error, os.strerror(self.fault.error), path)
            case Action.FAIL_FROM_HERE if self.count >= self.fault.target and kind in GROWING:
                raise OSError(self.fault.error, os.strerror(self.fault.error), path)

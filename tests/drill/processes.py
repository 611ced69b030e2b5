"""Commands in forked children of a server: what they printed, how they ended, and which file operations they did."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.hub_server import Hub

from .injection import NETWORK, Fault, Operation, read_log

LIMIT = 60.0  # seconds: a command that takes longer hangs
TESTS = Path(__file__).parent.parent


NO_FAULT = Fault()


@dataclass(frozen=True)
class Job:
    """A command to run.

    Attributes:
        words: The words after `oneshui`.
        fault: What happens to it.
        delay: Seconds after the start of its batch.
        env: More environment variables.
        script: Python code to run instead of a command.
        stdin: What it reads.
        datasets: Folder below the case of the cache of data sets; empty for the common one.
        limit: Seconds after which it hangs.
    """

    words: Sequence[str] = ()
    fault: Fault = NO_FAULT
    delay: float = 0.0
    env: dict[str, str] = field(default_factory=dict)
    script: str = ""
    stdin: str = ""
    datasets: str = ""
    limit: float = LIMIT


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    job: Job
    code: int
    out: str
    err: str
    operations: list[Operation]
    network: list[str]
    seconds: float
    hangs: bool

    @property
    def killed(self) -> bool:
        """Whether the fault killed it."""
        return self.code == -signal.SIGKILL and not self.hangs

    @property
    def error_lines(self) -> list[str]:
        """The error messages."""
        return [line for line in self.err.splitlines() if line.startswith("Error: ")]

    def problem(self) -> str:
        """Return what no command may do, whatever it is given; empty if it did nothing of the kind."""
        if self.hangs:
            return f"hangs: killed after {self.job.limit:.0f} s"
        if self.network:
            return f"reached for the network: {self.network[0]}"
        if "Traceback (most recent call last)" in self.err:
            return f"traceback: {self.err.strip().splitlines()[-1][:300]}"
        if self.killed:
            return ""
        if self.code == 0:
            return f"exit code 0 with an error: {self.error_lines[0]}" if self.error_lines else ""
        if self.code not in (1, 2):
            return f"exit code {self.code}: {self.err.strip()[-200:]}"
        if len(self.error_lines) != 1:
            return f"exit code {self.code} with {len(self.error_lines)} error messages: {self.err.strip()[-300:]}"
        if len(self.error_lines[0]) > 2000:
            return f"an error message of {len(self.error_lines[0])} characters"
        return ""


class Worker:
    """A server of forked commands with a folder and a Hub of its own.

    Args:
        folder: Everything that it writes.
        home: `HF_HOME` of the commands.
        shim: The compiled shim; None uses Python's hooks.
        imports: Whether the server imports the product, so that commands start faster.

    Attributes:
        folder: As above.
        root: Where cases run. It is the watched folder, and has the same path in all cases, so results have the same bytes.
        hub: A Hub on the loopback interface.
    """

    def __init__(self, folder: Path, home: Path, shim: Path | None, *, imports: bool = True) -> None:
        self.folder = folder
        self.root = folder / "case"
        self.output = folder / "output"  # logs and printed text, not watched
        for path in (folder, self.output):
            path.mkdir(parents=True, exist_ok=True)
        self.hub = Hub()
        self.hub.server.handle_error = lambda *_: None  # type: ignore[method-assign] # killed clients break their connections
        self.hub.__enter__()
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_", "ONESHUI_", "COV_"))}
        environment = kept | {
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(home),
            "HF_DATASETS_CACHE": str(home / "datasets"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": "hf_owner",
            "ONESHUI_VAULT": str(self.root / "vault"),
            "ONESHUI_CACHE": str(self.root / "cache"),
            "TMPDIR": str(self.root / "tmp"),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "torch"),
            "OMP_NUM_THREADS": "1",
            "NO_COLOR": "1",
            "COLUMNS": "200",
            "PYTHONPATH": str(TESTS),
            **({"LD_PRELOAD": str(shim)} if shim else {}),
        }
        self.root.mkdir(exist_ok=True)
        (self.root / "tmp").mkdir(exist_ok=True)
        command = [sys.executable, "-m", "drill.server", "product" if imports else "nothing"]
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def run(self, *jobs: Job, modules: Sequence[str] = (), list_modules: Path | None = None) -> list[Result]:
        """Run commands at once in the case's folder.

        Args:
            jobs: The commands.
            modules: Modules that the server imports first.
            list_modules: Where the command lists the modules that it has imported.
        """
        described = []
        for number, job in enumerate(jobs):
            self._file(number, "in").write_text(job.stdin)
            described.append(
                {
                    "words": list(job.words),
                    "script": job.script,
                    "cwd": str(self.root),
                    "env": job.env,
                    "datasets": str(self.root / job.datasets) if job.datasets else None,
                    "action": int(job.fault.action),
                    "target": job.fault.target,
                    "error": job.fault.error,
                    "roots": [str(self.root)],
                    "delay": job.delay,
                    "limit": job.limit,
                    "stdin": str(self._file(number, "in")),
                    "out": str(self._file(number, "out")),
                    "err": str(self._file(number, "err")),
                    "log": str(self._file(number, "log")),
                    "modules": str(list_modules) if list_modules else None,
                }
            )
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"jobs": described, "modules": list(modules)}) + "\n")
        self.process.stdin.flush()
        answers = self._read()["results"]
        return [self._result(number, job, answer) for number, (job, answer) in enumerate(zip(jobs, answers, strict=True))]

    def _result(self, number: int, job: Job, answer: dict[str, Any]) -> Result:
        log = read_log(self._file(number, "log")) if self._file(number, "log").exists() else []
        return Result(
            job=job,
            code=answer["code"],
            out=self._file(number, "out").read_text(errors="replace"),
            err=self._file(number, "err").read_text(errors="replace"),
            operations=[operation for operation in log if operation.kind != NETWORK],
            network=[operation.path for operation in log if operation.kind == NETWORK],
            seconds=answer["seconds"],
            hangs=answer["hangs"],
        )

    def _file(self, number: int, name: str) -> Path:
        return self.output / f"{number}.{name}"

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"The server of {self.folder} ended with exit code {self.process.wait()}.")
        return json.loads(line)

    def close(self) -> None:
        """End the server and the Hub."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.hub.__exit__()

"""A process that runs commands of `oneshui` one after the other, against a Hub on the loopback interface; torch is imported once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .hub_server import Hub

RUNNER = """
import contextlib, io, json, os, sys
from oneshui_hf.cli.app import app
from oneshui_hf.cli.errors import guarded

for line in sys.stdin:
    step = json.loads(line)
    os.chdir(step["folder"])
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = guarded(lambda: app(step["words"], standalone_mode=False))
    print(json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue()}), flush=True)
"""


@dataclass(frozen=True)
class Answer:
    """The exit code of a command, and what it printed."""

    code: int
    out: str
    err: str


def hub_environment(hub: Hub, home: Path, token: str) -> dict[str, str]:
    """Return the variables of a process that uses a Hub; its caches and vault are below `home`."""
    own = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home / "hf"), "HF_TOKEN": token}
    own |= {"ONESHUI_VAULT": str(home / "vault"), "ONESHUI_CACHE": str(home / "cache"), "COLUMNS": "200"}
    return {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))} | own


class CommandProcess:
    """The process. Its home, caches and vault are in a folder of their own."""

    def __init__(self, hub: Hub, home: Path, token: str) -> None:
        environment = hub_environment(hub, home, token)
        self._process = subprocess.Popen(
            [sys.executable, "-c", RUNNER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, words: list[str], folder: Path) -> Answer:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"words": words, "folder": str(folder)}) + "\n")
        self._process.stdin.flush()
        return Answer(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

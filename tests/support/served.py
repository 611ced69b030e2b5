"""The command `oneshui app` in a process of its own, and a client that asks its server."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest


def require_gradio() -> None:
    pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'oneshui-hf[app]'")


@contextlib.contextmanager
def served(*words: object, home: Path) -> Iterator[tuple[str, Path]]:
    """Run the command in a process; yield the address and the folder of temporary files."""
    temporary = home / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = os.environ | {"TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "oneshui_hf", *map(str, words)]
    with subprocess.Popen(command, cwd=home, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            lines = []
            for line in process.stderr:
                lines.append(line)
                if "The page is at " in line:
                    break
            else:
                pytest.fail("".join(lines))
            yield line.split("The page is at ")[1].split()[0], temporary
        finally:
            process.terminate()
            assert process.wait(60) == 0


def ask(address: str, path: str = "", data: bytes | None = None, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(
        urllib.parse.urljoin(address, path), data, {name.replace("_", "-"): text for name, text in headers.items()}
    )
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")

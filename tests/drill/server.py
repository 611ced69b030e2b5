"""A process that has imported everything and forks one child per command, so that a command starts in milliseconds.

It reads one line of JSON per batch of commands on stdin, runs the batch at once, and answers with one line. It is started with the shim
preloaded; the shim does nothing until a child arms it.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from drill.injection import Action, Fault, arm

POLL = 0.004  # seconds


def serve(imports: bool) -> None:
    """Answer until stdin ends.

    Args:
        imports: Import the product first; otherwise a command imports what it needs.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not become an answer
    if imports:
        _import_product()
    _answer(answers, {"ready": True})
    for line in sys.stdin:
        batch = json.loads(line)
        for name in batch.get("modules", ()):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        gc.collect()
        gc.freeze()  # children do not touch, and so do not copy, these pages
        _answer(answers, {"results": _run(batch["jobs"])})


def _import_product() -> None:
    import torch

    import oneshui_hf
    import oneshui_plugins
    from oneshui_hf.methods import resume

    for package in (oneshui_hf, oneshui_plugins):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.startswith(("oneshui_hf.testing", "oneshui_hf.app.")) and "__main__" not in module.name:
                importlib.import_module(module.name)  # the app needs an extra, and no command of the drill opens it
    torch.set_num_threads(1)
    resume.SAVE_INTERVAL = 0.0  # so that kills meet the states of interrupted preparations


def _answer(stream: Any, value: Any) -> None:
    stream.write(json.dumps(value) + "\n")
    stream.flush()


def _run(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Start all jobs, each after its delay, wait for their ends, and kill those that take too long."""
    start = time.monotonic()
    waiting = sorted(range(len(jobs)), key=lambda number: jobs[number]["delay"])
    running: dict[int, tuple[int, float]] = {}  # number of the job by process
    results: list[dict[str, Any]] = [{} for _ in jobs]
    while waiting or running:
        now = time.monotonic()
        while waiting and now - start >= jobs[waiting[0]]["delay"]:
            number = waiting.pop(0)
            sys.stdout.flush()
            sys.stderr.flush()
            if not (process := os.fork()):
                _child(jobs[number])
            running[process] = number, time.monotonic()
        for process, (number, since) in list(running.items()):
            done, status = os.waitpid(process, os.WNOHANG)
            seconds = time.monotonic() - since
            if done:
                del running[process]
                results[number] = {
                    "code": os.waitstatus_to_exitcode(status),
                    "seconds": seconds,
                    "hangs": results[number].get("hangs", False),
                }
            elif seconds > jobs[number]["limit"] * _slowdown() and not results[number]:
                results[number]["hangs"] = True
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process, signal.SIGKILL)
        time.sleep(POLL)
    return results


def _slowdown() -> float:
    """Return how much longer a command takes because other programs compute, too."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def _child(job: dict[str, Any]) -> NoReturn:
    """Run a command as a process of its own would, and end."""
    code = 1
    try:
        os.setpgid(0, 0)
        os.chdir(job["cwd"])
        os.environ.update(job["env"])
        tempfile.tempdir = None  # read TMPDIR again
        for descriptor, name in ((0, job["stdin"]), (1, job["out"]), (2, job["err"])):
            handle = os.open(name, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(handle, descriptor)
            os.close(handle)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, mode, closefd=False) for n, mode in ((0, "r"), (1, "w"), (2, "w")))
        sys.argv = ["oneshui", *job["words"]]
        if job["datasets"]:
            from datasets import config

            config.HF_DATASETS_CACHE = job["datasets"]  # read from the environment when it is imported
        fault = Fault(Action(job["action"]), job["target"], job["error"])
        arm(fault, job["roots"], Path(job["log"]))
        code = _command(job)
        sys.stdout.flush()
        sys.stderr.flush()
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _command(job: dict[str, Any]) -> int:
    if job["script"]:
        scope: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(job["script"], "script", "exec"), scope)
        code = 0
    else:
        from oneshui_hf.cli.app import app
        from oneshui_hf.cli.errors import guarded

        code = guarded(lambda: app(job["words"], standalone_mode=False))
    if job["modules"]:
        Path(job["modules"]).write_text(json.dumps(sorted(name for name in sys.modules if "__main__" not in name)))
    return code


if __name__ == "__main__":
    serve(imports=sys.argv[1] == "product")

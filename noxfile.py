"""The commands of every machine: `nox -s tests`, `slow`, `lint`, `demo`, `benchmark`, `bench`.

Each session builds the wheel and installs that, as users do. Set ONESHUI_TEST_ASSETS to a folder of real faces and weights for the tests
that need them; they skip, with a reason, without it.
"""

from __future__ import annotations

import os
from pathlib import Path

import nox

nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "tests"]

TORCH = os.environ.get("ONESHUI_TORCH", "torch==2.13.0")  # first, and exact: a range would pull gigabytes of CUDA


def install(session: nox.Session, extra: str = "") -> None:
    """Install torch, then the wheel built from this tree."""
    if session.venv_backend == "none":  # `nox --no-venv`: the caller has installed
        return
    session.install(TORCH, "--constraint", "constraints.txt")
    wheels = Path(session.create_tmp()).resolve() / "wheel"
    session.run("python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), ".")
    (wheel,) = wheels.glob("oneshui_hf-*.whl")
    session.install("--constraint", "constraints.txt", f"{wheel}{extra}")
    session.install("--force-reinstall", "--no-deps", str(wheel))
    wheel.unlink()


@nox.session
def lint(session: nox.Session) -> None:
    """Format, lint and types."""
    install(session, "[dev]")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """The default suite: CPU, no network, minutes."""
    install(session, "[dev]")
    # Two workers of one thread each: small tensors gain nothing from a second thread.
    session.run("pytest", "-m", "not slow", "-n", "2", "--dist", "loadfile", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def slow(session: nox.Session) -> None:
    """The end-to-end suite: real processes, the demo, real faces where they are."""
    install(session, "[dev]")
    session.run("pytest", "-m", "slow", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """The main job on generated faces."""
    install(session)
    session.run("oneshui", "demo", "--overwrite", *session.posargs)


@nox.session
def benchmark(session: nox.Session) -> None:
    """All methods on generated faces: two sizes of request, two seeds, the tables and the report. Stopped, it goes on where it was."""
    install(session, "[plots]")
    session.run("oneshui", "benchmark", "demo", *session.posargs)
    session.run("oneshui", "report", "benchmarks/demo", "--overwrite")


@nox.session
def bench(session: nox.Session) -> None:
    """Speed and memory, as ratios within one run."""
    install(session)
    session.run("python", "tests/benchmarks/bench_loading.py")
    session.run("python", "tests/benchmarks/bench_full_size.py")
    session.run("python", "tests/benchmarks/bench_unlearn.py")
    session.run("python", "tests/benchmarks/bench_evaluate.py")
    session.run("python", "tests/benchmarks/bench_forget_keys.py")
    session.run("python", "tests/benchmarks/bench_meta_gradient.py", *session.posargs)

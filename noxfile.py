"""The commands of every machine: `nox -s tests`, `slow`, `lint`, `docs`, `demo`, `benchmark`, `bench`, `gpu`, `drill`, and `lock` for CI.

Each session builds the wheel and installs that, as users do; on the platform of CI with exactly the packages of the lock, elsewhere with
what pip finds within the ranges of pyproject.toml. Set ONESHUI_TEST_ASSETS to a folder of real faces and weights for the tests
that need them; they skip, with a reason, without it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import nox
from packaging.utils import canonicalize_name

nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "tests"]

TORCH = os.environ.get("ONESHUI_TORCH", "torch==2.13.0")  # exact: a range would pull gigabytes of CUDA
LOCK = "requirements/ci.txt"
LOCK_PLATFORM = "cpython 3.11 Linux x86_64"  # of CI; the lock has the hashes of its wheels only
CUDA = ("cuda-", "nvidia-", "triton")  # what some builds of torch bring
LOCK_HEADER = f"""\
# Every package that CI installs, for {LOCK_PLATFORM}. Made by `nox -s lock`; do not edit.
#
#   pip install --require-hashes --no-deps -r {LOCK}
#
# Users are free within the ranges of pyproject.toml. torch is not listed: its builds for CPU and CUDA share a version, and a machine may
# have either, so no hash fits all. Install it afterwards, by the exact version in .ci/run: what it needs besides CUDA is listed here.
"""


def install(session: nox.Session, extra: str = "") -> None:
    """Install the lock, torch, and the wheel built from this tree."""
    if session.venv_backend == "none":  # `nox --no-venv`: the caller has installed
        return
    wheels = Path(session.create_tmp()).resolve() / "wheel"
    if is_locked := _platform(session) == LOCK_PLATFORM:
        session.install("--require-hashes", "--no-deps", "-r", LOCK)
    else:
        session.warn(f"{LOCK} is for {LOCK_PLATFORM}; here pip chooses the newest packages within the ranges of pyproject.toml.")
    session.install(TORCH)
    isolation = ["--no-build-isolation"] if is_locked else []  # the lock has the build backend
    session.run("python", "-m", "pip", "wheel", "--quiet", "--no-deps", *isolation, "--wheel-dir", str(wheels), ".")
    (wheel,) = wheels.glob("oneshui_hf-*.whl")
    if not is_locked:
        session.install(f"{wheel}{extra}")
    session.install("--force-reinstall", "--no-deps", str(wheel))
    session.run("python", "-m", "pip", "check")
    wheel.unlink()


def _platform(session: nox.Session) -> str:
    """Return implementation, version, system and machine of the session's Python."""
    code = "import platform as p, sys; print(sys.implementation.name, '.'.join(p.python_version_tuple()[:2]), p.system(), p.machine())"
    return str(session.run("python", "-c", code, silent=True)).strip()


def _extra(name: str) -> list[str]:
    """Return the packages of an extra of pyproject.toml."""
    return nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"][name]


@nox.session
def lock(session: nox.Session) -> None:
    """Write the newest packages within the ranges of pyproject.toml, with hashes; `nox -s lock -- NAME==VERSION` holds some back."""
    if (here := _platform(session)) != LOCK_PLATFORM:
        session.error(f"The lock is for {LOCK_PLATFORM}, and this is {here}: run it there.")
    report = Path(session.create_tmp()).resolve() / "report.json"
    words = ["--quiet", "--dry-run", "--ignore-installed", "--only-binary", ":all:", "--report", str(report)]
    session.run("python", "-m", "pip", "install", *words, TORCH, ".[dev]", *session.posargs)
    lines = {}
    for package in json.loads(report.read_text())["install"]:
        name, source = canonicalize_name(package["metadata"]["name"]), package["download_info"]
        if name not in ("oneshui-hf", "torch") and not name.startswith(CUDA):
            digest = source["archive_info"]["hashes"]["sha256"]
            lines[name] = f"{name}=={package['metadata']['version']} --hash=sha256:{digest}\n"
    Path(LOCK).parent.mkdir(exist_ok=True)
    Path(LOCK).write_text(LOCK_HEADER + "".join(lines[name] for name in sorted(lines)))


@nox.session
def lint(session: nox.Session) -> None:
    """Format, lint, types, spelling, and the field's terms."""
    install(session, "[dev]")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("mypy")
    session.run("codespell")
    session.run("pytest", "--quiet", "tests/test_vocabulary.py", "tests/test_docs.py")


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
    # Some tests start two processes of their own, so more workers than two would need more memory, not less time.
    session.run("pytest", "-m", "slow", "-n", "2", "--dist", "loadfile", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation site, in build/site: the pages of docs/, and the reference that docs/prebuild.py writes."""
    install(session, "[docs]")
    if session.venv_backend != "none":
        session.install(*_extra("docs"))  # not in the lock: CI checks the pages without building the site
    session.run("python", "docs/prebuild.py", "build/docs")
    session.run("zensical", "build", "--clean", "--strict")


@nox.session
def demo(session: nox.Session) -> None:
    """The main job on generated faces."""
    install(session)
    session.run("oneshui", "demo", "--overwrite", *session.posargs)


@nox.session
def benchmark(session: nox.Session) -> None:
    """All methods on generated faces: two seeds, the tables and the report. Stopped, it goes on where it was."""
    install(session, "[plots]")
    session.run("oneshui", "benchmark", "demo", *session.posargs)
    session.run("oneshui", "report", "benchmarks/demo", "--overwrite")


@nox.session
def bench(session: nox.Session) -> None:
    """Speed and memory, as ratios within one run."""
    install(session)
    session.run("python", "tests/benchmarks/bench_loading.py")
    session.run("python", "tests/benchmarks/bench_training.py")
    session.run("python", "tests/benchmarks/bench_full_size.py")
    session.run("python", "tests/benchmarks/bench_unlearn.py")
    session.run("python", "tests/benchmarks/bench_exact_head.py")
    session.run("python", "tests/benchmarks/bench_evaluate.py")
    session.run("python", "tests/benchmarks/bench_forget_keys.py")
    session.run("python", "tests/benchmarks/bench_preparation.py")
    session.run("python", "tests/benchmarks/bench_growth.py")
    session.run("python", "tests/benchmarks/bench_meta_gradient.py", *session.posargs)


@nox.session
def gpu(session: nox.Session) -> None:
    """What one GPU reaches, as a JSON table, in minutes; `-- --smoke` runs it at tiny sizes on any machine."""
    install(session)
    session.run("python", "tests/benchmarks/gpu.py", *session.posargs)


@nox.session
def drill(session: nox.Session) -> None:
    """Kills, full disks, two commands at once, crafted runs and malformed commands; `-- --only kills --case train:17` repeats one case."""
    install(session)
    session.run("python", "-m", "drill", *session.posargs, env={"PYTHONPATH": "tests"})

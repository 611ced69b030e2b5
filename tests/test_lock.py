"""The lock of CI: complete, with a hash for every package, and within the ranges that users have."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "requirements" / "ci.txt"
LINE = re.compile(r"(?P<name>[a-z0-9]+(?:-[a-z0-9]+)*)==(?P<version>[0-9][0-9a-z.!]*) --hash=sha256:[0-9a-f]{64}")


def locked() -> dict[str, str]:
    """The version of each locked package."""
    lines = [line for line in LOCK.read_text().splitlines() if not line.startswith("#")]
    matches = [LINE.fullmatch(line) for line in lines]
    assert all(matches), [line for line, match in zip(lines, matches, strict=True) if not match]
    names = [match["name"] for match in matches if match]
    assert names == sorted(set(names))
    return {match["name"]: match["version"] for match in matches if match}


def test_every_line_is_one_version_with_a_hash() -> None:
    assert len(locked()) > 80


def test_lock_names_no_index_and_no_path() -> None:
    assert not re.search(r"://|file:|--index|--find-links|@", LOCK.read_text())


def test_lock_has_every_declared_dependency_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["dev"],
        *project["build-system"]["requires"],  # the wheel is built without isolation
    ]
    found = locked()
    for requirement in map(Requirement, declared):
        name = canonicalize_name(requirement.name)
        if name != "torch":
            assert name in found, f"{name} is not in the lock: run `nox -s lock`"
            assert found[name] in requirement.specifier, f"{name} {found[name]} is outside of {requirement}: run `nox -s lock`"


def test_torch_is_installed_by_one_exact_version_everywhere() -> None:
    assert "torch" not in locked()
    assert not any(name.startswith(("nvidia-", "cuda-", "triton")) for name in locked())
    versions = {
        name: set(re.findall(r"torch==([0-9.]+[0-9])", (ROOT / name).read_text())) for name in (".ci/run", "noxfile.py", "README.md")
    }
    assert len(set.union(*versions.values())) == 1, versions
    assert all(versions.values()), versions


def test_ci_and_nox_install_the_lock_with_hashes() -> None:
    assert "install --quiet --require-hashes --no-deps -r requirements/ci.txt" in (ROOT / ".ci" / "run").read_text()
    assert 'session.install("--require-hashes", "--no-deps", "-r", LOCK)' in (ROOT / "noxfile.py").read_text()
    assert not (ROOT / "constraints.txt").exists()


def test_ranges_of_users_have_no_upper_bound() -> None:
    """An upper bound is added only where a break is known; list it here, with the reason."""
    known: dict[str, str] = {}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    bounded = {Requirement(line).name for line in lines if any(one.operator not in (">=", "!=") for one in Requirement(line).specifier)}
    assert bounded == known.keys()

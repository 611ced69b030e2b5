"""Shared fixtures: caches in a temporary folder, and generated data sets in common layouts."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

# Set before datasets or transformers are imported, which read these variables on import.
_HOME = tempfile.TemporaryDirectory(prefix="oneshui-tests-")
os.environ["HF_HOME"] = _HOME.name
os.environ["HF_DATASETS_CACHE"] = str(Path(_HOME.name) / "datasets")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ONESHUI_VAULT"] = str(Path(_HOME.name) / "vault")  # instead of the user's own; set here, so that fixtures of any scope use it
os.environ["ONESHUI_CACHE"] = str(Path(_HOME.name) / "cache")
os.environ.pop("ONESHUI_PLUGINS", None)
os.environ.pop("HF_TOKEN", None)

import pytest  # noqa: E402

from support.commands import Oneshui  # noqa: E402
from support.faces import LABELS, bits, portrait  # noqa: E402

_installed_entry_points = metadata.entry_points


def _own_entry_points(**selection: Any) -> Any:
    found = _installed_entry_points(**selection)
    if not str(selection.get("group")).startswith("oneshui."):
        return found
    return metadata.EntryPoints(entry for entry in found if entry.dist is not None and entry.dist.name == "oneshui-hf")


def pytest_configure(config: pytest.Config) -> None:
    """Hide plugins of other installed packages from the tests of this process, some of which list or run every method.

    A process that a test starts sees them; a test that needs exact names there sets ONESHUI_PLUGINS. `--oneshui-method` finds them all.
    """
    if config.getoption("--oneshui-method") is None:
        metadata.entry_points = _own_entry_points


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    """Set the state of torch's global generator, so that a fixture's models are the same in every run, whichever test comes first."""
    _seed_global_generator()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """Set the state of torch's global generator, so that a test's models are the same alone and after other tests."""
    _seed_global_generator()


def _seed_global_generator() -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def oneshui(capsys: pytest.CaptureFixture[str]) -> Oneshui:
    """A function that runs a command in this process, and returns exit code, stdout and stderr."""

    from oneshui_hf.cli.app import app
    from oneshui_hf.cli.errors import guarded

    def run(*words: object) -> tuple[int, str, str]:
        code = guarded(lambda: app([str(word) for word in words], standalone_mode=False))
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def assets() -> Path:
    """The folder of real faces and annotations, if this machine has one."""
    if "ONESHUI_TEST_ASSETS" not in os.environ:
        pytest.skip("ONESHUI_TEST_ASSETS is not set, so there are no real faces")
    return Path(os.environ["ONESHUI_TEST_ASSETS"])


@pytest.fixture
def photo_folder(tmp_path: Path) -> Callable[..., Path]:
    """A factory of folders with `metadata.csv`: people p00, p01, ..., photos p00/0.png, ..., three binary labels.

    The first two photos of the first person have the labels 0,0,0 and 1,1,1, so that no label is constant.
    """

    def make(people: int = 4, photos: int = 3, name: str = "photos") -> Path:
        folder = tmp_path / name
        lines = [",".join(("file_name", "identity", *LABELS))]
        for person in range(people):
            (folder / f"p{person:02d}").mkdir(parents=True)
            for photo in range(photos):
                file = f"p{person:02d}/{photo}.png"
                portrait(person, photo).save(folder / file)
                row = [photo] * 3 if person == 0 and photo < 2 else bits(person, photo, 3)
                lines.append(f"{file},p{person:02d},{','.join(map(str, row))}")
        (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
        return folder

    return make


@pytest.fixture
def celeba_folder(tmp_path: Path) -> Callable[..., Path]:
    """A factory of folders in CelebA's layout: padded text, CRLF, 40 attributes, identities from 101 on, no identity header."""
    from oneshui_hf.data.builders.celeba import ATTRIBUTE_NAMES

    def make(people: int = 3, photos: int = 3, name: str = "celeba") -> Path:
        folder = tmp_path / name
        (folder / "img_align_celeba").mkdir(parents=True)
        attributes, identities = [], []
        for number in range(people * photos):
            person, photo = divmod(number, photos)
            file = f"{number + 1:06d}.jpg"
            portrait(person, photo, (22, 27)).save(folder / "img_align_celeba" / file)
            values = (2 * bit - 1 for bit in bits(person, photo, len(ATTRIBUTE_NAMES)))
            attributes.append(f"{file} " + " ".join(f"{value:2d}" for value in values))
            identities.append(f"{file} {101 + person}")
        header = [str(people * photos), " ".join(ATTRIBUTE_NAMES) + " "]
        (folder / "list_attr_celeba.txt").write_bytes("".join(f"{row}\r\n" for row in header + attributes).encode())
        (folder / "identity_CelebA.txt").write_bytes("".join(f"{row}\r\n" for row in identities).encode())
        return folder

    return make

"""A method from a separate package works without a change to the core, and leaves no trace when uninstalled."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import oneshui_hf

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "plugins" / "example"


def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, words)], capture_output=True, text=True, env=os.environ | environment, timeout=600)


def check_output(*words: object, **environment: str) -> str:
    done = run(*words, **environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with both wheels; their dependencies come from the current environment."""
    folder = tmp_path_factory.mktemp("third")
    check_output(sys.executable, "-m", "venv", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    path_file = Path(check_output(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip()) / "dependencies.pth"
    path_file.write_text(sysconfig.get_paths()["purelib"] + "\n")
    source = folder / "source"  # a copy, since a build leaves folders in the source tree
    source.mkdir()
    for name in ("src", "plugins", "cards", "pyproject.toml", "README.md", "LICENSE"):
        check_output("cp", "-r", ROOT / name, source)
    for project in (source, source / "plugins" / "example"):
        check_output(
            sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "wheels", project
        )
    check_output(python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", *(folder / "wheels").glob("*.whl"))
    return python


@pytest.mark.slow
def test_third_party_method_works_and_leaves_no_trace(python: Path, tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    oneshui_hf.train(dataset="synthetic", forget=2, epochs=2, optimizer="adamw", output_dir=str(run_folder), keep="last")
    photo = tmp_path / "face.png"
    from support.faces import portrait

    portrait(0, 0).save(photo)
    oneshui = (python, "-m", "oneshui_hf")
    assert str(python.parent.parent) in check_output(
        python, "-c", "import oneshui_hf, head_ascent; print(oneshui_hf.__file__, head_ascent.__file__)"
    )
    rows = {row["name"]: row for row in json.loads(check_output(*oneshui, "methods", "--json"))}
    assert rows["head-ascent"]["from"] == "oneshui-head-ascent 0.1.0"
    assert "--rate" in check_output(*oneshui, "methods", "show", "head-ascent")
    words = ["unlearn", "--run", run_folder, "--method", "head-ascent", "--image", photo, "--json"]
    report = json.loads(check_output(*oneshui, *words, "--rate", "0.3", "--output-dir", tmp_path / "new"))["report"]
    assert (report["method"], report["method_options"]) == ("head-ascent", {"rate": 0.3})
    refused = run(*oneshui, *words, "--rat", "0.3")
    assert refused.returncode == 2
    assert "Did you mean '--rate'?" in refused.stderr
    check_output(
        python,
        "-m",
        "pytest",
        "-q",
        "-k",
        "not two_processes",
        "--oneshui-method",
        "head-ascent",
        "-p",
        "no:cacheprovider",
        f"--rootdir={tmp_path}",
    )
    check_output(python, "-m", "pip", "uninstall", "--quiet", "--yes", "oneshui-head-ascent")
    assert "head-ascent" not in check_output(*oneshui, "methods", "--json")


def test_docs_page_shows_the_example_verbatim() -> None:
    page = (ROOT / "docs" / "guides" / "own-method.md").read_text()
    blocks = re.findall(r"```(?:toml|python)\n(.*?)```", page, re.DOTALL)
    files = [(EXAMPLE / name).read_text() for name in ("pyproject.toml", "head_ascent.py")]
    assert [file for file in files if file not in blocks] == []
    assert sum(bool(line.strip()) for file in files for line in file.splitlines()) <= 40

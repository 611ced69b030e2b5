"""The command `oneshui audit`: what it prints, its exit codes, and models that are downloaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.audits import PEOPLE, forget, name_of, write_candidates, write_model
from support.commands import Oneshui, sentence
from support.hub_server import Hub

LEAKED = 5


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    write_candidates(folder / "photos")
    write_model(folder / "original")
    write_model(folder / "unlearned", forget(LEAKED))
    return folder


def words(place: Path) -> list[Any]:
    return ["audit", place / "unlearned", "--original", place / "original", "--candidates", place / "photos"]


def test_prints_verdict_table_and_limits(oneshui: Oneshui, place: Path, tmp_path: Path) -> None:
    code, out, err = oneshui(*words(place), "--forgotten", name_of(LEAKED), "--output-dir", tmp_path / "out")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith(f"The difference of the two models points at 1 of {PEOPLE} candidates, exactly the person")
    assert lines[1] == f"10 of {PEOPLE} candidates, 72 photos"
    row = next(line for line in lines if name_of(LEAKED) in line)
    assert row.count("(1)") == 3 and "loss rise, logit distance, weight difference" in row
    assert "needed to stand out" in out and "Not run:" in out and "What this cannot show:" in out
    assert f"Loss rise: the forgotten person has rank 1 of {PEOPLE} (by chance: p = 0.042)." in lines
    assert lines[-1] == f"Next: oneshui report {tmp_path / 'out'}"


def test_json_has_all_candidates(oneshui: Oneshui, place: Path) -> None:
    code, out, _ = oneshui(*words(place), "--json")
    result = json.loads(out)
    assert code == 0
    assert len(result["people"]) == PEOPLE
    assert result["people"][0]["name"] == name_of(LEAKED)
    assert set(result["models"]) == {"original", "unlearned"}


def test_wrong_words_are_one_sentence(oneshui: Oneshui, place: Path, tmp_path: Path) -> None:
    one = write_candidates(tmp_path / "one", people=1)
    last = {"--candidates": str(one)}
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"--original": str(place / "unlearned")}, 2, "have the same weights"),
        ({"--original": str(place / "photos")}, 1, "no model.safetensors"),
        ({"--original": "owner/name"}, 1, "HF_HUB_OFFLINE"),
        ({"--candidates": str(tmp_path / "nowhere")}, 2, "is not a folder"),
        (last, 1, "photos of 1 candidate"),
        ({"--forgotten": "berta"}, 2, "is no candidate"),
        ({"--label-columns": "Smiling"}, 2, "names a column of metadata.csv"),
        ({"--output-dir": str(place / "photos")}, 2, "contains other files than an audit"),
    ]
    for changed, expected, text in cases:
        given = {"--original": str(place / "original"), "--candidates": str(place / "photos")} | changed
        code, out, err = oneshui("audit", place / "unlearned", *(word for item in given.items() for word in item))
        assert (code, out) == (expected, ""), changed
        assert text in sentence(err), changed
    code, _, err = oneshui("audit", place / "unlearned", "--candidates", place / "photos")
    assert (code, "audit needs --original" in sentence(err)) == (2, True)


@pytest.mark.slow
def test_models_of_the_hub_are_read_without_pickles_and_code(place: Path, tmp_path: Path) -> None:
    """Of a repository, only config, preprocessing and safetensors files are requested, and nothing is left of them."""
    with Hub() as hub:
        for name in ("original", "unlearned"):
            files = {file.name: file.read_bytes() for file in (place / name).iterdir()}
            more = {
                "pytorch_model.bin": b"never read",
                "modeling.py": b"raise SystemExit",
                "README.md": b"x",
            }
            hub.add(f"owner/{name}", files | more, private=False)
        coded = {file.name: file.read_bytes() for file in (place / "original").iterdir()}
        coded["config.json"] = json.dumps(json.loads(coded["config.json"]) | {"auto_map": {"AutoModel": "modeling.Model"}}).encode()
        hub.add("owner/code", coded, private=False)
        temporary = tmp_path / "temporary"
        temporary.mkdir()
        shutil.copytree(place / "photos", tmp_path / "photos")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home"), "TMPDIR": str(temporary)}

        def run(*more: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "oneshui_hf", "audit", "owner/unlearned", "--candidates", "photos", *more]
            return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

        done = run("--original", "owner/original", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["people"][0]["name"] == name_of(LEAKED)
        requested = {request.path.rpartition("/")[2] for request in hub.requests if "/resolve/" in request.path}
        assert requested == {"config.json", "preprocessor_config.json", "model.safetensors"}
        refused = run("--original", "owner/code")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert sentence(refused.stderr).startswith("Error: owner/code brings its own Python code (auto_map in config.json)")
    assert not any(temporary.glob("oneshui-audit-*"))

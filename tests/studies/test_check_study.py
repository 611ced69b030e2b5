"""`check_study.py`: numbers beyond their tolerance or missing are listed, and each study's commands end with its check."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from check_study import RESULTS, STUDIES, off

from support.pages import ROOT

PUBLISHED = {"a": [{"score": 1.0, "loss": 2.0, "name": "x", "ok": True}], "b": {"score": 5}}


def test_a_number_is_off_beyond_its_tolerance_alone() -> None:
    found = {"a": [{"score": 1.5, "loss": 9.0}], "b": {"score": 5.51}}
    assert off(found, PUBLISHED, {"*/score": 0.5}) == (2, ["b/score: 5.51, expected 5 within 0.5"])
    assert off(found, PUBLISHED, {"a/*/score": 0.1, "*/score": 1.0})[1] == ["a/0/score: 1.5, expected 1 within 0.1"]


def test_a_number_that_is_missing_or_not_a_number_is_off() -> None:
    assert off({"a": []}, PUBLISHED, {"a/*": 1.0})[1] == ["a/0/score: missing, expected 1", "a/0/loss: missing, expected 2"]
    assert off({"b": {"score": float("nan")}}, PUBLISHED, {"b/*": 1.0})[1] == ["b/score: nan, expected 5 within 1"]


@pytest.mark.parametrize("name", json.loads(STUDIES.read_text()))
def test_published_numbers_agree_with_themselves_and_the_commands_end_with_the_check(name: str, tmp_path: Path) -> None:
    study = json.loads(STUDIES.read_text())[name]
    published = json.loads((RESULTS / study["published"]).read_text())
    compared, lines = off(published, published, study["tolerances"])
    assert compared > 20
    assert not lines
    *_, last = study["commands"]
    words = last.split()
    assert words[:3] == ["python", "tests/studies/check_study.py", name]
    for file, code in ((RESULTS / study["published"], 0), (tmp_path / "empty.json", 1)):
        (tmp_path / "empty.json").write_text("{}")
        done = subprocess.run([sys.executable, words[1], name, str(file)], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, f"{compared} numbers compared" in done.stdout) == (code, True), done.stderr


def test_missing_file_is_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "tests/studies/check_study.py", "releases", str(tmp_path / "none.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, "there is no file" in done.stderr, "Traceback" in done.stderr) == (2, True, False)

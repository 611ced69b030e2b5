"""The demo, run as in the README."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_the_demo_shows_memorisation_and_unlearning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "oneshui_hf", "demo", "--output-dir", str(tmp_path / "demo")]
    environment = os.environ | {"ONESHUI_PLUGINS": "forget-keys,gradient-ascent,metaunlearn"}  # other packages may add methods to the demo
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    rows = {row["model"]: row["metrics"] for row in json.loads(done.stdout)["rows"]}
    assert set(rows) == {"original", "oracle", "forget-keys", "gradient-ascent", "metaunlearn"}

    original, oracle = rows["original"], rows["oracle"]
    assert original["forget"]["map"] > original["test"]["map"] + 15  # it has memorised the forget set
    assert oracle["forget"]["map"] < original["forget"]["map"] - 15  # to the oracle they are unseen identities
    assert abs(oracle["retain"]["map"] - original["retain"]["map"]) < 5
    assert original["gap_closure"] == 0  # the row of doing nothing
    assert oracle["gap_closure"] == 1
    for method in ("gradient-ascent", "metaunlearn"):
        assert rows[method]["forget"]["loss"] > original["forget"]["loss"]
        assert rows[method]["retain"]["map"] > original["retain"]["map"] - 15

    assert rows["forget-keys"]["gap_closure"] > max(rows[method]["gap_closure"] for method in ("gradient-ascent", "metaunlearn"))
    assert rows["forget-keys"]["retain"]["map"] > original["retain"]["map"] - 2

    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2
    assert "earlier demo" in again.stderr

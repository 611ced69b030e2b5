"""Output on terminals that cannot show every character."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NAMES = ["日本", "naïve", "😀", "†", "\udcff"]  # the last is a byte of a file name that is not UTF-8
CODE = f"""
import sys
from oneshui_hf.cli.errors import guarded
from oneshui_hf.cli.printing import print_json, print_line, table
from oneshui_hf.errors import OneshuiError
from oneshui_hf.reporting import ConsoleReporter
NAMES = {NAMES!a}
def call():
    if "json" in sys.argv:
        return print_json({{name: name for name in NAMES}})
    table(["label", *NAMES], [["x", *NAMES]], "Title " + NAMES[0])
    for name in NAMES:
        print_line("line " + name)
        print("print " + name)
        ConsoleReporter().warn(name)
        ConsoleReporter().note(name)
    raise OneshuiError(" ".join(NAMES))
sys.exit(guarded(call))
"""
ENCODINGS = ["ascii", "ascii:strict", "latin-1", "cp1252", "utf-8", "utf-8:strict"]


def run(encoding: str, *words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", CODE, *words], env=os.environ | {"PYTHONIOENCODING": encoding}, capture_output=True)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_characters_that_a_terminal_cannot_show_are_escaped(encoding: str) -> None:
    done, name = run(encoding), encoding.partition(":")[0]
    out, err = done.stdout.decode(name), done.stderr.decode(name)
    assert done.returncode == 1, err
    assert "Traceback" not in err
    for text in NAMES:
        shown = text.encode(name, "backslashreplace").decode(name)
        assert f"line {shown}\n" in out
        assert f"print {shown}\n" in out
        assert f"Warning: {shown}\n" in err
    assert err.splitlines()[-1].startswith("Error: ")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_json_is_valid_in_every_encoding(encoding: str) -> None:
    done = run(encoding, "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode(encoding.partition(":")[0])) == {name: name for name in NAMES}


def test_help_and_lists_are_printed_in_ascii(tmp_path: Path) -> None:
    for words in (
        ["train", "--help"],
        ["benchmark", "--help"],
        ["methods"],
        ["methods", "show", "ssd"],
        ["data", "list", "--json"],
        ["runs"],
    ):
        code = f"import sys; sys.argv = ['oneshui', *{words!r}]\nfrom oneshui_hf.cli import main\nmain()"
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONIOENCODING": "ascii:strict"}, capture_output=True, cwd=tmp_path
        )
        assert (done.returncode, done.stderr) == (0, b""), words
        done.stdout.decode("ascii")

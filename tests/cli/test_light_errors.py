"""Usage errors appear at once: nothing heavy is imported before the options are checked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from oneshui_hf.cli.commands import shown_flags
from oneshui_hf.options import fields
from support.all_commands import COMMANDS, PLACEHOLDERS, kind_of

HEAVY = {"torch", "transformers", "datasets", "accelerate", "pandas", "pyarrow", "PIL", "scipy"}
CODE = f"""
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from oneshui_hf.cli.app import app
from oneshui_hf.cli.errors import guarded
for words in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = guarded(lambda: app(words, standalone_mode=False))
    print(json.dumps([words, code, out.getvalue(), err.getvalue(), sorted({HEAVY} & set(sys.modules))]))
"""


def check(cases: list[list[str]], folder: Path) -> list[str]:
    """Run command lines that are wrong in one process, and return their messages."""
    done = subprocess.run([sys.executable, "-c", CODE], input=json.dumps(cases), cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(cases)
    for words, code, out, err, heavy in results:
        assert (code, out, heavy) == (2, "", []), (words, err, heavy)
        assert err.startswith("Error: "), words
        assert "Traceback" not in err, words
    return [err for *_, err, _ in results]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the records of an original, an oracle and an unlearned model. None has weights."""
    common = {"format": 1, "seed": 0, "options": {"dataset": "synthetic"}, "weights": "0", "versions": {}, "state": "complete"}
    data = {"name": "synthetic", "task": "multi_label", "labels": ["Smiling", "Young"]}
    for kind in ("original", "oracle", "unlearned"):
        (tmp_path / "runs" / kind).mkdir(parents=True)
        report = {"split": {"forget_identities": 2}}
        record = common | {"kind": kind, "dataset": data, "parent": {"run": str(tmp_path / "runs" / "original")}, "report": report}
        (tmp_path / "runs" / kind / "oneshui.json").write_text(json.dumps(record))
        (tmp_path / "runs" / kind / "split.json").write_text("{}")
    (tmp_path / "photo.jpg").write_bytes(b"x")
    (tmp_path / "file").write_text("")
    return tmp_path


@pytest.mark.slow
def test_wrong_value_of_every_option_imports_nothing_heavy(folder: Path) -> None:
    cases: list[list[str]] = []
    for command in COMMANDS:
        for name, field in fields(command.options).items():
            kind = kind_of(command.options, name)
            needed = {
                key: PLACEHOLDERS[key] for key in (*command.positional, *fields(command.options)) if key in PLACEHOLDERS and key != name
            }
            base = [*command.path.split(), *(value for key, value in needed.items() if key in command.positional)]
            if "dataset" in needed:
                base += ["--dataset", "synthetic"]
            wrong = {bool: "maybe", int: "x", float: "nan"}.get(kind, "" if kind in (str, tuple) else None)
            wrong = "no-such-word" if field.metadata["choices"] else wrong
            if kind is not bool and name not in command.positional:
                cases.append([*base, f"{shown_flags(field)[0]}={wrong}"])
            config = folder / f"{len(list(folder.iterdir()))}.yaml"
            config.write_text(f"{name}: {json.dumps(wrong)}\n")
            if name not in command.positional:
                cases.append([*base, "--config", str(config)])
    assert len(cases) > 200
    for message in check(cases, folder):
        assert len(message) < 400


METHOD = ["--method", "ssd"]


def test_options_that_do_not_go_together_import_nothing_heavy(folder: Path) -> None:
    train, run, photo = ["train", "--dataset", "synthetic"], "runs/original", ["--image", "photo.jpg"]
    (folder / "grid.yaml").write_text("name: g\ndatasets: [{dataset: synthetic, epochs: 0}]\nforget: [1]\nseeds: [0]\n")
    cases = [
        ["train"],
        ["train", "--dataset", "synthetics"],
        ["train", "--dataset", "/nowhere"],
        ["train", "--dataset", "celeba", "--data-dir", "/nowhere"],
        ["train", "--dataset", "celeba", "--label-columns", "Smiling"],
        [*train, "--split", "/nowhere.json"],
        [*train, "--model", "/nowhere"],
        [*train, "--resume", "--overwrite"],
        [*train, "--resume"],
        [*train, "--adapter-rank", "4"],
        [*train, "--output-dir", run],
        [*train, "--output-dir", "file/x"],
        [*train, "--config", "/nowhere.yaml"],
        [*train, "--epoch", "3"],
        ["retrain", "/nowhere"],
        ["retrain", "runs/oracle"],
        ["retrain", run, "--output-dir", run],
        ["retrain", run, "--resume"],
        ["prepare", run, "--method", "sdd"],
        ["prepare", run, "--method", "do-nothing"],
        ["prepare", run, *METHOD, "--resume"],
        ["prepare", run, *METHOD, "--resume", "--overwrite"],
        ["prepare", run, *METHOD, "--face-encoder", "dlib"],
        ["prepare", run, *METHOD, "--preset", "papr"],
        ["prepare", run, *METHOD, "--photos", "0"],
        ["prepare", run, *METHOD, "--photo", "2"],
        ["tune", "runs/oracle", *METHOD],
        ["tune", run, *METHOD, "--output", "x.txt"],
        ["tune", run, *METHOD, "--dampening", "-1"],
        ["unlearn", run],
        ["unlearn", run, *photo, "--from-split"],
        ["unlearn", run, *photo, "--data-dir", "."],
        ["unlearn", run, *photo, "--method", "scrub"],
        ["unlearn", run, *photo, *METHOD, "--labels", "Smilling"],
        ["unlearn", run, *photo, *photo, *METHOD, "--labels", "Smiling", "--labels", "Young", "--labels", "Young"],
        ["unlearn", run, *photo, *METHOD, "--identity", "a", "--identity", "b"],
        ["unlearn", run, *photo, *METHOD, "--output-dir", run],
        ["unlearn", run, *photo, *METHOD, "--chunk", "0"],
        ["evaluate", "/nowhere"],
        ["evaluate", run, "--oracle", run],
        ["evaluate", run, "--original", "runs/oracle"],
        ["report", "/nowhere"],
        ["report", run, "--data-dir", "."],
        ["report", run, "--output", "/nowhere/x.html"],
        ["push", "/nowhere", "user/name"],
        ["push", run, "user/name", "--with-people"],
        ["pull", "user/name", "--output-dir", run],
        ["predict", "/nowhere", "photo.jpg"],
        ["show", "/nowhere"],
        ["benchmark", "nogrid"],
        ["benchmark", "grid.yaml"],
        ["benchmark", "demo", "--shard", "3/2"],
        ["benchmark", "demo", "--data-dir", "nothing"],
        ["benchmark", "demo", "--output-dir", "."],
        ["data", "check", "--dataset", "synthetics"],
        ["data", "split", "--dataset", "/nowhere"],
        ["data", "push", "user/name", "--dataset", "synthetics"],
    ]
    check(cases, folder)

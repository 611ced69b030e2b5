"""The conformance kit finds what a wrong method breaks, and nothing else; the built-in methods break nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from oneshui_hf.data.schema import Task, TaskKind
from oneshui_hf.seeding import generator
from oneshui_hf.testing import toy_problem as kit
from oneshui_hf.testing.toy_problem import world
from support.wrong_methods import BROKEN, RIGHT

HERE = Path(__file__).parents[1] / "support"

# All wrong methods in one process, so that the world is made once: METHOD, further words of pytest -> the names of the tests that fail.
RUN = """
import json, sys
import pytest  # noqa: E402

class Failures:
    def __init__(self): self.names = set()
    def pytest_runtest_logreport(self, report):
        if report.failed: self.names.add(report.nodeid.rpartition("::")[2].partition("[")[0])

found = {}
for spec, *words in json.loads(sys.argv[1]):
    failures = Failures()
    code = pytest.main(["-q", "-p", "no:cacheprovider", "--oneshui-method", spec, *words], plugins=[failures])
    found[spec] = sorted(failures.names) if code in (0, 1) else [f"pytest ended with {code}"]
json.dump(found, open(sys.argv[2], "w"))
"""


def failures(cases: list[list[str]], folder: Path) -> dict[str, list[str]]:
    environment = os.environ | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, json.dumps(cases), str(folder / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=900)
    assert (folder / "found.json").exists(), done.stdout[-2000:] + done.stderr[-2000:]
    return dict(json.loads((folder / "found.json").read_text()))


@pytest.mark.slow
def test_a_wrong_method_fails_the_check_that_it_breaks_and_no_other(tmp_path: Path) -> None:
    quick = ["-k", "not two_processes"]
    cases = [[f"wrong_methods:{name}", *([] if name in ("OneProcess",) else quick)] for name in (*RIGHT, *BROKEN)]
    found = failures(cases, tmp_path)
    expected = {f"wrong_methods:{name}": [test] for name, test in BROKEN.items()}
    assert found == expected | {f"wrong_methods:{name}": [] for name in RIGHT}


# What makes a preparation quick, a step long enough to be seen in so small a world, an epoch more than one step, or a rise more than luck.
BUILT_IN = {
    "bad-teacher": ["batch_size=4", "lr=0.03"],
    "do-nothing": [],
    "drop-shard": [],
    "fine-tuning": ["batch_size=4"],
    "forget-keys": ["visits=12", "together=4", "damping=0.1", "bits=16"],  # so that rounding errors do not grow
    "gradient-ascent": ["calibration=1", "length=0.003"],
    "jit": ["lr=0.5"],
    "lfssd": ["selection=1.5"],
    "metaunlearn": ["steps=5", "calibration=0", "length=0.01"],
    "neggrad-plus": ["batch_size=4", "lr=0.003", "alpha=0.3"],
    "pgu": ["lr=0.3"],
    "random-labels": ["calibration=1", "length=0.003"],
    "salun": [],
    "scrub": ["batch_size=4", "lr=0.03"],
    "ssd": ["selection=1", "dampening=0.1"],
}


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_the_world_of_the_kit_is_known_by_heart(kind: TaskKind) -> None:
    here = world(kind)
    for known in ("retain", "forget"):
        assert here.loss(here.model, known) < 0.25
    for strange in ("val", "test"):
        assert here.loss(here.model, strange) > 1.0


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_a_machine_that_rounds_otherwise_meets_the_same_world(kind: TaskKind, monkeypatch: pytest.MonkeyPatch) -> None:
    def rounded_otherwise(task: Task) -> Any:
        model = kits_model(task)
        for number, weight in enumerate(model.parameters()):
            weight.data += 1e-6 * torch.randn(weight.shape, generator=generator(0, "rounding", number))
        return model

    kits_model, here = kit._model, world(kind)
    monkeypatch.setattr(kit, "_model", rounded_otherwise)
    there = world.__wrapped__(kind)  # the world is made once a process, and this one is not to be kept
    assert here.loss(here.model, "forget") != there.loss(there.model, "forget")
    for known in ("retain", "forget"):
        assert abs(here.loss(here.model, known) - there.loss(there.model, known)) < 0.05


def test_every_built_in_method_is_checked() -> None:
    entries = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())["project"]["entry-points"]["oneshui.methods"]
    assert set(BUILT_IN) == set(entries)


@pytest.mark.slow
def test_the_built_in_methods_break_nothing(tmp_path: Path) -> None:
    few = ["-k", "not (two_processes and single_label)"]  # starting processes takes longer than all else
    cases = [[name, *few, *(f"--oneshui-option={word}" for word in words)] for name, words in BUILT_IN.items()]
    assert failures(cases, tmp_path) == {name: [] for name in BUILT_IN}


def test_without_a_method_the_kit_does_nothing(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.getoption("--oneshui-method") is None
    assert not any("testing/conformance.py" in str(argument) for argument in pytestconfig.args)

"""The conformance kit reports the guarantee that a wrong method breaks, and no other; the built-in methods keep the contract."""

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
from oneshui_hf.errors import UsageError
from oneshui_hf.seeding import generator
from oneshui_hf.testing import toy_problem as module
from oneshui_hf.testing.subject import Subject
from oneshui_hf.testing.toy_problem import toy_problem
from support.wrong_methods import BROKEN, CORRECT

SUPPORT = Path(__file__).parents[1] / "support"

# All methods run in one process, so that the toy problem is made once. From lists of METHOD and pytest arguments to names of failed tests.
RUN_ALL = """
import json, sys
import pytest

class Failures:
    def __init__(self): self.names = set()
    def pytest_runtest_logreport(self, report):
        if report.failed: self.names.add(report.nodeid.rpartition("::")[2].partition("[")[0])

found = {}
for spec, *words in json.loads(sys.argv[1]):
    failures = Failures()
    code = pytest.main(["-q", "-p", "no:cacheprovider", "--oneshui-method", spec, *words], plugins=[failures])
    found[spec] = sorted(failures.names) if code in (0, 1) else [f"pytest exited with {code}"]
json.dump(found, open(sys.argv[2], "w"))
"""


def failures(cases: list[list[str]], folder: Path) -> dict[str, list[str]]:
    environment = os.environ | {"PYTHONPATH": str(SUPPORT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN_ALL, json.dumps(cases), str(folder / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=900)
    assert (folder / "found.json").exists(), done.stdout[-2000:] + done.stderr[-2000:]
    return dict(json.loads((folder / "found.json").read_text()))


@pytest.mark.slow
def test_wrong_method_fails_only_the_test_of_the_guarantee_that_it_breaks(tmp_path: Path) -> None:
    one_process = ["-k", "not two_processes"]
    cases = [[f"wrong_methods:{name}", *([] if name == "DependsOnProcesses" else one_process)] for name in (*CORRECT, *BROKEN)]
    found = failures(cases, tmp_path)
    expected = {f"wrong_methods:{name}": [test] for name, test in BROKEN.items()}
    assert found == expected | {f"wrong_methods:{name}": [] for name in CORRECT}


# Options for a fast preparation, a step large enough for the toy problem, several steps per epoch, or a loss rise above chance.
BUILT_IN = {
    "bad-teacher": ["batch_size=4", "lr=0.03"],
    "do-nothing": [],
    "drop-shard": [],
    "exact-head": [],
    "fine-tuning": ["batch_size=4"],
    # so that training does not amplify rounding errors
    "forget-keys": ["folds=2", "repeats=1", "steps_per_identity=12", "identities_per_step=4", "damping=0.1", "bits=16"],
    "gradient-ascent": ["calibration=1", "length=0.003"],
    "jit": ["lr=0.5"],
    "l2ul": ["lr=0.01", "copies=3", "attack_steps=5"],
    "lfssd": ["selection=1.5"],
    "metaunlearn": ["steps=5", "calibration=0", "length=0.01"],
    "mu-mis": [],  # classes only
    "neggrad-plus": ["batch_size=4", "lr=0.003", "alpha=0.3"],
    "pgu": ["lr=0.3"],
    "random-labels": ["calibration=1", "length=0.003"],
    "reference-guided": [],
    "salun": [],
    "scrub": ["batch_size=4", "lr=0.03"],
    "ssd": ["selection=1", "dampening=0.1"],
    "svd-projection": [],
}


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_model_of_toy_problem_has_memorised_its_training_identities(kind: TaskKind) -> None:
    problem = toy_problem(kind)
    for name in ("retain", "forget"):
        assert problem.loss(problem.model, name) < 0.25
    for name in ("val", "test"):
        assert problem.loss(problem.model, name) > 1.0


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_other_rounding_gives_nearly_the_same_toy_problem(kind: TaskKind, monkeypatch: pytest.MonkeyPatch) -> None:
    def perturbed_model(task: Task) -> Any:
        model = make_model(task)
        for number, weight in enumerate(model.parameters()):
            weight.data += 1e-6 * torch.randn(weight.shape, generator=generator(0, "rounding", number))
        return model

    make_model, problem = module._model, toy_problem(kind)
    monkeypatch.setattr(module, "_model", perturbed_model)
    other = toy_problem.__wrapped__(kind)  # without the cache
    assert problem.loss(problem.model, "forget") != other.loss(other.model, "forget")
    for name in ("retain", "forget"):
        assert abs(problem.loss(problem.model, name) - other.loss(other.model, name)) < 0.05


def test_every_built_in_method_is_tested() -> None:
    entries = tomllib.loads((SUPPORT.parents[1] / "pyproject.toml").read_text())["project"]["entry-points"]["oneshui.methods"]
    assert set(BUILT_IN) == set(entries)


@pytest.mark.slow
def test_built_in_methods_keep_the_contract(tmp_path: Path) -> None:
    few = ["-k", "not (two_processes and single_label)"]  # starting processes is the slowest part
    cases = [[name, *few, *(f"--oneshui-option={word}" for word in words)] for name, words in BUILT_IN.items()]
    assert failures(cases, tmp_path) == {name: [] for name in BUILT_IN}


@pytest.mark.slow
def test_method_of_the_current_folder_needs_no_installation(tmp_path: Path) -> None:
    example = SUPPORT.parents[1] / "plugins" / "example" / "head_ascent.py"
    (tmp_path / "my_method.py").write_text(example.read_text())
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    # -P leaves the current folder out of the import path, as the command `pytest` does.
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--oneshui-method", "my_method:HeadAscent"]
    done = subprocess.run([*command, "-k", "metadata"], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


@pytest.mark.parametrize(
    ("spec", "words", "message"),
    [
        ("jiit", [], "There is no method 'jiit'. Did you mean 'jit'?"),
        ("", [], "There is no method ''."),
        ("no_such_module:Method", [], "Module 'no_such_module' cannot be imported: it is neither installed nor in the current folder."),
        ("wrong_import:Method", [], "Module 'wrong_import' cannot be imported: ModuleNotFoundError: No module named 'no_such_module'."),
        ("wrong_exit:Method", [], "Module 'wrong_exit' cannot be imported: SystemExit: 3."),
        ("./wrong_methods:Correct", [], "'./wrong_methods:Correct' is not MODULE:CLASS"),
        ("wrong_methods:", [], "'wrong_methods:' is not MODULE:CLASS"),
        ("support.wrong_methods:Corect", [], "Module 'support.wrong_methods' has no class 'Corect'. Did you mean"),
        ("json:dumps", [], "Module 'json' has no class 'dumps'."),
        ("json:JSONDecoder", [], "Class 'JSONDecoder' of module 'json' is no method; derive it from oneshui_hf.methods.Method."),
        ("jit", ["copis=3"], "method 'jit' has no option --copis. Did you mean '--copies'?"),
        ("jit", ["copies=many"], "--copies of method 'jit' takes a whole number, not 'many'."),
    ],
)
def test_each_wrong_name_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, words: list[str], message: str
) -> None:
    (tmp_path / "wrong_import.py").write_text("import no_such_module\n")
    (tmp_path / "wrong_exit.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError) as raised:
        Subject.load(spec, words).check_options()
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_kit_adds_no_tests_without_a_method(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.getoption("--oneshui-method") is None
    assert not any("testing/conformance.py" in str(argument) for argument in pytestconfig.args)

"""`compose_keys.py`: its rows agree with the model's losses, and the order of requests makes no difference beyond rounding."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compose_keys import PreparedModel, format_row

from oneshui_hf.data.schema import TaskKind
from oneshui_hf.methods import DataAccess
from oneshui_hf.testing.toy_problem import toy_problem
from oneshui_plugins.forget_keys.method import ForgetKeys
from oneshui_plugins.forget_keys.options import ForgetKeysOptions

OPTIONS = ForgetKeysOptions(targets="quantile", steps_per_identity=4, identities_per_step=4, damping=0.1)


def prepare_model(kind: TaskKind) -> PreparedModel:
    problem = toy_problem(kind)
    data = DataAccess(problem.sets, ForgetKeys.needs.prepare)
    artefact = ForgetKeys().prepare(problem.model, data, OPTIONS, problem.context())
    return PreparedModel(problem.model, artefact, OPTIONS, problem.sets["train"], problem.sets["test"], problem.context())


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_row_contains_the_losses_of_forget_retain_and_test_photos(kind: TaskKind) -> None:
    problem, prepared = toy_problem(kind), prepare_model(kind)
    people = [prepared.train.people[identity] for identity in sorted(problem.sets["forget"].positions_of)]
    row, after = prepared.before_and_after(people), prepared.unlearn(people)
    for index, name in enumerate(("forget", "retain", "test")):
        assert row[index, 0, 1].item() == pytest.approx(problem.loss(problem.model, name), rel=1e-5)
        assert row[index, 1, 1].item() == pytest.approx(problem.loss(after, name), rel=1e-5)
    assert row[0, 1, 1] > row[0, 0, 1]


def test_order_of_requests_makes_no_difference_beyond_rounding() -> None:
    prepared = prepare_model("multi_label")
    order = prepared.request_order()
    assert sorted(order) == sorted(prepared.artefact.people)
    assert order == prepare_model("multi_label").request_order()
    weights, logits = prepared.order_differences(order)
    assert 0 < weights < 1e-5
    assert 0 < logits < 1e-3


def test_line_contains_before_and_after_of_all_three_sets() -> None:
    line = format_row(5, torch.arange(12.0).view(3, 2, 2))
    assert line.split() == "5 0.00 -> 2.00, 1.000 -> 3.000 4.00 -> 6.00, 5.000 -> 7.000 8.00 -> 10.00, 9.000 -> 11.000".split()


@pytest.mark.parametrize("words", [["compose_keys.py"], ["read_keys.py", "--run"]])
@pytest.mark.slow
def test_missing_run_is_reported_in_one_sentence(words: list[str], tmp_path: Path) -> None:
    script = Path(__file__).with_name(words[0])
    done = subprocess.run([sys.executable, script, *words[1:], tmp_path / "nothing"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "nothing" in done.stderr

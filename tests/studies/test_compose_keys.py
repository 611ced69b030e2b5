"""What keys do to those who ask, to the others and to strangers, and in which order: what `compose_keys.py` prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compose_keys import Prepared, told

from oneshui_hf.data.schema import TaskKind
from oneshui_hf.methods import DataAccess
from oneshui_hf.testing.toy_problem import world
from oneshui_plugins.forget_keys.method import ForgetKeys
from oneshui_plugins.forget_keys.options import ForgetKeysOptions

OPTIONS = ForgetKeysOptions(visits=4, together=4, damping=0.1)


def prepared(kind: TaskKind) -> Prepared:
    w = world(kind)
    data = DataAccess(w.sets, ForgetKeys.needs.prepare)
    artefact = ForgetKeys().prepare(w.model, data, OPTIONS, w.context())
    return Prepared(w.model, artefact, OPTIONS, w.sets["train"], w.sets["test"], w.context())


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_a_row_tells_of_those_who_ask_of_the_others_and_of_strangers(kind: TaskKind) -> None:
    w, keys = world(kind), prepared(kind)
    asks = [keys.train.people[person] for person in sorted(w.sets["forget"].positions_of)]
    row, after = keys.row(asks), keys.without(asks)
    for place, name in enumerate(("forget", "retain", "test")):
        assert row[place, 0, 1].item() == pytest.approx(w.loss(w.model, name), rel=1e-5)
        assert row[place, 1, 1].item() == pytest.approx(w.loss(after, name), rel=1e-5)
    assert row[0, 1, 1] > row[0, 0, 1]


def test_the_order_in_which_people_ask_makes_no_difference_beyond_rounding() -> None:
    keys = prepared("multi_label")
    order = keys.order()
    assert sorted(order) == sorted(keys.artefact.people)
    assert order == prepared("multi_label").order()
    weights, logits = keys.apart(order)
    assert 0 < weights < 1e-5
    assert 0 < logits < 1e-3


def test_a_line_has_before_and_after_of_all_three() -> None:
    line = told(5, torch.arange(12.0).view(3, 2, 2))
    assert line.split() == "5 0.00 -> 2.00, 1.000 -> 3.000 4.00 -> 6.00, 5.000 -> 7.000 8.00 -> 10.00, 9.000 -> 11.000".split()


@pytest.mark.parametrize("words", [["compose_keys.py"], ["read_keys.py", "--run"]])
def test_a_run_that_is_not_there_is_told_in_one_sentence(words: list[str], tmp_path: Path) -> None:
    script = Path(__file__).with_name(words[0])
    done = subprocess.run([sys.executable, script, *words[1:], tmp_path / "nothing"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "nothing" in done.stderr

"""How metrics are printed: the mark of a collapsed model, and changes for people who are not forgotten."""

from __future__ import annotations

from typing import Any

import pytest

from oneshui_hf.cli import show_benchmark, show_metrics
from oneshui_hf.metrics.collapse import EXPLANATION
from oneshui_hf.results.aggregate import summarise
from oneshui_hf.results.tables import terminal_tables
from support.report_rows import metrics, row


def printed(capsys: pytest.CaptureFixture[str], strength: float, **changes: Any) -> list[str]:
    show_metrics.metrics(metrics(0, strength) | {"further": None} | changes)
    return capsys.readouterr().out.splitlines()


def cells(lines: list[str], label: str) -> list[str]:
    """Return the numbers of the line of a table that begins with a label."""
    [found] = [line for line in lines if line.startswith(f"  {label} ") and not line.startswith(f"  {label} %")]
    return found.removeprefix(f"  {label} ").split()


def test_sets_and_attacks_of_a_collapsed_model_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, 2.0)  # retain and test are 8 points below the original
    assert {line.split()[0] for line in lines if "‡" in line} == {
        "retain‡",
        "test‡",
        "loss‡",
        "logistic‡",
        "rmia‡",
        "rmia-two-sided‡",
        "‡:",
    }
    assert lines.count(EXPLANATION) == 1
    plain = "\n".join(printed(capsys, 1.0))
    assert "‡" not in plain


@pytest.mark.parametrize("unknown", [None, {"retain": {"drop": None}, "test": {}, "collapsed": None}])
def test_unknown_collapse_is_not_marked(capsys: pytest.CaptureFixture[str], unknown: Any) -> None:
    assert "‡" not in "\n".join(printed(capsys, 2.0, collapse=unknown))


def test_comparison_marks_the_collapsed_models_alone(capsys: pytest.CaptureFixture[str]) -> None:
    show_metrics.comparison([{"model": name, "metrics": metrics(0, strength)} for name, strength in (("a", 1.0), ("b", 2.0))], "title")
    out = capsys.readouterr().out
    assert "b‡" in out
    assert "a‡" not in out
    assert out.count(EXPLANATION) == 1


def test_benchmark_marks_collapsed_methods(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("original", 0), row("oracle", 1), row("ssd", 1.0), row("pgu", 2.0)]
    show_benchmark.benchmark({"tables": terminal_tables(summarise(rows)), "rows": 4, "output": "x", "missing": 0})
    out = capsys.readouterr().out
    assert "pgu‡" in out
    assert out.count("‡") == 2
    assert EXPLANATION in out


def test_bystanders_are_printed_with_the_oracle_and_the_groups_that_differ(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, 1.0)
    assert cells(lines, "retain, oracle") == ["40", "0.005", "0.020", "0.031", "0.075", "6", "0.005", "0.031"]
    assert cells(lines, "test, oracle")[0] == "10"
    groups = [line for line in lines if "people with '" in line]
    assert groups == [
        "retain: people with 'Male' (15) have a loss change of 0.041 [0.011, 0.071] more than people without (25); under the oracle 0.002."
    ]
    assert "1 of 2 compared groups of people differ (one permutation test for all, 5%); 3 have too few people to be compared." in lines
    assert "Bystanders" not in "\n".join(printed(capsys, 1.0, bystanders=None))

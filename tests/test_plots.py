"""The public figures: of runs and benchmarks, standalone, shown by notebooks, with one sentence for a wrong source."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")

from oneshui_hf import plots
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.runs import Record, Run, with_checksum, write_json, write_record
from support.report_rows import curves, metrics, row

NS = "{http://www.w3.org/2000/svg}"
WEIGHTS = {"original": "a" * 64, "oracle": "b" * 64, "unlearned": "d" * 64}


def make_run(folder: Path, kind: Any, strength: float, **more: Any) -> Path:
    folder.mkdir(parents=True)
    report = {"method": folder.name.partition("-")[2] or "-", "reads": ["support"], "split": {"forget_identities": 4}, "seconds": 1.5}
    parent = None if kind == "original" else {"run": str(folder.parent / "original"), "weights": WEIGHTS["original"]}
    write_record(
        folder, Record(kind=kind, seed=3, options={}, dataset={"name": "synthetic"}, report=report, parent=parent, weights=WEIGHTS[kind])
    )
    write_json(folder / "metrics.json", with_checksum(metrics(3, strength, **more)))
    write_json(folder / "curves.json", with_checksum(curves(3, strength)))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("canary-runs")
    for name, kind, strength in (("original", "original", 0.0), ("original-oracle", "oracle", 1.0)):
        make_run(folder / name, kind, strength)
    for name, strength in (("ssd", 0.5), ("jit", 0.1)):
        make_run(folder / f"original-{name}", "unlearned", strength)
    return folder


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    for number, entry in enumerate((row("original", 0), row("oracle", 1), row("metaunlearn", 0.9), row("ssd", 0.3))):
        write_json(folder / "rows" / f"{number}.json", with_checksum(entry))
    return folder


def panels(figure: plots.Figure) -> list[ElementTree.Element]:
    root = ElementTree.fromstring(figure.svg)
    assert root.find(f"{NS}rect") is not None
    assert figure._repr_svg_() == figure.svg
    return root.findall(f"{NS}svg")


def test_scores_are_those_of_the_runs_next_to_the_unlearned_ones(runs: Path) -> None:
    _, panel = panels(plots.scores(runs / "original-ssd", Run.open(runs / "original-jit")))
    text = panel.get("aria-label") or ""
    for method, strength in (("ssd", 0.5), ("jit", 0.1)):
        for name in ("forget", "retain", "test"):
            before, after, ideal = (metrics(3, value)[name]["map"] for value in (0.0, strength, 1.0))
            assert f"{method}, {name}: original {before:.1f}, unlearned {after:.1f}, oracle {ideal:.1f}" in text


def test_trade_off_of_a_run_states_gap_closure_and_lost_points(runs: Path) -> None:
    _, retain, test = panels(plots.tradeoff(runs / "original-ssd"))
    own, before = metrics(3, 0.5), metrics(3, 0.0)
    for panel, name in ((retain, "retain"), (test, "test")):
        change = own[name]["map"] - before[name]["map"]
        expected = f"ssd: gap closure {own['gap_closure']:.2f}, {abs(change):.1f} points {'gained' if change > 0 else 'lost'}"
        assert expected in (panel.get("aria-label") or "")
        assert expected in [title.text for title in panel.iter(f"{NS}title")]  # shown when the pointer is over the mark


def test_trade_off_without_an_oracle_shows_the_attack(tmp_path: Path) -> None:
    rows = [row("original", 0), row("ssd", 0.5)]
    for number, entry in enumerate(rows):
        entry["metrics"] |= {"gap_closure": None, "tow": None, "noise_floor": None}
        write_json(tmp_path / "rows" / f"{number}.json", with_checksum(entry))
    _, retain, _ = panels(plots.tradeoff(tmp_path))
    strongest = rows[1]["metrics"]["attacks"]["strongest"]
    assert f"ssd: attack AUC {rows[1]['metrics']['attacks'][strongest]['auc_either_way']:.2f}" in (retain.get("aria-label") or "")


@pytest.mark.parametrize(("kind", "count"), [("identity_losses", 3), ("losses", 5), ("attacks", 5), ("cost", 3)])
def test_figures_of_a_benchmark_are_those_of_its_report(benchmark: Path, kind: str, count: int) -> None:
    drawn = panels(getattr(plots, kind)(benchmark))
    assert len(drawn) == count  # the first is the legend
    places = {(panel.get("x"), panel.get("y")) for panel in drawn}
    assert len(places) == count


def test_figure_is_a_standalone_file_without_paths(runs: Path, tmp_path: Path) -> None:
    first = plots.identity_losses(runs / "original-ssd")
    target = first.save(tmp_path / "new" / "figure.svg")
    text = target.read_text()
    assert ElementTree.parse(target).getroot().get("width")
    assert not re.search(r"canary|/tmp|<script|<image", text)
    assert plots.identity_losses(str(runs / "original-ssd")).svg == first.svg


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda runs: plots.scores(), "takes one or more evaluated runs"),
        (lambda runs: plots.scores(runs / "missing"), "There is no run at"),
        (lambda runs: plots.tradeoff(runs), "contains no rows yet"),
        (lambda runs: plots.cost(runs / "original-ssd"), "needs at least two methods"),
        (lambda runs: plots.Figure("<svg/>").save(runs / "figure.png"), "ends in .svg, not 'figure.png'"),
    ],
)
def test_wrong_source_is_an_error_of_one_sentence(runs: Path, call: Any, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        call(runs)


def test_runs_with_different_scores_are_not_compared(runs: Path) -> None:
    other = make_run(runs / "original-pgu", "unlearned", 0.2, score="accuracy")
    with pytest.raises(UsageError, match="the same score"):
        plots.scores(runs / "original-ssd", other)


def test_two_runs_of_one_method_are_not_drawn_as_one(runs: Path) -> None:
    with pytest.raises(UsageError, match="one run of each method"):
        plots.scores(runs / "original-ssd", runs / "original-ssd")


def test_missing_matplotlib_is_an_error_of_one_sentence(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OneshuiError, match=r"oneshui-hf\[plots\]"):
        plots.scores(runs / "original-ssd")

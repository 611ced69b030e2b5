"""The report: one self-contained page without personal data, written completely or not at all."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats

pytest.importorskip("matplotlib")

from oneshui_hf import api
from oneshui_hf.errors import UsageError
from oneshui_hf.results.aggregate import summarise
from oneshui_hf.results.table_columns import MARK
from oneshui_hf.results.tables import markdown
from oneshui_hf.results.verdict import verdict
from oneshui_hf.runs import Record, Run, with_checksum, write_json, write_record
from support.commands import Oneshui, sentence
from support.report_rows import SENTENCE, curves, failed, metrics, row

FIGURES = ("tradeoff", "people", "losses", "attacks", "cost")
VOID = {"meta", "img", "br", "hr", "link", "input"}
CANARY = "canary-Jane-Doe"
PATH = "/home/canary/photos"


class Page(HTMLParser):
    """Parses a page: its text, its tags with attributes, its tables; raises an error if a tag is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"style", "svg", "script"} & set(self.open):
            return
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += f" {data}"

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def row(self, label: str, table: int = 0) -> list[str]:
        return next([" ".join(cell.split()) for cell in cells] for cells in self.tables[table] if cells[0].strip() == label)


def make_benchmark(folder: Path, rows: list[dict[str, Any]]) -> Path:
    for number, entry in enumerate(rows):
        write_json(folder / "rows" / f"{number:03d}.json", with_checksum(entry))
    return folder


def make_run(folder: Path, strength: float = 0.8, **more: Any) -> Path:
    folder.mkdir(parents=True)
    record = Record(
        kind="unlearned", seed=3, options={"dataset": "synthetic"}, dataset={"name": "synthetic"},
        report={"method": "metaunlearn", "reads": ["support"], "split": {"forget_identities": 4}, "seconds": 1.5},
        parent={"run": PATH, "weights": "a" * 64},
    )  # fmt: skip
    write_record(folder, dataclasses.replace(record, **more))
    write_json(folder / "metrics.json", with_checksum(metrics(3, strength)))
    write_json(folder / "curves.json", with_checksum(curves(3, strength)))
    return folder


ROWS = [
    entry
    for seed in (0, 1, 2)
    for entry in (
        row("original", 0, seed=seed),
        row("oracle", 1, seed=seed),
        row("ssd", 0.3, seed=seed),
        row("metaunlearn", 0.9, seed=seed),
        row("scrub", 0.95, seed=seed, reads=("support", "retain")),
    )
]


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [*ROWS, failed("salun", f"{PATH} is broken", seed=0), row("pgu", 0.5, seed=0), failed("pgu", PATH, seed=1)]
    # Text that no report may contain.
    for entry in rows:
        if entry["state"] == "done":
            entry["metrics"] |= {"path": PATH, "photos": [CANARY]}
            entry["curves"]["people"] = [person | {"identity": CANARY} for person in entry["curves"]["people"]]
        entry |= {"reason": f"{entry['reason']} {CANARY}", "run": PATH}
    folder = make_benchmark(tmp_path_factory.mktemp("benchmark"), rows)
    api.report(folder)
    return folder


@pytest.fixture(scope="module")
def page(benchmark: Path) -> Page:
    return Page((benchmark / "report.html").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "run")
    api.report(folder)
    return folder


@pytest.fixture
def one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw a single figure, which is enough for tests of tables and files."""
    drawn = {kind: {"key": "<svg/>", "one": "<svg/>"} if kind == "people" else {} for kind in FIGURES}
    monkeypatch.setattr("oneshui_hf.stages.report.draw_figures", lambda *_: drawn)


def test_page_loads_nothing_from_the_network(benchmark: Path, run: Path) -> None:
    for folder in (benchmark, run):
        html = (folder / "report.html").read_text()
        read = Page(html)
        assert "://" not in html
        assert "src=" not in html
        assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", html)
        assert "@import" not in html
        assert not {"link", "iframe", "object", "image"} & {tag for tag, _ in read.tags}
        [script] = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
        assert not re.search(r"fetch|XMLHttpRequest|import|WebSocket|location|\.open\b|innerHTML", script)
        [policy] = [str(attrs["content"]) for tag, attrs in read.tags if tag == "meta" and "http-equiv" in attrs]
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
        assert all((attrs.get("href") or "#").startswith("#") for _, attrs in read.tags)
        ids = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
        assert len(ids) == len(set(ids))
        assert {(attrs.get("href") or "#")[1:] for tag, attrs in read.tags if tag == "a"} <= set(ids)


def test_page_contains_no_personal_data(benchmark: Path, run: Path) -> None:
    files = [file for folder in (benchmark, run) for file in (folder / "report.html", *(folder / "report-figures").iterdir())]
    assert len(files) > 20
    for file in files:
        text = file.read_text() + file.name
        for word in ("canary", "/home", "tmp/", str(benchmark), "a" * 64):
            assert word not in text


def test_every_figure_is_in_the_page_and_in_a_file(benchmark: Path, page: Page) -> None:
    files = sorted((benchmark / "report-figures").iterdir())
    for file in files:
        ElementTree.parse(file)
    svgs = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(svgs) == len(files)
    assert all(attrs["aria-label"] and attrs["role"] == "img" for attrs in svgs)
    kinds = [re.sub(r"^1-synthetic-4-(\w+)-.*", r"\1", file.stem) for file in files]
    # one legend each; trade-off: two sets; people: 4 methods; losses and attacks: do nothing, oracle and 4 methods; cost: two panels
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"tradeoff": 3, "people": 5, "losses": 7, "attacks": 7, "cost": 3}


def test_report_is_deterministic(run: Path, tmp_path: Path) -> None:
    first = {file.name: file.read_bytes() for file in [run / "report.html", *(run / "report-figures").iterdir()]}
    result = api.report(run, output=str(tmp_path / "report.html"))
    assert sorted(result["figures"]) == sorted(map(str, (tmp_path / "report-figures").iterdir()))
    again = {file.name: file.read_bytes() for file in [tmp_path / "report.html", *(tmp_path / "report-figures").iterdir()]}
    assert again == first


@pytest.mark.usefixtures("one_figure")
def test_report_does_not_depend_on_the_names_of_row_files(tmp_path: Path) -> None:
    for name, rows in (("one", ROWS), ("other", ROWS[::-1])):
        api.report(make_benchmark(tmp_path / name, rows))
    assert (tmp_path / "one" / "report.html").read_bytes() == (tmp_path / "other" / "report.html").read_bytes()


def test_rows_have_the_same_order_as_in_all_tables(page: Page) -> None:
    labels = [" ".join(cells[0].split()) for cells in page.tables[0] if len(cells) > 1]
    order = ["Model", "do nothing", "noise floor", "oracle", "metaunlearn", "pgu 1 of 3 seeds", "ssd", "salun", "scrub"]
    assert labels == order
    assert page.row("salun")[1:] == ["failed"]


def test_headings_have_scopes_and_state_which_direction_is_better(page: Page) -> None:
    assert ("html", {"lang": "en"}) in page.tags
    assert all(attrs.get("scope") in ("col", "row", "rowgroup") for tag, attrs in page.tags if tag == "th")
    heads = [" ".join(cell.split()) for cell in page.tables[0][0]]
    assert heads[1:] == [
        "Retain mAP higher is better",
        "Forget mAP the oracle's value is ideal",
        "Test mAP higher is better",
        "ToW higher is better",
        "Gap closure 1 is ideal",
        "Strongest attack AUC 0.5 is ideal",
        "RMIA AUC 0.5 is ideal",
        "Relearning steps the oracle's value is ideal",
    ]


def test_numbers_are_means_over_seeds_with_student_intervals(page: Page) -> None:
    values = [entry["metrics"]["tow"] for entry in ROWS if entry["method"] == "metaunlearn"]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert page.row("metaunlearn")[4].split(MARK)[0].split()[0] == f"{np.mean(values):.1f}"
    assert page.row("metaunlearn")[4].endswith(f"{low:.1f} to {high:.1f}")


def test_single_seed_has_the_interval_over_identities(page: Page) -> None:
    expected = row("pgu", 0.5)["metrics"]
    assert page.row("pgu 1 of 3 seeds")[2].endswith(f"{expected['forget']['map'] - 3:.1f} to {expected['forget']['map'] + 3:.1f}")


def test_differences_within_the_noise_floor_are_marked(page: Page) -> None:
    columns = {"retain": 1, "forget": 2, "test": 3}
    floor = {"retain": 0.4, "forget": 1.3, "test": 0.5}
    marks = set()
    for label in ("metaunlearn", "ssd", "scrub", "oracle"):
        for name, column in columns.items():
            values = {m: [t["metrics"][name]["map"] for t in ROWS if t["method"] == m] for m in (label, "original")}
            within = abs(np.mean(np.subtract(values[label], values["original"]))) <= floor[name]
            assert (MARK in page.row(label)[column]) == within
            marks.add(bool(within))
    assert marks == {True, False}
    assert f"{MARK} marks a difference" in page.text
    assert MARK not in " ".join(page.row("do nothing") + page.row("noise floor"))
    assert page.row("noise floor")[1:7] == ["±0.4", "±1.3", "±0.5", "98.2", "±0.09", "0.530"]


def test_report_and_tables_contain_the_same_numbers(page: Page) -> None:
    rows = [*ROWS, failed("salun", "", seed=0), row("pgu", 0.5, seed=0), failed("pgu", "", seed=1)]
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown(summarise(rows)).splitlines() if line.startswith("|")]
    lines = [line for line in table[2:] if line[1]]  # without the headings of blocks
    assert len(lines) == 8
    for label, *cells in lines:
        name = label.strip("*").replace(" (0 of 3 seeds)", "").replace(" (", " ").replace(")", "")
        ours = [cell.split(" ")[0] + MARK * (MARK in cell) for cell in page.row(name)[1:]]
        assert ours == [cell.strip("*").split(" ")[0].strip(MARK) + MARK * (MARK in cell) for cell in cells][: len(ours)]


def test_attack_without_a_curve_is_named(tmp_path: Path, page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = row("ssd", 0.5)
    entry["metrics"]["attacks"] |= {"strongest": "u_lira", "u_lira": {"auc": 1.0, "auc_either_way": 1.0, "interval": None}}
    drawn = {kind: {} for kind in FIGURES} | {"attacks": {"key": "<svg/>", "one": "<svg/>"}}
    monkeypatch.setattr("oneshui_hf.stages.report.draw_figures", lambda *_: drawn)
    api.report(make_benchmark(tmp_path, [row("original", 0), entry]))
    assert "No curve is drawn for U-LiRA" in Page((tmp_path / "report.html").read_text()).text
    assert "No curve is drawn" not in page.text


def test_limits_of_the_sample_are_stated_once(page: Page, run: Path) -> None:
    assert page.text.count(SENTENCE) == 1
    assert Page((run / "report.html").read_text()).text.count(SENTENCE) == 1


@pytest.mark.usefixtures("one_figure")
def test_unfinished_relearning_counts_with_its_maximum_of_steps(tmp_path: Path) -> None:
    rows = [row("original", 0, seed=seed) for seed in (0, 1)] + [row("ssd", 0.5, seed=0), row("ssd", 1.5, seed=1)]
    api.report(make_benchmark(tmp_path, rows))
    page = Page((tmp_path / "report.html").read_text())
    assert page.row("ssd")[-1] == "≥ 31"  # 12 steps, and 50 that were not enough
    assert page.row("do nothing")[-1] == "12"  # two equal values have no interval
    assert page.row("do nothing", table=1)[4] == "80 chance 25 %"
    assert page.row("do nothing", table=1)[3] == "30"  # a fraction in the file


def test_report_of_a_run_includes_the_values_known_by_definition(run: Path) -> None:
    page = Page((run / "report.html").read_text())
    expected = metrics(3, 0.8)
    assert (
        page.row("metaunlearn")[2]
        == f"{expected['forget']['map']:.1f} {expected['forget']['map'] - 3:.1f} to {expected['forget']['map'] + 3:.1f}"
    )
    assert page.row("do nothing")[4:6] == ["-", "0.00"]
    assert page.row("oracle")[4:6] == ["100.0", "1.00"]
    assert "4 people of synthetic" in page.text
    assert "Seed 3. Unlearning took 1.5 seconds." in page.text
    names = {file.stem for file in (run / "report-figures").iterdir()}
    assert "1-synthetic-4-losses-01-before-the-original-model" in names
    assert "1-synthetic-4-losses-02-metaunlearn" in names


@pytest.mark.usefixtures("one_figure")
def test_run_with_the_weights_of_the_original_has_one_row_for_both(tmp_path: Path) -> None:
    report = {"method": "do-nothing", "reads": [], "split": {"forget_identities": 4}, "seconds": 1.5}
    folder = make_run(tmp_path / "run", 0.0, weights="a" * 64, report=report)
    api.report(folder)
    labels = [" ".join(cells[0].split()) for cells in Page((folder / "report.html").read_text()).tables[0]]
    assert [label for label in labels if "nothing" in label] == ["do-nothing unchanged: the original"]


@pytest.mark.usefixtures("one_figure")
@pytest.mark.parametrize(("kind", "words"), [("original", "No one has been forgotten"), ("oracle", "trained from scratch without")])
def test_report_names_the_kind_of_the_run(tmp_path: Path, kind: str, words: str) -> None:
    folder = make_run(tmp_path / "run", kind=kind)
    api.report(folder)
    assert words in Page((folder / "report.html").read_text()).text


def test_report_of_a_minimal_evaluation(tmp_path: Path) -> None:
    """No oracle, no references, one identity, no intervals: the results of `evaluate --run RUN` without other options."""
    folder = make_run(tmp_path / "run")
    measured, drawn = metrics(3, 0.8, people=1, score="accuracy"), curves(3, 0.8, people=1)
    measured |= {"tow": None, "gap_closure": None, "to_oracle": None, "probe": None, "relearning": None, "noise_floor": None}
    measured["intervals"] |= {"forget": None, "tow": None, "gap_closure": None}
    measured["attacks"] = {"strongest": "loss", "loss": measured["attacks"]["loss"] | {"auc_either_way": None, "interval": None}}
    drawn["people"] = [{"original": None, "model": 0.4, "oracle": None}]
    drawn["losses"]["before"] = None
    drawn["roc"] = {"loss": drawn["roc"]["loss"]}
    write_json(folder / "metrics.json", with_checksum(measured))
    write_json(folder / "curves.json", with_checksum(drawn))
    api.report(folder)
    page = Page((folder / "report.html").read_text())
    assert page.row("metaunlearn")[4:] == ["-", f"{measured['attacks']['loss']['auc']:.3f} loss"]  # gap closure is unknown
    assert "No noise floor was measured" in page.text
    assert "Retain accuracy" in " ".join(page.tables[0][0])


def test_names_are_escaped(tmp_path: Path) -> None:
    label = "<script>alert('x')</script> & \u0001\"more\""
    rows = [row("original", 0), row("x", 0.5, method=label), row("y", 0.6, method=r"C:\photos\Jane")]
    for entry in rows:
        entry |= {"dataset": "<b>data</b>"}
        entry["metrics"]["cannot_tell"] = ["<i>nothing</i>"]
    api.report(make_benchmark(tmp_path, rows))
    html = (tmp_path / "report.html").read_text()
    page = Page(html)
    assert html.count("<script>") == 1  # the page's own
    assert "b" not in {tag for tag, _ in page.tags}
    assert "<i>nothing</i>" in page.text
    assert "Jane" not in html
    assert page.row("a method")[5]
    for file in (tmp_path / "report-figures").iterdir():
        ElementTree.parse(file)


# Verdict, rows for comparison


def test_verdict_of_each_method_is_at_the_top(page: Page) -> None:
    before_tables = page.text.partition("Scores, forgetting and attacks")[0]
    [group] = summarise([*ROWS, failed("salun", "", seed=0), row("pgu", 0.5, seed=0), failed("pgu", "", seed=1)])
    for line in group.lines:
        assert (verdict(line, group) in before_tables) == (line.row in ("original", "method"))


def neighbours(folder: Path, **more: Any) -> Path:
    """An evaluated run with its evaluated original and oracle in the same folder."""
    source = make_run(folder / "original-ssd", parent={"run": str(folder / "original"), "weights": "a" * 64}, **more)
    for kind, name, strength, weights in (("original", "original", 0.0, "a"), ("oracle", "original-oracle", 1.0, "b")):
        make_run(folder / name, strength, kind=kind, weights=weights * 64, parent=None)
    return source


@pytest.mark.usefixtures("one_figure")
def test_report_of_a_run_takes_original_and_oracle_from_the_runs_next_to_it(tmp_path: Path) -> None:
    source = neighbours(tmp_path)
    api.report(source)
    page = Page((source / "report.html").read_text())
    for label, strength in (("do nothing", 0.0), ("metaunlearn", 0.8), ("oracle", 1.0)):
        expected = metrics(3, strength)
        assert [page.row(label)[column].split()[0].strip(MARK) for column in (1, 2, 3, 4)] == [
            f"{value:.1f}" for value in (*(expected[name]["map"] for name in ("retain", "forget", "test")), expected["tow"])
        ]
    assert "was not evaluated" not in page.text
    assert "was not evaluated" not in (source / "report.html").read_text()


@pytest.mark.usefixtures("one_figure")
@pytest.mark.parametrize(
    "spoil",
    [
        lambda oracle: (oracle / "metrics.json").unlink(),
        lambda oracle: (oracle / "curves.json").write_text("{"),
        lambda oracle: write_json(oracle / "metrics.json", with_checksum(metrics(3, 1.0, score="accuracy"))),
        lambda oracle: write_record(oracle, dataclasses.replace(Run.open(oracle).record, weights="c" * 64)),
    ],
    ids=["not evaluated", "damaged", "another score", "another model than it was compared with"],
)
def test_run_that_cannot_be_compared_leaves_a_row_of_known_values(tmp_path: Path, spoil: Any) -> None:
    source = neighbours(tmp_path)
    spoil(tmp_path / "original-oracle")
    api.report(source)
    page = Page((source / "report.html").read_text())
    assert page.row("oracle")[1:6] == ["-", "-", "-", "100.0", "1.00"]
    assert page.row("do nothing")[1].startswith(f"{metrics(3, 0.0)['retain']['map']:.1f}")
    assert "Where oracle has a dash, the model was not evaluated" in page.text


@pytest.mark.usefixtures("one_figure")
@pytest.mark.parametrize("name", ["original", "original-oracle"])
def test_report_of_original_or_oracle_has_each_model_once(tmp_path: Path, name: str) -> None:
    neighbours(tmp_path)
    write_record(
        tmp_path / "original-oracle",
        dataclasses.replace(Run.open(tmp_path / "original-oracle").record, parent={"run": str(tmp_path / "original"), "weights": "a" * 64}),
    )
    api.report(tmp_path / name)
    labels = [" ".join(cells[0].split()) for cells in Page((tmp_path / name / "report.html").read_text()).tables[0] if len(cells) > 1]
    assert labels == ["Model", "do nothing", "noise floor", "oracle"]


@pytest.mark.usefixtures("one_figure")
def test_unchanged_model_is_marked_and_has_one_row(tmp_path: Path) -> None:
    source = neighbours(tmp_path, weights="a" * 64)
    api.report(source)
    page = Page((source / "report.html").read_text())
    labels = [" ".join(cells[0].split()) for cells in page.tables[0] if len(cells) > 1]
    assert labels == ["Model", "noise floor", "oracle", "metaunlearn unchanged: the original"]
    assert "The model is unchanged: it is the original" in page.text
    other = make_benchmark(tmp_path / "benchmark", [row("original", 0), row("jit", 0), row("ssd", 0.5)])
    api.report(other)
    labels = [" ".join(cells[0].split()) for cells in Page((other / "report.html").read_text()).tables[0]]
    assert "jit unchanged: the original" in labels
    assert "ssd" in labels


# Difference of the two models, bystanders, collapse


@pytest.mark.usefixtures("one_figure")
def test_run_shows_the_difference_of_the_two_models_beside_that_of_the_oracle(tmp_path: Path) -> None:
    source = make_run(tmp_path / "run", 0.75)
    api.report(source)
    page = Page((source / "report.html").read_text())
    [table] = [number for number, cells in enumerate(page.tables) if cells[0][0].strip() == "Score"]
    heads = [" ".join(cell.split()) for cell in page.tables[table][0]]
    assert heads[5] == "Owner rank 1 to 51, chance 26"
    rows = [[" ".join(cell.split()) for cell in cells] for cells in page.tables[table] if len(cells) > 1][1:]
    assert [cells[0] for cells in rows] == ["loss rise", "distance of the logits", "weight difference"] * 2
    assert rows[0][5:] == ["5.8 4.2 to 7.2", "6.8", "17", "17"]
    assert rows[3][5:] == ["13.5 12.0 to 15.0", "14.5", "7", "7"]
    assert "Ranks are means over 4 forgotten people" in page.text
    assert "Range attack on people, without the original, against 10 unseen identities: AUC " in page.text
    assert page.row("oracle", 1)[-4:] == ["-", "13.5 12.0 to 15.0 of 51", "14.0 12.5 to 15.5 of 51", "0.031"]


@pytest.mark.usefixtures("one_figure")
def test_run_shows_bystanders_and_groups_that_differ(tmp_path: Path) -> None:
    source = make_run(tmp_path / "run", 1.0)
    api.report(source)
    page = Page((source / "report.html").read_text())
    [table] = [number for number, cells in enumerate(page.tables) if "Loss change, mean" in cells[0][2]]
    assert page.row("this model", table)[1:] == ["40", "0.010", "0.020", "0.062", "0.150", "12", "0.010", "0.062"]
    assert page.row("oracle", table)[1:5] == ["40", "0.005", "0.020", "0.031"]
    assert page.row("Male", table + 1)[1:] == ["15", "25", "0.041 0.011 to 0.071", "0.002", "with it lose more"]
    assert page.row("label 39", table + 1)[5] == "no difference shown"
    assert "2 groups were compared, the ones with the largest differences are listed; 1 differs by" in page.text
    assert "3 were left out: fewer than five people on a side." in page.text


@pytest.mark.usefixtures("one_figure")
def test_metrics_without_these_measurements_are_still_reported(tmp_path: Path) -> None:
    source = make_run(tmp_path / "run")
    measured = json.loads((source / "metrics.json").read_text())
    older = {
        name: value for name, value in measured.items() if name not in ("difference", "person_level", "bystanders", "collapse", "content")
    }
    for missing in (older, older | dict.fromkeys(("difference", "person_level", "bystanders", "collapse"))):
        write_json(source / "metrics.json", with_checksum(missing))
        api.report(source, overwrite=True)
        page = Page((source / "report.html").read_text())
        assert len(page.tables) == 2
        assert "Bystanders" not in page.text
        assert "Difference of the two models" not in page.text
        assert "owner rank" not in page.text.lower()


@pytest.mark.usefixtures("one_figure")
def test_collapsed_model_is_marked_and_the_mark_is_explained(tmp_path: Path) -> None:
    rows = [row("original", 0), row("oracle", 1), row("ssd", 1.0), row("pgu", 2.0)]  # retain and test of the last drop by 8 points
    api.report(make_benchmark(tmp_path, rows))
    page = Page((tmp_path / "report.html").read_text())
    labels = [[" ".join(cells[0].split()) for cells in table if len(cells) > 1] for table in page.tables]
    assert len(labels) == 3
    assert all("pgu ‡" in of_table and "ssd" in of_table for of_table in labels)
    assert page.text.count("‡: collapsed. The retain or test score") == 3  # under each table
    api.report(make_benchmark(tmp_path / "other", rows[:3]))
    assert "‡" not in (tmp_path / "other" / "report.html").read_text()


@pytest.mark.usefixtures("one_figure")
@pytest.mark.parametrize(("stored", "score", "is_noted"), [(2, "map", True), (3, "map", False), (2, "accuracy", False)])
def test_map_of_an_older_version_is_noted(tmp_path: Path, stored: int, score: str, is_noted: bool) -> None:
    rows = [row(name, strength, metrics=metrics(0, strength, score=score)) for name, strength in (("original", 0), ("x", 0.5))]
    for entry in rows:
        entry["metrics"]["format"] = stored
    api.report(make_benchmark(tmp_path, rows))
    text = Page((tmp_path / "report.html").read_text()).text
    assert text.count("mAP was measured by an older version") == is_noted
    assert SENTENCE in text


@pytest.mark.usefixtures("one_figure")
def test_rows_of_an_earlier_grid_are_not_reported(tmp_path: Path) -> None:
    make_benchmark(tmp_path, [row("original", 0), row("ssd", 0.5), row("pgu", 0.7), row("ssd", 0.9)])
    write_json(tmp_path / "benchmark.json", {"name": "mine", "rows": ["000", "002", "003", "not yet there"]})
    api.report(tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert page.row("ssd")[5].startswith(f"{row('ssd', 0.9)['metrics']['gap_closure']:.2f}")


# Invalid input


def overwrite(file: Path, text: str) -> None:
    file.write_text(text)


WRONG = {
    "missing folder": (lambda p: p / "nowhere", "does not exist; name a run"),
    "neither run nor benchmark": (lambda p: p, "is neither a run"),
    "no rows": (lambda p: (p / "rows").mkdir() or p, "contains no rows yet"),
    "rows that failed": (lambda p: make_benchmark(p, [failed("ssd", "why")]), "Every row"),
    "a row twice": (lambda p: make_benchmark(p, [row("ssd", 0.5), row("ssd", 0.6)]), "is a second row of"),
    "a row that is a list": (lambda p: overwrite(make_benchmark(p, ROWS[:2]) / "rows/001.json", "[]") or p, "contains no JSON object"),
    "a row that is no JSON": (lambda p: overwrite(make_benchmark(p, ROWS[:2]) / "rows/001.json", "{") or p, "is not JSON"),
    "not evaluated": (lambda p: (make_run(p / "r") / "metrics.json").unlink() or p / "r", "run `oneshui evaluate --run"),
    "no curves": (lambda p: (make_run(p / "r") / "curves.json").unlink() or p / "r", "run `oneshui evaluate --run"),
    "curves of another evaluation": (
        lambda p: write_json(make_run(p / "r") / "curves.json", with_checksum({"key": "x"})) or p / "r",
        "different evaluations",
    ),
    "metrics of an older version": (
        lambda p: write_json(make_run(p / "r") / "metrics.json", with_checksum({"tow": 1})) or p / "r",
        "older version",
    ),
    "metrics without a checksum": (
        lambda p: write_json(make_run(p / "r") / "metrics.json", {"tow": 1}) or p / "r",
        "has changed since it was written, or is of an earlier version: run `oneshui evaluate",
    ),
    "a row without a checksum": (
        lambda p: write_json(make_benchmark(p, ROWS[:2]) / "rows/001.json", row("ssd", 0.5)) or p,
        "001.json has changed since it was written",
    ),
    "metrics that are no JSON": (lambda p: overwrite(make_run(p / "r") / "metrics.json", "{") or p / "r", "is not JSON"),
}


@pytest.mark.parametrize("case", WRONG)
def test_invalid_source_is_an_error_and_writes_nothing(oneshui: Oneshui, tmp_path: Path, case: str) -> None:
    make, words = WRONG[case]
    source = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, _, err = oneshui("report", source)
    assert code in (1, 2)
    assert words in sentence(err)
    assert sorted(tmp_path.rglob("*")) == before


BROKEN: list[tuple[str, Any]] = [
    ("row", "person"), ("state", None), ("forget", "4"), ("seed", 0.5), ("dataset", None), ("method", 3), ("reads", 5), ("cost", [1]),
    ("metrics", None), ("metrics.score", "f1"), ("metrics.tow", "96"), ("metrics.retain", None), ("metrics.forget.images", None),
    ("metrics.intervals.tow", [1]), ("metrics.attacks.strongest", "another"), ("metrics.cannot_tell", [1]), ("metrics.tow", True),
    ("metrics.noise_floor", [1]), ("metrics.relearning", {}), ("metrics.tow", 1e31),
    ("metrics.collapse.collapsed", "yes"), ("metrics.collapse.retain", 3), ("metrics.difference.outputs.loss_rise.owner.rank", "1"),
    ("metrics.person_level.interval", [1]), ("metrics.bystanders.retain.loss_change.mean", []), ("metrics.bystanders.groups.retain", [1]),
    ("metrics.bystanders.groups.retain", [{"label": 1, "name": 5}]),
    ("curves", [1]), ("curves.people", [3]), ("curves.losses.edges", [0, 1]), ("curves.losses.after.test", [None] * 24),
    ("curves.losses.after.test", [-1] * 24), ("curves.roc.loss.tpr", [0, 1]), ("curves.roc.loss.smallest_fpr", 0),
    ("curves.roc.loss.fpr", ["0"]),
]  # fmt: skip


@pytest.mark.usefixtures("one_figure")
@pytest.mark.parametrize(("key", "value"), BROKEN)
def test_damaged_row_is_an_error_that_names_the_file(oneshui: Oneshui, tmp_path: Path, key: str, value: Any) -> None:
    entry = json.loads(json.dumps(row("ssd", 0.5)))
    *parents, last = key.split(".")
    part = entry
    for parent in parents:
        part = part[parent]
    part[last] = value
    make_benchmark(tmp_path, [row("original", 0)])
    write_json(tmp_path / "rows" / "001.json", with_checksum(entry))
    before = sorted(tmp_path.rglob("*"))
    code, _, err = oneshui("report", tmp_path)
    if value == 1e31:  # too large: treated as unknown
        assert code == 0
        return
    assert code == 1
    assert "001.json is damaged" in sentence(err)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("one_figure")
def test_existing_report_is_only_replaced_with_overwrite(oneshui: Oneshui, tmp_path: Path) -> None:
    source = make_run(tmp_path / "run")
    assert oneshui("report", source)[0] == 0
    before = (source / "report.html").read_bytes()
    code, _, err = oneshui("report", source)
    assert code == 2
    assert "replace it with --overwrite" in sentence(err)
    (source / "report.html").write_text("old")
    assert oneshui("report", source, "--overwrite")[0] == 0
    assert (source / "report.html").read_bytes() == before
    (source / "report-figures" / "mine.txt").write_text("mine")
    code, _, err = oneshui("report", source, "--overwrite")
    assert code == 2
    assert "contains other files than figures" in sentence(err)
    assert (source / "report-figures" / "mine.txt").exists()


def test_invalid_output_is_an_error(oneshui: Oneshui, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_run(tmp_path / "run")
    for words, output in {"does not exist; create it": tmp_path / "nowhere" / "r.html", "is a folder": source}.items():
        code, _, err = oneshui("report", source, "--output", output)
        assert code == 2
        assert words in sentence(err)
    monkeypatch.setattr(os, "access", lambda *_: False)
    code, _, err = oneshui("report", source)
    assert code == 2
    assert "no permission to write" in sentence(err)


@pytest.mark.usefixtures("one_figure")
def test_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_run(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("oneshui_hf.stages.report.write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        api.report(source)
    assert sorted(tmp_path.rglob("*")) == before


HOLD = """
import sys
from pathlib import Path
from oneshui_hf.files import lock_output
with lock_output(Path(sys.argv[1])):
    print("ready", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.usefixtures("one_figure")
def test_a_second_report_into_the_same_file_ends_with_one_sentence(oneshui: Oneshui, tmp_path: Path) -> None:
    source = make_run(tmp_path / "run")
    words = [sys.executable, "-c", HOLD, str(source / "report.html")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "ready\n"
        code, _, err = oneshui("report", source)
        assert (code, "Another process is writing" in sentence(err)) == (1, True)
        assert not list(source.glob("report*"))
        other.communicate("\n")
    assert oneshui("report", source)[0] == 0
    assert not [path.name for path in source.iterdir() if path.name.startswith(".")]


@pytest.mark.usefixtures("one_figure")
def test_a_report_that_another_process_wrote_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_run(tmp_path / "run")
    monkeypatch.setattr("oneshui_hf.results.figures.require_matplotlib", lambda: (source / "report.html").write_text("theirs"))
    with pytest.raises(UsageError, match="exists"):
        api.report(source)
    assert (source / "report.html").read_text() == "theirs"


@pytest.mark.usefixtures("one_figure")
def test_command_prints_the_paths(oneshui: Oneshui, tmp_path: Path) -> None:
    source = make_run(tmp_path / "run")
    code, out, err = oneshui("report", source, "--output", tmp_path / "mine.html")
    assert code == 0, err
    assert f"Report: {tmp_path / 'mine.html'}" in out
    assert "mine-figures (" in out
    code, out, _ = oneshui("report", source, "--output", tmp_path / "mine.html", "--overwrite", "--json")
    assert json.loads(out)["report"] == str(tmp_path / "mine.html")


# Photos


@pytest.mark.usefixtures("one_figure")
def test_photos_are_only_shown_on_request_and_with_a_warning(tmp_path: Path, oneshui: Oneshui) -> None:
    import torch
    from PIL import Image

    from oneshui_hf.stages.distributed import make_accelerator
    from oneshui_hf.stages.run_data import open_data

    run = api.train(dataset="synthetic", forget=2, epochs=1, output_dir=str(tmp_path / "run"), keep="last")
    write_json(run.path / "metrics.json", with_checksum(metrics(0, 0.0, people=2)))
    write_json(run.path / "curves.json", with_checksum(curves(0, 0.0, people=2)))
    code, _, err = oneshui("report", run.path, "--with-images")
    assert code == 0, err
    html = (run.path / "report-private.html").read_text()
    assert (run.path / "report-private-figures").is_dir()
    assert not (run.path / "report.html").exists()
    page = Page(html)
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert all(attrs["alt"] for attrs in images)
    assert "Do not pass it on" in page.text
    support = open_data(run, make_accelerator()).sets["support"]
    expected = support.raw_pixels(torch.arange(len(support))).permute(0, 2, 3, 1).numpy()
    sources = [str(attrs["src"]).removeprefix("data:image/png;base64,") for attrs in images]
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(source)))) for source in sources]
    assert len(shown) == 2
    np.testing.assert_array_equal(shown, expected)
    api.report(run)
    plain = (run.path / "report.html").read_text()
    assert "<img" not in plain
    assert "Do not pass it on" not in Page(plain).text


def test_photos_of_a_benchmark_are_an_error(oneshui: Oneshui, benchmark: Path, run: Path) -> None:
    code, _, err = oneshui("report", benchmark, "--with-images")
    assert code == 2
    assert "name a run with --with-images" in sentence(err)
    code, _, err = oneshui("report", run, "--data-dir", "somewhere", "--overwrite")
    assert code == 2
    assert "--with-images" in sentence(err)

"""Text of others at every place where it is printed or written: no control character arrives, and one line stays one line."""

from __future__ import annotations

import csv
import io
import json
import sys
import unicodedata
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from oneshui_hf.cli import show, show_data
from oneshui_hf.cli.errors import guarded
from oneshui_hf.cli.printing import print_json, print_line, table
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.reporting import ConsoleReporter
from oneshui_hf.results.aggregate import summarise
from oneshui_hf.results.tables import costs_csv, latex, markdown, terminal_tables, tidy_csv
from support.report_rows import metrics

HOSTILE = {
    "clear screen": "a\x1b[2J\x1b]0;title\x07b",
    "new line": "a\nError: b\r\nc",
    "C1 and DEL": "a\x9b31m\x85\x7fb",
    "NUL": "a\x00b",
    "right to left": "\u202egnp.exe\u2066\u2069\u061c",
    "no width": "a\u200b\u200c\u200d\u2060\ufeff\xadb",
    "separators": "a\u2028b\u2029c",
    "tags": "a\U000e0041\U000e007fb",
    "half a character": "a\udcff\ud800b",
    "no character": "a\ufffe\U0010ffffb",
    "markup": "[red]a[/red] :smile: <script>alert(1)</script> {{ 7 * 7 }} | `x` \\textbf{y} $z$ % # --- 'q' \"r\"",
    "front matter": "---\nlicense: mit\n---\n# a",
}
ORDINARY = "é 中文 👩\u200d👩\u200d👧"


def unsafe(text: str) -> set[str]:
    text = text.replace(ORDINARY, "")
    return {character for character in text if character != "\n" and unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _rows(text: str) -> list[dict[str, Any]]:
    about = {"dataset": text, "forget": 4, "seed": 0, "reads": ["support", text], "state": "done", "reason": None, "cost": {"apply_s": 0.5}}
    kinds = [("original", "do nothing", 0.0), ("oracle", "oracle", 1.0), ("method", text, 0.5)]
    return [about | {"row": kind, "method": label, "metrics": metrics(0, strength)} for kind, label, strength in kinds]


def _error(text: str) -> None:
    def fail() -> None:
        raise OneshuiError(f"{text} is wrong.")

    assert guarded(fail) == 1


def _run(text: str) -> Any:
    record = SimpleNamespace(kind="unlearned", report={"photos": 1, "method": text, "seconds": 1, "labels": text})
    return SimpleNamespace(path=text, record=record)


def _info(text: str) -> dict[str, Any]:
    return {"run": text, "method": text, "kind": "original", "dataset": text, "seed": 0, "tow": None, "state": text, "changed": text}


def _finding(text: str) -> dict[str, Any]:
    findings = {"unreadable": [{"photo": text, "reason": text}], "tiny": [text, text], "exact_duplicates": [{"photos": [text, text]}]}
    counts = {"data": text, "images": 1, "identities": 1, "images_per_identity": {"min": 1, "max": 1, "median": 1}}
    return counts | findings | {"class_balance": {text: 0.5}, "notes": [text], "breaks": [text]}


STREAMS: dict[str, Callable[[str], Any]] = {
    "an error": _error,
    "a note": lambda text: ConsoleReporter().note(text),
    "a warning": lambda text: ConsoleReporter().warn(text),
    "a line": print_line,
    "a table": lambda text: table([text, "b"], [[text, text]], text),
    "a new run": lambda text: show.run(_run(text)),
    "runs": lambda text: show.runs([_info(text), {"run": text, "error": text}]),
    "predictions": lambda text: show.predictions([{"image": text, "predictions": [{"label": text, "probability": 0.5}]}]),
    "plugins": lambda text: show.plugins(
        [
            {"name": text, "from": text, "error": text},
            dict.fromkeys(("name", "from", "summary", "needs"), text) | {"situation": "photo alone"},
        ]
    ),
    "a method": lambda text: show.method(
        dict.fromkeys(("name", "from", "summary", "paper", "needs", "situation"), text) | {"options": [], "presets": [text]}
    ),
    "a link": show.link,
    "findings": lambda text: show_data.check(_finding(text)),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("stream", STREAMS)
def test_printed_text_is_safe(capsys: pytest.CaptureFixture[str], stream: str, name: str) -> None:
    STREAMS[stream]("x")
    lines = sum(text.count("\n") for text in capsys.readouterr())
    STREAMS[stream](HOSTILE[name])
    out, err = capsys.readouterr()
    assert not unsafe(out + err)
    if stream not in ("a table", "runs", "findings"):  # cells are wrapped
        assert (out + err).count("\n") == lines
    assert not [line for line in (out + err).splitlines() if line.startswith("Error: b")]
    STREAMS[stream](ORDINARY)
    assert ORDINARY in "".join(capsys.readouterr())


@pytest.mark.parametrize("name", HOSTILE)
def test_progress_and_questions_are_safe(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import typer

    asked: list[str] = []
    stream = Terminal()
    monkeypatch.setattr(typer, "confirm", lambda question, **_: bool(asked.append(question)) or True)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setenv("TERM", "dumb")  # without colours and a moving cursor
    reporter = ConsoleReporter()
    reporter.info(HOSTILE[name])
    assert list(reporter.track([1], HOSTILE[name])) == [1]
    assert reporter.confirm(HOSTILE[name])
    assert not unsafe(stream.getvalue() + "".join(asked))
    assert "\n" not in "".join(asked)


@pytest.mark.parametrize("name", HOSTILE)
def test_json_is_safe_and_keeps_its_values(capsys: pytest.CaptureFixture[str], name: str) -> None:
    value = {HOSTILE[name]: [HOSTILE[name]], ORDINARY: ORDINARY}
    print_json(value)
    out = capsys.readouterr().out
    assert not unsafe(out)
    assert json.loads(out) == value
    assert ORDINARY in out


@pytest.mark.parametrize("name", HOSTILE)
def test_tables_are_safe(name: str) -> None:
    rows, plain = _rows(HOSTILE[name]), _rows("x")
    for write in (tidy_csv, costs_csv):
        text = write(rows)
        assert not unsafe(text)
        assert [len(line) for line in csv.reader(io.StringIO(text))] == [len(line) for line in csv.reader(io.StringIO(write(plain)))]
    for write_groups in (markdown, latex):
        text, groups = write_groups(summarise(rows)), summarise(plain)
        assert not unsafe(text)
        assert text.count("\n") == write_groups(groups).count("\n")
        assert "<script>" not in text.replace("\\<script\\>", "")
    assert [len(found["rows"]) for found in terminal_tables(summarise(rows))] == [4]
    if name == "markup":
        assert r"\textbackslash{}textbf\{y\} \$z\$ \% \#" in latex(summarise(rows))
        assert r"\<script\>" in markdown(summarise(rows))


@pytest.mark.parametrize("formula", ["=1+1", "+1", "-1", "@SUM(A1)"])
def test_a_name_is_no_formula_in_a_spreadsheet(formula: str) -> None:
    lines = list(csv.DictReader(io.StringIO(tidy_csv(_rows(formula)))))
    assert {line["dataset"] for line in lines} == {f"'{formula}"}
    assert f"'{formula}" in {line["method"] for line in lines}
    assert not [line for line in lines if line["value"].startswith("'")]
    negative = _rows("x")
    negative[2]["metrics"]["gap_closure"] = -0.25
    assert "gap_closure,-0.25," in tidy_csv(negative)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_report_is_safe(tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    from xml.dom.minidom import parseString

    from oneshui_hf import api
    from oneshui_hf.runs import dump_json, with_checksum
    from support.report_rows import curves

    (tmp_path / "rows").mkdir()
    text = HOSTILE[name].encode(errors="replace").decode().replace("\0", "")  # JSON files with NUL or half characters are refused
    for number, row in enumerate(_rows(text)):
        row["curves"] = curves(0, 0.5)
        (tmp_path / "rows" / f"{number}.json").write_bytes(dump_json(with_checksum(row)))
    result = api.report(tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert not unsafe(html)
    script = files("oneshui_hf.cards").joinpath("report.js").read_text()
    assert html.count("<script") == 1, "that of the page alone"
    assert f"<script>{script.strip()}" in html
    for figure in result["figures"]:
        svg = Path(figure).read_text()
        assert not unsafe(svg)
        assert not parseString(svg).getElementsByTagName("script")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_data_card_is_safe(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from oneshui_hf.card import data_card

    monkeypatch.setattr("oneshui_hf.data.check.class_balance", lambda faces: {faces.label: 0.5})
    monkeypatch.setattr("oneshui_hf.data.check.image_count_statistics", lambda faces: {"min": 1, "max": 1, "median": 1})

    class FaceSet(SimpleNamespace):
        def __len__(self) -> int:
            return 1

    def card(label: str) -> str:
        faces: Any = FaceSet(label=label, people=["a"], task=SimpleNamespace(kind="multi_label"))
        return data_card(faces, "user/name", names_kept=False, left_out=0)

    text = card(HOSTILE[name])
    assert not unsafe(text)
    assert text.count("\n") == card("x").count("\n")
    assert yaml.safe_load(text.split("---\n")[1])["pretty_name"] == "name"
    assert "<script>" not in text.replace("\\<script\\>", "")
    assert f"| {ORDINARY} |" in card(ORDINARY)


@pytest.mark.parametrize("name", HOSTILE)
def test_arguments_are_safe(oneshui: Any, name: str) -> None:
    for words in (
        ["show", HOSTILE[name]],
        ["methods", "show", HOSTILE[name]],
        [HOSTILE[name]],
        ["runs", "x", HOSTILE[name]],
        ["runs", f"--{HOSTILE[name]}"],
    ):
        code, out, err = oneshui(*words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("Error: ")
        assert not unsafe(err)


def test_a_long_message_keeps_its_beginning_and_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise UsageError(f"There is no run at {'x' * 10_000}; name another.")

    assert guarded(fail) == 2
    err = capsys.readouterr().err
    assert len(err) < 600
    assert err.startswith("Error: There is no run at xxx")
    assert err.endswith("xxx; name another.\n")


def test_folder_names_are_completed_only_if_they_are_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from oneshui_hf.cli.commands import run_names

    monkeypatch.setattr("oneshui_hf.cli.commands.RUNS", tmp_path)
    for name in ("good", "ba\x1b[31md"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "oneshui.json").write_text("{}")
    assert run_names(str(tmp_path)) == [str(tmp_path / "good")]

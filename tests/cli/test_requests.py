"""The commands of the request desk from end to end, and what they print."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import oneshui_hf
from oneshui_hf.cli import show_desk
from oneshui_hf.data.split import load_split
from oneshui_hf.runs import SPLIT
from support.commands import Oneshui, sentence
from support.faces import portrait


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "original"
    oneshui_hf.train(dataset="synthetic", forget=2, epochs=1, output_dir=str(folder))
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run in the working folder, in which there is also a photo."""
    monkeypatch.chdir(tmp_path)
    portrait(1, 1).save("face.png")
    return Path(shutil.copytree(trained, "original"))


def test_a_request_from_receipt_to_erasure(oneshui: Oneshui, run: Path) -> None:
    name = sorted(load_split(run / SPLIT).people["train"])[0]
    code, out, err = oneshui("requests", "receive", "face.png", "--identity", name, "--channel", "mail")
    assert (code, err) == (0, "")
    today = datetime.now(UTC).date()
    assert out.startswith(f"Request R-000001, received {today}, due ")
    code, out, err = oneshui("requests", "identify", "R-000001", "--run", run)
    assert (code, err) == (0, "")
    assert "by name. The name is in the training set" in out
    assert name not in out  # which is no terminal
    code, out, _ = oneshui("requests", "identify", "R-000001", "--run", run, "--json")
    assert "identity" not in json.loads(out)
    words = ["requests", "apply", "--run", run, "--method", "do-nothing"]
    unknown = "What the batch costs the others is not known: the method prepares nothing, so no requests were simulated.\n"
    code, out, err = oneshui(*words, "--dry-run")
    assert (code, err) == (0, unknown)
    assert "Batch 1 would apply do-nothing to R-000001 and write original-batch1. Nothing was changed." in out
    code, out, err = oneshui(*words)
    warning = "Warning: R-000001 is unlike all photos that the model was tried on, and may show no face"  # it is a colour gradient
    assert (code, err.startswith(unknown + warning)) == (0, True)
    assert "R-000001: Photo: loss " in out
    assert "90 % of photos of unseen identities have " in out
    assert "it looks like an unseen identity now: " in out
    head = out.split()[-1]

    code, out, _ = oneshui("verify", "requests/ledger.jsonl", "--run", "original-batch1", "--anchor", head)
    assert code == 0
    assert "The ledger holds." in out
    assert "Not checked" not in out
    code, out, err = oneshui("verify", "requests/receipts/R-000001.json", "--run", run, "--json")
    assert code == 0  # nothing was done, so the model is the same
    assert json.loads(out)["problems"] == []

    assert oneshui("requests", "serve", "--run", "original-batch1")[1] == "In service: original-batch1, for R-000001.\n"
    code, out, _ = oneshui("requests", "answer", "R-000001", "--dry-run")
    assert "# Your request of" in out
    assert "Recorded" not in out
    code, out, _ = oneshui("requests", "answer", "R-000001")
    assert "Recorded: requests/letters/R-000001.md." in out
    assert oneshui("requests", "erase", "R-000001")[1] == "Request R-000001 is answered (erased).\n"
    code, out, _ = oneshui("requests", "list", "--json")
    assert [row["state"] for row in json.loads(out)] == ["answered"]

    ledger = Path("requests/ledger.jsonl")
    data = ledger.read_bytes()
    ledger.write_bytes(data[:-90] + bytes([data[-90] ^ 1]) + data[-89:])
    code, out, err = oneshui("verify", ledger)
    assert code == 1
    assert out.startswith(f"Problem: {ledger}, line 10 ")
    assert sentence(err).startswith("Error: The ledger does not hold: 1 problem, listed above.")


def test_refusals_extensions_and_withdrawals_print_the_state(oneshui: Oneshui, run: Path) -> None:
    for _ in range(2):
        oneshui("requests", "receive", "face.png")
    out = oneshui("requests", "extend", "R-000001", "--reason", "The number of requests.")[1]
    assert out.startswith("Request R-000001 is received, due ")
    assert out.endswith(" days left) (extended).\n")
    out = oneshui("requests", "refuse", "R-000001", "--reason", "The identity was not shown.")[1]
    assert out.startswith("Request R-000001 is refused, due ")
    assert oneshui("requests", "withdraw", "R-000002")[1] == "Request R-000002 is withdrawn.\n"
    code, _, err = oneshui("requests", "withdraw", "R-000001")
    assert code == 2
    assert sentence(err) == "Error: R-000001 is refused, and only a request that is received or identified can be withdrawn."
    code, _, err = oneshui("requests", "apply", "--run", run, "--method", "do-nothing")
    assert (code, "No request is identified" in sentence(err)) == (2, True)
    code, _, err = oneshui("requests", "refuse", "R-000001")
    assert (code, sentence(err)) == (2, "Error: requests refuse needs --reason.")
    code, _, err = oneshui("requests", "apply")
    assert (code, sentence(err)) == (2, "Error: requests apply needs --run.")


def test_overdue_requests_are_marked_and_red_on_a_terminal(oneshui: Oneshui, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    day = (datetime.now(UTC) - timedelta(days=40)).date()
    oneshui("requests", "receive", "face.png", "--received", day)
    oneshui("requests", "receive", "face.png")
    out = oneshui("requests", "list")[1]
    (overdue,) = [line for line in out.splitlines() if "R-000001" in line]
    assert overdue.split()[-1] == "overdue"
    assert "\x1b" not in out
    rows = oneshui("requests", "list", "--due-within", "0", "--json")[1]
    assert [row["request"] for row in json.loads(rows)] == ["R-000001"]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = oneshui("requests", "list")[1]
    red = {id: "\x1b[31m" in line for line in out.splitlines() for id in ("R-000001", "R-000002") if id in line}
    assert red == {"R-000001": True, "R-000002": False}


def test_the_name_is_printed_on_a_terminal_only(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    result: dict[str, Any] = {"request": "R-000001", "identity": "Ada", "found_by": "name", "basis": "It is.", "match": None}
    show_desk.identified(result)
    assert "Ada" not in capsys.readouterr().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    show_desk.identified(result)
    assert "identity Ada, by name" in capsys.readouterr().out


def test_unlearn_prints_the_photo_before_and_after(oneshui: Oneshui, run: Path) -> None:
    code, out, _ = oneshui("unlearn", run, "--method", "do-nothing", "--image", "face.png")
    assert code == 0
    assert "Photo: loss " in out
    assert " before, " in out
    report = json.loads(oneshui("show", "original-do-nothing", "--json")[1])
    assert report["request"]["method"] == "do-nothing"
    code, out, _ = oneshui("unlearn", run, "--method", "do-nothing", "--image", "face.png", "--output-dir", "two", "--json")
    ((before, after),) = [(row["loss_before"], row["loss_after"]) for row in json.loads(out)["support"]]
    assert before == after == json.loads(out)["report"]["support_loss"]["after"][0]

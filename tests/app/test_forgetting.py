"""Forgetting on the page: the records of the request desk, as its commands write them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import oneshui_hf
from oneshui_hf.app.choices import Choice, require_choice
from oneshui_hf.app.forgetting import request_rows
from oneshui_hf.app.messages import CollectingReporter
from oneshui_hf.app.photos import Photo
from oneshui_hf.app.workbench import Workbench
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.runs import Run
from oneshui_hf.stages.app_options import AppOptions

METHOD = "gradient-ascent"


@pytest.fixture
def bench(built: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    monkeypatch.setenv("ONESHUI_VAULT", str(tmp_path / "vault"))
    run = Run.open(shutil.copytree(built.path, tmp_path / "runs" / "original"))
    return Workbench(run, AppOptions(run=str(run.path), desk=str(tmp_path / "desk")), CollectingReporter())


def test_a_request_is_received_applied_served_and_answered(bench: Workbench, photo_bytes: Callable[[int], bytes]) -> None:
    original, photo = bench.run, Photo.of(photo_bytes(1))
    assert request_rows(bench.desk) == []
    reporter = CollectingReporter()
    found = bench.forget(photo, require_choice(bench.choices, METHOD), None, checked=True, reporter=reporter)
    assert found.request == "R-000001"
    assert (bench.run.path, found.run.path.name) == (original.path, "original-batch1")
    assert found.receipt == (bench.desk.folder / "receipts" / "R-000001.json").read_bytes()
    assert found.card is not None
    assert "unlearned" in found.card
    assert [row["state"] for row in request_rows(bench.desk)] == ["verified"]
    letter = bench.serve_and_answer(found, reporter)
    assert letter == (bench.desk.folder / "letters" / "R-000001.md").read_text()
    assert bench.run.path == found.run.path
    assert [row["state"] for row in request_rows(bench.desk)] == ["answered"]
    assert oneshui_hf.verify(bench.desk.ledger.file, run=str(found.run.path))["problems"] == []
    left = [file.name for file in found.run.path.parent.iterdir()]
    assert sorted(left) == ["original", "original-batch1"]


def test_nothing_is_recorded_before_the_photo_was_checked(bench: Workbench, photo_bytes: Callable[[int], bytes]) -> None:
    with pytest.raises(UsageError, match="State first that you have checked"):
        bench.forget(Photo.of(photo_bytes(1)), require_choice(bench.choices, METHOD), None, checked=False, reporter=CollectingReporter())
    assert not bench.desk.folder.exists()


def test_a_person_who_is_not_known_is_one_sentence_and_the_request_stays(bench: Workbench, photo_bytes: Callable[[int], bytes]) -> None:
    choice = Choice("forget-keys", prepared=True, needs_identity=True, sentence="")
    with pytest.raises(UsageError, match=r"has enrolled no identity.* Request R-000001 is recorded as received; continue or withdraw it"):
        bench.forget(Photo.of(photo_bytes(1)), choice, None, checked=True, reporter=CollectingReporter())
    with pytest.raises(OneshuiError, match="Request R-000002 is recorded as identified"):
        bench.forget(Photo.of(photo_bytes(1)), choice, "ada", checked=True, reporter=CollectingReporter())
    assert [row["state"] for row in request_rows(bench.desk)] == ["received", "identified"]
    assert not list(bench.run.path.parent.glob("*batch*"))

"""Letters: what they state for each outcome, and that they name no one."""

from __future__ import annotations

from pathlib import Path

import pytest

from oneshui_hf.desk.letter import TESTS
from oneshui_hf.errors import UsageError
from support.desk import NAME, apply, full_desk, identify, later, new_desk, receive, serve


def test_the_letter_of_a_served_request(tmp_path: Path) -> None:
    desk = new_desk(tmp_path)
    ids = [receive(desk), receive(desk)]
    for id in ids:
        identify(desk, id)
    apply(desk, ids)
    serve(desk, ids[0])
    letter = desk.letter(ids[0], later(4))
    assert "Your request of 2026-11-03 (our reference R-000001)" in letter
    assert "On 2026-11-05 we made a new version" in letter
    assert "Since 2026-11-06 the new version is in use" in letter
    assert "together with the requests of 1 other person." in letter
    assert "We destroyed what we had prepared" in letter
    assert TESTS["like an unseen identity"] in letter
    assert "before the change as well" not in letter
    assert NAME not in letter
    assert desk.find(ids[0]).state == "served"  # nothing was recorded
    assert desk.answer(ids[0], later(4))[1].read_text() == letter
    with pytest.raises(UsageError, match="R-000002 is verified, and only a request that is served or refused can be answered"):
        desk.letter(ids[1], later(4))


def test_the_letter_of_a_refused_request(tmp_path: Path) -> None:
    desk = new_desk(tmp_path)
    id = receive(desk)
    basis = "Nothing was trained on this person: the name is in no set of the run's split."
    desk.record(id, "unidentified", {"weights": None, "match": None, "basis": basis}, later(1))
    desk.refuse(id, "No photo of you was *used*.", later(1))
    letter = desk.letter(id, later(2))
    assert "We have not done so" in letter
    assert "> No photo of you was \\*used\\*." in letter
    assert basis in letter
    assert "complain about this decision" in letter
    assert "We have done so" not in letter


def test_letters_have_no_blank_fields(tmp_path: Path) -> None:
    desk = full_desk(tmp_path)
    for file in (desk.folder / "letters").iterdir():
        text = file.read_text()
        assert "None" not in text
        assert "{" not in text
        assert "\n\n\n" not in text

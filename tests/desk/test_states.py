"""States, wrong transitions, and due dates."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from oneshui_hf.desk.desk import Desk
from oneshui_hf.desk.states import OPEN, STATES, STEPS, add_months
from oneshui_hf.errors import OneshuiError, UsageError
from support.desk import NAME, PHOTO, apply, identify, later, new_desk, receive, serve


@pytest.mark.parametrize(
    ("day", "months", "due"),
    [
        (date(2026, 11, 3), 1, date(2026, 12, 3)),
        (date(2027, 1, 31), 1, date(2027, 2, 28)),
        (date(2028, 1, 31), 1, date(2028, 2, 29)),
        (date(2028, 1, 29), 1, date(2028, 2, 29)),
        (date(2027, 1, 29), 1, date(2027, 2, 28)),
        (date(2027, 3, 31), 1, date(2027, 4, 30)),
        (date(2026, 12, 31), 1, date(2027, 1, 31)),
        (date(2026, 11, 30), 3, date(2027, 2, 28)),
        (date(2027, 11, 30), 3, date(2028, 2, 29)),
        (date(2026, 10, 1), 3, date(2027, 1, 1)),
        (date(2099, 12, 31), 2, date(2100, 2, 28)),
    ],
)
def test_a_month_ends_on_the_same_day_or_on_the_last_one(day: date, months: int, due: date) -> None:
    assert add_months(day, months) == due


def desk_in(state: str, folder: Path) -> tuple[Desk, str]:
    """Return a desk with one request in a state."""
    desk = new_desk(folder)
    id = receive(desk)
    if state == "refused":
        desk.refuse(id, "The identity was not shown.", later(1))
    elif state == "withdrawn":
        desk.withdraw(id, later(1))
    order = ("identified", "verified", "served", "answered")
    steps: tuple[Callable[[], object], ...] = (
        lambda: identify(desk, id),
        lambda: apply(desk, [id]),
        lambda: serve(desk, id),
        lambda: desk.answer(id, later(4)),
    )
    if state in order:
        for step in steps[: order.index(state) + 1]:
            step()
    assert desk.find(id).state == state
    return desk, id


COMMANDS: dict[str, Callable[[Desk, str], object]] = {
    "identified": lambda desk, id: identify(desk, id, 8),
    "applied": lambda desk, id: apply(desk, [id], 8),
    "served": lambda desk, id: serve(desk, id, 8),
    "answered": lambda desk, id: desk.answer(id, later(8)),
    "refused": lambda desk, id: desk.refuse(id, "The identity was not shown.", later(8)),
    "withdrawn": lambda desk, id: desk.withdraw(id, later(8)),
    "extended": lambda desk, id: desk.extend(id, "The number of requests.", later(8)),
    "erased": lambda desk, id: desk.erase(id, later(8)),
}


@pytest.mark.parametrize("kind", COMMANDS)
@pytest.mark.parametrize("state", [state for state in STATES if state != "applied"])
def test_wrong_transitions_are_one_sentence(state: str, kind: str, tmp_path: Path) -> None:
    desk, id = desk_in(state, tmp_path)
    before = desk.ledger.file.read_bytes()
    if state in STEPS[kind][0]:
        COMMANDS[kind](desk, id)
        return
    with pytest.raises(UsageError) as error:
        COMMANDS[kind](desk, id)
    message = str(error.value)
    assert message.startswith(f"{id} is {state}, and only a request that is ")
    assert message.count(".") == 1
    # The announcement of a batch is refused like its entries, so nothing was written.
    assert desk.ledger.file.read_bytes() == before


def test_unknown_requests_are_one_sentence(tmp_path: Path) -> None:
    desk = new_desk(tmp_path)
    receive(desk)
    with pytest.raises(UsageError, match="There is no request R-000002; they go from R-000001 to R-000001"):
        desk.withdraw("R-000002", later(1))


def test_a_request_is_extended_once_and_before_it_is_due(tmp_path: Path) -> None:
    desk = new_desk(tmp_path)
    first, second = receive(desk), receive(desk)
    assert desk.find(first).due == date(2026, 12, 3)
    assert desk.extend(first, "The number of requests.", later(30)).due == date(2027, 2, 3)
    with pytest.raises(UsageError, match="R-000001 was extended before"):
        desk.extend(first, "Again.", later(31))
    with pytest.raises(UsageError, match="R-000002 was due on 2026-12-03, and only a request that is not overdue"):
        desk.extend(second, "Too late.", later(31))


def test_rows_count_the_days(tmp_path: Path) -> None:
    desk = new_desk(tmp_path)
    first, second = receive(desk), receive(desk)
    desk.withdraw(second, later(1))
    rows = desk.rows(datetime(2026, 12, 4, 23, 59, tzinfo=UTC))
    assert [(row["days_left"], row["overdue"]) for row in rows] == [(-1, True), (None, False)]
    assert [row["days_left"] for row in desk.rows(datetime(2026, 12, 3, 0, 0, tzinfo=UTC))] == [0, None]
    assert first == rows[0]["request"]


def test_names_do_not_enter_the_ledger_as_reasons(tmp_path: Path) -> None:
    desk = new_desk(tmp_path)
    id = receive(desk)
    for call in (desk.refuse, desk.extend):
        with pytest.raises(UsageError, match="--reason contains the person's name"):
            call(id, f"{NAME.upper()} did not show an identity card.", later(1))
    with pytest.raises(UsageError, match="--channel contains the person's name"):
        desk.receive(PHOTO, NAME, None, f"mail of {NAME}", later(1))
    with pytest.raises(UsageError, match="--reason has 501 characters, and at most 500 are allowed"):
        desk.refuse(id, "x" * 501, later(1))
    assert desk.receive(PHOTO, "7", None, "line 7", later(1)).id == "R-000002"  # a number is in many texts
    assert NAME.encode() not in desk.ledger.file.read_bytes()


def test_erased_photos_cannot_be_read_and_the_chain_holds(tmp_path: Path) -> None:
    from oneshui_hf.desk.verification import verify

    desk = new_desk(tmp_path)
    first, second = receive(desk), receive(desk, name="Bob Canary", photo=b"another photo" * 9)
    request = desk.find(first)
    copies = {file: file.read_bytes() for file in (desk.folder / "kept").iterdir()}
    kept, received = desk.kept(request), request.entries[0].content
    assert kept.has_identity(NAME, received["identity"])
    assert not kept.has_identity("Bob Canary", received["identity"])
    assert kept.has_photo(PHOTO, received["photo"])
    assert not kept.has_photo(PHOTO + b"x", received["photo"])
    with pytest.raises(UsageError, match="R-000001 is received, and only a request that is answered or withdrawn can be erased"):
        desk.erase(first, later(1))
    desk.withdraw(first, later(1))
    assert desk.erase(first, later(2)).erased
    assert not [file for file in (desk.folder / "kept").iterdir() if file.name.startswith(request.secret)]
    for file, data in copies.items():  # a copy of the encrypted files does not help
        file.write_bytes(data)
    for read in (kept.photo, kept.identity, lambda: kept.has_identity(NAME, received["identity"])):
        with pytest.raises(OneshuiError, match="its secret was erased"):
            read()
    assert not verify(desk.ledger.file)["problems"]
    assert desk.kept(desk.find(second)).identity() == "Bob Canary"
    with pytest.raises(UsageError, match="R-000001 was erased before"):
        desk.erase(first, later(3))


def test_what_a_killed_receive_kept_is_erased_by_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = new_desk(tmp_path)
    id = receive(desk)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("oneshui_hf.desk.ledger._write", die)
        with pytest.raises(KeyboardInterrupt):
            receive(desk)
    assert len(list((desk.folder / "kept").iterdir())) == 4
    receive(desk)
    requests = desk.requests()
    assert {file.name.partition(".")[0] for file in (desk.folder / "kept").iterdir()} == {one.secret for one in requests.values()}
    assert len(list((tmp_path / "vault").glob("[!.]*"))) == 3  # the desk's own, and one for each request
    assert desk.kept(requests[id]).photo() == PHOTO


def test_encrypted_files_of_two_requests_cannot_be_exchanged(tmp_path: Path) -> None:
    desk = new_desk(tmp_path)
    one, two = (desk.find(receive(desk, photo=photo)) for photo in (b"one" * 50, b"two" * 50))
    first, second = (desk.folder / "kept" / f"{request.secret}.photo" for request in (one, two))
    first.write_bytes(second.read_bytes())
    with pytest.raises(OneshuiError, match="is damaged: it cannot be decrypted"):
        desk.kept(one).photo()
    second.unlink()
    with pytest.raises(OneshuiError, match="is missing; restore it from a copy"):
        desk.kept(two).photo()


def test_sizes_of_encrypted_names_do_not_show_their_length(tmp_path: Path) -> None:
    desk = new_desk(tmp_path)
    for name in ("Al", "A name of many more characters"):
        receive(desk, name=name)
    assert len({file.stat().st_size for file in (desk.folder / "kept").glob("*.identity")}) == 1


def test_states_are_complete() -> None:
    assert set(OPEN) | {"answered", "withdrawn"} == set(STATES)
    assert {state for allowed, _ in STEPS.values() for state in allowed} == set(STATES)


def test_time_needs_a_time_zone(tmp_path: Path) -> None:
    desk = new_desk(tmp_path)
    receive(desk)
    with pytest.raises(UsageError, match="has no time zone"):
        desk.withdraw("R-000001", datetime(2026, 11, 5))


def test_secrets_of_others_are_not_erased(tmp_path: Path) -> None:
    desk, other = new_desk(tmp_path), Desk(tmp_path / "other", tmp_path / "vault")
    secret = other.find(receive(other)).secret
    receive(desk)
    (desk.folder / "kept" / f"{secret}.photo").write_bytes(b"a file that names the secret of another desk")
    receive(desk)
    assert other.kept(other.find("R-000001")).photo() == PHOTO


def test_a_large_photo_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oneshui_hf.desk.desk.MAX_PHOTO", 2**20)
    with pytest.raises(UsageError, match="The photo has more than 1 MB; give a smaller file"):
        receive(new_desk(tmp_path), photo=b"x" * (2**20 + 1))

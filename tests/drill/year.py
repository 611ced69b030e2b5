"""What an operator of a request desk does in one process of the drill of a year: steps that can be repeated after a kill.

A step that a killed process had finished is found in the ledger and is not done again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import oneshui_hf
from oneshui_hf.desk.desk import Desk
from oneshui_hf.desk.states import Request
from support.faces import portrait

START = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
DESK = Path("requests")


def name_of(person: int) -> str:
    """Return the name of a person in the training data."""
    return f"Zora Canary {person:03d}"


def work(steps: Sequence[Sequence[Any]], day: int) -> None:
    """Do steps, each a function of this module and its arguments."""
    for function, *arguments in steps:
        globals()[function](START + timedelta(days=day), *arguments)


def by_person() -> dict[str, Request]:
    """Return the requests by the name of the person, as far as it was not erased."""
    desk = Desk(DESK)
    if not desk.ledger.file.exists():
        return {}
    return {str(desk.identity(request)): request for request in desk.requests().values() if not request.erased}


def receive(now: datetime, *people: int) -> None:
    """Receive a request of each person."""
    for person in people:
        if name_of(person) not in by_person():
            file = Path(f"canary-portrait-{person}.png")
            portrait(person, 50).save(file)
            oneshui_hf.receive_request(file, identity=name_of(person), channel="mail", now=now)


def identify(now: datetime, run: str, *people: int) -> None:
    """Identify the requests of people."""
    for person in people:
        if (request := by_person()[name_of(person)]).state == "received":
            oneshui_hf.identify_request(request.id, run, now=now)


def refuse(now: datetime, person: int) -> None:
    """Refuse a request and answer it."""
    if (request := by_person()[name_of(person)]).state == "received":
        oneshui_hf.refuse_request(request.id, reason="The identity was not shown.", now=now)
    answer(now, person)


def withdraw(now: datetime, person: int) -> None:
    """Withdraw a request."""
    if (request := by_person()[name_of(person)]).state != "withdrawn":
        oneshui_hf.withdraw_request(request.id, now=now)


def apply(now: datetime, run: str, new: str) -> None:
    """Apply all identified requests as one batch."""
    if any(request.state == "identified" for request in by_person().values()):
        oneshui_hf.apply_requests(run=run, output_dir=new, now=now)


def serve(now: datetime, run: str) -> None:
    """Put a model into service."""
    if any(request.state == "verified" for request in by_person().values()):
        oneshui_hf.serve_requests(run=run, now=now)


def answer(now: datetime, *people: int) -> None:
    """Answer the people."""
    for person in people:
        if (request := by_person()[name_of(person)]).state != "answered":
            oneshui_hf.answer_request(request.id, now=now)


def erase(now: datetime, *people: int) -> None:
    """Erase photo and name of people."""
    for person in people:
        if (request := by_person().get(name_of(person))) is not None:
            oneshui_hf.erase_request(request.id, now=now)


def overdue(now: datetime, file: str) -> None:
    """Write which requests are overdue."""
    Path(file).write_text(json.dumps([row["request"] for row in oneshui_hf.list_requests(now=now) if row["overdue"]]))


def recheck(now: datetime, run: str, file: str) -> None:
    """Write the verdict on each request under a model."""
    rows = oneshui_hf.recheck_requests(run=run, now=now)["requests"]
    Path(file).write_text(json.dumps({row["request"]: row["verdict"] for row in rows}))

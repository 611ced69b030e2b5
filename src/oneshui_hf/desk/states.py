"""The states of a request, the entries that change them, and the due dates.

    received -> identified -> applied -> verified -> served -> answered
    received, identified -> refused -> answered
    received, identified -> withdrawn

A request is due one month after its receipt, and can be extended once by two further months, with a reason (GDPR, article 12(3)). A month
ends on the day with the same number, or on the last day of a shorter month (Regulation 1182/71, article 3(2)(c)).
"""

from __future__ import annotations

import calendar
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date

from ..errors import UsageError
from .entries import Entry

STATES = ("received", "identified", "applied", "verified", "served", "answered", "refused", "withdrawn")
CLOSED = ("answered", "withdrawn")
OPEN = tuple(state for state in STATES if state not in CLOSED)
MONTHS, EXTENDED_MONTHS = 1, 3  # from the receipt

# The kind of an entry -> the states in which it may be written, and the state after it; None if the state stays.
STEPS: dict[str, tuple[tuple[str, ...], str | None]] = {
    "identified": (("received", "identified"), "identified"),
    "unidentified": (("received",), None),
    "extended": (OPEN, None),
    "applied": (("identified",), "applied"),
    "verified": (("applied",), "verified"),
    "served": (("verified",), "served"),
    "rechecked": (("verified", "served", "answered"), None),
    "answered": (("served", "refused"), "answered"),
    "refused": (("received", "identified"), "refused"),
    "withdrawn": (("received", "identified"), "withdrawn"),
    "erased": (CLOSED, None),
}
NEXT = {  # what the operator does next
    "received": "identify it with `oneshui requests identify`",
    "identified": "apply it with `oneshui requests apply`",
    "applied": "complete it with `oneshui requests apply`",
    "verified": "serve the new model and record it with `oneshui requests serve`",
    "served": "answer the person with `oneshui requests answer`",
    "refused": "answer the person with `oneshui requests answer`",
}


@dataclass(frozen=True)
class Request:
    """A request, as the entries of the ledger describe it.

    Attributes:
        id: Such as R-000007.
        state: One of `STATES`.
        received: Day of receipt.
        due: Day by which the person must be answered.
        extended: Whether the due date was extended.
        erased: Whether the photo and the name were erased.
        entries: Its entries, the oldest first.
    """

    id: str
    state: str
    received: date
    due: date
    extended: bool
    erased: bool
    entries: tuple[Entry, ...]

    def last(self, kind: str) -> Entry | None:
        """Return the last entry of a kind; None if there is none."""
        return next((entry for entry in reversed(self.entries) if entry.kind == kind), None)

    @property
    def secret(self) -> str:
        """The id of its secret in the vault."""
        return str(self.entries[0].content["secret"])

    def require(self, kind: str) -> None:
        """Check that an entry of a kind may follow.

        Raises:
            UsageError: It may not.
        """
        allowed = STEPS[kind][0]
        if self.state not in allowed:
            advice = f"; {NEXT[self.state]} first" if kind not in ("refused", "withdrawn", "identified") and self.state in NEXT else ""
            raise UsageError(f"{self.id} is {self.state}, and only a request that is {_listed(allowed)} can be {kind}{advice}.")
        if kind == "extended" and self.extended:
            raise UsageError(f"{self.id} was extended before, and a request is extended once.")
        if kind == "erased" and self.erased:
            raise UsageError(f"{self.id} was erased before.")


def _listed(words: tuple[str, ...]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def add_months(day: date, months: int) -> date:
    """Return the day with the same number some months later, or the last day of a shorter month."""
    years, month = divmod(day.month - 1 + months, 12)
    year, month = day.year + years, month + 1
    return date(year, month, min(day.day, calendar.monthrange(year, month)[1]))


def follow(requests: dict[str, Request], entry: Entry) -> None:
    """Change the requests as an entry states.

    Args:
        requests: The requests by id, changed in place.
        entry: The entry.

    Raises:
        UsageError: The entry may not follow: the request is unknown or in another state, or a date is wrong.
    """
    if entry.kind == "received":
        _receive(requests, entry)
        return
    for id in entry.content["requests"] if entry.kind == "batch" else filter(None, [entry.request]):
        request = require_known(requests, id)
        if entry.kind == "batch":
            request.require("applied")
            continue
        request.require(entry.kind)
        if entry.kind == "extended" and entry.content["due"] != add_months(request.received, EXTENDED_MONTHS).isoformat():
            raise UsageError(f"The extended due date of {id} is not three months after its receipt.")
        requests[id] = replace(
            request,
            state=STEPS[entry.kind][1] or request.state,
            due=date.fromisoformat(entry.content["due"]) if entry.kind == "extended" else request.due,
            extended=request.extended or entry.kind == "extended",
            erased=request.erased or entry.kind == "erased",
            entries=(*request.entries, entry),
        )


def _receive(requests: dict[str, Request], entry: Entry) -> None:
    id, received = str(entry.request), date.fromisoformat(entry.content["received"])
    if id != next_id(requests):
        raise UsageError(f"The request {id} is not the next one, {next_id(requests)}.")
    if received > entry.time.date():
        raise UsageError(f"{id} was received on {received}, which is after the entry itself.")
    due = add_months(received, MONTHS)
    if entry.content["due"] != due.isoformat():
        raise UsageError(f"The due date of {id} is not one month after its receipt.")
    requests[id] = Request(id, "received", received, due, extended=False, erased=False, entries=(entry,))


def next_id(requests: Iterable[str]) -> str:
    """Return the id of the next request."""
    return f"R-{len(list(requests)) + 1:06d}"


def require_known(requests: dict[str, Request], id: str) -> Request:
    """Return a request.

    Raises:
        UsageError: There is none of this id.
    """
    if id not in requests:
        known = f"they go from {min(requests)} to {max(requests)}" if requests else "there is none yet"
        raise UsageError(f"There is no request {id}; {known}.")
    return requests[id]

"""The request desk's commands as Python functions. `now`, the time of the entries, can be given here only: for tests and imports."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .api_options import AnyRun, read_options, split_options, with_options
from .api_run import open_run
from .errors import UsageError
from .files import open_regular
from .option_values import shown
from .reporting import SILENT, Reporter, default_reporter
from .stages import checks
from .stages.desk_options import (
    AnswerOptions,
    ApplyOptions,
    DeskOptions,
    IdentifyOptions,
    ListOptions,
    ReasonOptions,
    ReceiveOptions,
    RecheckOptions,
    RequestOptions,
    ServeOptions,
    VerifyOptions,
)

if TYPE_CHECKING:
    from .desk.desk import Desk

__all__ = [
    "answer_request",
    "apply_requests",
    "erase_request",
    "extend_request",
    "identify_request",
    "list_requests",
    "receive_request",
    "recheck_requests",
    "refuse_request",
    "serve_requests",
    "verify",
    "withdraw_request",
]

DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


@with_options(ReceiveOptions)
def receive_request(image: str | Path, *, now: datetime | None = None, reporter: Reporter | None = None, **options: Any) -> dict[str, Any]:
    """Record a request, keep the photo and the name encrypted, and return `request`, `received` and `due`."""
    del reporter
    resolved = read_options(ReceiveOptions, {**options, "image": image}, "requests receive")
    checks.require_images([resolved.image])
    received = _day(resolved.received)
    photo = _photo(resolved.image)
    request = _open_desk(resolved).receive(photo, resolved.identity, received, resolved.channel, now)
    return {"request": request.id, "received": request.received.isoformat(), "due": request.due.isoformat()}


@with_options(ListOptions)
def list_requests(*, now: datetime | None = None, reporter: Reporter = SILENT, **options: Any) -> list[dict[str, Any]]:
    """Return a row per request, the first due first: `request`, `received`, `due`, `state`, `days_left`, `overdue` and more."""
    del reporter
    resolved = read_options(ListOptions, options, "requests list")
    rows = _open_desk(resolved).rows(now)
    if resolved.state is not None:
        rows = [row for row in rows if row["state"] == resolved.state or (resolved.state == "open" and row["days_left"] is not None)]
    if resolved.due_within is not None:
        rows = [row for row in rows if row["days_left"] is not None and row["days_left"] <= resolved.due_within]
    return sorted(rows, key=lambda row: (row["days_left"] is None, row["due"], row["request"]))


@with_options(IdentifyOptions)
def identify_request(
    request: str, run: AnyRun = None, *, now: datetime | None = None, reporter: Reporter | None = None, **options: Any
) -> dict[str, Any]:
    """Find out who the person is and whether the model was trained on them, and return what that rests on.

    The result contains the identity's name under `identity`. It is personal data: do not write it to a log.
    """
    reporter = reporter or default_reporter()
    resolved = read_options(IdentifyOptions, {**options, "request": request}, "requests identify")
    desk = _open_desk(resolved)
    desk.find(resolved.request).require("identified")
    model = open_run(run, ("original", "unlearned"), reporter, "requests identify")
    from .stages.requests.identify import identify_request as stage

    return stage(desk, model, resolved, reporter, now)


@with_options(ApplyOptions, method=True)
def apply_requests(
    requests: Sequence[str] = (), run: AnyRun = None, *, now: datetime | None = None, reporter: Reporter | None = None, **options: Any
) -> dict[str, Any]:
    """Apply requests as one batch, write a new run and one receipt each, and return a summary; with `dry_run` what would be done."""
    reporter = reporter or default_reporter()
    own, methods = split_options(ApplyOptions, options)
    given = {"requests": requests} | ({} if run is None else {"run": run})
    resolved = read_options(ApplyOptions, own | given, "requests apply")
    desk = _open_desk(resolved)
    desk.requests()
    model = open_run(run, ("original", "unlearned"), reporter, "requests apply", resolved.output_dir)
    from .stages.requests.apply import apply_requests as stage

    return stage(desk, model, resolved, methods, reporter, now)


@with_options(ServeOptions)
def serve_requests(
    requests: Sequence[str] = (), run: AnyRun = None, *, now: datetime | None = None, reporter: Reporter | None = None, **options: Any
) -> dict[str, Any]:
    """Record that a model is in service, for the requests that were applied to it."""
    reporter = reporter or default_reporter()
    given = {"requests": requests} | ({} if run is None else {"run": run})
    resolved = read_options(ServeOptions, options | given, "requests serve")
    desk = _open_desk(resolved)
    desk.requests()
    model = open_run(run, ("original", "unlearned"), reporter, "requests serve")
    from .stages.requests.serve import serve_requests as stage

    return stage(desk, model, resolved, now)


@with_options(RecheckOptions)
def recheck_requests(
    requests: Sequence[str] = (), run: AnyRun = None, *, now: datetime | None = None, reporter: Reporter | None = None, **options: Any
) -> dict[str, Any]:
    """Examine whether the people of applied requests are still forgotten in a later model, record it, and return a row per request."""
    reporter = reporter or default_reporter()
    resolved = read_options(RecheckOptions, options | {"requests": requests}, "requests recheck")
    desk = _open_desk(resolved)
    desk.requests()
    checks.require_images([resolved.image] if resolved.image else [])
    photo = _photo(resolved.image) if resolved.image else None
    model = open_run(run, ("original", "unlearned"), reporter, "requests recheck")
    from .stages.requests.recheck import recheck_requests as stage

    return stage(desk, model, resolved, photo, now)


@with_options(ReasonOptions)
def extend_request(request: str, *, now: datetime | None = None, reporter: Reporter = SILENT, **options: Any) -> dict[str, Any]:
    """Extend the due date of a request by two months, and return the request."""
    del reporter
    resolved, desk = _resolved(ReasonOptions, request, options, "requests extend")
    return _row(desk, desk.extend(resolved.request, resolved.reason, now).id, now)


@with_options(ReasonOptions)
def refuse_request(request: str, *, now: datetime | None = None, reporter: Reporter = SILENT, **options: Any) -> dict[str, Any]:
    """Refuse a request, and return it."""
    del reporter
    resolved, desk = _resolved(ReasonOptions, request, options, "requests refuse")
    return _row(desk, desk.refuse(resolved.request, resolved.reason, now).id, now)


@with_options(RequestOptions)
def withdraw_request(request: str, *, now: datetime | None = None, reporter: Reporter = SILENT, **options: Any) -> dict[str, Any]:
    """Record that the person has withdrawn the request, and return it."""
    del reporter
    resolved, desk = _resolved(RequestOptions, request, options, "requests withdraw")
    return _row(desk, desk.withdraw(resolved.request, now).id, now)


@with_options(AnswerOptions)
def answer_request(request: str, *, now: datetime | None = None, reporter: Reporter = SILENT, **options: Any) -> dict[str, Any]:
    """Write the letter to the person, record it, and return `request`, `letter` (the text) and `file`; with `dry_run` only return it."""
    del reporter
    resolved, desk = _resolved(AnswerOptions, request, options, "requests answer")
    if resolved.dry_run:
        return {"request": resolved.request, "letter": desk.letter(resolved.request, now), "file": None}
    found, file = desk.answer(resolved.request, now)
    return {"request": found.id, "letter": file.read_text(encoding="utf-8"), "file": str(file)}


@with_options(RequestOptions)
def erase_request(request: str, *, now: datetime | None = None, reporter: Reporter = SILENT, **options: Any) -> dict[str, Any]:
    """Destroy the secrets of a closed request, so that its photo and name cannot be read any more, and return the request."""
    del reporter
    resolved, desk = _resolved(RequestOptions, request, options, "requests erase")
    return _row(desk, desk.erase(resolved.request, now).id, now)


@with_options(VerifyOptions)
def verify(file: str | Path, *, reporter: Reporter = SILENT, **options: Any) -> dict[str, Any]:
    """Verify a ledger or a receipt offline, and return what was found; everything holds if `problems` is empty."""
    del reporter
    resolved = read_options(VerifyOptions, {**options, "file": file}, "verify")
    run = Path(resolved.run) if resolved.run is not None else None
    if run is not None and not run.is_dir():
        raise UsageError(f"There is no run at {run}; name the run of the receipt.")
    from .desk.verification import verify as verify_file

    return verify_file(Path(resolved.file), run, resolved.anchor)


def _photo(image: str) -> bytes:
    """Return the bytes of a photo's file, which can be decoded: a photo that cannot be read now could never be applied."""
    from .data.images import decode
    from .desk.desk import MAX_PHOTO

    with open_regular(Path(image)) as stream:
        photo = stream.read(MAX_PHOTO + 1)
    decode(photo, image)
    return photo


def _open_desk(options: DeskOptions) -> Desk:
    from .desk.desk import Desk

    return Desk(Path(options.desk))


def _resolved(options: type[Any], request: str, values: dict[str, Any], where: str) -> tuple[Any, Desk]:
    resolved: DeskOptions = read_options(options, {**values, "request": request}, where)
    return resolved, _open_desk(resolved)


def _row(desk: Desk, id: str, now: datetime | None) -> dict[str, Any]:
    return next(row for row in desk.rows(now) if row["request"] == id)


def _day(text: str | None) -> date | None:
    """Return the day of `--received`.

    Raises:
        UsageError: It is no date.
    """
    if text is None:
        return None
    try:
        if DAY.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise UsageError(f"--received takes a date such as 2026-11-03, not '{shown(text)}'.")

"""Forgetting through the request desk: the same steps and records as `oneshui requests receive`, `identify`, `apply`, `serve`, `answer`."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..card import model_card
from ..desk.desk import Desk
from ..errors import OneshuiError, UsageError
from ..files import scratch_folder
from ..models.config_schema import read_config
from ..reporting import Reporter
from ..runs import Run
from ..stages.desk_options import ApplyOptions, IdentifyOptions, ServeOptions
from ..stages.publishing.model import collect_public_files
from ..stages.requests.apply import apply_requests
from ..stages.requests.identify import identify_request
from ..stages.requests.serve import serve_requests
from ..stages.requests.verdict import photo_line
from .choices import Choice
from .photos import Photo

CHANNEL = "app"  # how the request came, in the ledger
NOT_CHECKED = "State first that you have checked that the photo shows the person who asks."


@dataclass(frozen=True)
class Forgotten:
    """An applied request.

    Attributes:
        request: Its number, such as R-000007.
        run: The run of the new model.
        sentence: What was done to the photo, in words.
        receipt: The bytes of the signed receipt.
        card: The model card of the new model, as it would be published; None if it may not be.
        head: The hash of the ledger's last entry, to keep elsewhere.
    """

    request: str
    run: Run
    sentence: str
    receipt: bytes
    card: str | None
    head: str


def forget(
    run: Run,
    desk: Desk,
    photo: Photo,
    choice: Choice,
    identity: str | None,
    *,
    checked: bool,
    reporter: Reporter,
    now: datetime.datetime | None = None,
) -> Forgotten:
    """Receive a request, identify the person, and apply it.

    If a step fails, the desk contains the steps before, and the error names the request.

    Args:
        run: The model in service.
        desk: The request desk. The first request opens it.
        photo: The photo of the person.
        choice: The method.
        identity: The identity, as named in the training data; None if it is not known.
        checked: Whether the operator states that the photo shows the person who asks.
        reporter: For warnings, and the question about an uncertain match.
        now: The time of the entries.

    Raises:
        UsageError: Nobody has checked the photo, or as `oneshui requests`.
        OneshuiError: As `oneshui requests`; the person is not known to the model.
    """
    if not checked:
        raise UsageError(NOT_CHECKED)
    request = desk.receive(photo.data, identity, None, CHANNEL, now).id
    try:
        photo_alone = not choice.needs_identity and identity is None
        about = IdentifyOptions(desk=str(desk.folder), request=request, photo_alone=photo_alone)
        found = identify_request(desk, run, about, reporter, now)
        if found["found_by"] is None:
            raise OneshuiError(found["basis"])
        options = ApplyOptions(desk=str(desk.folder), requests=(request,), run=str(run.path), method=choice.name)
        done = apply_requests(desk, run, options, reporter=reporter, now=now)
    except OneshuiError as error:
        state = desk.find(request).state
        raise type(error)(f"{error} Request {request} is recorded as {state}; continue or withdraw it with `oneshui requests`.") from error
    made = Run.open(done["run"])
    (row,) = done["requests"]
    return Forgotten(request, made, photo_line(row), Path(row["receipt"]).read_bytes(), card_text(made, reporter), done["head"])


def card_text(run: Run, reporter: Reporter) -> str | None:
    """Return the card of a model as `oneshui push` would publish it, without an address; None, with a warning, if it may not be."""
    try:
        with scratch_folder(run.path.resolve().parent, "card") as folder:
            record = collect_public_files(run, folder, reporter)
            return model_card(record, read_config(folder), {})
    except OneshuiError as error:
        reporter.warn(f"There is no card: {error}")
        return None


def serve_and_answer(desk: Desk, forgotten: Forgotten, now: datetime.datetime | None = None) -> str:
    """Record that the new model is in service and that the person was answered, and return the letter.

    Raises:
        UsageError: As `oneshui requests serve` and `answer`.
    """
    options = ServeOptions(desk=str(desk.folder), requests=(forgotten.request,), run=str(forgotten.run.path))
    serve_requests(desk, forgotten.run, options, now)
    return desk.answer(forgotten.request, now)[1].read_text(encoding="utf-8")


def request_rows(desk: Desk, now: datetime.datetime | None = None) -> list[Mapping[str, Any]]:
    """Return the requests of the desk, the first due first; none if there is no desk yet."""
    if not desk.ledger.file.exists():
        return []
    return sorted(desk.rows(now), key=lambda row: (row["days_left"] is None, row["due"], row["request"]))

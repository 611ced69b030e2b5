"""The commands of the request desk: `oneshui requests ...` and `oneshui verify`."""

from __future__ import annotations

import typer

from .. import api
from ..stages import desk_options as o
from . import show_desk
from .commands import Command

KEPT = "the ledger contains what was finished; run the same command again"


def add_desk(app: typer.Typer, requests: typer.Typer, panel: str) -> None:
    """Add the commands.

    Args:
        app: Receives `verify`.
        requests: The group `requests`.
        panel: The panel of `oneshui --help`.
    """
    Command(
        "receive", o.ReceiveOptions, api.receive_request, show_desk.received, positional=("image",), group="requests",
        summary="Record a new request, with its due date.",
        details="The photo and the name are kept encrypted; the ledger contains neither.",
        examples=("oneshui requests receive face.jpg --received 2026-11-03 --channel mail",),
    ).add_to(requests)  # fmt: skip
    Command(
        "list", o.ListOptions, api.list_requests, show_desk.requests, group="requests",
        summary="List the requests, the first due first.",
        examples=("oneshui requests list --due-within 7", "oneshui requests list --state open --json"),
    ).add_to(requests)  # fmt: skip
    Command(
        "identify", o.IdentifyOptions, api.identify_request, show_desk.identified, as_json=show_desk.without_name, positional=("request",),
        group="requests", summary="Find out who the person is, and how sure that is.",
        details="Looks the name up in the run's split, or compares the face with the identities that a preparation enrolled.",
        examples=("oneshui requests identify R-000007 --run runs/celeba-seed0",),
    ).add_to(requests)  # fmt: skip
    Command(
        "apply", o.ApplyOptions, api.apply_requests, show_desk.applied, positional=("requests",), method_step="apply", group="requests",
        stopped=KEPT, summary="Apply all identified requests as one batch.",
        details="Writes a new run and one signed receipt for each request. With --method, that method's options are listed, too.",
        examples=("oneshui requests apply --run runs/celeba-seed0 --dry-run", "oneshui requests apply R-000007 --run runs/celeba-seed0"),
    ).add_to(requests)  # fmt: skip
    Command(
        "serve", o.ServeOptions, api.serve_requests, show_desk.served, positional=("requests",), group="requests",
        summary="Record that a new model is in service.",
        details="What `oneshui evaluate` measured on it is recorded as well.",
        examples=("oneshui requests serve --run runs/celeba-seed0-batch1",),
    ).add_to(requests)  # fmt: skip
    Command(
        "recheck", o.RecheckOptions, api.recheck_requests, show_desk.rechecked, positional=("requests",), group="requests",
        failure=show_desk.relapse, summary="Examine whether a later model still forgets the people.",
        details="Fails if a person is remembered again. Records the losses of the photos and the verdicts.",
        examples=("oneshui requests recheck --run runs/celeba-seed1",),
    ).add_to(requests)  # fmt: skip
    Command(
        "answer", o.AnswerOptions, api.answer_request, show_desk.letter, positional=("request",), group="requests",
        summary="Write the letter to the person, and record it.",
        details="Served and refused requests are answered. Complete a copy of the letter and send it.",
        examples=("oneshui requests answer R-000007 --dry-run",),
    ).add_to(requests)  # fmt: skip
    Command(
        "refuse", o.ReasonOptions, api.refuse_request, show_desk.request, positional=("request",), group="requests",
        summary="Refuse a request, with the reason.",
        examples=('oneshui requests refuse R-000007 --reason "The identity was not shown."',),
    ).add_to(requests)  # fmt: skip
    Command(
        "extend", o.ReasonOptions, api.extend_request, show_desk.request, positional=("request",), group="requests",
        summary="Extend the due date by two months, with the reason.",
        examples=('oneshui requests extend R-000007 --reason "The number of requests."',),
    ).add_to(requests)  # fmt: skip
    Command(
        "withdraw", o.RequestOptions, api.withdraw_request, show_desk.request, positional=("request",), group="requests",
        summary="Record that the person has withdrawn the request.",
        examples=("oneshui requests withdraw R-000007",),
    ).add_to(requests)  # fmt: skip
    Command(
        "erase", o.RequestOptions, api.erase_request, show_desk.request, positional=("request",), group="requests",
        summary="Erase photo and name of a closed request.",
        details="Destroys the secrets of the request. The ledger can still be verified.",
        examples=("oneshui requests erase R-000007",),
    ).add_to(requests)  # fmt: skip
    Command(
        "verify", o.VerifyOptions, api.verify, show_desk.verified, positional=("file",), panel=panel, failure=show_desk.failure,
        summary="Verify a ledger or a receipt, offline.",
        details="Fails unless everything holds: entries, signatures, states, receipts, and the run and the anchor that are named.",
        examples=("oneshui verify requests/ledger.jsonl --anchor HASH", "oneshui verify requests/receipts/R-000007.json --run RUN"),
    ).add_to(app)  # fmt: skip

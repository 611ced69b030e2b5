"""A request desk without a model: requests in every state, written with the desk's own key."""

from __future__ import annotations

import hashlib
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from oneshui_hf.desk.desk import Desk
from oneshui_hf.desk.entries import Draft, write_moment
from oneshui_hf.desk.ledger import Chain
from oneshui_hf.desk.receipts import make_receipt, receipt_file
from oneshui_hf.desk.signing import SigningKey
from oneshui_hf.files import write_bytes

START = datetime(2026, 11, 3, 9, 0, tzinfo=UTC)
NAME, PHOTO, CHANNEL = "Ada Canary", b"\xff\xd8 the bytes of a photo, canary \xff\xd9" * 20, "mail"
BEFORE, AFTER, CONFIG = (character * 64 for character in "abc")
VERDICT = "like an unseen identity"


def later(days: float) -> datetime:
    """Return a time some days after the start."""
    return START + timedelta(days=days)


def new_desk(folder: Path) -> Desk:
    """Return a desk with its vault next to it. It is opened by its first request."""
    return Desk(folder / "desk", folder / "vault")


def receive(desk: Desk, name: str | None = NAME, photo: bytes = PHOTO, days: float = 0) -> str:
    """Receive a request and return its id."""
    return desk.receive(photo, name, date(2026, 11, 3), CHANNEL, later(days)).id


def identify(desk: Desk, id: str, days: float = 1) -> None:
    """Record that a request is identified by name."""
    kept = desk.kept(desk.find(id))
    content = {"found_by": "name", "identity": kept.keep_identity(NAME), "weights": BEFORE, "match": None, "basis": "The split names it."}
    desk.record(id, "identified", content, later(days))


def apply(desk: Desk, ids: list[str], days: float = 2) -> None:
    """Record a batch, with receipts, as `stages.requests.apply` does."""
    batch = {"batch": 1, "requests": ids, "method": "a-method", "seed": 0, "weights_before": BEFORE}
    desk.ledger.append(lambda chain, key: [Draft("batch", None, batch)], later(days))
    applied: dict[str, Any] = {
        "batch": 1,
        "people_in_batch": len(ids),
        "method": "a-method",
        "method_from": "oneshui-hf 0.1.0",
        "method_options": {"strength": 1.2, "layers": [1, 2], "preset": None},
        "seed": 0,
        "weights_before": BEFORE,
        "weights_after": AFTER,
        "files": {"model.safetensors": AFTER, "config.json": CONFIG},
        "destroyed": len(ids),
        "seconds": 0.25,
        "not_done": ["The model before was not deleted."],
        "not_measured": ["The scores were not measured."],
    }
    verified = {"weights": AFTER, "labels": "predicted", "loss_before": 0.1, "loss_after": 0.7, "unseen": [0.3, 1.5], "verdict": VERDICT}

    def draft(chain: Chain, key: SigningKey) -> list[Draft]:
        drafts = []
        for id in ids:
            receipt = make_receipt(key, chain.requests[id], applied, verified, write_moment(later(days)), chain.head)
            receipt_file(desk.folder, id).parent.mkdir(exist_ok=True)
            write_bytes(receipt_file(desk.folder, id), receipt)
            content = applied | {"receipt": hashlib.sha256(receipt).hexdigest()}
            drafts += [Draft("applied", id, content), Draft("verified", id, verified)]
        return drafts

    desk.ledger.append(draft, later(days))


def serve(desk: Desk, id: str, days: float = 3) -> None:
    """Record that the new model is in service."""
    content = {"weights": AFTER, "score": "map", "scores": {"val": 71.5}, "intervals": {"val": [70.0, 73.0]}}
    desk.record(id, "served", content, later(days))


def full_desk(folder: Path) -> Desk:
    """Return a desk with five requests: answered and erased, answered, refused and answered, withdrawn, and received and extended."""
    desk = new_desk(folder)
    ids = [receive(desk) for _ in range(5)]
    for id in ids[:2]:
        identify(desk, id)
    apply(desk, ids[:2])
    for id in ids[:2]:
        serve(desk, id)
        desk.answer(id, later(4))
    desk.refuse(ids[2], "The identity was not shown.", later(5))
    desk.answer(ids[2], later(6))
    desk.withdraw(ids[3], later(6))
    desk.extend(ids[4], "The number of requests.", later(6))
    desk.erase(ids[0], later(7))
    return desk

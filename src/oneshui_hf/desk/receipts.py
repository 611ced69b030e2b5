"""Receipts: what was done for one request, in one signed file that can be verified without the ledger."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from ..errors import OneshuiError
from ..files import open_regular
from ..json_text import parse_json
from ..runs import versions
from ..validation import check_fields
from .entries import FORMAT, ReceiptFields
from .signing import SigningKey, canonical_json, has_valid_signature
from .states import Request

RECEIPTS = "receipts"  # the folder, in that of the desk
MAX_RECEIPT = 2**20  # bytes


def receipt_file(folder: Path, request: str) -> Path:
    """Return the file of a request's receipt in a desk's folder."""
    return folder / RECEIPTS / f"{request}.json"


def make_receipt(
    key: SigningKey, request: Request, applied: Mapping[str, Any], verified: Mapping[str, Any], moment: str, previous: str
) -> bytes:
    """Return the bytes of a receipt.

    Args:
        key: The desk's key.
        request: The request, which was identified.
        applied: Content of the entry `applied`, without the receipt's hash.
        verified: Content of the entry `verified`.
        moment: When it is made.
        previous: Hash of the last entry of the ledger before.
    """
    identified = request.last("identified")
    assert identified is not None
    receipt = {
        "format": FORMAT,
        "desk": key.desk,
        "public_key": key.public,
        "request": request.id,
        "time": moment,
        "received": request.received.isoformat(),
        "due": request.due.isoformat(),
        "identified": identified.content,
        "applied": applied,
        "verified": verified,
        "versions": versions(),
        "previous": previous,
    }
    return canonical_json(key.sign(receipt)) + b"\n"


def read_receipt(file: Path) -> tuple[dict[str, Any], str]:
    """Return a receipt with a valid signature, and the SHA-256 of its file.

    Raises:
        OneshuiError: It is missing, damaged or changed.
    """
    try:
        with open_regular(file) as stream:
            data = stream.read(MAX_RECEIPT + 1)
    except FileNotFoundError:
        raise OneshuiError(f"{file} is missing.") from None
    try:
        value = parse_json(data) if len(data) <= MAX_RECEIPT else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise OneshuiError(f"{file}, line 1 is damaged: it is no receipt.")
    check_fields(ReceiptFields, value, file)
    if canonical_json(value) + b"\n" != data:
        raise OneshuiError(f"{file}, line 1 was changed: it is not written as receipts are.")
    if not has_valid_signature(value, value["public_key"]):
        raise OneshuiError(f"{file}, line 1 was changed: its signature is not valid.")
    return value, hashlib.sha256(data).hexdigest()


def differences(receipt: Mapping[str, Any], request: Request) -> list[str]:
    """Return the fields in which a receipt differs from the entries of its request."""
    entries = {kind: request.last(kind) for kind in ("identified", "applied", "verified")}
    found = [
        kind
        for kind, entry in entries.items()
        if entry is None or receipt[kind] != {name: value for name, value in entry.content.items() if name != "receipt"}
    ]
    return found + [name for name in ("received",) if date.fromisoformat(receipt[name]) != request.received]

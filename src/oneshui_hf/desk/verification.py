"""Verification of a ledger or a receipt, offline: what holds, what does not, and what could not be checked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import OneshuiError, UsageError
from ..option_values import shown
from ..runs import hash_file, hash_weights
from .ledger import LEDGER, Chain, read_chain
from .letter import LETTERS
from .receipts import RECEIPTS, differences, read_receipt, receipt_file

ANCHOR = re.compile(r"[0-9a-f]{64}")
MODEL_FILES = ("config.json", "preprocessor_config.json")  # next to the weights
NO_ANCHOR = "Whether the ledger was cut or rewritten by its owner: no --anchor was given."
NO_RUN = "Whether a model is the one that was made: no --run was given."
NO_LEDGER = "Whether the receipt is in the ledger: the ledger is not at hand."


def hash_model(run: Path) -> dict[str, str]:
    """Return the SHA-256 of the files of a run that make up its model, by name.

    Raises:
        OneshuiError: It has no weights.
    """
    hash_weights(run)
    files = [*(run / name for name in MODEL_FILES), *sorted(run.glob("*.safetensors"))]
    return {file.name: hash_file(file) for file in files if file.exists()}


def verify(file: Path, run: Path | None = None, anchor: str | None = None) -> dict[str, Any]:
    """Verify a ledger or a receipt.

    Args:
        file: The ledger, or a receipt; of a receipt in a desk's folder, the ledger is verified as well.
        run: Run of a model that must be the one that was made.
        anchor: Hash of an entry that was kept elsewhere.

    Returns:
        `kind`, `entries`, `requests`, `head` (the hash of the last entry, to keep as the next anchor), `public_key`, `problems` and
        `unchecked`, the latter two with a sentence each.

    Raises:
        UsageError: The file or the anchor is none.
    """
    if not file.is_file():
        raise UsageError(f"There is no file {file}; name a ledger or a receipt.")
    if anchor is not None and not ANCHOR.fullmatch(anchor):
        raise UsageError(f"--anchor takes the hash of an entry, 64 hexadecimal digits, not '{shown(anchor)}'.")
    is_ledger = file.suffix == ".jsonl"
    ledger = file if is_ledger else file.parent.parent / LEDGER
    chain = read_chain(ledger) if ledger.is_file() else None
    unchecked = [] if anchor or chain is None else [NO_ANCHOR]
    problems = list(_of_chain(chain, anchor)) if chain is not None else []
    models: list[dict[str, str]] = []
    public_key = chain.public_key if chain is not None else None
    if is_ledger and chain is not None:
        models = [entry.content["files"] for entry in chain.entries if entry.kind == "applied"]
    else:
        try:
            receipt, digest = read_receipt(file)
        except OneshuiError as error:
            problems.append(str(error))
        else:
            models, public_key = [receipt["applied"]["files"]], receipt["public_key"]
            problems += _of_receipt(file, receipt, digest, chain)
        if chain is None:
            unchecked.append(NO_LEDGER)
            problems += ["The anchor is the hash of an entry, and the ledger of this receipt is not at hand."] if anchor else []
    if run is None:
        unchecked.append(NO_RUN)
    else:
        problems += _of_run(run, models)
    return {
        "file": str(file),
        "kind": "ledger" if is_ledger else "receipt",
        "entries": len(chain.hashes) if chain is not None else None,
        "requests": len(chain.requests) if chain is not None else None,
        "head": chain.head if chain is not None else None,
        "public_key": public_key,
        "problems": list(dict.fromkeys(problems)),
        "unchecked": unchecked,
    }


def _of_chain(chain: Chain, anchor: str | None) -> Iterator[str]:
    """Yield what is wrong with a ledger, and with the receipts and letters of its folder."""
    if not chain.hashes:
        yield f"{chain.file}, line 1 is missing: the ledger is empty."
    yield from chain.problems
    if chain.torn:
        yield f"{chain.file}, line {len(chain.hashes) + 1} is not complete: a process was killed, or the end was cut off."
    if anchor is not None and anchor not in chain.hashes:
        yield f"No line of {chain.file} has the hash of the anchor: the ledger was cut or rewritten."
    folder = chain.file.parent
    for entry in chain.entries:
        if entry.kind == "applied":
            yield from _of_listed_receipt(chain, str(entry.request), f"{chain.file}, line {entry.number}")
        elif entry.kind == "answered":
            letter = folder / LETTERS / f"{entry.request}.md"
            if not letter.is_file() or hash_file(letter) != entry.content["letter"]:
                yield f"{letter} is missing, or is not the letter of line {entry.number} of {chain.file}."
    listed = {receipt_file(folder, str(entry.request)) for entry in chain.entries if entry.kind == "applied"}
    for file in sorted(set((folder / RECEIPTS).glob("*.json")) - listed):
        yield f"{file} is a receipt that {chain.file} does not list."


def _of_listed_receipt(chain: Chain, request: str, line: str) -> Iterator[str]:
    try:
        receipt, digest = read_receipt(receipt_file(chain.file.parent, request))
    except OneshuiError as error:
        yield f"{line} lists a receipt that cannot be verified: {error}"
        return
    if receipt["request"] != request:
        yield f"{line} lists a receipt that cannot be verified: {receipt_file(chain.file.parent, request)} is that of {receipt['request']}."
    else:
        yield from _of_receipt(receipt_file(chain.file.parent, request), receipt, digest, chain)


def _of_receipt(file: Path, receipt: dict[str, Any], digest: str, chain: Chain | None) -> Iterator[str]:
    """Yield what is wrong between a receipt and the ledger."""
    if chain is None:
        return
    request = chain.requests.get(receipt["request"])
    applied = request.last("applied") if request else None
    if receipt["public_key"] != chain.public_key:
        yield f"{file} was signed by another key than that of {chain.file}."
    elif request is None or applied is None or applied.content["receipt"] != digest:
        yield f"{file} is not the receipt that {chain.file} lists for {receipt['request']}."
    elif different := differences(receipt, request):
        yield f"{file} differs from line {applied.number} of {chain.file} in {' and '.join(different)}."
    if receipt["previous"] not in chain.hashes:
        yield f"{file} names an entry that {chain.file} does not contain."


def _of_run(run: Path, models: list[dict[str, str]]) -> Iterator[str]:
    """Yield what is wrong with a run's model."""
    try:
        found = hash_model(run)
    except OneshuiError as error:
        yield str(error)
        return
    if found in models:
        return
    weights = {name: value for name, value in found.items() if name not in MODEL_FILES}
    if any(weights.items() <= model.items() for model in models):
        yield f"The configuration in {run} is not the one of the model that was made: {' or '.join(MODEL_FILES)} was changed."
    else:
        yield f"The weights in {run} are not those of a model that was made: they were changed, or it is another model."

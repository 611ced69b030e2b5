"""Open requests as one batch: a new model, one receipt for each request, and the entries of the ledger.

oneshui requests apply --run RUN

The batch is announced in the ledger first. If the command is killed after the new model was written, the same command completes the
entries; if it is killed before, nothing has changed and the same command starts the batch again.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...data.images import decode
from ...desk.desk import Desk, select
from ...desk.entries import MAX_BATCH, Draft, Entry, shows_no_change, write_moment
from ...desk.ledger import Chain
from ...desk.receipts import make_receipt, receipt_file
from ...desk.signing import SigningKey
from ...desk.states import Request
from ...desk.verification import hash_model
from ...errors import UsageError
from ...files import lock_output, write_bytes
from ...methods.base import Method
from ...models.load import load_model
from ...plugins import METHODS, Plugins
from ...reporting import SILENT, Reporter
from ...runs import RECORD, Run
from ..checks import check_unlearn
from ..command_options import UnlearnOptions
from ..desk_options import ApplyOptions
from ..method_choice import with_method
from ..unlearn import SupportPhoto, unlearn
from ..unseen_range import UNKNOWN, judged
from .budget import estimate_batch, measure_val_loss, require_within_budget
from .lineage import ancestors
from .recheck import keep_labels

NOT_DONE = (
    "The model before the change, its copies and its checkpoints were not deleted.",
    "Backups, published revisions, and models that others derived from the earlier one were not changed.",
    "The person's photos in data sets and caches were not deleted.",
)
NOT_MEASURED = (
    "The scores on all photos of retain, val and test were not measured; `oneshui evaluate` measures them.",
    "Membership attacks on the person's training photos were not run: a request does not read these photos.",
    "What an owner of both models can infer was not measured: the model before and this one together can show whose photos were forgotten; "
    "`oneshui audit` measures how reliably.",
)
NO_ESTIMATE = (
    "What the batch costs the others was not estimated before: no simulated requests were kept, or the earlier models are missing."
)
NO_VAL = "The score on val was not compared with the estimate: the data was not at hand, or logits are not finite."
UNLIKE = "The photo is unlike the photos of unseen identities, so the losses and the verdict show little."
NO_RANGE = "The range of unseen identities is not known: the run was trained by an earlier version, or val was empty."
NO_CHANGE = "A change could not be shown with the photo: its loss was in the range of unseen identities before as well."
PREDICTED = "The photo's true labels were not known; the loss refers to the labels that the model before predicted."


def apply_requests(
    desk: Desk,
    run: Run,
    options: ApplyOptions,
    method_options: Mapping[str, Any] | None = None,
    reporter: Reporter = SILENT,
    now: datetime | None = None,
) -> dict[str, Any]:
    """Apply requests as one batch and record it.

    Args:
        desk: The desk.
        run: The model in service.
        options: The requests and the method.
        method_options: Options of the method.
        reporter: For progress.
        now: The time of the entries.

    Returns:
        `batch`, `method`, `requests` (a row each: `request`, and what the entry `verified` contains), `run`, `estimate` and `val_loss` (see
        `desk.entries.Applied`), `destroyed`, and `head`, the hash of the ledger's last entry. With `dry_run` the first three, `estimate`,
        and the `run` that would be written.

    Raises:
        UsageError: No request can be applied, a named one is in another state, an option is wrong, or the budget cannot be checked.
        OneshuiError: The batch costs the others more than the budget, another command applies requests of this desk, or the method fails.
    """
    desk.requests()
    with lock_output(desk.batch) if not options.dry_run else contextlib.nullcontext():
        chain = desk.ledger.read()
        number, pending = _next_batch(chain)
        path = Path(options.output_dir or f"{run.path}-batch{number}")
        if pending and not options.dry_run and (made := _made_by(pending, path, run)) is not None:
            reporter.note(f"Completing batch {number}, which a killed command had applied; other requests wait for the next batch.")
            return _record(desk, pending, run, made, reporter, now)
        chosen = _choose(chain.requests, options)
        ids = tuple(request.id for request in chosen)
        request_options = UnlearnOptions(images=ids, method=options.method, preset=options.preset, seed=options.seed, output_dir=str(path))
        request_options = with_method(run.require_finished(), request_options, method_options, reporter)
        method: type[Method[Any]] = Plugins(METHODS).load(request_options.method_name)
        check_unlearn(run, request_options, method_options, files=False)
        support = [_support(desk, request) for request in chosen]
        _require_identities(ids, support, request_options.method_name, method)
        if lost := _forgotten_elsewhere(chain, run):
            reporter.warn(f"{_elsewhere(lost)} Name the run of the last batch with --run, unless it was trained without them.")
        named = [photo.identity for photo in support]
        people = len({person for person in named if person is not None}) + named.count(None)
        estimate = estimate_batch(run, request_options.method_name, method, people, options.budget, reporter)
        if options.dry_run:
            rows = [{"request": request.id} for request in chosen]
            plan = {"batch": number, "method": request_options.method_name, "requests": rows, "run": str(path)}
            return {**plan, "estimate": estimate, "dry_run": True}
        if estimate is not None:
            require_within_budget(estimate)
        batch = {
            "batch": number,
            "requests": list(ids),
            "method": request_options.method_name,
            "seed": options.seed,
            "weights_before": run.require_complete().weights,
            "estimate": estimate,
        }
        chain = desk.ledger.append(lambda chain, key: [Draft("batch", None, batch)], now)
        made = unlearn(run, request_options, method_options, reporter=reporter, support=support)
        return _record(desk, chain.entries[-1], run, made, reporter, now)


def _next_batch(chain: Chain) -> tuple[int, Entry | None]:
    """Return the number of the next batch, and the entry of one that was announced and has requests that are not applied."""
    batches = [entry for entry in chain.entries if entry.kind == "batch"]
    if not batches:
        return 1, None
    last = batches[-1]
    if any(chain.requests[id].state == "identified" for id in last.content["requests"]):
        return last.content["batch"], last
    has_begun = any(entry.kind == "applied" and entry.content["batch"] == last.content["batch"] for entry in chain.entries)
    return last.content["batch"] + has_begun, None


def _made_by(batch: Entry, path: Path, run: Run) -> Run | None:
    """Return the run that a killed command wrote for a batch; None if there is none at this path."""
    if not (path / RECORD).is_file():
        return None
    made, expected = Run.open(path), batch.content
    record = made.record
    facts = (record.kind, (record.parent or {}).get("weights"), record.report.get("method"), record.report.get("photos"), record.seed)
    wanted = ("unlearned", expected["weights_before"], expected["method"], len(expected["requests"]), expected["seed"])
    return made if facts == wanted and run.weights == expected["weights_before"] else None


def _choose(requests: Mapping[str, Request], options: ApplyOptions) -> list[Request]:
    """Return the requests of the batch.

    Raises:
        UsageError: There are none, or too many, or a named one is in another state.
    """
    chosen = select(requests, options.requests, "identified")
    for request in chosen:
        request.require("applied")
    if not chosen:
        raise UsageError("No request is identified, so there is nothing to apply; `oneshui requests list` shows their states.")
    if len(chosen) > MAX_BATCH:
        raise UsageError(f"A batch has at most {MAX_BATCH} requests, not {len(chosen)}; name some of them.")
    return chosen


def _support(desk: Desk, request: Request) -> SupportPhoto:
    return SupportPhoto(decode(desk.kept(request).photo(), request.id), desk.identity(request))


def _require_identities(ids: Sequence[str], support: Sequence[SupportPhoto], name: str, method: type[Method[Any]]) -> None:
    """Check that each person is named if the method acts on each identity.

    Raises:
        UsageError: One is not.
    """
    unnamed = [id for id, photo in zip(ids, support, strict=True) if photo.identity is None]
    if method.per_identity and unnamed:
        raise UsageError(
            f"Method '{name}' acts on each identity, and that of {', '.join(unnamed[:5])} is not known: identify it by name or face, or "
            "use a method that works from the photo alone."
        )


def _forgotten_elsewhere(chain: Chain, run: Run) -> int:
    """Return the number of people that earlier batches forgot in models that a run was not computed from."""
    weights = {run.weights, *ancestors(run)}
    return sum(1 for entry in chain.entries if entry.kind == "applied" and entry.content["weights_after"] not in weights)


def _elsewhere(people: int) -> str:
    who = "1 person who was" if people == 1 else f"{people} people who were"
    return f"The model was not computed from that of an earlier batch, so {who} forgotten then may not be forgotten in it."


def _record(desk: Desk, batch: Entry, run: Run, made: Run, reporter: Reporter, now: datetime | None) -> dict[str, Any]:
    """Write the receipts of a batch and its entries. Requests that have them already are left as they are.

    Raises:
        OneshuiError: The new model on the disk is not the one of its record, or cannot be loaded.
    """
    moment, report = now or datetime.now(UTC), made.record.report
    weights = made.require_complete().weights
    load_model(made.path)
    requests = desk.requests()
    keep_labels(desk, [requests[id] for id in batch.content["requests"] if requests[id].state == "identified"], run)
    name = batch.content["method"]
    costs = {
        "estimate": batch.content.get("estimate"),
        "val_loss": measure_val_loss(made, run, name, Plugins(METHODS).load(name), reporter),
    }
    results: list[dict[str, Any]] = []

    def draft(chain: Chain, key: SigningKey) -> list[Draft]:
        drafts, lost = [], _forgotten_elsewhere(chain, run)
        for place, id in enumerate(batch.content["requests"]):
            request = chain.requests[id]
            if request.state != "identified":
                continue
            verified = {"weights": weights, **judged(report, place)}
            applied = _applied(batch, made, verified, lost, costs)
            receipt = make_receipt(key, request, applied, verified, write_moment(moment), chain.head)
            file = receipt_file(desk.folder, id)
            file.parent.mkdir(mode=0o700, exist_ok=True)
            write_bytes(file, receipt)
            applied |= {"receipt": hashlib.sha256(receipt).hexdigest()}
            drafts += [Draft("applied", id, applied), Draft("verified", id, verified)]
            results.append({"request": id, "receipt": str(file), **verified})
        return drafts

    chain = desk.ledger.append(draft, moment)
    return {
        "batch": batch.content["batch"],
        "method": batch.content["method"],
        "requests": results,
        "run": str(made.path),
        **costs,
        "destroyed": report.get("destroyed"),
        "head": chain.head,
    }


def _applied(batch: Entry, made: Run, verified: Mapping[str, Any], lost: int, costs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of the entry `applied`, without the receipt's hash."""
    record, report = made.record, made.record.report
    people = report.get("people")
    not_measured = [*NOT_MEASURED]
    not_measured += [NO_RANGE] if verified["verdict"] == UNKNOWN else []
    not_measured += [NO_CHANGE] if shows_no_change(verified) else []
    not_measured += [PREDICTED] if verified["labels"] == "predicted" else []
    not_measured += [UNLIKE] if verified["unlike_photos"] else []
    not_measured += [NO_ESTIMATE] if costs["estimate"] is None else [NO_VAL] if costs["val_loss"] is None else []
    return {
        "batch": batch.content["batch"],
        "people_in_batch": people if isinstance(people, int) else len(batch.content["requests"]),
        "method": batch.content["method"],
        "method_from": report.get("method_from"),
        "method_options": report.get("method_options", {}),
        "seed": record.seed,
        "weights_before": batch.content["weights_before"],
        "weights_after": verified["weights"],
        "files": hash_model(made.path),
        "destroyed": report.get("destroyed", 0),
        "seconds": report.get("seconds"),
        **costs,
        "not_done": [*NOT_DONE, *([_elsewhere(lost)] if lost else [])],
        "not_measured": not_measured,
    }

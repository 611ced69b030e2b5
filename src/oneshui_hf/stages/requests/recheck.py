"""Are the people who were forgotten earlier still forgotten in this model?

oneshui requests recheck --run RUN

One photo of one person shows little, so four findings are combined, and each verdict lists those that it rests on:

- `weights`: the model is one that the ledger has from before the request, or was computed from one, and not from the model of the receipt.
  This is certain.
- `split`: the model is a newly trained one, and the person's name is in the training set of its split. This is certain, too.
- `range`: the loss of the photo is below that of 95 % of unseen identities' photos. By chance, this is so for 1 in 20 photos of unseen
  identities, and a photo that the model finds difficult can be remembered and still be in the range.
- `receipt`: at least half of the change of the loss that the receipt contains is undone. It is used for models that were computed from the
  one of the receipt: two independent trainings differ in the loss of one photo even if neither used the person.

With the photo of the receipt, the loss refers to the labels of the receipt, which the model before predicted and the desk kept encrypted.
With another photo, it refers to the labels that the model itself predicts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ...data.images import decode, to_pixels
from ...data.split import load_split
from ...desk.desk import Desk
from ...desk.entries import LIKE_UNSEEN, Draft, shows_no_change
from ...desk.ledger import Chain
from ...desk.signing import SigningKey
from ...desk.states import Request, require_known
from ...errors import UsageError
from ...models.load import load_model
from ...models.outputs import losses, predicted_labels
from ...runs import SPLIT, Run
from ..desk_options import RecheckOptions
from ..unseen_range import NOT_YET, TOO_MUCH, UNKNOWN, range_for_predicted_labels, unseen_ends
from .lineage import ancestors, trained_from

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from ...data.preprocess import Preprocess
    from ...data.schema import Task

    Loaded = tuple[torch.nn.Module, Preprocess, Task]

NO_LONGER = "no longer"
UNDONE = 0.5  # of the change of the loss in the receipt
CLEAR_CHANGE = 0.1  # of the width of the range of unseen identities: a smaller one may be undone by any later change of the model

ATTACKS = "Membership attacks were not run: they need the person's training photos and reference models."
NO_RANGE = "The range of unseen identities is not known: the run was trained by an earlier version, or val was empty."
OTHER_PHOTO = "The loss was not compared with the receipt: the photo or the labels to which the receipt refers are not at hand."
NO_SPLIT = "Whether the person is in the training set is not known: the run has no split, or the person's name is not known."
TRAINED_AGAIN = "The loss was not compared with the receipt: the model was not computed from the one of the receipt."
SMALL_CHANGE = "The loss was not compared with the receipt: the request changed it too little to show that the change is undone."
WAS_IN_RANGE = "The photo's loss was in the range of unseen identities before the request as well, so the range cannot show a relapse."


def recheck_requests(
    desk: Desk, run: Run, options: RecheckOptions, photo: bytes | None = None, now: datetime | None = None
) -> dict[str, Any]:
    """Examine whether the people of applied requests are still forgotten in a model, and record it.

    Args:
        desk: The desk.
        run: The model.
        options: The requests.
        photo: The photo of the one request that is named; the kept ones by default.
        now: The time of the entries.

    Returns:
        `run`, `requests` (a row each: `request`, and what the entry `rechecked` contains), `skipped` (the requests whose photo was
        erased), and `head`, the hash of the ledger's last entry.

    Raises:
        UsageError: No request can be examined, or a named one was not applied or has no photo.
        OneshuiError: The run is damaged, or a photo cannot be read.
    """
    requests = desk.requests()
    chosen = [require_known(requests, id) for id in dict.fromkeys(options.requests)]
    if photo is not None and len(chosen) != 1:
        raise UsageError("--image is the photo of one request; name this request.")
    for request in chosen:
        request.require("rechecked")
        if request.last("verified") is None:
            raise UsageError(f"{request.id} was refused, so no model forgot the person.")
        if photo is None and request.erased:
            raise UsageError(f"The photo of {request.id} was erased; give one with --image, and name this request alone.")
    chosen = chosen or [request for request in requests.values() if request.last("verified")]
    skipped = [request.id for request in chosen if photo is None and request.erased]
    chosen = [request for request in chosen if request.id not in skipped]
    if not chosen:
        raise UsageError(
            f"The photos of all {len(skipped)} applied requests were erased; name one request, and give its photo with --image."
            if skipped
            else "No request was applied, so there is nothing to check; `oneshui requests list` shows their states."
        )
    loaded = load_model(run.require_complete().path)
    earlier = _earlier_weights(desk.ledger.read())
    sources = {run.weights, *ancestors(run), *trained_from(run)}
    rows = [_examine(desk, request, run, loaded, photo, earlier[request.id], sources) for request in chosen]

    def draft(chain: Chain, key: SigningKey) -> list[Draft]:
        return [Draft("rechecked", request.id, row) for request, row in zip(chosen, rows, strict=True)]

    head = desk.ledger.append(draft, now).head
    return {
        "run": str(run.path),
        "requests": [{"request": request.id, **row} for request, row in zip(chosen, rows, strict=True)],
        "skipped": skipped,
        "head": head,
    }


def keep_labels(desk: Desk, requests: Sequence[Request], run: Run) -> None:
    """Keep the labels that a model predicts for the photos of requests, before it forgets them. The losses of the receipts refer to them.

    Args:
        desk: The desk.
        requests: The requests.
        run: The model before the change.
    """
    loaded = load_model(run.path)
    names = loaded[2].label_names
    for request in requests:
        kept = desk.kept(request)
        logits = _logits(decode(kept.photo(), request.id), loaded)
        labels = predicted_labels(logits, loaded[2].kind)[0]
        values = labels.tolist() if loaded[2].kind == "multi_label" else [float(number == int(labels)) for number in range(len(names))]
        kept.keep_labels(dict(zip(names, values, strict=True)))


def _examine(
    desk: Desk, request: Request, run: Run, loaded: Loaded, photo: bytes | None, earlier: set[str], sources: set[str]
) -> dict[str, Any]:
    """Return the content of the entry of one request.

    Args:
        desk: The desk.
        request: The request.
        run: The model.
        loaded: The model, loaded.
        photo: A photo that was given; the kept one by default.
        earlier: Hashes of the weights of the models before the request.
        sources: Hashes of the weights of the model, and of those that it was computed from.
    """
    verified = _content(request, "verified")
    kept = desk.kept(request)
    is_the_same = kept.readable and (photo is None or kept.has_photo(photo, request.entries[0].content["photo"]))
    labels = kept.labels() if is_the_same else None
    if labels is not None and list(labels) != list(loaded[2].label_names):
        labels = None  # a later model may predict others
    image = decode(kept.photo() if photo is None else photo, request.id)
    loss = _loss(image, loaded, labels)
    report = run.record.report
    ends = unseen_ends(report, "predicted") if labels is None else range_for_predicted_labels(report)
    descends = verified["weights"] in sources
    is_older = not descends and not sources.isdisjoint(earlier)
    change = _clear_change(verified)
    returned = (verified["loss_after"] - loss) / change if labels is not None and loss is not None and change is not None else None
    compared = returned if descends else None
    in_training = _is_in_training(desk, request, run)
    verdict, shown_by = decide(
        loss, ends, is_older=is_older, in_training=bool(in_training), returned=compared, was_below=verified["verdict"] == NOT_YET
    )
    not_measured = [ATTACKS]
    not_measured += [NO_RANGE] if ends is None else [WAS_IN_RANGE] if shows_no_change(verified) else []
    not_measured += [NO_SPLIT] if in_training is None else []
    not_measured += [OTHER_PHOTO] if labels is None else [SMALL_CHANGE] if change is None else [] if descends else [TRAINED_AGAIN]
    return {
        "weights": run.weights,
        "photo": "kept" if photo is None else "given again",
        "labels": "predicted" if labels is None else "those of the receipt",
        "loss": loss,
        "loss_before": verified["loss_before"] if labels is not None else None,
        "loss_after": verified["loss_after"] if labels is not None else None,
        "returned": returned,
        "unseen": ends,
        "verdict": verdict,
        "shown_by": shown_by,
        "not_measured": not_measured,
    }


def decide(
    loss: float | None, ends: Sequence[float] | None, *, is_older: bool, in_training: bool, returned: float | None, was_below: bool
) -> tuple[str, list[str]]:
    """Return the verdict on one photo, and the findings that show a relapse.

    Args:
        loss: The loss of the photo; None if it is not finite, which is larger than every number.
        ends: The 5 % and 95 % quantiles of the loss of unseen identities' photos, if they are known.
        is_older: Whether the model is one from before the request, or was computed from one.
        in_training: Whether the model was trained on the person, by its split.
        returned: The share of the receipt's change that is undone, if it can be compared.
        was_below: Whether the loss was below the range in the receipt as well: then the person was never like an unseen identity.
    """
    is_below = ends is not None and loss is not None and loss < ends[0]
    findings = {
        "weights": is_older,
        "split": in_training,
        "range": is_below and not was_below,
        "receipt": returned is not None and returned >= UNDONE,
    }
    if shown_by := [name for name, found in findings.items() if found]:
        return NO_LONGER, shown_by
    if ends is None:
        return UNKNOWN, []
    if is_below:
        return NOT_YET, []
    return TOO_MUCH if loss is None or loss > ends[1] else LIKE_UNSEEN, []


def _is_in_training(desk: Desk, request: Request, run: Run) -> bool | None:
    """Return whether a newly trained model was trained on the person, by its split; None if this is not known.

    An unlearned model has the split of its original, with the people who were forgotten.
    """
    if run.record.kind == "unlearned":
        return False
    if not desk.kept(request).readable or (name := desk.identity(request)) is None or not (run.path / SPLIT).exists():
        return None
    return name in load_split(run.require_split().path / SPLIT).people["train"]


def _clear_change(verified: Mapping[str, Any]) -> float | None:
    """Return by how much a request raised the loss of its photo; None if not clearly, or if the range is not known."""
    before, after, ends = verified["loss_before"], verified["loss_after"], verified["unseen"]
    if before is None or after is None or ends is None or after - before <= CLEAR_CHANGE * (ends[1] - ends[0]):
        return None
    return float(after - before)


def _earlier_weights(chain: Chain) -> dict[str, set[str]]:
    """Return the hashes of the weights of all models that the ledger has from before each request was applied, by request.

    A model that a request left unchanged is not from before it.
    """
    made_from: dict[str, str] = {}
    found: dict[str, set[str]] = {}
    for entry in chain.entries:
        if entry.kind != "applied":
            continue
        before, after = str(entry.content["weights_before"]), str(entry.content["weights_after"])
        made_from.setdefault(after, before)
        found[str(entry.request)] = set(_walk(made_from, before)) - {after}
    return found


def _walk(made_from: Mapping[str, str], weights: str) -> Iterator[str]:
    seen = set[str]()
    while weights not in seen:
        seen.add(weights)
        yield weights
        weights = made_from.get(weights, weights)


def _content(request: Request, kind: str) -> Mapping[str, Any]:
    entry = request.last(kind)
    assert entry is not None
    return entry.content


def _loss(image: Image, loaded: Loaded, labels: Mapping[str, float] | None) -> float | None:
    """Return the loss of a photo, for labels by name or those that the model predicts; None if it is not finite."""
    import torch

    logits, kind = _logits(image, loaded), loaded[2].kind
    if labels is None:
        targets = predicted_labels(logits, kind)
    else:
        values = torch.tensor([list(labels.values())])
        targets = values if kind == "multi_label" else values.argmax(dim=1)
    loss = float(losses(logits, targets, kind)[0])
    return loss if math.isfinite(loss) else None


def _logits(image: Image, loaded: Loaded) -> torch.Tensor:
    import torch

    model, preprocess, _ = loaded
    with torch.no_grad():
        logits: torch.Tensor = model(pixel_values=preprocess(torch.from_numpy(to_pixels(image, preprocess.size)[None]))).logits
    return logits

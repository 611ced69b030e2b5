"""Who the person of a request is, and whether the model was trained on them.

oneshui requests identify R-000007 --run RUN

A name is looked up in the run's split. Without a name, the face on the photo is compared with the identities that a preparation enrolled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from ...data.images import decode
from ...data.split import load_split
from ...desk.desk import Desk
from ...desk.states import Request
from ...errors import UsageError
from ...methods.artefact import Artefact, read_header
from ...methods.identity_store import INDEX
from ...recognition.encoders import EXTRA
from ...recognition.matching import Calibration, Match
from ...reporting import SILENT, Reporter
from ...runs import METHODS, SPLIT, Run
from ..desk_options import IdentifyOptions
from ..distributed import make_accelerator
from ..identify import RECOGNITION, match_people


def identify_request(
    desk: Desk, run: Run, options: IdentifyOptions, reporter: Reporter = SILENT, now: datetime | None = None
) -> dict[str, Any]:
    """Find out who the person is, and record it.

    Args:
        desk: The desk.
        run: The model.
        options: The request and the way.
        reporter: For notes, and the question about an uncertain match.
        now: The time of the entry.

    Returns:
        `request`, `state`, `found_by` (None if the person is not known to the model), `basis` and `match`; and `identity`, the name,
        which is personal data and is printed on a terminal only.

    Raises:
        UsageError: The request cannot be identified in its state, or there is neither a name nor an enrolment.
        OneshuiError: The photo was erased, or the run is damaged.
    """
    request = desk.find(options.request)
    request.require("identified")
    if options.photo_alone and options.identity:
        raise UsageError("--photo-alone is for a person whose identity in the training data is not known; leave out --identity.")
    identity, match = options.identity or desk.identity(request), None
    found_by: str | None
    if options.photo_alone:
        identity, found_by, basis = None, "photo alone", "An operator states that the photo shows the person who made the request."
    elif identity is not None:
        found_by, basis = _look_up(run, identity)
    else:
        identity, found_by, basis, match = _compare_faces(desk, request, run, options, reporter)

    def content(request: Request) -> dict[str, Any]:
        about = {"weights": run.weights, "match": match, "basis": basis}
        if found_by is None:
            return about
        return about | {"found_by": found_by, "identity": desk.kept(request).keep_identity(identity) if identity else None}

    kind = "identified" if found_by else "unidentified"
    request = desk.record(request.id, kind, content, now)
    about = {"request": request.id, "state": request.state, "found_by": found_by, "basis": basis, "match": match}
    return about | {"identity": identity if found_by else None}


def _look_up(run: Run, identity: str) -> tuple[str | None, str]:
    """Return how a name was found in a run's split, None if the model was not trained on it, and a sentence that states it."""
    if not (run.path / SPLIT).exists():
        return (
            "operator",
            "An operator states who it is. The run has no split, so whether the model was trained on the person is not known.",
        )
    people = load_split(run.require_split().path / SPLIT).people
    if identity in people["train"]:
        return "name", "The name is in the training set of the run's split."
    other = next((name for name, members in people.items() if identity in members), None)
    if other:
        return (
            None,
            f"Nothing was trained on this person: the name is in the set '{other}' of the run's split, which is not used in training.",
        )
    return None, "Nothing was trained on this person: the name is in no set of the run's split."


def _compare_faces(
    desk: Desk, request: Request, run: Run, options: IdentifyOptions, reporter: Reporter
) -> tuple[str | None, str | None, str, dict[str, Any]]:
    """Return the identity that the face on the photo belongs to, how it was found, a sentence, and the numbers of the match."""
    artefact = enrolled_artefact(run)
    photo = decode(desk.kept(request).photo(), request.id)
    (match,), calibration = match_people([photo], artefact, options.face_encoder, make_accelerator(), reporter)
    numbers = _numbers(match, calibration)
    if match.accepted:
        return (
            match.person,
            "photo",
            f"The face matches one of {calibration.enrolled} enrolled identities, from the calibrated threshold on.",
            numbers,
        )
    if match.person is not None and reporter.confirm(f"{match} Does the photo show '{match.person}'?"):
        return match.person, "operator", "The best match is below the calibrated threshold, and an operator confirmed it.", numbers
    if match.person is None:
        return None, None, "No face was found on the photo, so it was compared with no enrolled identity.", numbers
    missed = calibration.false_non_match_rate
    rests = f", and {missed.value:.1%} of photos of enrolled people do not" if missed else ""
    basis = f"The face matches none of {calibration.enrolled} enrolled identities: it does not reach the calibrated threshold{rests}."
    return None, None, basis, numbers


def _numbers(match: Match, calibration: Calibration) -> dict[str, Any]:
    rate, missed = calibration.false_match_rate, calibration.false_non_match_rate
    return {
        "similarity": _finite(match.similarity),
        "lead": _finite(match.runner_up_margin),
        "threshold": calibration.threshold,
        "margin": calibration.margin_threshold,
        "accepted": match.accepted,
        "enrolled": calibration.enrolled,
        "false_match_rate": rate.value,
        "false_match_rate_upper": rate.upper,
        "false_non_match_rate": missed.value if missed else None,
    }


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def enrolled_artefact(run: Run) -> Artefact:
    """Return the first artefact of a run that can identify photos.

    Raises:
        UsageError: There is none.
    """
    for name in _methods_with_identities(run):
        if RECOGNITION in read_header(run.artefact(name))["values"]:
            return Artefact.load(run.artefact(name), name, run.require_complete().weights)
    raise UsageError(
        f"{run.path} has enrolled no identity, so the photo cannot be identified: name the person with --identity, state --photo-alone, or "
        f"prepare a per-identity method with a face encoder (`{EXTRA}`)."
    )


def _methods_with_identities(run: Run) -> Iterator[str]:
    yield from sorted(folder.name for folder in (run.path / METHODS).glob("[!.]*/") if (folder / INDEX).exists())

"""Identification: face templates of the training identities, computed during preparation and compared with the photo of a request.

Only for methods with `per_identity`. A template is personal data. It is encrypted together with the data prepared for the same identity,
with the same secret, and destroyed with it. The name of the encoder and its error rates are public.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator

from ..data.face_set import FaceSet
from ..data.images import decode
from ..data.schema import Faces
from ..errors import OneshuiError, UsageError
from ..methods.artefact import Artefact
from ..methods.base import Context
from ..methods.identity_store import IdentityStore
from ..methods.resume import ResumeState
from ..methods.simulation import sample
from ..option_values import shown
from ..processes import broadcast_from_main
from ..recognition.encoders import DLIB, EXTRA, NONE, FaceEncoder, load_encoder
from ..recognition.matching import Calibration, Match, calibrate, identify, make_template
from ..reporting import Reporter
from ..seeding import generator
from .run_data import RunData

if TYPE_CHECKING:
    from PIL.Image import Image

ENROLMENT_PHOTOS = 5  # most photos per identity for its template
UNSEEN_PHOTOS, HELD_OUT_PHOTOS = 300, 200  # most photos for the calibration: of unseen identities, and of enrolled ones
CHUNK = 16  # photos decoded at a time
TEMPLATE, RECOGNITION = "signature", "recognition"  # keys of an identity's tensors, and of an artefact's values
OPTION = "face_encoder"  # key of an artefact's report, where texts are never published: the name that loads the encoder


# Preparation


def open_encoder(name: str | None, accelerator: Accelerator, reporter: Reporter) -> FaceEncoder | None:
    """Load the encoder of `--face-encoder`; None, with a note, if none is named and dlib is not installed."""
    with accelerator.main_process_first():  # one process downloads
        encoder = load_encoder(name, accelerator.device)
    if encoder is None and name is None:
        reporter.note(f"dlib is not installed (`{EXTRA}`), so photos will not be identified; requests will need --identity.")
    return encoder


def add_face_templates(artefact: Artefact, encoder: FaceEncoder, name: str | None, data: RunData, context: Context) -> None:
    """Add a face template to the data of each identity, and the calibration to the artefact's values.

    Templates are computed from the original photos of the data set, not from the model's small input. Processes share the photos. If no
    identity can be enrolled, that is a warning: the preparation, which took long, still serves requests with a name.

    Args:
        artefact: The artefact, changed in place.
        encoder: Computes face embeddings.
        name: The value of `--face-encoder`.
        data: The run's data.
        context: The preparation's context.
    """
    photos = _calibration_photos(data, artefact.people, context.seed)
    embeddings = _embed(encoder, data.faces, np.concatenate([faces.rows for faces in photos]), context)
    train, unseen, held_out = embeddings.split([len(faces) for faces in photos])
    templates = {person: found for person, own in _by_person(photos[0], train) if (found := make_template(own)) is not None}
    try:
        calibration = calibrate(templates, unseen, photos[1].identities, held_out=dict(_by_person(photos[2], held_out)))
    except UsageError as problem:
        context.reporter.warn(f"{problem} So photos will not be identified; requests will need --identity.")
        return
    artefact.people = {
        person: {**parts, TEMPLATE: templates[person]} if person in templates else parts for person, parts in artefact.people.items()
    }
    artefact.values[RECOGNITION] = {"encoder": encoder.name, "calibration": calibration.to_dict()}
    artefact.report |= {OPTION: _encoder_source(name), "recognisable": len(templates)}
    context.reporter.note(str(calibration))
    if missing := len(artefact.people) - len(templates):
        context.reporter.note(f"{missing:,} of {len(artefact.people):,} identities cannot be found by a photo: their photos show no face.")


def _encoder_source(name: str | None) -> str:
    """Return a name or absolute path that loads the same encoder from any folder."""
    return str(Path(name).resolve()) if name and Path(name).is_dir() else name or DLIB


def _calibration_photos(data: RunData, people: Collection[str], seed: int) -> tuple[FaceSet, FaceSet, FaceSet]:
    """Draw photos of three kinds: for templates, of unseen identities, and of enrolled identities that are not used for templates."""
    draws = generator(seed, "signatures")
    train, val, reserved = (data.sets[name] for name in ("train", "val", "reserved"))
    enrolment = [
        sample(positions, ENROLMENT_PHOTOS, draws)
        for person, positions in sorted(train.positions_of.items())
        if train.people[person] in people
    ]
    enrolled = [person for person in reserved.positions_of if reserved.people[person] in people]
    held_out = reserved.subset(torch.isin(reserved.identities, torch.tensor(enrolled, dtype=torch.int64)).nonzero().squeeze(1))
    return (
        train.subset(torch.cat([torch.zeros(0, dtype=torch.int64), *enrolment])),
        val.subset(_sample_across_people(val, UNSEEN_PHOTOS, draws)),
        held_out.subset(_sample_across_people(held_out, HELD_OUT_PHOTOS, draws)),
    )


def _sample_across_people(faces: FaceSet, most: int, draws: torch.Generator) -> torch.Tensor:
    """Return up to `most` positions: one photo of each identity in random order, then a second photo of each, and so on."""

    def shuffled(positions: torch.Tensor) -> list[int]:
        return positions[torch.randperm(len(positions), generator=draws)].tolist()

    people = [shuffled(positions) for _, positions in sorted(faces.positions_of.items())] if len(faces) else []
    order = torch.randperm(len(people), generator=draws).tolist()
    rounds = zip_longest(*(people[index] for index in order))
    sampled = [position for turn in rounds for position in turn if position is not None]
    return torch.tensor(sampled[:most], dtype=torch.int64)


def _embed(encoder: FaceEncoder, faces: Faces, rows: np.ndarray, context: Context) -> torch.Tensor:
    """Return the face embeddings of the photos in these rows, (n, d), on every process; each process computes a part of them.

    An interrupted enrolment continues after the photos that were done.
    """
    state = context.resume_state.part("enrolment")
    embeddings, first = _saved_embeddings(state, encoder)
    step = CHUNK * context.accelerator.num_processes
    with state.stoppable():
        starts = range(first, len(rows), step)
        for start in context.reporter.track(starts, "Enrolling identities", len(starts)):
            local = torch.as_tensor(context.local_share(range(start, min(start + step, len(rows)))))
            photos = [decode(faces.encoded_image(row), "a photo of the data set") for row in rows[local.numpy()].tolist()]
            for positions, part in context.gather([(local, encoder(photos))] if photos else []):
                if not len(embeddings):
                    embeddings = torch.zeros(len(rows), part.shape[1])
                embeddings[positions] = part
            if state.should_save():
                state.save({"embeddings": embeddings}, {"encoder": encoder.name, "done": start + step})
    return embeddings


def _saved_embeddings(state: ResumeState, encoder: FaceEncoder) -> tuple[torch.Tensor, int]:
    """Return the embeddings that an interrupted enrolment saved, and the number of photos that it computed; none of another encoder."""
    found = state.load()
    if found is None or found[1]["encoder"] != encoder.name:
        return torch.zeros(0, 0), 0
    return found[0]["embeddings"], int(found[1]["done"])


def _by_person(faces: FaceSet, embeddings: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    for person, positions in sorted(faces.positions_of.items() if len(faces) else ()):
        yield faces.people[person], embeddings[positions]


# Requests


def identify_people(
    photos: Sequence[Image], artefact: Artefact, encoder_name: str | None, accelerator: Accelerator, reporter: Reporter
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Find the identity on each photo, among the identities whose prepared data still exists.

    The similarity is reported. A name is shown only on a terminal, in the question that is asked if a match is uncertain.

    Args:
        photos: Decoded photos, in their full size.
        artefact: The method's artefact.
        encoder_name: The value of `--face-encoder`.
        accelerator: For several processes.
        reporter: Reports similarities and asks the question.

    Returns:
        One identity per photo, and the numbers for the receipt.

    Raises:
        UsageError: No identity was enrolled, or the encoder is not installed, or was not chosen on this machine.
        OneshuiError: A photo is not identified and no user confirms it, or the encoder differs from that of the preparation.
    """
    matches, calibration = match_people(photos, artefact, encoder_name, accelerator, reporter)
    people = []
    for number, match in enumerate(matches, 1):
        label = f"Photo {number} of {len(matches)}: " if len(matches) > 1 else ""
        people.append(_accept(match, label, accelerator, reporter))
    report = {
        "found_by": "photo",
        "similarity": [round(match.similarity, 4) for match in matches],
        "lead": [round(match.runner_up_margin, 4) if math.isfinite(match.runner_up_margin) else None for match in matches],
        "threshold": round(calibration.threshold, 4),
        "margin": round(calibration.margin_threshold, 4),
        "confirmed": sum(not match.accepted for match in matches),
    }
    return tuple(people), report


def match_people(
    photos: Sequence[Image], artefact: Artefact, encoder_name: str | None, accelerator: Accelerator, reporter: Reporter
) -> tuple[list[Match], Calibration]:
    """Compare each photo with the identities whose prepared data still exists, and return the best matches, accepted or not.

    Args:
        photos: As in `identify_people`.
        artefact: As in `identify_people`.
        encoder_name: As in `identify_people`.
        accelerator: As in `identify_people`.
        reporter: For warnings.

    Raises:
        UsageError: No identity was enrolled, or the encoder is not installed, or was not chosen on this machine.
        OneshuiError: No enrolled identity is left, or the encoder differs from that of the preparation.
    """
    encoder, calibration = _load_enrolment(artefact, encoder_name, accelerator)
    templates = {person: parts[TEMPLATE] for person, parts in artefact.people.items() if TEMPLATE in parts}
    if isinstance(artefact.people, IdentityStore) and (unreadable := artefact.people.unreadable):
        reporter.warn(
            f"{unreadable} of the prepared identities cannot be found by a photo: their secret or data is damaged or cannot be read."
        )
    if not templates:
        raise OneshuiError("No identity is left that can be found by a photo; name the person with --identity.")
    matches = [identify(embedding, templates, calibration) for embedding in encoder(photos)]
    return broadcast_from_main(accelerator, matches), calibration


def _load_enrolment(artefact: Artefact, encoder_name: str | None, accelerator: Accelerator) -> tuple[FaceEncoder, Calibration]:
    """Return the encoder and the calibration of the preparation."""
    stored = artefact.values.get(RECOGNITION)
    if not isinstance(stored, dict):
        raise UsageError(
            "The preparation enrolled no identity, so the photo cannot be identified: name the person with --identity, or "
            f"prepare again with a face encoder (`{EXTRA}`)."
        )
    calibration = Calibration.from_dict(stored.get("calibration") or {})
    name = encoder_name or _encoder_of_preparation(artefact)
    with accelerator.main_process_first():
        encoder = load_encoder(name, accelerator.device)
    if encoder is None and name == NONE:
        raise UsageError("Without a face encoder the photo cannot be identified; name the person with --identity.")
    if encoder is None:
        raise UsageError(f"The face encoder that identifies photos is not installed; run `{EXTRA}`, or use --identity.")
    if encoder.name != stored.get("encoder"):
        raise OneshuiError(
            f"Identities were enrolled with the face encoder {shown(stored.get('encoder'))}, and this one is {encoder.name}; "
            "name that one with --face-encoder, prepare again, or name the person with --identity."
        )
    return encoder, calibration


def _encoder_of_preparation(artefact: Artefact) -> str | None:
    """Return the name of the encoder that the preparation used. Another machine's choice would be downloaded and run here.

    Raises:
        UsageError: It is not built in, and the artefact was not prepared on this machine.
    """
    name = artefact.report.get(OPTION)
    if name in (None, DLIB) or (artefact.sealed and isinstance(name, str)):
        return name
    raise UsageError(
        "The identities were enrolled with a face encoder that was not chosen on this machine; name one that you trust with "
        "--face-encoder, or name the person with --identity."
    )


def _accept(match: Match, label: str, accelerator: Accelerator, reporter: Reporter) -> str:
    """Return the identity of a match that is accepted, or that the user at the terminal confirms."""
    if match.person is None:
        raise OneshuiError(
            f"{label}No face was found in the photo, so it cannot be identified; give another photo, or name the person with --identity."
        )
    if match.accepted:
        reporter.note(f"{label}{match}")
        return match.person
    question = f"{label}{match} Does the photo show '{match.person}', and should this person be forgotten?"
    if broadcast_from_main(accelerator, reporter.confirm(question)):
        return match.person
    raise OneshuiError(f"{label}{match} Nothing was changed; give another photo, or name the person with --identity.")

"""Who is on a photo: signatures made of people while their photos are there, and compared when somebody hands one in.

Only for methods that act on people one by one (`personal`). A signature is as personal as a face: it lies encrypted beside what was
prepared for the same person, opens with the same secret, and goes with it. What is public is which encoder it is and how often it errs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ..data.face_set import FaceSet
from ..data.images import decode
from ..data.schema import Faces
from ..errors import OneshuiError, UsageError
from ..methods.artefact import Artefact
from ..methods.base import Context
from ..methods.simulation import sample
from ..recognition.encoders import DLIB, EXTRA, Encoder, load_encoder
from ..recognition.matching import Calibration, Match, calibrate, enrol, recognise
from ..reporting import Reporter
from ..seeding import generator
from .distributed import agree
from .run_data import RunData

ENROLLED, STRANGERS, HELD_OUT = 5, 300, 200  # most photos: of each person, of strangers, and of people enrolled to try them on
CHUNK = 16  # photos that are decoded at a time
SIGNATURE, RECOGNITION = "signature", "recognition"  # among a person's tensors, and among an artefact's values
OPTION = "face_encoder"  # in an artefact's report, whose words are never published: what the encoder is loaded by


# While the training data is there


def open_encoder(name: str | None, accelerator: Accelerator, reporter: Reporter) -> Encoder | None:
    """Load the encoder of `--face-encoder`, and tell where there is none because dlib is not installed."""
    with accelerator.main_process_first():  # one process downloads
        encoder = load_encoder(name, accelerator.device)
    if encoder is None and name is None:
        reporter.note(f"dlib is not installed (`{EXTRA}`), so no photo will tell who is on it; requests will need --identity.")
    return encoder


def enrol_people(artefact: Artefact, encoder: Encoder, name: str | None, data: RunData, context: Context) -> None:
    """Add a signature to what was prepared for each person, and the calibration to the artefact's values.

    Signatures are made of the photos as the data set has them, not of the small pixels that the model sees. Processes share the photos.
    Where nobody can be recognised that is a warning: the preparation, which took long, serves requests with a name.

    Args:
        artefact: What was prepared; changed in place.
        encoder: Makes signatures.
        name: What it was asked for by.
        data: The run's data.
        context: The preparation's.
    """
    chosen = _chosen(data, artefact.people, context.seed)
    signatures = _encoded(encoder, data.faces, np.concatenate([faces.rows for faces in chosen]), context)
    train, strangers, held_out = signatures.split([len(faces) for faces in chosen])
    enrolled = {person: found for person, own in _by_person(chosen[0], train) if (found := enrol(own)) is not None}
    try:
        calibration = calibrate(enrolled, strangers, chosen[1].identities, held_out=dict(_by_person(chosen[2], held_out)))
    except UsageError as problem:
        context.reporter.warn(f"{problem} So no photo will tell who is on it; requests will need --identity.")
        return
    artefact.people = {
        person: {**parts, SIGNATURE: enrolled[person]} if person in enrolled else parts for person, parts in artefact.people.items()
    }
    artefact.values[RECOGNITION] = {"encoder": encoder.name, "calibration": calibration.to_dict()}
    artefact.report |= {OPTION: _option(name), "recognisable": len(enrolled)}
    context.reporter.note(str(calibration))
    if lacking := len(artefact.people) - len(enrolled):
        context.reporter.note(f"{lacking:,} of {len(artefact.people):,} people cannot be found by a photo: there is no face in theirs.")


def _option(name: str | None) -> str:
    """Return what loads the same encoder from any folder."""
    return str(Path(name).resolve()) if name and Path(name).is_dir() else name or DLIB


def _chosen(data: RunData, people: Collection[str], seed: int) -> tuple[FaceSet, FaceSet, FaceSet]:
    """Draw the photos: to enrol people with, of strangers, and of people enrolled that they are not enrolled with."""
    draws = generator(seed, "signatures")
    train, val, reserved = (data.sets[name] for name in ("train", "val", "reserved"))
    theirs = [
        sample(positions, ENROLLED, draws) for person, positions in sorted(train.positions_of.items()) if train.people[person] in people
    ]
    kept = [person for person in reserved.positions_of if reserved.people[person] in people]
    known = reserved.subset(torch.isin(reserved.identities, torch.tensor(kept, dtype=torch.int64)).nonzero().squeeze(1))
    return (
        train.subset(torch.cat([torch.zeros(0, dtype=torch.int64), *theirs])),
        val.subset(_spread(val, STRANGERS, draws)),
        known.subset(_spread(known, HELD_OUT, draws)),
    )


def _spread(faces: FaceSet, most: int, draws: torch.Generator) -> torch.Tensor:
    """Return up to `most` positions: one photo of everybody in a drawn order, then a second, and so on."""

    def shuffled(positions: torch.Tensor) -> list[int]:
        return positions[torch.randperm(len(positions), generator=draws)].tolist()

    people = [shuffled(positions) for _, positions in sorted(faces.positions_of.items())] if len(faces) else []
    order = torch.randperm(len(people), generator=draws).tolist()
    rounds = zip_longest(*(people[place] for place in order))
    drawn = [position for turn in rounds for position in turn if position is not None]
    return torch.tensor(drawn[:most], dtype=torch.int64)


def _encoded(encoder: Encoder, faces: Faces, rows: np.ndarray, context: Context) -> torch.Tensor:
    """Return the signatures of the photos in these rows, (n, d), the same in every process; each makes a part of them."""
    accelerator = context.accelerator
    mine = torch.arange(len(rows))[accelerator.process_index :: accelerator.num_processes]
    chunks = mine.split(CHUNK) if len(mine) else ()
    parts = []
    for places in context.reporter.track(chunks, "Enrolling people", len(chunks)):
        parts.append(encoder([decode(faces.image(row), "a photo of the data set") for row in rows[places.numpy()].tolist()]))
    found = gather_object([(mine, torch.cat(parts))] if parts else [])
    signatures = torch.zeros(len(rows), found[0][1].shape[1] if found else 0)
    for places, some in found:
        signatures[places] = some
    return signatures


def _by_person(faces: FaceSet, signatures: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    for person, positions in sorted(faces.positions_of.items() if len(faces) else ()):
        yield faces.people[person], signatures[positions]


# When somebody asks


def recognise_people(
    images: Sequence[str], artefact: Artefact, accelerator: Accelerator, reporter: Reporter
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Find who is on each photo, among those for whom something is prepared and not used up.

    How alike they are is told; a name is shown on a terminal alone, where somebody is asked because it is not certain.

    Returns:
        An identity a photo, and what the receipt tells of it: numbers.

    Raises:
        UsageError: Nobody was enrolled, or the encoder is not installed.
        OneshuiError: A photo is not recognised and nobody confirms it, or the encoder is another one than people were enrolled with.
    """
    encoder, calibration = _as_enrolled(artefact, accelerator)
    people = {person: parts[SIGNATURE] for person, parts in artefact.people.items() if SIGNATURE in parts}
    if not people:
        raise OneshuiError("Nobody is left who can be found by a photo; say who is on it with --identity.")
    signatures = encoder([decode(image) for image in images])
    matches = agree(accelerator, [recognise(signature, people, calibration) for signature in signatures])
    found = []
    for number, match in enumerate(matches, 1):
        where = f"Photo {number} of {len(matches)}: " if len(matches) > 1 else ""
        found.append(_certain(match, where, accelerator, reporter))
    told = {
        "found_by": "photo",
        "similarity": [round(match.similarity, 4) for match in matches],
        "lead": [round(match.lead, 4) if math.isfinite(match.lead) else None for match in matches],
        "threshold": round(calibration.threshold, 4),
        "margin": round(calibration.margin, 4),
        "confirmed": sum(not match.accepted for match in matches),
    }
    return tuple(found), told


def _as_enrolled(artefact: Artefact, accelerator: Accelerator) -> tuple[Encoder, Calibration]:
    """Return the encoder that people were enrolled with, and the calibration."""
    stored = artefact.values.get(RECOGNITION)
    if not isinstance(stored, dict):
        raise UsageError(
            "Nobody was enrolled when this was prepared, so the photo does not tell who is on it: name the person with --identity, or "
            f"prepare again with a face encoder (`{EXTRA}`)."
        )
    calibration = Calibration.from_dict(stored.get("calibration") or {})
    with accelerator.main_process_first():
        encoder = load_encoder(artefact.report.get(OPTION), accelerator.device)
    if encoder is None:
        raise UsageError(f"The face encoder that finds people by their photos is not installed; run `{EXTRA}`, or use --identity.")
    if encoder.name != stored.get("encoder"):
        raise OneshuiError(
            f"People were enrolled with the face encoder {stored.get('encoder')}, and this one is {encoder.name}; install that one, "
            "prepare again, or name the person with --identity."
        )
    return encoder, calibration


def _certain(match: Match, where: str, accelerator: Accelerator, reporter: Reporter) -> str:
    """Return who is on a photo, where it is certain or somebody at the terminal says so; tell how certain it is."""
    if match.person is None:
        raise OneshuiError(
            f"{where}No face was found in the photo, so it does not tell who is on it; hand in another one, or name the person "
            "with --identity."
        )
    if match.accepted:
        reporter.note(f"{where}{match}")
        return match.person
    question = f"{where}{match} Is it '{match.person}' who is on the photo, and shall they be forgotten?"
    if agree(accelerator, reporter.confirm(question)):
        return match.person
    raise OneshuiError(f"{where}{match} Nothing was done; hand in another photo, or name the person with --identity.")

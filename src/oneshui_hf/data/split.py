"""Who is train, val, test and forget, and which photo is support: one JSON file.

Every choice is the order of SHA-256 hashes of (seed, purpose, key), so a split depends on the seed and on the names alone: the same
bytes on every machine, for every order of rows, in every version of any library.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OneshuiError, UsageError
from ..runs import dump_json, read_json, write_bytes
from .schema import Faces

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}  # of the images; whole people
FORMAT = 1
RESERVED_SHARE = 4  # by default one training person in so many has a photo reserved


@dataclass(frozen=True)
class Split:
    """A split by identity.

    Attributes:
        people: Set name (train, val, test) to identity keys.
        forget: Those of train who ask to be forgotten.
        support: Per person to forget, the photo handed in. In no set, and never trained on.
        reserved: Per person of some others in train, a photo that is never trained on, so that simulated requests can hand in a photo
            that the model has not seen, as real ones do.
    """

    seed: int
    people: dict[str, list[str]]
    forget: list[str]
    support: dict[str, str]
    reserved: dict[str, str]
    format: int = FORMAT

    def save(self, file: Path) -> None:
        """Write the file."""
        write_bytes(file, self.dumps())

    def dumps(self) -> bytes:
        """Return the file's bytes."""
        return dump_json(asdict(self))

    def sets(self, faces: Faces) -> dict[str, np.ndarray]:
        """Return the rows of each set: train, retain, forget, val, test, support, reserved.

        Raises:
            OneshuiError: The split names a person or photo that the data set does not have, or lets one set leak into another.
        """
        code = {person: i for i, person in enumerate(faces.people)}
        for name, people in self.people.items():
            if strangers := [p for p in people if p not in code]:
                raise OneshuiError(
                    f"The split does not fit this data: {len(strangers)} people of its {name} set are not in it; "
                    "use the data set that the split was made for."
                )
        owner = {key: faces.people[i] for key, i in zip(faces.keys, faces.identities, strict=True)}
        held = [*self.support.items(), *self.reserved.items()]
        if lost := [key for _, key in held if key not in owner]:
            raise OneshuiError(f"The split does not fit this data: {len(lost)} of its photos are not in it.")
        self._check()
        for person, key in held:
            if owner[key] != person:
                raise OneshuiError(f"The split names {key} as a photo of {person}, but it shows {owner[key]}; name a photo of {person}.")
        out = np.isin(np.array(faces.keys), [key for _, key in held])

        def rows(people: Iterable[str], photos: np.ndarray) -> np.ndarray:
            member = np.isin(faces.identities, [code[p] for p in people])
            return np.flatnonzero(member & photos)

        asks = set(self.forget)
        return {
            "train": rows(self.people["train"], ~out),
            "retain": rows([p for p in self.people["train"] if p not in asks], ~out),
            "forget": rows(self.forget, ~out),
            "val": rows(self.people["val"], ~out),
            "test": rows(self.people["test"], ~out),
            "support": _photos(faces, self.support),
            "reserved": _photos(faces, self.reserved),
        }

    def _check(self) -> None:
        """Refuse a split, made by hand, in which what must stay apart does not."""
        place: dict[str, str] = {}
        for name, people in self.people.items():
            for person in people:
                if person in place:
                    raise OneshuiError(f"The split names '{person}' in {place[person]} and again in {name}; keep each person in one set.")
                place[person] = name
        for person in self.forget:
            if place.get(person) != "train":
                raise OneshuiError(f"The split lets '{person}' ask to be forgotten, who is not in train; only those trained on can ask.")
        if sorted(self.support) != sorted(self.forget):
            raise OneshuiError("The split's support photos are not one for each person of forget; name one for each, and no other.")
        for person in self.reserved:
            if place.get(person) != "train" or person in self.support:
                raise OneshuiError(f"The split reserves a photo of '{person}', who is not among those of train who stay; remove it.")


def _photos(faces: Faces, photos: Mapping[str, str]) -> np.ndarray:
    row = {key: i for i, key in enumerate(faces.keys)}
    return np.array(sorted(row[key] for key in photos.values()), dtype=np.int64)


def load_split(file: Path) -> Split:
    """Read a split file.

    Raises:
        OneshuiError: It is missing, not a split, or of another format.
    """
    value = read_json(file)
    if not isinstance(value, dict) or set(value) != set(Split.__dataclass_fields__):
        raise OneshuiError(f"{file} is not a split file; `oneshui train` writes one as RUN/split.json.")
    if value["format"] != FORMAT:
        raise OneshuiError(f"{file} has format {value['format']}, this version reads {FORMAT}: upgrade oneshui-hf.")
    if not isinstance(value["people"], dict) or set(value["people"]) != set(SHARES):
        raise OneshuiError(f"{file} does not list the people of train, val and test, and of no other set; repair it.")
    return Split(**value)


def make_split(faces: Faces, seed: int, forget: int, reserve_supports: int | None = None) -> Split:
    """Split by identity: about 60/20/20 of the images in train/val/test.

    Args:
        faces: The data set.
        seed: Another seed, another split.
        forget: How many of train ask to be forgotten; each has at least two photos, one of which becomes the support image.
        reserve_supports: How many others of train keep one photo out of training; one in four where None.

    Raises:
        UsageError: There are not enough people.
    """
    photos: dict[str, list[str]] = {person: [] for person in faces.people}
    for key, identity in zip(faces.keys, faces.identities, strict=True):
        photos[faces.people[identity]].append(key)
    people = _deal(photos, seed)
    for name, members in people.items():
        if not members:
            raise UsageError(f"{len(photos)} people are too few to split by identity: nobody is left for {name}.")
    able = _shuffled([p for p in people["train"] if len(photos[p]) >= 2], seed, "forget")
    if forget > len(able):
        raise UsageError(f"--forget {forget} is more than the {len(able)} training people with two photos or more.")
    others = [p for p in able[forget:] if len(photos[p]) >= 3]  # two stay to be trained on
    reserve = len(others) // RESERVED_SHARE if reserve_supports is None else reserve_supports
    if reserve > len(others):
        raise UsageError(f"--reserve-supports {reserve} is more than the {len(others)} training people with three photos or more.")

    def one_photo(of: list[str]) -> dict[str, str]:
        return {p: _shuffled(photos[p], seed, "support")[0] for p in sorted(of)}

    return Split(seed, people, sorted(able[:forget]), one_photo(able[:forget]), one_photo(others[:reserve]))


def _deal(photos: Mapping[str, list[str]], seed: int) -> dict[str, list[str]]:
    """Deal shuffled people, each to the set that is furthest below its share of the images."""
    sets: dict[str, list[str]] = {name: [] for name in SHARES}
    images = dict.fromkeys(SHARES, 0)
    for person in _shuffled(photos, seed, "deal"):
        name = min(SHARES, key=lambda s: images[s] / SHARES[s])
        sets[name].append(person)
        images[name] += len(photos[person])
    return {name: sorted(members) for name, members in sets.items()}


def _shuffled(names: Iterable[str], seed: int, purpose: str) -> list[str]:
    def place(name: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{purpose}\0{name}".encode()).digest()

    return sorted(names, key=place)


def summary(split: Split, sets: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the counts that may be told of a split: images per set, people asked for."""
    return {"images": {name: len(rows) for name, rows in sets.items()}, "forget_identities": len(split.forget)}

"""Splits by identity: the people of train, val, test and forget, and the support photos, in one JSON file.

Every choice is the order of SHA-256 hashes of (seed, purpose, key). A split therefore depends only on the seed and the names: the file is
the same on every machine, for every order of rows and every version of a library.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sized
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OneshuiError, UsageError
from ..files import write_bytes
from ..runs import dump_json, read_json
from .schema import Faces

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}  # of the images; all images of a person are in one set
FORMAT = 2
RESERVED_ONE_IN = 4  # by default, one of this many training people has a reserved photo
META_IDENTITIES = ("all", "disjoint")


@dataclass(frozen=True)
class Split:
    """A split by identity.

    Attributes:
        people: Set name (train, val, test) to identity keys.
        forget: The forget identities, a subset of train.
        support: The support photo of each forget identity. It is in no set and never used in training.
        reserved: One photo of some people of train that is never used in training, so that the support photos of simulated requests are
            unseen by the model, like those of real requests.
        meta_identities: Identities used in simulated requests: "all" training identities, including the forget identities, as in practice,
            where future requests are unknown; or "disjoint", only those outside the forget set.
    """

    seed: int
    people: dict[str, list[str]]
    forget: list[str]
    support: dict[str, str]
    reserved: dict[str, str]
    meta_identities: str
    format: int = FORMAT

    def save(self, file: Path) -> None:
        """Write the file. It names people, so only the owner may read it."""
        write_bytes(file, self.dumps(), private=True)

    def dumps(self) -> bytes:
        """Return the content of the file."""
        return dump_json(asdict(self))

    def restricted_to(self, faces: Faces) -> tuple[Split, tuple[str, ...]]:
        """Return the split restricted to the people and photos of the data, and sentences that state what is missing.

        A split is made for a complete data set; a copy may lack photos. A forget identity whose support photo is missing is also removed
        from the training set: runs on the complete data forget this person, so the person must not be in the retain set here.

        Raises:
            OneshuiError: The data lacks more than half of the people, or all people of a set: the split was made for another data set.
        """
        known, keys = set(faces.people), set(faces.keys)
        support = {person: key for person, key in self.support.items() if person in known and key in keys}
        without_support = set(self.forget) - set(support)
        people = {name: [p for p in members if p in known and p not in without_support] for name, members in self.people.items()}
        total = sum(map(len, self.people.values()))
        missing = total - sum(map(len, people.values()))
        empty = [name for name in people if not people[name]] + ([] if support or not self.forget else ["forget"])
        if missing > total / 2 or empty:
            what = f"it lacks {missing} of its {total} people" + (f" and all of {' and '.join(empty)}" if empty else "")
            raise OneshuiError(f"The split does not fit this data: {what}; use the data set that the split was made for.")
        reserved = {person: key for person, key in self.reserved.items() if person in known - without_support and key in keys}
        notes = []
        if missing - len(without_support):
            notes.append(f"{missing - len(without_support):,} of the split's {total:,} people have no photo in this data.")
        if without_support:
            notes.append(f"{len(without_support):,} of {len(self.forget):,} forget identities lack the support photo and are excluded.")
        if missing_reserved := len(set(self.reserved) - without_support) - len(reserved):
            notes.append(f"{missing_reserved:,} of {len(self.reserved):,} reserved photos are not in this data.")
        restricted = replace(self, people=people, forget=[p for p in self.forget if p in support], support=support, reserved=reserved)
        return restricted, tuple(notes)

    def without(self, left_out: Collection[str]) -> Split:
        """Return the split without some people, who are in no set then.

        Raises:
            OneshuiError: No person of a set, or no forget identity, remains.
        """
        people = {name: [person for person in members if person not in left_out] for name, members in self.people.items()}
        forget = [person for person in self.forget if person not in left_out]
        if empty := [name for name, members in (people | {"forget": forget}).items() if not members]:
            raise OneshuiError(f"Without the people who are left out, the split has no person for {' and '.join(empty)}; draw a new split.")
        support, reserved = (
            {person: key for person, key in photos.items() if person not in left_out} for photos in (self.support, self.reserved)
        )
        return replace(self, people=people, forget=forget, support=support, reserved=reserved)

    def sets(self, faces: Faces) -> dict[str, np.ndarray]:
        """Return the positions of each set's photos: train, retain, forget, val, test, support, reserved.

        Raises:
            OneshuiError: The split names a person or photo that the data set does not have, or its sets overlap.
        """
        index = {person: i for i, person in enumerate(faces.people)}
        owner = {key: faces.people[i] for key, i in zip(faces.keys, faces.identities.tolist(), strict=True)}
        held = [*self.support.items(), *self.reserved.items()]
        unknown = sum(person not in index for people in self.people.values() for person in people)
        if unknown or any(key not in owner for _, key in held):
            raise OneshuiError(
                f"The split does not fit this data: {unknown} of its people and {sum(key not in owner for _, key in held)} of its "
                "photos are not in it; use the data set that the split was made for."
            )
        self._validate()
        for person, key in held:
            if owner[key] != person:
                raise OneshuiError(
                    f"The split names {key} as a photo of {person}, but it is a photo of {owner[key]}; name a photo of {person}."
                )
        excluded = np.isin(np.array(faces.keys), [key for _, key in held])

        def rows(people: Iterable[str], photos: np.ndarray) -> np.ndarray:
            member = np.isin(faces.identities, [index[p] for p in people])
            return np.flatnonzero(member & photos)

        forget = set(self.forget)
        return {
            "train": rows(self.people["train"], ~excluded),
            "retain": rows([p for p in self.people["train"] if p not in forget], ~excluded),
            "forget": rows(self.forget, ~excluded),
            "val": rows(self.people["val"], ~excluded),
            "test": rows(self.people["test"], ~excluded),
            "support": _positions(faces, self.support),
            "reserved": _positions(faces, self.reserved),
        }

    def _validate(self) -> None:
        """Check a split that may be hand-written.

        Raises:
            OneshuiError: Its sets overlap, or its people, support photos and reserved photos are inconsistent.
        """
        set_of: dict[str, str] = {}
        for name, people in self.people.items():
            for person in people:
                if person in set_of:
                    raise OneshuiError(f"The split names '{person}' in {set_of[person]} and again in {name}; keep each person in one set.")
                set_of[person] = name
        for person in self.forget:
            if set_of.get(person) != "train":
                raise OneshuiError(f"The split has '{person}' in forget but not in train; forget identities must be training identities.")
        if sorted(self.support) != sorted(self.forget):
            raise OneshuiError("The split must have exactly one support photo for each person of forget, and no other.")
        if self.meta_identities not in META_IDENTITIES:
            raise OneshuiError(f"The split's meta_identities are '{self.meta_identities}', neither {' nor '.join(META_IDENTITIES)}.")
        for person, key in self.reserved.items():
            if set_of.get(person) != "train" or (person in self.support and self.meta_identities == "disjoint"):
                raise OneshuiError(
                    f"The split reserves a photo of '{person}', who is not a training identity used in simulated requests; remove it."
                )
            if key == self.support.get(person):
                raise OneshuiError(f"The split reserves the support photo of '{person}'; reserve another photo, or none.")


def _positions(faces: Faces, photos: Mapping[str, str]) -> np.ndarray:
    position = {key: i for i, key in enumerate(faces.keys)}
    return np.array(sorted(position[key] for key in photos.values()), dtype=np.int64)


def published_checksum(dataset: str, seed: int, forget: int) -> str | None:
    """Return the SHA-256 of the published split of a data set, or None if none is published.

    The checksums are published, not the files: `oneshui data split --dataset D --seed S --forget N`, on the data set's own annotation
    files, writes the same file on every machine.
    """
    checksums = json.loads(resources.files(__package__).joinpath("splits.json").read_text(encoding="utf-8"))
    return checksums.get(dataset, {}).get(f"forget {forget}", {}).get(f"seed {seed}")


def load_split(file: Path) -> Split:
    """Read a split file.

    Raises:
        UsageError: The file is missing.
        OneshuiError: It is not a split file, or has another format.
    """
    if not file.is_file():
        raise UsageError(f"Split file {file} does not exist; `oneshui data split` writes one, and every run has its split.json.")
    value = read_json(file)
    known = isinstance(value, dict) and isinstance(value.get("format"), int)
    if known and value["format"] != FORMAT:
        remedy = "upgrade oneshui-hf" if value["format"] > FORMAT else "draw it again with `oneshui data split`"
        raise OneshuiError(f"{file} has format {value['format']}, this version reads {FORMAT}: {remedy}.")
    if not known or set(value) != set(Split.__dataclass_fields__):
        raise OneshuiError(f"{file} is not a split file; `oneshui data split` writes one, and every run has its split.json.")
    if not isinstance(value["people"], dict) or set(value["people"]) != set(SHARES):
        raise OneshuiError(f"{file} must list the people of exactly train, val and test; repair it.")
    lists, maps = [*value["people"].values(), value["forget"]], [value["support"], value["reserved"]]
    is_valid = all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists)
    is_valid &= all(isinstance(photos, dict) and all(isinstance(key, str) for key in photos.values()) for photos in maps)
    if not is_valid or not isinstance(value["seed"], int):
        raise OneshuiError(f"{file} is damaged: people must be lists of names, and photos names by person; draw it again.")
    return Split(**value)


def make_split(
    photos: Mapping[str, list[str]],
    seed: int,
    forget: int,
    reserve_supports: int | None = None,
    meta_identities: str = "all",
) -> Split:
    """Split by identity: about 60/20/20 of the images in train/val/test.

    Args:
        photos: The photo keys of each person.
        seed: Different seeds give different splits.
        forget: Number of forget identities. Each has at least two photos, one of which becomes the support photo.
        reserve_supports: Number of identities, of those used in simulated requests, with a reserved photo; at least two other photos of
            each remain in training. None: one in four.
        meta_identities: Identities used in simulated requests; see `Split`.

    Raises:
        UsageError: There are not enough people.
    """
    people = _assign_people(photos, seed)
    for name, members in people.items():
        if not members:
            raise UsageError(f"{len(photos)} people are too few to split by identity: no person remains for {name}.")
    eligible = _hash_order([p for p in people["train"] if len(photos[p]) >= 2], seed, "forget")
    if forget > len(eligible):
        raise UsageError(f"--forget {forget} is more than the {len(eligible)} training people with two photos or more.")
    chosen = set(eligible[:forget])
    # Two photos remain in training, in addition to the reserved photo and the support photo.
    simulated = [p for p in eligible if len(photos[p]) >= 3 + (p in chosen) and not (meta_identities == "disjoint" and p in chosen)]
    reserve = len(simulated) // RESERVED_ONE_IN if reserve_supports is None else reserve_supports
    if reserve > len(simulated):
        raise UsageError(f"--reserve-supports {reserve} is more than the {len(simulated)} training people with enough photos.")

    def pick(person: str, number: int) -> str:
        return _hash_order(photos[person], seed, "support")[number]

    support = {p: pick(p, 0) for p in sorted(chosen)}
    reserved = {p: pick(p, int(p in chosen)) for p in sorted(_hash_order(simulated, seed, "reserve")[:reserve])}
    return Split(seed, people, sorted(chosen), support, reserved, meta_identities)


def _assign_people(photos: Mapping[str, list[str]], seed: int) -> dict[str, list[str]]:
    """Assign people in hash order, each to the set with the smallest fraction of its share of the images."""
    sets: dict[str, list[str]] = {name: [] for name in SHARES}
    images = dict.fromkeys(SHARES, 0)
    for person in _hash_order(photos, seed, "deal"):
        name = min(SHARES, key=lambda s: images[s] / SHARES[s])
        sets[name].append(person)
        images[name] += len(photos[person])
    return {name: sorted(members) for name, members in sets.items()}


def _hash_order(names: Iterable[str], seed: int, purpose: str) -> list[str]:
    def digest(name: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{purpose}\0{name}".encode()).digest()

    return sorted(names, key=digest)


def split_summary(split: Split, sets: Mapping[str, Sized]) -> dict[str, Any]:
    """Return the public counts of a split: images per set, and forget identities."""
    return {"images": {name: len(rows) for name, rows in sets.items()}, "forget_identities": len(split.forget)}

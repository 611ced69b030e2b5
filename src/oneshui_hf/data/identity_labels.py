"""Finds labels that name a person: a class that only one person has cannot be learned from some people and tested on others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from .identities import folded_name
from .schema import Faces

NUMBER = re.compile(r"[+-]?[0-9.]+")

LABELS_NAME_PEOPLE = "labels_name_people"  # in the description of the data in a run's record
MAX_NAMED = 3  # labels in a sentence about a problem
MAX_LISTED = 40  # labels in the list of all


def labels_of_one_identity(faces: Faces) -> list[str]:
    """Return the labels that occur only on photos of one person: classes, or attributes that are positive there and nowhere else."""
    if len(faces.people) < 2:
        return []
    labels = faces.labels.numpy()
    names = faces.task.label_names
    people = np.zeros(len(names), dtype=np.int64)  # number of people with each label
    if faces.task.kind == "single_label":
        pairs = np.unique(np.stack([labels, faces.identities], axis=1), axis=0)
        people += np.bincount(pairs[:, 0], minlength=len(names))
    else:
        for column in range(len(names)):
            people[column] = len(np.unique(faces.identities[labels[:, column] > 0]))
    return [name for name, count in zip(names, people.tolist(), strict=True) if count == 1]


def names_people(faces: Faces, found: Sequence[str]) -> bool:
    """Return whether all labels that occur are labels of one person, so that they are another name of the person.

    Args:
        faces: The data set.
        found: Its `labels_of_one_identity`.
    """
    labels = faces.labels.numpy()
    single = faces.task.kind == "single_label"
    occurring = len(np.unique(labels)) if single else int((labels > 0).any(axis=0).sum())
    return len(found) > 1 and len(found) == occurring


def describe_identity_labels(faces: Faces, found: Sequence[str]) -> str | None:
    """Return one sentence about labels that cannot be learned across people, or None if there are none.

    Args:
        faces: The data set.
        found: Its `labels_of_one_identity`.
    """
    if not found:
        return None
    unseen = "people of val and test have no example of theirs in train"
    if names_people(faces, found):
        kind = "class" if faces.task.kind == "single_label" else "label"
        return f"Each {kind} occurs for one identity only, so it cannot be learned across people ({unseen}); choose other --label-columns."
    total = len(faces.task.label_names)
    named = [] if set(found) & set(faces.people) else [f"'{name}'" for name in found[:MAX_NAMED]]
    which = f" ({', '.join(named)}{', ...' * (len(found) > MAX_NAMED)})" if named else ""
    verb, subject = ("occurs", "it") if len(found) == 1 else ("occur", "they")
    return f"{len(found):,} of {total:,} labels{which} {verb} for one identity only, so {subject} cannot be learned across people."


def describe_labels(faces: Faces) -> str:
    """Return one sentence that lists the labels, unless they are names of people."""
    names = faces.task.label_names
    kind = "class" if faces.task.kind == "single_label" else "label"
    count = f"{len(names):,} {kind}{('es' if kind == 'class' else 's') if len(names) > 1 else ''}"
    if publish_people(names, faces.people, is_people=names_people(faces, labels_of_one_identity(faces))):
        return f"{count}, which name people."
    more = f" and {len(names) - MAX_LISTED:,} more" if len(names) > MAX_LISTED else ""
    return f"{count}: {', '.join(names[:MAX_LISTED])}{more}."


def publish_people(labels: Iterable[str], people: Iterable[str], *, is_people: bool | None) -> bool:
    """Return whether label names are names of people.

    Names are compared regardless of case and spaces. Numbers often mean something else: the age 12 is not person 12. They count if the
    labels are another name of the people (`names_people`) or, where this is not known, if there is a label for each person.

    Args:
        labels: The label names.
        people: The identity keys.
        is_people: The result of `names_people`; None if it is not known.
    """
    names, known = set(map(folded_name, labels)), set(map(folded_name, people))
    if is_people or any(not NUMBER.fullmatch(name) for name in names & known):
        return True
    return is_people is None and bool(known) and known <= names

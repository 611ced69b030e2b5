"""Is a data set fit: what is missing, broken, contradictory or there twice, and what of it would break a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..errors import OneshuiError
from ..reporting import SILENT, Reporter
from .image_hashes import LOOK, NEAR, look, near_pairs
from .images import ImageError, decode
from .memmap_cache import load_records
from .schema import Faces
from .split import Split, make_split

TINY = 32  # pixels a side; a model sees 56 and more
FIXED = ("male", "female", "gender", "sex")  # labels that are the same on all photos of a person
SETS = ("retain", "forget", "support", "reserved", "val", "test")

Finding = list[Any]


def check(faces: Faces, split: Split | None = None, fixed: Sequence[str] = (), reporter: Reporter = SILENT) -> dict[str, Any]:
    """Look at every photo and every row of a data set.

    Args:
        faces: The data set.
        split: Look for photos that stand in two of its sets, too.
        fixed: Labels that a person cannot have both ways; those called Male or alike where empty.
        reporter: For progress.

    Returns:
        Counts (`images`, `identities`, `images_per_identity`, `class_balance`), a list per finding, and in `breaks` sentences that say
        what would break a run.
    """
    file = faces.cache / "looks.npy"
    records = load_records(file, LOOK, len(faces.rows), lambda row: look(faces.image(row)), "Looking at photos", reporter)
    looks = records.take(np.arange(len(records)), list(LOOK.names or ()))
    bad = faces.stored[~looks["readable"][faces.stored]]
    name = dict(zip(faces.stored.tolist(), faces.keys, strict=True))
    usable = faces.without(bad)
    seen = looks[usable.stored]
    exact, near = _repeats(usable, seen, reporter)
    report = {
        "images": len(usable),
        "identities": len(usable.people),
        "images_per_identity": spread(usable),
        "class_balance": balance(usable),
        "rows_without_image": faces.left_out.without_image,
        "images_without_row": faces.left_out.without_row,
        "images_without_identity": faces.left_out.without_identity,
        "near_duplicates_removed": faces.left_out.near_duplicates,
        "unreadable": [{"photo": name[row], "reason": _reason(faces, row)} for row in bad.tolist()],
        "tiny": [
            {"photo": usable.keys[i], "width": int(seen["width"][i]), "height": int(seen["height"][i])}
            for i in np.flatnonzero(np.minimum(seen["width"], seen["height"]) < TINY)
        ],
        "not_rgb": [{"photo": usable.keys[i], "mode": seen["mode"][i].decode()} for i in np.flatnonzero(seen["mode"] != b"RGB")],
        "single_image_identities": [person for person, photos in usable.photos().items() if len(photos) == 1],
        "contradictory_labels": _contradictions(usable, fixed),
        "constant_labels": _constant(usable),
        "exact_duplicates": [_group(usable, rows) for rows in exact],
        "near_duplicates": [_group(usable, rows) for rows in near],
        "notes": faces.left_out.notes,
    }
    breaks = _breaks(faces, usable)
    if split is not None:
        report |= {"duplicates_across_sets": [], "split_notes": []}
        alike = {row for rows in near for row in rows}
        groups = [*near, *(rows for rows in exact if rows[0] not in alike)]
        try:
            fitted, notes = split.fitted(usable)
            report |= {"duplicates_across_sets": _leaks(usable, fitted, groups), "split_notes": list(notes)}
        except OneshuiError as error:
            breaks.append(str(error))
    return report | {"breaks": breaks}


def _breaks(faces: Faces, usable: Faces) -> list[str]:
    if not len(usable):
        return [f"None of the {len(faces)} photos can be read."]
    photos = usable.photos()
    if all(len(mine) < 2 for mine in photos.values()):
        return ["Nobody has two photos, so nobody could hand in one and be forgotten on another."]
    try:
        make_split(photos, seed=0, forget=1)
    except OneshuiError as error:
        return [str(error)]
    return []


def _reason(faces: Faces, row: int) -> str:
    try:
        decode(faces.image(row), "its place")
    except ImageError as error:
        return str(error).removeprefix("its place ")
    return f"could not be read at first; remove {faces.cache} to try again."


def spread(faces: Faces) -> dict[str, float]:
    """Return the fewest, median, mean and most photos of a person."""
    counts = np.bincount(faces.identities, minlength=1)
    if not len(faces):
        return {"min": 0, "median": 0, "mean": 0, "max": 0}
    numbers = {"min": counts.min(), "median": np.median(counts), "mean": counts.mean().round(2), "max": counts.max()}
    return {key: float(value) for key, value in numbers.items()}


def balance(faces: Faces) -> dict[str, float]:
    """Return the share of photos with each label, or of each class, rounded."""
    return {name: round(share, 4) for name, share in _shares(faces).items()}


def _shares(faces: Faces) -> dict[str, float]:
    names = faces.task.label_names
    if not len(faces):
        return dict.fromkeys(names, 0.0)
    if faces.task.kind == "multi_label":
        shares = faces.labels.double().mean(dim=0).tolist()
    else:
        shares = (np.bincount(faces.labels.numpy(), minlength=len(names)) / len(faces)).tolist()
    return dict(zip(names, shares, strict=True))


def _constant(faces: Faces) -> list[str]:
    """Return the labels that tell nothing: the same on every photo; a class that no photo has."""
    multi = faces.task.kind == "multi_label"
    if not len(faces):
        return []
    return [name for name, share in _shares(faces).items() if share == 0 or (multi and share == 1)]


def _contradictions(faces: Faces, fixed: Sequence[str]) -> list[dict[str, Any]]:
    """Return the people who have a label both ways that a person has one way."""
    if faces.task.kind != "multi_label":
        return []
    labels = faces.labels.numpy()
    found = []
    for column, label in enumerate(faces.task.label_names):
        if label not in fixed and (fixed or label.lower() not in FIXED):
            continue
        yes = np.bincount(faces.identities, weights=labels[:, column], minlength=len(faces.people)).astype(int)
        all_ = np.bincount(faces.identities, minlength=len(faces.people))
        for person in np.flatnonzero((yes > 0) & (yes < all_)).tolist():
            values = {"0": int(all_[person] - yes[person]), "1": int(yes[person])}
            found.append({"identity": faces.people[person], "label": label, "values": values})
    return found


def _repeats(faces: Faces, seen: np.ndarray, reporter: Reporter) -> tuple[list[list[int]], list[list[int]]]:
    """Return groups of photos that are one file, and groups that look alike without all being one file."""
    _, first, file = np.unique(seen["file"], return_index=True, return_inverse=True)
    photos = _grouped(file, range(len(file)))
    exact = [rows for rows in photos.values() if len(rows) > 1]
    pairs = near_pairs(seen["hash"][first], NEAR, reporter)  # of files: a placeholder that is there 10,000 times is one
    near = [sorted(row for number in files for row in photos[number]) for files in _components(pairs, len(first))]
    return sorted(exact), sorted(near)


def _components(pairs: np.ndarray, count: int) -> list[list[int]]:
    """Return the groups that pairs connect."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(count, count))
    group = connected_components(graph, directed=False)[1]
    return list(_grouped(group[np.unique(pairs)], np.unique(pairs).tolist()).values())


def _grouped(numbers: np.ndarray, members: Iterable[int]) -> dict[int, list[int]]:
    """Return the members of each group, in order."""
    found: dict[int, list[int]] = {}
    for number, member in zip(numbers.tolist(), members, strict=True):
        found.setdefault(number, []).append(member)
    return found


def _group(faces: Faces, rows: Iterable[int]) -> dict[str, Any]:
    rows = list(rows)
    people = sorted({faces.people[faces.identities[row]] for row in rows})
    return {"photos": [faces.keys[row] for row in rows], "identities": people}


def _leaks(faces: Faces, split: Split, groups: Iterable[list[int]]) -> list[dict[str, Any]]:
    """Return the groups whose photos stand in more than one set."""
    place = np.full(len(faces), "", dtype=object)
    sets = split.sets(faces)
    for name in SETS:
        place[sets[name]] = name
    found = []
    for rows in groups:
        names = sorted({place[row] for row in rows} - {""}, key=SETS.index)
        if len(names) > 1:
            found.append(_group(faces, rows) | {"sets": names})
    return found

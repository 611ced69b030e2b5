"""Checks a data set for missing, unreadable, contradictory and duplicate photos, and for problems that prevent a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..errors import OneshuiError
from ..reporting import SILENT, Reporter
from ..sets import SPLIT_SETS
from .identity_labels import describe_identity_labels, describe_labels, labels_of_one_identity
from .image_hashes import IMAGE_RECORD, NEAR_DUPLICATE_BITS, find_near_duplicates, hash_image
from .images import ImageError, decode
from .memmap_cache import load_memmap_cache
from .schema import Faces
from .split import Split, make_split

MIN_SIDE = 32  # pixels; the input of a model has 56 and more
FIXED_LABELS = ("male", "female", "gender", "sex")  # labels that are constant for a person


def check_dataset(
    faces: Faces, split: Split | None = None, fixed_labels: Sequence[str] = (), reporter: Reporter = SILENT
) -> dict[str, Any]:
    """Check every photo and every row of a data set.

    Args:
        faces: The data set.
        split: Also report duplicates in different sets of this split.
        fixed_labels: Labels that are constant for a person; `FIXED_LABELS` if empty.
        reporter: For progress.

    Returns:
        Counts (`images`, `identities`, `images_per_identity`, `class_balance`), a list per finding, and in `breaks` sentences about
        problems that prevent a run.
    """
    file = faces.cache / "looks.npy"
    records = load_memmap_cache(
        file, IMAGE_RECORD, len(faces.arrow_dataset), lambda row: hash_image(faces.encoded_image(row)), "Hashing photos", reporter
    )
    properties = records.take(np.arange(len(records)), list(IMAGE_RECORD.names or ()))
    bad = faces.arrow_rows[~properties["readable"][faces.arrow_rows]]
    name = dict(zip(faces.arrow_rows.tolist(), faces.keys, strict=True))
    usable = faces.drop_rows(bad)
    properties = properties[usable.arrow_rows]
    exact, near = _find_duplicates(usable, properties, reporter)
    of_one = labels_of_one_identity(usable)
    report = {
        "images": len(usable),
        "identities": len(usable.people),
        "images_per_identity": image_count_statistics(usable),
        "class_balance": class_balance(usable),
        "rows_without_image": faces.exclusions.without_image,
        "images_without_row": faces.exclusions.without_row,
        "images_without_identity": faces.exclusions.without_identity,
        "near_duplicates_removed": faces.exclusions.near_duplicates,
        "unreadable": [{"photo": name[row], "reason": _decode_error(faces, row)} for row in bad.tolist()],
        "tiny": [
            {"photo": usable.keys[i], "width": int(properties["width"][i]), "height": int(properties["height"][i])}
            for i in np.flatnonzero(np.minimum(properties["width"], properties["height"]) < MIN_SIDE)
        ],
        "not_rgb": [
            {"photo": usable.keys[i], "mode": properties["mode"][i].decode()} for i in np.flatnonzero(properties["mode"] != b"RGB")
        ],
        "single_image_identities": [person for person, photos in usable.photos_by_identity().items() if len(photos) == 1],
        "contradictory_labels": _contradictory_labels(usable, fixed_labels),
        "constant_labels": _constant_labels(usable),
        "exact_duplicates": [_describe_group(usable, rows) for rows in exact],
        "near_duplicates": [_describe_group(usable, rows) for rows in near],
        "labels_of_one_identity": of_one,
        "notes": [*faces.exclusions.notes, describe_labels(usable), *filter(None, [describe_identity_labels(usable, of_one)])],
    }
    breaks = _blocking_problems(faces, usable)
    if split is not None:
        report |= {"duplicates_across_sets": [], "split_notes": []}
        in_near = {row for rows in near for row in rows}
        groups = [*near, *(rows for rows in exact if rows[0] not in in_near)]
        try:
            restricted, notes = split.restricted_to(usable)
            report |= {"duplicates_across_sets": _duplicates_across_sets(usable, restricted, groups), "split_notes": list(notes)}
        except OneshuiError as error:
            breaks.append(str(error))
    return report | {"breaks": breaks}


def _blocking_problems(faces: Faces, usable: Faces) -> list[str]:
    if not len(usable):
        return [f"None of the {len(faces)} photos can be read."]
    photos = usable.photos_by_identity()
    if all(len(keys) < 2 for keys in photos.values()):
        return ["No person has two photos, so no person has both a support photo and a photo to forget."]
    try:
        make_split(photos, seed=0, forget=1)
    except OneshuiError as error:
        return [str(error)]
    return []


def _decode_error(faces: Faces, row: int) -> str:
    try:
        decode(faces.encoded_image(row), "its file")
    except ImageError as error:
        return str(error).removeprefix("its file ")
    return f"could not be read when it was first checked; remove {faces.cache} to try again."


def image_count_statistics(faces: Faces) -> dict[str, float]:
    """Return the minimum, median, mean and maximum number of photos of a person."""
    counts = np.bincount(faces.identities, minlength=1)
    if not len(faces):
        return {"min": 0, "median": 0, "mean": 0, "max": 0}
    numbers = {"min": counts.min(), "median": np.median(counts), "mean": counts.mean().round(2), "max": counts.max()}
    return {key: float(value) for key, value in numbers.items()}


def class_balance(faces: Faces) -> dict[str, float]:
    """Return the share of photos with each label, or of each class, rounded."""
    return {name: round(share, 4) for name, share in _label_shares(faces).items()}


def _label_shares(faces: Faces) -> dict[str, float]:
    names = faces.task.label_names
    if not len(faces):
        return dict.fromkeys(names, 0.0)
    if faces.task.kind == "multi_label":
        shares = faces.labels.double().mean(dim=0).tolist()
    else:
        shares = (np.bincount(faces.labels.numpy(), minlength=len(names)) / len(faces)).tolist()
    return dict(zip(names, shares, strict=True))


def _constant_labels(faces: Faces) -> list[str]:
    """Return labels with the same value on all photos, and classes without a photo."""
    multi = faces.task.kind == "multi_label"
    if not len(faces):
        return []
    return [name for name, share in _label_shares(faces).items() if share == 0 or (multi and share == 1)]


def _contradictory_labels(faces: Faces, fixed_labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return the people with both values of a label that is constant for a person."""
    if faces.task.kind != "multi_label":
        return []
    labels = faces.labels.numpy()
    found = []
    for column, label in enumerate(faces.task.label_names):
        if label not in fixed_labels and (fixed_labels or label.lower() not in FIXED_LABELS):
            continue
        yes = np.bincount(faces.identities, weights=labels[:, column], minlength=len(faces.people)).astype(int)
        total = np.bincount(faces.identities, minlength=len(faces.people))
        for person in np.flatnonzero((yes > 0) & (yes < total)).tolist():
            values = {"0": int(total[person] - yes[person]), "1": int(yes[person])}
            found.append({"identity": faces.people[person], "label": label, "values": values})
    return found


def _find_duplicates(faces: Faces, properties: np.ndarray, reporter: Reporter) -> tuple[list[list[int]], list[list[int]]]:
    """Return groups of exact duplicates, and groups of near-duplicates that are not all the same file."""
    _, first, file = np.unique(properties["file"], return_index=True, return_inverse=True)
    photos = _group_by(file, range(len(file)))
    exact = [rows for rows in photos.values() if len(rows) > 1]
    # Distinct files only: a placeholder may occur 10,000 times.
    pairs = find_near_duplicates(properties["hash"][first], NEAR_DUPLICATE_BITS, reporter)
    near = [sorted(row for number in files for row in photos[number]) for files in _connected_components(pairs, len(first))]
    return sorted(exact), sorted(near)


def _connected_components(pairs: np.ndarray, count: int) -> list[list[int]]:
    """Return the connected components of the graph with these edges."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(count, count))
    group = connected_components(graph, directed=False)[1]
    return list(_group_by(group[np.unique(pairs)], np.unique(pairs).tolist()).values())


def _group_by(numbers: np.ndarray, members: Iterable[int]) -> dict[int, list[int]]:
    """Return the members of each group, in order."""
    groups: dict[int, list[int]] = {}
    for number, member in zip(numbers.tolist(), members, strict=True):
        groups.setdefault(number, []).append(member)
    return groups


def _describe_group(faces: Faces, rows: Iterable[int]) -> dict[str, Any]:
    rows = list(rows)
    people = sorted({faces.people[faces.identities[row]] for row in rows})
    return {"photos": [faces.keys[row] for row in rows], "identities": people}


def _duplicates_across_sets(faces: Faces, split: Split, groups: Iterable[list[int]]) -> list[dict[str, Any]]:
    """Return the groups with photos in more than one set."""
    set_of = np.full(len(faces), "", dtype=object)
    sets = split.sets(faces)
    for name in SPLIT_SETS:
        set_of[sets[name]] = name
    found = []
    for rows in groups:
        names = sorted({set_of[row] for row in rows} - {""}, key=SPLIT_SETS.index)
        if len(names) > 1:
            found.append(_describe_group(faces, rows) | {"sets": names})
    return found

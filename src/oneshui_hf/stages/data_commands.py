"""The commands for data sets: check one, draw a split. See `publishing.dataset` for `data push`.

oneshui data check --dataset celeba --data-dir DIR
oneshui data split --dataset celeba --data-dir DIR --seed 0 --forget 5 --output split.json
oneshui data push  USER/NAME --dataset DIR
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ..data.check import check_dataset
from ..data.load import load_faces, load_photo_keys
from ..data.split import Split, load_split, make_split, published_checksum
from ..errors import UsageError
from ..name_lists import match_names
from ..reporting import SILENT, Reporter
from ..runs import require_writable_file
from .command_options import CheckOptions, DrawOptions


def check_data(options: CheckOptions, reporter: Reporter = SILENT) -> dict[str, Any]:
    """Check every photo and row of a data set; see `oneshui_hf.data.check.check_dataset`.

    Raises:
        UsageError: A name or option is invalid.
        OneshuiError: The data cannot be read.
    """
    faces = load_faces(**options.source(), reporter=reporter)
    fixed_labels = match_names([options.fixed_labels], faces.task.label_names) if options.fixed_labels else ()
    if unknown := [name for name in fixed_labels if name not in faces.task.label_names]:
        raise UsageError(f"--fixed-labels names '{unknown[0]}', which is not a label of this data.")
    split = load_split(Path(options.split)) if options.split else None
    return {"data": faces.name} | check_dataset(faces, split, fixed_labels, reporter)


def draw_split(options: DrawOptions, reporter: Reporter = SILENT) -> dict[str, Any]:
    """Draw a split and write its file.

    Raises:
        UsageError: The file exists, or there are not enough identities.
        OneshuiError: The annotations cannot be read.
    """
    output = Path(options.output)
    require_writable_file(output, overwrite=options.overwrite)
    if options.rows == "all":
        photos = load_photo_keys(**options.source(), reporter=reporter)
    else:
        photos = load_faces(**options.source(), reporter=reporter).photos_by_identity()
    split = make_split(photos, options.seed, options.forget, options.reserve_supports, options.meta_identities)
    split.save(output)
    digest = hashlib.sha256(split.dumps()).hexdigest()
    expected = published_checksum(options.dataset, options.seed, options.forget) if _has_published_settings(options) else None
    if expected and expected != digest:
        reporter.warn("This is not the published split of this seed and size: the annotation files differ from the published ones.")
    return {"split": str(output), "sha256": digest, "published": expected == digest, **_counts(split, photos)}


def _has_published_settings(options: DrawOptions) -> bool:
    return options.reserve_supports is None and options.meta_identities == "all" and options.subset in (None, "published")


def _counts(split: Split, photos: dict[str, list[str]]) -> dict[str, Any]:
    people = {name: len(members) for name, members in split.people.items()}
    images = {name: sum(len(photos[person]) for person in members) for name, members in split.people.items()}
    return {"people": people, "images": images, "forget": len(split.forget), "reserved": len(split.reserved)}

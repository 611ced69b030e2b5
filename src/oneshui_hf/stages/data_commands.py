"""Looking after data sets: whether one is fit, who asks to be forgotten, and publishing one.

oneshui data check --dataset celeba --data-dir DIR
oneshui data split --dataset celeba --data-dir DIR --seed 0 --forget 5 --output split.json
oneshui data push  USER/NAME --dataset DIR
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ..data.check import check
from ..data.load import load_faces, load_photos
from ..data.split import Split, load_split, make_split, published
from ..errors import UsageError
from ..reporting import SILENT, Reporter
from ..runs import write_bytes
from .command_options import CheckOptions, DrawOptions, words


def check_data(options: CheckOptions, reporter: Reporter = SILENT) -> dict[str, Any]:
    """Look at every photo and row of a data set; see `oneshui_hf.data.check.check`.

    Raises:
        UsageError: A name or option is wrong.
        OneshuiError: The data cannot be read at all.
    """
    faces = load_faces(**options.source(), reporter=reporter)
    fixed = words(options.fixed_labels)
    if unknown := [name for name in fixed if name not in faces.task.label_names]:
        raise UsageError(f"--fixed-labels names '{unknown[0]}', which is no label of this data.")
    split = load_split(Path(options.split)) if options.split else None
    return {"data": faces.name} | check(faces, split, fixed, reporter)


def draw_split(options: DrawOptions, reporter: Reporter = SILENT) -> dict[str, Any]:
    """Draw a split and write its file.

    Raises:
        UsageError: The file is there already, or there are not enough people.
        OneshuiError: The annotations cannot be read.
    """
    output = Path(options.output)
    if output.is_dir() or (output.exists() and not options.overwrite):
        raise UsageError(f"{output} exists; name another --output" + ("." if output.is_dir() else ", or replace it with --overwrite."))
    if options.rows == "all":
        photos = load_photos(**options.source(), reporter=reporter)
    else:
        photos = load_faces(**options.source(), reporter=reporter).photos()
    split = make_split(photos, options.seed, options.forget, options.reserve_supports, options.meta_identities)
    write_bytes(output, split.dumps())
    digest = hashlib.sha256(split.dumps()).hexdigest()
    known = published(options.dataset, options.seed, options.forget) if _by_default(options) else None
    if known and known != digest:
        reporter.warn("This is not the published split of that seed and number: the annotation files differ from the published ones.")
    return {"split": str(output), "sha256": digest, "published": known == digest, **_counts(split, photos)}


def _by_default(options: DrawOptions) -> bool:
    return options.reserve_supports is None and options.meta_identities == "all" and options.subset in (None, "published")


def _counts(split: Split, photos: dict[str, list[str]]) -> dict[str, Any]:
    people = {name: len(members) for name, members in split.people.items()}
    images = {name: sum(len(photos[person]) for person in members) for name, members in split.people.items()}
    return {"people": people, "images": images, "forget": len(split.forget), "reserved": len(split.reserved)}

"""Columns that are labels, counts or assignments to sets, by their names."""

from __future__ import annotations

import pytest

from oneshui_hf.data.builders.celeba import ATTRIBUTE_NAMES
from oneshui_hf.data.builders.synthetic import PERSONAL, SEEN
from oneshui_hf.data.column_inference import counts_or_splits

COUNTS = [
    "n_faces",
    "num_faces",
    "nFaces",
    "numFaces",
    "NumFaces",
    "number_of_faces",
    "face_count",
    "count",
    "faceCount",
    "nfaces",
    "nb_photos",
    *("no_of_faces", "how many faces", "#faces", "faces#", "photo_no", "total_faces", "total", "id", "Unnamed: 0", "index"),
]
SPLITS = [
    *("partition", "split", "fold", "set", "Split", "is_train", "isTrain", "is_training", "train", "test", "val", "valid", "is_valid"),
    *(
        "in_test",
        "test_set",
        "data_split",
        "split_id",
        "split_1",
        "cv_fold",
        "fold_0",
        "kfold",
        "is-train",
        "is train",
        "subset",
        "holdout",
    ),
    *("train_val", "use_for_training", "dev", "is_eval", "IS_TEST"),
    *("is_gallery", "query", "probe_set", "Usage", "has_val"),
]
LABELS = [
    "No_Beard",
    "Smiling",
    "Sunset",
    "testament",
    "Training_Shoes",
    "trainers",
    "n",
    "Nose",
    "Country",
    "set_of_glasses",
    "\u00e9t\u00e9",
    "0",
    *("no_hat", "has_hat", "many_people", "idle"),
]


@pytest.mark.parametrize("name", [*COUNTS, *SPLITS])
def test_counts_and_assignments_are_no_labels(name: str) -> None:
    assert counts_or_splits(name)


@pytest.mark.parametrize("name", [*LABELS, *ATTRIBUTE_NAMES, *SEEN, *PERSONAL])
def test_attributes_are_labels(name: str) -> None:
    assert not counts_or_splits(name)

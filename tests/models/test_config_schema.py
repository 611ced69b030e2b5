"""The bounds of config.json: all that transformers builds by default is within them, and what no image classifier has is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oneshui_hf.errors import OneshuiError
from oneshui_hf.models.config_schema import check_config

VIT: dict[str, Any] = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "image_size": 32,
    "patch_size": 8,
    "id2label": {"0": "a", "1": "b"},
    "problem_type": "multi_label_classification",
}


def test_defaults_of_every_architecture_are_within_the_bounds() -> None:
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

    checked = 0
    for kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        config = kind(num_labels=3, problem_type="single_label_classification")
        check_config(json.loads(config.to_json_string()), Path("config.json"))
        checked += 1
    assert checked > 30


def test_largest_published_sizes_are_within_the_bounds() -> None:
    check_config(
        VIT | {"hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 40, "image_size": 1024, "patch_size": 16}, Path("c")
    )
    check_config(
        {"model_type": "swin", "depths": [2, 2, 42, 2], "num_heads": [6, 12, 24, 48], "embed_dim": 192, "window_size": 0}, Path("c")
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": None}, "'model_type' should be a valid string"),
        ({"num_attention_heads": 0}, "'num_attention_heads' is not a whole number from 1 to 1000"),
        ({"num_attention_heads": True}, "'num_attention_heads' is not a whole number"),
        ({"num_attention_heads": 3}, "it has a hidden_size of 16, which 3 attention heads do not divide"),
        ({"num_hidden_layers": 100_000}, "'num_hidden_layers' is not a whole number from 1 to 1000"),
        ({"num_decoder_layers": 100_000}, "it has a field 'num_decoder_layers' of more than 1000"),
        ({"depths": [2, 10**9]}, "'depths' is not a whole number from 1 to 1000"),
        ({"depths": []}, "'depths' is not a whole number"),
        ({"patch_size": 0}, "'patch_size' is not a whole number from 1 to 4096"),
        ({"image_size": 4097}, "'image_size' is not a whole number from 1 to 4096"),
        ({"image_size": "32"}, "'image_size' is not a whole number"),
        ({"mlp_ratio": 10**6}, "'mlp_ratio"),
        ({"out_indices": [1] * 1001}, "it has a list 'out_indices' of more than 1000 entries"),
        ({"problem_type": "regression"}, "'problem_type' should be 'multi_label_classification' or 'single_label_classification'"),
        ({"id2label": {"0": "a", "2": "b"}}, "it has an id2label that does not number the labels from 0"),
        ({"id2label": {}}, "it has an id2label that does not number the labels from 0"),
        ({"id2label": {"0": 5}}, "'id2label.0' should be a valid string"),
        ({"id2label": {"0": "x" * 201}}, "'id2label.0' should have at most 200 characters"),
        ({"num_labels": 3}, "it has 2 labels in id2label, and 3 in num_labels"),
        ({"vision_config": {"num_hidden_layers": -1}}, "'vision_config.num_hidden_layers' is not a whole number"),
        ({"backbone": {"x": {"patch_size": 0}}}, "'backbone.x.patch_size' is not a whole number"),
    ],
    ids=str,
)
def test_value_that_no_classifier_has_is_refused(change: dict[str, Any], message: str) -> None:
    check_config(VIT, Path("config.json"))
    with pytest.raises(OneshuiError) as raised:
        check_config(VIT | change, Path("config.json"))
    assert str(raised.value).startswith("config.json is damaged: ")
    assert message in str(raised.value)

"""preprocessor_config.json: what is written is read, and every other content is refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oneshui_hf.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from oneshui_hf.errors import OneshuiError

VALID = {"size": {"height": 32, "width": 32}, "image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD), "rescale_factor": 1 / 255}


def write(folder: Path, value: Any) -> Path:
    (folder / "preprocessor_config.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


@pytest.mark.parametrize(
    "preprocess", [Preprocess(32), Preprocess(224, (0.5, 0.4, 0.3), (0.2, 0.3, 1)), Preprocess(16, (0, 0, 0), (0.5,) * 3, bgr=True)]
)
def test_written_preprocessing_is_read(tmp_path: Path, preprocess: Preprocess) -> None:
    preprocess.save(tmp_path)
    assert Preprocess.load(tmp_path) == preprocess


@pytest.mark.parametrize("kind", ["ViTImageProcessorPil", "DeiTImageProcessorPil", "SiglipImageProcessorPil"])
def test_processors_of_transformers_are_read(tmp_path: Path, kind: str) -> None:
    import transformers

    getattr(transformers, kind)(size={"height": 48, "width": 48}).save_pretrained(tmp_path)
    assert Preprocess.load(tmp_path).size == 48


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({"size": value}, "'size") for value in (None, 0, -1, 32, "x", 10**9, [], {}, {"height": 32}, {"shortest_edge": 32})),
        *(({"size": {"height": side, "width": 32}}, "'size.height'") for side in (0, -1, "x", 10**9, 4097, 1.5, None, True)),
        ({"size": {"height": 16, "width": 32}}, "'size' is not square"),
        *(({"image_mean": value}, "'image_mean") for value in (None, 0.5, [], [0.5], [0.5] * 4, [0.5, "x", 0.5], [1e30] * 3, "abc")),
        *(({"image_std": value}, "'image_std") for value in (None, 0.5, [0.5], [0.0, 0.5, 0.5], [-1.0] * 3, [0.5, None, 0.5], [[0.5]] * 3)),
        *(({"rescale_factor": value}, "'rescale_factor'") for value in (0, -1, "x", [], 1e30)),
        ({"do_flip_channel_order": "x"}, "'do_flip_channel_order'"),
    ],
    ids=str,
)
def test_value_that_no_processor_has_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    assert Preprocess.load(write(tmp_path, VALID)) == Preprocess(32)
    with pytest.raises(OneshuiError, match=message) as raised:
        Preprocess.load(write(tmp_path, VALID | change))
    assert "preprocessor_config.json is " in str(raised.value)


@pytest.mark.parametrize("text", ["{}", "[]", "null", "5", "", '{"size": NaN}'])
def test_other_content_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(OneshuiError, match=r"preprocessor_config\.json is (damaged|not JSON|not complete)"):
        Preprocess.load(write(tmp_path, text))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OneshuiError, match=r"preprocessor_config\.json is missing"):
        Preprocess.load(tmp_path)

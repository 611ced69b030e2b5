"""The preprocessing of a checkpoint is that of its own image processor, or a note says what is used instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from oneshui_hf.data.images import to_pixels
from oneshui_hf.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from oneshui_hf.data.schema import Task
from oneshui_hf.models.load import load_model, save_model
from oneshui_hf.models.new import new_model
from oneshui_hf.models.processors import Processing, load_processor, read_processing
from oneshui_hf.seeding import seeded

TASK = Task("multi_label", ("Glasses", "Hat", "Smiling"))
CROPS = "crops or pads photos; the whole photo is resized to {side}x{side} instead"
BILINEAR = "resizes with bilinear interpolation; bicubic is used"
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF, NONE, IMAGENET = ((0.5,) * 3, (0.5,) * 3), ((0.0,) * 3, (1.0,) * 3), (IMAGENET_MEAN, IMAGENET_STD)


def processor(name: str, **settings: Any) -> Any:
    return getattr(transformers, f"{name}ImageProcessorPil")(**settings)


CASES: dict[str, tuple[Any, Processing]] = {
    "ViT": (("ViT", {}), Processing(224, *HALF, notes=(BILINEAR,))),
    "ViT without normalisation": (("ViT", {"do_normalize": False, "resample": 3}), Processing(224, *NONE)),
    "ViT without scaling": (
        ("ViT", {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3, "resample": 3}),
        Processing(224, *HALF),
    ),
    "ViT with another scale": (
        ("ViT", {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3, "resample": 3}),
        Processing(224, *HALF),
    ),
    "DeiT": (("DeiT", {"image_mean": IMAGENET[0], "image_std": IMAGENET[1]}), Processing(224, *IMAGENET, notes=(CROPS,))),
    "BEiT": (("Beit", {}), Processing(224, *HALF)),
    "ConvNeXt with a crop": (("ConvNext", {"size": {"shortest_edge": 192}}), Processing(192, *HALF, notes=(CROPS,))),
    "ConvNeXt without": (("ConvNext", {"size": {"shortest_edge": 384}}), Processing(384, *HALF)),
    "MobileViT": (("MobileViT", {}), Processing(256, *NONE, bgr=True, notes=(CROPS,))),
    "MobileViT of RGB": (("MobileViT", {"do_flip_channel_order": False}), Processing(256, *NONE, notes=(CROPS,))),
    "CLIP": (("CLIP", {}), Processing(224, *CLIP, notes=(CROPS,))),
    "SigLIP": (("Siglip", {}), Processing(224, *HALF)),
    "DINOv2": (("Bit", {"size": {"shortest_edge": 256}}), Processing(224, *CLIP, notes=(CROPS,))),
    "EfficientNet, which divides twice": (("EfficientNet", {}), Processing(346, *((0.5,) * 3, (0.25,) * 3))),
    "photo's own size": (
        ("ViT", {"do_resize": False, "resample": 3}),
        Processing(None, *HALF, notes=("has inputs that are not square, or as large as the photo; {side}x{side} is used",)),
    ),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_processing_of_a_checkpoint(name: str, tmp_path: Path) -> None:
    (kind, settings), expected = CASES[name]
    processor(kind, **settings).save_pretrained(tmp_path)
    found = read_processing(str(tmp_path))
    assert found == expected
    own, square = load_processor(str(tmp_path)), found.side
    if square is not None:  # same input for a photo that the processor neither crops nor resizes differently
        pixels = np.full((square, square, 3), (10, 120, 250), dtype=np.uint8)
        theirs = torch.as_tensor(np.asarray(own(images=Image.fromarray(pixels), return_tensors="pt")["pixel_values"]))
        middle = slice(square // 2, square // 2 + 1)
        ours = Preprocess(square, found.mean, found.std, found.bgr)(torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0))
        torch.testing.assert_close(ours[..., middle, middle], theirs[..., middle, middle].float(), rtol=0, atol=2e-5)


def test_checkpoint_without_a_processor_has_a_note(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for content in (None, "{", "[]", "{}", json.dumps({"image_processor_type": "NoSuchProcessor"})):
        if content is not None:
            (tmp_path / "preprocessor_config.json").write_text(content)
        found = read_processing(str(tmp_path))
        assert (found.mean, found.std, found.side) == (IMAGENET_MEAN, IMAGENET_STD, None), content
        assert found.notes[0].startswith("has no image processor that can be read; the mean and standard deviation of ImageNet are used")


@pytest.mark.parametrize("kind", ["Siglip2", "LlavaNext"])
def test_processor_of_another_kind_of_model_has_a_note(kind: str, tmp_path: Path) -> None:
    processor(kind).save_pretrained(tmp_path)
    found = read_processing(str(tmp_path))
    assert found.side is None
    assert "does not return one square image" in found.notes[0]


def checkpoint(folder: Path, config: Any, own: Any) -> str:
    with seeded(0, "checkpoint"):
        model = transformers.AutoModelForImageClassification.from_config(config)
    model.save_pretrained(folder)
    own.save_pretrained(folder)
    return str(folder)


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "num_labels": 5}


def test_side_is_that_of_the_processor_where_the_model_accepts_it(tmp_path: Path) -> None:
    config = transformers.Dinov2Config(**SMALL, image_size=56, patch_size=14, mlp_ratio=2)
    source = checkpoint(tmp_path, config, processor("Bit", size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}))
    preprocess = new_model(source, TASK, None, 0)[1]
    assert preprocess.size == 28
    assert preprocess.notes == (f"{source} crops or pads photos; the whole photo is resized to 28x28 instead.",)
    assert new_model(source, TASK, 42, 0)[1].size == 42


@pytest.mark.parametrize("side", [32, 30])
def test_side_is_that_of_the_model_where_it_refuses_that_of_the_processor(tmp_path: Path, side: int) -> None:
    config = transformers.ViTConfig(**SMALL, image_size=16, patch_size=4)
    source = checkpoint(tmp_path, config, processor("ViT", size={"height": side, "width": side}, resample=3))
    preprocess = new_model(source, TASK, None, 0)[1]
    assert preprocess.size == 16
    assert preprocess.notes == (f"{source} has an image processor for {side}x{side} and a model for 16x16; 16x16 is used.",)


@pytest.mark.parametrize(
    "own",
    [
        ("MobileViT", {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}),
        ("ViT", {"size": {"height": 16, "width": 16}, "do_normalize": False}),
        ("ViT", {"size": {"height": 16, "width": 16}, "do_normalize": False, "do_rescale": False}),
    ],
    ids=["BGR", "0 to 1", "0 to 255"],
)
def test_saved_run_and_its_pipeline_see_the_same_input(tmp_path: Path, own: tuple[str, dict[str, Any]]) -> None:
    config = transformers.ViTConfig(**SMALL, image_size=16, patch_size=4)
    source = checkpoint(tmp_path / "checkpoint", config, processor(own[0], **own[1]))
    model, preprocess = new_model(source, TASK, None, 0)
    save_model(model, preprocess, tmp_path / "run")
    assert load_model(tmp_path / "run")[1] == preprocess
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8))
    theirs = load_processor(str(tmp_path / "run"))(images=photo, return_tensors="pt")["pixel_values"]
    ours = preprocess(torch.from_numpy(to_pixels(photo, 16)).unsqueeze(0))
    torch.testing.assert_close(ours, torch.as_tensor(theirs), rtol=1e-5, atol=1e-5)


def test_preprocessing_of_an_earlier_run_is_read(tmp_path: Path) -> None:
    stored = {"size": {"height": 56, "width": 56}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.25]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stored))
    assert Preprocess.load(tmp_path) == Preprocess(56, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))

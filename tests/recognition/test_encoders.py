"""Face encoders: models of transformers against their own outputs, and dlib on real faces if both are installed."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.recognition import encoders
from oneshui_hf.recognition.encoders import DlibEncoder, TransformersEncoder, dlib_is_installed, load_encoder
from support.faces import portrait

SIDE = 32
PHOTOS = [portrait(person, photo, (40, 48)) for person in range(3) for photo in range(2)]
Save = Callable[..., Path]
needs_dlib = pytest.mark.skipif(not dlib_is_installed(), reason="dlib is not installed")


def config(kind: str) -> Any:
    from transformers import CLIPConfig, ConvNextConfig, Dinov2Config, SwinConfig, ViTConfig

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    seen = small | {"image_size": SIDE, "patch_size": 8}
    if kind == "clip":
        return CLIPConfig(vision_config=seen, text_config=small | {"vocab_size": 10, "max_position_embeddings": 4}, projection_dim=8)
    return {
        "vit": lambda: ViTConfig(**seen),
        "dinov2": lambda: Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=SIDE, patch_size=8),
        "convnext": lambda: ConvNextConfig(depths=[1, 1], hidden_sizes=[8, 16], num_stages=2),
        "swin": lambda: SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 1], image_size=SIDE, patch_size=4, window_size=4),
    }[kind]()


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """A factory of folders with a small randomly initialised model."""

    def make(kind: str = "vit", seed: int = 0, name: str = "model", *, classifier: bool = False) -> Path:
        from transformers import AutoModel, AutoModelForImageClassification, ViTImageProcessorPil

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = (AutoModelForImageClassification if classifier else AutoModel).from_config(config(kind))
        model.save_pretrained(tmp_path / name)
        ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def pixels(photos: list[Image.Image]) -> torch.Tensor:
    """Return preprocessed photos, computed without the processor: resized, scaled to -1..1."""
    resized = [np.asarray(photo.resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for photo in photos]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 127.5 - 1


def unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


# Selection of the encoder


def hide_modules(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None if name in modules else find(name, package))


@pytest.mark.parametrize("module", ["dlib", "face_recognition_models"])
def test_missing_dlib_is_an_error_only_if_requested(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    hide_modules(monkeypatch, module)
    assert load_encoder(None) is None
    with pytest.raises(UsageError, match=r"dlib.*not installed.*oneshui-hf\[faces\].*--identity"):
        load_encoder("dlib")


def test_none_returns_no_encoder() -> None:
    assert load_encoder("none") is None


def test_missing_dlib_weights_file_raises(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: Spec())
    with pytest.raises(UsageError, match=rf"lacks {encoders.NETWORK}.*--identity"):
        encoders._weights_file(encoders.NETWORK)


# Models of transformers


@pytest.mark.parametrize("kind", ["vit", "dinov2", "convnext", "swin"])
def test_embeddings_are_the_normalised_pooled_output(save: Save, kind: str) -> None:
    from transformers import AutoModel

    folder = save(kind)
    encoder = load_encoder(str(folder))
    assert isinstance(encoder, TransformersEncoder)
    found = encoder(PHOTOS)
    with torch.no_grad():
        expected = AutoModel.from_pretrained(folder).eval()(pixel_values=pixels(PHOTOS)).pooler_output
    torch.testing.assert_close(found, unit(expected), atol=1e-5, rtol=0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(PHOTOS)))


def test_image_encoder_of_a_vision_language_model_is_used(save: Save) -> None:
    from transformers import CLIPModel

    folder = save("clip")
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(folder).vision_model(pixel_values=pixels(PHOTOS)).pooler_output
    torch.testing.assert_close(TransformersEncoder(str(folder))(PHOTOS), unit(expected), atol=1e-5, rtol=0)


def test_pooler_missing_in_the_checkpoint_is_not_used(save: Save) -> None:
    """A ViT classifier has none; transformers would initialise one at random, differently in each process."""
    from transformers import AutoModelForImageClassification

    folder = save(classifier=True)
    torch.manual_seed(1)
    first, before = TransformersEncoder(str(folder)), torch.random.get_rng_state()
    torch.manual_seed(2)
    second = TransformersEncoder(str(folder))
    assert first.name == second.name
    assert torch.equal(first(PHOTOS), second(PHOTOS))
    with torch.no_grad():
        expected = AutoModelForImageClassification.from_pretrained(folder).vit(pixel_values=pixels(PHOTOS)).last_hidden_state[:, 0]
    torch.testing.assert_close(first(PHOTOS), unit(expected), atol=1e-5, rtol=0)
    torch.manual_seed(1)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("kind", ["swin", "convnext"])
def test_positions_are_averaged_without_pooler_and_cls_token(save: Save, kind: str) -> None:
    encoder = TransformersEncoder(str(save(kind)))
    with torch.no_grad():
        hidden = encoder._model(pixel_values=pixels(PHOTOS)).last_hidden_state
    encoder._pooled = False
    expected = hidden.flatten(2).mean(2) if kind == "convnext" else hidden.mean(1)
    torch.testing.assert_close(encoder(PHOTOS), unit(expected), atol=1e-5, rtol=0)


def test_embedding_does_not_depend_on_the_batch(save: Save) -> None:
    encoder = TransformersEncoder(str(save()))
    many = PHOTOS * 4
    alone = torch.cat([encoder([photo]) for photo in many])
    torch.testing.assert_close(encoder(many), alone, atol=1e-6, rtol=0)
    assert torch.equal(encoder(many), encoder(many))
    assert encoder([]).shape[0] == 0


def test_photos_may_be_images_or_arrays_of_any_size(save: Save) -> None:
    encoder = TransformersEncoder(str(save()))
    assert torch.equal(encoder(PHOTOS), encoder([np.asarray(photo) for photo in PHOTOS]))
    grey = Image.fromarray(np.asarray(PHOTOS[0])[..., 0])
    assert torch.equal(encoder([grey]), encoder([grey.convert("RGB")]))
    assert encoder([portrait(0, 0, (300, 17)), portrait(0, 0, (17, 300))]).isfinite().all()
    for wrong in (np.zeros((3, 8, 8), dtype=np.uint8), np.zeros((8, 8, 3)), np.zeros((8, 8), dtype=np.uint8)):
        with pytest.raises(UsageError, match="uint8"):
            encoder([wrong])


def test_name_depends_on_the_weights_and_contains_no_path(save: Save) -> None:
    first, same, other = (TransformersEncoder(str(save(seed=seed, name=name))) for seed, name in ((0, "jane"), (0, "copy"), (1, "other")))
    assert first.name == same.name != other.name
    assert first.name.startswith("vit-")
    assert "jane" not in first.name


def test_name_changes_with_the_processor(save: Save) -> None:
    from transformers import ViTImageProcessorPil

    folder = save()
    before = TransformersEncoder(str(folder)).name
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_mean=[0.4, 0.5, 0.5]).save_pretrained(folder)
    assert TransformersEncoder(str(folder)).name != before


def test_pickled_weights_raise(save: Save) -> None:
    folder = save()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(OneshuiError, match="pickle"):
        load_encoder(str(folder))


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_code_of_the_model_is_refused_and_never_run(save: Save, file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("builtins.input", lambda *question: pytest.fail("a question was asked"))
    folder = save()
    content = json.loads((folder / file).read_text())
    names = {"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoImageProcessor": "code.Processor"}
    (folder / file).write_text(json.dumps(content | {"auto_map": names}))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(OneshuiError, match=rf"brings its own Python code \(auto_map in {file}\), which is not run"):
        load_encoder(str(folder))
    assert not (tmp_path / "ran").exists()


def test_incomplete_weights_raise(save: Save) -> None:
    from safetensors.torch import load_file, save_file

    folder = save()
    tensors = load_file(folder / "model.safetensors")
    lost = next(name for name in tensors if "layer" in name)
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(OneshuiError, match="lack"):
        load_encoder(str(folder))


def test_damaged_weights_raise(save: Save) -> None:
    folder = save()
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(OneshuiError, match="damaged"):
        load_encoder(str(folder))


def test_text_model_raises(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel, ViTImageProcessorPil

    small = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    BertModel(small).save_pretrained(tmp_path)
    ViTImageProcessorPil().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="not an image model"):
        load_encoder(str(tmp_path))


def test_missing_model_raises() -> None:
    with pytest.raises(UsageError, match="Image model 'nobody/nothing' does not exist"):
        load_encoder("nobody/nothing")


# dlib, on real faces


@pytest.fixture(scope="module")
def dlib_encoder() -> DlibEncoder:
    return DlibEncoder()


def faces(assets: Path, people: int, each: int) -> list[list[Image.Image]]:
    """Return photos of a few people, 64 pixels a side."""
    folder = assets / "faces" / "folder"
    with (folder / "metadata.csv").open(encoding="utf-8-sig") as opened:
        rows = list(csv.DictReader(opened))
    names = sorted({row["identity"] for row in rows})[:people]
    files = [[folder / row["file_name"] for row in rows if row["identity"] == name][:each] for name in names]
    return [[Image.open(file).convert("RGB") for file in own] for own in files]


@needs_dlib
def test_dlib_is_the_default_if_installed() -> None:
    encoder = load_encoder(None)
    assert isinstance(encoder, DlibEncoder)
    assert encoder.name.startswith("dlib-")


@needs_dlib
def test_dlib_has_no_embedding_without_a_face(dlib_encoder: DlibEncoder) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3)).astype(np.uint8)
    found = dlib_encoder([Image.new("RGB", (64, 64), "white"), noise, Image.new("RGB", (16, 30_000))])
    assert found.shape == (3, 128)
    assert found.isnan().all()
    assert dlib_encoder([]).shape == (0, 128)


@needs_dlib
def test_dlib_counts_faces(assets: Path, dlib_encoder: DlibEncoder) -> None:
    face = Image.open(sorted((assets / "faces" / "folder" / "images").glob("*/*.jpg"))[0]).convert("RGB").resize((256, 256))
    pair = Image.new("RGB", (512, 256))
    pair.paste(face, (0, 0)), pair.paste(face, (256, 0))
    assert [dlib_encoder.count_faces(photo) for photo in (Image.new("RGB", (64, 64), "white"), face, pair)] == [0, 1, 2]


@needs_dlib
def test_dlib_embeddings_of_one_person_are_similar(assets: Path, dlib_encoder: DlibEncoder) -> None:
    own = faces(assets, 6, 3)
    found = torch.stack([dlib_encoder(photos) for photos in own])
    usable = found.isfinite().all(-1)
    assert usable.float().mean() > 0.8
    flat, people = found.flatten(0, 1)[usable.flatten()], torch.arange(6).repeat_interleave(3)[usable.flatten()]
    torch.testing.assert_close(flat.norm(dim=1), torch.ones(len(flat)))
    similar = flat @ flat.T
    same = (people[:, None] == people) & ~torch.eye(len(flat), dtype=torch.bool)
    assert similar[same].mean() > similar[people[:, None] != people].mean() + 0.03
    assert (similar.fill_diagonal_(-1).argmax(1).new_tensor([int(people[i]) for i in similar.argmax(1)]) == people).float().mean() > 0.8


@needs_dlib
def test_dlib_embedding_does_not_depend_on_batch_or_type(assets: Path, dlib_encoder: DlibEncoder) -> None:
    first, second = (own[0] for own in faces(assets, 2, 1))
    found = dlib_encoder([first, second])
    assert torch.equal(dlib_encoder([np.asarray(second)]), found[1:])
    assert torch.equal(DlibEncoder()([first]), found[:1])


@needs_dlib
@pytest.mark.parametrize("canvas", [(600, 400), (2400, 3200)], ids=["small", "7 megapixels"])
def test_dlib_finds_the_largest_face_of_a_large_photo(assets: Path, dlib_encoder: DlibEncoder, canvas: tuple[int, int]) -> None:
    large, small = (own[0] for own in faces(assets, 2, 1))
    side = min(canvas) // 2
    photo = Image.new("RGB", canvas, "gray")
    photo.paste(large.resize((side, side), Image.Resampling.BICUBIC), (min(canvas) // 3, 40))
    photo.paste(small.resize((side // 3, side // 3), Image.Resampling.BICUBIC), (0, canvas[1] - side // 3))
    alone, other, found = dlib_encoder([large, small, photo])
    assert found @ alone > 0.97
    assert found @ alone > found @ other

"""Vision models for which transformers has no image classifier: pooled features and a new head, other sizes, saving, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.data.schema import Task
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.models.backbone import BackboneClassifier
from oneshui_hf.models.load import load_model, save_model
from oneshui_hf.models.new import new_model
from oneshui_hf.models.outputs import feature_dim, find_head, logits_and_features
from oneshui_hf.models.sharded import wrap_backbone
from oneshui_hf.runs import Record, Run, read_json
from oneshui_hf.seeding import seeded
from oneshui_hf.stages.publishing.redaction import public_config
from support.architectures import classifier

TASK = Task("multi_label", ("Glasses", "Hat", "Smiling"))
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 16, "patch_size": 4}
TEXT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 8}
DECODER = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
# The class of the config, its values, and the pooling that is expected.
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "dinov3": ("DINOv3ViTConfig", {**VIT, "num_register_tokens": 2}, "pooler"),
    "dinov3-convnext": ("DINOv3ConvNextConfig", {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "image_size": 32}, "pooler"),
    "vit-mae": ("ViTMAEConfig", {**VIT, **{f"decoder_{name}": value for name, value in DECODER.items()}}, "first"),
    "clip": ("CLIPVisionConfig", VIT, "pooler"),
    "siglip": ("SiglipVisionConfig", VIT, "pooler"),
    "aimv2": ("Aimv2VisionConfig", VIT, "pooler"),
    "vitdet": ("VitDetConfig", {**VIT, "mlp_ratio": 2, "pretrain_image_size": 16}, "mean"),
    "chinese-clip": ("ChineseCLIPConfig", {"vision_config": VIT, "text_config": TEXT, "projection_dim": 8}, "pooler"),
}


def save_backbone(family: str, folder: Path) -> torch.nn.Module:
    import transformers

    name, values, _ = FAMILIES[family]
    with seeded(0, family):
        model = transformers.AutoModel.from_config(getattr(transformers, name)(**values))
        for parameter in model.parameters():  # some are initialised to a constant, which would hide a mistake
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.eval().save_pretrained(folder)
    return model


def photos(size: int, count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_backbone_gets_a_head_on_its_pooled_features(family: str, tmp_path: Path) -> None:
    source = save_backbone(family, tmp_path / "checkpoint")
    model, preprocess = new_model(str(tmp_path / "checkpoint"), TASK, None if family != "dinov3-convnext" else 32, 0)
    assert isinstance(model.eval(), BackboneClassifier)
    assert model.config.pooling == FAMILIES[family][2]
    assert (model.config.id2label, model.config.problem_type) == (dict(enumerate(TASK.label_names)), TASK.problem_type)
    for name, tensor in getattr(source, "vision_model", source).state_dict().items():
        own = model.backbone.state_dict()
        key = min((key for key in own if key == name or key.endswith(f".{name}")), key=len)
        assert torch.equal(own[key], tensor), name
    with torch.no_grad():
        logits, features = logits_and_features(model, photos(preprocess.size))
        again = model(pixel_values=photos(preprocess.size)).logits
        alone = model(pixel_values=photos(preprocess.size)[1:2]).logits
    assert torch.equal(logits, again)
    torch.testing.assert_close(alone, logits[1:2])  # a photo's logits depend on no other
    assert features.shape == (3, feature_dim(model))
    torch.testing.assert_close(features @ model.head.weight.T + model.head.bias, logits)
    assert find_head(model) is model.head
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_run_of_a_backbone_round_trips_through_load_and_pipeline(family: str, tmp_path: Path) -> None:
    from PIL import Image
    from transformers import pipeline

    save_backbone(family, tmp_path / "checkpoint")
    model, preprocess = new_model(str(tmp_path / "checkpoint"), TASK, None if family != "dinov3-convnext" else 32, 0)
    save_model(model, preprocess, tmp_path / "run")
    loaded, read, task = load_model(tmp_path / "run")
    assert (read, task) == (preprocess, TASK)
    with torch.no_grad():
        pixels = photos(preprocess.size)
        assert torch.equal(loaded(pixel_values=pixels).logits, model.eval()(pixel_values=pixels).logits)
    found = pipeline("image-classification", model=str(tmp_path / "run"))(Image.new("RGB", (20, 30), (200, 30, 90)))
    assert {row["label"] for row in found} == set(TASK.label_names)
    config = read_json(tmp_path / "run/config.json")
    public = public_config(config, Run(tmp_path / "run", Record("original", 0, {}, {})))
    assert (public["backbone"], public["pooling"]) == (config["backbone"], config["pooling"])
    again, _ = new_model(str(tmp_path / "run"), TASK, None, 1)  # a run is a checkpoint, too
    assert not torch.equal(find_head(again).weight, find_head(loaded).weight)  # whose head is replaced
    assert all(torch.equal(a, b) for a, b in zip(again.backbone.parameters(), loaded.backbone.parameters(), strict=True))


@pytest.mark.parametrize("family", ["dinov3", "vit-mae"])
def test_backbone_is_adapted_to_another_size(family: str, tmp_path: Path) -> None:
    save_backbone(family, tmp_path / "checkpoint")
    model, preprocess = new_model(str(tmp_path / "checkpoint"), TASK, 24, 0)
    save_model(model, preprocess, tmp_path / "run")
    larger, _ = new_model(str(tmp_path / "run"), TASK, 32, 0)
    loaded, _, _ = load_model(tmp_path / "run")
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values=photos(24)).logits, model.eval()(pixel_values=photos(24)).logits)
        assert larger(pixel_values=photos(32)).logits.shape == (3, 3)


def test_masked_autoencoder_receives_every_patch_in_order(tmp_path: Path) -> None:
    save_backbone("vit-mae", tmp_path)
    model, _ = new_model(str(tmp_path), TASK, None, 0)
    assert model.config.backbone["mask_ratio"] == 0.0
    embeddings = model.eval().backbone.embeddings
    with torch.no_grad():
        tokens = model(pixel_values=photos(16), output_hidden_states=True).hidden_states[0]
        patches = embeddings.patch_embeddings(photos(16)) + embeddings.position_embeddings[:, 1:]
    assert torch.equal(tokens[:, 1:], patches)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    model(pixel_values=photos(16))
    assert torch.equal(torch.get_rng_state(), state)


def test_pooled_output_is_not_used_without_its_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_backbone("siglip", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if ".head." not in f".{name}"}
    assert len(kept) < len(weights)
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert new_model(str(tmp_path), TASK, None, 0)[0].config.pooling == "mean"
    some = {name: tensor for name, tensor in kept.items() if "layers.0.mlp" not in name}
    save_file(some, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OneshuiError, match=r"lacks \d+ of the weights of SiglipVisionModel, such as .*; use a complete checkpoint"):
        new_model(str(tmp_path), TASK, None, 0)


@pytest.mark.parametrize("name", ["dinov3", "vit_mae"])
def test_backbone_can_be_sharded(name: str, tmp_path: Path) -> None:
    model = wrap_backbone(classifier(name, "multi_label"), 32, 4, 2, seed=0)  # type: ignore[arg-type]
    save_model(model, Preprocess(32), tmp_path)
    loaded, _, _ = load_model(tmp_path)
    assert torch.equal(loaded(pixel_values=photos(32)).logits, model(pixel_values=photos(32)).logits)
    with pytest.raises(UsageError, match="is a sharded model, which is not trained further; name the checkpoint"):
        new_model(str(tmp_path), TASK, None, 0)


@pytest.mark.parametrize("family", ["VideoMAEConfig", "BertConfig", "Siglip2VisionConfig"])
def test_model_that_does_not_read_photos_alone_raises_one_sentence(family: str, tmp_path: Path) -> None:
    import transformers

    sizes = {**VIT, "num_patches": 16, "num_frames": 2, "vocab_size": 8}
    kind = getattr(transformers, family)
    config = kind(**{name: value for name, value in sizes.items() if name in kind().to_dict()})
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(OneshuiError) as raised:
        new_model(str(tmp_path), TASK, None, 0)
    assert "cannot be loaded as an image classifier" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("where", ["config", "nested"])
def test_checkpoint_with_code_is_refused_and_the_code_is_not_run(where: str, tmp_path: Path) -> None:
    folder, code = (
        tmp_path / "checkpoint",
        {"AutoConfig": "code.Config", "AutoModelForImageClassification": "code.Model", "AutoModel": "code.Model"},
    )
    model, preprocess = new_model("tiny", TASK, 16, 0) if where == "config" else (classifier("dinov3", "multi_label"), Preprocess(32))
    save_model(model, preprocess, folder)
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    (config if where == "config" else config["backbone"])["auto_map"] = code
    for kind in (config["model_type"], "of_its_own"):
        (folder / "config.json").write_text(json.dumps(config | {"model_type": kind}))
        for load in (lambda: new_model(str(folder), TASK, None, 0), lambda: load_model(folder)):
            with pytest.raises(OneshuiError, match=r"brings its own Python code \(auto_map in config.json\), which is not run"):
                load()
    assert not (tmp_path / "ran").exists()

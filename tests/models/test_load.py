"""Image classifiers of several families: heads and features, other image sizes, errors, and the predictions of `pipeline()` for a run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.data.images import decode, to_pixels
from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.data.schema import Task
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.models.load import load_model, save_model
from oneshui_hf.models.new import adapt_to_image_size, new_model
from oneshui_hf.models.outputs import (
    feature_dim,
    find_head,
    logits_and_features,
    losses,
    predict,
    predict_with_features,
    predicted_labels,
    probabilities,
    targets,
)
from oneshui_hf.seeding import seeded

TASK = Task("multi_label", ("Glasses", "Hat", "Smiling"))
CLASSES = Task("single_label", ("child", "adult", "elder", "old"))


def config(family: str, **changes: Any) -> Any:
    import transformers

    vit = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    square = {"image_size": 16, "patch_size": 4}
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "vit": ("ViTConfig", vit | square),
        "deit": ("DeiTConfig", {**vit, **square, "architectures": ["DeiTForImageClassification"]}),
        "dinov2": ("Dinov2Config", {**vit, **square, "mlp_ratio": 2}),
        "swin": ("SwinConfig", {**square, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2}),
        "convnext": ("ConvNextConfig", {"depths": [1, 1], "hidden_sizes": [8, 16], "patch_size": 2, "num_stages": 2}),
        "resnet": (
            "ResNetConfig",
            {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        ),
    }
    name, values = kinds[family]
    return getattr(transformers, name)(**{**values, "num_labels": 3, "problem_type": "multi_label_classification", **changes})


FAMILIES = ("vit", "deit", "dinov2", "swin", "convnext", "resnet")


def classifier(family: str, **changes: Any) -> Any:
    from transformers import AutoModelForImageClassification

    with seeded(0, family):
        model = AutoModelForImageClassification.from_config(config(family, **changes))
        for parameter in model.parameters():  # some are initialised to a constant, which would hide a mistake
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def photos(count: int = 2, size: int = 16) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_features_times_the_head_are_the_logits(family: str) -> None:
    model, pixels = classifier(family), photos()
    with torch.no_grad():
        logits, features = logits_and_features(model, pixels)
        expected = model(pixel_values=pixels).logits
    head = find_head(model)
    assert torch.equal(logits, expected)
    assert features.shape == (2, feature_dim(model))
    torch.testing.assert_close(features @ head.weight.T + head.bias, logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_functional_parameters_equal_a_model_with_these_parameters(family: str) -> None:
    model, pixels = classifier(family), photos()
    other = {name: parameter.detach() + 0.01 for name, parameter in model.named_parameters()}
    with torch.no_grad():
        before = model(pixel_values=pixels).logits
        logits, features = logits_and_features(model, pixels, other)
        assert torch.equal(model(pixel_values=pixels).logits, before)
        model.load_state_dict(other, strict=False)
        assert torch.equal(logits_and_features(model, pixels)[0], logits)
        assert torch.equal(logits_and_features(model, pixels)[1], features)


def test_hook_is_removed_after_an_error() -> None:
    model = classifier("vit")
    with pytest.raises(ValueError, match="image size"):
        logits_and_features(model, photos(size=24))
    assert not find_head(model)._forward_hooks


def test_nonlinear_or_missing_head_raises() -> None:
    model = classifier("vit")
    model.classifier = torch.nn.Sequential(torch.nn.Linear(16, 3), torch.nn.ReLU())
    with pytest.raises(OneshuiError, match="are not a linear function of one vector per photo"):
        logits_and_features(model, photos())
    model.classifier = torch.nn.Identity()
    with pytest.raises(OneshuiError, match="has no linear classification head"):
        find_head(model)


def test_losses_probabilities_labels_and_targets_follow_the_task() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
    several, single = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 2])
    torch.testing.assert_close(probabilities(logits, "multi_label"), 1 / (1 + (-logits).exp()))
    torch.testing.assert_close(probabilities(logits, "single_label").sum(dim=1), torch.ones(2))
    p = probabilities(logits, "multi_label")
    expected = -(several * p.log() + (1 - several) * (1 - p).log()).mean(dim=1)
    torch.testing.assert_close(losses(logits, several, "multi_label"), expected)
    q = probabilities(logits, "single_label")
    torch.testing.assert_close(losses(logits, single, "single_label"), -torch.stack([q[0, 0], q[1, 2]]).log())
    assert predicted_labels(logits, "multi_label").tolist() == [[1, 0, 1], [0, 1, 0]]
    assert predicted_labels(logits, "single_label").tolist() == [0, 1]
    assert torch.equal(targets(several, TASK), several)
    assert targets(single, CLASSES).tolist() == [[1, 0, 0, 0], [0, 0, 1, 0]]


def test_model_of_the_right_size_is_returned_unchanged() -> None:
    model = classifier("vit")
    assert adapt_to_image_size(model, 16) is model
    assert model.config.image_size == 16


@pytest.mark.parametrize("family", ["vit", "deit"])
def test_vit_is_adapted_to_a_larger_image(family: str) -> None:
    model = classifier(family)
    with torch.no_grad():
        expected = model(pixel_values=photos(size=32), interpolate_pos_encoding=True).logits
        adapted = adapt_to_image_size(model, 32)
        assert adapted.config.image_size == 32
        torch.testing.assert_close(adapted.eval()(pixel_values=photos(size=32)).logits, expected, rtol=0, atol=1e-6)


def test_adapted_model_is_saved_and_loaded_at_its_new_size(tmp_path: Path) -> None:
    adapted = adapt_to_image_size(classifier("vit"), 32).eval()
    save_model(adapted, Preprocess(32), tmp_path)
    loaded, preprocess, _ = load_model(tmp_path)
    assert loaded.config.image_size == preprocess.size == 32
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values=photos(size=32)).logits, adapted(pixel_values=photos(size=32)).logits)


@pytest.mark.parametrize("family", ["dinov2", "convnext", "resnet"])
def test_model_that_accepts_any_size_is_returned_unchanged(family: str) -> None:
    model = classifier(family)
    assert adapt_to_image_size(model, 28) is model
    with torch.no_grad():
        assert model(pixel_values=photos(size=28)).logits.shape == (2, 3)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A factory of local checkpoints with a head for five other labels, and a processor with other statistics."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            save_model(classifier(family, num_labels=5), Preprocess(16, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)), folder)
            made[family] = folder
        return made[family]

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_new_model_has_the_checkpoint_s_backbone_and_a_new_head(checkpoints: Callable[[str], Path], family: str) -> None:
    folder = checkpoints(family)
    model, preprocess = new_model(str(folder), CLASSES, None, 0)
    source = classifier(family, num_labels=5)
    ours = dict(model.named_parameters())
    kept = [name for name in ours if not name.startswith("classifier.")]
    assert len(kept) == len(ours) - 2
    for name in kept:
        assert torch.equal(ours[name], source.get_parameter(name)), name
    assert find_head(model).out_features == 4
    assert model.config.id2label == dict(enumerate(CLASSES.label_names))
    assert model.config.problem_type == "single_label_classification"
    assert (preprocess.mean, preprocess.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    assert model.dtype == torch.float32


def test_head_of_the_checkpoint_is_replaced_even_if_its_size_fits(checkpoints: Callable[[str], Path]) -> None:
    folder = checkpoints("vit")
    model, _ = new_model(str(folder), Task("multi_label", tuple("abcde")), None, 0)
    source = classifier("vit", num_labels=5)
    assert not torch.equal(find_head(model).weight, find_head(source).weight)


@pytest.mark.parametrize(("family", "size"), [("vit", 32), ("deit", 24), ("dinov2", 28), ("swin", 32), ("convnext", 20)])
def test_checkpoint_is_adapted_to_the_requested_size(checkpoints: Callable[[str], Path], family: str, size: int) -> None:
    model, preprocess = new_model(str(checkpoints(family)), TASK, size, 0)
    assert preprocess.size == size
    assert model(pixel_values=photos(size=size)).logits.shape == (2, 3)


@pytest.mark.parametrize("size", [16, 24])
def test_vision_language_checkpoint_is_adapted_or_raises(tmp_path: Path, size: int) -> None:
    from transformers import AutoModelForImageClassification, SiglipConfig

    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    configuration = SiglipConfig(vision_config={**vision, "image_size": 16, "patch_size": 4}, num_labels=5)
    save_model(AutoModelForImageClassification.from_config(configuration), Preprocess(16), tmp_path)
    try:
        model, _ = new_model(str(tmp_path), TASK, size, 0)
    except UsageError as error:
        assert size != 16
        assert "--image-size" in str(error)
    else:
        assert model(pixel_values=photos(size=size)).logits.shape == (2, 3)


def test_default_size_of_a_vision_language_checkpoint_is_that_of_its_image_encoder(tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification, SiglipConfig

    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    configuration = SiglipConfig(vision_config={**vision, "image_size": 16, "patch_size": 4}, num_labels=5)
    save_model(AutoModelForImageClassification.from_config(configuration), Preprocess(16), tmp_path)
    assert new_model(str(tmp_path), TASK, None, 0)[1].size == 16


@pytest.mark.parametrize("count", [0, 1, 7])
def test_predictions_do_not_depend_on_the_batches(count: int) -> None:
    model = classifier("vit").train()
    draws = np.random.default_rng(0)
    store, labels = draws.integers(0, 256, (9, 3, 16, 16), dtype=np.uint8), torch.zeros(count, 3)
    faces = FaceSet(store, np.arange(count), labels, torch.zeros(count, dtype=torch.int64), Preprocess(16), ("p",))
    logits = predict(model, faces, Accelerator(cpu=True), batch_size=3)
    assert logits.shape == (count, 3)
    assert logits.dtype == torch.float32
    assert model.training
    if count:
        with torch.no_grad():
            whole = model.eval()(pixel_values=faces.batch(torch.arange(count))[0]).logits
        torch.testing.assert_close(logits, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite_raise(value: float) -> None:
    model = classifier("vit")
    model.classifier.bias.data[1] = value
    store, labels = np.zeros((2, 3, 16, 16), dtype=np.uint8), torch.zeros(2, 3)
    faces = FaceSet(store, np.arange(2), labels, torch.zeros(2, dtype=torch.int64), Preprocess(16), ("p",))
    for function in (predict, predict_with_features):
        with pytest.raises(OneshuiError, match="predictions are NaN or infinite, so nothing can be computed"):
            function(model, faces, Accelerator(cpu=True))


@pytest.mark.parametrize("name", ["beit", "dinov3"])
def test_model_that_caches_tables_can_be_trained_after_predictions(name: str) -> None:
    from support.architectures import SIDE
    from support.architectures import classifier as of_32_pixels

    model = of_32_pixels(name, "multi_label")
    store = np.zeros((2, 3, SIDE, SIDE), dtype=np.uint8)
    faces = FaceSet(store, np.arange(2), torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64), Preprocess(SIDE), ("p",))
    predict(model, faces, Accelerator(cpu=True))
    model.train()(pixel_values=torch.zeros(1, 3, SIDE, SIDE)).logits.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in find_head(model).parameters())


def test_half_precision_backbone_without_a_head_is_loaded_as_float32(assets: Path) -> None:
    model, preprocess = new_model(str(assets / "models/dinov2_small_first4_fp16"), TASK, 56, 0)
    assert preprocess.size == 56
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with torch.no_grad():
        logits, features = logits_and_features(model, photos(size=56))
    assert features.shape == (2, feature_dim(model)) == (2, 768)
    assert logits.isfinite().all()


def test_default_image_size_is_that_of_the_checkpoint(checkpoints: Callable[[str], Path]) -> None:
    assert new_model(str(checkpoints("vit")), TASK, None, 0)[1].size == 16


@pytest.mark.parametrize("name", ["tiny", "vit"])
def test_seed_determines_the_new_head(checkpoints: Callable[[str], Path], name: str) -> None:
    source = "tiny" if name == "tiny" else str(checkpoints(name))
    first, second, other = (find_head(new_model(source, TASK, None, seed)[0]).weight for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("size", [None, 32])
def test_new_model_does_not_change_global_state(checkpoints: Callable[[str], Path], size: int | None) -> None:
    from transformers.utils import logging

    torch.manual_seed(5)
    before = torch.get_rng_state(), torch.is_grad_enabled(), torch.get_default_dtype(), logging.get_verbosity()
    new_model(str(checkpoints("vit")), TASK, size, 0)
    after = torch.get_rng_state(), torch.is_grad_enabled(), torch.get_default_dtype(), logging.get_verbosity()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_pickle_raises(tmp_path: Path) -> None:
    config("vit").save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    message = "only pytorch_model.bin, a pickle, which can run code and is not read; save it in safetensors first"
    for load in (lambda: new_model(str(tmp_path), TASK, None, 0), lambda: load_model(tmp_path)):
        with pytest.raises(OneshuiError, match=message):
            load()
    with pytest.raises(OneshuiError, match=r"pytorch_model\.bin is a file; name the folder"):
        new_model(str(tmp_path / "pytorch_model.bin"), TASK, None, 0)


def test_folder_without_weights_raises(tmp_path: Path) -> None:
    with pytest.raises(OneshuiError, match=r"contains no model\.safetensors"):
        new_model(str(tmp_path), TASK, None, 0)


def test_damaged_weights_raise_one_sentence(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    for file in checkpoints("vit").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(OneshuiError, match=r"^The weights of .* are damaged \([^\n]*\); download or train them again\.$"):
        load_model(tmp_path)


def changed_checkpoint(source: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    from safetensors.torch import load_file, save_file

    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = {name: tensor.clone() for name, tensor in load_file(source / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    save_file(change(tensors), folder / "model.safetensors", {"format": "pt"})
    return folder


def test_checkpoint_without_its_weights_is_refused(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    folder = changed_checkpoint(checkpoints("vit"), tmp_path, lambda tensors: {f"other.{name}": value for name, value in tensors.items()})
    with pytest.raises(OneshuiError, match=r"does not contain the weights that its config\.json describes \(38 tensors: vit\."):
        new_model(str(folder), TASK, None, 0)


def test_checkpoint_with_a_tensor_of_another_shape_is_refused(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    folder = changed_checkpoint(checkpoints("vit"), tmp_path, lambda tensors: tensors | {"vit.layernorm.weight": torch.ones(3)})
    with pytest.raises(OneshuiError, match=r"does not contain the weights .* \(1 tensor: vit\.layernorm\.weight\)"):
        new_model(str(folder), TASK, None, 0)


def test_checkpoint_with_a_value_that_is_not_finite_is_refused(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    change = {"vit.layernorm.weight": torch.full((16,), float("nan"))}
    folder = changed_checkpoint(checkpoints("vit"), tmp_path, lambda tensors: tensors | change)
    with pytest.raises(OneshuiError, match=r"are NaN or infinite in 1 tensor: vit\.layernorm\.weight"):
        new_model(str(folder), TASK, None, 0)


def test_few_missing_tensors_are_noted(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value for name, value in tensors.items() if not name.startswith("vit.layernorm.")}

    folder = changed_checkpoint(checkpoints("vit"), tmp_path, change)
    _, preprocess = new_model(str(folder), TASK, None, 0)
    assert f"{folder} lacks 2 tensors: vit.layernorm.bias, vit.layernorm.weight; they start from initial values." in preprocess.notes
    assert new_model(str(checkpoints("vit")), TASK, None, 0)[1].notes == ()


@pytest.mark.parametrize(
    "change", [{"num_attention_heads": 0}, {"num_hidden_layers": 10**6}, {"hidden_size": "x"}, {"patch_size": [0, 0]}], ids=str
)
def test_checkpoint_of_a_crafted_config_raises_one_sentence(
    checkpoints: Callable[[str], Path], tmp_path: Path, change: dict[str, Any]
) -> None:
    import json

    folder = changed_checkpoint(checkpoints("vit"), tmp_path, dict)
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | change))
    with pytest.raises(OneshuiError) as raised:
        new_model(str(folder), TASK, None, 0)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no such name!", "a/b/c"])
def test_unknown_checkpoint_raises_one_sentence(name: str) -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(UsageError) as raised:
        new_model(name, TASK, None, 0)
    assert str(raised.value).startswith(f"Checkpoint '{name}' does not exist: ")
    assert "\n" not in str(raised.value)


def test_text_model_raises_one_sentence(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    small = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "vocab_size": 10,
    }
    BertModel(BertConfig(**small)).save_pretrained(tmp_path)
    with pytest.raises(OneshuiError) as raised:
        new_model(str(tmp_path), TASK, None, 0)
    assert "cannot be loaded as an image classifier" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_model_that_fails_on_its_own_size_raises_one_sentence(tmp_path: Path) -> None:
    save_model(classifier("convnext", image_size=4, patch_size=4), Preprocess(4), tmp_path)
    message = r"^ConvNextForImageClassification does not classify photos of 4x4 \([^\n]*\); use another --image-size"
    with pytest.raises(OneshuiError, match=message):
        new_model(str(tmp_path), TASK, None, 0)


def test_size_that_is_not_a_multiple_of_the_patch_raises(checkpoints: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError, match="--image-size 30 is not a multiple of 8, the patch size of the tiny model"):
        new_model("tiny", TASK, 30, 0)
    with pytest.raises(UsageError, match="--image-size 18 is not a multiple of 4, the patch size of "):
        new_model(str(checkpoints("vit")), TASK, 18, 0)


def test_task_and_preprocessing_round_trip(tmp_path: Path) -> None:
    for task in (TASK, CLASSES):
        model, preprocess = new_model("tiny", task, 16, 0)
        save_model(model, preprocess, tmp_path)
        loaded, read, found = load_model(tmp_path)
        assert found == task
        assert read == preprocess
        assert not loaded.training
        for name, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.parametrize("task", [TASK, CLASSES], ids=lambda task: task.kind)
def test_pipeline_returns_the_same_probabilities(tmp_path: Path, task: Task) -> None:
    from transformers import pipeline

    model, preprocess = new_model("tiny", task, None, 0)
    with torch.no_grad():
        find_head(model).weight.normal_(generator=torch.Generator().manual_seed(0))  # so that labels differ
    save_model(model, preprocess, tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (27, 22, 3), dtype=np.uint8)
    photo = Image.fromarray(noise)
    predictions = pipeline("image-classification", model=str(tmp_path), top_k=len(task.label_names))(photo)
    with torch.no_grad():
        pixels = preprocess(torch.from_numpy(to_pixels(decode(photo), preprocess.size)).unsqueeze(0))
        ours = probabilities(model.eval()(pixel_values=pixels).logits, task.kind)[0]
    assert {row["label"] for row in predictions} == set(task.label_names)
    for row in predictions:
        assert row["score"] == pytest.approx(ours[task.label_names.index(row["label"])].item(), abs=1e-5)
    assert ours.max() - ours.min() > 0.05

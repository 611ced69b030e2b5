"""The classifier with a head in closed form: its features, its integers, and what its config may contain."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.models import grid_features
from oneshui_hf.models.closed_form import ClosedFormClassifier, add_closed_form_head
from oneshui_hf.models.feature_sums import GRID
from oneshui_hf.models.grid_features import grid_rows, is_head_of, set_head, sum_photos, sum_rows
from oneshui_hf.models.load import load_model, save_model
from oneshui_hf.models.new import new_model
from oneshui_hf.models.outputs import find_head, logits_and_features, targets
from oneshui_hf.seeding import generator
from oneshui_hf.stages.distributed import make_accelerator
from oneshui_hf.testing.toy_problem import IMAGE_SIZE, toy_problem
from support import timm_stand_in
from support.architectures import SIDE, classifier

FAMILIES = ("vit", "dinov2", "convnext", "resnet", "swin", "clip", "dinov3")


def photos(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=generator(1, "photos"))


def model_of(name: str) -> ClosedFormClassifier:
    """Return a model whose head is not zero."""
    model = add_closed_form_head(classifier(name, "multi_label"), SIDE, mirrored=True)  # type: ignore[arg-type]
    with torch.no_grad():
        model.head.weight.copy_(torch.randn(model.head.weight.shape, generator=generator(2, name)))
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_linear_in_the_features_and_the_backbone_is_the_given_one(name: str, tmp_path: Path) -> None:
    backbone, model = classifier(name, "multi_label"), model_of(name)
    with torch.no_grad():
        own = backbone(pixel_values=photos(), output_hidden_states=True).hidden_states
        output = model(pixel_values=photos(), output_hidden_states=True)
        assert all(torch.equal(a, b) for a, b in zip(own, output.hidden_states, strict=True))
        logits, features = logits_and_features(model, photos())
        assert find_head(model) is model.head
        assert torch.equal(features, model.features(photos()))
    assert features.shape == (3, model.config.feature_size)
    save_model(model, Preprocess(SIDE), tmp_path)
    loaded = load_model(tmp_path)[0]
    assert isinstance(loaded, ClosedFormClassifier)
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values=photos()).logits, logits)
    assert loaded.config.layers == model.config.layers


def test_features_are_normalised_bands_of_the_chosen_layers() -> None:
    model = model_of("vit")
    with torch.no_grad():
        hidden = model.backbone(pixel_values=photos(), output_hidden_states=True).hidden_states
        features = model.features(photos())
    assert len(hidden) == 3
    vectors = []
    for layer in model.config.layers:
        rows = hidden[layer][:, 1:].unflatten(1, (4, 4)).mean(dim=2)  # 4 x 4 patches of 8 pixels
        vectors += [hidden[layer][:, 0], *rows.unbind(1)]
    expected = [(vector - vector.mean(1, keepdim=True)) / (vector.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt() for vector in vectors]
    torch.testing.assert_close(features, torch.cat(expected, dim=1), rtol=1e-4, atol=1e-5)


def test_model_is_differentiable_and_its_backbone_stays_in_evaluation_mode() -> None:
    model = add_closed_form_head(classifier("vit", "multi_label", dropout=0.5), SIDE, mirrored=True)  # type: ignore[arg-type]
    model.head.weight.data += 1
    model.train()
    assert not any(module.training for module in model.backbone.modules())
    assert torch.equal(model(pixel_values=photos()).logits, model(pixel_values=photos()).logits)
    pixels = photos().requires_grad_(True)
    F.softplus(model(pixel_values=pixels).logits).sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["head.weight", "head.bias"]


def test_model_without_hidden_states_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    timm_stand_in.install(monkeypatch)
    with pytest.raises(UsageError, match="needs the hidden states of TimmWrapperForImageClassification, which has none"):
        add_closed_form_head(classifier("timm", "multi_label"), SIDE, mirrored=True)  # type: ignore[arg-type]


def test_model_is_no_checkpoint_to_train_from(tmp_path: Path) -> None:
    model = model_of("vit")
    save_model(model, Preprocess(SIDE), tmp_path)
    with pytest.raises(UsageError, match="is a model with a head in closed form, which is not trained further; name the checkpoint"):
        new_model(str(tmp_path), toy_problem("multi_label").task, SIDE, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("layers", wrong) for wrong in ([9], [-1], [], ["a"], 10**9, "x")),
        *(("bands", wrong) for wrong in (0, -1, 3, 10**9, "x")),
        *(("feature_size", wrong) for wrong in (0, 7, 10**9, None)),
        *(("shrinkage", wrong) for wrong in (0, -1.0, "x")),
        *(("temperature", wrong) for wrong in (0, -1.0, [1.0])),
        ("mirrored", "perhaps"),
        *(("backbone", wrong) for wrong in ({}, {"model_type": "bert"}, 5, {"model_type": "oneshui_closed_form"})),
    ],
)
def test_wrong_configs_are_refused_in_one_sentence(name: str, value: object, tmp_path: Path) -> None:
    save_model(model_of("vit"), Preprocess(SIDE), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {name: value}))
    with pytest.raises(OneshuiError) as refused:
        load_model(tmp_path)
    assert "\n" not in str(refused.value)


# Integers


def test_integers_are_the_rounded_float64_features_of_photos_and_mirror_images(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = toy_problem("multi_label", closed_form=True)
    model, train, accelerator = problem.model, problem.sets["train"], make_accelerator()
    assert isinstance(model, ClosedFormClassifier)
    rows = grid_rows(model, train, accelerator, mirrored=True)
    pixels = train.batch(torch.arange(len(train)))[0].double()
    precise = copy.deepcopy(model).double()
    with torch.no_grad():
        features = torch.cat([precise.features(pixels), precise.features(pixels.flip(-1))])
    assert rows.dtype == torch.int16
    assert (rows - features * GRID).abs().max() <= 0.5 + 1e-6
    assert torch.equal(grid_rows(model, train, accelerator, mirrored=False), rows[: len(train)])
    labels = targets(train.labels, problem.task).repeat(2, 1)
    sums = sum_rows(rows, labels)
    assert sums.count == 2 * len(train)
    for size in (1, 7, 1000):
        monkeypatch.setattr(grid_features, "PHOTOS_PER_PASS", size)
        monkeypatch.setattr(grid_features, "ROWS_PER_PRODUCT", max(10, size))
        assert torch.equal(grid_rows(model, train, accelerator, mirrored=True), rows)
        streamed = sum_photos(model, train, problem.task, accelerator)
        assert streamed.count == sums.count
        assert all(torch.equal(getattr(streamed, name), getattr(sums, name)) for name in ("x", "y", "xx", "xy"))


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_head_of_the_sums_is_recognised(kind: str) -> None:
    problem = toy_problem(kind, closed_form=True)  # type: ignore[arg-type]
    model, accelerator = copy.deepcopy(problem.model), make_accelerator()
    assert isinstance(model, ClosedFormClassifier)
    assert model.features(problem.request.pixels).shape[-1] == model.config.feature_size
    assert problem.request.pixels.shape[-1] == IMAGE_SIZE
    train, retain = (sum_photos(model, problem.sets[name], problem.task, accelerator) for name in ("train", "retain"))
    assert is_head_of(model, train, accelerator)
    assert not is_head_of(model, retain, accelerator)
    set_head(model, retain, accelerator)
    assert is_head_of(model, retain, accelerator)

"""Single-photo steps, parameters without a gradient, and half precision with loss scaling."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, ResNetConfig

import oneshui_hf
from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.errors import OneshuiError
from oneshui_hf.models.load import save_model
from oneshui_hf.runs import read_json
from oneshui_hf.seeding import seeded
from oneshui_hf.stages import distributed
from oneshui_hf.stages.run_data import training_options
from oneshui_hf.stages.training import checkpoint, loop
from oneshui_hf.stages.training.steps import has_unused_parameters, use_running_statistics
from support.architectures import classifier

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint whose last layers have one value per channel, for which batch normalisation needs two photos."""
    folder = tmp_path_factory.mktemp("resnet")
    with seeded(0, "resnet"):
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", downsample_in_first_stage=True)
        save_model(AutoModelForImageClassification.from_config(config), Preprocess(16), folder)
    return str(folder)


def train_small(output: Path, **options: Any) -> oneshui_hf.Run:
    base: dict[str, Any] = {"dataset": "synthetic", "forget": 2, "epochs": 2, "keep": "last", "augment": "none", "output_dir": str(output)}
    return oneshui_hf.train(**(base | options))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


@pytest.mark.parametrize("batch_size", [None, 1])
def test_step_with_one_photo_trains_a_model_with_batch_normalisation(
    resnet: str, tmp_path: Path, photo_folder: Callable[..., Path], batch_size: int | None
) -> None:
    folder = str(photo_folder(people=6, photos=4))
    photos = train_small(tmp_path / "any", dataset=folder, model="tiny", epochs=1).record.report["split"]["images"]["train"]
    run = train_small(tmp_path / "run", dataset=folder, model=resnet, image_size=16, epochs=1, batch_size=batch_size or photos - 1)
    assert all(tensor.isfinite().all() for tensor in weights(run.path).values())


def test_relearning_of_one_photo_works_with_batch_normalisation() -> None:
    model = classifier("resnet", "multi_label").train()
    pixels = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(pixel_values=pixels)
    before = copy.deepcopy(model.state_dict())
    use_running_statistics(model)
    model(pixel_values=pixels).logits.sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training


def test_models_without_batch_normalisation_are_left_unchanged() -> None:
    model = classifier("vit", "multi_label").train()
    use_running_statistics(model)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(("family", "unused"), [("vit", False), ("dinov2", True), ("swin", False), ("convnext", False), ("resnet", False)])
def test_unused_parameters_are_found_without_side_effects(family: str, unused: bool) -> None:
    model = classifier(family, "multi_label")
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert has_unused_parameters(model, 32) == unused
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_frozen_parameters_are_not_unused_and_layers_that_are_left_out_may_be() -> None:
    model = classifier("dinov2", "multi_label")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("mask_token" not in name)
    assert not has_unused_parameters(model, 32)
    model.layerdrop = 0.1  # type: ignore[assignment]
    assert has_unused_parameters(model, 32)


@pytest.mark.parametrize(
    ("native", "bf16", "fp16", "dtype"),
    [
        (True, None, None, torch.bfloat16),
        (True, True, None, torch.bfloat16),
        (True, None, False, torch.bfloat16),
        (True, False, None, torch.float32),
        (True, None, True, torch.float16),
        (False, None, None, torch.float32),
        (False, True, False, torch.float32),
        (False, False, True, torch.float16),
    ],
)
def test_precision_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, native: bool, bf16: bool | None, fp16: bool | None, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert distributed.training_dtype(CUDA, bf16=bf16, fp16=fp16) == dtype
    note = distributed.precision_note(CUDA, bf16=bf16, fp16=fp16)
    assert (note is not None) == (bf16 is not False and not fp16 and not native)


@pytest.mark.parametrize(
    ("native", "bf16", "fp16", "dtype", "note"),
    [
        (True, None, None, torch.float32, None),
        (True, True, None, torch.bfloat16, distributed.CPUS_DIFFER),
        (True, False, None, torch.float32, None),
        (True, None, True, torch.float32, distributed.FP16_NEEDS_GPU),
        (False, True, None, torch.float32, distributed.CPU_LACKS_BF16),
    ],
)
def test_precision_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, native: bool, bf16: bool | None, fp16: bool | None, dtype: torch.dtype, note: str | None
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert distributed.training_dtype(CPU, bf16=bf16, fp16=fp16) == dtype
    assert distributed.precision_note(CPU, bf16=bf16, fp16=fp16) == note


def test_half_precision_with_loss_scaling_learns_and_resumes_to_the_same_weights(
    tmp_path: Path, photo_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = functools.partial(train_small, dataset=str(photo_folder(people=6, photos=4)), model="tiny", lr=0.05)
    exact = train(tmp_path / "exact")
    monkeypatch.setattr(loop, "training_dtype", lambda device, bf16, fp16: torch.float16 if fp16 else torch.float32)
    whole = train(tmp_path / "whole", fp16=True)
    saved = checkpoint.save
    scales = []

    def interrupt(run: Path, epoch: int, *state: Any) -> None:
        saved(run, epoch, *state)
        scales.append(state[-1]["loss_scale"]["scale"])
        if epoch == 1 and len(scales) == 1:
            raise OneshuiError("interrupted")

    monkeypatch.setattr(checkpoint, "save", interrupt)
    with pytest.raises(OneshuiError, match="interrupted"):
        train(tmp_path / "resumed", fp16=True)
    resumed = oneshui_hf.train(dataset=train.keywords["dataset"], output_dir=str(tmp_path / "resumed"), resume=True)
    first, second, full = (weights(run.path) for run in (whole, resumed, exact))
    assert len(scales) == 2
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], full[name]) for name in first)
    assert max((first[name] - full[name]).abs().max().item() for name in first) < 0.05
    assert "loss_scale" not in resumed.record.report
    assert resumed.record.options["fp16"]


def test_record_without_the_option_is_read(tmp_path: Path, photo_folder: Callable[..., Path]) -> None:
    run = train_small(tmp_path / "run", dataset=str(photo_folder(people=6, photos=4)), model="tiny", epochs=1)
    record = read_json(run.path / "oneshui.json")
    assert record["options"].pop("fp16") is None
    (run.path / "oneshui.json").write_text(json.dumps(record))
    assert oneshui_hf.retrain(str(run.path)).record.options["fp16"] is None


def test_bf16_of_an_earlier_record_is_that_of_gpus(tmp_path: Path, photo_folder: Callable[..., Path]) -> None:
    run = train_small(tmp_path / "run", dataset=str(photo_folder(people=6, photos=4)), model="tiny", epochs=1)
    record = read_json(run.path / "oneshui.json")
    del record["options"]["gradient_accumulation_steps"]
    for stored, expected in (({"bf16": True, "fp16": False}, (None, None)), ({"bf16": False, "fp16": True}, (False, True))):
        record["options"] |= stored
        (run.path / "oneshui.json").write_text(json.dumps(record))
        options = training_options(oneshui_hf.Run.open(run.path))
        assert (options.bf16, options.fp16) == expected

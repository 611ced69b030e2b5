"""The weights of a run: all that its model has and nothing else, finite, and no more memory than the files."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.errors import OneshuiError
from oneshui_hf.models.load import load_model, save_model
from oneshui_hf.runs import Record, write_record
from support import timm_stand_in
from support.architectures import ARCHITECTURES, SIDE, classifier

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A ViT of two layers, of which only the checkpoint exists."""
    folder = tmp_path / "run"
    save_model(classifier("vit", "multi_label"), Preprocess(SIDE), folder)
    return folder


def rewrite(run: Path, change: Callable[[Tensors], Tensors]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(run / "model.safetensors").items()}
    (run / "model.safetensors").unlink()
    save_file(change(tensors), run / "model.safetensors", {"format": "pt"})


def refusal(run: Path) -> str:
    with pytest.raises(OneshuiError) as raised:
        load_model(run)
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_saved_classifier_is_loaded_bit_for_bit(tmp_path: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timm_stand_in.install(monkeypatch)
    model = classifier(name, kind)
    save_model(model, Preprocess(SIDE), tmp_path)
    loaded, _, task = load_model(tmp_path)
    assert task.kind == kind
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in model.state_dict().items())
    photos = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values=photos).logits, model(pixel_values=photos).logits)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_missing_head_is_named_for_every_architecture(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timm_stand_in.install(monkeypatch)
    save_model(classifier(name, "multi_label"), Preprocess(SIDE), tmp_path)
    head = [key for key, tensor in load_file(tmp_path / "model.safetensors").items() if tensor.shape[:1] == (5,) and tensor.dim() == 2][-1]
    rewrite(tmp_path, lambda tensors: {key: value for key, value in tensors.items() if key != head})
    assert f"they lack 1 tensor: {head}." in refusal(tmp_path)


def test_missing_unexpected_and_misshapen_tensors_are_counted_and_named(run: Path) -> None:
    rewrite(run, lambda tensors: {})
    assert " lack 40 tensors: classifier.bias, classifier.weight, vit.embeddings.cls_token, ..." in refusal(run)


def test_tensors_of_other_names_are_refused(run: Path) -> None:
    rewrite(run, lambda tensors: {f"other.{name}": tensor for name, tensor in tensors.items()})
    message = refusal(run)
    assert "they lack 40 tensors: classifier.bias" in message
    assert "they have in excess 40 tensors: other.classifier.bias" in message


def test_tensors_of_another_shape_are_refused(run: Path) -> None:
    rewrite(run, lambda tensors: tensors | {"classifier.weight": torch.zeros(4, 24), "classifier.bias": torch.zeros(4)})
    assert refusal(run).endswith("they have another shape in 2 tensors: classifier.bias, classifier.weight.")


def test_additional_tensor_is_refused(run: Path) -> None:
    rewrite(run, lambda tensors: tensors | {"hidden": torch.zeros(1000)})
    assert refusal(run).endswith("they have in excess 1 tensor: hidden.")


def test_second_tensor_for_one_parameter_is_refused(run: Path) -> None:
    """Transformers adds the prefix of the backbone to names without it."""
    rewrite(run, lambda tensors: tensors | {"embeddings.cls_token": torch.zeros_like(tensors["vit.embeddings.cls_token"])})
    assert "several tensors for one parameter" in refusal(run)


def test_labels_of_another_order_than_in_the_record_are_refused(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    names = list(config["id2label"].values())
    write_record(run, Record("original", 0, {}, {"labels": names}, weights=None))
    load_model(run)
    (run / "config.json").write_text(json.dumps(config | {"id2label": dict(enumerate(reversed(names)))}))
    assert "are not those of its oneshui.json" in refusal(run)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_value_that_is_not_finite_is_refused(run: Path, value: float) -> None:
    def change(tensors: Tensors) -> Tensors:
        tensors["classifier.weight"][3, 7] = value
        return tensors

    rewrite(run, change)
    assert refusal(run).endswith("are NaN or infinite in 1 tensor: classifier.weight; train again, or restore them.")


def test_new_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    model = classifier("vit", "multi_label")
    model.classifier.bias.data[0] = float("nan")
    with pytest.raises(OneshuiError, match=r"are NaN or infinite in 1 tensor: classifier\.bias"):
        save_model(model, Preprocess(SIDE), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool])
def test_integers_in_place_of_weights_are_refused(run: Path, dtype: torch.dtype) -> None:
    rewrite(run, lambda tensors: tensors | {"classifier.bias": tensors["classifier.bias"].to(dtype)})
    assert "not all floating-point numbers (1 tensor: classifier.bias)" in refusal(run)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types_are_converted(run: Path, dtype: torch.dtype) -> None:
    rewrite(run, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    assert {parameter.dtype for parameter in load_model(run)[0].parameters()} == {torch.float32}


def write_header(run: Path, header: Any, data: bytes = b"", length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (run / "model.safetensors").write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({}, b"", "they lack 40 tensors"),
        ([], b"", "no header"),
        (b"{" * 9, b"", "are damaged"),
        (b'{"a":' * 3000 + b"1" + b"}" * 3000, b"", "are damaged"),
        ({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}, b"\0" * 64, "describes more data than the file has"),
        ({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 64]}}, b"\0" * 64, "describes more data than the file has"),
        ({"a": {"dtype": "F32", "shape": [4]}}, b"\0" * 16, "an invalid header"),
        ({"a": 5}, b"", "an invalid header"),
        ({"a": {"dtype": "X" * 9000, "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 16, "not all floating-point numbers"),
    ],
    ids=["empty", "list", "no JSON", "nested", "terabytes", "false shape", "no offsets", "a number", "unknown type"],
)
def test_crafted_header_is_one_sentence(run: Path, header: Any, data: bytes, message: str) -> None:
    write_header(run, header, data)
    assert message in refusal(run)


@pytest.mark.parametrize("length", [90_000_000, 2**63, 2**64 - 1])
def test_long_header_is_not_read(run: Path, length: int) -> None:
    write_header(run, b"{", length=length)
    os.truncate(run / "model.safetensors", 90_000_100)  # without blocks on the disk
    assert f"a header of {length:,} bytes" in refusal(run)


@pytest.mark.parametrize("content", [b"", b"\1\0\0"])
def test_file_without_a_header_is_refused(run: Path, content: bytes) -> None:
    (run / "model.safetensors").write_bytes(content)
    assert "are damaged" in refusal(run)


def test_model_much_larger_than_its_files_is_refused_before_memory_is_used(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"intermediate_size": 2**18, "hidden_size": 2**12}))
    assert " numbers, and its model " in refusal(run)  # 17 GB


# Several files


def split(run: Path, listed: Any = None) -> Path:
    tensors = load_file(run / "model.safetensors")
    (run / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[:20], "model-00002-of-00002.safetensors": names[20:]}
    for file, keys in halves.items():
        save_file({key: tensors[key].clone() for key in keys}, run / file, {"format": "pt"})
    own = {key: file for file, keys in halves.items() for key in keys}
    (run / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": own if listed is None else listed}))
    return run


def test_weights_in_several_files_are_loaded(run: Path) -> None:
    before = load_model(run)[0].state_dict()
    after = load_model(split(run))[0].state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_missing_file_of_several_is_named(run: Path) -> None:
    (split(run) / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is missing" in refusal(run)


@pytest.mark.parametrize("name", ["../other.safetensors", "/tmp/other.safetensors", "pytorch_model.bin", "sub/model.safetensors", ".."])
def test_index_names_files_of_its_folder_alone(run: Path, name: str) -> None:
    (run / "sub").mkdir()
    for place in ("../other.safetensors", "sub/model.safetensors"):
        (run / place).write_bytes((run / "model.safetensors").read_bytes())
    split(run, {"classifier.bias": name})
    assert refusal(run).endswith("are not files inside it, and are not read.")


@pytest.mark.parametrize("listed", [{}, [], ["model.safetensors"], {"a": 5}, "x"])
def test_index_of_other_types_is_refused(run: Path, listed: Any) -> None:
    split(run, listed)
    assert "index.json is damaged: it lists no files of weights" in refusal(run)


def test_link_to_weights_outside_the_run_is_refused(run: Path) -> None:
    (run / "model.safetensors").rename(run.parent / "elsewhere.safetensors")
    (run / "model.safetensors").symlink_to(run.parent / "elsewhere.safetensors")
    assert refusal(run).endswith("are not files inside it, and are not read.")


def test_nothing_else_in_the_folder_is_read(run: Path) -> None:
    before = load_model(run)[0].state_dict()
    (run / "generation_config.json").write_text("{}")
    (run / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    (run / ".metadata").write_bytes(b"\x80\x04cos\nsystem\n")  # of a distributed checkpoint, which is a pickle
    (run / "__0_0.distcp").write_bytes(b"x")
    after = load_model(run)[0].state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())

"""Checkpoints of timm, through transformers' wrapper: the number of labels, what is saved, and the sentence where timm is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from oneshui_hf.data.schema import Task
from oneshui_hf.errors import OneshuiError
from oneshui_hf.models.load import load_model, save_model
from oneshui_hf.models.new import new_model
from oneshui_hf.models.outputs import find_head
from oneshui_hf.runs import Record, Run, read_json
from oneshui_hf.seeding import seeded
from oneshui_hf.stages.publishing.redaction import public_config
from support import timm_stand_in

TASK = Task("multi_label", ("Glasses", "with/without hat", "Smiling"))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint as timm publishes it: no `model_type`, other labels, its own preprocessing in `config.json`."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    with seeded(0, "timm"):
        model = timm_stand_in.StandIn(11)
    save_file(dict(model.state_dict()), folder / "model.safetensors", metadata={"format": "pt"})
    own = {"input_size": [3, 40, 40], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "num_classes": 11}
    config = {"architecture": "stand_in", "num_classes": 11, "label_names": [f"class {i}" for i in range(11)], "pretrained_cfg": own}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_head_has_the_task_s_labels_and_the_run_round_trips(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm_stand_in.install(monkeypatch)
    model, preprocess = new_model(str(checkpoint), TASK, None, 0)
    assert find_head(model).out_features == model.config.num_labels == 3
    assert preprocess.size == 40  # that of the checkpoint
    with seeded(0, "timm"):
        source = timm_stand_in.StandIn(11).state_dict()
    assert all(torch.equal(model.timm_model.state_dict()[name], source[name]) for name in source if not name.startswith("fc."))
    save_model(model, preprocess, tmp_path / "run")
    loaded, read, task = load_model(tmp_path / "run")
    assert (task, read) == (TASK, preprocess)
    pixels = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(pixel_values=pixels).logits, model.eval()(pixel_values=pixels).logits)
    config = read_json(tmp_path / "run/config.json")
    assert "pretrained_cfg" not in config  # transformers would preprocess photos by it
    assert public_config(config, Run(tmp_path / "run", Record("original", 0, {}, {})))["label_names"] == list(TASK.label_names)


def test_missing_timm_is_one_sentence_with_the_extra(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import is_timm_available

    if is_timm_available():
        pytest.skip("timm is installed")
    with monkeypatch.context() as patch:
        timm_stand_in.install(patch)
        model, preprocess = new_model(str(checkpoint), TASK, None, 0)
        save_model(model, preprocess, tmp_path / "run")
    for name, load in (
        (checkpoint, lambda: new_model(str(checkpoint), TASK, None, 0)),
        (tmp_path / "run", lambda: load_model(tmp_path / "run")),
    ):
        with pytest.raises(OneshuiError) as raised:
            load()
        assert str(raised.value) == f'{name} is a model of timm, which is not installed; run: pip install "oneshui-hf[timm]"'


def test_head_with_another_number_of_outputs_is_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm_stand_in.install(monkeypatch)
    from transformers.models.timm_wrapper import modeling_timm_wrapper

    monkeypatch.setattr(modeling_timm_wrapper.timm, "create_model", lambda *_, **__: timm_stand_in.StandIn(11))
    with pytest.raises(OneshuiError, match="has no linear classification head"):
        new_model(str(checkpoint), TASK, None, 0)

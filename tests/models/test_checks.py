"""No checkpoint makes transformers run code, load kernels or read other files and repositories."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

import oneshui_hf
from oneshui_hf.data.schema import Task
from oneshui_hf.errors import OneshuiError
from oneshui_hf.models.checks import reject_code
from oneshui_hf.models.load import load_model
from oneshui_hf.models.new import new_model

ROOT = Path(__file__).parent.parent.parent
LOADERS = ("from_pretrained", "from_config")
TASK = Task("multi_label", ("a", "b"))


def test_every_call_that_loads_a_model_refuses_code() -> None:
    calls = []
    for file in [*(ROOT / "src").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOADERS:
                refused = [k for k in node.keywords if k.arg == "trust_remote_code" and ast.unparse(k.value) == "False"]
                calls.append((f"{file.relative_to(ROOT)}:{node.lineno}", bool(refused)))
    assert len(calls) >= 9
    assert [place for place, refused in calls if not refused] == []


def test_no_loader_is_passed_on_by_another_name() -> None:
    """A loader that is not called where it is named would escape the test above."""
    for file in [*(ROOT / "src").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        tree = ast.parse(file.read_text())
        called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        named = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in LOADERS and id(node) not in called]
        assert not named, f"{file}: {ast.unparse(named[0])}"


CODE = [
    {"auto_map": {"AutoConfig": "canary.Canary"}},
    {"auto_map": {}},
    {"vision_config": {"auto_map": {"AutoModel": "attacker/x--canary.Canary"}}},
    {"list": [{"auto_map": "x"}]},
    {"custom_pipelines": {"image-classification": {"impl": "canary.Canary"}}},
]
ELSEWHERE = [
    {"attn_implementation": "attacker/kernel"},
    {"_attn_implementation": "attacker/kernel:function"},
    {"_attn_implementation_internal": "flash_attention_2"},
    {"attn_implementation": {"vision_config": "attacker/kernel"}},
    {"experts_implementation": "attacker/kernel"},
    {"quantization_config": {"quant_method": "bitsandbytes"}},
    {"use_kernels": True},
    {"fusion_config": {"x": 1}},
    {"transformers_weights": "other.safetensors"},
    {"configuration_files": ["config.4.0.0.json"]},
    {"backbone_config": {"use_pretrained_backbone": True}},
]


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "processor_config.json", "generation_config.json"])
@pytest.mark.parametrize(("field", "message"), [*((f, "brings its own Python code") for f in CODE), *((f, "elsewhere") for f in ELSEWHERE)])
def test_field_that_leads_to_code_is_refused(tmp_path: Path, file: str, field: dict[str, Any], message: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / file).write_text(json.dumps({"model_type": "vit", **field}))
    with pytest.raises(OneshuiError, match=message) as raised:
        reject_code(tmp_path)
    assert file in str(raised.value)
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    for load in (lambda: load_model(tmp_path), lambda: new_model(str(tmp_path), TASK, None, 0)):
        with pytest.raises(OneshuiError, match=message):
            load()


@pytest.mark.parametrize(
    "field", [{"attn_implementation": "sdpa"}, {"use_kernels": False}, {"quantization_config": None}, {"auto_map": None}]
)
def test_field_that_is_not_set_is_accepted(tmp_path: Path, field: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", **field}))
    reject_code(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "hf-hub:attacker/model"},
        {"architecture": "local-dir:/tmp/x"},
        {"architecture": "resnet18", "model_args": {"pretrained_strict": "x", "file": "/tmp/weights.pt"}},
        {"architecture": "resnet18", "model_args": {"file": "https://example.org"}},
        {"model_type": "oneshui_backbone", "backbone": {"model_type": "timm_wrapper", "architecture": "hf-hub:attacker/model"}},
        {"model_type": "x", "backbone": "attacker/backbone"},
    ],
    ids=str,
)
def test_timm_builds_its_own_architectures_alone(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "timm_wrapper", **config}))
    with pytest.raises(OneshuiError, match="needs code, kernels or files from elsewhere"):
        reject_code(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "timm_wrapper", "architecture": "vit_tiny.augreg", "model_args": {"depth": 3}}')
    reject_code(tmp_path)


def test_pipeline_of_a_run_refuses_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from oneshui_hf.data.preprocess import Preprocess
    from oneshui_hf.models.load import save_model
    from oneshui_hf.runs import Record, hash_weights, write_record
    from support.architectures import classifier

    save_model(classifier("vit", "multi_label"), Preprocess(32), tmp_path)
    labels = list(json.loads((tmp_path / "config.json").read_text())["id2label"].values())
    description = {"name": "x", "labels": labels, "task": "multi_label"}
    write_record(tmp_path, Record("original", 0, {}, description, weights=hash_weights(tmp_path)))
    assert oneshui_hf.Run.open(tmp_path).pipeline().model.config.num_labels == 5
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForImageClassification": "canary.Canary"}}))
    (tmp_path / "canary.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(OneshuiError, match="brings its own Python code"):
        oneshui_hf.Run.open(tmp_path).pipeline()
    assert not (tmp_path / "ran").exists()

"""The attacks of `--attacks all` in an evaluation: which are run, what is kept of them, and what is printed."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import oneshui_hf
from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.errors import OneshuiError
from oneshui_hf.metrics.attack_names import FURTHER_ATTACKS
from oneshui_hf.metrics.comparison import Comparison, Predictions, Settings
from oneshui_hf.metrics.further_schema import FurtherAttacks
from oneshui_hf.metrics.schema import MeasuredMetrics, read_metrics
from oneshui_hf.models.outputs import losses, predict
from oneshui_hf.reporting import SILENT
from oneshui_hf.runs import Run, read_json
from oneshui_hf.sets import PREDICTED
from oneshui_hf.stages import evaluate as evaluation
from oneshui_hf.stages.evaluation import further_attacks as further_module
from oneshui_hf.stages.evaluation.further_attacks import further_attacks
from oneshui_hf.stages.publishing.redaction import public_metrics
from oneshui_hf.testing.toy_problem import toy_problem
from support.affine_model import face_set
from support.architectures import classifier
from support.commands import Oneshui

pytestmark = pytest.mark.slow

ALL: dict[str, Any] = {"resamples": 100, "attacks": "all"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an evaluated original, its oracle and an unlearned model, of a request of one person."""
    folder = tmp_path_factory.mktemp("runs")
    run = oneshui_hf.train(
        dataset="synthetic", forget=1, epochs=1, optimizer="adamw", keep="last", augment="none", output_dir=str(folder / "original")
    )
    oneshui_hf.retrain(run)
    oneshui_hf.unlearn(run, method="gradient-ascent", from_split=True, output_dir=str(folder / "unlearned"))
    for name in ("original", "original-oracle", "unlearned"):
        oneshui_hf.evaluate(folder / name, resamples=100)
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search a photo in few steps."""
    search = further_module.reconstruct
    monkeypatch.setattr(further_module, "reconstruct", lambda *words: search(*words, steps=3))


@pytest.fixture
def copied(runs: Path, tmp_path: Path, quick: None) -> Run:
    """The unlearned model in a new folder, with original and oracle."""
    for name in ("original", "original-oracle", "unlearned"):
        shutil.copytree(runs / name, tmp_path / name)
    record = tmp_path / "unlearned" / "oneshui.json"
    record.write_text(record.read_text().replace(str(runs), str(tmp_path)))
    return Run.open(tmp_path / "unlearned")


def test_all_attacks_are_run_and_only_numbers_are_kept(copied: Run, oneshui: Oneshui) -> None:
    files = {file.name for file in copied.path.rglob("*")}
    found = oneshui_hf.evaluate(copied, **ALL)
    further = found["further"]
    assert set(further) == {*FURTHER_ATTACKS, "not_run"}
    assert further["not_run"] == {}
    FurtherAttacks.model_validate(further)
    assert read_metrics(copied.path, MeasuredMetrics) == found
    assert further["few_shot_relearning"]["people"] == 1
    assert set(further["quantization"]) == {"float32", "bf16", "int8", "int4"}
    assert further["quantization"]["float32"]["unlearned"]["forget"] == pytest.approx(found["forget"]["map"])
    assert 1 <= further["inversion"]["rank"] <= further["inversion"]["candidates"]
    assert further["inversion"]["candidates"] > 40
    layers = {len(of["unlearned"]["cka"]) for name, of in further["representation"].items() if name != "k"}
    assert layers == {6}  # the embeddings, four blocks, and the input of the head
    text = (copied.path / "metrics.json").read_text()
    assert not [person for group in read_json(copied.path / "split.json")["people"].values() for person in group if person in text]
    assert str(copied.path.parent) not in text
    written = {file.name for file in copied.path.rglob("*")} - files
    assert not [name for name in written if not name.endswith((".json", ".safetensors", "predictions", ".lock"))]
    assert public_metrics(found)["further"] == {name: further[name] for name in FURTHER_ATTACKS}

    code, out, _ = oneshui("evaluate", copied.path, "--attacks", "all", "--resamples", "100")
    assert code == 0
    assert "Training on one photo of the forget identity: loss of the other photos, model " in out
    assert "Rounded weights: model / original / oracle" in out
    assert "Reconstruction from the weights: the forget identity has rank" in out
    assert "Features: similarity to the oracle's, model / original" in out


def test_the_same_run_gives_the_same_bytes_and_the_default_runs_none(copied: Run) -> None:
    metrics = copied.path / "metrics.json"
    oneshui_hf.evaluate(copied, **ALL)
    first = metrics.read_bytes()
    metrics.unlink()
    oneshui_hf.evaluate(copied, **ALL)
    assert metrics.read_bytes() == first
    default = oneshui_hf.evaluate(copied, **{**ALL, "attacks": "default"})
    assert default["further"] is None
    assert default["key"] != json.loads(first)["key"]
    assert {key: value for key, value in default.items() if key not in ("further", "key", "content")} == {
        key: value for key, value in json.loads(first).items() if key not in ("further", "key", "content")
    }


def test_without_photos_no_attack_is_run(copied: Run, monkeypatch: pytest.MonkeyPatch, oneshui: Oneshui) -> None:
    def fail(*_: Any) -> None:
        raise OneshuiError(f"The data of {copied.path} is gone.")

    monkeypatch.setattr(evaluation, "open_data", fail)
    found = oneshui_hf.evaluate(copied, **ALL)["further"]
    assert found == dict.fromkeys(FURTHER_ATTACKS) | {"not_run": dict.fromkeys(FURTHER_ATTACKS, "The photos cannot be read.")}
    FurtherAttacks.model_validate(found)
    code, out, _ = oneshui("evaluate", copied.path, "--attacks", "all", "--resamples", "100")
    assert code == 0
    assert "Rounded weights: not run. The photos cannot be read." in out


def test_without_weights_each_attack_has_its_reason(copied: Run) -> None:
    (copied.path.parent / "original-oracle" / "model.safetensors").unlink()
    found = oneshui_hf.evaluate(copied, **ALL)["further"]
    assert found["not_run"] == {"representation": "The weights of the oracle were not kept."}
    assert found["few_shot_relearning"]["oracle"] is found["few_shot_relearning"]["excess"] is None
    assert "gap_closure" not in found["quantization"]["int8"]
    (copied.path / "model.safetensors").unlink()
    (copied.path / "metrics.json").unlink()
    found = oneshui_hf.evaluate(Run.open(copied.path), **ALL)["further"]
    assert set(found["not_run"]) == set(FURTHER_ATTACKS)
    assert found["not_run"]["quantization"] == "The weights of the model were not kept."


def test_an_original_and_an_oracle_have_fewer_attacks(copied: Run) -> None:
    original, oracle = (oneshui_hf.evaluate(copied.path.parent / name, **ALL)["further"] for name in ("original", "original-oracle"))
    assert set(original["not_run"]) == {"few_shot_relearning", "inversion"}
    assert original["quantization"]["int4"]["gap_closure"] in (0, None)
    assert list(original["representation"]["test"]) == ["unlearned"]
    oracle = oneshui_hf.evaluate(copied.path.parent / "original-oracle", original=str(copied.path.parent / "original"), **ALL)["further"]
    assert set(oracle["not_run"]) == {"representation"}
    assert oracle["few_shot_relearning"]["oracle"] is None


def test_only_listed_numbers_are_published() -> None:
    further: dict[str, Any] = {
        "few_shot_relearning": {"people": 3, "unlearned": {"recovery": 0.5, "interval": [0.1, 0.9], "ann": 1.0}, "note": "of Ann"},
        "quantization": None,
        "ann": {"rank": 1},
        "not_run": {"quantization": "The photos of Ann cannot be read."},
    }
    published = public_metrics({"further": further})["further"]
    assert published == {"few_shot_relearning": {"people": 3, "unlearned": {"recovery": 0.5, "interval": [0.1, 0.9]}}, "quantization": None}
    assert "further" not in public_metrics({})


# ---------------------------------------------------------------- other models


def of_models(models: dict[str, torch.nn.Module], sets: dict[str, FaceSet], kind: str) -> dict[str, Any]:
    """Run the attacks on models in memory."""
    accelerator = Accelerator(cpu=True)

    def predictions(model: torch.nn.Module) -> dict[str, Predictions]:
        logits = {name: predict(model, sets[name], accelerator) for name in PREDICTED}
        return {
            name: Predictions(of, sets[name].labels, losses(of, sets[name].labels, kind), sets[name].identities)  # type: ignore[arg-type]
            for name, of in logits.items()
        }

    stored = {role: predictions(model) for role, model in models.items()}
    runs: dict[str, Any] = {role: SimpleNamespace(has_weights=True, record=SimpleNamespace(weights=role)) for role in models}
    compared: Any = SimpleNamespace(original=runs["original"], oracle=runs["oracle"])
    comparison = Comparison(stored["unlearned"], stored["original"], stored["oracle"], references=[stored["oracle"]])
    with pytest.MonkeyPatch.context() as patched:
        for role, run in runs.items():
            run.path, run.require_complete = role, lambda run=run: run
        patched.setattr(further_module, "load_model", lambda path, device: (models[path], None, None))
        search = further_module.reconstruct
        patched.setattr(further_module, "reconstruct", lambda *words: search(*words, steps=2))
        settings = Settings(resamples=100)
        return further_attacks(runs["unlearned"], compared, comparison, lambda: sets, kind, settings, accelerator, 8, SILENT)  # type: ignore[arg-type]


def sets_of(kind: str, side: int) -> dict[str, FaceSet]:
    """Return sets of noise; support and forget set are of one person, and all others have two photos each."""
    sets = {name: face_set(kind, 16, seed, size=side) for seed, name in enumerate(("retain", "val", "test"))}
    for number, faces in enumerate(sets.values()):
        faces.identities.add_(100 * (number + 1))
    one = face_set(kind, 3, 9, size=side)
    one.identities.zero_()
    return sets | {"support": one.subset(torch.tensor([0])), "forget": one.subset(torch.tensor([1]))}


def perturbed(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Return a copy of a model with noise on its weights."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return other


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
@pytest.mark.parametrize("name", ["vit", "dinov2", "convnext", "resnet"])
def test_attacks_run_on_every_architecture(name: str, kind: str) -> None:
    models = {role: perturbed(classifier(name, kind, labels=3), seed) for seed, role in enumerate(("unlearned", "original", "oracle"))}
    found = of_models(models, sets_of(kind, 32), kind)
    assert found["not_run"] == {}
    FurtherAttacks.model_validate(json.loads(json.dumps(found)))
    assert "rmia" in found["quantization"]["int4"]["unlearned"]["attacks"]
    assert found["inversion"]["candidates"] == 17
    assert all(0 < value <= 1 for value in found["representation"]["test"]["unlearned"]["cka"])


def test_sharded_models_and_heads_in_closed_form() -> None:
    for made, missing in (({"sharded": True}, {"inversion", "representation"}), ({"closed_form": True}, {"inversion"})):
        problem = toy_problem("multi_label", **made)
        models = {role: perturbed(problem.model, seed) for seed, role in enumerate(("unlearned", "original", "oracle"))}
        found = of_models(models, problem.sets, "multi_label")
        assert set(found["not_run"]) == missing
        assert found["not_run"]["inversion"].startswith("The forget set has ")
        assert found["few_shot_relearning"]["people"] > 1
        assert found["quantization"]["int4"]["update_kept"] is not None


def test_a_large_model_is_not_inverted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(further_module, "MAX_PARAMETERS", 1000)
    models = {role: classifier("vit", "multi_label", labels=3) for role in ("unlearned", "original", "oracle")}
    found = of_models(models, sets_of("multi_label", 32), "multi_label")
    assert "parameters; the attack is run on models of at most 1,000." in found["not_run"]["inversion"]
    monkeypatch.undo()
    assert of_models(models, sets_of("multi_label", 32), "multi_label")["not_run"]["inversion"].startswith(
        "The model and the original are equal"
    )


def test_whole_people_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(further_module, "MAX_PHOTOS", 7)
    sets = sets_of("multi_label", 32)
    attacks = further_module._FurtherAttacks({}, None, sets, "multi_label", Settings(), None, 8, SILENT)  # type: ignore[arg-type]
    positions = attacks._sample("test")
    assert len(positions) == 6
    assert positions.tolist() == sorted(positions.tolist())
    assert (torch.bincount(sets["test"].identities[positions]).unique() == torch.tensor([0, 2])).all()
    monkeypatch.setattr(further_module, "MAX_PHOTOS", 1)
    assert len(attacks._sample("test")) == 2

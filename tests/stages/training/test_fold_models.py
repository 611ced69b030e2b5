"""Fold models: trained by the run's recipe on the other training identities alone, once, and continued after an interruption."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import oneshui_hf
from oneshui_hf.cache import Cache
from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.errors import OneshuiError
from oneshui_hf.models.load import load_model
from oneshui_hf.runs import Run
from oneshui_hf.stages.distributed import make_accelerator
from oneshui_hf.stages.run_data import RunData, open_data
from oneshui_hf.stages.training import fold_models as module
from oneshui_hf.stages.training import loop
from oneshui_hf.stages.training.fold_models import FoldModels

pytestmark = pytest.mark.slow

RECIPE: dict[str, Any] = {"dataset": "synthetic", "forget": 2, "epochs": 2, "optimizer": "adamw", "augment": "flip"}
RECIPES: dict[str, dict[str, Any]] = {
    "whole": RECIPE,
    "last": RECIPE | {"keep": "last", "seed": 3},
    "sharded": RECIPE | {"epochs": 1, "sharded": 2, "adapter_rank": 2},
    "closed-form": {"dataset": "synthetic", "forget": 2, "head": "closed-form"},
}
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return oneshui_hf.train(**RECIPE, output_dir=str(tmp_path_factory.mktemp("runs") / "original"))


@pytest.fixture(scope="module")
def data(original: Run) -> RunData:
    return open_data(original, make_accelerator())


def fold_models(original: Run, data: RunData, cache: Path) -> FoldModels:
    return FoldModels(original, data, Cache(cache), make_accelerator())


def forget_identities(data: RunData) -> list[int]:
    return sorted(data.sets["forget"].positions_of)


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "recipe", [pytest.param(recipe, id=name, marks=[] if name == "whole" else pytest.mark.slow) for name, recipe in RECIPES.items()]
)
def test_model_without_the_forget_identities_is_the_oracle_of_the_same_order(recipe: dict[str, Any], tmp_path: Path) -> None:
    run = oneshui_hf.train(**recipe, output_dir=str(tmp_path / "original"))
    oracle = oneshui_hf.retrain(run, seed=11, output_dir=str(tmp_path / "oracle"))
    found = open_data(run, make_accelerator())
    model = fold_models(run, found, tmp_path / "cache")(forget_identities(found), 11)
    assert equal(model, load_model(oracle.path)[0])
    assert not model.training


def test_each_model_is_trained_once_on_the_other_training_identities(
    original: Run, data: RunData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[FaceSet, FaceSet]] = []

    def record(model: torch.nn.Module, faces: FaceSet, val: FaceSet, *rest: Any, **more: Any) -> dict[str, Any]:
        seen.append((faces, val))
        return loop.fit(model, faces, val, *rest, **more)

    monkeypatch.setattr(module, "fit", record)
    train, left_out = data.sets["train"], sorted(data.sets["train"].positions_of)[1:4]
    retrain = fold_models(original, data, tmp_path / "cache")
    first = retrain(left_out, 5)
    assert equal(first, retrain(list(reversed(left_out)), 5))
    [(faces, val)] = seen
    assert sorted(faces.positions_of) == [identity for identity in sorted(train.positions_of) if identity not in left_out]
    assert set(faces.rows) <= set(train.rows) and val is data.sets["val"]
    assert not equal(first, retrain(left_out, 6)) and not equal(first, retrain(left_out[:2], 5))
    assert len(seen) == 3
    assert {entry.kind for entry in Cache(tmp_path / "cache").entries()} == {"fold"}
    about = "".join(file.read_text() for file in (tmp_path / "cache").glob("fold-*.json"))
    assert about and not [name for name in train.people if name in about]


def test_interrupted_training_continues_to_the_same_weights(
    original: Run, data: RunData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_out = forget_identities(data)
    whole = fold_models(original, data, tmp_path / "whole")(left_out, 1)
    epochs = []

    def stop(mean: float, *rest: Any) -> None:
        epochs.append(mean)
        if len(epochs) == 2:
            raise KeyboardInterrupt

    retrain = fold_models(original, data, tmp_path / "cache")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(loop, "_require_finite", stop)
        retrain(left_out, 1)
    [entry] = (tmp_path / "cache").glob("fold-*/")
    assert [path.name for path in entry.iterdir()] == ["checkpoint-1"]
    trained = []
    monkeypatch.setattr(loop, "set_learning_rate", _recording(loop.set_learning_rate, trained))
    assert equal(whole, retrain(left_out, 1))
    assert trained and len(set(trained)) == len(trained)
    assert min(trained) > 0, "the first epoch was trained again"


def _recording(function: Any, steps: list[int]) -> Any:
    def record(optimizer: Any, options: Any, step: int, steps_per_epoch: int) -> None:
        steps.append(step)
        function(optimizer, options, step, steps_per_epoch)

    return record


@pytest.mark.parametrize("changed", ["weights", "outcome", "checkpoint"])
def test_damaged_model_is_trained_again(changed: str, original: Run, data: RunData, tmp_path: Path) -> None:
    left_out = forget_identities(data)
    retrain = fold_models(original, data, tmp_path / "cache")
    expected = copy.deepcopy(retrain(left_out, 1))  # its tensors may be a mapping of the file
    [entry] = (tmp_path / "cache").glob("fold-*/")
    if changed == "weights":
        content = bytearray((entry / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (entry / "model.safetensors").write_bytes(content)
    elif changed == "outcome":
        (entry / "outcome.json").unlink()
    else:
        shutil.rmtree(entry)
        (entry / "checkpoint-1").mkdir(parents=True)
    assert equal(expected, retrain(left_out, 1))


def test_models_of_another_run_or_split_are_not_used(original: Run, data: RunData, tmp_path: Path) -> None:
    retrain = fold_models(original, data, tmp_path / "cache")
    key = retrain._key([1, 2], 1)
    other = dataclasses.replace(original, record=dataclasses.replace(original.record, weights="0" * 64))
    assert fold_models(other, data, tmp_path / "cache")._key([1, 2], 1) != key
    assert retrain._key([1], 1) != key and retrain._key([1, 2], 2) != key
    assert retrain._key([2, 1], 1) == key


def test_all_identities_cannot_be_left_out(original: Run, data: RunData, tmp_path: Path) -> None:
    with pytest.raises(OneshuiError, match="no training identity is left"):
        fold_models(original, data, tmp_path / "cache")(sorted(data.sets["train"].positions_of), 1)
    assert not (tmp_path / "cache").exists()


def test_no_attack_uses_a_fold_model(original: Run, data: RunData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    fold_models(original, data, cache)(forget_identities(data), 11)  # what an oracle of this seed would be
    shutil.copytree(original.path, tmp_path / "copy")
    kinds = []
    entry = Cache.entry

    def record(self: Cache, kind: str, *rest: Any) -> Any:
        kinds.append(kind)
        return entry(self, kind, *rest)

    monkeypatch.setattr(Cache, "entry", record)
    result = oneshui_hf.evaluate(str(tmp_path / "copy"), references=1, attacks="all", cache_dir=str(cache))
    assert result["attacks"]["rmia"]["auc"] is not None
    assert kinds and "fold" not in kinds

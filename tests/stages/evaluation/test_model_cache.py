"""The cache of models: what its keys depend on, that each model is made once, and that an interrupted training is resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import oneshui_hf
from oneshui_hf.cache import Cache
from oneshui_hf.data.load import load_faces
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.options import fields
from oneshui_hf.plugins import Plugins
from oneshui_hf.reporting import SILENT, Reporter
from oneshui_hf.runs import Run, hash_file, read_json, write_json
from oneshui_hf.stages import distributed
from oneshui_hf.stages.command_options import EvaluateOptions, TrainOptions
from oneshui_hf.stages.distributed import make_accelerator
from oneshui_hf.stages.evaluate import evaluate
from oneshui_hf.stages.evaluation import model_cache as model_cache_module
from oneshui_hf.stages.evaluation.model_cache import NOT_IN_KEY, ModelCache
from oneshui_hf.stages.training.recipe import RECIPE_VERSION
from oneshui_hf.stages.unlearn import unlearn

RECIPE: dict[str, Any] = {"dataset": "synthetic", "forget": 2, "epochs": 2, "optimizer": "adamw", "augment": "flip"}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return oneshui_hf.train(**RECIPE, output_dir=str(tmp_path_factory.mktemp("runs") / "original"))


def cache_in(folder: Path, reporter: Reporter = SILENT) -> ModelCache:
    return ModelCache(Cache(folder), make_accelerator(), reporter)


def other_value(value: Any, field: dataclasses.Field[Any]) -> Any:
    """Return a value of an option that differs from the given one."""
    if choices := field.metadata["choices"]:
        return next(choice for choice in choices if choice != value)
    if isinstance(value, bool):
        return not value
    return 64 if value is None else value * 2


# ---------------------------------------------------------------- keys


def test_key_of_an_original_depends_on_every_option_of_the_recipe_and_on_no_location(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_cache, options = cache_in(tmp_path / "cache"), TrainOptions(dataset="synthetic", forget=2)
    faces = load_faces(**options.source())
    monkeypatch.setattr(model_cache_module, "load_faces", lambda **_: faces)  # loading takes a while
    key = model_cache.original_key(options)
    recipe = {name: field for name, field in fields(TrainOptions).items() if name not in NOT_IN_KEY}
    assert {"epochs", "lr", "batch_size", "augment", "keep", "image_size", "warmup_epochs"} <= set(recipe)
    splits = {"forget": 3, "reserve_supports": 0, "meta_identities": "disjoint"}
    different = [{name: other_value(getattr(options, name), field)} for name, field in recipe.items()]
    different += [{name: value} for name, value in splits.items()] + [{"seed": 1}, {"model": "other/model"}]
    keys = [model_cache.original_key(dataclasses.replace(options, **change)) for change in different]
    distinct = {json.dumps(found, sort_keys=True) for found in (key, *keys)}
    assert len(distinct) == 1 + len(different)
    assert "head" not in key["options"]  # added later: keys of models that were cached before stay valid
    assert "model_revision" not in key["options"]
    locations = ({"output_dir": "elsewhere"}, {"dataset_revision": "v1"}, {"push_to_hub": "owner/name"}, {"download": True})
    for same in (*locations, {"resume": True}, {"overwrite": True}, {"model": "tiny"}, {"reserve_supports": None}):
        assert model_cache.original_key(dataclasses.replace(options, **same)) == key
    assert not (tmp_path / "cache").exists()


def test_key_depends_on_the_content_of_the_data_and_not_on_its_folder(photo_folder: Callable[..., Path], tmp_path: Path) -> None:
    model_cache, folder = cache_in(tmp_path / "cache"), photo_folder(people=10, photos=3)

    def key(data: Path, **more: Any) -> dict[str, Any]:
        return model_cache.original_key(TrainOptions(dataset=str(data), model="tiny", forget=2, **more))

    first = key(folder)
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    assert key(copied) == first
    assert str(tmp_path) not in json.dumps(first)
    table = copied / "metadata.csv"
    line = table.read_text().splitlines()[-1]
    table.write_text(table.read_text().replace(line, line[:-1] + str(1 - int(line[-1]))))
    assert key(copied) != first
    split = oneshui_hf.draw_split(dataset=str(folder), forget=2, output=str(tmp_path / "split.json"))["split"]
    given = key(folder, split=split)
    assert given == key(folder, split=shutil.copy(split, tmp_path / "other.json"))
    assert given["split"] == first["split"]  # the same split, drawn or read


def test_key_depends_on_precision_processes_and_code_version(original: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = TrainOptions(dataset="synthetic", forget=2)

    def keys(processes: int = 1, supports_bf16: bool = False) -> list[dict[str, Any]]:
        monkeypatch.setattr(distributed, "supports_bf16", lambda device: supports_bf16)
        accelerator: Any = SimpleNamespace(num_processes=processes, device=torch.device("cuda"), main_process_first=contextlib.nullcontext)
        model_cache = ModelCache(Cache(tmp_path), accelerator)
        return [model_cache.original_key(options), model_cache.oracle_key(original, 0)]

    first = keys()
    others = [keys(processes=2), keys(supports_bf16=True)]
    monkeypatch.setattr(model_cache_module, "RECIPE_VERSION", RECIPE_VERSION + 1)
    others.append(keys())
    for number in (0, 1):
        assert len({json.dumps(found[number], sort_keys=True) for found in (first, *others)}) == 4


@pytest.mark.parametrize(("device", "fp16", "expected"), [("cuda", True, "fp16"), ("cpu", True, False), ("cpu", False, False)])
def test_float16_is_part_of_the_key_where_it_is_used(tmp_path: Path, device: str, fp16: bool, expected: bool | str) -> None:
    accelerator: Any = SimpleNamespace(num_processes=1, device=torch.device(device))
    assert ModelCache(Cache(tmp_path), accelerator)._half_precision(TrainOptions(dataset="synthetic", fp16=fp16)) == expected


def test_key_depends_on_the_weights_of_a_local_backbone(tmp_path: Path, original: Run) -> None:
    model_cache = cache_in(tmp_path / "cache")
    for name in ("a", "b"):
        shutil.copytree(original.path, tmp_path / name)

    def key(name: str) -> dict[str, Any]:
        return model_cache.original_key(TrainOptions(dataset="synthetic", forget=2, model=str(tmp_path / name)))

    assert key("a") == key("b") != model_cache.original_key(TrainOptions(dataset="synthetic", forget=2))
    file = tmp_path / "b" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\7")
    assert key("a") != key("b")


def test_key_of_an_oracle_depends_on_split_recipe_data_and_seed(original: Run, tmp_path: Path) -> None:
    model_cache = cache_in(tmp_path / "cache")
    key = model_cache.oracle_key(original, 0)
    moved = Run.open(shutil.copytree(original.path, tmp_path / "moved"))
    assert model_cache.oracle_key(moved, 0) == key
    assert model_cache.oracle_key(original, 1) != key
    split = read_json(moved.path / "split.json")
    write_json(moved.path / "split.json", split | {"forget": split["people"]["train"][:2]})
    with pytest.raises(OneshuiError, match="is not the split of its run"):
        model_cache.oracle_key(moved, 0)
    moved.record.split = hash_file(moved.path / "split.json")
    assert model_cache.oracle_key(moved, 0) != key
    record = dataclasses.asdict(original.record)
    for change in (
        {"options": record["options"] | {"epochs": 5}},
        {"options": record["options"] | {"seed": 4}},
        {"dataset": {"fingerprint": "0"}},
    ):
        other = Run(original.path, dataclasses.replace(original.record, **change))
        assert model_cache.oracle_key(other, 0) != key
    other = Run(original.path, dataclasses.replace(original.record, weights="0" * 64))
    assert model_cache.oracle_key(other, 0) == key  # an oracle does not depend on the original's weights


def test_oracles_have_other_seeds_than_the_given_oracle(original: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_cache = cache_in(tmp_path / "cache")
    monkeypatch.setattr(ModelCache, "oracle", lambda self, original, seed: seed)

    def seeds(count: int, other_than: int | None) -> Any:
        run = None if other_than is None else Run(original.path, dataclasses.replace(original.record, seed=other_than))
        return model_cache.oracles(original, count, run)

    assert original.record.seed == 0
    assert seeds(3, None) == [1, 2, 3]
    assert seeds(3, 0) == [1, 2, 3]
    assert seeds(3, 2) == [1, 3, 4]
    assert seeds(1, 1) == [2]
    assert seeds(0, 1) == []


# ---------------------------------------------------------------- made once


def test_method_is_applied_once_per_setting(original: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_cache, calls = cache_in(tmp_path / "cache"), []

    def spy(*words: Any, **more: Any) -> Run:
        calls.append(words)
        return unlearn(*words, **more)

    monkeypatch.setattr(model_cache_module, "unlearn", spy)
    first = model_cache.unlearned(original, "jit", {"copies": 2}, 0)
    assert model_cache.unlearned(original, "jit", {"copies": 2}, 0) == first
    assert model_cache.unlearned(original, "jit", {"copies": 2, "lr": first.run.record.report["method_options"]["lr"]}, 0) == first
    assert len(calls) == 1
    by_hand = oneshui_hf.unlearn(original, method="jit", from_split=True, copies=2, output_dir=str(tmp_path / "by-hand"))
    assert by_hand.weights == first.run.weights
    moved = Run.open(shutil.copytree(original.path, tmp_path / "moved"))
    assert model_cache.unlearned(moved, "jit", {"copies": 2}, 0).run.path == first.run.path
    others = [
        model_cache.unlearned(original, *words).run
        for words in (("jit", {"copies": 3}, 0), ("jit", {"copies": 2}, 1), ("do-nothing", {}, 0))
    ]
    assert len({run.path for run in (first.run, *others)}) == len(calls) == 4
    assert first.artefact is None
    monkeypatch.setattr(Plugins, "origin", lambda self, name: "another 2.0")  # another release of the method
    assert model_cache.unlearned(original, "jit", {"copies": 2}, 0).run.path != first.run.path


def test_artefact_is_stored_in_the_cache_and_not_in_the_run(original: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_cache, before = cache_in(tmp_path / "cache"), sorted(path.name for path in original.path.iterdir())
    result = model_cache.unlearned(original, "lfssd", {"photos": 20, "selection": 2.0, "dampening": 0.5}, 3)
    assert result.artefact is not None
    assert result.artefact.parent == tmp_path / "cache"
    assert sorted(path.name for path in original.path.iterdir()) == before
    assert result.run.record.report["prepared"] is True
    assert result.run.record.report["method_options"] == {"photos": 20, "selection": 2.0, "dampening": 0.5, "chunk": 4}
    assert read_json(result.artefact / "artefact.json")["report"]["seed"] == 3
    copy = Run.open(shutil.copytree(original.path, tmp_path / "copy"))
    oneshui_hf.prepare(copy, method="lfssd", photos=20, selection=2.0, dampening=0.5, seed=3)
    by_hand = oneshui_hf.unlearn(copy, method="lfssd", from_split=True, seed=3, output_dir=str(tmp_path / "by-hand"))
    assert by_hand.weights == result.run.weights
    monkeypatch.setattr(model_cache_module, "prepare", None)
    assert model_cache.unlearned(original, "lfssd", {"photos": 20, "selection": 2.0, "dampening": 0.5}, 3) == result


def test_keys_of_identities_are_stored_in_the_cache_and_kept_for_repeated_requests(
    original: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONESHUI_VAULT", str(tmp_path / "own"))
    model_cache, values = cache_in(tmp_path / "cache"), {"steps": 2, "calibration": 0}
    result = model_cache.unlearned(original, "metaunlearn", values, 0)
    assert result.artefact is not None
    vault = result.artefact.with_name(f"{result.artefact.name}.vault")
    secrets = sorted(file.name for file in vault.rglob("*.key"))
    assert len(secrets) > 10
    assert result.run.record.report["destroyed"] == 0
    # Another machine that only has the cache gets the same result.
    shutil.rmtree(result.run.path)
    monkeypatch.setattr(model_cache_module, "prepare", None)
    monkeypatch.setenv("ONESHUI_VAULT", str(tmp_path / "theirs"))
    again = cache_in(shutil.move(tmp_path / "cache", tmp_path / "there")).unlearned(original, "metaunlearn", values, 0)
    assert again.run.record.weights == result.run.record.weights
    vault = tmp_path / "there" / vault.name
    assert sorted(file.name for file in vault.rglob("*.key")) == secrets
    Cache(tmp_path / "there").clear(["artefact"])
    assert not list((tmp_path / "there").rglob("*.key"))
    assert not (tmp_path / "own").exists()
    assert not (tmp_path / "theirs").exists()


def test_optional_preparation_is_skipped_if_all_options_have_values(original: Run, tmp_path: Path) -> None:
    model_cache = cache_in(tmp_path / "cache")
    values: dict[str, Any] = {"length": 0.01}
    unprepared = model_cache.unlearned(original, "gradient-ascent", values, 0)
    assert unprepared.artefact is None
    assert unprepared.run.record.report["prepared"] is False
    by_hand = oneshui_hf.unlearn(original, method="gradient-ascent", from_split=True, output_dir=str(tmp_path / "by-hand"), **values)
    assert unprepared.run.weights == by_hand.weights


@pytest.mark.parametrize(
    ("change", "again"), [({}, False), ({"resamples": 200}, False), ({"queries": 2}, True), ({"relearn_steps": 1}, True)]
)
def test_evicted_weights_are_made_again_if_the_evaluation_needs_them(
    original: Run, tmp_path: Path, change: dict[str, Any], again: bool
) -> None:
    options = EvaluateOptions(queries=1, resamples=100, original=str(original.path))
    model_cache = cache_in(tmp_path / "cache")
    first = model_cache.unlearned(original, "do-nothing", {}, 0).run
    evaluate(first, options)
    model_cache.evict_weights(first)
    changed = dataclasses.replace(options, **change)
    run = dataclasses.replace(model_cache, evaluation=changed).unlearned(original, "do-nothing", {}, 0).run
    assert run.path == first.path
    assert run.has_weights == again
    assert run.record.weights == first.record.weights
    assert evaluate(run, changed)["intervals"]["resamples"] == changed.resamples


def test_only_weights_of_unlearned_models_in_the_cache_are_evicted(original: Run, tmp_path: Path) -> None:
    model_cache = cache_in(tmp_path / "cache")
    mine = model_cache.unlearned(original, "do-nothing", {}, 0).run
    theirs = oneshui_hf.unlearn(original, method="do-nothing", from_split=True, output_dir=str(tmp_path / "theirs"))
    other = Run.open(shutil.copytree(original.path, model_cache.cache.root / original.path.name))
    for run in (mine, theirs, other, original):
        model_cache.evict_weights(run)
    assert [run.has_weights for run in (mine, theirs, other, original)] == [False, True, True, True]
    assert Run.open(mine.path).record.weights == original.weights
    model_cache.evict_weights(mine)  # a second call does nothing


def test_request_with_given_images_cannot_be_repeated(original: Run, tmp_path: Path) -> None:
    from support.faces import portrait

    model_cache = cache_in(tmp_path / "cache")
    assert model_cache.reference(original, original) is original
    portrait(1, 1).save(tmp_path / "face.png")
    run = oneshui_hf.unlearn(original, [tmp_path / "face.png"], method="do-nothing", output_dir=str(tmp_path / "run"))
    with pytest.raises(UsageError, match="no reference model can repeat the request"):
        model_cache.reference(run, original)


# ---------------------------------------------------------------- interrupted trainings


class InterruptingReporter(Reporter):
    """Records messages, and interrupts the training at the end of an epoch, before its checkpoint is saved."""

    def __init__(self, at: str = "") -> None:
        self.messages: list[str] = []
        self.at = at

    def info(self, message: str) -> None:
        self.messages.append(message)
        if self.at and message.startswith(self.at):
            raise KeyboardInterrupt


@pytest.mark.slow
def test_resumed_training_has_the_same_weights(original: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = oneshui_hf.retrain(original, seed=1, output_dir=str(tmp_path / "oracle"))
    recipe = TrainOptions(**RECIPE)
    cases: tuple[tuple[Run, Callable[[ModelCache], Run]], ...] = (
        (oracle, lambda model_cache: model_cache.oracle(original, 1)),
        (original, lambda model_cache: model_cache.original(recipe)),
    )
    for uninterrupted, make in cases:
        cache = tmp_path / f"cache-{uninterrupted.record.kind}"
        with pytest.raises(KeyboardInterrupt):
            make(cache_in(cache, InterruptingReporter("epoch 2/")))
        (entry,) = Cache(cache).entries()
        assert not entry.locked
        assert Run.open(cache / entry.key).record.state == "training"
        reporter = InterruptingReporter()
        resumed = make(cache_in(cache, reporter))
        assert "Resuming after epoch 1." in reporter.messages
        assert resumed.path == cache / entry.key
        assert resumed.weights == uninterrupted.weights
        assert resumed.record.report == uninterrupted.record.report
        assert resumed.record.state == "complete"
        with monkeypatch.context() as patched:
            for name in ("train", "retrain"):
                patched.setattr(model_cache_module, name, None)
            assert make(cache_in(cache)).weights == uninterrupted.weights


@pytest.mark.slow
def test_a_cached_training_that_cannot_be_resumed_starts_again(original: Run, tmp_path: Path) -> None:
    recipe = TrainOptions(dataset="synthetic", forget=2, epochs=3, optimizer="adamw", seed=7)
    uninterrupted = cache_in(tmp_path / "other").original(recipe)
    with pytest.raises(KeyboardInterrupt):
        cache_in(tmp_path / "cache", InterruptingReporter("epoch 2/")).original(recipe)
    (entry,) = Cache(tmp_path / "cache").entries()
    (tmp_path / "cache" / entry.key / "checkpoint-1" / "progress.json").write_text("{}")
    reporter = InterruptingReporter()
    assert cache_in(tmp_path / "cache", reporter).original(recipe).weights == uninterrupted.weights
    assert sum(message.startswith("epoch 1/") for message in reporter.messages) == 1  # from the start


def test_a_cached_run_that_was_being_replaced_is_restored(original: Run, tmp_path: Path) -> None:
    model_cache = cache_in(tmp_path / "cache")
    made = model_cache.oracle(original, 0)
    made.path.rename(made.path.with_name(f".{made.path.name}.0123abcd.replaced"))
    reporter = InterruptingReporter()
    assert cache_in(tmp_path / "cache", reporter).oracle(original, 0).path == made.path
    assert not any(message.startswith("epoch ") for message in reporter.messages)


def test_cached_oracle_equals_that_of_retrain(original: Run, tmp_path: Path) -> None:
    model_cache = cache_in(tmp_path / "cache")
    by_hand = oneshui_hf.retrain(original, output_dir=str(tmp_path / "by-hand"))
    key = model_cache.oracle_key(original, original.record.seed)
    assert model_cache.lookup("oracle", key) is None
    made = model_cache.oracle(original, original.record.seed)
    found = model_cache.lookup("oracle", key)
    assert found is not None
    assert found.path == made.path
    assert model_cache.lookup("oracle", model_cache.oracle_key(original, 2)) is None
    assert made.weights == by_hand.weights
    assert made.record.kind == "oracle"
    (entry,) = model_cache.cache.entries()
    assert entry.about == {"dataset": "synthetic", "seed": 0}


@pytest.mark.slow
def test_moved_data_is_used_for_every_model_that_is_made(tmp_path: Path, celeba_folder: Callable[..., Path]) -> None:
    folder = celeba_folder(people=8, photos=4)
    options = {"dataset": "celeba", "data_dir": str(folder), "model": "tiny", "image_size": 16, "forget": 1, "epochs": 1}
    run = oneshui_hf.train(**options, output_dir=str(tmp_path / "run"))
    oneshui_hf.retrain(run)
    unlearned = oneshui_hf.unlearn(run, method="gradient-ascent", from_split=True, length=0.001)
    moved = folder.rename(tmp_path / "elsewhere")
    with pytest.raises(OneshuiError):
        oneshui_hf.evaluate(unlearned, references=1, cache_dir=str(tmp_path / "cache"))
    found = oneshui_hf.evaluate(unlearned, references=1, data_dir=str(moved), cache_dir=str(tmp_path / "cache"))
    assert found["noise_floor"]["oracles"] == 1

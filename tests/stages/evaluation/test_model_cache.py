"""Models that are made once: what names them, what does not, and a training that was stopped half-way."""

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

import oneshui_hf
from oneshui_hf.cache import Cache
from oneshui_hf.data.load import load_faces
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.options import fields
from oneshui_hf.plugins import Plugins
from oneshui_hf.reporting import SILENT, Reporter
from oneshui_hf.runs import Run, read_json, write_json
from oneshui_hf.stages.command_options import EvaluateOptions, TrainOptions
from oneshui_hf.stages.distributed import make_accelerator
from oneshui_hf.stages.evaluate import evaluate
from oneshui_hf.stages.evaluation import model_cache as stage
from oneshui_hf.stages.evaluation.model_cache import ELSEWHERE, Stock
from oneshui_hf.stages.train import RECIPE as RECIPE_OF_CODE
from oneshui_hf.stages.unlearn import unlearn

RECIPE: dict[str, Any] = {"dataset": "synthetic", "forget": 2, "epochs": 2, "optimizer": "adamw", "augment": "flip"}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return oneshui_hf.train(**RECIPE, output_dir=str(tmp_path_factory.mktemp("runs") / "original"))


def stock_in(folder: Path, reporter: Reporter = SILENT) -> Stock:
    return Stock(Cache(folder), make_accelerator(), reporter)


def changed(value: Any, field: dataclasses.Field[Any]) -> Any:
    """Return another value of an option."""
    if choices := field.metadata["choices"]:
        return next(choice for choice in choices if choice != value)
    if isinstance(value, bool):
        return not value
    return 64 if value is None else value * 2


# ---------------------------------------------------------------- what names a model


def test_every_option_of_a_recipe_names_its_original_and_no_place_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock, options = stock_in(tmp_path / "cache"), TrainOptions(dataset="synthetic", forget=2)
    faces = load_faces(**options.source())
    monkeypatch.setattr(stage, "load_faces", lambda **_: faces)  # which takes a while
    key = stock.original_key(options)
    recipe = {name: field for name, field in fields(TrainOptions).items() if name not in ELSEWHERE}
    assert {"epochs", "lr", "batch_size", "augment", "keep", "image_size", "warmup_epochs"} <= set(recipe)
    splits = {"forget": 3, "reserve_supports": 0, "meta_identities": "disjoint"}
    different = [{name: changed(getattr(options, name), field)} for name, field in recipe.items()]
    different += [{name: value} for name, value in splits.items()] + [{"seed": 1}, {"model": "other/model"}]
    keys = [stock.original_key(dataclasses.replace(options, **change)) for change in different]
    names = {json.dumps(found, sort_keys=True) for found in (key, *keys)}
    assert len(names) == 1 + len(different)
    for same in ({"output_dir": "elsewhere"}, {"resume": True}, {"overwrite": True}, {"model": "tiny"}, {"reserve_supports": None}):
        assert stock.original_key(dataclasses.replace(options, **same)) == key
    assert not (tmp_path / "cache").exists()


def test_the_same_data_in_another_folder_is_the_same_data(photo_folder: Callable[..., Path], tmp_path: Path) -> None:
    stock, folder = stock_in(tmp_path / "cache"), photo_folder(people=10, photos=3)

    def key(place: Path, **more: Any) -> dict[str, Any]:
        return stock.original_key(TrainOptions(dataset=str(place), model="tiny", forget=2, **more))

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
    assert given["split"] == first["split"]  # drawn or read, it is the same split


def test_precision_processes_and_code_name_a_model(original: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = TrainOptions(dataset="synthetic", forget=2)

    def keys(processes: int = 1, half_precision: bool = False) -> list[dict[str, Any]]:
        monkeypatch.setattr(stage, "has_half_precision", lambda device: half_precision)
        accelerator: Any = SimpleNamespace(num_processes=processes, device="cpu", main_process_first=contextlib.nullcontext)
        stock = Stock(Cache(tmp_path), accelerator)
        return [stock.original_key(options), stock.oracle_key(original, 0)]

    first = keys()
    others = [keys(processes=2), keys(half_precision=True)]
    monkeypatch.setattr(stage, "RECIPE", RECIPE_OF_CODE + 1)
    others.append(keys())
    for number in (0, 1):
        assert len({json.dumps(found[number], sort_keys=True) for found in (first, *others)}) == 4


def test_a_local_backbone_is_named_by_its_weights(tmp_path: Path, original: Run) -> None:
    stock = stock_in(tmp_path / "cache")
    for name in ("a", "b"):
        shutil.copytree(original.path, tmp_path / name)

    def key(name: str) -> dict[str, Any]:
        return stock.original_key(TrainOptions(dataset="synthetic", forget=2, model=str(tmp_path / name)))

    assert key("a") == key("b") != stock.original_key(TrainOptions(dataset="synthetic", forget=2))
    file = tmp_path / "b" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\7")
    assert key("a") != key("b")


def test_what_names_an_oracle(original: Run, tmp_path: Path) -> None:
    stock = stock_in(tmp_path / "cache")
    key = stock.oracle_key(original, 0)
    moved = Run.open(shutil.copytree(original.path, tmp_path / "moved"))
    assert stock.oracle_key(moved, 0) == key
    assert stock.oracle_key(original, 1) != key
    split = read_json(moved.path / "split.json")
    write_json(moved.path / "split.json", split | {"forget": split["people"]["train"][:2]})
    assert stock.oracle_key(moved, 0) != key
    record = dataclasses.asdict(original.record)
    for change in (
        {"options": record["options"] | {"epochs": 5}},
        {"options": record["options"] | {"seed": 4}},
        {"dataset": {"fingerprint": "0"}},
    ):
        other = Run(original.path, dataclasses.replace(original.record, **change))
        assert stock.oracle_key(other, 0) != key
    other = Run(original.path, dataclasses.replace(original.record, weights="0" * 64))
    assert stock.oracle_key(other, 0) == key  # an oracle never looks at the original's weights


def test_seeds_of_oracles_are_not_that_of_the_one_beside_them(original: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = stock_in(tmp_path / "cache")
    monkeypatch.setattr(Stock, "oracle", lambda self, original, seed: seed)

    def seeds(count: int, besides: int | None) -> Any:
        run = None if besides is None else Run(original.path, dataclasses.replace(original.record, seed=besides))
        return stock.oracles(original, count, run)

    assert original.record.seed == 0
    assert seeds(3, None) == [1, 2, 3]
    assert seeds(3, 0) == [1, 2, 3]
    assert seeds(3, 2) == [1, 3, 4]
    assert seeds(1, 1) == [2]
    assert seeds(0, 1) == []


# ---------------------------------------------------------------- made once


def test_a_method_is_applied_once_for_each_setting(original: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock, calls = stock_in(tmp_path / "cache"), []

    def spy(*words: Any, **more: Any) -> Run:
        calls.append(words)
        return unlearn(*words, **more)

    monkeypatch.setattr(stage, "unlearn", spy)
    first = stock.forget(original, "jit", {"copies": 2}, 0)
    assert stock.forget(original, "jit", {"copies": 2}, 0) == first
    assert stock.forget(original, "jit", {"copies": 2, "lr": first.run.record.report["method_options"]["lr"]}, 0) == first
    assert len(calls) == 1
    by_hand = oneshui_hf.unlearn(original, method="jit", from_split=True, copies=2, output_dir=str(tmp_path / "by-hand"))
    assert by_hand.weights == first.run.weights
    moved = Run.open(shutil.copytree(original.path, tmp_path / "moved"))
    assert stock.forget(moved, "jit", {"copies": 2}, 0).run.path == first.run.path
    others = [stock.forget(original, *words).run for words in (("jit", {"copies": 3}, 0), ("jit", {"copies": 2}, 1), ("do-nothing", {}, 0))]
    assert len({run.path for run in (first.run, *others)}) == len(calls) == 4
    assert first.artefact is None
    monkeypatch.setattr(Plugins, "origin", lambda self, name: "another 2.0")  # another release of the method
    assert stock.forget(original, "jit", {"copies": 2}, 0).run.path != first.run.path


def test_what_a_method_prepares_is_kept_beside_no_run(original: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock, before = stock_in(tmp_path / "cache"), sorted(path.name for path in original.path.iterdir())
    found = stock.forget(original, "lfssd", {"photos": 20, "selection": 2.0, "dampening": 0.5}, 3)
    assert found.artefact is not None
    assert found.artefact.parent == tmp_path / "cache"
    assert sorted(path.name for path in original.path.iterdir()) == before
    assert found.run.record.report["prepared"] is True
    assert found.run.record.report["method_options"] == {"photos": 20, "selection": 2.0, "dampening": 0.5, "chunk": 4}
    assert read_json(found.artefact / "artefact.json")["report"]["seed"] == 3
    copy = Run.open(shutil.copytree(original.path, tmp_path / "copy"))
    oneshui_hf.prepare(copy, method="lfssd", photos=20, selection=2.0, dampening=0.5, seed=3)
    by_hand = oneshui_hf.unlearn(copy, method="lfssd", from_split=True, seed=3, output_dir=str(tmp_path / "by-hand"))
    assert by_hand.weights == found.run.weights
    monkeypatch.setattr(stage, "prepare", None)
    assert stock.forget(original, "lfssd", {"photos": 20, "selection": 2.0, "dampening": 0.5}, 3) == found


def test_secrets_of_people_lie_in_the_cache_and_stay_for_whoever_repeats_the_request(
    original: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONESHUI_VAULT", str(tmp_path / "own"))
    stock, values = stock_in(tmp_path / "cache"), {"steps": 2, "calibration": 0}
    found = stock.forget(original, "metaunlearn", values, 0)
    assert found.artefact is not None
    vault = found.artefact.with_name(f"{found.artefact.name}.vault")
    secrets = sorted(file.name for file in vault.rglob("*.key"))
    assert len(secrets) > 10
    assert found.run.record.report["destroyed"] == 0
    # Another machine, which has the cache alone, makes of it what this one made.
    shutil.rmtree(found.run.path)
    monkeypatch.setattr(stage, "prepare", None)
    monkeypatch.setenv("ONESHUI_VAULT", str(tmp_path / "theirs"))
    again = stock_in(shutil.move(tmp_path / "cache", tmp_path / "there")).forget(original, "metaunlearn", values, 0)
    assert again.run.record.weights == found.run.record.weights
    vault = tmp_path / "there" / vault.name
    assert sorted(file.name for file in vault.rglob("*.key")) == secrets
    Cache(tmp_path / "there").clear(["artefact"])
    assert not list((tmp_path / "there").rglob("*.key"))
    assert not (tmp_path / "own").exists()
    assert not (tmp_path / "theirs").exists()


def test_a_method_that_may_go_without_preparing_goes_without_where_it_is_told_everything(original: Run, tmp_path: Path) -> None:
    stock = stock_in(tmp_path / "cache")
    told: dict[str, Any] = {"length": 0.01}
    plain = stock.forget(original, "gradient-ascent", told, 0)
    assert plain.artefact is None
    assert plain.run.record.report["prepared"] is False
    by_hand = oneshui_hf.unlearn(original, method="gradient-ascent", from_split=True, output_dir=str(tmp_path / "by-hand"), **told)
    assert plain.run.weights == by_hand.weights


@pytest.mark.parametrize(
    ("change", "again"), [({}, False), ({"resamples": 200}, False), ({"queries": 2}, True), ({"relearn_steps": 1}, True)]
)
def test_a_model_that_was_let_go_is_made_again_where_it_is_needed(
    original: Run, tmp_path: Path, change: dict[str, Any], again: bool
) -> None:
    options = EvaluateOptions(queries=1, resamples=100, original=str(original.path))
    stock = stock_in(tmp_path / "cache")
    first = stock.forget(original, "do-nothing", {}, 0).run
    evaluate(first, options)
    stock.let_go(first)
    changed = dataclasses.replace(options, **change)
    run = dataclasses.replace(stock, measured=changed).forget(original, "do-nothing", {}, 0).run
    assert run.path == first.path
    assert run.has_weights == again
    assert run.record.weights == first.record.weights
    assert evaluate(run, changed)["intervals"]["resamples"] == changed.resamples


def test_only_weights_of_what_was_unlearned_here_are_let_go(original: Run, tmp_path: Path) -> None:
    stock = stock_in(tmp_path / "cache")
    mine = stock.forget(original, "do-nothing", {}, 0).run
    theirs = oneshui_hf.unlearn(original, method="do-nothing", from_split=True, output_dir=str(tmp_path / "theirs"))
    other = Run.open(shutil.copytree(original.path, stock.cache.root / original.path.name))
    for run in (mine, theirs, other, original):
        stock.let_go(run)
    assert [run.has_weights for run in (mine, theirs, other, original)] == [False, True, True, True]
    assert Run.open(mine.path).record.weights == original.weights
    stock.let_go(mine)  # gone already


def test_a_request_that_was_handed_in_is_not_repeated(original: Run, tmp_path: Path) -> None:
    from support.faces import portrait

    stock = stock_in(tmp_path / "cache")
    assert stock.reference(original, original) is original
    portrait(1, 1).save(tmp_path / "face.png")
    run = oneshui_hf.unlearn(original, [tmp_path / "face.png"], method="do-nothing", output_dir=str(tmp_path / "run"))
    with pytest.raises(UsageError, match="no reference model can repeat the request"):
        stock.reference(run, original)


# ---------------------------------------------------------------- stopped half-way


class Stopping(Reporter):
    """Keeps what it is told, and stops at the end of an epoch, before that is saved."""

    def __init__(self, at: str = "") -> None:
        self.heard: list[str] = []
        self.at = at

    def info(self, message: str) -> None:
        self.heard.append(message)
        if self.at and message.startswith(self.at):
            raise KeyboardInterrupt


def test_training_that_was_stopped_goes_on_to_the_same_weights(original: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = oneshui_hf.retrain(original, seed=1, output_dir=str(tmp_path / "oracle"))
    recipe = TrainOptions(**RECIPE)
    makers: tuple[tuple[Run, Callable[[Stock], Run]], ...] = (
        (oracle, lambda stock: stock.oracle(original, 1)),
        (original, lambda stock: stock.original(recipe)),
    )
    for whole, make in makers:
        cache = tmp_path / f"cache-{whole.record.kind}"
        with pytest.raises(KeyboardInterrupt):
            make(stock_in(cache, Stopping("Epoch 2:")))
        (entry,) = Cache(cache).entries()
        assert not entry.locked
        assert Run.open(cache / entry.key).record.state == "training"
        heard = Stopping()
        resumed = make(stock_in(cache, heard))
        assert "Going on after epoch 1." in heard.heard
        assert resumed.path == cache / entry.key
        assert resumed.weights == whole.weights
        assert resumed.record.report == whole.record.report
        assert resumed.record.state == "complete"
        with monkeypatch.context() as patched:
            for name in ("train", "retrain"):
                patched.setattr(stage, name, None)
            assert make(stock_in(cache)).weights == whole.weights


def test_an_oracle_in_the_cache_is_that_of_retrain(original: Run, tmp_path: Path) -> None:
    stock = stock_in(tmp_path / "cache")
    by_hand = oneshui_hf.retrain(original, output_dir=str(tmp_path / "by-hand"))
    key = stock.oracle_key(original, original.record.seed)
    assert stock.there("oracle", key) is None
    made = stock.oracle(original, original.record.seed)
    found = stock.there("oracle", key)
    assert found is not None
    assert found.path == made.path
    assert stock.there("oracle", stock.oracle_key(original, 2)) is None
    assert made.weights == by_hand.weights
    assert made.record.kind == "oracle"
    (entry,) = stock.cache.entries()
    assert entry.about == {"dataset": "synthetic", "seed": 0}


def test_data_that_has_moved_is_found_by_all_that_is_made(tmp_path: Path, celeba_folder: Callable[..., Path]) -> None:
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

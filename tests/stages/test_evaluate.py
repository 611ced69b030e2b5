"""Evaluation end to end: stored predictions, reference models that are made once, and metrics that do not need the model again."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import oneshui_hf
from oneshui_hf.cache import Cache
from oneshui_hf.data.augment import SHIFT_DIVISOR, VIEWS, apply_view
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import Artefact, Context, DataAccess, Method, Needs, option
from oneshui_hf.options import fields
from oneshui_hf.reporting import Reporter
from oneshui_hf.runs import Run, read_json
from oneshui_hf.sets import PREDICTED
from oneshui_hf.stages.command_options import EvaluateOptions
from oneshui_hf.stages.evaluation import predictions as predictions_module
from support.commands import Oneshui, sentence
from support.faces import portrait

QUICK: dict[str, Any] = {"resamples": 100}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an evaluated original, its oracle, and an unlearned model; `cache` is for its reference models."""
    folder = tmp_path_factory.mktemp("runs")
    original = oneshui_hf.train(
        dataset="synthetic", forget=3, epochs=1, optimizer="adamw", keep="last", augment="none", output_dir=str(folder / "original")
    )
    oneshui_hf.retrain(original)
    oneshui_hf.evaluate(original, **QUICK)
    oneshui_hf.unlearn(original, method="jit", from_split=True, copies=3, lr=0.02, output_dir=str(folder / "jit"))
    return folder


def copy_of(runs: Path, folder: Path, *left_out: str) -> Run:
    """Copy the original and its oracle into a folder, and return the original."""
    for name in ("original", "original-oracle"):
        shutil.copytree(runs / name, folder / name, ignore=shutil.ignore_patterns(*left_out))
    return Run.open(folder / "original")


@pytest.fixture
def measured(runs: Path, tmp_path: Path) -> Run:
    """A copy of the original with its evaluation."""
    return copy_of(runs, tmp_path)


@pytest.fixture
def original(runs: Path, tmp_path: Path) -> Run:
    """A copy of the original without its evaluation."""
    return copy_of(runs, tmp_path, "predictions", "metrics.json", "curves.json")


def evaluation_files(run: Run) -> dict[str, bytes]:
    """Return the files written by evaluation, by name."""
    return {
        file.name: file.read_bytes()
        for file in (run.path / "metrics.json", run.path / "curves.json", *(run.path / "predictions").glob("*"))
    }


def delete_metrics(run: Run) -> None:
    (run.path / "metrics.json").unlink()
    (run.path / "curves.json").unlink()


# ---------------------------------------------------------------- views of a photo


def test_views_of_a_photo_are_itself_its_mirror_image_and_shifts() -> None:
    side = 48
    pixels = torch.randint(256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(apply_view(pixels, 0), pixels)
    assert torch.equal(apply_view(apply_view(pixels, 1), 1), pixels)
    assert np.array_equal(apply_view(pixels, 1).numpy(), pixels.numpy()[..., ::-1])
    step = side // SHIFT_DIVISOR
    for number, (mirrored, down, right) in enumerate(VIEWS):
        image = pixels.numpy()[..., ::-1] if mirrored else pixels.numpy()
        padded = np.pad(image, ((0, 0), (0, 0), (step, step), (step, step)), mode="edge")
        top, left = step * (1 - down), step * (1 - right)
        assert np.array_equal(apply_view(pixels, number).numpy(), padded[..., top : top + side, left : left + side]), number
        assert torch.equal(apply_view(pixels.float(), number), apply_view(pixels, number).float())
    assert len({apply_view(pixels, number).numpy().tobytes() for number in range(len(VIEWS))}) == len(VIEWS)
    assert len(VIEWS) == fields(EvaluateOptions)["queries"].metadata["max"]
    tiny = pixels[..., :8, :8]  # a shift is at least one pixel
    assert torch.equal(apply_view(tiny, 2)[..., 1:], tiny[..., :-1])


# ---------------------------------------------------------------- predictions


def test_stored_predictions_are_the_outputs_of_the_model(original: Run) -> None:
    from transformers import AutoModelForImageClassification

    from oneshui_hf.stages.run_data import open_data

    oneshui_hf.evaluate(original, queries=3, **QUICK)
    folder = original.path / "predictions"
    assert {file.stem for file in folder.glob("*")} == {*PREDICTED, *(f"{name}-view{n}" for name in ("forget", "test") for n in (1, 2))}
    model = AutoModelForImageClassification.from_pretrained(original.path).eval()
    head_inputs: list[torch.Tensor] = []
    model.classifier.register_forward_hook(lambda module, inputs, output: head_inputs.append(inputs[0]))
    sets = open_data(original, Accelerator(cpu=True)).sets
    for name in PREDICTED:
        stored = load_file(folder / f"{name}.safetensors")
        pixels, labels = sets[name].batch(torch.arange(len(sets[name])))
        head_inputs.clear()
        with torch.inference_mode():
            logits = model(pixel_values=pixels).logits
        assert torch.allclose(stored["logits"], logits, atol=1e-5)
        assert torch.equal(stored["labels"], labels)
        assert torch.equal(stored["identities"], sets[name].identities)
        by_hand = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
        assert torch.allclose(stored["losses"], by_hand, atol=1e-5)
        assert ("features" in stored) == (name in ("forget", "test"))
        if "features" in stored:
            assert torch.allclose(stored["features"], head_inputs[0], atol=1e-5)
            with torch.inference_mode():
                mirrored = model(pixel_values=pixels.flip(-1)).logits
            assert torch.allclose(load_file(folder / f"{name}-view1.safetensors")["logits"], mirrored, atol=1e-5)
    for file in folder.glob("*"):
        with safe_open(file, "pt") as stored_file:
            assert stored_file.metadata().keys() == {"seal"}


def test_predictions_that_are_damaged_or_of_another_model_are_made_again(measured: Run, tmp_path: Path) -> None:
    whole, folder = evaluation_files(measured), measured.path / "predictions"
    other = tmp_path / "original-oracle" / "predictions" / "forget.safetensors"
    assert other.read_bytes() != whole[other.name]
    save_file(load_file(folder / "test.safetensors"), tmp_path / "unsigned.safetensors")
    wrong = {
        "forget": other.read_bytes(),
        "test": (tmp_path / "unsigned.safetensors").read_bytes(),
        "retain": whole["retain.safetensors"][:-10],
        "val": b"",
        "support": b"a text\n" * 50,
        "test-view1": whole["forget-view1.safetensors"][:8] + b"{" * 100,
    }
    for name, text in wrong.items():
        (folder / f"{name}.safetensors").write_bytes(text)
    delete_metrics(measured)
    oneshui_hf.evaluate(measured, **QUICK)
    assert evaluation_files(measured) == whole


class Notes(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def flip_signs(file: Path, name: str = "logits") -> None:
    """Change the sign of the numbers of a tensor file; its other contents and its metadata stay."""
    with safe_open(file, "pt") as stored:
        metadata = stored.metadata()
    tensors = load_file(file)
    save_file(tensors | {name: -tensors[name]}, file, metadata=metadata)


@pytest.mark.parametrize(
    ("name", "tensor"), [("forget", "logits"), ("test", "labels"), ("forget", "features"), ("val", "identities"), ("test-view1", "logits")]
)
def test_changed_predictions_are_made_again_with_a_note(measured: Run, name: str, tensor: str) -> None:
    whole = evaluation_files(measured)
    flip_signs(measured.path / "predictions" / f"{name}.safetensors", tensor)
    delete_metrics(measured)
    notes = Notes()
    oneshui_hf.evaluate(measured, **QUICK, reporter=notes)
    assert evaluation_files(measured) == whole
    (note,) = (note for note in notes.notes if "predictions" in note)
    assert name.partition("-")[0] in note


def test_predictions_of_another_set_are_made_again(measured: Run) -> None:
    whole, folder = evaluation_files(measured), measured.path / "predictions"
    (folder / "val.safetensors").write_bytes(whole["retain.safetensors"])
    (folder / ".val.safetensors.0123abcd.partial").write_bytes(b"left by a killed process")
    (folder / "forget-view1.safetensors").write_bytes(whole["test-view1.safetensors"])
    delete_metrics(measured)
    oneshui_hf.evaluate(measured, **QUICK)
    assert evaluation_files(measured) == whole


def test_changed_predictions_are_refused_where_the_weights_are_gone(oneshui: Oneshui, measured: Run) -> None:
    (measured.path / "model.safetensors").unlink()
    delete_metrics(measured)
    flip_signs(measured.path / "predictions" / "forget.safetensors")
    before = {file: file.read_bytes() for file in measured.path.rglob("*") if file.is_file()}
    code, _, err = oneshui("evaluate", "--run", measured.path)
    assert (code, "lacks valid predictions of forget and the weights" in sentence(err)) == (1, True)
    assert {file: file.read_bytes() for file in measured.path.rglob("*") if file.is_file()} == before


def test_changed_predictions_of_a_compared_model_are_made_again(measured: Run) -> None:
    whole = evaluation_files(measured)
    for file in (Path(f"{measured.path}-oracle") / "predictions").glob("*"):
        flip_signs(file)
    delete_metrics(measured)
    oneshui_hf.evaluate(measured, **QUICK)
    assert evaluation_files(measured) == whole


def test_predictions_that_are_not_finite_are_refused(original: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    predict = predictions_module.predict
    monkeypatch.setattr(predictions_module, "predict", lambda *arguments: predict(*arguments) * float("inf"))
    with pytest.raises(OneshuiError, match="NaN or infinite"):
        oneshui_hf.evaluate(original, **QUICK)
    assert not (original.path / "metrics.json").exists()


@pytest.mark.parametrize(("name", "field"), [("metrics.json", "tow"), ("curves.json", "people")])
def test_metrics_that_were_changed_by_hand_are_made_again(measured: Run, oneshui: Oneshui, name: str, field: str) -> None:
    whole = evaluation_files(measured)
    value = read_json(measured.path / name)
    (measured.path / name).write_text(json.dumps(value | {field: 99.9}))
    code, _, err = oneshui("report", measured.path)
    assert (code, f"{name} has changed since it was written" in sentence(err)) == (1, True)
    oneshui_hf.evaluate(measured, **QUICK)
    assert evaluation_files(measured) == whole


def test_a_split_that_is_not_that_of_the_run_is_refused(measured: Run) -> None:
    file = measured.path / "split.json"
    file.write_bytes(file.read_bytes().replace(b'"seed": 0', b'"seed": 1'))
    with pytest.raises(OneshuiError, match="is not the split of its run"):
        oneshui_hf.evaluate(measured, **QUICK)


@pytest.mark.parametrize(("name", "text"), [("metrics.json", b"{"), ("metrics.json", b"{}"), ("curves.json", b"[]"), ("curves.json", None)])
def test_damaged_metrics_are_made_again(measured: Run, name: str, text: bytes | None) -> None:
    whole = evaluation_files(measured)
    (measured.path / name).unlink() if text is None else (measured.path / name).write_bytes(text)
    oneshui_hf.evaluate(measured, **QUICK)
    assert evaluation_files(measured) == whole


@pytest.fixture
def model_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The forward passes from now on: the function called, and the view of the photos."""
    calls: list[tuple[str, int]] = []

    def spy(name: str) -> Callable[..., Any]:
        call = getattr(predictions_module, name)

        def record(*arguments: Any) -> Any:
            calls.append((name, arguments[4] if len(arguments) > 4 else 0))
            return call(*arguments)

        return record

    for name in ("predict", "predict_with_features"):
        monkeypatch.setattr(predictions_module, name, spy(name))
    return calls


def test_more_queries_only_predict_the_new_views(measured: Run, model_calls: list[tuple[str, int]]) -> None:
    first = evaluation_files(measured)
    oneshui_hf.evaluate(measured, queries=4, **QUICK)
    assert sorted(model_calls) == [("predict", 2)] * 4 + [("predict", 3)] * 4  # of forget and test, by original and oracle
    later = evaluation_files(measured)
    assert set(later) - set(first) == {f"{name}-view{n}.safetensors" for name in ("forget", "test") for n in (2, 3)}
    assert all(later[name] == first[name] for name in first if name.endswith(".safetensors"))
    model_calls.clear()
    oneshui_hf.evaluate(measured, **QUICK)  # fewer queries need no forward pass
    assert not model_calls
    assert evaluation_files(measured)["metrics.json"] == first["metrics.json"]


def test_new_metrics_do_not_need_the_model(measured: Run, model_calls: list[tuple[str, int]]) -> None:
    whole = evaluation_files(measured)
    delete_metrics(measured)
    (measured.path / "model.safetensors").unlink()
    oneshui_hf.evaluate(Run.open(measured.path), **QUICK)
    assert evaluation_files(measured) == whole
    assert oneshui_hf.evaluate(Run.open(measured.path), resamples=150)["intervals"]["resamples"] == 150
    assert not model_calls
    with pytest.raises(OneshuiError, match="lacks valid predictions of forget, test"):
        oneshui_hf.evaluate(Run.open(measured.path), queries=3, **QUICK)


def test_existing_metrics_are_not_computed_again(measured: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from oneshui_hf.stages import evaluate as evaluation

    whole = evaluation_files(measured)
    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "measure", None)
        patched.setattr(evaluation, "open_data", None)
        assert oneshui_hf.evaluate(measured, **QUICK) == json.loads(whole["metrics.json"])
        for more in ({"resamples": 101}, {"rmia_a": 0.5}, {"rmia_gamma": 3.0}, {"queries": 1}, {"batch_size": 32}):
            with pytest.raises(TypeError):
                oneshui_hf.evaluate(measured, **QUICK | more)
    assert evaluation_files(measured) == whole


def test_changed_weights_are_an_error(measured: Run) -> None:
    file = measured.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\1\1")
    with pytest.raises(OneshuiError, match="The weights in .* are not those of its record"):
        oneshui_hf.evaluate(Run.open(measured.path), **QUICK)


def test_data_is_not_needed_if_predictions_exist(photo_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = photo_folder(people=12, photos=4)
    recipe: dict[str, Any] = {"model": "tiny", "image_size": 32, "forget": 2, "epochs": 1}
    run = oneshui_hf.train(dataset=str(folder), output_dir=str(tmp_path / "run"), **recipe)
    oneshui_hf.evaluate(run, **QUICK)
    whole = evaluation_files(run)
    delete_metrics(run)
    folder.rename(tmp_path / "elsewhere")
    oneshui_hf.evaluate(run, **QUICK)
    assert evaluation_files(run) == whole
    with pytest.raises(OneshuiError, match="photos"):
        oneshui_hf.evaluate(run, queries=3, **QUICK)


def test_metrics_and_curves_contain_no_identity_and_no_path(measured: Run) -> None:
    people = {person for group in read_json(measured.path / "split.json")["people"].values() for person in group}
    for name in ("metrics.json", "curves.json"):
        text = (measured.path / name).read_text()
        assert not [person for person in people if person in text]
        assert str(measured.path.parent) not in text


def test_evaluation_is_the_same_in_another_folder(runs: Path, original: Run) -> None:
    oneshui_hf.evaluate(original, **QUICK)
    assert evaluation_files(original) == evaluation_files(Run.open(runs / "original"))


def test_metrics_have_the_documented_structure(measured: Run) -> None:
    found = oneshui_hf.evaluate(measured, **QUICK)
    assert found == read_json(measured.path / "metrics.json")
    assert set(found) == {
        *(
            "format",
            "key",
            "content",
            "kind",
            "task",
            "score",
            *PREDICTED,
            "intervals",
            "tow",
            "gap_closure",
            "to_oracle",
            "attacks",
            "probe",
        ),
        *("relearning", "noise_floor", "cannot_tell", "compared_with", "difference", "person_level", "collapse", "bystanders", "further"),
    }
    assert (found["format"], found["kind"], found["task"], found["score"]) == (4, "original", "multi_label", "map")
    assert found["gap_closure"] == 0
    oracle = Run.open(f"{measured.path}-oracle")
    assert found["compared_with"] == {"original": measured.weights, "oracle": oracle.weights, "references": []}
    assert read_json(measured.path / "curves.json")["key"] == found["key"]
    assert len(read_json(measured.path / "curves.json")["people"]) == 3


def test_relearning_is_measured_on_request(measured: Run) -> None:
    assert oneshui_hf.evaluate(measured, **QUICK)["relearning"] is None
    assert oneshui_hf.evaluate(measured, relearn_steps=2, **QUICK)["relearning"] == {"steps": 0, "at_most": 2}
    back = oneshui_hf.evaluate(Run.open(f"{measured.path}-oracle"), original=str(measured.path), relearn_steps=2, **QUICK)["relearning"]
    assert back["at_most"] == 2
    assert back["steps"] in (None, 0, 1, 2)


# ---------------------------------------------------------------- reference models


@pytest.fixture(scope="module")
def with_references(runs: Path) -> tuple[Path, dict[str, Any]]:
    """The cache with reference models, and the metrics computed with them."""
    found = oneshui_hf.evaluate(Run.open(runs / "jit"), references=1, cache_dir=str(runs / "cache"), **QUICK)
    return runs / "cache", found


def entries(cache: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for entry in Cache(cache).entries():
        found.setdefault(entry.kind, []).append(entry.key)
    return {kind: sorted(keys) for kind, keys in found.items()}


def test_reference_model_is_the_same_method_on_an_oracle_of_another_seed(
    runs: Path, with_references: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    cache, found = with_references
    assert {kind: len(keys) for kind, keys in entries(cache).items()} == {"oracle": 1, "unlearned": 1}
    by_hand = oneshui_hf.retrain(runs / "original", seed=1, output_dir=str(tmp_path / "oracle"))
    (oracle,) = entries(cache)["oracle"]
    assert Run.open(cache / oracle).weights == by_hand.weights != Run.open(runs / "original-oracle").weights
    reference = oneshui_hf.unlearn(by_hand, method="jit", from_split=True, copies=3, lr=0.02, output_dir=str(tmp_path / "reference"))
    assert found["compared_with"]["references"] == [reference.weights]
    assert {"loss", "logistic", "rmia", "rmia_two_sided", "iam", "u_lira", "strongest"} == set(found["attacks"])
    assert found["noise_floor"]["oracles"] == 1
    ideal, other = (oneshui_hf.evaluate(run, original=str(runs / "original"), **QUICK) for run in (runs / "original-oracle", by_hand))
    for name in ("retain", "forget", "val", "test"):
        assert found["noise_floor"][name] == pytest.approx(abs(ideal[name]["map"] - other[name]["map"]), abs=1e-9)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make any training an error."""
    for name in ("train", "retrain"):
        monkeypatch.setattr(f"oneshui_hf.stages.evaluation.model_cache.{name}", None)


@pytest.mark.usefixtures("no_training")
def test_second_evaluation_trains_nothing(
    runs: Path, with_references: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, found = with_references
    before = entries(cache)
    run = Run.open(runs / "jit")
    options: dict[str, Any] = {"references": 1, "cache_dir": str(cache), **QUICK}
    with monkeypatch.context() as patched:
        patched.setattr("oneshui_hf.stages.evaluation.model_cache.unlearn", None)
        assert oneshui_hf.evaluate(run, **options) == found
        whole = evaluation_files(run)
        delete_metrics(run)
        assert oneshui_hf.evaluate(run, **options) == found
        assert evaluation_files(run) == whole
    # Another method gets its own references, made from the same oracle.
    other = oneshui_hf.unlearn(runs / "original", method="jit", from_split=True, copies=2, lr=0.01, output_dir=str(runs / "other"))
    references = oneshui_hf.evaluate(other, **options)["compared_with"]["references"]
    assert references != found["compared_with"]["references"]
    after = entries(cache)
    assert after["oracle"] == before["oracle"]
    assert len(after["unlearned"]) == len(before["unlearned"]) + 1


@pytest.mark.usefixtures("no_training")
def test_reference_of_a_trained_model_is_the_oracle_itself(runs: Path, with_references: tuple[Path, dict[str, Any]]) -> None:
    cache, _ = with_references
    before = entries(cache)
    (oracle,) = before["oracle"]
    for name in ("original", "original-oracle"):
        found = oneshui_hf.evaluate(Run.open(runs / name), references=1, cache_dir=str(cache), **QUICK)
        assert found["compared_with"]["references"] == [Run.open(cache / oracle).weights]
        assert ("u_lira" in found["attacks"]) == (name == "original")
    assert entries(cache) == before


def test_given_oracle_is_not_used_as_its_own_reference(runs: Path, with_references: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    cache = Path(shutil.copytree(with_references[0], tmp_path / "cache"))
    (oracle,) = entries(cache)["oracle"]
    found = oneshui_hf.evaluate(Run.open(runs / "jit"), Run.open(cache / oracle), references=1, cache_dir=str(cache), **QUICK)
    (another,) = set(entries(cache)["oracle"]) - {oracle}
    assert [Run.open(cache / name).record.seed for name in (oracle, another)] == [1, 2]
    assert found["noise_floor"]["tow"] < 100


@dataclass(frozen=True)
class Options:
    """Options of the recording method."""

    rate: float = option(0.01, "Added to the head's bias.", at="apply")
    rounds: int = option(1, "Stored in the artefact.")


class RecordingMethod(Method[Options]):
    """Records the identities of each set that it gets, in preparation and at the request."""

    summary, paper, options, prepares = "a recorder", "-", Options, "required"
    needs = Needs(prepare=frozenset({"train", "val", "retain"}), apply=frozenset({"support", "forget"}))
    seen: ClassVar[list[dict[str, Any]]] = []

    def prepare(self, model: Any, data: DataAccess, options: Options, context: Context) -> Artefact:
        sets = {"train": data.train, "val": data.val, "retain": data.retain, "reserved": data.train.reserved}
        self.seen.append({name: {faces.people[i] for i in faces.identities.tolist()} for name, faces in sets.items() if faces is not None})
        self.seen[-1] |= {"photos": len(data.train), "rounds": options.rounds}
        return Artefact(values={"rounds": options.rounds})

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
        assert artefact is not None
        self.seen.append({"support": data.support.people, "values": artefact.values, "rate": options.rate})
        new = copy.deepcopy(model)
        new.classifier.bias.data += options.rate
        return new


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[RecordingMethod]]:
    """Install the method as `recorder`."""
    from oneshui_hf import plugins

    load, origin = plugins.Plugins.load, plugins.Plugins.origin
    monkeypatch.setattr(plugins.Plugins, "origin", lambda self, name: "here 1.0" if name == "recorder" else origin(self, name))
    monkeypatch.setattr(plugins.Plugins, "load", lambda self, name: RecordingMethod if name == "recorder" else load(self, name))
    RecordingMethod.seen = []
    yield RecordingMethod
    RecordingMethod.seen = []


def test_preparation_on_an_oracle_does_not_get_the_forget_set(
    runs: Path, with_references: tuple[Path, dict[str, Any]], recorder: type[RecordingMethod], tmp_path: Path
) -> None:
    original = Run.open(shutil.copytree(runs / "original", tmp_path / "original"))
    oneshui_hf.prepare(original, method="recorder", rounds=2, simulate_batches=False)
    run = oneshui_hf.unlearn(original, method="recorder", from_split=True, rate=0.5, output_dir=str(tmp_path / "run"))
    oneshui_hf.evaluate(run, references=1, cache_dir=str(with_references[0]), **QUICK)
    forget_identities = set(read_json(original.path / "split.json")["forget"])
    prepared, applied, reference_prepared, reference_applied = recorder.seen
    assert forget_identities <= prepared["train"]  # the preparation on the original gets them
    assert prepared["reserved"]
    for name in ("train", "val", "retain", "reserved"):
        assert not reference_prepared[name] & forget_identities  # the preparation on the oracle does not
    assert reference_prepared["train"] == prepared["retain"] == prepared["train"] - forget_identities
    assert reference_prepared["reserved"] == prepared["reserved"] - forget_identities
    assert reference_prepared["photos"] == original.record.report["split"]["images"]["retain"]
    assert set(applied["support"]) == forget_identities
    assert set(reference_applied["support"]) == {None}  # an oracle has not seen these identities
    for part in ("values", "rate"):
        assert applied[part] == reference_applied[part]
    assert (reference_prepared["rounds"], reference_applied["rate"]) == (2, 0.5)


# ---------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--references", 9), "--references of evaluate must be at most 8, not 9."),
        (("--references", -1), "--references of evaluate must be at least 0"),
        (("--queries", 0), "--queries of evaluate must be at least 1, not 0."),
        (("--queries", 9), "--queries of evaluate must be at most 8, not 9."),
        (("--rmia-a", 2), "--rmia-a of evaluate must be at most 1, not 2"),
        (("--rmia-gamma", 0.5), "--rmia-gamma of evaluate must be at least 1, not 0.5."),
        (("--rmia-gamma", "nan"), "--rmia-gamma"),
        (("--resamples", 10), "--resamples of evaluate must be at least 100, not 10."),
        (("--relearn-steps", -1), "--relearn-steps of evaluate must be at least 0, not -1."),
        (("--references", 1, "--cache-dir", "FILE"), "is a file; name another folder for the cache."),
        (("--references", 1, "--cache-dir", "OTHER"), "is not a cache and contains other files, so nothing was changed;"),
        (("--reference", 1), "has no option --reference. Did you mean '--references'?"),
    ],
)
def test_invalid_arguments_are_an_error(oneshui: Oneshui, runs: Path, tmp_path: Path, words: tuple[Any, ...], message: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("")
    values = {"FILE": tmp_path / "file", "OTHER": tmp_path / "other"}
    code, out, err = oneshui("evaluate", "--run", runs / "jit", *(values.get(word, word) for word in words))
    assert code == 2
    assert message in sentence(err)
    assert not out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other"]


@pytest.mark.usefixtures("no_training")
def test_references_need_a_request_that_can_be_repeated(oneshui: Oneshui, runs: Path, tmp_path: Path) -> None:
    portrait(0, 0).save(tmp_path / "face.png")
    run = oneshui_hf.unlearn(runs / "original", [tmp_path / "face.png"], method="do-nothing", output_dir=str(tmp_path / "run"))
    words = ("evaluate", "--run", run.path, "--resamples", 100, "--cache-dir", tmp_path / "cache")
    code, _, err = oneshui(*words, "--references", 1)
    assert (code, "that are not kept, so no reference model can repeat the request" in sentence(err)) == (2, True)
    assert "--from-split" in err
    assert not (tmp_path / "cache").exists()  # raised before an oracle is trained
    assert oneshui(*words)[0] == 0


def test_references_need_the_original(runs: Path, tmp_path: Path) -> None:
    run = Run.open(shutil.copytree(runs / "jit", tmp_path / "run"))
    record = json.loads((run.path / "oneshui.json").read_text())
    (run.path / "oneshui.json").write_text(json.dumps(record | {"parent": {"run": str(tmp_path / "gone"), "weights": "0"}}))
    with pytest.raises(UsageError, match="name it with --original"):
        oneshui_hf.evaluate(Run.open(run.path), references=1, cache_dir=str(tmp_path / "cache"), **QUICK)
    assert not (tmp_path / "cache").exists()


def test_command_prints_attacks_noise_floor_and_limits(oneshui: Oneshui, runs: Path, with_references: tuple[Path, dict[str, Any]]) -> None:
    words = ("evaluate", "--run", runs / "jit", "--references", 1, "--cache-dir", with_references[0], "--resamples", 100)
    code, out, err = oneshui(*words)
    assert code == 0, err
    found = with_references[1]
    assert f"{found['attacks']['strongest'].replace('_', '-')} *" in out
    for name in ("loss", "logistic", "rmia", "rmia-two-sided", "u-lira"):
        assert name in out
    assert f"{found['forget']['map']:.1f} [" in out
    assert f"ToW {found['tow']:.1f} [" in out
    assert all(note in out for note in found["cannot_tell"])
    assert "seed" in out
    assert json.loads(oneshui(*words, "--json")[1]) == found

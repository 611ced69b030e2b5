"""Unlearning at request time: it needs the model, the artefact and the support images, and reads nothing else."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import oneshui_hf
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import Artefact, Context, DataAccess, Method, Needs, Request
from oneshui_hf.methods.artefact import write_header
from oneshui_hf.models.load import load_model
from oneshui_hf.plugins import METHODS as METHODS_GROUP
from oneshui_hf.plugins import Plugins
from oneshui_hf.runs import Run, hash_file, read_json
from oneshui_hf.vault import Secrets
from support.processes import another_writer
from support.recording_reporter import RecordingReporter

METHODS = ["do-nothing", "gradient-ascent", "metaunlearn"]


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of generated photos, as a user would provide it."""
    import csv
    import io

    from PIL import Image

    from oneshui_hf.data.load import load_faces

    folder = tmp_path_factory.mktemp("photos")
    source = load_faces("synthetic")
    keep = [row for row in range(len(source)) if source.identities[row] < 20]
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "identity", *source.task.label_names])
        for row in keep:
            name = source.keys[row].replace("/", "-")
            Image.open(io.BytesIO(source.arrow_dataset[row]["image"]["bytes"])).save(folder / name)
            writer.writerow([name, source.people[source.identities[row]], *source.labels[row].int().tolist()])
    return folder


@pytest.fixture(scope="module")
def trained(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An original model trained on that folder, with its artefacts."""
    run = oneshui_hf.train(
        dataset=str(faces), model="tiny", forget=2, epochs=8, optimizer="adamw", keep="last", augment="flip",
        output_dir=str(tmp_path_factory.mktemp("runs") / "original"),
    )  # fmt: skip
    oneshui_hf.prepare(run, method="metaunlearn", steps=3, calibration=1)
    oneshui_hf.prepare(run, method="gradient-ascent", calibration=1)
    return run


@pytest.fixture
def photo(faces: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(next(faces.glob("*.png")), tmp_path / "portrait.png"))


@pytest.mark.parametrize("method", METHODS)
def test_no_training_data_is_needed(trained: Run, faces: Path, photo: Path, tmp_path: Path, method: str) -> None:
    away = faces.with_name("away")
    faces.rename(away)
    caches = Path(cache_folder(trained))
    hidden = caches.with_name(caches.name + "-hidden")
    if caches.exists():
        caches.rename(hidden)
    try:
        result = oneshui_hf.unlearn(trained, images=[photo], method=method, output_dir=str(tmp_path / "out"))
    finally:
        away.rename(faces)
        if hidden.exists():
            hidden.rename(caches)
    assert result.record.kind == "unlearned"
    assert (result.weights == trained.weights) == (method == "do-nothing")


def cache_folder(run: Run) -> str:
    """Return the folder of cached Arrow data and pixels."""
    import datasets

    return str(datasets.config.HF_DATASETS_CACHE)


@dataclass(frozen=True)
class SpyOptions:
    """None."""


def spy(look: Callable[[DataAccess], Any], needs: Needs) -> type[Method[SpyOptions]]:
    class Spy(Method[SpyOptions]):
        """Passes its data to `look`."""

        summary, paper, options = "spy", "-", SpyOptions

        def apply(self, model: Any, data: DataAccess, artefact: Any, options: SpyOptions, context: Context) -> Any:
            import copy

            look(data)
            return copy.deepcopy(model)

    Spy.needs = needs
    return Spy


def offer(monkeypatch: pytest.MonkeyPatch, method: type[Method[Any]]) -> None:
    """Install a method as `spy`."""
    from oneshui_hf import plugins

    load, origin = plugins.Plugins.load, plugins.Plugins.origin
    monkeypatch.setattr(plugins.Plugins, "load", lambda self, name: method if name == "spy" else load(self, name))
    monkeypatch.setattr(plugins.Plugins, "origin", lambda self, name: "here 1.0" if name == "spy" else origin(self, name))


def test_a_method_receives_only_the_data_that_it_declares(
    trained: Run, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def look(data: DataAccess) -> None:
        seen["support"] = data.support
        seen["all"] = list(vars(data)["_granted"])
        for name in ("train", "retain", "forget", "val"):
            with pytest.raises(OneshuiError, match=f"reads '{name}' without declaring"):
                getattr(data, name)

    offer(monkeypatch, spy(look, Needs()))
    for source in ({"images": [photo]}, {"from_split": True}):
        oneshui_hf.unlearn(trained, method="spy", output_dir=str(tmp_path / f"out{len(seen)}"), overwrite=True, **source)
        assert isinstance(seen["support"], Request)
        assert seen["all"] == ["support"]
        seen.clear()


def test_a_method_that_reads_training_data_refuses_a_photo_request(
    trained: Run, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, spy(lambda data: data.retain, Needs(apply=frozenset({"retain"}))))
    with pytest.raises(UsageError, match="reads retain at request time"):
        oneshui_hf.unlearn(trained, images=[photo], method="spy", output_dir=str(tmp_path / "out"))
    oneshui_hf.unlearn(trained, from_split=True, method="spy", output_dir=str(tmp_path / "out"))


@pytest.mark.parametrize("method", METHODS)
def test_the_original_is_unchanged_and_the_same_seed_gives_the_same_bytes(trained: Run, photo: Path, tmp_path: Path, method: str) -> None:
    before = {file: hash_file(file) for file in trained.path.rglob("*") if file.is_file()}
    state = torch.get_rng_state()
    runs = [oneshui_hf.unlearn(trained, images=[photo], method=method, output_dir=str(tmp_path / name)) for name in "ab"]
    assert runs[0].weights == runs[1].weights
    assert {file: hash_file(file) for file in before} == before
    assert torch.equal(torch.get_rng_state(), state)


def test_gradient_ascent_takes_a_step_of_the_given_length(trained: Run, photo: Path, tmp_path: Path) -> None:
    from oneshui_hf.data.images import decode, to_pixels
    from oneshui_hf.methods import losses, norm, parameters

    run = oneshui_hf.unlearn(
        trained, images=[photo], method="gradient-ascent", length=1e-4, labels="Hat,Smiling", output_dir=str(tmp_path / "out")
    )
    (old, preprocess, task), (new, *_) = load_model(trained.path), load_model(run.path)
    step = {name: parameters(new)[name] - part for name, part in parameters(old).items()}
    length = 1e-4 * norm(parameters(old)).item()
    assert norm(step).item() == pytest.approx(length, rel=1e-3)
    assert run.record.report["step_length"] == pytest.approx(length)
    assert run.record.report["labels"] == "given"
    pixels = preprocess(torch.from_numpy(to_pixels(decode(photo), preprocess.size)).unsqueeze(0))
    labels = torch.tensor([[float(name in ("Hat", "Smiling")) for name in task.label_names]])
    with torch.no_grad():
        before, after = (losses(m(pixel_values=pixels).logits, labels, task.kind).item() for m in (old, new))
    assert after > before


def test_metaunlearn_serves_known_and_unknown_identities(trained: Run, photo: Path, tmp_path: Path) -> None:
    unknown = oneshui_hf.unlearn(trained, images=[photo], method="metaunlearn", output_dir=str(tmp_path / "a"))
    assert unknown.record.report["unknown_people"] == 1
    people = Artefact.load(trained.artefact("metaunlearn"), "metaunlearn", trained.weights).people
    person = next(name for name, parts in people.items() if "learned" in parts)
    never = next(name for name, parts in people.items() if "learned" not in parts)
    known = oneshui_hf.unlearn(trained, images=[photo], identity=[person], method="metaunlearn", output_dir=str(tmp_path / "b"))
    assert known.record.report["unknown_people"] == 0
    assert known.weights != unknown.weights
    # The request destroyed the data prepared for this identity.
    assert known.record.report["destroyed"] == 1
    assert unknown.record.report["destroyed"] == 0
    with pytest.raises(OneshuiError, match="has been used and destroyed"):
        oneshui_hf.unlearn(trained, images=[photo], identity=[person], method="metaunlearn", output_dir=str(tmp_path / "again"))
    assert not (tmp_path / "again").exists()
    # An identity whose row was never trained is served like an unknown one.
    other = oneshui_hf.unlearn(trained, images=[photo], identity=[never], method="metaunlearn", output_dir=str(tmp_path / "c"))
    assert other.weights == unknown.weights


def test_the_paper_preset_needs_a_named_identity(trained: Run, photo: Path, tmp_path: Path) -> None:
    oneshui_hf.prepare(trained, method="metaunlearn", preset="paper", overwrite=True)
    with pytest.raises(OneshuiError, match="cannot be used for an unnamed identity"):
        oneshui_hf.unlearn(trained, images=[photo], method="metaunlearn", output_dir=str(tmp_path / "a"))
    run = oneshui_hf.unlearn(trained, from_split=True, method="metaunlearn", output_dir=str(tmp_path / "b"))
    assert run.record.report["method_options"]["step"] == "raw"
    assert run.record.report["method_options"]["eta"] == 0.1
    oneshui_hf.prepare(trained, method="metaunlearn", steps=3, calibration=1, overwrite=True)


def test_the_receipt_contains_no_file_name(trained: Run, photo: Path, tmp_path: Path) -> None:
    secret = photo.rename(photo.with_name("jane-doe-passport.png"))
    run = oneshui_hf.unlearn(trained, images=[secret], method="gradient-ascent", output_dir=str(tmp_path / "out"))
    assert "jane-doe" not in (run.path / "oneshui.json").read_text()


def test_support_images_are_in_no_other_set(trained: Run) -> None:
    from oneshui_hf.stages.distributed import make_accelerator
    from oneshui_hf.stages.run_data import open_data

    data = open_data(trained, make_accelerator())
    support = set(data.sets["support"].rows.tolist())
    assert len(support) == 2
    for name in ("train", "retain", "forget", "val", "test", "reserved"):
        assert not support & set(data.sets[name].rows.tolist())


def test_a_request_may_have_several_photos_of_several_people(trained: Run, faces: Path, tmp_path: Path) -> None:
    photos = sorted(faces.glob("*.png"))[:3]
    run = oneshui_hf.unlearn(trained, images=photos, method="gradient-ascent", output_dir=str(tmp_path / "out"))
    assert run.record.report["photos"] == 3
    with pytest.raises(UsageError, match="--identity is given 2 times for 3 photos"):
        oneshui_hf.unlearn(trained, images=photos, identity=["a", "b"], method="gradient-ascent", output_dir=str(tmp_path / "no"))


# Per-identity data, and its destruction.


class Keys(Method[SpyOptions]):
    """Stores a number per identity, and adds the numbers of the requested identities to the head's bias."""

    summary, paper, options = "keys", "-", SpyOptions
    needs = Needs(prepare=frozenset({"train"}), apply=frozenset({"support"}))
    prepares = "required"
    sequential = True

    def prepare(self, model: Any, data: DataAccess, options: SpyOptions, context: Context) -> Artefact:
        names = sorted(data.train.people)
        return Artefact(people={name: {"key": torch.tensor(float(number + 1))} for number, name in enumerate(names)})

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: SpyOptions, context: Context) -> Any:
        import copy

        assert artefact is not None
        new = copy.deepcopy(model)
        with torch.no_grad():
            for person in data.support.people:
                if person in artefact.people:
                    new.classifier.bias += artefact.people[person]["key"]
        return new


@pytest.fixture
def keys(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy of the original model with a key per training identity, and a separate vault."""
    monkeypatch.setenv("ONESHUI_VAULT", str(tmp_path / "vault"))
    offer(monkeypatch, Keys)
    run = Run.open(shutil.copytree(trained.path, tmp_path / "keys", ignore=shutil.ignore_patterns("methods")))
    oneshui_hf.prepare(run, method="spy")
    return run


def identities_with_key(run: Run) -> set[str]:
    """Return the identities whose key exists."""
    return set(Artefact.load(run.artefact("spy"), "spy", run.weights).people)


def bias(run: Run) -> torch.Tensor:
    return load_model(run.path)[0].classifier.bias.detach()


def test_a_photo_request_destroys_per_identity_data_and_counts_it(keys: Run, photo: Path) -> None:
    before, reporter = identities_with_key(keys), RecordingReporter()
    first, second, third = sorted(before)[:3]
    unnamed = oneshui_hf.unlearn(keys, images=[photo], method="spy", output_dir=str(keys.path) + "-unnamed")
    assert unnamed.record.report["destroyed"] == 0
    assert identities_with_key(keys) == before
    run = oneshui_hf.unlearn(keys, [photo] * 3, identity=[first, second, first], method="spy", reporter=reporter)
    assert run.record.report["destroyed"] == 2
    assert read_json(run.path / "oneshui.json")["report"]["destroyed"] == 2
    assert run.require_complete().record.weights == run.weights
    assert identities_with_key(keys) == before - {first, second}
    assert reporter.notes == ["Destroyed the data prepared for 2 of the requested identities."]
    assert not any(name in (run.path / "oneshui.json").read_text() for name in (f'"{first}"', f'"{second}"'))
    kept = oneshui_hf.unlearn(keys, [photo], identity=[third], method="spy", keep=True, output_dir=str(keys.path) + "-kept")
    assert kept.record.report["destroyed"] == 0
    assert third in identities_with_key(keys)


def test_a_split_request_keeps_per_identity_data_by_default(keys: Run) -> None:
    before, forget = identities_with_key(keys), set(read_json(keys.path / "split.json")["forget"])
    assert len(forget) == 2
    runs = [oneshui_hf.unlearn(keys, from_split=True, method="spy", output_dir=f"{keys.path}-{name}") for name in "ab"]
    assert runs[0].weights == runs[1].weights != keys.weights
    assert identities_with_key(keys) == before
    destroyed = oneshui_hf.unlearn(keys, from_split=True, method="spy", keep=False, output_dir=f"{keys.path}-c")
    assert destroyed.weights == runs[0].weights
    assert destroyed.record.report["destroyed"] == 2
    assert identities_with_key(keys) == before - forget


def test_the_command_line_has_keep_and_destroy(keys: Run, photo: Path, oneshui: Any) -> None:
    first, second = sorted(identities_with_key(keys))[:2]
    words = ["unlearn", "--run", keys.path, "--method", "spy", "--image", photo, "--overwrite"]
    assert oneshui(*words, "--identity", first, "--keep")[0] == 0
    assert {first, second} <= identities_with_key(keys)
    assert oneshui(*words, "--identity", first, "--destroy")[0] == 0
    assert first not in identities_with_key(keys)


def test_a_failure_to_destroy_is_a_warning(keys: Run, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = sorted(identities_with_key(keys))[:2]
    destroy, reporter, entries = Secrets.destroy, RecordingReporter(), []

    def refuse(self: Secrets, entry: str) -> bool:
        entries.append(entry)
        if len(entries) == 1:
            raise OneshuiError(f"The secret {self.folder / entry}.key could not be destroyed and remains (why); delete it by hand.")
        return destroy(self, entry)

    monkeypatch.setattr(Secrets, "destroy", refuse)
    run = oneshui_hf.unlearn(keys, [photo] * 2, identity=[first, second], method="spy", reporter=reporter)
    assert torch.allclose(bias(run) - bias(keys), torch.tensor(3.0))
    assert run.record.report["destroyed"] == 1
    assert identities_with_key(keys) >= {first}
    assert second not in identities_with_key(keys)
    (warning,) = reporter.warnings
    assert warning.startswith("The data prepared for one of the requested identities still exists. The secret ")
    assert f"{entries[0]}.key" in warning
    assert first not in warning.replace(str(keys.path.parent), "")


def test_nothing_is_destroyed_if_the_model_cannot_be_written(keys: Run, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from oneshui_hf.stages import unlearn as stage

    def raise_disk_full(*words: Any) -> None:
        raise OSError(28, "No space left on device")

    before = identities_with_key(keys)
    monkeypatch.setattr(stage, "save_model", raise_disk_full)
    with pytest.raises(OSError, match="No space left"):
        oneshui_hf.unlearn(keys, [photo], identity=[min(before)], method="spy")
    assert identities_with_key(keys) == before


# Sequential requests.


def test_requests_can_follow_each_other(keys: Run, photo: Path) -> None:
    people = sorted(identities_with_key(keys))
    run, forgotten = keys, []
    for turn in range(3):
        forgotten.append(people[turn])
        run = oneshui_hf.unlearn(run, [photo], identity=[people[turn]], method="spy")
        assert run.path.name == "keys" + "-spy" * (turn + 1)
        assert identities_with_key(keys) == set(people) - set(forgotten)
        assert run.record.report["prepared"] is True
    assert torch.allclose(bias(run) - bias(keys), torch.tensor(1.0 + 2.0 + 3.0))
    assert not (run.path / "methods").exists()


def test_a_method_that_is_not_named_is_the_prepared_one(keys: Run, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = Plugins(METHODS_GROUP).names
    monkeypatch.setattr(Plugins, "names", property(lambda self: [*listed, "spy"]))
    monkeypatch.setattr(Keys, "exact", True)
    people, reporter = sorted(identities_with_key(keys)), RecordingReporter()
    first = oneshui_hf.unlearn(keys, [photo], identity=[people[0]], reporter=reporter)
    second = oneshui_hf.unlearn(first, [photo], identity=[people[1]], reporter=reporter)
    assert second.path.name == "keys-spy-spy"
    assert (second.record.report["method"], second.record.report["destroyed"]) == ("spy", 1)
    assert torch.allclose(bias(second) - bias(keys), torch.tensor(1.0 + 2.0))
    assert [note for note in reporter.notes if note.startswith("Method")] == [
        f"Method spy (exact by design): prepared for {keys.path}."
    ] * 2
    from_split = oneshui_hf.unlearn(keys, from_split=True, output_dir=f"{keys.path}-split")
    assert from_split.record.report["method"] == "spy"


def test_the_nearest_artefact_is_used(keys: Run, photo: Path) -> None:
    first, second = sorted(identities_with_key(keys))[:2]
    run = oneshui_hf.unlearn(keys, [photo], identity=[first], method="spy")
    oneshui_hf.prepare(run, method="spy")
    oneshui_hf.unlearn(run, [photo], identity=[second], method="spy")
    assert second in identities_with_key(keys)
    assert second not in identities_with_key(run)
    assert first in identities_with_key(run)


def test_only_sequential_methods_use_the_artefact_of_an_ancestor(keys: Run, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = oneshui_hf.unlearn(keys, [photo], method="spy")
    monkeypatch.setattr(Keys, "sequential", False)
    with pytest.raises(UsageError, match=r"Method 'spy' has not been prepared for .*keys-spy; run `oneshui prepare` first"):
        oneshui_hf.unlearn(run, [photo], method="spy")


def test_an_artefact_is_not_found_through_runs_of_other_methods(keys: Run, photo: Path) -> None:
    other = oneshui_hf.unlearn(keys, [photo], method="do-nothing")
    with pytest.raises(UsageError, match=r"Method 'spy' has not been prepared for .*keys-do-nothing"):
        oneshui_hf.unlearn(other, [photo], method="spy")
    run = oneshui_hf.unlearn(keys, [photo], method="spy")
    mixed = oneshui_hf.unlearn(run, [photo], method="do-nothing")
    with pytest.raises(UsageError, match=r"Method 'spy' has not been prepared for .*keys-spy-do-nothing"):
        oneshui_hf.unlearn(mixed, [photo], method="spy")


def test_a_missing_or_changed_parent_is_reported(keys: Run, photo: Path, trained: Run) -> None:
    run = oneshui_hf.unlearn(keys, [photo], identity=[min(identities_with_key(keys))], method="spy")
    again = oneshui_hf.unlearn(run, [photo], method="spy")
    away = run.path.rename(run.path.with_name("away"))
    with pytest.raises(UsageError, match=r"keys-spy-spy was computed from .*keys-spy, which is missing or has changed, so"):
        oneshui_hf.unlearn(again, [photo], method="spy")
    shutil.copytree(keys.path, run.path)  # the same folder, with other weights
    with pytest.raises(UsageError, match="missing or has changed"):
        oneshui_hf.unlearn(again, [photo], method="spy")
    shutil.rmtree(run.path)
    away.rename(run.path)
    oneshui_hf.unlearn(again, [photo], method="spy", output_dir=str(keys.path) + "-third")


def test_a_vault_inside_the_run_is_refused(keys: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for inside in (keys.path, keys.path / "methods" / "vault"):
        monkeypatch.setenv("ONESHUI_VAULT", str(inside))
        with pytest.raises(UsageError, match=r"^The vault .* is inside .*; set ONESHUI_VAULT elsewhere\.$"):
            oneshui_hf.prepare(keys, method="spy", overwrite=True)


@pytest.mark.parametrize("kind", ["original", "oracle"])
def test_an_oracle_receives_the_request_with_unseen_identities(
    trained: Run, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Request] = []
    offer(monkeypatch, spy(lambda data: seen.append(data.support), Needs()))
    run = Run.open(shutil.copytree(trained.path, tmp_path / kind))
    run.record.kind = kind  # type: ignore[assignment]
    oneshui_hf.unlearn(run, from_split=True, method="spy")
    (request,) = seen
    assert request.unseen_identities == (kind == "oracle")
    assert all((person is None) == request.unseen_identities for person in request.people)


# Crashes, copies and other processes.


def test_who_asked_is_readable_by_the_owner_only(keys: Run, photo: Path) -> None:
    former = os.umask(0o022)
    try:
        run = oneshui_hf.unlearn(keys, [photo], method="spy")
    finally:
        os.umask(former)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (run.path, *run.path.iterdir())}
    assert modes == {
        run.path.name: 0o700,
        "split.json": 0o600,
        **dict.fromkeys(("config.json", "model.safetensors", "preprocessor_config.json", "oneshui.json"), 0o644),
    }


def test_a_second_request_into_one_folder_ends_with_a_sentence(keys: Run, photo: Path, oneshui: Any) -> None:
    before, output = identities_with_key(keys), f"{keys.path}-out"
    words = ["unlearn", "--run", keys.path, "--method", "spy", "--image", photo, "--output-dir", output]
    with another_writer(Path(output)):
        code, out, err = oneshui(*words, "--identity", min(before))
    assert (code, out) == (1, "")
    assert f"Another process is writing {output}; wait until it has ended" in err.splitlines()[-1]
    assert identities_with_key(keys) == before
    assert not Path(output).exists()


def test_an_output_that_another_process_wrote_meanwhile_is_refused(keys: Run, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the check of the options and the lock."""
    from oneshui_hf.stages import unlearn as stage

    monkeypatch.setattr(stage, "clear_killed_work", lambda run, output, **more: shutil.copytree(run, output))
    before = identities_with_key(keys)
    with pytest.raises(UsageError, match="exists; name another --output-dir"):
        oneshui_hf.unlearn(keys, [photo], identity=[min(before)], method="spy")
    assert identities_with_key(keys) == before


def test_data_is_destroyed_when_the_model_is_on_the_disk(keys: Run, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    destroy, seen = Secrets.destroy, []
    output = Path(f"{keys.path}-spy")

    def look(self: Secrets, entry: str) -> bool:
        seen.append(sorted(file.name for file in output.iterdir()))
        assert Run.open(output).record.report["destroyed"] == 0
        return destroy(self, entry)

    monkeypatch.setattr(Secrets, "destroy", look)
    run = oneshui_hf.unlearn(keys, [photo], identity=[min(identities_with_key(keys))], method="spy")
    (files,) = seen
    assert files == sorted([*(file.name for file in run.path.iterdir()), "destruction.json"])


def test_a_request_destroys_the_person_in_every_copy(keys: Run, photo: Path) -> None:
    first, second = sorted(identities_with_key(keys))[:2]
    methods, reporter = keys.path / "methods", RecordingReporter()
    shutil.copytree(methods / "spy", methods / "spy-backup")
    for name in (".spy.a1b2c3", ".spy.a1b2c3.old", "other"):
        people = {person: {"key": torch.tensor(1.0)} for person in (first, second)}
        Artefact(people=people).save(methods / name, "other", keys.weights, replace=False)
    state = methods / ".other.unfinished"
    state.mkdir()
    (state / "unfinished.safetensors").write_text(first)
    child = oneshui_hf.unlearn(keys, [photo], identity=[second], method="spy", keep=True)
    assert state.is_dir()
    run = oneshui_hf.unlearn(child, [photo], identity=[first], method="spy", reporter=reporter)  # the artefact is that of the parent
    assert run.record.report["destroyed"] == 1
    for name in ("spy", "spy-backup", "other", ".spy.a1b2c3", ".spy.a1b2c3.old"):
        left = set(Artefact.load(methods / name, "spy" if name.startswith("spy") else "other", keys.weights).people)
        assert first not in left
        assert second in left
    assert not state.exists()
    assert reporter.notes[0].startswith(f"Removed {state}: ")
    assert len(reporter.notes) == 2


def test_a_request_that_destroys_is_refused_during_a_preparation(keys: Run, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = identities_with_key(keys)
    child = oneshui_hf.unlearn(keys, [photo], identity=[min(before)], method="spy", keep=True)
    applied: list[int] = []
    monkeypatch.setattr(Keys, "apply", lambda self, model, *rest: applied.append(1) or copy.deepcopy(model))
    for run in (keys, child):
        for locked in {keys.path, run.path} if run is child else {keys.path}:
            with another_writer(locked / "methods/any-method"):
                with pytest.raises(OneshuiError, match=r"^Another process prepares method 'any-method' for .*; wait until it has ended"):
                    oneshui_hf.unlearn(run, [photo], identity=[min(before)], method="spy", output_dir=f"{keys.path}-no")
                assert not applied
                oneshui_hf.unlearn(run, [photo], identity=[min(before)], method="spy", keep=True, output_dir=f"{keys.path}-kept")
                shutil.rmtree(f"{keys.path}-kept")
                applied.clear()
    assert identities_with_key(keys) == before
    assert not Path(f"{keys.path}-no").exists()


def test_a_preparation_is_refused_during_another_one_and_during_a_request(keys: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = identities_with_key(keys)
    monkeypatch.setattr(Keys, "prepare", lambda *everything: pytest.fail("the preparation was started"))
    with another_writer(keys.artefact("spy")), pytest.raises(OneshuiError, match=r"Another process is writing .*methods/spy; wait"):
        oneshui_hf.prepare(keys, method="spy", overwrite=True)
    with (
        another_writer(keys.path / "methods/request.0123abcd"),
        pytest.raises(OneshuiError, match=r"^A request is destroying data in .*methods, so nothing is prepared there now"),
    ):
        oneshui_hf.prepare(keys, method="spy", overwrite=True)
    assert identities_with_key(keys) == before


def test_preparations_hold_the_lock_while_they_compute(keys: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = Keys.prepare

    def look(self: Keys, *everything: Any) -> Artefact:
        assert (keys.path / "methods/.spy.oneshui-lock").exists()
        return prepare(self, *everything)

    monkeypatch.setattr(Keys, "prepare", look)
    oneshui_hf.prepare(keys, method="spy", overwrite=True)
    assert [path.name for path in (keys.path / "methods").iterdir()] == ["spy"]


def test_replacing_a_run_destroys_the_secrets_of_its_own_artefacts_alone(keys: Run, photo: Path, tmp_path: Path) -> None:
    before, vault = identities_with_key(keys), tmp_path / "vault"
    child = oneshui_hf.unlearn(keys, [photo], method="spy")
    shutil.copytree(keys.artefact("spy"), child.path / "methods/copy")
    oneshui_hf.prepare(child, method="spy")
    assert len(list(vault.iterdir())) == 2
    oneshui_hf.unlearn(keys, [photo], method="spy", overwrite=True)
    assert len(list(vault.iterdir())) == 1
    assert identities_with_key(keys) == before


def test_weights_that_are_not_finite_are_not_written(keys: Run, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def apply(self: Keys, model: Any, *rest: Any) -> Any:
        new = copy.deepcopy(model)
        with torch.no_grad():
            new.classifier.bias[0] = float("nan")
        return new

    before = identities_with_key(keys)
    monkeypatch.setattr(Keys, "apply", apply)
    with pytest.raises(OneshuiError, match="weights of the new model are NaN or infinite in .*; nothing was written"):
        oneshui_hf.unlearn(keys, [photo], identity=[min(before)], method="spy")
    assert identities_with_key(keys) == before
    assert not Path(f"{keys.path}-spy").exists()


KILLED = """
import os, signal, sys
import oneshui_hf
from oneshui_hf import files
from oneshui_hf.stages import unlearn as stage
def die(*everything):
    os.kill(os.getpid(), signal.SIGKILL)
{}.{} = die
run, photo, person, output = sys.argv[1:]
oneshui_hf.unlearn(run, [photo], identity=[person], method="metaunlearn", output_dir=output)
"""


@pytest.mark.parametrize("place", ["files._sync_contents", "stage.complete_destruction"])
def test_a_killed_request_is_completed_or_has_no_effect(
    trained: Run, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("ONESHUI_VAULT", str(tmp_path / "vault"))
    run = Run.open(shutil.copytree(trained.path, tmp_path / "runs/run", ignore=shutil.ignore_patterns("metaunlearn")))
    oneshui_hf.prepare(run, method="metaunlearn", steps=1, calibration=0)

    def left() -> set[str]:
        return set(Artefact.load(run.artefact("metaunlearn"), "metaunlearn", run.weights).people)

    before, output = left(), tmp_path / "runs/out"
    code = KILLED.format(*place.rsplit(".", 1))
    done = subprocess.run([sys.executable, "-c", code, run.path, photo, min(before), output], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert left() == before
    is_written = place == "stage.complete_destruction"
    assert output.exists() == (output / "destruction.json").exists() == is_written
    again: dict[str, Any] = {"identity": [min(before)], "method": "metaunlearn", "output_dir": str(output)}
    if is_written:
        with pytest.raises(UsageError, match="out exists; name another --output-dir"):
            oneshui_hf.unlearn(run, [photo], **again)
    else:
        oneshui_hf.unlearn(run, [photo], **again)
    assert left() == before - {min(before)}
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["out", "run"]
    if is_written:
        assert Run.open(output).require_complete().record.report["destroyed"] == 1
        assert not (output / "destruction.json").exists()


# Crafted artefacts.


@pytest.fixture(scope="module")
def prepared(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with artefacts whose public part `apply` reads."""
    run = Run.open(shutil.copytree(trained.path, tmp_path_factory.mktemp("crafted") / "run", ignore=shutil.ignore_patterns("methods")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONESHUI_VAULT", str(tmp_path_factory.mktemp("vault")))
        oneshui_hf.prepare(run, method="metaunlearn", steps=1, calibration=0)
    for method in ("ssd", "pgu", "gradient-ascent"):
        oneshui_hf.prepare(run, method=method, **({"calibration": 1} if method == "gradient-ascent" else {}))
    return run


CRAFTED: dict[str, Callable[[dict[str, Any], dict[str, torch.Tensor]], object]] = {
    "no tensor": lambda header, tensors: tensors.clear(),
    "a missing tensor": lambda header, tensors: tensors.pop(min(tensors)),
    "a renamed tensor": lambda header, tensors: tensors.update(x=tensors.pop(min(tensors))),
    "a longer tensor": lambda header, tensors: tensors.update({min(tensors): torch.zeros(*(n + 1 for n in tensors[min(tensors)].shape))}),
    "a scalar": lambda header, tensors: tensors.update({min(tensors): torch.tensor(1.0)}),
    "an empty tensor": lambda header, tensors: tensors.update({min(tensors): torch.zeros(0)}),
    "NaN": lambda header, tensors: tensors[min(tensors)].fill_(float("nan")),
    "no value": lambda header, tensors: header["values"].clear(),
    "text": lambda header, tensors: header["values"].update(dict.fromkeys(header["values"], "0.1")),
    "a list": lambda header, tensors: header["values"].update({key: [0.1] for key in header["values"]}),
    "an object": lambda header, tensors: header["values"].update({key: {"a": 1} for key in header["values"]}),
    "a large number": lambda header, tensors: header["values"].update(dict.fromkeys(header["values"], 1e300)),
    "an option of another type": lambda header, tensors: header["options"].update({key: {"a": []} for key in header["options"]}),
    "an unknown option": lambda header, tensors: header["options"].update(no_such_option=1),
}


@pytest.mark.parametrize("method", ["metaunlearn", "ssd", "pgu", "gradient-ascent"])
def test_a_crafted_artefact_of_another_machine_is_one_sentence(
    prepared: Run, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    from safetensors.torch import load_file, save_file

    monkeypatch.setenv("ONESHUI_VAULT", str(tmp_path / "empty"))
    run = Run.open(shutil.copytree(prepared.path, tmp_path / "run"))
    folder = run.artefact(method)
    header, tensors = read_json(folder / "artefact.json"), load_file(folder / "artefact.safetensors")
    for name, craft in CRAFTED.items():
        changed = copy.deepcopy(header), {key: tensor.clone() for key, tensor in tensors.items()}
        reads_tensors, reads_values = method != "gradient-ascent", method != "ssd"
        if not (reads_tensors if "tensor" in name or name in ("a scalar", "NaN") else reads_values):
            continue
        craft(*changed)
        save_file(changed[1], folder / "artefact.safetensors")
        write_header(folder, {key: value for key, value in changed[0].items() if key not in ("content", "tensors")})
        with pytest.raises(OneshuiError, match=r"^[^\n]*\.$"):
            oneshui_hf.unlearn(run, [photo], method=method, output_dir=str(tmp_path / "out"))
        assert not (tmp_path / "out").exists(), name

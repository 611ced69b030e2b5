"""Identification by a photo: face templates of the preparation, matching at the request, and uncertain matches."""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import oneshui_hf
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import Artefact, Context
from oneshui_hf.methods.artefact import write_header
from oneshui_hf.models.load import load_model
from oneshui_hf.reporting import Reporter
from oneshui_hf.runs import Run, read_json
from oneshui_hf.stages import identify as stage
from support.changed_artefacts import change_header, rewrite_as_format_1
from support.colour_encoder import Colours
from support.commands import Oneshui, sentence
from support.faces import LABELS, bits, portrait

METHOD = "forget-keys"
SIZES: dict[str, Any] = {"steps_per_identity": 2, "rank": 1, "identities_per_step": 4, "target_fraction": 0.3}
FAST: dict[str, Any] = {"method": METHOD, "targets": "quantile", **SIZES}
PEOPLE, PHOTOS = 24, 4


class RecordingReporter(Reporter):
    """Records all messages, and gives every question the same answer."""

    def __init__(self, answer: bool = False) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.questions: list[str] = []
        self.answer = answer

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def confirm(self, question: str) -> bool:
        self.questions.append(question)
        return self.answer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("photos")
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "identity", *LABELS])
        for person in range(PEOPLE):
            for photo in range(PHOTOS):
                portrait(person, photo).save(folder / f"{person:02d}-{photo}.png")
                writer.writerow([f"{person:02d}-{photo}.png", f"p{person:02d}", *bits(person, photo, len(LABELS))])
    return oneshui_hf.train(
        dataset=str(folder), model="tiny", forget=3, epochs=1, output_dir=str(tmp_path_factory.mktemp("runs") / "original")
    )


@pytest.fixture(scope="module")
def prepared_once(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path, Colours, RecordingReporter]:
    """The run with keys and face templates, its vault, the encoder and the reporter of the preparation."""
    vault, encoder, reporter = tmp_path_factory.mktemp("vault"), Colours(), RecordingReporter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONESHUI_VAULT", str(vault))
        patch.setattr(stage, "load_encoder", lambda name, device: None if name == "none" else encoder)
        oneshui_hf.prepare(trained, **FAST, face_encoder="colours", reporter=reporter)
    return trained, vault, encoder, reporter


@pytest.fixture
def prepared(prepared_once: tuple[Run, Path, Colours, RecordingReporter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy of the run, with a copy of its vault."""
    run, vault, encoder, _ = prepared_once
    shutil.copytree(vault, tmp_path / "vault")
    monkeypatch.setenv("ONESHUI_VAULT", str(tmp_path / "vault"))
    monkeypatch.setattr(stage, "load_encoder", lambda name, device: None if name == "none" else encoder)
    return Run.open(shutil.copytree(run.path, tmp_path / "run"))


@pytest.fixture
def photo(tmp_path: Path) -> Callable[..., Path]:
    """A factory of photos that are not in the data set."""

    def make(person: int, number: int = 50) -> Path:
        file = tmp_path / f"photo-{person}-{number}.png"
        portrait(person, number).save(file)
        return file

    return make


def artefact(run: Run) -> Artefact:
    return Artefact.load(run.artefact(METHOD), METHOD, run.weights)


def identities_with_key(run: Run) -> set[str]:
    """Return the identities whose key exists."""
    return set(artefact(run).people)


def read_split(run: Run) -> dict[str, Any]:
    return dict(read_json(run.path / "split.json"))


def weights(run: Run) -> torch.Tensor:
    return torch.cat([part.detach().flatten() for part in load_model(run.path)[0].parameters()])


def training_identity(run: Run, index: int = 0) -> int:
    """Return the number of a training identity."""
    return int(sorted(identities_with_key(run))[index][1:])


# Enrolment.


def test_every_identity_with_a_key_has_the_mean_of_its_embeddings_as_template(prepared_once: Any, prepared: Run) -> None:
    _, _, encoder, reporter = prepared_once
    found = artefact(prepared)
    reserved, support = read_split(prepared)["reserved"], read_split(prepared)["support"]
    assert len(found.people) == len(read_split(prepared)["people"]["train"]) > 8
    for person, parts in found.people.items():
        number = int(person[1:])
        held = {reserved.get(person), support.get(person)}
        own = [portrait(number, photo) for photo in range(PHOTOS) if f"{number:02d}-{photo}.png" not in held]
        mean = Colours()(own).double().sum(dim=0)
        assert torch.allclose(parts["signature"].double(), mean / mean.norm(), atol=1e-3)
    stored = found.values["recognition"]
    assert stored["encoder"] == Colours.name
    assert stored["calibration"]["enrolled"] == len(found.people)
    assert stored["calibration"]["false_match"]["people"] == len(read_split(prepared)["people"]["val"])
    assert stored["calibration"]["missed"]["people"] == len(reserved)
    assert any("a photo of an unseen identity is matched with an enrolled person in" in note for note in reporter.notes)
    assert found.report["face_encoder"] == "colours"
    support_photos = {portrait(int(person[1:]), int(key[3])).tobytes() for person, key in support.items()}
    assert not support_photos & set(encoder.seen)  # support images are not used for the calibration


def test_photos_are_sampled_evenly_across_identities(trained: Run) -> None:
    from oneshui_hf.stages.distributed import make_accelerator
    from oneshui_hf.stages.run_data import open_data

    data = open_data(trained, make_accelerator())
    val = data.sets["val"]
    people = len(val.positions_of)
    for most, each in ((people, 1), (2 * people, 2)):
        sampled = val.subset(stage._sample_across_people(val, most, torch.Generator().manual_seed(0)))
        assert {len(own) for own in sampled.positions_of.values()} == {each}
        assert len(sampled.positions_of) == people
    few = [stage._sample_across_people(val, 2, torch.Generator().manual_seed(seed)).tolist() for seed in range(5)]
    assert len({tuple(positions) for positions in few}) > 1
    assert few[0] == stage._sample_across_people(val, 2, torch.Generator().manual_seed(0)).tolist()
    one = data.sets["train"].people[min(data.sets["train"].positions_of)]
    chosen = stage._calibration_photos(data, {one}, 0)
    assert {chosen[0].people[number] for number in chosen[0].positions_of} == {one}
    assert all(chosen[2].people[number] == one for number in chosen[2].positions_of)
    all_photos = stage._calibration_photos(data, set(data.faces.people), 0)
    rows = [set(faces.rows.tolist()) for faces in all_photos]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]


def test_a_published_artefact_contains_no_identity_and_no_path_of_the_encoder(prepared: Run, tmp_path: Path) -> None:
    from oneshui_hf.stages.publishing.model import collect_public_files

    change_header(prepared.artefact(METHOD), lambda header: header["report"].update(face_encoder=str(tmp_path / "my-encoder")))
    collect_public_files(prepared, tmp_path / "public")
    public = (tmp_path / "public" / "methods" / METHOD / "artefact.json").read_text()
    assert Colours.name in public
    assert "my-encoder" not in public
    assert not any(f'"{person}"' in public for person in identities_with_key(prepared))


def test_a_preparation_without_templates_is_reported_and_kept(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo: Any
) -> None:
    monkeypatch.setenv("ONESHUI_VAULT", str(tmp_path / "vault"))
    run = Run.open(shutil.copytree(trained.path, tmp_path / "run", ignore=shutil.ignore_patterns("methods")))
    monkeypatch.setattr(stage, "load_encoder", lambda name, device: None)
    reporter = RecordingReporter()
    oneshui_hf.prepare(run, **FAST, reporter=reporter)
    assert any("dlib is not installed" in note for note in reporter.notes)
    assert "signature" not in artefact(run).people["p" + f"{training_identity(run):02d}"]
    with pytest.raises(UsageError, match=r"The preparation enrolled no identity.* name the person with --identity, or prepare again"):
        oneshui_hf.unlearn(run, [photo(training_identity(run))], method=METHOD)

    class Blind(Colours):
        def __call__(self, photos: Sequence[Any]) -> torch.Tensor:
            return torch.full((len(photos), 3), float("nan"))

    monkeypatch.setattr(stage, "load_encoder", lambda name, device: Blind())
    oneshui_hf.prepare(run, **FAST, overwrite=True, reporter=reporter)
    assert any("requests will need --identity" in warning for warning in reporter.warnings)
    assert "recognition" not in artefact(run).values
    assert identities_with_key(run)


def test_two_processes_share_the_photos(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from oneshui_hf.stages.distributed import make_accelerator
    from oneshui_hf.stages.run_data import open_data

    faces = open_data(trained, make_accelerator()).faces
    rows, gathered = np.array([7, 3, 11, 0, 5]), []

    def gather(part: list[Any]) -> list[Any]:
        gathered.extend(part)
        return gathered

    monkeypatch.setattr("accelerate.utils.gather_object", gather)
    encoders = [Colours(), Colours()]
    for process, encoder in enumerate(encoders):
        accelerator: Any = SimpleNamespace(process_index=process, num_processes=2)
        context = Context(faces.task, 0, accelerator, Reporter())
        both = stage._embed(encoder, faces, rows, context)
    assert [len(encoder.seen) for encoder in encoders] == [3, 2]
    alone = Colours()([portrait(*map(int, faces.keys[row].removesuffix(".png").split("-"))) for row in rows])
    assert torch.equal(both, alone)


# Requests.


def test_a_photo_identifies_its_person_whose_key_is_used_and_destroyed(prepared: Run, photo: Any) -> None:
    before, number, reporter = identities_with_key(prepared), training_identity(prepared), RecordingReporter()
    named = oneshui_hf.unlearn(
        prepared, [photo(number)], identity=[f"p{number:02d}"], method=METHOD, keep=True, output_dir=f"{prepared.path}-named"
    )
    assert named.record.report["found_by"] == "name"
    run = oneshui_hf.unlearn(prepared, [photo(number)], method=METHOD, reporter=reporter)
    assert run.weights == named.weights != prepared.weights
    assert identities_with_key(prepared) == before - {f"p{number:02d}"}
    report = run.record.report
    assert (report["found_by"], report["confirmed"], report["destroyed"], report["people"], report["keys"]) == ("photo", 0, 1, 1, 1)
    assert report["similarity"][0] > report["threshold"]
    assert report["lead"][0] > report["margin"]
    assert not reporter.questions
    assert reporter.notes[0].startswith(f"The photo is recognised: its best similarity is {report['similarity'][0]:.3f}")
    text = (run.path / "oneshui.json").read_text() + "".join(reporter.notes)
    assert not any(f'"{person}"' in text for person in before)

    with pytest.raises(OneshuiError, match="not recognised with enough certainty"):  # the identity on this photo has no data any more
        oneshui_hf.unlearn(run, [photo(number)], method=METHOD, output_dir=f"{prepared.path}-again")
    with pytest.raises(OneshuiError, match="no key for 1 of the 1"):
        oneshui_hf.unlearn(run, [photo(number)], identity=[f"p{number:02d}"], method=METHOD, output_dir=f"{prepared.path}-again")
    assert not Path(f"{prepared.path}-again").exists()


def test_each_photo_is_decoded_once(prepared: Run, photo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from oneshui_hf.data import images
    from oneshui_hf.stages import unlearn

    decoded: list[object] = []

    def decode(source: Any, *arguments: Any) -> Any:
        decoded.append(source)
        return images.decode(source, *arguments)

    for module in (stage, unlearn):
        monkeypatch.setattr(module, "decode", decode)
    photos = [photo(training_identity(prepared, 1)), photo(training_identity(prepared, 2))]
    found = oneshui_hf.unlearn(prepared, photos, method=METHOD, keep=True, output_dir=str(tmp_path / "found"))
    assert decoded == list(map(str, photos))
    names = [f"p{training_identity(prepared, index):02d}" for index in (1, 2)]
    named = oneshui_hf.unlearn(prepared, photos, identity=names, method=METHOD, keep=True, output_dir=str(tmp_path / "named"))
    assert decoded == list(map(str, photos)) * 2
    assert found.weights == named.weights


def test_two_requests_give_the_same_model_as_one_request_of_both(prepared: Run, photo: Any, tmp_path: Path) -> None:
    first, second = photo(training_identity(prepared, 1)), photo(training_identity(prepared, 2))
    reporter = RecordingReporter()
    both = oneshui_hf.unlearn(prepared, [first, second], method=METHOD, keep=True, output_dir=str(tmp_path / "both"), reporter=reporter)
    assert [note[:15] for note in reporter.notes] == ["Photo 1 of 2: T", "Photo 2 of 2: T"]
    assert len(both.record.report["similarity"]) == both.record.report["people"] == 2
    run = oneshui_hf.unlearn(prepared, [first], method=METHOD)
    run = oneshui_hf.unlearn(run, [second], method=METHOD)
    assert (weights(both) - weights(prepared)).abs().max() > 1e-4
    assert torch.allclose(weights(run), weights(both), atol=1e-6)


def unseen_identity(run: Run) -> int:
    """Return the number of an identity that is in neither training nor calibration."""
    return int(read_split(run)["people"]["test"][0][1:])


def test_an_unseen_identity_is_refused_and_nothing_is_written(prepared: Run, photo: Any, oneshui: Oneshui, tmp_path: Path) -> None:
    before, words = identities_with_key(prepared), ["unlearn", "--run", prepared.path, "--method", METHOD, "--image"]
    code, out, err = oneshui(*words, photo(unseen_identity(prepared)))
    assert (code, out) == (1, "")
    line = next(line for line in err.splitlines() if line.startswith("Error: "))
    assert "its best similarity is" in line
    assert "ahead of the runner-up" in line
    assert "--identity" in line
    assert not any(person in line for person in before)
    assert identities_with_key(prepared) == before
    assert not Path(f"{prepared.path}-{METHOD}").exists()
    Image.new("RGB", (40, 40)).save(tmp_path / "black.png")
    code, _, err = oneshui(*words, tmp_path / "black.png")
    assert (code, "No face was found" in err.splitlines()[-1]) == (1, True)


def test_an_uncertain_match_needs_a_confirmation(prepared: Run, photo: Any) -> None:
    number, before = training_identity(prepared), identities_with_key(prepared)
    change_header(prepared.artefact(METHOD), lambda header: header["values"]["recognition"]["calibration"].update(threshold=1.01))
    denies, confirms = RecordingReporter(), RecordingReporter(answer=True)
    with pytest.raises(OneshuiError, match=r"1\.010 needed.*Nothing was changed; .*--identity"):
        oneshui_hf.unlearn(prepared, [photo(number)], method=METHOD, reporter=denies)
    with pytest.raises(OneshuiError, match="Photo 1 of 2: "):
        oneshui_hf.unlearn(prepared, [photo(number), photo(number, 51)], method=METHOD)
    assert identities_with_key(prepared) == before
    run = oneshui_hf.unlearn(prepared, [photo(number)], method=METHOD, reporter=confirms)
    assert denies.questions == confirms.questions
    assert len(confirms.questions) == 1
    assert confirms.questions[0].startswith("The photo is not recognised with enough certainty: its best similarity is ")
    assert confirms.questions[0].endswith(f" Does the photo show 'p{number:02d}', and should this person be forgotten?")
    assert not any(f"p{number:02d}" in note for note in denies.notes + confirms.notes)
    assert run.record.report["confirmed"] == 1
    assert identities_with_key(prepared) == before - {f"p{number:02d}"}


def test_a_different_or_missing_encoder_is_reported(prepared: Run, photo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(Colours):
        name = "colours-ba9876543210"

    request: dict[str, Any] = {"run": prepared, "images": [photo(training_identity(prepared))], "method": METHOD}
    monkeypatch.setattr(stage, "load_encoder", lambda name, device: Other())
    with pytest.raises(OneshuiError, match=f"encoder {Colours.name}, and this one is {Other.name}; name that one with --face-encoder, .*"):
        oneshui_hf.unlearn(**request)
    monkeypatch.setattr(stage, "load_encoder", lambda name, device: None)
    with pytest.raises(UsageError, match="is not installed; run .*faces.*--identity"):
        oneshui_hf.unlearn(**request)
    found = artefact(prepared)
    for person in list(found.people):
        found.destroy(person)
    monkeypatch.setattr(stage, "load_encoder", lambda name, device: Colours())
    with pytest.raises(OneshuiError, match="No identity is left"):
        oneshui_hf.unlearn(**request)


def test_face_encoder_is_refused_for_methods_without_identities(trained: Run, oneshui: Oneshui, photo: Any) -> None:
    for words in (("prepare", "--method", "lfssd"), ("unlearn", "--method", "gradient-ascent", "--image", photo(1))):
        code, _, err = oneshui(*words, "--run", trained.path, "--face-encoder", "dlib")
        assert (code, "--face-encoder is for methods that act on each identity separately" in sentence(err)) == (2, True)


def name_foreign_encoder(run: Run) -> None:
    """Make an artefact name a model on the Hub, as one of another machine can: with valid hashes."""
    folder = run.artefact(METHOD)
    header = read_json(folder / "artefact.json")
    header["report"]["face_encoder"] = "someone/encoder"
    write_header(folder, {name: value for name, value in header.items() if name not in ("content", "tensors")})


@pytest.mark.parametrize("secrets", ["none", "format 1"])
def test_only_an_encoder_that_this_machine_chose_is_loaded(
    prepared: Run, photo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secrets: str
) -> None:
    loaded: list[str | None] = []
    monkeypatch.setattr(stage, "load_encoder", lambda name, device: loaded.append(name) or Colours())
    request: dict[str, Any] = {"run": prepared, "images": [photo(training_identity(prepared))], "method": METHOD}
    if secrets == "format 1":  # which has no seal, so another machine may have changed its header
        rewrite_as_format_1(prepared.artefact(METHOD), tmp_path / "vault")
    name_foreign_encoder(prepared)
    if secrets == "none":
        monkeypatch.setenv("ONESHUI_VAULT", str(tmp_path / "empty"))
    with pytest.raises(
        UsageError, match=r"^The identities were enrolled with a face encoder that was not chosen on this machine; .*--face-e"
    ):
        oneshui_hf.unlearn(**request)
    assert loaded == []
    if secrets == "none":
        with pytest.raises(OneshuiError, match="not on this machine"):
            oneshui_hf.unlearn(**request, face_encoder="mine")
    else:
        assert oneshui_hf.unlearn(**request, face_encoder="mine").record.report["found_by"] == "photo"
    assert loaded == ["mine"]


def test_a_changed_encoder_of_an_own_preparation_is_refused(prepared: Run, photo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "load_encoder", lambda name, device: pytest.fail("an encoder was loaded"))
    number = training_identity(prepared)
    name_foreign_encoder(prepared)
    with pytest.raises(OneshuiError, match="has changed since it was prepared"):
        oneshui_hf.unlearn(prepared, [photo(number)], method=METHOD)


def test_no_encoder_means_that_the_person_must_be_named(prepared: Run, photo: Any) -> None:
    with pytest.raises(UsageError, match=r"^Without a face encoder the photo cannot be identified; name the person with --identity\.$"):
        oneshui_hf.unlearn(prepared, [photo(training_identity(prepared))], method=METHOD, face_encoder="none")


@pytest.mark.slow
def test_a_request_for_a_run_of_another_machine_causes_no_request_to_the_hub(prepared: Run, photo: Any, tmp_path: Path) -> None:
    from support.hub_server import Hub

    image = photo(training_identity(prepared))
    name_foreign_encoder(prepared)
    with Hub() as hub:
        hub.add(
            "someone/encoder",
            {"config.json": b'{"auto_map": {"AutoModel": "code.Model"}}', "code.py": b"raise SystemExit(7)"},
            private=False,
        )
        away = {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "home"),
            "ONESHUI_VAULT": str(tmp_path / "none"),
        }
        words = ["unlearn", "--run", prepared.path, "--method", METHOD, "--image", image]
        done = subprocess.run(
            [sys.executable, "-m", "oneshui_hf", *map(str, words)], env=os.environ | away, input="y\n", capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert "--face-encoder" in done.stderr.splitlines()[-1]
        assert hub.requests == []


def test_a_damaged_secret_does_not_affect_the_identification_of_others(prepared: Run, photo: Any, tmp_path: Path) -> None:
    number, reporter = training_identity(prepared), RecordingReporter()
    own = set(artefact(prepared).people)
    keys = [file for file in (tmp_path / "vault").rglob("*.key") if file.name != "artefact.key"]
    for file, content in zip(keys, (b"", b"short"), strict=False):
        file.write_bytes(content)
    left = set(artefact(prepared).people)
    assert len(own - left) == 2
    if f"p{number:02d}" not in left:
        number = int(min(left)[1:])
    run = oneshui_hf.unlearn(prepared, [photo(number)], method=METHOD, reporter=reporter)
    assert run.record.report["found_by"] == "photo"
    assert set(artefact(prepared).people) == left - {f"p{number:02d}"}
    assert reporter.warnings == [
        "2 of the prepared identities cannot be found by a photo: their secret or data is damaged or cannot be read."
    ]


# Models that never saw the forget identities.


def test_the_reference_model_of_a_per_identity_method_is_the_oracle(prepared: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from oneshui_hf.cache import Cache
    from oneshui_hf.stages.distributed import make_accelerator
    from oneshui_hf.stages.evaluation import model_cache as model_cache_module
    from oneshui_hf.stages.evaluation.model_cache import ModelCache

    model_cache = ModelCache(Cache(tmp_path / "cache"), make_accelerator())
    values = {name: value for name, value in FAST.items() if name != "method"}
    result = model_cache.unlearned(prepared, METHOD, values, 0)
    assert result.artefact is not None
    assert "recognition" not in read_json(result.artefact / "artefact.json")["values"]
    assert result.run.weights != prepared.weights
    assert result.run.record.report["keys"] == 3
    monkeypatch.setattr(model_cache_module, "prepare", None)
    oracle = Run(prepared.path, dataclasses.replace(prepared.record, kind="oracle"))
    assert model_cache.reference(result.run, oracle) is oracle


def test_tuning_prepares_the_identities_of_simulated_requests(trained: Run, tmp_path: Path) -> None:
    values = {name: value for name, value in FAST.items() if name != "method"}
    values |= {"lr": 0.01, "preservation_weight": 1.0}
    file = oneshui_hf.api.tune(trained, method=METHOD, **values, trials=2, requests=1, sample=8, output=str(tmp_path / "tuned.json"))
    trials = read_json(file)["trials"]
    assert "strength" in trials[1]["values"]
    assert all(trial["scores"] is not None for trial in trials)


class InterruptedColours(Colours):
    """An encoder whose process is interrupted when it is called for the third time."""

    calls = 0

    def __call__(self, photos: Sequence[Any]) -> torch.Tensor:
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt
        return super().__call__(photos)


def test_interrupted_enrolment_continues_and_the_method_is_not_prepared_again(
    prepared_once: tuple[Run, Path, Colours, RecordingReporter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, vault, encoder, _ = prepared_once
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONESHUI_VAULT", str(vault))
        expected = {name: dict(parts) for name, parts in artefact(run).people.items()}
    expected_values = artefact(run).values
    monkeypatch.setenv("ONESHUI_VAULT", str(tmp_path / "vault"))
    copy = Run.open(shutil.copytree(run.path, tmp_path / "run"))
    shutil.rmtree(copy.artefact(METHOD))
    monkeypatch.setattr(stage, "CHUNK", 8)
    for count, (broken, resume) in enumerate(((InterruptedColours(), False), (encoder, True))):
        monkeypatch.setattr(stage, "load_encoder", lambda name, device, broken=broken: broken)
        if count:
            from oneshui_plugins.forget_keys.method import ForgetKeys

            monkeypatch.setattr(ForgetKeys, "prepare", None)
            oneshui_hf.prepare(copy, **FAST, face_encoder="colours", save_steps=1, resume=resume)
        else:
            with pytest.raises(KeyboardInterrupt):
                oneshui_hf.prepare(copy, **FAST, face_encoder="colours", save_steps=1)
            files = {file.name for file in (copy.path / "methods" / f".{METHOD}.unfinished").iterdir()}
            assert {"unfinished-artefact.safetensors", "unfinished-enrolment.safetensors"} <= files
    found = artefact(copy)
    assert found.values == expected_values
    assert {name: dict(parts).keys() for name, parts in found.people.items()} == {name: parts.keys() for name, parts in expected.items()}
    for name, parts in found.people.items():
        assert all(torch.equal(part, expected[name][key]) for key, part in parts.items())
    assert not (copy.path / "methods" / f".{METHOD}.unfinished").exists()

"""From a photo to the person: signatures made when preparing, compared at the request, and what happens where it is not certain."""

from __future__ import annotations

import csv
import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import oneshui_hf
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import Artefact
from oneshui_hf.models.load import load_model
from oneshui_hf.reporting import Reporter
from oneshui_hf.runs import Run, read_json, write_json
from oneshui_hf.stages import identify as recognition
from support.commands import Oneshui, sentence
from support.faces import LABELS, bits, portrait

METHOD = "forget-keys"
FAST: dict[str, Any] = {"method": METHOD, "visits": 2, "rank": 1, "together": 4, "share": 0.3}
PEOPLE, PHOTOS = 24, 4


class Colours:
    """Tells people by the colours of their photo: random Fourier features, whose product is about exp(-|x - y|^2 / 2 sigma^2).

    In a black photo there is nobody.
    """

    name = "colours-0123456789ab"
    sigma, dimensions = 25, 64

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def __call__(self, photos: Sequence[Any]) -> torch.Tensor:
        self.seen += [photo.tobytes() for photo in photos]
        small = np.stack([np.asarray(photo.resize((2, 1), Image.Resampling.BOX), dtype=np.float32).ravel() for photo in photos])
        draws = np.random.default_rng(0)
        phases = small @ draws.normal(0, 1 / self.sigma, (small.shape[1], self.dimensions)) + draws.uniform(0, 6.283, self.dimensions)
        phases[small.sum(axis=1) == 0] = float("nan")
        return torch.nn.functional.normalize(torch.from_numpy(np.cos(phases)).float(), dim=1)


class Heard(Reporter):
    """Keeps what it is told, and answers every question alike."""

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
def prepared_once(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path, Colours, Heard]:
    """The run with keys and signatures, its vault, the encoder that made them and what was told."""
    vault, encoder, heard = tmp_path_factory.mktemp("vault"), Colours(), Heard()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONESHUI_VAULT", str(vault))
        patch.setattr(recognition, "load_encoder", lambda name, device: None if name == "none" else encoder)
        oneshui_hf.prepare(trained, **FAST, face_encoder="colours", reporter=heard)
    return trained, vault, encoder, heard


@pytest.fixture
def prepared(prepared_once: tuple[Run, Path, Colours, Heard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy of the run, with a copy of its vault."""
    run, vault, encoder, _ = prepared_once
    shutil.copytree(vault, tmp_path / "vault")
    monkeypatch.setenv("ONESHUI_VAULT", str(tmp_path / "vault"))
    monkeypatch.setattr(recognition, "load_encoder", lambda name, device: None if name == "none" else encoder)
    return Run.open(shutil.copytree(run.path, tmp_path / "run"))


@pytest.fixture
def photo(tmp_path: Path) -> Callable[..., Path]:
    """A factory of photos that nobody has seen."""

    def make(person: int, number: int = 50) -> Path:
        file = tmp_path / f"photo-{person}-{number}.png"
        portrait(person, number).save(file)
        return file

    return make


def artefact(run: Run) -> Artefact:
    return Artefact.load(run.artefact(METHOD), METHOD, run.weights)


def left(run: Run) -> set[str]:
    """Return whose key is still there."""
    return set(artefact(run).people)


def split(run: Run) -> dict[str, Any]:
    return dict(read_json(run.path / "split.json"))


def weights(run: Run) -> torch.Tensor:
    return torch.cat([part.detach().flatten() for part in load_model(run.path)[0].parameters()])


def someone(run: Run, place: int = 0) -> int:
    """Return the number of a training person."""
    return int(sorted(left(run))[place][1:])


# Enrolment.


def test_everybody_with_a_key_has_a_signature_of_the_mean_of_their_photos(prepared_once: Any, prepared: Run) -> None:
    _, _, encoder, heard = prepared_once
    found = artefact(prepared)
    reserved, support = split(prepared)["reserved"], split(prepared)["support"]
    assert len(found.people) == len(split(prepared)["people"]["train"]) > 8
    for person, parts in found.people.items():
        number = int(person[1:])
        held = {reserved.get(person), support.get(person)}
        own = [portrait(number, photo) for photo in range(PHOTOS) if f"{number:02d}-{photo}.png" not in held]
        mean = Colours()(own).double().sum(dim=0)
        assert torch.allclose(parts["signature"].double(), mean / mean.norm(), atol=1e-3)
    stored = found.values["recognition"]
    assert stored["encoder"] == Colours.name
    assert stored["calibration"]["enrolled"] == len(found.people)
    assert stored["calibration"]["false_match"]["people"] == len(split(prepared)["people"]["val"])
    assert stored["calibration"]["missed"]["people"] == len(reserved)
    assert any("a stranger's photo is matched with somebody in" in note for note in heard.notes)
    assert found.report["face_encoder"] == "colours"
    asked = {portrait(int(person[1:]), int(key[3])).tobytes() for person, key in support.items()}
    assert not asked & set(encoder.seen)  # the photos that are handed in later are not what is calibrated on


def test_the_draw_is_of_few_photos_and_of_all_people(trained: Run) -> None:
    from oneshui_hf.stages.distributed import make_accelerator
    from oneshui_hf.stages.run_data import open_data

    data = open_data(trained, make_accelerator())
    val = data.sets["val"]
    people = len(val.positions_of)
    for most, alike in ((people, 1), (2 * people, 2)):
        drawn = val.subset(recognition._spread(val, most, torch.Generator().manual_seed(0)))
        assert {len(own) for own in drawn.positions_of.values()} == {alike}
        assert len(drawn.positions_of) == people
    few = [recognition._spread(val, 2, torch.Generator().manual_seed(seed)).tolist() for seed in range(5)]
    assert len({tuple(positions) for positions in few}) > 1
    assert few[0] == recognition._spread(val, 2, torch.Generator().manual_seed(0)).tolist()
    one = data.sets["train"].people[min(data.sets["train"].positions_of)]
    chosen = recognition._chosen(data, {one}, 0)
    assert {chosen[0].people[number] for number in chosen[0].positions_of} == {one}
    assert all(chosen[2].people[number] == one for number in chosen[2].positions_of)
    everybody = recognition._chosen(data, set(data.faces.people), 0)
    rows = [set(faces.rows.tolist()) for faces in everybody]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]


def test_what_is_published_names_neither_people_nor_the_encoder_s_place(prepared: Run, tmp_path: Path) -> None:
    from oneshui_hf.stages.publishing.model import stage

    header = prepared.artefact(METHOD) / "artefact.json"
    told = read_json(header)
    write_json(header, told | {"report": told["report"] | {"face_encoder": str(tmp_path / "my-encoder")}})
    stage(prepared, tmp_path / "public")
    public = (tmp_path / "public" / "methods" / METHOD / "artefact.json").read_text()
    assert Colours.name in public
    assert "my-encoder" not in public
    assert not any(f'"{person}"' in public for person in left(prepared))


def test_a_preparation_without_signatures_says_so_and_is_kept(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo: Any
) -> None:
    monkeypatch.setenv("ONESHUI_VAULT", str(tmp_path / "vault"))
    run = Run.open(shutil.copytree(trained.path, tmp_path / "run", ignore=shutil.ignore_patterns("methods")))
    monkeypatch.setattr(recognition, "load_encoder", lambda name, device: None)
    heard = Heard()
    oneshui_hf.prepare(run, **FAST, reporter=heard)
    assert any("dlib is not installed" in note for note in heard.notes)
    assert "signature" not in artefact(run).people["p" + f"{someone(run):02d}"]
    with pytest.raises(UsageError, match=r"Nobody was enrolled .* name the person with --identity, or prepare again"):
        oneshui_hf.unlearn(run, [photo(someone(run))], method=METHOD)

    class Blind(Colours):
        def __call__(self, photos: Sequence[Any]) -> torch.Tensor:
            return torch.full((len(photos), 3), float("nan"))

    monkeypatch.setattr(recognition, "load_encoder", lambda name, device: Blind())
    oneshui_hf.prepare(run, **FAST, overwrite=True, reporter=heard)
    assert any("requests will need --identity" in warning for warning in heard.warnings)
    assert "recognition" not in artefact(run).values
    assert left(run)


def test_two_processes_share_the_photos(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from oneshui_hf.stages.distributed import make_accelerator
    from oneshui_hf.stages.run_data import open_data

    faces = open_data(trained, make_accelerator()).faces
    rows, handed = np.array([7, 3, 11, 0, 5]), []

    def keep(part: list[Any]) -> list[Any]:
        handed.extend(part)
        return handed

    monkeypatch.setattr(recognition, "gather_object", keep)
    encoders = [Colours(), Colours()]
    for process, encoder in enumerate(encoders):
        context: Any = SimpleNamespace(accelerator=SimpleNamespace(process_index=process, num_processes=2), reporter=Reporter())
        both = recognition._encoded(encoder, faces, rows, context)
    assert [len(encoder.seen) for encoder in encoders] == [3, 2]
    alone = Colours()([portrait(*map(int, faces.keys[row].removesuffix(".png").split("-"))) for row in rows])
    assert torch.equal(both, alone)


# Requests.


def test_the_photo_finds_its_person_whose_key_alone_is_used_and_destroyed(prepared: Run, photo: Any) -> None:
    before, number, heard = left(prepared), someone(prepared), Heard()
    named = oneshui_hf.unlearn(
        prepared, [photo(number)], identity=[f"p{number:02d}"], method=METHOD, keep=True, output_dir=f"{prepared.path}-named"
    )
    assert named.record.report["found_by"] == "name"
    run = oneshui_hf.unlearn(prepared, [photo(number)], method=METHOD, reporter=heard)
    assert run.weights == named.weights != prepared.weights
    assert left(prepared) == before - {f"p{number:02d}"}
    report = run.record.report
    assert (report["found_by"], report["confirmed"], report["destroyed"], report["people"], report["keys"]) == ("photo", 0, 1, 1, 1)
    assert report["similarity"][0] > report["threshold"]
    assert report["lead"][0] > report["margin"]
    assert not heard.questions
    assert heard.notes[0].startswith(f"The photo is recognised: its best similarity is {report['similarity'][0]:.3f}")
    told = (run.path / "oneshui.json").read_text() + "".join(heard.notes)
    assert not any(f'"{person}"' in told for person in before)

    with pytest.raises(OneshuiError, match="not recognised with enough certainty"):  # nobody is left whom the same photo shows
        oneshui_hf.unlearn(run, [photo(number)], method=METHOD, output_dir=f"{prepared.path}-again")
    with pytest.raises(OneshuiError, match="no key for 1 of the 1"):
        oneshui_hf.unlearn(run, [photo(number)], identity=[f"p{number:02d}"], method=METHOD, output_dir=f"{prepared.path}-again")
    assert not Path(f"{prepared.path}-again").exists()


def test_one_after_the_other_is_both_at_once(prepared: Run, photo: Any, tmp_path: Path) -> None:
    first, second = photo(someone(prepared, 1)), photo(someone(prepared, 2))
    heard = Heard()
    both = oneshui_hf.unlearn(prepared, [first, second], method=METHOD, keep=True, output_dir=str(tmp_path / "both"), reporter=heard)
    assert [note[:15] for note in heard.notes] == ["Photo 1 of 2: T", "Photo 2 of 2: T"]
    assert len(both.record.report["similarity"]) == both.record.report["people"] == 2
    run = oneshui_hf.unlearn(prepared, [first], method=METHOD)
    run = oneshui_hf.unlearn(run, [second], method=METHOD)
    assert (weights(both) - weights(prepared)).abs().max() > 1e-4
    assert torch.allclose(weights(run), weights(both), atol=1e-6)


def stranger(run: Run) -> int:
    """Return the number of somebody on whose photos nothing was learned nor calibrated."""
    return int(split(run)["people"]["test"][0][1:])


def test_a_stranger_is_refused_and_nothing_is_written(prepared: Run, photo: Any, oneshui: Oneshui, tmp_path: Path) -> None:
    before, words = left(prepared), ["unlearn", "--run", prepared.path, "--method", METHOD, "--image"]
    code, out, err = oneshui(*words, photo(stranger(prepared)))
    assert (code, out) == (1, "")
    line = next(line for line in err.splitlines() if line.startswith("Error: "))
    assert "its best similarity is" in line
    assert "ahead of the runner-up" in line
    assert "--identity" in line
    assert not any(person in line for person in before)
    assert left(prepared) == before
    assert not Path(f"{prepared.path}-{METHOD}").exists()
    Image.new("RGB", (40, 40)).save(tmp_path / "black.png")
    code, _, err = oneshui(*words, tmp_path / "black.png")
    assert (code, "No face was found" in err.splitlines()[-1]) == (1, True)


def test_a_photo_that_is_not_certain_is_asked_about(prepared: Run, photo: Any) -> None:
    number, before = someone(prepared), left(prepared)
    header = prepared.artefact(METHOD) / "artefact.json"
    told = read_json(header)
    told["values"]["recognition"]["calibration"]["threshold"] = 1.01
    write_json(header, told)
    no, yes = Heard(), Heard(answer=True)
    with pytest.raises(OneshuiError, match=r"1\.010 needed.*Nothing was done; .*--identity"):
        oneshui_hf.unlearn(prepared, [photo(number)], method=METHOD, reporter=no)
    with pytest.raises(OneshuiError, match="Photo 1 of 2: "):
        oneshui_hf.unlearn(prepared, [photo(number), photo(number, 51)], method=METHOD)
    assert left(prepared) == before
    run = oneshui_hf.unlearn(prepared, [photo(number)], method=METHOD, reporter=yes)
    assert no.questions == yes.questions
    assert len(yes.questions) == 1
    assert yes.questions[0].startswith("The photo is not recognised with enough certainty: its best similarity is ")
    assert yes.questions[0].endswith(f" Is it 'p{number:02d}' who is on the photo, and shall they be forgotten?")
    assert not any(f"p{number:02d}" in note for note in no.notes + yes.notes)
    assert run.record.report["confirmed"] == 1
    assert left(prepared) == before - {f"p{number:02d}"}


def test_another_encoder_or_none_is_a_sentence(prepared: Run, photo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(Colours):
        name = "colours-ba9876543210"

    ask: dict[str, Any] = {"run": prepared, "images": [photo(someone(prepared))], "method": METHOD}
    monkeypatch.setattr(recognition, "load_encoder", lambda name, device: Other())
    with pytest.raises(OneshuiError, match=f"enrolled with the face encoder {Colours.name}, and this one is {Other.name}; .*--identity"):
        oneshui_hf.unlearn(**ask)
    monkeypatch.setattr(recognition, "load_encoder", lambda name, device: None)
    with pytest.raises(UsageError, match="is not installed; run .*faces.*--identity"):
        oneshui_hf.unlearn(**ask)
    found = artefact(prepared)
    for person in list(found.people):
        found.destroy(person)
    monkeypatch.setattr(recognition, "load_encoder", lambda name, device: Colours())
    with pytest.raises(OneshuiError, match="Nobody is left"):
        oneshui_hf.unlearn(**ask)


def test_the_option_is_for_methods_that_know_people(trained: Run, oneshui: Oneshui) -> None:
    code, _, err = oneshui("prepare", "--run", trained.path, "--method", "lfssd", "--face-encoder", "dlib")
    assert (code, "--face-encoder is for methods that act on people one by one" in sentence(err)) == (2, True)


def test_a_terminal_is_asked_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    from oneshui_hf.cli.console import ConsoleReporter
    from oneshui_hf.reporting import SILENT, PrefixedReporter

    asked: list[str] = []

    def confirm(question: str, **more: Any) -> bool:
        asked.append(question)
        return True

    monkeypatch.setattr(typer, "confirm", confirm)
    console = ConsoleReporter()
    monkeypatch.setattr(console, "_terminal", True)
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115, PTH123
    assert not console.confirm("Sure?")
    assert not SILENT.confirm("Sure?")
    assert not asked
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert PrefixedReporter(console, "job").confirm("Sure?")
    assert asked == ["Sure?"]


# Models that never saw those who ask.


def test_a_reference_model_is_the_oracle_itself(prepared: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from oneshui_hf.cache import Cache
    from oneshui_hf.stages.distributed import make_accelerator
    from oneshui_hf.stages.evaluation import model_cache as stage
    from oneshui_hf.stages.evaluation.model_cache import Stock

    stock = Stock(Cache(tmp_path / "cache"), make_accelerator())
    values = {name: value for name, value in FAST.items() if name != "method"}
    forgotten = stock.forget(prepared, METHOD, values, 0)
    assert forgotten.artefact is not None
    assert "recognition" not in read_json(forgotten.artefact / "artefact.json")["values"]
    assert forgotten.run.weights != prepared.weights
    assert forgotten.run.record.report["keys"] == 3
    monkeypatch.setattr(stage, "prepare", None)
    oracle = Run(prepared.path, dataclasses.replace(prepared.record, kind="oracle"))
    assert stock.reference(forgotten.run, oracle) is oracle


def test_tuning_prepares_for_those_on_whom_it_judges(trained: Run, tmp_path: Path) -> None:
    values = {name: value for name, value in FAST.items() if name != "method"}
    file = oneshui_hf.api.tune(
        trained, method=METHOD, **values, lr=0.01, balance=1.0, trials=2, requests=1, sample=8, output=str(tmp_path / "tuned.json")
    )
    trials = read_json(file)["trials"]
    assert "strength" in trials[1]["values"]
    assert all(trial["scores"] is not None for trial in trials)

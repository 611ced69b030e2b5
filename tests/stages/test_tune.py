"""Tuning: judged on simulated requests alone, resumable to the byte, and a preset file that prepare and unlearn take."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import oneshui_hf
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import Artefact, Context, DataAccess, Method, Needs, option
from oneshui_hf.reporting import Reporter
from oneshui_hf.runs import Run, read_json
from oneshui_hf.stages import tune as stage
from oneshui_hf.stages.presets import preset_values, read_preset
from oneshui_hf.stages.tune import best_of
from support.commands import Oneshui, sentence
from support.faces import portrait


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return oneshui_hf.train(
        dataset="synthetic", forget=2, epochs=6, optimizer="adamw", keep="last", augment="flip",
        output_dir=str(tmp_path_factory.mktemp("runs") / "original"),
    )  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Of the method that is tuned here: what it adds to the head's bias."""

    shift: float = option(0.0, "What is added.", minimum=0, at="apply", search=(0.01, 10.0))
    rounds: int = option(1, "How often it is prepared.", minimum=1, search=(1, 3))
    fail: str = option("", "How it fails.", at="apply", choices=("", "known", "torch", "usage"))
    strength: float = option(1.0, "Known by another name.", at="apply", flags=("--force-of-it",), search=(1.0, 2.0))


class Shift(Method[Options]):
    """Shifts the head's bias, and keeps what it was handed."""

    summary, paper, options, prepares = "shift", "-", Options, "required"
    needs = Needs(prepare=frozenset({"train", "val"}), apply=frozenset({"support", "forget", "retain"}))
    prepared: ClassVar[list[DataAccess]] = []
    asked: ClassVar[list[DataAccess]] = []

    def prepare(self, model: Any, data: DataAccess, options: Options, context: Context) -> Artefact:
        self.prepared.append(data)
        return Artefact(values={"rounds": options.rounds})

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
        assert artefact is not None
        assert artefact.values["rounds"] == options.rounds
        self.asked.append(data)
        if options.fail:
            raise {"known": OneshuiError, "torch": RuntimeError, "usage": UsageError}[options.fail]("It was told to fail, by person001.")
        new = copy.deepcopy(model)
        new.classifier.bias.data[: len(new.classifier.bias) // 2] -= options.shift
        return new


@pytest.fixture
def shift(monkeypatch: pytest.MonkeyPatch) -> type[Shift]:
    """Install the method as `shift`."""
    from oneshui_hf import plugins

    load, origin = plugins.Plugins.load, plugins.Plugins.origin
    monkeypatch.setattr(plugins.Plugins, "origin", lambda self, name: "here 1.0" if name == "shift" else origin(self, name))
    monkeypatch.setattr(plugins.Plugins, "load", lambda self, name: Shift if name == "shift" else load(self, name))
    Shift.prepared, Shift.asked = [], []
    return Shift


def tune(run: Run, output: Path, **options: Any) -> dict[str, Any]:
    return dict(read_json(oneshui_hf.tune(run, **{"method": "shift", "trials": 6, "requests": 2, "output": str(output)} | options)))


class Hearing(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def note(self, text: str) -> None:
        self.heard.append(text)

    warn = note


def row(retain: float, tow: float) -> dict[str, Any]:
    return {"values": {"retain": retain}, "scores": {"retain": retain, "tow": tow}}


def test_the_best_is_the_highest_tow_within_the_bound_else_the_least_damage() -> None:
    nothing = {"retain": 90.0, "tow": 50.0}
    failed = {"values": {}, "scores": None}
    assert best_of([], nothing, 5) is None
    assert best_of([failed], nothing, 5) is None
    assert best_of([failed, row(80, 99), row(86, 60), row(85, 70), row(89, 55)], nothing, 5) == row(85, 70)
    assert best_of([row(80, 60), row(84, 55), row(20, 90)], nothing, 5) == row(84, 55)
    assert best_of([row(90, 60), row(89, 60)], nothing, 5) == row(90, 60)


def test_people_who_ask_are_training_people_who_have_not_asked_and_whom_preparation_spares(
    trained: Run, tmp_path: Path, shift: type[Shift], monkeypatch: pytest.MonkeyPatch
) -> None:
    split = json.loads((trained.path / "split.json").read_text())
    real = set(split["forget"])
    judged: list[Any] = []
    rehearsal_class = stage.Rehearsal
    monkeypatch.setattr(stage, "Rehearsal", lambda *words, **more: judged.append(rehearsal_class(*words, **more)) or judged[-1])
    tune(trained, tmp_path / "preset.json", trials=2)
    asked = [set(data.support.people) for data in shift.asked]
    assert len(asked) == 4  # two trials of two requests
    assert asked[:2] == asked[2:]  # every setting is judged on the same ones
    assert len(asked[0] | asked[1]) == 4
    assert not (asked[0] | asked[1]) & real
    for data in shift.asked:
        people = data.forget.people
        forget = {people[number] for number in data.forget.identities.tolist()}
        retain = {people[number] for number in data.retain.identities.tolist()}
        assert forget == set(data.support.people)
        assert not forget & retain
        assert real <= retain  # at that time they have not asked yet
    assert len(judged) == 2
    for rehearsal in judged:
        people = {rehearsal.sets["retain"].people[number] for number in rehearsal.sets["retain"].identities.tolist()}
        assert not people & real  # but no setting is judged by them
    for data in shift.prepared:
        spared = {data.train.people[number] for number in data.train.spared}
        assert asked[0] | asked[1] <= spared


def test_test_set_and_real_request_are_never_looked_at(
    trained: Run, tmp_path: Path, shift: type[Shift], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tune(trained, tmp_path / "first.json")
    opened = stage.open_data

    def without(*arguments: Any) -> Any:
        data = opened(*arguments)
        return dataclasses.replace(data, sets={name: faces for name, faces in data.sets.items() if name not in ("test", "support")})

    monkeypatch.setattr(stage, "open_data", without)
    assert tune(trained, tmp_path / "second.json") == first


def test_the_scores_are_those_of_the_models_and_an_equal_preparation_is_made_once(trained: Run, tmp_path: Path, shift: type[Shift]) -> None:
    from accelerate import Accelerator

    from oneshui_hf.methods.simulation import mean
    from oneshui_hf.metrics.functional import mean_average_precision
    from oneshui_hf.models.load import load_model

    found = tune(trained, tmp_path / "preset.json", rounds=2, sample=10**6)
    assert len(shift.prepared) == 1
    assert all(trial["values"]["rounds"] == 2 for trial in found["trials"])
    assert found["searched"] == {"shift": [0.01, 10.0], "strength": [1.0, 2.0]}
    assert found["trials"][0]["values"] == {"rounds": 2}
    # Again by hand, from what the method was handed.
    real = {shift.asked[0].retain.people.index(person) for person in json.loads((trained.path / "split.json").read_text())["forget"]}
    model = load_model(trained.path, Accelerator(cpu=True).device)[0]
    trial = found["trials"][3]
    shifted = copy.deepcopy(model)
    shifted.classifier.bias.data[: len(shifted.classifier.bias) // 2] -= trial["values"]["shift"]  # type: ignore[index, operator]
    for which, told in ((shifted, trial["scores"]), (model, found["nothing"])):
        by_hand = []
        for data in shift.asked[:2]:
            scores = {}
            for name in ("forget", "retain"):
                faces = getattr(data, name)
                pixels, labels = faces.batch(torch.tensor([i for i, person in enumerate(faces.identities.tolist()) if person not in real]))
                with torch.inference_mode():
                    scores[name] = float(mean_average_precision(which(pixel_values=pixels).logits, labels)[0])
            by_hand.append(scores)
        assert {name: told[name] for name in ("forget", "retain")} == pytest.approx(mean(by_hand), abs=1e-3)
    best = max((t for t in found["trials"] if found["nothing"]["retain"] - t["scores"]["retain"] <= 5), key=lambda t: t["scores"]["tow"])
    assert (found["values"], found["scores"]) == (best["values"], best["scores"])


def test_a_stopped_search_goes_on_to_the_same_bytes(
    trained: Run, tmp_path: Path, shift: type[Shift], monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(trained, tmp_path / "whole.json", trials=8)
    attempt, calls = stage._Stage.attempt, []

    def stop(self: Any, values: dict[str, Any], number: int) -> Any:
        calls.append(values)
        if len(calls) in (3, 6):
            raise KeyboardInterrupt
        return attempt(self, values, number)

    monkeypatch.setattr(stage._Stage, "attempt", stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            tune(trained, tmp_path / "parts.json", trials=8, resume=True)
    tune(trained, tmp_path / "parts.json", trials=8, resume=True)
    assert len(calls) == 8 + 2
    assert (tmp_path / "parts.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    tune(trained, tmp_path / "more.json", trials=5)
    tune(trained, tmp_path / "more.json", trials=8, resume=True)  # more trials later are the same as at once
    assert (tmp_path / "more.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert tune(trained, tmp_path / "other.json", trials=8, seed=1)["trials"] != read_json(tmp_path / "whole.json")["trials"]


def test_another_search_is_not_gone_on_with(trained: Run, tmp_path: Path, shift: type[Shift]) -> None:
    file = tmp_path / "preset.json"
    tune(trained, file, trials=1)
    with pytest.raises(UsageError, match="exists; go on with --resume, search anew with --overwrite"):
        tune(trained, file, trials=1)
    for changed, word in (
        ({"seed": 1}, "--seed"),
        ({"rounds": 1}, "option of the method"),
        ({"sample": 100}, "--seed, --requests, --sample"),
    ):
        with pytest.raises(UsageError, match=f"made with another {word}"):
            tune(trained, file, resume=True, **changed)
    with pytest.raises(UsageError, match="give one of them"):
        tune(trained, file, resume=True, overwrite=True)
    with pytest.raises(UsageError, match="of method 'shift', not of 'jit'"):
        tune(trained, file, method="jit", resume=True)
    whole = json.loads(file.read_text())
    trial = whole["trials"][0]
    hurt = [None, 1, {}, {"scores": {}}, trial | {"scores": {}}, trial | {"scores": {**trial["scores"], "tow": float("nan")}}]
    for wrong in (
        *({"trials": [part]} for part in (*hurt, trial | {"values": "text"})),
        {"nothing": None},
        {"scores": {"tow": 1}},
        {"values": 1},
    ):
        file.write_text(json.dumps(whole | wrong))
        with pytest.raises(OneshuiError, match="is damaged or was changed by hand"):
            tune(trained, file, trials=2, resume=True)
    file.write_text(json.dumps(whole | {"trials": [trial | {"values": {"shift": -1}}]}))
    with pytest.raises(UsageError, match="--shift of method 'shift' in .*preset.json must be at least 0"):
        tune(trained, file, trials=2, resume=True)
    file.write_text("{}")
    with pytest.raises(OneshuiError, match="not a preset file"):
        tune(trained, file, resume=True)
    with pytest.raises(UsageError, match="is no preset, so --overwrite leaves it alone"):
        tune(trained, file, trials=1, overwrite=True)
    file.write_text(json.dumps(whole))
    assert len(tune(trained, file, trials=1, overwrite=True)["trials"]) == 1


def test_the_place_is_checked_before_anything_takes_long(
    trained: Run, tmp_path: Path, shift: type[Shift], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "open_data", None)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "folder.json", tmp_path / "file" / "x.json"):
        with pytest.raises(UsageError, match="cannot be written there"):
            tune(trained, place)
    with pytest.raises(UsageError, match="must end in .json"):
        tune(trained, tmp_path / "preset")


def test_two_searches_do_not_write_over_each_other(
    trained: Run, tmp_path: Path, shift: type[Shift], monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = stage._Stage.attempt

    def meanwhile(self: Any, values: dict[str, Any], number: int) -> Any:
        (tmp_path / "preset.json").write_text("another's")
        return attempt(self, values, number)

    monkeypatch.setattr(stage._Stage, "attempt", meanwhile)
    with pytest.raises(OneshuiError, match="was written by somebody else meanwhile"):
        tune(trained, tmp_path / "preset.json")
    assert (tmp_path / "preset.json").read_text() == "another's"


def test_an_option_given_by_another_of_its_names_is_kept(trained: Run, tmp_path: Path, shift: type[Shift]) -> None:
    found = tune(trained, tmp_path / "preset.json", trials=2, force_of_it=1.5)
    assert found["given"] == {"strength": 1.5}
    assert "strength" not in found["searched"]
    assert all(trial["values"]["strength"] == 1.5 for trial in found["trials"])


def test_an_option_that_means_nothing_beside_the_others_is_not_searched(oneshui: Oneshui, trained: Run, tmp_path: Path) -> None:
    words = ("tune", "--run", trained.path, "--method", "metaunlearn", "--steps", 1, "--calibration", 0, "--trials", 1, "--requests", 1)
    for step, searched in (("raw", {"eta", "lr"}), ("normalised", {"length", "lr"})):
        code, out, err = oneshui(*words, "--step", step, "--output", tmp_path / f"{step}.json", "--json")
        assert code == 0, err
        assert set(json.loads(out)["searched"]) == searched


def test_a_setting_that_fails_is_told_and_all_failing_ends_with_the_reason(trained: Run, tmp_path: Path, shift: type[Shift]) -> None:
    told = Hearing()
    for how in ("known", "torch"):
        file = tmp_path / f"{how}.json"
        with pytest.raises(OneshuiError, match="None of 2 settings of method 'shift' worked"):
            tune(trained, file, trials=2, fail=how, reporter=told)
        assert [trial["scores"] for trial in read_json(file)["trials"]] == [None, None]
        assert "person001" not in file.read_text()  # a method's words may tell of people
        with pytest.raises(UsageError, match="No setting in .* has worked"):
            preset_values(trained, "shift", shift, str(file))
    assert [text for text in told.heard if "It was told to fail" in text] == [
        f"Setting {number} failed: It was told to fail, by person001." for number in (1, 2, 1, 2)
    ]
    with pytest.raises(UsageError, match="It was told to fail"):  # at once, and nothing is written
        tune(trained, tmp_path / "usage.json", trials=50, fail="usage")
    assert not (tmp_path / "usage.json").exists()


def test_a_request_that_is_smaller_than_the_real_one_is_told(trained: Run, tmp_path: Path, shift: type[Shift]) -> None:
    told = Hearing()
    big = dataclasses.replace(trained, record=dataclasses.replace(trained.record, report={"split": {"forget_identities": 50}}))
    found = tune(big, tmp_path / "preset.json", trials=1, reporter=told)
    (size,) = set(found["people"])
    assert any(f"of {size}, out of" in text and "The run's own has 50" in text for text in told.heard)


def test_nothing_in_the_file_tells_who_asked(trained: Run, tmp_path: Path, shift: type[Shift]) -> None:
    tune(trained, tmp_path / "preset.json", trials=2)
    text = (tmp_path / "preset.json").read_text()
    assert json.loads(text)["dataset"] == "synthetic"
    people = {person for data in shift.asked for person in data.support.people}
    assert people
    assert not any(f'"{person}"' in text for person in people)
    assert str(trained.path) not in text


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    portrait(0, 0).save(tmp_path / "face.png")
    return tmp_path / "face.png"


def test_a_tuned_preset_prepares_and_unlearns(oneshui: Oneshui, trained: Run, tmp_path: Path, photo: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.path, run)
    code, out, err = oneshui("tune", "--run", run, "--method", "lfssd", "--trials", 3, "--requests", 1, "--photos", 30)
    assert code == 0, err
    file = run / "tuned" / "lfssd.json"
    assert f"--preset {file}" in out
    assert "do nothing" in out
    kept = read_json(file)
    values = {"photos": 30, "selection": 2.5, "dampening": 0.3}
    file.write_text(json.dumps(read_json(file) | {"values": values}))
    code, out, err = oneshui("prepare", "--run", run, "--method", "lfssd", "--preset", file, "--json")
    assert code == 0, err
    assert json.loads(out)["options"] == {"chunk": 4} | values
    file.write_text(json.dumps(read_json(file) | {"values": values | {"selection": 1.25}}))
    code, out, err = oneshui("unlearn", "--run", run, "--method", "lfssd", "--preset", file, "--image", photo, "--json")
    assert code == 0, err  # what the preset says of preparing has been done, and is no word of the request
    assert json.loads(out)["report"]["method_options"] == {"chunk": 4} | values | {"selection": 1.25}
    for words, sentence_of in (
        (("--method", "jit", "--preset", file), "is a preset of method 'lfssd', not of 'jit'"),
        (("--method", "jit", "--preset", tmp_path / "none.json"), "There is no preset file"),
        (("--method", "jit", "--preset", run / "oneshui.json"), "not a preset file that this version reads"),
    ):
        code, _, err = oneshui("unlearn", "--run", run, "--image", photo, "--output-dir", tmp_path / "new", *words)
        assert code in (1, 2)
        assert sentence_of in sentence(err)
        assert not (tmp_path / "new").exists()
    # Spelled as on a command line, what acts when preparing is still no word of the request; and it is told.
    file.write_text(json.dumps(read_json(file) | {"values": {"--photos": 20, "selection": 1.5}}))
    code, out, err = oneshui("unlearn", "--run", run, "--method", "lfssd", "--preset", file, "--image", photo, "--json", "--overwrite")
    assert code == 0, err
    assert json.loads(out)["report"]["method_options"] == {"chunk": 4, "photos": 30, "selection": 1.5, "dampening": 0.3}
    assert "was prepared with other values, and --photos of the preset act when preparing" in err
    for wrong, told in (
        ({"selection": True}, "takes a number"),
        ({"selection": 10**400}, "takes a number"),
        ({"selection": 1e300}, "takes a number"),
        ({"photos": "many"}, "takes a whole number"),
    ):
        file.write_text(json.dumps(read_json(file) | {"values": wrong}))
        code, _, err = oneshui("unlearn", "--run", run, "--method", "lfssd", "--preset", file, "--image", photo, "--overwrite")
        assert (code, f"in {file} {told}" in sentence(err)) == (2, True), err
    file.write_text("[" * 100000)
    code, _, err = oneshui("prepare", "--run", run, "--method", "lfssd", "--preset", file, "--overwrite")
    assert (code, "is not JSON" in sentence(err)) == (1, True)
    file.write_text(json.dumps(kept | {"values": {"no_such": 1}}))
    code, _, err = oneshui("prepare", "--run", run, "--method", "lfssd", "--preset", file, "--overwrite")
    assert (code, "has no option --no-such" in sentence(err)) == (2, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--method", "do-nothing"), "Method 'do-nothing' has no option to search here"),
        (("--method", "jit", "--lr", "0.1", "--sigma", "0.5"), "has no option to search here"),
        (("--method", "jit", "--lrr", "0.1"), "Did you mean '--lr'?"),
        (("--method", "jit", "--lr", "-1"), "must be at least 0"),
        (("--method", "jitt"), "Did you mean"),
        (("--method", "jit", "--trials", "0"), "--trials of tune must be at least 1"),
        (("--method", "jit", "--requests", "0"), "--requests of tune must be at least 1"),
        (("--method", "jit", "--sample", "1"), "--sample of tune must be at least 2"),
        (("--method", "jit", "--max-retain-drop", "-1"), "--max-retain-drop of tune must be at least 0"),
        (("--method", "jit", "--seed", "-1"), "--seed of tune must be at least 0"),
        (("--method", "jit", "--data-dir", "/nowhere"), "not with 'synthetic'"),
    ],
)
def test_wrong_words(oneshui: Oneshui, trained: Run, words: tuple[str, ...], told: str) -> None:
    code, out, err = oneshui("tune", "--run", trained.path, *words)
    assert code in (1, 2)
    assert told in sentence(err)
    assert not out
    assert not (trained.path / "tuned").exists()


TUNED = sorted((Path(__file__).parents[2] / "docs" / "results" / "presets").glob("*.json"))


@pytest.mark.parametrize("file", TUNED, ids=lambda file: file.stem)
def test_the_presets_in_the_documentation_can_be_used(file: Path) -> None:
    from oneshui_hf.plugins import METHODS, Plugins

    name = read_json(file)["method"]
    if name.startswith("unrepaired-"):
        import unrepaired

        method: Any = getattr(unrepaired, {"pgu": "UnrepairedPGU", "ssd": "UnrepairedSSD", "jit": "UnrepairedJiT"}[name.partition("-")[2]])
    else:
        method = Plugins(METHODS).load(name)
    assert file.stem.endswith(name)
    assert read_preset(file, name, method)["scores"] is not None

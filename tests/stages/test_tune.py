"""Tuning: it scores settings on simulated requests only, resumes to the same bytes, and writes a preset for prepare and unlearn."""

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
from oneshui_hf.stages.tune import best_trial
from support.commands import Oneshui, sentence
from support.faces import portrait
from support.processes import another_writer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return oneshui_hf.train(
        dataset="synthetic", forget=2, epochs=6, optimizer="adamw", keep="last", augment="flip",
        output_dir=str(tmp_path_factory.mktemp("runs") / "original"),
    )  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Options of the method that is tuned here."""

    shift: float = option(0.0, "The shift of the bias.", minimum=0, at="apply", search=(0.01, 10.0))
    rounds: int = option(1, "Number of preparation rounds.", minimum=1, search=(1, 3))
    fail: str = option("", "The error that it raises.", at="apply", choices=("", "known", "torch", "usage"))
    strength: float = option(1.0, "An option with another flag.", at="apply", flags=("--force-of-it",), search=(1.0, 2.0))


class Shift(Method[Options]):
    """Shifts the head's bias, and records the data that it receives."""

    summary, paper, options, prepares = "shift", "-", Options, "required"
    needs = Needs(prepare=frozenset({"train", "val"}), apply=frozenset({"support", "forget", "retain"}))
    prepared: ClassVar[list[DataAccess]] = []
    applied: ClassVar[list[DataAccess]] = []

    def prepare(self, model: Any, data: DataAccess, options: Options, context: Context) -> Artefact:
        self.prepared.append(data)
        return Artefact(values={"rounds": options.rounds})

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
        assert artefact is not None
        assert artefact.values["rounds"] == options.rounds
        self.applied.append(data)
        if options.fail:
            raise {"known": OneshuiError, "torch": RuntimeError, "usage": UsageError}[options.fail]("The shift failed on person001.")
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
    Shift.prepared, Shift.applied = [], []
    return Shift


def tune(run: Run, output: Path, **options: Any) -> dict[str, Any]:
    return dict(read_json(oneshui_hf.tune(run, **{"method": "shift", "trials": 6, "requests": 2, "output": str(output)} | options)))


class RecordingReporter(Reporter):
    """Records notes and warnings."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def note(self, text: str) -> None:
        self.messages.append(text)

    warn = note


def row(retain: float, tow: float) -> dict[str, Any]:
    return {"values": {"retain": retain}, "scores": {"retain": retain, "tow": tow}}


def test_the_best_trial_has_the_highest_tow_within_the_bound_else_the_smallest_retain_drop() -> None:
    baseline = {"retain": 90.0, "tow": 50.0}
    failed = {"values": {}, "scores": None}
    assert best_trial([], baseline, 5) is None
    assert best_trial([failed], baseline, 5) is None
    assert best_trial([failed, row(80, 99), row(86, 60), row(85, 70), row(89, 55)], baseline, 5) == row(85, 70)
    assert best_trial([row(80, 60), row(84, 55), row(20, 90)], baseline, 5) == row(84, 55)
    assert best_trial([row(90, 60), row(89, 60)], baseline, 5) == row(90, 60)


def test_simulated_requests_exclude_the_forget_set_and_preparation_excludes_their_identities(
    trained: Run, tmp_path: Path, shift: type[Shift], monkeypatch: pytest.MonkeyPatch
) -> None:
    split = json.loads((trained.path / "split.json").read_text())
    forget_set = set(split["forget"])
    trials: list[Any] = []
    trial_class = stage.SimulatedRequestTrial
    monkeypatch.setattr(stage, "SimulatedRequestTrial", lambda *words, **more: trials.append(trial_class(*words, **more)) or trials[-1])
    tune(trained, tmp_path / "preset.json", trials=2)
    requested = [set(data.support.people) for data in shift.applied]
    assert len(requested) == 4  # two trials of two requests
    assert requested[:2] == requested[2:]  # every setting is scored on the same requests
    assert len(requested[0] | requested[1]) == 4
    assert not (requested[0] | requested[1]) & forget_set
    for data in shift.applied:
        people = data.forget.people
        forget = {people[number] for number in data.forget.identities.tolist()}
        retain = {people[number] for number in data.retain.identities.tolist()}
        assert forget == set(data.support.people)
        assert not forget & retain
        assert forget_set <= retain  # in a simulated request they are retain identities
    assert len(trials) == 2
    for trial in trials:
        people = {trial.sets["retain"].people[number] for number in trial.sets["retain"].identities.tolist()}
        assert not people & forget_set  # but no setting is scored on them
    for data in shift.prepared:
        excluded = {data.train.people[number] for number in data.train.excluded_from_simulation}
        assert requested[0] | requested[1] <= excluded


def test_the_test_set_and_the_support_images_are_never_read(
    trained: Run, tmp_path: Path, shift: type[Shift], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tune(trained, tmp_path / "first.json")
    opened = stage.open_data

    def without(*arguments: Any) -> Any:
        data = opened(*arguments)
        return dataclasses.replace(data, sets={name: faces for name, faces in data.sets.items() if name not in ("test", "support")})

    monkeypatch.setattr(stage, "open_data", without)
    assert tune(trained, tmp_path / "second.json") == first


def test_scores_are_those_of_the_models_and_equal_preparations_run_once(trained: Run, tmp_path: Path, shift: type[Shift]) -> None:
    from accelerate import Accelerator

    from oneshui_hf.methods.simulation import mean_scores
    from oneshui_hf.metrics.functional import mean_average_precision
    from oneshui_hf.models.load import load_model

    found = tune(trained, tmp_path / "preset.json", rounds=2, sample=10**6)
    assert len(shift.prepared) == 1
    assert all(trial["values"]["rounds"] == 2 for trial in found["trials"])
    assert found["searched"] == {"shift": [0.01, 10.0], "strength": [1.0, 2.0]}
    assert found["trials"][0]["values"] == {"rounds": 2}
    # Again by hand, from the data that the method received.
    forget_set = {
        shift.applied[0].retain.people.index(person) for person in json.loads((trained.path / "split.json").read_text())["forget"]
    }
    model = load_model(trained.path, Accelerator(cpu=True).device)[0]
    trial = found["trials"][3]
    shifted = copy.deepcopy(model)
    shifted.classifier.bias.data[: len(shifted.classifier.bias) // 2] -= trial["values"]["shift"]  # type: ignore[index, operator]
    for candidate, stored in ((shifted, trial["scores"]), (model, found["nothing"])):
        by_hand = []
        for data in shift.applied[:2]:
            scores = {}
            for name in ("forget", "retain"):
                faces = getattr(data, name)
                pixels, labels = faces.batch(
                    torch.tensor([i for i, person in enumerate(faces.identities.tolist()) if person not in forget_set])
                )
                with torch.inference_mode():
                    scores[name] = float(mean_average_precision(candidate(pixel_values=pixels).logits, labels)[0])
            by_hand.append(scores)
        assert {name: stored[name] for name in ("forget", "retain")} == pytest.approx(mean_scores(by_hand), abs=1e-3)
    best = max((t for t in found["trials"] if found["nothing"]["retain"] - t["scores"]["retain"] <= 5), key=lambda t: t["scores"]["tow"])
    assert (found["values"], found["scores"]) == (best["values"], best["scores"])


@pytest.mark.slow
def test_an_interrupted_search_resumes_to_the_same_bytes(
    trained: Run, tmp_path: Path, shift: type[Shift], monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(trained, tmp_path / "whole.json", trials=8)
    run_trial, calls = stage.TrialRunner.run_trial, []

    def stop(self: Any, values: dict[str, Any], number: int) -> Any:
        calls.append(values)
        if len(calls) in (3, 6):
            raise KeyboardInterrupt
        return run_trial(self, values, number)

    monkeypatch.setattr(stage.TrialRunner, "run_trial", stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            tune(trained, tmp_path / "parts.json", trials=8, resume=True)
    tune(trained, tmp_path / "parts.json", trials=8, resume=True)
    assert len(calls) == 8 + 2
    assert (tmp_path / "parts.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    tune(trained, tmp_path / "more.json", trials=5)
    tune(trained, tmp_path / "more.json", trials=8, resume=True)  # adding trials later gives the same result
    assert (tmp_path / "more.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert tune(trained, tmp_path / "other.json", trials=8, seed=1)["trials"] != read_json(tmp_path / "whole.json")["trials"]


class Units(Shift):
    """Prepares in five units of work, each of which can be interrupted."""

    finished: ClassVar[list[int]] = []
    interrupt_at: ClassVar[int | None] = None

    def prepare(self, model: Any, data: DataAccess, options: Options, context: Context) -> Artefact:
        found = context.resume_state.load()
        with context.resume_state.stoppable():
            for unit in range(found[1]["done"] if found else 0, 5):
                if len(self.finished) == self.interrupt_at:
                    raise KeyboardInterrupt
                self.finished.append(unit)
                if context.resume_state.should_save():
                    context.resume_state.save({"state": torch.tensor(unit)}, {"done": unit + 1})
        return super().prepare(model, data, options, context)


@pytest.mark.slow
def test_a_search_that_was_interrupted_within_a_preparation_continues_there(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: type[Shift]
) -> None:
    from oneshui_hf import plugins

    load = plugins.Plugins.load
    monkeypatch.setattr(plugins.Plugins, "load", lambda self, name: Units if name == "shift" else load(self, name))
    tune(trained, tmp_path / "whole.json", trials=3)
    assert not list(trained.path.rglob("*unfinished*"))
    Units.finished.clear()
    monkeypatch.setattr(Units, "interrupt_at", 7)  # in the second preparation, or the first with other values
    with pytest.raises(KeyboardInterrupt):
        tune(trained, tmp_path / "parts.json", trials=3, save_steps=1)
    (state,) = trained.path.glob("methods/.tuning-*.unfinished")
    assert state.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(Units, "interrupt_at", None)
    tune(trained, tmp_path / "parts.json", trials=3, resume=True)
    assert (tmp_path / "parts.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert Units.finished[5:10] == [0, 1, 2, 3, 4]  # no unit was repeated, and none left out
    assert not list(trained.path.rglob("*unfinished*"))


def test_a_search_with_other_settings_is_not_resumed(trained: Run, tmp_path: Path, shift: type[Shift]) -> None:
    file = tmp_path / "preset.json"
    tune(trained, file, trials=1)
    with pytest.raises(UsageError, match="exists; resume with --resume, name another file with --output, or replace it with --overwrite"):
        tune(trained, file, trials=1)
    for changed, noun in (
        ({"seed": 1}, "--seed"),
        ({"rounds": 1}, "option of the method"),
        ({"sample": 100}, "--seed, --requests, --sample"),
    ):
        with pytest.raises(UsageError, match=f"made with another {noun}"):
            tune(trained, file, resume=True, **changed)
    with pytest.raises(UsageError, match="give one of them"):
        tune(trained, file, resume=True, overwrite=True)
    with pytest.raises(UsageError, match="of method 'shift', not of 'jit'"):
        tune(trained, file, method="jit", resume=True)
    whole = json.loads(file.read_text())
    trial = whole["trials"][0]
    damaged = [None, 1, {}, {"scores": {}}, trial | {"scores": {}}, trial | {"scores": {**trial["scores"], "tow": float("nan")}}]
    for wrong in (
        *({"trials": [part]} for part in (*damaged, trial | {"values": "text"})),
        {"nothing": None},
        {"scores": {"tow": 1}},
        {"values": 1},
    ):
        file.write_text(json.dumps(whole | wrong))
        with pytest.raises(OneshuiError, match=r"is damaged or was changed by hand|is not JSON \(it contains NaN"):
            tune(trained, file, trials=2, resume=True)
    file.write_text(json.dumps(whole | {"trials": [trial | {"values": {"shift": -1}}]}))
    with pytest.raises(UsageError, match="--shift of method 'shift' in .*preset.json must be at least 0"):
        tune(trained, file, trials=2, resume=True)
    file.write_text("{}")
    with pytest.raises(OneshuiError, match="not a preset file"):
        tune(trained, file, resume=True)
    with pytest.raises(UsageError, match="is not a preset, so --overwrite does not replace it"):
        tune(trained, file, trials=1, overwrite=True)
    file.write_text(json.dumps(whole))
    assert len(tune(trained, file, trials=1, overwrite=True)["trials"]) == 1


def test_the_output_is_checked_before_any_long_computation(
    trained: Run, tmp_path: Path, shift: type[Shift], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "open_data", None)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").write_text("")
    for output, problem in ((tmp_path / "folder.json", "is a folder"), (tmp_path / "file" / "x.json", "file is a file")):
        with pytest.raises(UsageError, match=f"{problem}; name .* with --output"):
            tune(trained, output)
    with pytest.raises(UsageError, match="must end in .json"):
        tune(trained, tmp_path / "preset")


def test_two_searches_do_not_overwrite_each_other(trained: Run, tmp_path: Path, shift: type[Shift]) -> None:
    file = tmp_path / "preset.json"
    with another_writer(file), pytest.raises(OneshuiError, match="Another process is writing .*preset.json; .* or name another --output."):
        tune(trained, file)
    assert not file.exists()
    tune(trained, file, trials=1)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_setting_whose_model_is_not_finite_has_failed(
    trained: Run, tmp_path: Path, shift: type[Shift], monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    apply = shift.apply

    def explode(self: Any, *arguments: Any) -> Any:
        model = apply(self, *arguments)
        model.classifier.bias.data[0] = value
        return model

    monkeypatch.setattr(shift, "apply", explode)
    with pytest.raises(OneshuiError, match="None of 2 settings"):
        tune(trained, tmp_path / "preset.json", trials=2)
    assert [trial["scores"] for trial in json.loads((tmp_path / "preset.json").read_text())["trials"]] == [None, None]


def test_an_option_given_by_its_flag_is_fixed(trained: Run, tmp_path: Path, shift: type[Shift]) -> None:
    found = tune(trained, tmp_path / "preset.json", trials=2, force_of_it=1.5)
    assert found["given"] == {"strength": 1.5}
    assert "strength" not in found["searched"]
    assert all(trial["values"]["strength"] == 1.5 for trial in found["trials"])


def test_inactive_options_are_not_searched(oneshui: Oneshui, trained: Run, tmp_path: Path) -> None:
    words = ("tune", "--run", trained.path, "--method", "metaunlearn", "--steps", 1, "--calibration", 0, "--trials", 1, "--requests", 1)
    for step, searched in (("raw", {"eta", "lr"}), ("normalised", {"length", "lr"})):
        code, out, err = oneshui(*words, "--step", step, "--output", tmp_path / f"{step}.json", "--json")
        assert code == 0, err
        assert set(json.loads(out)["searched"]) == searched


def test_a_failing_setting_is_reported_and_if_all_fail_tuning_fails(trained: Run, tmp_path: Path, shift: type[Shift]) -> None:
    reporter = RecordingReporter()
    for how in ("known", "torch"):
        file = tmp_path / f"{how}.json"
        with pytest.raises(OneshuiError, match="None of 2 settings of method 'shift' worked"):
            tune(trained, file, trials=2, fail=how, reporter=reporter)
        assert [trial["scores"] for trial in read_json(file)["trials"]] == [None, None]
        assert "person001" not in file.read_text()  # a method's messages may contain names
        with pytest.raises(UsageError, match="No setting in .* has worked"):
            preset_values(trained, "shift", shift, str(file))
    assert [text for text in reporter.messages if "The shift failed" in text] == [
        f"Setting {number} failed: The shift failed on person001." for number in (1, 2, 1, 2)
    ]
    with pytest.raises(UsageError, match="The shift failed"):  # immediately, and nothing is written
        tune(trained, tmp_path / "usage.json", trials=50, fail="usage")
    assert not (tmp_path / "usage.json").exists()


def test_a_simulated_request_smaller_than_the_real_one_is_reported(trained: Run, tmp_path: Path, shift: type[Shift]) -> None:
    reporter = RecordingReporter()
    big = dataclasses.replace(trained, record=dataclasses.replace(trained.record, report={"split": {"forget_identities": 50}}))
    found = tune(big, tmp_path / "preset.json", trials=1, reporter=reporter)
    (size,) = set(found["people"])
    assert any(f"of {size}, out of" in text and "The run's own request has 50" in text for text in reporter.messages)


def test_the_preset_file_contains_no_identity(trained: Run, tmp_path: Path, shift: type[Shift]) -> None:
    tune(trained, tmp_path / "preset.json", trials=2)
    text = (tmp_path / "preset.json").read_text()
    assert json.loads(text)["dataset"] == "synthetic"
    people = {person for data in shift.applied for person in data.support.people}
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
    tuned = read_json(file)
    values = {"photos": 30, "selection": 2.5, "dampening": 0.3}
    file.write_text(json.dumps(read_json(file) | {"values": values}))
    code, out, err = oneshui("prepare", "--run", run, "--method", "lfssd", "--preset", file, "--json")
    assert code == 0, err
    assert json.loads(out)["options"] == {"chunk": 4} | values
    file.write_text(json.dumps(read_json(file) | {"values": values | {"selection": 1.25}}))
    code, out, err = oneshui("unlearn", "--run", run, "--method", "lfssd", "--preset", file, "--image", photo, "--json")
    assert code == 0, err  # the preset's preparation options are already applied, and are not options of the request
    assert json.loads(out)["report"]["method_options"] == {"chunk": 4} | values | {"selection": 1.25}
    for words, message in (
        (("--method", "jit", "--preset", file), "is a preset of method 'lfssd', not of 'jit'"),
        (("--method", "jit", "--preset", tmp_path / "none.json"), "There is no preset file"),
        (("--method", "jit", "--preset", run / "oneshui.json"), "not a preset file that this version reads"),
    ):
        code, _, err = oneshui("unlearn", "--run", run, "--image", photo, "--output-dir", tmp_path / "new", *words)
        assert code in (1, 2)
        assert message in sentence(err)
        assert not (tmp_path / "new").exists()
    # Preparation options are recognised in the spelling of the command line as well, and reported.
    file.write_text(json.dumps(read_json(file) | {"values": {"--photos": 20, "selection": 1.5}}))
    code, out, err = oneshui("unlearn", "--run", run, "--method", "lfssd", "--preset", file, "--image", photo, "--json", "--overwrite")
    assert code == 0, err
    assert json.loads(out)["report"]["method_options"] == {"chunk": 4, "photos": 30, "selection": 1.5, "dampening": 0.3}
    assert "was prepared with other values, and the preset's --photos apply to preparation only" in err
    for wrong, message in (
        ({"selection": True}, "takes a number"),
        ({"selection": 1e300}, "takes a number"),
        ({"photos": "many"}, "takes a whole number"),
    ):
        file.write_text(json.dumps(read_json(file) | {"values": wrong}))
        code, _, err = oneshui("unlearn", "--run", run, "--method", "lfssd", "--preset", file, "--image", photo, "--overwrite")
        assert (code, f"in {file} {message}" in sentence(err)) == (2, True), err
    file.write_text("[" * 100000)
    code, _, err = oneshui("prepare", "--run", run, "--method", "lfssd", "--preset", file, "--overwrite")
    assert (code, "is not JSON" in sentence(err)) == (1, True)
    file.write_text(json.dumps(tuned | {"values": {"no_such": 1}}))
    code, _, err = oneshui("prepare", "--run", run, "--method", "lfssd", "--preset", file, "--overwrite")
    assert (code, "has no option --no-such" in sentence(err)) == (2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "do-nothing"), "Method 'do-nothing' has no option to search here"),
        (("--method", "jit", "--lr", "0.1", "--sigma", "0.5"), "has no option to search here"),
        (("--method", "jit", "--lrr", "0.1"), "Did you mean '--lr'?"),
        (("--method", "jit", "--lr", "-1"), "must be at least 0"),
        (("--method", "jitt"), "Did you mean"),
        (("--method", "jit", "--trials", "0"), "--trials of tune must be at least 1"),
        (("--method", "jit", "--requests", "0"), "--requests of tune must be at least 1"),
        (("--method", "jit", "--sample", "1"), "--sample of tune must be at least 2"),
        (("--method", "jit", "--retain-budget", "-1"), "--retain-budget of tune must be at least 0"),
        (("--method", "jit", "--seed", "-1"), "--seed of tune must be at least 0"),
        (("--method", "jit", "--data-dir", "/nowhere"), "not to 'synthetic'"),
    ],
)
def test_wrong_options_are_refused(oneshui: Oneshui, trained: Run, words: tuple[str, ...], message: str) -> None:
    code, out, err = oneshui("tune", "--run", trained.path, *words)
    assert code in (1, 2)
    assert message in sentence(err)
    assert not out
    assert not (trained.path / "tuned").exists()


TUNED = sorted((Path(__file__).parents[2] / "docs" / "results" / "presets").glob("*.json"))


@pytest.mark.parametrize("file", TUNED, ids=lambda file: file.stem)
def test_the_documented_presets_can_be_read(file: Path) -> None:
    from oneshui_hf.plugins import METHODS, Plugins

    name = read_json(file)["method"]
    if name.startswith("unrepaired-"):
        import unrepaired

        method: Any = getattr(unrepaired, {"pgu": "UnrepairedPGU", "ssd": "UnrepairedSSD", "jit": "UnrepairedJiT"}[name.partition("-")[2]])
    else:
        method = Plugins(METHODS).load(name)
    assert file.stem.endswith(name)
    assert read_preset(file, name, method)["scores"] is not None

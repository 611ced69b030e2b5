"""Help screens, completion and the options that every command has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from oneshui_hf.cli.commands import without_aliases
from oneshui_hf.options import fields
from oneshui_hf.plugins import METHODS, Plugins
from oneshui_hf.stages.command_options import TrainOptions, TuneOptions
from support import all_commands
from support.commands import Oneshui, sentence

COMMANDS = [
    *("demo", "train", "retrain", "prepare", "tune", "unlearn", "evaluate", "runs", "show", "predict"),
    *("app", "audit", "report", "push", "pull"),
    *("requests receive", "requests list", "requests identify", "requests apply", "requests serve", "requests answer"),
    *("requests recheck", "requests refuse", "requests extend", "requests withdraw", "requests erase", "verify"),
    *("benchmark", "env", "data list", "data check", "data split", "data push", "methods", "methods show", "cache list", "cache clear"),
    *("hub history", "hub squash", "hub derived", "purge"),
]


@pytest.fixture(params=[80, 120])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setenv("COLUMNS", str(request.param))
    yield request.param


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_the_terminal_and_keeps_every_word(oneshui: Oneshui, command: str, width: int) -> None:
    code, out, err = oneshui(*command.split(), "--help")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= width
    assert "…" not in out  # nothing is cut


@pytest.mark.parametrize("method", Plugins(METHODS).names)
@pytest.mark.parametrize("command", ["prepare", "tune", "unlearn"])
def test_help_of_every_method_fits_the_terminal(oneshui: Oneshui, command: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = oneshui(command, "--method", method, "--help")[1]
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out


@pytest.mark.parametrize("command", ["prepare", "tune", "unlearn", "retrain", "evaluate", "show"])
def test_command_without_words_is_no_traceback(oneshui: Oneshui, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = oneshui(command)
    assert (code, "There is no finished run" in sentence(err)) == (2, True)


def test_run_as_an_option_stands_before_other_arguments(oneshui: Oneshui, trained: Path, tmp_path: Path) -> None:
    from support.faces import portrait

    portrait(1, 1).save(tmp_path / "face.png")
    by_argument = oneshui("predict", trained, tmp_path / "face.png", "--json")
    assert by_argument[0] == 0
    assert oneshui("predict", tmp_path / "face.png", "--run", trained, "--json") == by_argument
    assert oneshui("predict", f"--run={trained}", tmp_path / "face.png", "--json") == by_argument


def test_numbers_of_a_table_are_whole_on_a_narrow_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from oneshui_hf.cli.printing import table

    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    row = ["runs/a-long-name-of-a-run-that-must-be-folded", "94.4 [93.1, 95.2]", "100.0", "12345.678"]
    table(["run", "mAP", "ToW", "seconds"], [row])
    out = capsys.readouterr().out
    assert "…" not in out
    assert all(word in out for cell in row[1:] for word in cell.split())


def test_train_help_groups_options_in_panels(oneshui: Oneshui, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    out = oneshui("train", "--help")[1]
    panels = [out.index(f"─ {panel} ─") for panel in ("Data", "Model", "Recipe", "Run", "Output")]
    assert panels == sorted(panels)
    assert "<sgd|adamw>" in out
    assert "[x>=1]" in out
    assert "[0<=x<=1]" in out
    assert out.index("Example") > panels[-1]
    assert "[required]" in out[panels[0] : panels[1]]


def test_help_lists_the_options_of_the_named_method(oneshui: Oneshui) -> None:
    prepare, apply = oneshui("prepare", "--method", "ssd", "--help")[1], oneshui("unlearn", "--method=ssd", "--help")[1]
    assert "Options of ssd" in prepare
    assert "--photos" in prepare
    assert "--dampening" in apply  # read at the request, so `prepare` does not list it
    assert "--dampening" not in prepare
    assert "Options of metaunlearn" in oneshui("prepare", "--help")[1]


def test_help_lists_the_options_of_the_method_in_the_configuration(oneshui: Oneshui, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("method: jit\n")
    assert "--sigma" in oneshui("unlearn", "--config", tmp_path / "run.yaml", "--help")[1]


def test_summaries_fit_one_line(oneshui: Oneshui, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    listed = [line for line in oneshui("--help")[1].splitlines() if line.startswith("│ ") and not line.startswith("│ -")]
    assert {line.split()[1] for line in listed if line[2] != " "} == {command.split()[0] for command in COMMANDS}
    commands = [line for line in listed if not line.startswith("│  ")]
    assert all(line.rstrip(" │").endswith(".") for line in commands), commands


@pytest.mark.parametrize("words", [[], ["data"], ["cache"], ["hub"]])
def test_group_without_a_command_prints_its_help(oneshui: Oneshui, words: list[str]) -> None:
    code, out, err = oneshui(*words)
    assert (code, err) == (0, "")
    assert out.count("Usage:") == 1
    assert out == oneshui(*words, "--help")[1]


def complete(words: str) -> list[str]:
    """Return what the shell offers after these words."""
    environment = os.environ | {"_ONESHUI_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    code = "import sys; sys.argv[0] = 'oneshui'; from oneshui_hf.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout.split()


def test_shell_completes_commands_choices_methods_and_their_options() -> None:
    assert complete("oneshui retr") == ["retrain"]
    assert complete("oneshui train --optimizer ") == ["sgd", "adamw"]
    assert complete("oneshui prepare --method meta") == ["metaunlearn"]
    assert complete("oneshui unlearn --method ssd --damp") == ["--dampening"]
    assert "celeba" in complete("oneshui train --dataset ")


def test_aliases_and_earlier_names_are_accepted() -> None:
    words = ["--num-train-epochs=3", "--learning-rate", "0.1", "--forget", "5"]
    assert without_aliases(words, TrainOptions) == ["--epochs=3", "--lr", "0.1", "--forget", "5"]
    assert without_aliases(["--damage", "1"], TuneOptions) == ["--retain-budget", "1"]


def test_every_option_has_a_help_text_of_one_or_two_lines() -> None:
    classes = {command.options for command in all_commands.COMMANDS}
    assert len(classes) > 15
    for kind in classes:
        for field in fields(kind).values():
            assert 5 < len(field.metadata["help"]) <= 200, (kind.__name__, field.name)
            assert field.metadata["help"].endswith("."), (kind.__name__, field.name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import oneshui_hf

    folder = tmp_path_factory.mktemp("runs") / "original"
    oneshui_hf.train(dataset="synthetic", forget=2, epochs=1, output_dir=str(folder))
    return folder


def test_run_is_an_argument_and_an_option(oneshui: Oneshui, trained: Path) -> None:
    by_argument, by_option = oneshui("show", trained, "--json"), oneshui("show", "--run", trained, "--json")
    assert by_argument == by_option
    assert by_argument[0] == 0


def test_quiet_prints_the_result_alone(oneshui: Oneshui, trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("oneshui_hf.api_run.RUNS", trained.parent)
    assert "newest run" in oneshui("show")[2]
    code, out, err = oneshui("show", "-q")
    assert (code, err) == (0, "")
    assert str(trained) in out


def test_debug_prints_the_traceback_before_the_sentence(oneshui: Oneshui) -> None:
    code, _, err = oneshui("show", "/nowhere", "--debug")
    assert code == 2
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("Error: There is no run at /nowhere")
    assert sentence(oneshui("show", "/nowhere")[2]).startswith("Error: There is no run")


def test_old_words_for_the_list_of_data_sets_still_answer(oneshui: Oneshui) -> None:
    assert oneshui("datasets", "--json") == oneshui("data", "list", "--json")
    assert "datasets" not in oneshui("--help")[1]


def test_runs_lists_the_newest_first_and_names_the_unreadable(oneshui: Oneshui, trained: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b", "broken")):
        (tmp_path / name).mkdir()
        text = (trained / "oneshui.json").read_text() if name != "broken" else "{"
        (tmp_path / name / "oneshui.json").write_text(text)
        os.utime(tmp_path / name / "oneshui.json", (number, number))
    code, out, _ = oneshui("runs", tmp_path, "--json")
    rows = json.loads(out)
    assert code == 0
    assert [Path(row["run"]).name for row in rows] == ["broken", "b", "a"]
    assert (rows[1]["kind"], rows[1]["dataset"], rows[1]["tow"]) == ("original", "synthetic", None)
    assert "not JSON" in rows[0]["error"]
    printed = oneshui("runs", tmp_path)[1]
    assert "Unreadable:" in printed
    assert str(tmp_path / "a") in printed


def test_show_describes_origin_sets_and_prepared_methods(oneshui: Oneshui, trained: Path, tmp_path: Path) -> None:
    import oneshui_hf
    from support.faces import portrait

    portrait(1, 1).save(tmp_path / "face.png")
    oneshui_hf.prepare(trained, method="metaunlearn", steps=1, calibration=0, overwrite=True)
    oneshui_hf.unlearn(trained, images=[tmp_path / "face.png"], output_dir=str(tmp_path / "unlearned"))
    about = json.loads(oneshui("show", tmp_path / "unlearned", "--json")[1])
    assert about["parent"]["run"] == str(trained)
    assert (about["request"]["method"], about["request"]["photos"]) == ("metaunlearn", 1)
    assert about["scores"] == {}
    original = json.loads(oneshui("show", trained, "--json")[1])
    assert [row["method"] for row in original["prepared"]] == ["metaunlearn"]
    assert original["split"]["forget_identities"] == 2
    printed = oneshui("show", trained)[1]
    assert "prepared method" in printed
    assert "Not evaluated" in printed


def test_predict_agrees_with_the_pipeline_of_transformers(oneshui: Oneshui, trained: Path, tmp_path: Path) -> None:
    from support.faces import portrait

    for number in range(2):
        portrait(number, 0).save(tmp_path / f"{number}.png")
    files = [tmp_path / "0.png", tmp_path / "1.png"]
    code, out, err = oneshui("predict", trained, *files, "--top-k", 3, "--json")
    assert code == 0, err
    from PIL import Image

    import oneshui_hf

    classify = oneshui_hf.Run.open(trained).pipeline()
    for file, row in zip(files, json.loads(out), strict=True):
        assert row["image"] == str(file)
        expected = classify(Image.open(file))[:3]
        assert [prediction["label"] for prediction in row["predictions"]] == [prediction["label"] for prediction in expected]
        for ours, theirs in zip(row["predictions"], expected, strict=True):
            assert ours["probability"] == pytest.approx(theirs["score"], abs=0.02)  # the pipeline resizes by its own processor


def test_env_names_versions_and_no_path(oneshui: Oneshui, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONESHUI_CACHE", str(tmp_path / "secret-name"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    code, out, err = oneshui("env", "--json")
    about = json.loads(out)
    assert code == 0, err
    assert about["versions"]["torch"]
    assert {"ONESHUI_CACHE", "HF_TOKEN"} <= set(about["variables"])
    printed = oneshui("env")[1]
    for text in (out, printed):
        assert "secret" not in text
        assert str(Path.home()) not in text
    assert [row["folder"] for row in about["data"]] == ["runs", "model cache", "datasets cache"]


@pytest.mark.parametrize("command", [["runs"], ["show", "RUN"], ["data", "list"]])
def test_commands_that_need_no_model_do_not_import_torch(command: list[str], trained: Path) -> None:
    words = [str(trained) if word == "RUN" else word for word in command]
    code = (
        f"import sys; sys.argv = ['oneshui', *{words!r}]\nfrom oneshui_hf.cli import main\n"
        "try: main()\nexcept SystemExit as e: assert not e.code, e.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

"""Commands on damaged and hostile runs: they go on, or end with one sentence. A part runs always, all of them in the slow tests."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from oneshui_hf.errors import OneshuiError
from oneshui_hf.runs import Run
from oneshui_hf.stages.publishing.model import collect_public_files
from support.commands import Oneshui
from support.crafted_runs import CraftedRun, crafted_runs
from support.faces import portrait

RUNS = crafted_runs()
TIMEOUT = 60  # seconds
AREAS = ("config", "preprocessor", "record", "weights", "metrics", "split", "predictions", "artefact", "checkpoint")
# A part of the damages of each kind: those that once ended with a traceback, a hang, or a randomly initialised model.
SELECTED = (
    *("config.json is nested lists", "config.json is a pipe", "config.json: num_attention_heads is 0", "config.json: patch_size is 0"),
    *("config.json: num_hidden_layers is 100000", 'config.json: quantization_config is "x"', "config.json: kernel_config is"),
    *("config.json: image_size is 4096", "config.json: id2label is {}", "config.json: auto_map is", "config.json: hidden_size is 131072"),
    *("preprocessor_config.json is an empty object", "preprocessor_config.json is a list", "preprocessor_config.json: size.height is 0"),
    *("preprocessor_config.json: size.height is 1000000000", "preprocessor_config.json: size.height is 64"),
    *("preprocessor_config.json: image_std is [0.0", "preprocessor_config.json has NaN", "oneshui.json is an integer of 5000 digits"),
    *(
        "oneshui.json: dataset.labels is null",
        'oneshui.json: options.lr is "x"',
        "oneshui.json: report.split is 5",
        "oneshui.json is a link to a device",
    ),
    *("oneshui.json: report.history is [5]", "model.safetensors is an empty header", "model.safetensors has other names"),
    *(
        "model.safetensors has NaN",
        "model.safetensors has a header of 90 MB",
        "model.safetensors is terabytes",
        "the index of the weights names a file",
    ),
    *("metrics.json: retain is 5", "metrics.json: score is []", 'metrics.json: tow is "x"', "split.json is a list"),
    *("predictions/forget.safetensors is a pickle", "artefact.json: report is null", "artefact.safetensors has no tensors"),
    *("checkpoint-1/progress.json is missing", "a folder checkpoint-x", "config.json has a field twice"),
)


def selected() -> list[CraftedRun]:
    return [next(crafted for crafted in RUNS if crafted.name.startswith(start)) for start in SELECTED]


def others() -> list[CraftedRun]:
    chosen = {crafted.name for crafted in selected()}
    return [crafted for crafted in RUNS if crafted.name not in chosen]


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluated run with an artefact."""
    import oneshui_hf

    path = tmp_path_factory.mktemp("valid") / "run"
    run = oneshui_hf.train(dataset="synthetic", epochs=1, output_dir=str(path))
    oneshui_hf.evaluate(run, resamples=100)
    oneshui_hf.prepare(run, method="lfssd")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with a photo; a command that hangs there raises an error."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"a command did not end within {TIMEOUT} s")

    portrait(0, 0).save(tmp_path / "photo.png")
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(TIMEOUT)
    yield tmp_path
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def commands(run: Path) -> dict[str, list[object]]:
    new = run.parent / "new"
    return {
        "predict": ["predict", run, run.parent / "photo.png", "--json"],
        "show": ["show", run],
        "runs": ["runs", run.parent],
        "evaluate": ["evaluate", "--run", run, "--resamples", "100"],
        "report": ["report", run, "--output", run.parent / "report.html", "--overwrite"],
        "gradient-ascent": ["unlearn", "--run", run, "--method", "gradient-ascent", "--from-split", "--output-dir", new, "--overwrite"],
        "lfssd": ["unlearn", "--run", run, "--method", "lfssd", "--from-split", "--output-dir", new, "--overwrite"],
    }


def check(oneshui: Oneshui, crafted: CraftedRun, valid: Path, folder: Path, names: tuple[str, ...]) -> None:
    run = folder / "run"
    shutil.copytree(valid, run)
    before = oneshui(*commands(run)["predict"])[1] if crafted.harmless else None
    crafted.corrupt(run)
    for name in names:
        code, out, err = oneshui(*commands(run)[name])
        lines = [line for line in err.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("Error:")]
        assert code in (0, 1, 2), (name, code)
        assert "Traceback" not in err + out
        if code:
            assert len(errors) == 1, (name, err)
            assert lines[-1] == errors[0]
            assert len(errors[0]) < 600
        if name == "predict" and code == 0:
            assert "NaN" not in out
        if before is not None and name == "predict":
            assert out == before
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("crafted", selected(), ids=lambda crafted: crafted.name)
def test_command_on_a_crafted_run_ends_with_one_sentence(oneshui: Oneshui, crafted: CraftedRun, valid: Path, folder: Path) -> None:
    reads = {
        "artefact": ("show", "lfssd"),
        "metrics": ("show", "runs", "report"),
        "split": ("show", "gradient-ascent"),
        "checkpoint": ("show",),
    }
    check(oneshui, crafted, valid, folder, reads.get(crafted.area, ("predict", "show")))


UNPUBLISHED = (
    "config.json is a list",
    "preprocessor_config.json is null",
    'config.json: id2label is {"x"',
    "the index of the weights is a list",
)


@pytest.mark.parametrize(
    "name", [*UNPUBLISHED, "the index of the weights has numbers", "metrics.json: retain is 5", "metrics.json is a pipe"]
)
def test_crafted_run_is_not_published(name: str, valid: Path, folder: Path) -> None:
    run = shutil.copytree(valid, folder / "run")
    next(crafted for crafted in RUNS if crafted.name.startswith(name)).corrupt(run)
    (folder / "public").mkdir()
    with pytest.raises(OneshuiError) as raised:
        collect_public_files(Run.open(run).require_complete(), folder / "public")
    assert "\n" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize("crafted", others(), ids=lambda crafted: crafted.name)
def test_all_commands_on_all_crafted_runs(oneshui: Oneshui, crafted: CraftedRun, valid: Path, folder: Path) -> None:
    check(oneshui, crafted, valid, folder, tuple(commands(folder)))


def test_valid_run_is_accepted_by_all_commands(oneshui: Oneshui, valid: Path, folder: Path) -> None:
    run = shutil.copytree(valid, folder / "run")
    for name, words in commands(run).items():
        assert oneshui(*words)[0] == 0, name
    assert {crafted.area for crafted in RUNS} == set(AREAS)
    assert len(RUNS) > 1000


def test_predictions_that_are_not_finite_are_not_printed(oneshui: Oneshui, valid: Path, folder: Path) -> None:
    run = shutil.copytree(valid, folder / "run")
    next(crafted for crafted in RUNS if crafted.name == "model.safetensors has values that overflow").corrupt(run)
    for name in ("predict", "evaluate"):
        code, out, err = oneshui(*commands(run)[name])
        assert (code, out) == (1, ""), name
        assert "Error: The model's predictions are NaN or infinite, so nothing can be computed from them" in err, name


def test_generator_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    def damaged(seed: int) -> list[str]:
        found = []
        for crafted in crafted_runs(seed)[-6:]:
            folder = tmp_path / f"{crafted.name}-{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            for name in ("config.json", "preprocessor_config.json", "oneshui.json", "metrics.json", "curves.json", "split.json"):
                (folder / name).write_text(json.dumps({"a": {"b": [1, 2]}, "c": "x"}))
            crafted.corrupt(folder)
            found.append(json.dumps({file.name: file.read_text() for file in sorted(folder.rglob("*.json"))}))
        return found

    assert damaged(0) == damaged(0)
    assert damaged(0) != damaged(1)

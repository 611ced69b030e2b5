"""Several real processes (gloo) give the same results as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import oneshui_hf
from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.models.load import save_model
from oneshui_hf.runs import Run, read_json
from support import exact_head_pipeline
from support.architectures import classifier

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "support" / "two_processes.py"


def launch(processes: int, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a script or module under torchrun with one thread per process, so that only the number of processes differs."""
    env = os.environ | {"ACCELERATE_USE_CPU": "1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    # The bare -- keeps torchrun from reading our --run as its own --run-path.
    module, script = (["-m"], list(words[1:])) if words[0] == "-m" else ([], list(words))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *module, "--"]
    command = [*torchrun, *map(str, script)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "original"
    oneshui_hf.train(dataset="synthetic", forget=2, epochs=3, optimizer="adamw", output_dir=str(folder), keep="last")
    return folder


def test_evaluation_gives_the_same_bytes(trained: Path) -> None:
    results = []
    for processes in (1, 2):
        for file in (*(trained / "predictions").glob("*"), trained / "metrics.json", trained / "curves.json"):
            file.unlink(missing_ok=True)
        done = launch(processes, "-m", "oneshui_hf", "evaluate", "--run", trained, "--attacks", "all", "--json")
        assert json.loads(done.stdout) == read_json(trained / "metrics.json")  # only one process prints
        results.append([(file.name, file.read_bytes()) for file in sorted((trained / "predictions").glob("*"))])
        results[-1] += [(name, (trained / name).read_bytes()) for name in ("metrics.json", "curves.json")]
    sets = ("forget-view1", "forget", "retain", "support", "test-view1", "test", "val")
    assert [name for name, _ in results[0]] == [*(f"{name}.safetensors" for name in sets), "metrics.json", "curves.json"]
    assert results[0] == results[1]


def test_energies_in_the_weight_difference_have_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    run = oneshui_hf.unlearn(trained, method="jit", from_split=True, copies=3, lr=0.02, output_dir=str(tmp_path / "jit"))
    results = []
    for processes in (1, 2):
        for file in (*(run.path / "predictions").glob("*"), run.path / "metrics.json"):
            file.unlink(missing_ok=True)
        launch(processes, "-m", "oneshui_hf", "evaluate", "--run", run.path, "--json")
        results.append([(run.path / name).read_bytes() for name in ("predictions/weight-difference.safetensors", "metrics.json")])
    assert results[0] == results[1]


def test_the_meta_gradient_is_the_same(trained: Path, tmp_path: Path) -> None:
    for processes in (1, 2):
        launch(processes, SCRIPT, trained, tmp_path / f"{processes}.safetensors")
    with safe_open(tmp_path / "2.safetensors", "pt") as file:
        assert file.metadata()["processes"] == "2"
    one, two = (load_file(tmp_path / f"{n}.safetensors") for n in (1, 2))
    flat_one, flat_two = (torch.cat([part.flatten() for part in parts.values()]) for parts in (one, two))
    assert flat_one.norm() > 0
    assert (flat_one - flat_two).norm() / flat_one.norm() < 1e-5


def test_tuning_gives_the_same_preset(trained: Path, tmp_path: Path) -> None:
    words = ["-m", "oneshui_hf", "tune", "--run", trained, "--method", "gradient-ascent", "--calibration", 1, "--trials", 3]
    for processes in (1, 2):
        launch(processes, *words, "--requests", 1, "--output", tmp_path / f"{processes}.json")
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()


def test_training_splits_the_batch(tmp_path: Path) -> None:
    words = ["-m", "oneshui_hf", "train", "--dataset", "synthetic", "--forget", "2", "--epochs", "2", "--augment", "none", "--keep", "last"]
    words += ["--lr", "0.05"]
    launch(1, *words, "--batch-size", 32, "--output-dir", tmp_path / "one")
    done = launch(2, *words, "--batch-size", 16, "--output-dir", tmp_path / "two")
    assert "find_unused_parameters" not in done.stderr
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    change = max((one[name] - load_initial_weights(tmp_path / "one")[name]).abs().max().item() for name in one)
    assert change > 1e-2
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-4


@pytest.mark.parametrize("family", ["dinov2", "resnet"])
def test_unused_parameters_and_steps_with_one_photo_are_trained_without_a_warning(tmp_path: Path, family: str) -> None:
    save_model(classifier(family, "multi_label"), Preprocess(32), tmp_path / "checkpoint")
    words = ["-m", "oneshui_hf", "train", "--dataset", "synthetic", "--forget", "2", "--epochs", "1", "--keep", "last"]
    size, batch = (32, 32) if family == "dinov2" else (16, 1)
    words += ["--model", str(tmp_path / "checkpoint"), "--image-size", str(size), "--batch-size", str(batch)]
    done = launch(2, *words, "--output-dir", tmp_path / "run")
    assert "find_unused_parameters" not in done.stderr
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "run" / "model.safetensors").values())


def test_sharded_training_splits_the_batch(tmp_path: Path) -> None:
    words = ["-m", "oneshui_hf", "train", "--dataset", "synthetic", "--forget", "2", "--epochs", "1", "--augment", "none", "--keep", "last"]
    words += ["--lr", "0.05", "--sharded", "2"]
    launch(1, *words, "--batch-size", 32, "--output-dir", tmp_path / "one")
    launch(2, *words, "--batch-size", 16, "--output-dir", tmp_path / "two")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert max(tensor.abs().max().item() for name, tensor in one.items() if name.endswith(".up")) > 1e-3  # its initial value is zero
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-4


def load_initial_weights(run: Path) -> dict[str, torch.Tensor]:
    """Return the initial weights of a run, under the names of a checkpoint."""
    import tempfile

    from oneshui_hf.data.schema import Task
    from oneshui_hf.models.load import save_model
    from oneshui_hf.models.new import new_model

    record = Run.open(run).record
    model, preprocess = new_model("tiny", Task("multi_label", tuple(record.dataset["labels"])), 32, record.seed)
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, preprocess, Path(folder))
        return load_file(Path(folder) / "model.safetensors")


def test_preparation_and_unlearning_run_on_two_processes(trained: Path, tmp_path: Path) -> None:
    launch(2, "-m", "oneshui_hf", "prepare", "--run", trained, "--steps", 2, "--calibration", 1)
    report = read_json(trained / "methods" / "metaunlearn" / "artefact.json")["report"]
    assert report["processes"] == 2
    launch(2, "-m", "oneshui_hf", "unlearn", "--run", trained, "--from-split", "--output-dir", tmp_path / "unlearned")
    assert Run.open(tmp_path / "unlearned").record.kind == "unlearned"


def test_accelerate_launch_runs_the_command(tmp_path: Path) -> None:
    words = ["-m", "oneshui_hf", "train", "--dataset", "synthetic", "--epochs", "1", "--output-dir", str(tmp_path / "run"), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(("model", "kind"), [("tiny", "multi_label"), ("dinov2", "multi_label"), ("convnext", "single_label")])
def test_head_in_closed_form_has_the_same_bytes(photo_folder: Callable[..., Path], tmp_path: Path, model: str, kind: str) -> None:
    photos = photo_folder(people=20, photos=4)
    if kind == "single_label":
        files = sorted(file.relative_to(photos) for file in photos.rglob("*.png"))
        rows = [f"{file},{file.parent},{('child', 'adult', 'old')[number % 3]}" for number, file in enumerate(files)]
        (photos / "metadata.csv").write_text("\n".join(("file_name,identity,age", *rows)) + "\n")
    if model != "tiny":
        save_model(classifier(model, kind, labels=3), Preprocess(32), tmp_path / model)
    name = model if model == "tiny" else str(tmp_path / model)
    found = []
    for processes in (1, 2):
        run = tmp_path / str(processes)
        recipe = {"dataset": str(photos), "model": name, "forget": 2, "output_dir": str(run)}
        if processes == 1:
            exact_head_pipeline.main(recipe)
        else:
            launch(processes, exact_head_pipeline.__file__, json.dumps(recipe))
        found.append([file.read_bytes() for file in (run / "model.safetensors", run / "methods" / "exact-head" / "artefact.safetensors")])
        oracle, unlearned = (Path(f"{run}-{method}") for method in ("oracle", "exact-head"))
        assert (unlearned / "model.safetensors").read_bytes() == (oracle / "model.safetensors").read_bytes() != found[-1][0]
        found[-1].append((unlearned / "model.safetensors").read_bytes())
    assert found[0] == found[1]


def test_fold_models_are_trained_by_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = []
    for processes, batch in ((1, 16), (2, 8)):  # the same global batch
        run, cache = tmp_path / str(processes), tmp_path / f"cache{processes}"
        monkeypatch.setenv("ONESHUI_CACHE", str(cache))
        recipe = {"dataset": "synthetic", "forget": 2, "epochs": 1, "augment": "none", "keep": "last", "batch_size": batch}
        oneshui_hf.train(**recipe, output_dir=str(run))
        few = ["--folds", 2, "--repeats", 1, "--steps-per-identity", 1, "--face-encoder", "none"]
        launch(processes, "-m", "oneshui_hf", "prepare", "--run", run, "--method", "forget-keys", *few)
        keys = {file.stem: read_json(file)["made_from"] for file in cache.glob("fold-*.json")}
        assert {key["processes"] for key in keys.values()} == {processes}
        models.append({tuple(key["left_out"]): load_file(cache / name / "model.safetensors") for name, key in keys.items()})
    one, two = models
    assert one.keys() == two.keys() and len(one) == 2
    for fold, weights in one.items():
        assert max((weights[name] - two[fold][name]).abs().max().item() for name in weights) < 1e-4


DIVIDED = Path(__file__).parents[1] / "support" / "divided_training.py"


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_training_in_two_processes_continues_after_a_signal_to_the_same_bytes(tmp_path: Path, kind: str) -> None:
    recipe = {"dataset": "synthetic", "forget": 2, "epochs": 2, "optimizer": "adamw", "augment": "crop", "batch_size": 8}

    def train(name: str, *step: int, **more: object) -> Run:
        launch(2, DIVIDED, kind, json.dumps({**recipe, **more, "output_dir": str(tmp_path / name)}), *step)
        return Run.open(tmp_path / name)

    whole = train("whole")
    stopped = train("stopped", 2, save_steps=2)
    assert stopped.record.state == "training"
    assert sorted(folder.name for folder in stopped.path.glob("checkpoint-*")) == ["checkpoint-0-2", "checkpoint-0-4"]
    resumed = train("stopped", resume=True)
    assert resumed.weights == whole.weights
    assert resumed.record.report == whole.record.report
    if kind == "ddp":
        return
    one = oneshui_hf.train(**recipe | {"batch_size": 16, "augment": "none", "keep": "last"}, output_dir=str(tmp_path / "one"))
    two = train("two", augment="none", keep="last")
    first, second = (load_file(run.path / "model.safetensors") for run in (one, two))
    assert first.keys() == second.keys()
    assert max((first[name] - second[name]).abs().max().item() for name in first) < 1e-4


def test_micro_batches_and_processes_give_the_same_weights(tmp_path: Path) -> None:
    words = ["-m", "oneshui_hf", "train", "--dataset", "synthetic", "--forget", "2", "--epochs", "1", "--augment", "none", "--keep", "last"]
    launch(1, *words, "--batch-size", 24, "--output-dir", tmp_path / "one")
    launch(2, *words, "--batch-size", 3, "--gradient-accumulation-steps", 4, "--output-dir", tmp_path / "two")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-6

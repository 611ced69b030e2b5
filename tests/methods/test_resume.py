"""Interrupted preparations: what is saved, when it is loaded, and that the result is the same as without an interruption."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

import oneshui_hf
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import Artefact, ResumeState
from oneshui_hf.methods import resume as module
from oneshui_hf.reporting import SILENT, Reporter
from oneshui_hf.runs import Run
from support.commands import Oneshui, sentence
from support.tensors import equal

T = TypeVar("T")
METHOD = "forget-keys"
FAST: dict[str, Any] = {
    **{"method": METHOD, "steps_per_identity": 3, "rank": 1, "identities_per_step": 2, "target_fraction": 0.3, "cohort_size": 4},
    **{"targets": "quantile", "face_encoder": "none"},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    from support.faces import LABELS, bits, portrait

    folder = tmp_path_factory.mktemp("photos")
    lines = [",".join(("file_name", "identity", *LABELS))]
    for person in range(12):
        for photo in range(3):
            portrait(person, photo).save(folder / f"{person:02d}-{photo}.png")
            lines.append(f"{person:02d}-{photo}.png,p{person:02d},{','.join(map(str, bits(person, photo, len(LABELS))))}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return oneshui_hf.train(
        dataset=str(folder), model="tiny", forget=2, epochs=1, output_dir=str(tmp_path_factory.mktemp("runs") / "original")
    )


@pytest.fixture
def run(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy of the run; the state is saved after every step."""
    monkeypatch.setenv("ONESHUI_VAULT", str(tmp_path / "vault"))
    monkeypatch.setattr(module, "SAVE_INTERVAL", 0.0)
    return Run.open(shutil.copytree(trained.path, tmp_path / "run"))


@pytest.fixture(scope="module")
def uninterrupted(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What a preparation without an interruption gives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONESHUI_VAULT", str(tmp_path_factory.mktemp("vault")))
        copy = Run.open(shutil.copytree(trained.path, tmp_path_factory.mktemp("uninterrupted") / "run"))
        oneshui_hf.prepare(copy, **FAST)
        return load_people_tensors(copy)


class InterruptingReporter(Reporter):
    """Presses Ctrl-C after some training steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        for number, item in enumerate(items):
            if label == "Training the keys" and number == self.after:
                raise KeyboardInterrupt
            yield item


class CountingReporter(Reporter):
    def __init__(self) -> None:
        self.steps = 0

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        for item in items:
            self.steps += label == "Training the keys"
            yield item


def load_people_tensors(run: Run) -> dict[str, torch.Tensor]:
    return people_tensors(Artefact.load(run.artefact(METHOD), METHOD, run.weights))


def people_tensors(artefact: Artefact) -> dict[str, torch.Tensor]:
    """Return the per-identity tensors, decrypted."""
    return {f"{person}/{name}": part for person, parts in artefact.people.items() for name, part in parts.items()}


def state_folder(run: Run) -> Path:
    return run.path / "methods" / f".{METHOD}.unfinished"


def interrupt(run: Run, after: int = 7, **more: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        oneshui_hf.prepare(run, **FAST | more, reporter=InterruptingReporter(after))


def test_interrupted_and_resumed_preparation_gives_same_result(run: Run, uninterrupted: dict[str, torch.Tensor]) -> None:
    interrupt(run)
    assert state_folder(run).is_dir()
    assert state_folder(run).stat().st_mode & 0o077 == 0
    assert not run.artefact(METHOD).exists()
    with pytest.raises(UsageError, match=r"was interrupted; continue with --resume, or start again with --overwrite"):
        oneshui_hf.prepare(run, **FAST)
    resumed = CountingReporter()
    oneshui_hf.prepare(run, **FAST, resume=True, reporter=resumed)
    assert equal(load_people_tensors(run), uninterrupted)
    restarted = CountingReporter()
    oneshui_hf.prepare(run, **FAST, overwrite=True, reporter=restarted)
    assert resumed.steps == restarted.steps - 7
    assert [path.name for path in (run.path / "methods").iterdir()] == [METHOD]


@pytest.mark.slow
def test_preparation_that_was_interrupted_while_it_trained_fold_models_continues_with_them(run: Run, tmp_path: Path) -> None:
    options = FAST | {"targets": "cross-fit", "folds": 2, "repeats": 1, "steps_per_identity": 1}

    class Interrupting(Reporter):
        def info(self, message: str) -> None:
            trained.append(message)
            if len(trained) == limit and message.startswith("Training a fold model"):
                raise KeyboardInterrupt

    trained: list[str] = []
    limit = 3  # "Training a fold model", the loss of its epoch, and the next one
    with pytest.raises(KeyboardInterrupt):
        oneshui_hf.prepare(run, **options, cache_dir=str(tmp_path / "cache"), reporter=Interrupting())
    assert not state_folder(run).exists() and not run.artefact(METHOD).exists()
    trained, limit = [], 0
    oneshui_hf.prepare(run, **options, cache_dir=str(tmp_path / "cache"), reporter=Interrupting())
    assert [message for message in trained if message.startswith("Training")] == ["Training a fold model on 4 of 7 identities."]
    interrupted = load_people_tensors(run)
    oneshui_hf.prepare(run, **options, overwrite=True, cache_dir=str(tmp_path / "other"))
    assert equal(load_people_tensors(run), interrupted)
    assert {path.name.partition("-")[0] for path in (tmp_path / "cache").glob("*-*/")} == {"fold"}


def test_resume_without_an_interrupted_preparation_is_refused(run: Run, oneshui: Oneshui) -> None:
    code, _, err = oneshui("prepare", "--run", run.path, "--method", METHOD, "--resume")
    assert (code, "There is no interrupted preparation" in sentence(err)) == (2, True)
    oneshui_hf.prepare(run, **FAST)
    with pytest.raises(UsageError, match="There is no interrupted preparation"):
        oneshui_hf.prepare(run, **FAST, resume=True)


def test_preparation_with_other_options_is_not_resumed(run: Run, uninterrupted: dict[str, torch.Tensor]) -> None:
    interrupt(run, seed=1)
    for change in ({}, {"seed": 1, "steps_per_identity": 4}):
        with pytest.raises(OneshuiError, match="interrupted with other options"):
            oneshui_hf.prepare(run, **FAST | change, resume=True)
    oneshui_hf.prepare(run, **FAST, dry_run=True)
    assert state_folder(run).is_dir()
    oneshui_hf.prepare(run, **FAST, overwrite=True)
    assert equal(load_people_tensors(run), uninterrupted)
    assert not state_folder(run).exists()


def test_resumed_preparation_replaces_an_existing_artefact(run: Run, uninterrupted: dict[str, torch.Tensor]) -> None:
    oneshui_hf.prepare(run, **FAST | {"steps_per_identity": 1})
    before = load_people_tensors(run)
    interrupt(run, overwrite=True)
    assert equal(load_people_tensors(run), before)
    oneshui_hf.prepare(run, **FAST, resume=True)
    assert equal(load_people_tensors(run), uninterrupted)


def test_resume_state_is_not_published(run: Run, tmp_path: Path) -> None:
    from oneshui_hf.stages.publishing.model import PATTERNS, collect_public_files, is_published_file

    interrupt(run)
    collect_public_files(run, tmp_path / "public")
    assert not any("unfinished" in path.name for path in (tmp_path / "public").rglob("*"))
    assert not any("unfinished" in pattern for pattern in PATTERNS)
    assert not is_published_file(f"methods/.{METHOD}.unfinished/{module.FILE}")


def test_main_process_saves_and_all_processes_load(tmp_path: Path) -> None:
    main, other = (ResumeState(tmp_path / "state", {"sizes": (1, 2)}, saves=saves) for saves in (True, False))
    other.save({"a": torch.zeros(2)}, {"n": 1})
    assert not main.exists
    main.save({"a": torch.arange(2)}, {"n": 1})
    for process in (main, other):
        loaded = process.load()
        assert loaded is not None
        assert torch.equal(loaded[0]["a"], torch.arange(2))
        assert loaded[1] == {"n": 1}
    other.delete()
    assert main.exists
    (tmp_path / "state" / ".unfinished.safetensors.x").write_text("of a killed process")
    main.delete()
    assert not (tmp_path / "state").exists()


def test_state_is_private_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state, file = ResumeState(tmp_path / "state", {"seed": 1}), tmp_path / "state" / module.FILE
    former = os.umask(0o002)
    try:
        state.save({"a": torch.arange(2.0), "b": torch.ones(1).half()}, {"history": [1.0, float("nan")]})
    finally:
        os.umask(former)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    loaded = state.load()
    assert loaded is not None
    tensors = load_file(file)
    values = tensors["values"].numpy().tobytes()
    for change in (
        {"tensor/a": -tensors["tensor/a"]},
        {"tensor/c": torch.zeros(1)},
        {"values": torch.frombuffer(bytearray(values.replace(b"1.0", b"2.0")), dtype=torch.uint8)},
        {"values": torch.frombuffer(bytearray(b"[" * 100_000), dtype=torch.uint8)},
        {"values": torch.zeros(3)},
    ):
        save_file(tensors | change, file)
        with pytest.raises(OneshuiError, match=r"state is damaged \([^\n]*\); start again with --overwrite\.$"):
            state.load()


def test_model_cache_resumes_a_preparation_and_clears_leftover_states(
    run: Run, tmp_path: Path, uninterrupted: dict[str, torch.Tensor]
) -> None:
    import dataclasses

    from oneshui_hf.cache import Cache
    from oneshui_hf.stages.distributed import make_accelerator
    from oneshui_hf.stages.evaluation.model_cache import ModelCache, vault_folder

    cache, values = Cache(tmp_path / "cache"), {name: value for name, value in FAST.items() if name not in ("method", "face_encoder")}
    model_cache = ModelCache(cache, make_accelerator(), InterruptingReporter(7))
    with pytest.raises(KeyboardInterrupt):
        model_cache.unlearned(run, METHOD, values, 0)
    counting = CountingReporter()
    found = dataclasses.replace(model_cache, reporter=counting).unlearned(run, METHOD, values, 0)
    assert found.artefact is not None
    stored = Artefact.load(found.artefact, METHOD, run.weights, vault=vault_folder(found.artefact))
    assert equal(people_tensors(stored), uninterrupted)
    with pytest.raises(KeyboardInterrupt):
        model_cache.unlearned(run, METHOD, values, 1)
    assert [path.name for path in cache.root.rglob(module.FILE)]
    cache.clear()
    assert not list(cache.root.rglob(module.FILE))
    assert dataclasses.replace(model_cache, reporter=SILENT).cache.entries() == []


KILLED = """
import sys, time
import oneshui_hf
from oneshui_hf.methods import resume
resume.SAVE_INTERVAL = 0.0
class Slow(oneshui_hf.reporting.Reporter):
    def track(self, items, label, total=None):
        for item in items:
            time.sleep(0.2 if label == "Training the keys" else 0)
            yield item
oneshui_hf.prepare(sys.argv[1], **eval(sys.argv[2]), reporter=Slow())
"""


@pytest.mark.slow
def test_killed_and_resumed_preparation_gives_same_result(run: Run, uninterrupted: dict[str, torch.Tensor]) -> None:
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums of another number of threads differ in the last digits
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(run.path), repr(FAST)], env=os.environ | threads)
    try:
        deadline = time.monotonic() + 240
        while not (state_folder(run) / module.FILE).exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not run.artefact(METHOD).exists()
    oneshui_hf.prepare(run, **FAST, resume=True)
    assert equal(load_people_tensors(run), uninterrupted)
    assert not state_folder(run).exists()


# A process that a shell started in the background ignores Ctrl-C, and so would its children.
STOPPED = KILLED.replace(
    "resume.SAVE_INTERVAL = 0.0\n", "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
).replace("            time.sleep(0.2", "            print(label, flush=True)\n            time.sleep(0.2")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_preparation_saves_its_state_before_it_ends(
    run: Run, uninterrupted: dict[str, torch.Tensor], number: signal.Signals
) -> None:
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", STOPPED, str(run.path), repr(FAST)]
    with subprocess.Popen(command, env=os.environ | threads, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "Training the keys\n":  # the first step begins; less than a minute has passed, so nothing is saved yet
                process.send_signal(number)
                break
        process.stdout.read()
    assert process.returncode != 0
    assert ResumeState(state_folder(run)).exists
    assert not run.artefact(METHOD).exists()
    resumed = CountingReporter()
    oneshui_hf.prepare(run, **FAST, resume=True, reporter=resumed)
    assert equal(load_people_tensors(run), uninterrupted)

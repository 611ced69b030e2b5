"""A preparation that was interrupted: what is remembered, who may go on with it, and that it ends as if nothing had been."""

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
from oneshui_hf.methods import Artefact, Unfinished
from oneshui_hf.methods import resume as module
from oneshui_hf.reporting import SILENT, Reporter
from oneshui_hf.runs import Run
from support.commands import Oneshui, sentence

T = TypeVar("T")
METHOD = "forget-keys"
FAST: dict[str, Any] = {"method": METHOD, "visits": 3, "rank": 1, "together": 2, "share": 0.3, "cohort": 4, "face_encoder": "none"}


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
    """A copy of the run, and state that is saved after every step."""
    monkeypatch.setenv("ONESHUI_VAULT", str(tmp_path / "vault"))
    monkeypatch.setattr(module, "EVERY", 0.0)
    return Run.open(shutil.copytree(trained.path, tmp_path / "run"))


@pytest.fixture(scope="module")
def whole(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What is prepared without an interruption."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONESHUI_VAULT", str(tmp_path_factory.mktemp("vault")))
        copy = Run.open(shutil.copytree(trained.path, tmp_path_factory.mktemp("whole") / "run"))
        oneshui_hf.prepare(copy, **FAST)
        return plain(copy)


class Stopping(Reporter):
    """Presses Ctrl-C after some steps of learning."""

    def __init__(self, after: int) -> None:
        self.after, self.left = after, -1

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        for number, item in enumerate(items):
            if label == "Learning the keys" and number == self.after:
                raise KeyboardInterrupt
            yield item


class Counting(Reporter):
    def __init__(self) -> None:
        self.steps = 0

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        for item in items:
            self.steps += label == "Learning the keys"
            yield item


def plain(run: Run) -> dict[str, torch.Tensor]:
    """Return what was prepared for people, decrypted."""
    found = Artefact.load(run.artefact(METHOD), METHOD, run.weights)
    return {f"{person}/{name}": part for person, parts in found.people.items() for name, part in parts.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def state(run: Run) -> Path:
    return run.path / "methods" / f".{METHOD}.unfinished"


def interrupt(run: Run, after: int = 7, **more: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        oneshui_hf.prepare(run, **FAST | more, reporter=Stopping(after))


def test_ctrl_c_and_resume_give_the_same(run: Run, whole: dict[str, torch.Tensor]) -> None:
    interrupt(run)
    assert state(run).is_dir()
    assert state(run).stat().st_mode & 0o077 == 0
    assert not run.artefact(METHOD).exists()
    with pytest.raises(UsageError, match=r"was interrupted; go on with --resume, or start anew with --overwrite"):
        oneshui_hf.prepare(run, **FAST)
    counting = Counting()
    oneshui_hf.prepare(run, **FAST, resume=True, reporter=counting)
    assert same(plain(run), whole)
    fresh = Counting()
    oneshui_hf.prepare(run, **FAST, overwrite=True, reporter=fresh)
    assert counting.steps == fresh.steps - 7
    assert [path.name for path in (run.path / "methods").iterdir()] == [METHOD]


def test_there_is_nothing_to_go_on_with(run: Run, oneshui: Oneshui) -> None:
    code, _, err = oneshui("prepare", "--run", run.path, "--method", METHOD, "--resume")
    assert (code, "There is no interrupted preparation" in sentence(err)) == (2, True)
    oneshui_hf.prepare(run, **FAST)
    with pytest.raises(UsageError, match="There is no interrupted preparation"):
        oneshui_hf.prepare(run, **FAST, resume=True)


def test_another_preparation_is_not_gone_on_with(run: Run, whole: dict[str, torch.Tensor]) -> None:
    interrupt(run, seed=1)
    for change in ({}, {"seed": 1, "visits": 4}):
        with pytest.raises(OneshuiError, match="interrupted with other options"):
            oneshui_hf.prepare(run, **FAST | change, resume=True)
    oneshui_hf.prepare(run, **FAST, dry_run=True)
    assert state(run).is_dir()
    oneshui_hf.prepare(run, **FAST, overwrite=True)
    assert same(plain(run), whole)
    assert not state(run).exists()


def test_what_was_to_replace_an_artefact_still_does(run: Run, whole: dict[str, torch.Tensor]) -> None:
    oneshui_hf.prepare(run, **FAST | {"visits": 1})
    before = plain(run)
    interrupt(run, overwrite=True)
    assert same(plain(run), before)
    oneshui_hf.prepare(run, **FAST, resume=True)
    assert same(plain(run), whole)


def test_it_is_no_artefact_and_is_not_published(run: Run, tmp_path: Path) -> None:
    from oneshui_hf.stages.publishing.model import PATTERNS, _ours, stage

    interrupt(run)
    stage(run, tmp_path / "public")
    assert not any("unfinished" in path.name for path in (tmp_path / "public").rglob("*"))
    assert not any("unfinished" in pattern for pattern in PATTERNS)
    assert not _ours(f"methods/.{METHOD}.unfinished/{module.FILE}")


def test_one_process_saves_and_all_load(tmp_path: Path) -> None:
    main, other = (Unfinished(tmp_path / "state", {"sizes": (1, 2)}, saves=saves) for saves in (True, False))
    other.save({"a": torch.zeros(2)}, {"n": 1})
    assert not main.is_there
    main.save({"a": torch.arange(2)}, {"n": 1})
    for one in (main, other):
        found = one.load()
        assert found is not None
        assert torch.equal(found[0]["a"], torch.arange(2))
        assert found[1] == {"n": 1}
    other.forget()
    assert main.is_there
    (tmp_path / "state" / ".unfinished.safetensors.x").write_text("of a killed process")
    main.forget()
    assert not (tmp_path / "state").exists()


def test_the_cache_goes_on_where_it_was_stopped_and_clears_what_is_left(run: Run, tmp_path: Path, whole: dict[str, torch.Tensor]) -> None:
    import dataclasses

    from oneshui_hf.cache import Cache
    from oneshui_hf.stages.distributed import make_accelerator
    from oneshui_hf.stages.evaluation.model_cache import Stock, _vault

    cache, values = Cache(tmp_path / "cache"), {name: value for name, value in FAST.items() if name not in ("method", "face_encoder")}
    stock = Stock(cache, make_accelerator(), Stopping(7))
    with pytest.raises(KeyboardInterrupt):
        stock.forget(run, METHOD, values, 0)
    counting = Counting()
    found = dataclasses.replace(stock, reporter=counting).forget(run, METHOD, values, 0)
    assert found.artefact is not None
    stored = Artefact.load(found.artefact, METHOD, run.weights, vault=_vault(found.artefact))
    assert same({f"{person}/{name}": part for person, parts in stored.people.items() for name, part in parts.items()}, whole)
    with pytest.raises(KeyboardInterrupt):
        stock.forget(run, METHOD, values, 1)
    assert [path.name for path in cache.root.rglob(module.FILE)]
    cache.clear()
    assert not list(cache.root.rglob(module.FILE))
    assert dataclasses.replace(stock, reporter=SILENT).cache.entries() == []


KILLED = """
import sys, time
import oneshui_hf
from oneshui_hf.methods import unfinished
unfinished.EVERY = 0.0
class Slow(oneshui_hf.reporting.Reporter):
    def track(self, items, label, total=None):
        for item in items:
            time.sleep(0.2 if label == "Learning the keys" else 0)
            yield item
oneshui_hf.prepare(sys.argv[1], **eval(sys.argv[2]), reporter=Slow())
"""


@pytest.mark.slow
def test_killed_and_resumed_it_is_the_same(run: Run, whole: dict[str, torch.Tensor]) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(run.path), repr(FAST)], env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        end = time.monotonic() + 240
        while not (state(run) / module.FILE).exists():
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        time.sleep(1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not run.artefact(METHOD).exists()
    oneshui_hf.prepare(run, **FAST, resume=True)
    assert same(plain(run), whole)
    assert not state(run).exists()

"""What a resume state consists of: parts, the state before the latest, units of work, and signals."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from oneshui_hf.data.schema import Task
from oneshui_hf.errors import OneshuiError
from oneshui_hf.methods import Artefact, Context, ResumeState, add_up
from oneshui_hf.methods import resume as module
from oneshui_hf.stages.distributed import make_accelerator
from support.commands import Oneshui, sentence
from support.recording_reporter import RecordingReporter
from support.tensors import equal


def cut(file: Path) -> None:
    """Cut a file in half, as a power failure may."""
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)


def test_a_damaged_state_falls_back_to_the_one_before(tmp_path: Path) -> None:
    reporter = RecordingReporter()
    state = ResumeState(tmp_path / "state", {"seed": 1}, reporter=reporter)
    for number in range(3):
        state.save({"a": torch.full((2,), float(number))}, {"n": number})
    found = state.load()
    assert found is not None and found[1] == {"n": 2}
    assert not reporter.warnings
    cut(tmp_path / "state" / module.FILE)
    for _ in range(2):
        found = state.load()
        assert found is not None
        assert found[1] == {"n": 1}
        assert torch.equal(found[0]["a"], torch.ones(2))
    assert len(reporter.warnings) == 1
    assert reporter.warnings[0].startswith(f"{tmp_path / 'state'} is damaged (")
    assert reporter.warnings[0].endswith("); continuing from the state that was saved before.")
    cut(tmp_path / "state" / "unfinished.before.safetensors")
    with pytest.raises(OneshuiError, match=r"state is damaged \([^\n]*\); start again with --overwrite\.$"):
        state.load()


def test_a_state_that_was_killed_between_its_two_files_is_loaded(tmp_path: Path) -> None:
    state = ResumeState(tmp_path / "state")
    state.save({}, {"n": 0})
    (tmp_path / "state" / module.FILE).rename(tmp_path / "state" / "unfinished.before.safetensors")
    assert state.exists
    assert state.load() == ({}, {"n": 0})


def test_parts_are_apart_and_deleted_together(tmp_path: Path) -> None:
    state = ResumeState(tmp_path / "state", {"seed": 1})
    first, second = state.part("first"), state.part("second")
    assert not state.exists
    first.save({}, {"n": 1})
    assert state.exists
    assert (state.load(), first.load(), second.load()) == (None, ({}, {"n": 1}), None)
    with pytest.raises(OneshuiError, match="interrupted with other options"):
        ResumeState(tmp_path / "state", {"seed": 2}).part("first").load()
    state.delete()
    assert first.load() is None


def test_units_of_work_between_two_saves(tmp_path: Path) -> None:
    state = ResumeState(tmp_path / "state", every=3)
    saved = []
    for number in range(1, 8):
        if state.should_save():
            state.save({}, {"n": number})
            saved.append(number)
    assert saved == [3, 6]
    assert not any(ResumeState(None, every=1).should_save() for _ in range(3))
    assert not any(ResumeState(tmp_path / "state", every=1, saves=False).should_save() for _ in range(3))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_answered_after_the_unit_of_work_and_the_save(tmp_path: Path, number: signal.Signals) -> None:
    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(number, interrupt)
    state, finished = ResumeState(tmp_path / "state"), []
    try:
        with pytest.raises(KeyboardInterrupt), state.stoppable():
            for unit in range(5):
                if unit == 2:
                    os.kill(os.getpid(), number)
                finished.append(unit)
                if state.should_save():
                    state.save({}, {"finished": finished})
        assert signal.getsignal(number) is interrupt
    finally:
        signal.signal(number, before)
    assert state.load() == ({}, {"finished": [0, 1, 2]})


def test_without_a_folder_signals_act_as_usual() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with ResumeState().stoppable():
        assert signal.getsignal(signal.SIGTERM) is before


def test_an_artefact_is_the_same_after_a_state(tmp_path: Path) -> None:
    state = ResumeState(tmp_path / "state").part("artefact")
    assert Artefact.load_state(state) is None
    people = {"Zoë/1": {"key": torch.arange(3), "a/b": torch.ones(2).half()}, "Ada": {}, "Bob": {"key": torch.zeros(0)}}
    artefact = Artefact({"w": torch.ones(2, 2).T, "x/y": torch.tensor(7)}, {"v": [1.5]}, people, report={"n": 1}, private=True)
    artefact.save_state(state)
    found = Artefact.load_state(state)
    assert found is not None
    assert (found.values, found.report, found.private, list(found.people)) == ({"v": [1.5]}, {"n": 1}, True, list(people))
    assert equal(found.tensors, artefact.tensors)
    assert all(equal(found.people[name], people[name]) for name in people)


class StoppedError(Exception):
    """Stands for the end of the process."""


def add_chunks(folder: Path | None, every: int | None, stop_at: int | None) -> tuple[torch.Tensor, list[int]]:
    """Add up seven chunks of random numbers; return the sum and the chunks that were added."""
    context = Context(Task("multi_label", ("a",)), 0, make_accelerator(), resume_state=ResumeState(folder, every=every))
    total, added = torch.zeros(3), []

    def add(chunk: int) -> None:
        if chunk == stop_at:
            raise StoppedError
        total.add_(torch.randn(3, generator=torch.Generator().manual_seed(chunk)))
        added.append(chunk)

    add_up(context, "numbers", range(7), {"total": total}, add, "Adding")
    return total, added


def test_sums_continue_to_the_same_bytes(tmp_path: Path) -> None:
    expected, _ = add_chunks(None, None, None)
    with pytest.raises(StoppedError):
        add_chunks(tmp_path / "state", 2, stop_at=5)
    total, added = add_chunks(tmp_path / "state", 2, stop_at=None)
    assert added == [4, 5, 6]  # four were saved
    assert torch.equal(total, expected)


@pytest.mark.parametrize("command", ["prepare", "tune"])
def test_save_steps_must_be_positive(oneshui: Oneshui, command: str) -> None:
    code, _, err = oneshui(command, "--save-steps", 0)
    assert code == 2
    assert sentence(err) == f"Error: --save-steps of {command} must be at least 1, not 0."

"""What `accelerate config` sets, as `accelerate launch` passes it on: precision, accumulation, and ways to divide a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from oneshui_hf.errors import UsageError
from oneshui_hf.runs import Run
from oneshui_hf.stages.command_options import TrainOptions
from oneshui_hf.stages.distributed import check_divided_training, make_accelerator, with_launch_settings
from support.commands import Oneshui, sentence

PRECISION, STEPS = "ACCELERATE_MIXED_PRECISION", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        ({}, {}, (None, None, None)),
        ({}, {PRECISION: "no"}, (False, False, None)),
        ({}, {PRECISION: "bf16", STEPS: "4"}, (True, False, 4)),
        ({}, {PRECISION: "fp16", STEPS: "1"}, (False, True, None)),
        ({"fp16": False}, {PRECISION: "bf16"}, (True, False, None)),
        ({"fp16": False}, {PRECISION: "fp16"}, (None, False, None)),
        ({"gradient_accumulation_steps": 2}, {STEPS: "2"}, (None, None, 2)),
    ],
)
def test_open_options_are_those_of_accelerate(given: dict[str, Any], environment: dict[str, str], expected: tuple[Any, ...]) -> None:
    options, notes = with_launch_settings(TrainOptions(dataset="x", **given), environment)
    assert (options.bf16, options.fp16, options.gradient_accumulation_steps) == expected
    assert not notes


@pytest.mark.parametrize(
    ("given", "environment", "named"),
    [
        ({"bf16": True}, {PRECISION: "fp16"}, ("fp16", "bf16")),
        ({"bf16": False}, {PRECISION: "bf16"}, ("bf16", "no")),
        ({"fp16": True}, {PRECISION: "no"}, ("no", "fp16")),
        ({"gradient_accumulation_steps": 2}, {STEPS: "8"}, ("8", "2")),
    ],
)
def test_given_options_win_with_a_note(given: dict[str, Any], environment: dict[str, str], named: tuple[str, str]) -> None:
    before = TrainOptions(dataset="x", **given)
    options, [note] = with_launch_settings(before, environment)
    assert options == before
    first, second = note.split(";")
    assert f" {named[0]}" in first and f" {named[1]}" in second


@pytest.mark.parametrize(("variable", "value"), [(PRECISION, "fp8"), (STEPS, "x"), (STEPS, "0")])
def test_settings_that_training_does_not_have_are_refused(variable: str, value: str) -> None:
    with pytest.raises(UsageError, match=value):
        with_launch_settings(TrainOptions(dataset="x"), {variable: value})


def test_a_head_in_closed_form_is_computed_in_full_precision() -> None:
    options = TrainOptions(dataset="x", head="closed-form")
    assert with_launch_settings(options, {PRECISION: "bf16", STEPS: "4"}) == (options, [])


def test_settings_of_the_launch_become_part_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, oneshui: Oneshui) -> None:
    monkeypatch.setenv(PRECISION, "no")
    monkeypatch.setenv(STEPS, "2")
    words = ("train", "--dataset", "synthetic", "--epochs", 1, "--forget", 2, "--output-dir", tmp_path / "run")
    assert oneshui(*words)[0] == 0
    options = Run.open(tmp_path / "run").record.options
    assert (options["bf16"], options["gradient_accumulation_steps"]) == (False, 2)


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported"),
        ({"ACCELERATE_USE_MEGATRON_LM": "1"}, "Megatron-LM is not supported"),
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp_version: 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "fsdp_version: 2"),
        (FSDP, "on cpu; launch with plain data parallelism"),
    ],
)
def test_launches_that_divide_the_model_are_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, oneshui: Oneshui, environment: dict[str, str], named: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, out, err = oneshui("train", "--dataset", "synthetic", "--output-dir", tmp_path / "run")
    assert (code, out, named in sentence(err)) == (2, "", True)
    assert not list(tmp_path.iterdir())


def test_other_commands_than_training_refuse_a_divided_model(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="only train and retrain"):
        make_accelerator()


def test_a_divided_training_refuses_what_needs_the_whole_model() -> None:
    check_divided_training(TrainOptions(dataset="x", bf16=True))
    with pytest.raises(UsageError, match="float16"):
        check_divided_training(TrainOptions(dataset="x", fp16=True))
    with pytest.raises(UsageError, match="closed-form"):
        check_divided_training(TrainOptions(dataset="x", head="closed-form"))

"""What every unlearning method keeps to, each promise a test. Run by `pytest --oneshui-method NAME`; see the package."""

from __future__ import annotations

import copy
import dataclasses
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ..data.schema import TaskKind
from ..errors import OneshuiError, UsageError
from ..methods.artefact import Artefact
from ..methods.base import VOCABULARY, Method
from ..options import fields
from ..seeding import generator
from .subject import Checked, Spied, weights
from .toy_problem import SEED, World, world

LEAST_RISE = 1e-3  # nats by which the loss on the forget images, or on the photos handed in, must rise
TOLERANCE = 1e-5  # of sums that are added up in another order
SHARE = 0.01  # of a method's change, that rounding may make in what is learned


@pytest.fixture(scope="module", params=["multi_label", "single_label"])
def here(request: pytest.FixtureRequest, checked: Checked) -> World:
    kind: TaskKind = request.param
    return world(kind, checked.method.sharded)


@pytest.fixture(scope="module")
def checked(pytestconfig: pytest.Config) -> Checked:
    return Checked.load(pytestconfig.getoption("--oneshui-method"), pytestconfig.getoption("--oneshui-option"))


@pytest.fixture(scope="module")
def artefact(checked: Checked, here: World) -> Artefact | None:
    """What the method prepares; a method that refuses a kind of task is not checked on it."""
    try:
        return checked.prepare(here)
    except UsageError as refusal:
        pytest.skip(f"refused: {refusal}")


@pytest.fixture(scope="module")
def result(checked: Checked, here: World, artefact: Artefact | None) -> torch.nn.Module:
    try:
        return checked.apply(here, artefact)
    except UsageError as refusal:
        pytest.skip(f"refused: {refusal}")


def test_the_method_says_what_it_is(checked: Checked) -> None:
    method = checked.method
    assert issubclass(method, Method)
    assert all(isinstance(text, str) and text.strip() for text in (method.summary, method.paper)), "summary and paper are texts"
    assert method.prepares in ("never", "optional", "required")
    assert dataclasses.is_dataclass(method.options), "options are a dataclass"
    assert vars(method.options)["__dataclass_params__"].frozen, "options are frozen"
    for name, field in fields(method.options).items():
        assert field.metadata.get("help"), f"option {name} has no help; make it with option(...)"
        assert field.default is not dataclasses.MISSING, f"option {name} has no default"
    method.prepare_options("checked", {}, {})  # the defaults lie within their own ranges
    for preset in method.all_presets():
        method.prepare_options("checked", method.preset(preset, "celeba", 5), {})


def test_an_unknown_option_is_refused(checked: Checked) -> None:
    with pytest.raises(UsageError):
        checked.method.prepare_options("checked", {}, {"no_such_option": 1})
    with pytest.raises(UsageError):
        checked.method.apply_options("checked", {}, {"no_such_option": 1})


def test_the_model_handed_in_stays_as_it_is(checked: Checked, here: World, artefact: Artefact | None) -> None:
    model = copy.deepcopy(here.model)
    before, mode = weights(model), model.training
    asks = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    checked.prepare(here, model=model)
    new = checked.apply(here, artefact, model=model)
    assert new is not model, "apply returns a new model"
    assert same(weights(model), before), "the weights of the model handed in were changed"
    assert model.training == mode, "the model handed in was left in another mode"
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == asks
    assert all(parameter.grad is None for parameter in model.parameters()), "gradients were left on the model handed in"
    mine = {parameter.data_ptr() for parameter in model.parameters()}
    assert not mine & {parameter.data_ptr() for parameter in new.parameters()}, "the new model shares weights with the one handed in"


def test_the_same_seed_gives_the_same_bytes(checked: Checked, here: World, artefact: Artefact | None, result: torch.nn.Module) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(977)  # what was drawn before must not matter
        again = checked.prepare(here)
        assert same(tensors(again), tensors(artefact)), "prepare gives other tensors for the same seed"
        assert same(weights(checked.apply(here, artefact)), weights(result)), "apply gives other weights for the same seed"


def test_another_seed_gives_other_bytes(checked: Checked, here: World, artefact: Artefact | None, result: torch.nn.Module) -> None:
    if not checked.method.draws:
        pytest.skip("apply draws nothing at random")
    assert not same(weights(checked.apply(here, artefact, seed=SEED + 1)), weights(result)), "the seed makes no difference"


def test_an_artefact_saved_and_loaded_gives_the_same(
    checked: Checked, here: World, artefact: Artefact | None, result: torch.nn.Module, tmp_path: Path
) -> None:
    if artefact is None:
        pytest.skip("nothing is prepared")
    artefact.save(tmp_path / "artefact", "checked", "0" * 64, replace=False, vault=tmp_path / "vault")
    loaded = Artefact.load(tmp_path / "artefact", "checked", "0" * 64, vault=tmp_path / "vault")
    assert same(weights(checked.apply(here, loaded)), weights(result)), "what was saved is not all that apply reads"


def test_forgetting_moves_the_loss(checked: Checked, here: World, result: torch.nn.Module) -> None:
    if not checked.method.needs.apply:
        pytest.skip("reads nothing at request time, so it cannot forget anybody")
    if not checked.method.needs.apply - {"retain", "train", "val"}:
        pytest.skip("reads nothing of the people to forget")
    rises = {name: here.loss(result, name) - here.loss(here.model, name) for name in ("forget", "support")}
    assert max(rises.values()) >= LEAST_RISE, f"the losses rose by {rises}; at least {LEAST_RISE} is asked for"


def test_the_teacher_is_not_the_student(checked: Checked, here: World, artefact: Artefact | None) -> None:
    if not checked.method.distils:
        pytest.skip("distils from no teacher")
    model = copy.deepcopy(here.model)
    original, passes = fingerprint(model), []

    def note(module: torch.nn.Module, *_: Any) -> None:
        passes.append((torch.is_grad_enabled(), fingerprint(module) == original))

    model.register_forward_pre_hook(note)  # copied with the model, so that copies tell too
    checked.apply(here, artefact, model=model)
    moved = next((place for place, (learns, as_original) in enumerate(passes) if learns and not as_original), len(passes))
    assert moved < len(passes), "no student learned"
    assert any(as_original for _, as_original in passes[moved:]), "once the student had moved, nobody spoke with the original's weights"


def test_a_retrained_model_keeps_nothing_of_the_one_handed_in(checked: Checked, here: World, result: torch.nn.Module) -> None:
    if not checked.method.retrains:
        pytest.skip("does not train anew")
    other = copy.deepcopy(here.model)  # the same architecture; what was learned is replaced
    with torch.no_grad():
        for number, tensor in enumerate([*other.parameters(), *other.buffers()]):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator(SEED, "another model", number)))
    again = checked.apply(here, checked.prepare(here, model=other), model=other)
    assert same(weights(again), weights(result)), "the result depends on the weights of the model handed in"


def test_nothing_global_is_changed(checked: Checked, here: World, artefact: Artefact | None) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(977)  # a state that no earlier call can have left behind
        before = surroundings()
        checked.prepare(here)
        assert surroundings() == before, "prepare changed global state"
        checked.apply(here, artefact)
        assert surroundings() == before, "apply changed global state"


def test_only_declared_data_is_read(checked: Checked, here: World, artefact: Artefact | None) -> None:
    for stage, declared in (("prepare", checked.method.needs.prepare), ("apply", checked.method.needs.apply)):
        spied = Spied(here, declared)
        try:
            checked.prepare(here, data=spied) if stage == "prepare" else checked.apply(here, artefact, data=spied)
        except OneshuiError:
            assert spied.refused, "the method failed for another reason than the data that it was refused"
        assert not spied.refused, f"{stage} asked for {', '.join(spied.refused)}, which it does not declare"
        assert declared <= VOCABULARY


def test_memory_is_no_matter_of_results(checked: Checked, here: World, artefact: Artefact | None, result: torch.nn.Module) -> None:
    if "chunk" not in fields(checked.method.options):
        pytest.skip("has no option 'chunk', by which others bound their memory")
    smaller = checked.with_options(chunk=3)
    # What is compared is the model, and beside what the method changes in it: rounding may have gone its way through the learning of an
    # artefact, which makes as much of a small gradient as of a large one, without a trace in what it does.
    off = distance(weights(checked.apply(here, smaller.prepare(here))), weights(result))
    assert off <= SHARE * distance(weights(here.model), weights(result)), "prepare depends on the chunk"
    if fields(checked.method.options)["chunk"].metadata["at"] == "apply":
        assert close(weights(smaller.apply(here, artefact)), weights(result)), "apply depends on the chunk"


def test_two_processes_give_the_same(checked: Checked, here: World, result: torch.nn.Module, tmp_path: Path) -> None:
    output = tmp_path / "two.safetensors"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    command = [*torchrun, "oneshui_hf.testing.two_processes", checked.spec, here.task.kind, str(output), *checked.words]
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    gloo = {"ACCELERATE_USE_CPU": "1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | paths | gloo, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert close(load_file(output), weights(result)), "two processes give another result than one"


def tensors(artefact: Artefact | None) -> dict[str, torch.Tensor]:
    if artefact is None:
        return {}
    people = {f"{name} of {person}": part for person, parts in artefact.people.items() for name, part in parts.items()}
    return {**artefact.tensors, **people}


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def close(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    def near(a: torch.Tensor, b: torch.Tensor) -> bool:
        return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=TOLERANCE, atol=TOLERANCE * float(b.double().abs().max()))

    return one.keys() == other.keys() and all(near(one[name], other[name]) for name in one)


def distance(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    return float(sum((one[name].double() - other[name].double()).square().sum() for name in one)) ** 0.5


def fingerprint(model: torch.nn.Module) -> float:
    return float(sum((parameter.detach().double() ** 2).sum() for parameter in model.parameters()))


def surroundings() -> dict[str, Any]:
    """Return what is global and must stay as it was."""
    return {
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "torch's draws": bytes(torch.get_rng_state().tolist()),
        "numpy's draws": np.random.get_state()[1].tolist(),  # type: ignore[index]
        "Python's draws": random.getstate(),
    }

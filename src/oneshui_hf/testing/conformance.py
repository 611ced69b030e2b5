"""The plugin contract of an unlearning method, one test per guarantee. Run by `pytest --oneshui-method NAME`; see the package."""

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
from ..methods.base import READABLE_SETS, Method
from ..options import fields
from ..seeding import generator
from ..stages.command_options import PrepareOptions, TuneOptions, UnlearnOptions
from .subject import RecordingDataAccess, Subject, weights
from .toy_problem import SEED, ToyProblem, toy_problem

MIN_LOSS_RISE = 1e-3  # nats by which the loss on the forget set or on the support images must rise
TOLERANCE = 1e-5  # relative, for sums that are added up in another order
ROUNDING_SHARE = 0.01  # share of a method's update that rounding may change, where an artefact is trained


@pytest.fixture(scope="module", params=["multi_label", "single_label"])
def problem(request: pytest.FixtureRequest, subject: Subject) -> ToyProblem:
    kind: TaskKind = request.param
    return toy_problem(kind, subject.method.sharded, subject.method.closed_form)


@pytest.fixture(scope="module")
def subject(pytestconfig: pytest.Config) -> Subject:
    return Subject.load(pytestconfig.getoption("--oneshui-method"), pytestconfig.getoption("--oneshui-option"))


@pytest.fixture(scope="module")
def artefact(subject: Subject, problem: ToyProblem) -> Artefact | None:
    """What the method prepares. A method that refuses a kind of task is not checked on it."""
    try:
        return subject.prepare(problem)
    except UsageError as refusal:
        pytest.skip(f"refused: {refusal}")


@pytest.fixture(scope="module")
def result(subject: Subject, problem: ToyProblem, artefact: Artefact | None) -> torch.nn.Module:
    try:
        return subject.apply(problem, artefact)
    except UsageError as refusal:
        pytest.skip(f"refused: {refusal}")


def test_method_declares_its_metadata_and_valid_options(subject: Subject) -> None:
    method = subject.method
    assert issubclass(method, Method)
    assert all(isinstance(text, str) and text.strip() for text in (method.summary, method.paper)), "summary and paper are texts"
    assert method.prepares in ("never", "optional", "required")
    assert dataclasses.is_dataclass(method.options), "options are a dataclass"
    assert vars(method.options)["__dataclass_params__"].frozen, "options are frozen"
    for name, field in fields(method.options).items():
        assert field.metadata.get("help"), f"option {name} has no help; make it with option(...)"
        assert field.default is not dataclasses.MISSING, f"option {name} has no default"
    own, earlier = fields(method.options), [name for field in fields(method.options).values() for name in field.metadata["formerly"]]
    assert len(own.keys() | set(earlier)) == len(own) + len(earlier), "an earlier name of an option is given twice or is in use"
    taken = own.keys() & {name for command in (PrepareOptions, TuneOptions, UnlearnOptions) for name in fields(command)}
    assert not taken, f"a command has options of the same name: {', '.join(sorted(taken))}"
    method.prepare_options("subject", {}, {})  # the defaults are within their own ranges
    for preset in method.all_presets():
        method.prepare_options("subject", method.preset(preset, "celeba", 5), {})


def test_unknown_option_is_refused(subject: Subject) -> None:
    with pytest.raises(UsageError):
        subject.method.prepare_options("subject", {}, {"no_such_option": 1})
    with pytest.raises(UsageError):
        subject.method.apply_options("subject", {}, {"no_such_option": 1})


@pytest.mark.usefixtures("result")  # skips a kind of task that the method refuses
def test_input_model_is_unchanged(subject: Subject, problem: ToyProblem, artefact: Artefact | None) -> None:
    model = copy.deepcopy(problem.model)
    before, mode = weights(model), model.training
    requires_grad = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    subject.prepare(problem, model=model)
    new = subject.apply(problem, artefact, model=model)
    assert new is not model, "apply did not return a new model"
    assert equal(weights(model), before), "the weights of the input model were changed"
    assert model.training == mode, "the training mode of the input model was changed"
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == requires_grad
    assert all(parameter.grad is None for parameter in model.parameters()), "gradients were left on the input model"
    memory = {parameter.data_ptr() for parameter in model.parameters()}
    assert not memory & {parameter.data_ptr() for parameter in new.parameters()}, "the new model shares weights with the input model"


def test_same_seed_gives_same_bytes(subject: Subject, problem: ToyProblem, artefact: Artefact | None, result: torch.nn.Module) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(977)  # the global random state must not matter
        again = subject.prepare(problem)
        assert equal(tensors(again), tensors(artefact)), "prepare gives other tensors for the same seed"
        assert equal(weights(subject.apply(problem, artefact)), weights(result)), "apply gives other weights for the same seed"


def test_other_seed_gives_other_bytes(subject: Subject, problem: ToyProblem, artefact: Artefact | None, result: torch.nn.Module) -> None:
    if not subject.method.stochastic:
        pytest.skip("apply is not stochastic")
    assert not equal(weights(subject.apply(problem, artefact, seed=SEED + 1)), weights(result)), "the seed makes no difference"


def test_saved_and_loaded_artefact_gives_same_model(
    subject: Subject, problem: ToyProblem, artefact: Artefact | None, result: torch.nn.Module, tmp_path: Path
) -> None:
    if artefact is None:
        pytest.skip("nothing is prepared")
    artefact.save(tmp_path / "artefact", "subject", "0" * 64, replace=False, vault=tmp_path / "vault")
    loaded = Artefact.load(tmp_path / "artefact", "subject", "0" * 64, vault=tmp_path / "vault")
    assert equal(weights(subject.apply(problem, loaded)), weights(result)), "apply reads something that is not saved"


def test_loss_rises_on_forget_set_or_support_images(subject: Subject, problem: ToyProblem, result: torch.nn.Module) -> None:
    if not subject.method.needs.apply:
        pytest.skip("reads no data at request time, so it cannot forget")
    if not subject.method.needs.apply - {"retain", "train", "val"}:
        pytest.skip("reads no data of the forget identities")
    rises = {name: problem.loss(result, name) - problem.loss(problem.model, name) for name in ("forget", "support")}
    assert max(rises.values()) >= MIN_LOSS_RISE, f"the losses rose by {rises}; at least {MIN_LOSS_RISE} is required"


def test_teacher_keeps_original_weights(subject: Subject, problem: ToyProblem, artefact: Artefact | None) -> None:
    if not subject.method.uses_teacher:
        pytest.skip("uses no teacher")
    model = copy.deepcopy(problem.model)
    original, passes = squared_norm(model), []

    def record(module: torch.nn.Module, *_: Any) -> None:
        passes.append((torch.is_grad_enabled(), squared_norm(module) == original))

    model.register_forward_pre_hook(record)  # copied with the model, so that copies record too
    subject.apply(problem, artefact, model=model)
    updated = next((index for index, (has_grad, is_original) in enumerate(passes) if has_grad and not is_original), len(passes))
    assert updated < len(passes), "no student was trained"
    assert any(is_original for _, is_original in passes[updated:]), "no pass used the original weights after the student was updated"


def test_model_trained_from_scratch_does_not_depend_on_input_weights(
    subject: Subject, problem: ToyProblem, result: torch.nn.Module
) -> None:
    if not subject.method.from_scratch:
        pytest.skip("does not train from scratch")
    other = copy.deepcopy(problem.model)  # the same architecture with other weights
    with torch.no_grad():
        for number, tensor in enumerate([*other.parameters(), *other.buffers()]):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator(SEED, "another model", number)))
    again = subject.apply(problem, subject.prepare(problem, model=other), model=other)
    assert equal(weights(again), weights(result)), "the result depends on the weights of the input model"


@pytest.mark.usefixtures("result")
def test_global_state_is_unchanged(subject: Subject, problem: ToyProblem, artefact: Artefact | None) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(977)  # a state that no earlier call can have left
        before = global_state()
        subject.prepare(problem)
        assert global_state() == before, "prepare changed global state"
        subject.apply(problem, artefact)
        assert global_state() == before, "apply changed global state"


def test_only_declared_data_is_read(subject: Subject, problem: ToyProblem, artefact: Artefact | None) -> None:
    for step, declared in (("prepare", subject.method.needs.prepare), ("apply", subject.method.needs.apply)):
        data = RecordingDataAccess(problem, declared)
        try:
            subject.prepare(problem, data=data) if step == "prepare" else subject.apply(problem, artefact, data=data)
        except UsageError as refusal:
            pytest.skip(f"refused: {refusal}")
        except OneshuiError:
            assert data.refused, "the method failed for another reason than undeclared data"
        assert not data.refused, f"{step} read {', '.join(data.refused)}, which it does not declare"
        assert declared <= READABLE_SETS


def test_chunk_size_does_not_affect_result(
    subject: Subject, problem: ToyProblem, artefact: Artefact | None, result: torch.nn.Module
) -> None:
    if "chunk" not in fields(subject.method.options):
        pytest.skip("has no option 'chunk', which bounds the memory")
    smaller = subject.with_options(chunk=3)
    # Models are compared, relative to the method's update, and not artefacts: training an artefact can amplify rounding in small gradients
    # without an effect on the model.
    difference = distance(weights(subject.apply(problem, smaller.prepare(problem))), weights(result))
    assert difference <= ROUNDING_SHARE * distance(weights(problem.model), weights(result)), "prepare depends on the chunk size"
    if fields(subject.method.options)["chunk"].metadata["at"] == "apply":
        assert close(weights(smaller.apply(problem, artefact)), weights(result)), "apply depends on the chunk size"


def test_two_processes_give_same_model(subject: Subject, problem: ToyProblem, result: torch.nn.Module, tmp_path: Path) -> None:
    output = tmp_path / "two.safetensors"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    command = [*torchrun, "oneshui_hf.testing.two_processes", subject.spec, problem.task.kind, str(output), *subject.words]
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    gloo = {"ACCELERATE_USE_CPU": "1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | paths | gloo, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert close(load_file(output), weights(result)), "two processes give another model than one"


def tensors(artefact: Artefact | None) -> dict[str, torch.Tensor]:
    if artefact is None:
        return {}
    people = {f"{name} of {person}": part for person, parts in artefact.people.items() for name, part in parts.items()}
    return {**artefact.tensors, **people}


def equal(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def close(actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> bool:
    def is_close(a: torch.Tensor, b: torch.Tensor) -> bool:
        return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=TOLERANCE, atol=TOLERANCE * float(b.double().abs().max()))

    return actual.keys() == expected.keys() and all(is_close(actual[name], expected[name]) for name in actual)


def distance(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    return float(sum((a[name].double() - b[name].double()).square().sum() for name in a)) ** 0.5


def squared_norm(model: torch.nn.Module) -> float:
    return float(sum((parameter.detach().double() ** 2).sum() for parameter in model.parameters()))


def global_state() -> dict[str, Any]:
    """Return the global state that a method must not change."""
    return {
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "torch's random state": bytes(torch.get_rng_state().tolist()),
        "numpy's random state": np.random.get_state()[1].tolist(),  # type: ignore[index]
        "Python's random state": random.getstate(),
    }

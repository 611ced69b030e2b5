"""Keys of many people: what they need in memory, and cohorts that are spread over processes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.methods import Context, DataAccess, ResumeState
from oneshui_hf.testing.toy_problem import IMAGE_SIZE, ToyProblem, toy_problem
from oneshui_plugins.forget_keys import training
from oneshui_plugins.forget_keys.initialization import initialize
from oneshui_plugins.forget_keys.method import ForgetKeys
from oneshui_plugins.forget_keys.options import ForgetKeysOptions
from oneshui_plugins.forget_keys.preconditioner import estimate_preconditioner
from oneshui_plugins.forget_keys.training import PerIdentityAdam, train_updates
from support.key_training import frozen_model, make_training_data
from support.tensors import equal


def with_people(problem: ToyProblem, people: int) -> ToyProblem:
    """Return the toy problem with random photos of so many training identities, one each."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (people, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
    labels = torch.from_numpy(random.integers(0, 2, (people, 4)).astype(np.float32))
    names = tuple(f"person {number}" for number in range(people))
    train = FaceSet(pixels, np.arange(people), labels, torch.arange(people), problem.sets["train"].preprocess, names)
    return dataclasses.replace(problem, sets={**problem.sets, "train": train})


def size(tensors: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("cohort", [40, 512])
def test_memory_of_100_people_is_that_of_the_estimate(cohort: int) -> None:
    problem = with_people(toy_problem("multi_label"), 100)
    options = ForgetKeysOptions(targets="quantile", steps_per_identity=1, rank=3, cohort_size=cohort, retain_ratio=0.1)
    data = DataAccess(problem.sets, frozenset({"train", "val"}))
    cost = ForgetKeys().cost(problem.model, data, options, problem.context())
    model, layers, context = frozen_model(problem)
    training_data = make_training_data(problem, **dataclasses.asdict(options))
    preconditioner = estimate_preconditioner(model, layers, training_data, context)
    adam = PerIdentityAdam(initialize(model, layers, training_data, range(min(cohort, 100)), preconditioner, context))
    people = ForgetKeys().prepare(problem.model, data, options, problem.context()).people
    keys = size(tensor for key in people.values() for tensor in key.values())
    assert len(people) == 100
    assert cost.bytes == keys
    optimizer = size(adam.state().values()) - adam.steps.nbytes
    assert cost.memory == keys + optimizer + size(preconditioner.up.values()) + size(preconditioner.down.values())


@pytest.mark.parametrize("cohorts", [2, 3])
def test_cohorts_on_two_processes_are_those_of_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cohorts: int) -> None:
    problem = toy_problem("multi_label")
    model, layers, context = frozen_model(problem)
    identities = sorted(problem.sets["train"].positions_of)[:6]
    data = make_training_data(problem, rank=2, steps_per_identity=3, cohort_size=-(-6 // cohorts))
    shared = estimate_preconditioner(model, layers, data, context)
    monkeypatch.setattr(training, "estimate_preconditioner", lambda *_: shared)
    keys, history = train_updates(model, layers, data, identities, context)

    gathered: list[list[Any]] = [[], []]  # of both calls of `gather`

    def run(process: int, resume_state: ResumeState) -> tuple[dict[int, Any], list[Any]]:
        accelerator = SimpleNamespace(num_processes=2, process_index=process, is_main_process=process == 0, device=torch.device("cpu"))
        calls = iter(gathered)

        def gather(self: Context, items: list[Any]) -> list[Any]:
            found = next(calls)
            found += items
            return list(found)

        with monkeypatch.context() as patch:
            patch.setattr(Context, "gather", gather)
            return train_updates(
                model, layers, data, identities, dataclasses.replace(context, accelerator=accelerator, resume_state=resume_state)
            )

    states = [ResumeState(tmp_path / "state", saves=process == 0, every=1) for process in range(2)]
    with pytest.raises(KeyError):
        run(1, states[1])  # the keys of the other process are missing
    own = len(gathered[0])
    assert 0 < own < 6
    assert (tmp_path / "state" / "unfinished-cohorts-1-of-2.safetensors").exists()  # a process that is not the main one saves as well
    together = run(0, states[0])
    assert list(together[0]) == identities
    assert together[1] == history
    assert all(equal(together[0][identity], keys[identity]) for identity in identities)


def test_estimate_of_the_guide_for_10000_people() -> None:
    """The table of docs/guides/scale.md: ViT-B/16 at 224 pixels. Only the shapes of the weights are needed."""
    from transformers import ViTConfig, ViTForImageClassification

    with torch.device("meta"):
        model = ViTForImageClassification(ViTConfig(num_labels=40))
    val = faces(1000, 20)
    rows = []
    for people in (100, 1000, 10_000):
        data = DataAccess({"train": faces(people, 20), "val": val}, frozenset({"train", "val"}))
        cost = ForgetKeys().cost(model, data, ForgetKeysOptions(targets="quantile"), toy_problem("multi_label").context())
        sizes = f"{cost.bytes / 1e9:.2f} GB | {cost.memory / 1e9:.1f} GB"
        rows.append(f"| {people:,} | {cost.forward:,} | {cost.backward:,} | {sizes} |")
    guide = (Path(__file__).parents[3] / "docs" / "guides" / "scale.md").read_text()
    assert all(row in guide for row in rows), rows


def faces(people: int, photos: int) -> FaceSet:
    """Return a set of photos without pixels."""
    count = people * photos
    names = tuple(map(str, range(people)))
    identities = torch.arange(people).repeat_interleave(photos)
    return FaceSet(np.zeros((1, 3, 8, 8), np.uint8), np.zeros(count, int), torch.zeros(count, 40), identities, Preprocess(224), names)

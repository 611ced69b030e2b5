"""Rescaled keys: their identities reach the loss of the target logits, measured with the keys merged into the weights."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from oneshui_hf.methods import losses
from oneshui_hf.testing.toy_problem import ToyProblem, toy_problem
from oneshui_plugins.forget_keys import training
from oneshui_plugins.forget_keys.batches import TrainingData
from oneshui_plugins.forget_keys.low_rank import LowRankUpdate, Updates, merge, scale_updates, select_identities, target_layers
from oneshui_plugins.forget_keys.method import matrix_shapes
from oneshui_plugins.forget_keys.quantization import dequantize
from oneshui_plugins.forget_keys.rescaling import MAX_FACTOR, MIN_FACTOR, ROUNDS, rescaling_factors
from oneshui_plugins.forget_keys.training import train_updates
from support.key_training import KINDS, frozen_model, make_training_data, random_updates


def all_identities(data: TrainingData) -> list[int]:
    return sorted(data.train.positions_of)


def own_loss(problem: ToyProblem, data: TrainingData, updates: Updates, identity: int) -> float:
    own = dataclasses.replace(problem, sets={"own": data.train.subset(data.train.positions_of[identity])})
    return own.loss(merge(problem.model, [updates], 1.0), "own")


def target_losses(problem: ToyProblem, data: TrainingData) -> dict[int, float]:
    """Each identity's mean loss of the target logits, ranked among all training photos, computed photo by photo."""
    positions = torch.cat([data.train.positions_of[identity] for identity in all_identities(data)])
    original = data.train_logits[0].logits[positions]
    target = data.target_logits(positions, original, torch.zeros(len(positions), dtype=torch.bool)).double()
    labels = data.train.labels[positions]
    if problem.task.kind == "multi_label":
        each = torch.where(labels > 0, -target.sigmoid().log(), -(1 - target.sigmoid()).log()).mean(dim=1)
    else:
        each = torch.stack([-row.softmax(dim=0)[label].log() for row, label in zip(target, labels, strict=True)])
    owner = data.train.identities[positions]
    return {identity: float(each[owner == identity].mean()) for identity in all_identities(data)}


def ascent_updates(problem: ToyProblem, data: TrainingData, length: float) -> Updates:
    """Updates of all identities along the gradient of their own loss, in its two leading singular directions."""
    each = []
    for identity in all_identities(data):
        free = copy.deepcopy(problem.model).requires_grad_(True)
        pixels, labels = data.train.batch(data.train.positions_of[identity])
        losses(free(pixel_values=pixels).logits, labels, problem.task.kind).mean().backward()
        targets = target_layers(problem.model, 1.0)
        gradients = {name: weight.grad.flatten(1) for name, weight in free.named_parameters() if name in targets}
        size = sum(g.square().sum() for g in gradients.values()).sqrt()
        each.append({name: torch.linalg.svd(length * g / size, full_matrices=False) for name, g in gradients.items()})
    return {
        name: LowRankUpdate(
            torch.stack([parts[name].U[:, :2] * parts[name].S[:2] for parts in each]), torch.stack([parts[name].Vh[:2] for parts in each])
        )
        for name in each[0]
    }


def scaled_update(updates: Updates, index: int, factor: float) -> Updates:
    return scale_updates(select_identities(updates, [index]), torch.tensor([factor]))


@pytest.mark.parametrize("kind", KINDS)
def test_rescaled_key_raises_the_loss_of_its_identity_to_that_of_the_target_logits(kind: str) -> None:
    problem = toy_problem(kind)  # type: ignore[arg-type]
    model, layers, context = frozen_model(problem)
    data = make_training_data(problem, identities_per_step=1)
    cohort, goal = all_identities(data), target_losses(problem, data)
    updates = ascent_updates(problem, data, 0.5)
    factors = rescaling_factors(model, layers, updates, data, cohort, context)
    inside = 0
    for index, identity in enumerate(cohort):
        before, after = (
            own_loss(problem, data, scaled_update(updates, index, factor), identity) for factor in (0.0, float(factors[index]))
        )
        if MIN_FACTOR < factors[index] < MAX_FACTOR:
            inside += 1
            assert abs(after - goal[identity]) < 0.05 * abs(before - goal[identity])
        elif factors[index] == MAX_FACTOR:
            assert after < goal[identity]
    assert inside >= 1


def test_longer_key_gets_a_smaller_factor() -> None:
    problem = toy_problem("multi_label")
    model, layers, context = frozen_model(problem)
    data = make_training_data(problem, identities_per_step=1)
    updates = ascent_updates(problem, data, 4.0)
    full = rescaling_factors(model, layers, updates, data, all_identities(data), context)
    half = rescaling_factors(model, layers, scale_updates(updates, torch.full((8,), 0.5)), data, all_identities(data), context)
    unclamped = (full > 0.1) & (half < MAX_FACTOR) & (full < MAX_FACTOR)
    assert unclamped.any()
    torch.testing.assert_close(half[unclamped], 2 * full[unclamped], rtol=0.2, atol=0)


def test_key_without_effect_gets_the_largest_factor_and_an_unnecessary_key_the_smallest() -> None:
    problem = toy_problem("multi_label")
    model, layers, context = frozen_model(problem)
    data = make_training_data(problem)
    identities = all_identities(data)
    zero = {name: LowRankUpdate(torch.zeros_like(u.up), u.down) for name, u in random_updates(model, len(identities)).items()}
    assert rescaling_factors(model, layers, zero, data, identities, context).tolist() == [MAX_FACTOR] * len(identities)
    wrong = tuple(version._replace(logits=-5 * version.logits) for version in data.train_logits)  # confident in the wrong labels
    unnecessary = dataclasses.replace(data, train_logits=wrong)
    factors = rescaling_factors(model, layers, random_updates(model, len(identities)), unnecessary, identities, context)
    assert factors.tolist() == [MIN_FACTOR] * len(identities)


def test_each_identity_is_measured_in_each_round_together_with_others() -> None:
    problem = toy_problem("multi_label")
    model, layers, context = frozen_model(problem)
    data = make_training_data(problem, identities_per_step=4)
    seen: list[int] = []
    hook = model.register_forward_pre_hook(lambda module, arguments, values: seen.append(len(values["pixel_values"])), with_kwargs=True)
    rescaling_factors(model, layers, random_updates(model, len(all_identities(data))), data, all_identities(data), context)
    hook.remove()
    assert sum(seen) == ROUNDS * len(data.train)
    assert max(seen) > max(len(positions) for positions in data.train.positions_of.values())


@pytest.mark.slow
def test_training_rescales_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = toy_problem("multi_label")
    model, layers, context = frozen_model(problem)
    data = make_training_data(problem, identities_per_step=1, steps_per_identity=12, damping=0.1, bits=16)
    goal, shapes = target_losses(problem, data), matrix_shapes(model, layers)

    def total_error() -> float:
        """Return the distance of the identities' losses from their targets, summed."""
        keys, _ = train_updates(model, layers, data, all_identities(data), context)
        updates = {identity: dequantize(keys[identity], shapes, data.options.rank, 16) for identity in all_identities(data)}
        return sum(abs(own_loss(problem, data, update, identity) - goal[identity]) for identity, update in updates.items())

    rescaled = total_error()
    monkeypatch.setattr(training, "rescaling_factors", lambda *arguments: torch.ones(len(all_identities(data))))
    assert rescaled < 0.9 * total_error()

"""Training of the loss network: meta-objectives on simulated requests, and the size of these requests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from oneshui_hf.errors import UsageError
from oneshui_hf.methods import losses
from oneshui_hf.testing.toy_problem import toy_problem
from oneshui_plugins.metaunlearn import MetaUnlearn
from oneshui_plugins.metaunlearn.training import MetaLossTrainer, plan_requests
from support.metaunlearn import OBJECTIVES, data_access, options, prepare

KINDS = ("multi_label", "single_label")


# Meta-objectives.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_of_phi_reduces_every_objective_as_its_gradient_predicts(objective: str, kind: str) -> None:
    """Takes a short step of phi on one request, without score weights, which the gradient treats as constants."""
    problem = toy_problem(kind)  # type: ignore[arg-type]
    chosen = options(objective=objective, unlearning_steps=2, weigh_by_score=False)
    plan = plan_requests(data_access(problem), chosen, problem.context())
    trainer = MetaLossTrainer(problem.model, data_access(problem), plan, chosen, problem.context())
    trainer.h.eval()
    length = 2e-3 * trainer.scale
    value, parts, _ = trainer.mean_meta_gradient(plan[0], 0, length)
    slope = sum((part**2).sum().item() for part in parts)
    predicted = 5e-4 * abs(value)
    with torch.no_grad():
        for parameter, part in zip(trainer.h.parameters(), parts, strict=True):
            parameter -= predicted / slope * part
    assert value - trainer.mean_meta_gradient(plan[0], 0, length)[0] == pytest.approx(predicted, rel=0.2)


def test_objectives_use_the_same_images_and_retain_images_show_other_identities() -> None:
    problem = toy_problem("multi_label")
    data = data_access(problem)
    base = MetaLossTrainer(problem.model, data, [], options(), problem.context())
    chosen = options(objective="retain")
    for number, (request,) in enumerate(plan_requests(data, replace(chosen, steps=6), problem.context())):
        plain = base.objective(request, (number, 0))
        ours = MetaLossTrainer(problem.model, data, [], chosen, problem.context()).objective(request, (number, 0))
        for name in ("forget", "val"):
            assert ours.sets[name].rows.tolist() == plain.sets[name].rows.tolist()
        retained = set(ours.sets["retain"].identities.tolist())
        assert retained
        assert not retained & set(request.people)
        assert set(ours.sets["forget"].identities.tolist()) <= set(request.people)
        assert len(ours.sets["retain"]) == min(len(ours.sets["forget"]), len(data.train) - len(request.forget))
        assert set(ours.sets["retain"].rows.tolist()) <= set(data.train.rows.tolist())
        assert "retain" not in plain.sets


@pytest.mark.parametrize("weigh", [True, False])
def test_losses_before_unlearning_are_those_of_the_original_model(weigh: bool) -> None:
    problem = toy_problem("single_label")
    chosen = options(objective="retain", weigh_by_score=weigh, distance="l1", chunk=3)
    trainer = MetaLossTrainer(problem.model, data_access(problem), [], chosen, problem.context())
    ours = trainer.objective(plan_requests(data_access(problem), chosen, problem.context())[0][0], (0, 0))
    assert (ours.objective, ours.distance, ours.weigh, ours.chunk) == ("retain", "l1", weigh, 3)
    assert set(ours.before) == {"val", "retain"}
    for name, value in ours.before.items():
        pixels, labels = ours.sets[name].batch(torch.arange(len(ours.sets[name])))
        with torch.no_grad():
            logits = problem.model(pixel_values=pixels).logits
        error_rate = (logits.argmax(1) != labels).float().mean().item()
        loss = losses(logits, labels, "single_label").mean().item()
        assert value == pytest.approx(loss * error_rate if weigh else loss, rel=1e-5, abs=1e-9)


def test_a_request_with_all_identities_raises_if_the_objective_retains() -> None:
    problem = toy_problem("multi_label")
    for objective in OBJECTIVES:
        chosen = options(objective=objective, simulated_size=8, vary_size=False, unseen_support=False)
        if objective in ("retain", "scrub"):
            for call in (MetaUnlearn().prepare, MetaUnlearn().cost):
                with pytest.raises(UsageError, match=f"--objective {objective} has no identity to retain"):
                    call(problem.model, data_access(problem), chosen, problem.context())
        else:
            plan_requests(data_access(problem), chosen, problem.context())


# Size of simulated requests.


@pytest.mark.parametrize(
    ("values", "sizes"),
    [
        ({"vary_size": False}, {2}),  # the size of the run's own request
        ({}, {1, 2, 3, 4}),
        ({"simulated_size": 1, "vary_size": False}, {1}),
        ({"simulated_size": 3, "vary_size": False}, {3}),
        ({"simulated_size": 1}, {1, 2}),
    ],
)
def test_simulated_requests_have_the_requested_size(values: dict[str, Any], sizes: set[int]) -> None:
    problem = toy_problem("multi_label")
    assert problem.context().request_size == 2
    # Six identities are eligible, so requests of 1, 2 and 3 leave no smaller remainder; with varied sizes it is one of the sizes.
    plan = plan_requests(data_access(problem), options(steps=40, **values), problem.context())
    assert {len(request.people) for group in plan for request in group} == sizes


def test_a_simulated_size_above_the_eligible_identities_raises() -> None:
    problem = toy_problem("multi_label")
    with pytest.raises(UsageError, match="--simulated-size 7 is more than the 6 identities that can be in a simulated request"):
        prepare(problem, simulated_size=7)

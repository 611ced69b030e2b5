"""Training of the loss network: meta-objectives on simulated requests, their size, held-out identities, and interruptions."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import Artefact, ResumeState, derive, losses, norm, parameters
from oneshui_hf.testing.toy_problem import ToyProblem, toy_problem
from oneshui_plugins.metaunlearn import MetaUnlearn
from oneshui_plugins.metaunlearn.loss_network import meta_gradient
from oneshui_plugins.metaunlearn.training import MetaLossTrainer, held_out_requests, plan_requests
from oneshui_plugins.metaunlearn.training_state import TrainingState
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
    size = trainer.step_size([2e-3 * trainer.scale])
    value, parts, _ = trainer.mean_meta_gradient(plan[0], 0, size)
    slope = sum((part**2).sum().item() for part in parts)
    predicted = 5e-4 * abs(value)
    with torch.no_grad():
        for parameter, part in zip(trainer.h.parameters(), parts, strict=True):
            parameter -= predicted / slope * part
    assert value - trainer.mean_meta_gradient(plan[0], 0, size)[0] == pytest.approx(predicted, rel=0.2)


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


# Several requests per meta-step.


def in_float64(problem: ToyProblem) -> ToyProblem:
    def convert(faces: FaceSet) -> FaceSet:
        reserved = None if faces.reserved is None else convert(faces.reserved)
        preprocess: Any = lambda pixels: faces.preprocess(pixels).double()  # noqa: E731
        return replace(faces, preprocess=preprocess, labels=faces.labels.double(), reserved=reserved)

    sets = {name: convert(faces) for name, faces in problem.sets.items()}
    return ToyProblem(copy.deepcopy(problem.model).double(), problem.task, sets)


@pytest.mark.parametrize("length_by", ["model", "layer"])
def test_the_gradient_of_two_requests_is_the_mean_of_their_gradients(length_by: str) -> None:
    problem = in_float64(toy_problem("multi_label"))
    chosen = options(requests_per_step=2, length_by=length_by, identity_dropout=0.0)
    plan = plan_requests(data_access(problem), chosen, problem.context())
    trainer = MetaLossTrainer(problem.model, data_access(problem), plan, chosen, problem.context())
    trainer.h.double()
    size = trainer.step_size((10 * trainer.initial_lengths()).tolist())
    assert [len(requests) for requests in plan] == [2, 2]
    value, by_phi, by_length = trainer.mean_meta_gradient(plan[0], 0, size)
    singles = []
    for index, request in enumerate(plan[0]):
        images, objective = trainer.support_images(request, (0, index)), trainer.objective(request, (0, index))
        seed = derive(0, "dropout", 0, index)
        singles.append(meta_gradient(problem.model, trainer.theta, trainer.h, images, objective, "multi_label", size, seed=seed))
    assert not torch.allclose(singles[0][1][0], singles[1][1][0], rtol=0.1)
    assert value == pytest.approx(sum(single[0] for single in singles) / 2, rel=1e-6)
    assert by_length == pytest.approx([sum(parts) / 2 for parts in zip(*(single[2] for single in singles), strict=True)], rel=1e-5)
    for index, part in enumerate(by_phi):
        torch.testing.assert_close(part, (singles[0][1][index] + singles[1][1][index]) / 2, rtol=1e-12, atol=1e-18)


# Held-out identities.

HOLDOUT: dict[str, Any] = {"holdout": 0.5, "evaluate_every": 2, "steps": 5}


@pytest.mark.parametrize("unseen_support", [True, False])
def test_held_out_identities_are_never_in_a_request_of_training(unseen_support: bool) -> None:
    problem = toy_problem("multi_label")
    data, context = data_access(problem), problem.context()
    chosen = options(holdout=0.4, steps=60, unseen_support=unseen_support)
    trainer = MetaLossTrainer(problem.model, data, plan_requests(data, chosen, context), chosen, context)
    eligible = data.train.reserved.positions_of if unseen_support else data.train.positions_of
    assert len(trainer.held_out) == round(0.4 * len(eligible))
    assert trainer.simulated | trainer.held_out == set(eligible)
    assert not trainer.simulated & trainer.held_out
    requests = held_out_requests(data, chosen, context)
    assert sorted(person for request in requests for person in request.people) == sorted(trainer.held_out)
    assert max(len(request.people) for request in requests) == context.request_size
    others = {MetaLossTrainer(problem.model, data, [], chosen, problem.context(seed)).held_out for seed in range(5)}
    assert len(others) > 1


def test_without_a_holdout_all_identities_are_in_requests_of_training() -> None:
    problem = toy_problem("multi_label")
    data, context = data_access(problem), problem.context()
    plan = plan_requests(data, options(steps=20), context)
    assert {person for (request,) in plan for person in request.people} == set(data.train.reserved.positions_of)
    assert held_out_requests(data, options(), context) == []
    assert "held_out" not in prepare(problem).report


@pytest.mark.parametrize("kind", KINDS)
def test_retain_images_do_not_show_held_out_identities(kind: str) -> None:
    problem = toy_problem(kind)  # type: ignore[arg-type]
    data, chosen = data_access(problem), options(objective="retain", **HOLDOUT)
    plan = plan_requests(data, chosen, problem.context())
    trainer = MetaLossTrainer(problem.model, data, plan, chosen, problem.context())
    for number, (request,) in enumerate(plan):
        shown = trainer.objective(request, (number, 0)).sets
        assert not trainer.held_out & set(shown["forget"].identities.tolist())
        assert not trainer.held_out & set(shown["retain"].identities.tolist())
    for request in trainer.prepare_held_out_requests():
        assert set(request.objective.sets["forget"].identities.tolist()) <= trainer.held_out


def test_one_identity_remains_in_requests_of_training() -> None:
    problem = toy_problem("multi_label")
    train = problem.sets["train"]
    assert train.reserved is not None
    one = replace(train, reserved=train.reserved.subset(torch.tensor([0])))
    fewer = replace(problem, sets=problem.sets | {"train": one})
    with pytest.raises(UsageError, match="none can be held out; use --holdout 0"):
        prepare(fewer, holdout=0.1)
    prepare(fewer)
    two = replace(train, reserved=train.reserved.subset(torch.arange(0, len(train.reserved), 2)[:2]))
    data = data_access(replace(problem, sets=problem.sets | {"train": two}))
    chosen = options(holdout=0.9)  # rounds to both
    assert {person for (request,) in plan_requests(data, chosen, problem.context()) for person in request.people}.isdisjoint(
        person for request in held_out_requests(data, chosen, problem.context()) for person in request.people
    )


@pytest.mark.parametrize("normalised", [True, False])
def test_the_objective_on_held_out_identities_is_that_of_the_model_after_the_step(normalised: bool) -> None:
    """Computes the step and the losses with plain autograd."""
    problem = toy_problem("multi_label")
    step = {"step": "normalised"} if normalised else {"step": "raw", "eta": 0.2}
    data, chosen = data_access(problem), options(distance="l1", weigh_by_score=False, **step, **HOLDOUT)
    trainer = MetaLossTrainer(problem.model, data, plan_requests(data, chosen, problem.context()), chosen, problem.context())
    length = 5e-3 * trainer.scale
    expected, original = [], []
    for request, prepared in zip(held_out_requests(data, chosen, problem.context()), trainer.prepare_held_out_requests(), strict=True):
        model = copy.deepcopy(problem.model)
        pixels, labels = data.train.reserved.batch(request.support)
        features = model.vit(pixel_values=pixels).last_hidden_state[:, 0]
        unknown = trainer.h.embedding.weight[:1].expand(len(pixels), -1)
        h = copy.deepcopy(trainer.h).eval()
        h.network(torch.cat([model.classifier(features).sigmoid(), features, labels, unknown], dim=1)).mean().backward()
        updated = {name: p for name, p in model.named_parameters() if p.grad is not None}
        size = norm({name: p.grad for name, p in updated.items()})
        before = mean_loss(problem.model, prepared.objective.sets["val"])
        original.append(2 * abs(mean_loss(problem.model, data.train.subset(request.forget)) - before))
        with torch.no_grad():
            for p in updated.values():
                p -= (length / size if normalised else 0.2) * p.grad
        forget, val = mean_loss(model, data.train.subset(request.forget)), mean_loss(model, prepared.objective.sets["val"])
        expected.append(abs(forget - val) + abs(forget - before))
    requests = trainer.prepare_held_out_requests()
    assert len(requests) == 2
    assert trainer.held_out_objective(requests, [length]) == pytest.approx(sum(expected) / 2, rel=1e-4)
    assert trainer.held_out_objective(requests, None) == pytest.approx(sum(original) / 2, rel=1e-4)
    assert trainer.held_out_objective(requests, [length]) != pytest.approx(sum(original) / 2, rel=1e-2)
    assert trainer.h.training


def mean_loss(model: torch.nn.Module, faces: FaceSet) -> float:
    pixels, labels = faces.batch(torch.arange(len(faces)))
    with torch.no_grad():
        return losses(model(pixel_values=pixels).logits, labels, "multi_label").mean().item()


@pytest.mark.parametrize(("early_stopping", "index"), [(True, 1), (False, 3)])
def test_the_kept_loss_network_is_the_best_on_held_out_identities_or_the_last(
    early_stopping: bool, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = toy_problem("multi_label")
    data, chosen, context = data_access(problem), options(early_stopping=early_stopping, **HOLDOUT), problem.context()
    trainer = MetaLossTrainer(problem.model, data, plan_requests(data, chosen, context), chosen, context)
    evaluations: list[tuple[dict[str, torch.Tensor], Any]] = []
    values = iter([5.0, 1.0, 3.0, 1.0])

    def evaluate(requests: Any, lengths: Any) -> float:
        if lengths is None:
            return 4.0
        evaluations.append(({name: part.clone() for name, part in trainer.h.state_dict().items()}, lengths))
        return next(values)

    monkeypatch.setattr(trainer, "held_out_objective", evaluate)
    state = trainer.train()
    assert [(row["step"], row["objective"]) for row in state.curve] == [(0, 5.0), (2, 1.0), (4, 3.0), (5, 1.0)]
    kept, lengths = evaluations[index]
    assert all(torch.equal(part, kept[name]) for name, part in trainer.h.state_dict().items())
    assert state.lengths == lengths
    assert state.kept_step(early_stopping) == (2 if early_stopping else 5)
    assert not torch.equal(evaluations[1][0]["network.0.weight"], evaluations[3][0]["network.0.weight"])
    assert evaluations[1][1] != evaluations[3][1]
    assert not trainer.h.training


def test_the_report_contains_the_curve_and_the_value_of_the_original_model() -> None:
    report = prepare(toy_problem("multi_label"), **HOLDOUT).report["held_out"]
    assert report["identities"] == 3
    assert [row["step"] for row in report["curve"]] == [0, 2, 4, 5]
    assert report["kept"] == min(report["curve"], key=lambda row: row["objective"])["step"]
    assert report["original"] > 0


# Interruptions.


class StoppedError(Exception):
    """Stops a training."""


@pytest.mark.parametrize(
    "values",
    [{}, {"holdout": 0.4, "evaluate_every": 2, "length_by": "layer"}, {"step": "raw", "unlearning_steps": 2, "use_identity": False}],
)
def test_interrupted_training_resumes_to_the_same_bytes(values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = toy_problem("multi_label")

    def train(folder: Path | None, stop_after: int | None = None) -> Artefact:
        steps, original = iter(range(stop_after or 0)), TrainingState.step

        def step(self: TrainingState, *given: Any) -> None:
            if next(steps, None) is None:
                raise StoppedError
            original(self, *given)

        context = problem.context()
        context.resume_state = ResumeState(folder, {"seed": 0})
        with monkeypatch.context() as patch:
            if stop_after is not None:
                patch.setattr(TrainingState, "step", step)
            return MetaUnlearn().prepare(problem.model, data_access(problem), options(steps=6, **values), context)

    whole = train(None)
    monkeypatch.setattr(ResumeState, "should_save", lambda self: True)
    for stop_after in (1, 3):
        with pytest.raises(StoppedError):
            train(tmp_path / "state", stop_after)
    assert len(ResumeState(tmp_path / "state", {"seed": 0}).load()[1]["history"]) == 4  # type: ignore[index]
    resumed = train(tmp_path / "state")
    assert (resumed.values, resumed.report) == (whole.values, whole.report)
    assert all(torch.equal(resumed.tensors[name], part) for name, part in whole.tensors.items())
    for person, parts in whole.people.items():
        assert all(torch.equal(resumed.people[person][name], part) for name, part in parts.items())


def test_an_objective_that_is_not_finite_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    original = MetaLossTrainer.mean_meta_gradient

    def broken(self: MetaLossTrainer, *given: Any) -> tuple[float, Any, Any]:
        return float("nan"), *original(self, *given)[1:]

    monkeypatch.setattr(MetaLossTrainer, "mean_meta_gradient", broken)
    with pytest.raises(OneshuiError, match="no longer finite"):
        prepare(toy_problem("multi_label"))


# Lengths.


def test_lengths_by_layer_start_as_the_same_share_of_each_layer() -> None:
    problem = toy_problem("multi_label")
    chosen = options(length_by="layer")
    trainer = MetaLossTrainer(problem.model, data_access(problem), [], chosen, problem.context())
    lengths = trainer.initial_lengths()
    assert norm({"lengths": lengths}).item() == pytest.approx(2e-4 * norm(parameters(problem.model)).item(), rel=1e-5)
    head = [trainer.group_of[name] for name in trainer.group_of if name.startswith("classifier")]
    assert len(set(head)) == 1
    classifier = norm({name: p for name, p in trainer.theta.items() if name.startswith("classifier")}).item()
    assert lengths[head[0]].item() == pytest.approx(2e-4 * classifier, rel=1e-5)


def test_a_length_by_layer_moves_against_its_own_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = toy_problem("multi_label")
    data, chosen, context = data_access(problem), options(length_by="layer", steps=1), problem.context()
    trainer = MetaLossTrainer(problem.model, data, plan_requests(data, chosen, context), chosen, context)
    before = trainer.initial_lengths().tolist()
    slopes = trainer.mean_meta_gradient(trainer.plan[0], 0, trainer.step_size(before))[2]
    after = trainer.train().lengths
    assert len(after) == max(trainer.group_of.values()) + 1 == len(before)
    for slope, old, new in zip(slopes, before, after, strict=True):
        assert (new - old) * slope < 0

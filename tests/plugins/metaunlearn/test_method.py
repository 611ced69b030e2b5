"""MetaUnlearn: inputs of h, several steps, and the cost."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import Artefact, DataAccess, Request, inner, norm, parameters
from oneshui_hf.testing.toy_problem import ToyProblem, toy_problem
from oneshui_plugins.metaunlearn import MetaUnlearn, MetaUnlearnOptions, loss_network, objectives, training
from oneshui_plugins.metaunlearn.loss_network import MetaLoss
from oneshui_plugins.metaunlearn.objectives import DISTANCES
from oneshui_plugins.metaunlearn.training import plan_requests
from support.metaunlearn import OBJECTIVES, data_access, options, prepare

KINDS = ("multi_label", "single_label")


def apply(
    problem: ToyProblem, artefact: Artefact, request: Request | None = None, **values: Any
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the displacement of the parameters, and the report."""
    context = problem.context()
    data = DataAccess({"support": request or problem.request}, MetaUnlearn.needs.apply)
    new = MetaUnlearn().apply(problem.model, data, artefact, options(**values), context)
    old = parameters(problem.model)
    return {name: p - old[name] for name, p in parameters(new).items()}, context.report


def are_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def cosine_similarity(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return (inner(a, b) / (norm(a) * norm(b))).item()


def with_people(request: Request, *people: str | None) -> Request:
    return replace(request, people=people)


def displacement_by_autograd(
    problem: ToyProblem, artefact: Artefact, request: Request, length: float, steps: int, *, normalised: bool
) -> dict[str, torch.Tensor]:
    """Return the displacement after steps down the mean of h, by autograd, for unknown identities, with features and labels as inputs."""
    import copy

    labels = len(problem.task.label_names)
    h = MetaLoss(labels + 32, labels, 0)
    h.load_state_dict({k: v for k, v in artefact.tensors.items() if k != "unknown"} | {"embedding.weight": artefact.tensors["unknown"]})
    h.eval()
    model = copy.deepcopy(problem.model)
    target = request.labels if problem.task.kind == "multi_label" else torch.eye(labels)[request.labels]
    for _ in range(steps):
        out = model.vit(pixel_values=request.pixels).last_hidden_state[:, 0]
        logits = model.classifier(out)
        p = logits.sigmoid() if problem.task.kind == "multi_label" else logits.softmax(1)
        m = h.network(torch.cat([p, out, target, h.embedding.weight.expand(len(out), -1)], dim=1)).mean()
        model.zero_grad()
        m.backward()
        updated = [q for q in model.parameters() if q.grad is not None]
        size = torch.sqrt(sum((q.grad**2).sum() for q in updated))
        with torch.no_grad():
            for q in updated:
                q -= (length / steps / size if normalised else length) * q.grad
    old = parameters(problem.model)
    return {name: p - old[name] for name, p in parameters(model).items()}


def test_the_choices_match_the_implemented_objectives_and_distances() -> None:
    choices = {field.name: field.metadata["choices"] for field in dataclasses.fields(MetaUnlearnOptions)}
    assert choices["objective"] == OBJECTIVES
    assert choices["distance"] == tuple(DISTANCES)


@pytest.mark.parametrize(
    ("dataset", "eta", "epochs", "lr"), [("celeba", 0.1, 3, 1e-4), ("celebahq", 0.1, 3, 1e-4), ("mufac", 1e-3, 10, 1e-2)]
)
def test_the_preset_of_the_paper_is_its_recipe(dataset: str, eta: float, epochs: int, lr: float) -> None:
    given = MetaUnlearn.prepare_options("metaunlearn", MetaUnlearn.preset("paper", dataset, 5), {})
    recipe = {
        "step": "raw", "eta": eta, "unlearning_steps": 1, "epochs": epochs, "lr": lr,
        "use_features": True, "use_identity": True, "use_targets": True, "identity_dropout": 0.0,
        "length_by": "model", "holdout": 0.0,
        "objective": "both", "distance": "smooth-l1", "weigh_by_score": True,
        "simulated_size": None, "vary_size": False, "unseen_support": False, "update_tokens": False,
    }  # fmt: skip
    assert {name: getattr(given, name) for name in recipe} == recipe


def test_earlier_option_names_are_read() -> None:
    given = {"see_features": False, "see_targets": False, "see_identity": False, "move_tokens": False, "photos": 7}
    chosen = MetaUnlearn.prepare_options("metaunlearn", given, {})
    assert (chosen.use_features, chosen.use_targets, chosen.use_identity, chosen.update_tokens) == (False,) * 4
    assert chosen.images_per_set == 7


# Inputs of h.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("removed", ["use_features", "use_identity", "use_targets"])
def test_inputs_that_h_lacks_are_not_in_the_artefact(removed: str, kind: str, tmp_path: Path) -> None:
    problem = toy_problem(kind)  # type: ignore[arg-type]
    artefact = prepare(problem, tmp_path / "artefact", **{removed: False})
    sizes = {"use_features": 32, "use_targets": 4, "use_identity": 64}
    assert artefact.tensors["network.0.weight"].shape[1] == 4 + sum(size for name, size in sizes.items() if name != removed)
    step, report = apply(problem, artefact, **artefact.options)
    assert norm(step).item() == pytest.approx(report["step_length"], rel=1e-3)
    assert are_equal(step, apply(problem, artefact, **artefact.options)[0])
    assert are_equal(step, apply(problem, prepare(problem, **{removed: False}), **artefact.options)[0])


def test_without_the_identity_input_names_do_not_affect_the_step(tmp_path: Path) -> None:
    problem = toy_problem("multi_label")
    artefact = prepare(problem, tmp_path / "artefact", use_identity=False)
    assert sorted(file.name for file in (tmp_path / "artefact").iterdir()) == ["artefact.json", "artefact.safetensors"]
    assert not any("embedding" in name or name == "unknown" for name in artefact.tensors)
    steps = [
        apply(problem, artefact, with_people(problem.request, *people), **artefact.options)
        for people in [(None, None), problem.request.people, ("nobody", None), ("person 0", "person 1")]
    ]
    for step, report in steps:
        assert are_equal(step, steps[0][0])
        assert "unknown_people" not in report
    # With it, an unknown name raises and a known one changes the step.
    artefact = prepare(problem, tmp_path / "artefact")
    assert (tmp_path / "artefact" / "people.json").exists()
    with pytest.raises(OneshuiError, match="'nobody' is not among"):
        apply(problem, artefact, with_people(problem.request, "nobody", None), **artefact.options)
    person = next(name for name, parts in artefact.people.items() if "learned" in parts)
    (one, report), (other, _) = (
        apply(problem, artefact, with_people(problem.request, p, None), **artefact.options) for p in (person, None)
    )
    assert report["unknown_people"] == 1
    assert not are_equal(one, other)


def test_without_the_identity_input_unnamed_identities_need_no_dropout() -> None:
    problem = toy_problem("multi_label")
    artefact = prepare(problem, use_identity=False, identity_dropout=0)
    apply(problem, artefact, with_people(problem.request, None, "nobody"), use_identity=False, identity_dropout=0)
    with pytest.raises(OneshuiError, match="cannot be used for an unnamed identity"):
        apply(problem, prepare(problem, identity_dropout=0), with_people(problem.request, None, None), identity_dropout=0)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_affect_the_step_only_as_an_input_of_h(kind: str) -> None:
    problem = toy_problem(kind)  # type: ignore[arg-type]
    other = replace(problem.request, labels=1 - problem.request.labels if kind == "multi_label" else (problem.request.labels + 1) % 4)
    for used in (True, False):
        artefact = prepare(problem, use_targets=used)
        steps = [apply(problem, artefact, request, use_targets=used)[0] for request in (problem.request, other)]
        assert are_equal(*steps) != used


# Several steps.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 3])
def test_raw_steps_are_gradient_descent(steps: int, kind: str) -> None:
    problem = toy_problem(kind)  # type: ignore[arg-type]
    request = with_people(problem.request, None, None)
    values = {"step": "raw", "eta": 0.2, "unlearning_steps": steps}
    artefact = prepare(problem, **values)
    step, report = apply(problem, artefact, request, **values)
    expected = displacement_by_autograd(problem, artefact, request, 0.2, steps, normalised=False)
    assert norm({name: step[name] - expected[name] for name in step}) / norm(expected) < 1e-3
    assert report["step_length"] == pytest.approx(norm(expected).item(), rel=1e-3)
    one = displacement_by_autograd(problem, artefact, request, 0.2 * steps, 1, normalised=False)
    assert steps == 1 or norm({name: step[name] - one[name] for name in step}) / norm(one) > 1e-2


def test_normalised_steps_use_the_learned_length_and_a_selected_length_rescales_their_sum(tmp_path: Path) -> None:
    problem = toy_problem("multi_label")
    request = with_people(problem.request, None, None)
    scale = norm(parameters(problem.model)).item()
    values = {"unlearning_steps": 3, "steps": 3}
    artefact = prepare(problem, tmp_path / "a", **values)
    assert artefact.values["length"] is None  # no length was selected, so the path is not rescaled
    # A long path, which is curved.
    artefact.values["walked"] = 0.05
    path = displacement_by_autograd(problem, artefact, request, 0.05 * scale, 3, normalised=True)
    straight = displacement_by_autograd(problem, artefact, request, 0.05 * scale, 1, normalised=True)
    assert norm(path) < 0.999 * 0.05 * scale
    assert cosine_similarity(path, straight) < 0.999
    step, report = apply(problem, artefact, request, **values)
    assert norm({name: step[name] - path[name] for name in step}) / norm(path) < 1e-3
    assert report["step_length"] == pytest.approx(norm(path).item(), rel=1e-3)
    # A given length rescales the same displacement.
    step, report = apply(problem, artefact, request, length=1e-3, **values)
    assert norm(step).item() == pytest.approx(1e-3 * scale, rel=1e-2)
    assert report["step_length"] == pytest.approx(1e-3 * scale, rel=1e-5)
    assert cosine_similarity(step, path) == pytest.approx(1, abs=1e-4)
    # So does a length that was selected in preparation.
    chosen = replace(artefact, values=artefact.values | {"length": 2e-3})
    step, report = apply(problem, chosen, request, **values)
    assert norm(step).item() == pytest.approx(2e-3 * scale, rel=1e-2)
    assert cosine_similarity(step, path) == pytest.approx(1, abs=1e-4)


def test_the_length_is_selected_along_the_path_of_the_learned_length(monkeypatch: pytest.MonkeyPatch) -> None:
    from oneshui_hf import methods

    problem, scale = toy_problem("multi_label"), norm(parameters(toy_problem("multi_label").model)).item()
    directions = {}

    def choose(model: Any, data: Any, direction: Any, chosen: Any, context: Any) -> tuple[float, list[Any]]:
        (request,) = plan_requests(data, chosen, context)[0]
        directions["request"], directions["unit"] = request, direction(request)
        return 0.01, []

    monkeypatch.setattr(methods, "choose_length", choose)
    monkeypatch.setattr(training, "INITIAL_LENGTH", 0.05)
    values = {"unlearning_steps": 2, "calibration": 1, "steps": 1}
    artefact = prepare(problem, **values)
    assert artefact.values["length"] == pytest.approx(0.01 / scale)
    assert artefact.values["walked"] == pytest.approx(0.05, rel=0.1)
    request = directions["request"]
    pixels, labels = request.support_set.batch(request.support)
    real_request = Request(pixels, (None,) * len(pixels), labels, labels_given=True)
    path = displacement_by_autograd(problem, artefact, real_request, artefact.values["walked"] * scale, 2, normalised=True)
    assert norm(directions["unit"]).item() == pytest.approx(1, rel=1e-5)
    assert cosine_similarity(directions["unit"], path) == pytest.approx(1, abs=1e-5)
    assert (
        cosine_similarity(directions["unit"], displacement_by_autograd(problem, artefact, real_request, 1e-3 * scale, 2, normalised=True))
        < 0.9999
    )
    # The step that is applied is the one that was scored.
    step, _ = apply(problem, artefact, real_request, **values)
    assert norm({name: step[name] - 0.01 * directions["unit"][name] for name in step}).item() < 1e-2 * 0.01


def test_an_artefact_for_one_step_contains_only_the_length() -> None:
    assert set(prepare(toy_problem("multi_label")).values) == {"length"}


@pytest.mark.parametrize(("calibration", "steps"), [(0, 1), (1, 1), (0, 2)])
def test_learned_lengths_by_layer_determine_the_step(calibration: int, steps: int, tmp_path: Path) -> None:
    problem = toy_problem("multi_label")
    values = {"length_by": "layer", "calibration": calibration, "unlearning_steps": steps}
    artefact = prepare(problem, tmp_path / "a", **values)
    request, scale = with_people(problem.request, None, None), norm(parameters(problem.model)).item()
    lengths = [share * scale for share in artefact.values["lengths"]]
    groups = loss_network.step_groups(parameters(problem.model), "layer")
    step, report = apply(problem, artefact, request, **values)
    found = [norm({name: step[name] for name, index in groups.items() if index == group}).item() for group in range(len(lengths))]
    if calibration:  # rescaled together to the selected length
        assert norm(step).item() == pytest.approx(artefact.values["length"] * scale, rel=1e-2)
        assert found == pytest.approx(
            [length * report["step_length"] / norm({"": torch.tensor(lengths)}).item() for length in lengths], rel=1e-2
        )
    else:
        assert artefact.values["length"] is None
        assert found == pytest.approx(lengths, rel=1e-2)
    assert report["step_length"] == pytest.approx(norm(step).item(), rel=1e-2)
    # One length gives another direction, and a given length rescales this one.
    assert cosine_similarity(step, apply(problem, prepare(problem, unlearning_steps=steps), request, unlearning_steps=steps)[0]) < 0.99
    longer, report = apply(problem, artefact, request, length=1e-3, **values)
    assert report["step_length"] == pytest.approx(1e-3 * scale, rel=1e-5)
    assert cosine_similarity(step, longer) == pytest.approx(1, abs=1e-3)
    for damaged in (None, lengths[:-1], [*lengths[:-1], "1"], [*lengths[:-1], float("nan")]):
        with pytest.raises(OneshuiError, match="does not contain a length for each layer"):
            apply(problem, replace(artefact, values=artefact.values | {"lengths": damaged}), request, **values)


def test_options_without_effect_are_inactive() -> None:
    inactive = {"evaluate_every", "early_stopping"}
    assert MetaUnlearn.inactive_options(options()) == {"eta"} | inactive
    assert MetaUnlearn.inactive_options(options(step="raw", holdout=0.2)) == {"length", "length_by"}
    assert MetaUnlearn.inactive_options(options(length_by="layer", step="raw")) == {"length", "length_by"} | inactive


def test_a_length_for_a_raw_step_raises() -> None:
    problem = toy_problem("multi_label")
    with pytest.raises(UsageError, match="--length applies only to a normalised step"):
        prepare(problem, step="raw", length=1e-3)
    with pytest.raises(UsageError, match="--length applies only to a normalised step"):
        apply(problem, prepare(problem, step="raw"), step="raw", length=1e-3)


@pytest.mark.parametrize("values", [{}, {"unlearning_steps": 2}, {"objective": "scrub"}, {"use_identity": False, "step": "raw"}])
def test_the_result_is_deterministic_and_has_no_side_effects(values: dict[str, Any]) -> None:
    problem = toy_problem("multi_label")
    before = {name: p.clone() for name, p in parameters(problem.model).items()}
    state = torch.get_rng_state()
    (a, b) = (prepare(problem, **values) for _ in range(2))
    assert are_equal(a.tensors, b.tensors)
    assert a.values == b.values
    assert are_equal(apply(problem, a, **values)[0], apply(problem, b, **values)[0])
    assert are_equal(parameters(problem.model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in problem.model.parameters())


# Cost.


FEW = {"images_per_set": 7, "steps": 4}
MANY = {"simulated_size": 6, "vary_size": False}  # more forget images than val or retain images


@pytest.mark.parametrize(
    ("objective", "steps", "values"),
    [
        *((name, steps, FEW) for name in OBJECTIVES for steps in (1, 3)),
        ("retain", 1, MANY),
        *((name, steps, FEW | {"holdout": 0.5, "evaluate_every": 3}) for name, steps in (("both", 2), ("val", 1), ("scrub", 1))),
    ],
)
def test_the_cost_counts_the_photos_that_are_processed(
    objective: str, steps: int, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = toy_problem("multi_label")
    chosen = options(objective=objective, unlearning_steps=steps, **values)
    counts = {"forward": 0, "backward": 0}

    def count(module: Any, name: str, what: str, size: Any, weight: int = 1) -> None:
        original = getattr(module, name)

        def counting(*given: Any, **more: Any) -> Any:
            counts[what] += weight * size(given)
            return original(*given, **more)

        monkeypatch.setattr(module, name, counting)

    def predicted(model: Any, faces: FaceSet, accelerator: Any) -> torch.Tensor:
        counts["forward"] += len(faces)
        return torch.zeros(len(faces), 4)

    monkeypatch.setattr(training, "predict", predicted)
    count(objectives, "mean_gradient", "backward", lambda given: len(given[2]))
    for module in (training, objectives):
        count(module, "compute_logits", "forward", lambda given: len(given[1]))
    count(loss_network, "outputs", "backward", lambda given: len(given[2]))  # once per gradient, once per product
    count(loss_network, "_hessian_product", "backward", lambda given: len(given[3].pixels))  # the second pass of a Hessian product
    MetaUnlearn().prepare(problem.model, data_access(problem), chosen, problem.context())
    cost = MetaUnlearn().cost(problem.model, data_access(problem), chosen, problem.context())
    # `cost` itself processes no photos, so the counts are those of the preparation.
    assert {"forward": cost.forward, "backward": cost.backward} == counts


def test_the_cost_includes_the_paths_for_selecting_the_length() -> None:
    problem = toy_problem("multi_label")
    costs = {}
    for steps in (1, 3):
        for calibration in (0, 2):
            chosen = options(unlearning_steps=steps, calibration=calibration)
            costs[steps, calibration] = MetaUnlearn().cost(problem.model, data_access(problem), chosen, problem.context())
    for steps in (1, 3):  # two requests of two identities, with one gradient per step each
        assert costs[steps, 2].backward - costs[steps, 0].backward == steps * 2 * 2
        assert costs[steps, 2].forward - costs[steps, 0].forward == costs[1, 2].forward - costs[1, 0].forward


def test_the_cost_gives_the_size_of_the_artefact() -> None:
    problem = toy_problem("multi_label")
    for values in ({}, {"use_identity": False}, {"use_features": False, "use_targets": False}):
        artefact = prepare(problem, **values)
        rows = (part for parts in artefact.people.values() for part in parts.values())
        kept = sum(part.numel() for part in (*artefact.tensors.values(), *rows))
        assert MetaUnlearn().cost(problem.model, data_access(problem), options(**values), problem.context()).bytes == 4 * kept

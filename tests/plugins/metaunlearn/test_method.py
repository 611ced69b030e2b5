"""MetaUnlearn's options: what h sees, what it is learned for, several steps, the size of simulated requests."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import Artefact, DataAccess, Request, inner, losses, norm, parameters
from oneshui_hf.testing.toy_problem import World, world
from oneshui_plugins.metaunlearn import loss_network as meta_loss
from oneshui_plugins.metaunlearn import method as metaunlearn
from oneshui_plugins.metaunlearn import objectives as meta_objective
from oneshui_plugins.metaunlearn.loss_network import MetaLoss
from oneshui_plugins.metaunlearn.method import Learning, MetaUnlearn, MetaUnlearnOptions, _plan
from oneshui_plugins.metaunlearn.objectives import DISTANCES, TERMS

KINDS = ("multi_label", "single_label")
OBJECTIVES = (*TERMS, "scrub")
QUICK: dict[str, Any] = {"steps": 2, "calibration": 0}


def options(**values: Any) -> MetaUnlearnOptions:
    return MetaUnlearn.prepare_options("metaunlearn", {}, QUICK | values)


def granted(here: World) -> DataAccess:
    return DataAccess(here.sets, MetaUnlearn.needs.prepare)


def prepare(here: World, folder: Path | None = None, **values: Any) -> Artefact:
    """Prepare; where a folder is named, save and load."""
    chosen = options(**values)
    artefact = MetaUnlearn().prepare(here.model, granted(here), chosen, here.context())
    if folder:
        artefact.options = dataclasses.asdict(chosen)
        artefact.save(folder, "metaunlearn", "weights", replace=True)
        artefact = Artefact.load(folder, "metaunlearn", "weights")
    return artefact


def apply(here: World, artefact: Artefact, request: Request | None = None, **values: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the displacement, and what was reported."""
    context = here.context()
    data = DataAccess({"support": request or here.request}, MetaUnlearn.needs.apply)
    new = MetaUnlearn().apply(here.model, data, artefact, options(**values), context)
    old = parameters(here.model)
    return {name: p - old[name] for name, p in parameters(new).items()}, context.report


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def cosine(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return (inner(a, b) / (norm(a) * norm(b))).item()


def named(request: Request, *people: str | None) -> Request:
    return replace(request, people=people)


def descent(here: World, artefact: Artefact, request: Request, length: float, steps: int, *, normalised: bool) -> dict[str, torch.Tensor]:
    """The displacement of some steps down the mean of h, by autograd alone, for unknown people whose features and labels h sees."""
    import copy

    labels = len(here.task.label_names)
    h = MetaLoss(labels + 32, labels, 0)
    h.load_state_dict({k: v for k, v in artefact.tensors.items() if k != "unknown"} | {"embedding.weight": artefact.tensors["unknown"]})
    h.eval()
    model = copy.deepcopy(here.model)
    target = request.labels if here.task.kind == "multi_label" else torch.eye(labels)[request.labels]
    for _ in range(steps):
        out = model.vit(pixel_values=request.pixels).last_hidden_state[:, 0]
        logits = model.classifier(out)
        p = logits.sigmoid() if here.task.kind == "multi_label" else logits.softmax(1)
        m = h.network(torch.cat([p, out, target, h.embedding.weight.expand(len(out), -1)], dim=1)).mean()
        model.zero_grad()
        m.backward()
        moving = [q for q in model.parameters() if q.grad is not None]
        size = torch.sqrt(sum((q.grad**2).sum() for q in moving))
        with torch.no_grad():
            for q in moving:
                q -= (length / steps / size if normalised else length) * q.grad
    old = parameters(here.model)
    return {name: p - old[name] for name, p in parameters(model).items()}


def test_the_choices_are_what_there_is() -> None:
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
        "see_features": True, "see_identity": True, "see_targets": True, "identity_dropout": 0.0,
        "objective": "both", "distance": "smooth-l1", "weigh_by_score": True,
        "simulated_size": None, "vary_size": False, "unseen_support": False, "move_tokens": False,
    }  # fmt: skip
    assert {name: getattr(given, name) for name in recipe} == recipe


# What h sees.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden", ["see_features", "see_identity", "see_targets"])
def test_what_h_does_not_see_is_not_in_the_artefact_and_applying_works(hidden: str, kind: str, tmp_path: Path) -> None:
    here = world(kind)  # type: ignore[arg-type]
    artefact = prepare(here, tmp_path / "artefact", **{hidden: False})
    sizes = {"see_features": 32, "see_targets": 4, "see_identity": 64}
    assert artefact.tensors["network.0.weight"].shape[1] == 4 + sum(size for name, size in sizes.items() if name != hidden)
    step, report = apply(here, artefact, **artefact.options)
    assert norm(step).item() == pytest.approx(report["step_length"], rel=1e-3)
    assert same(step, apply(here, artefact, **artefact.options)[0])
    assert same(step, apply(here, prepare(here, **{hidden: False}), **artefact.options)[0])


def test_without_identity_there_is_no_table_and_anybody_is_served_alike(tmp_path: Path) -> None:
    here = world("multi_label")
    artefact = prepare(here, tmp_path / "artefact", see_identity=False)
    assert sorted(file.name for file in (tmp_path / "artefact").iterdir()) == ["artefact.json", "artefact.safetensors"]
    assert not any("embedding" in name or name == "unknown" for name in artefact.tensors)
    steps = [
        apply(here, artefact, named(here.request, *people), **artefact.options)
        for people in [(None, None), here.request.people, ("nobody", None), ("person 0", "person 1")]
    ]
    for step, report in steps:
        assert same(step, steps[0][0])
        assert "unknown_people" not in report
    # With it, a stranger's name means nothing and a known one changes the step.
    artefact = prepare(here, tmp_path / "artefact")
    assert (tmp_path / "artefact" / "people.json").exists()
    with pytest.raises(OneshuiError, match="'nobody' is not among"):
        apply(here, artefact, named(here.request, "nobody", None), **artefact.options)
    person = next(name for name, parts in artefact.people.items() if "learned" in parts)
    (one, report), (other, _) = (apply(here, artefact, named(here.request, p, None), **artefact.options) for p in (person, None))
    assert report["unknown_people"] == 1
    assert not same(one, other)


def test_without_identity_nobody_is_refused_even_without_its_dropout() -> None:
    here = world("multi_label")
    artefact = prepare(here, see_identity=False, identity_dropout=0)
    apply(here, artefact, named(here.request, None, "nobody"), see_identity=False, identity_dropout=0)
    with pytest.raises(OneshuiError, match="cannot serve an unnamed person"):
        apply(here, prepare(here, identity_dropout=0), named(here.request, None, None), identity_dropout=0)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_change_the_step_where_h_sees_them(kind: str) -> None:
    here = world(kind)  # type: ignore[arg-type]
    other = replace(here.request, labels=1 - here.request.labels if kind == "multi_label" else (here.request.labels + 1) % 4)
    for seen in (True, False):
        artefact = prepare(here, see_targets=seen)
        steps = [apply(here, artefact, request, see_targets=seen)[0] for request in (here.request, other)]
        assert same(*steps) != seen


# What it is learned for.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_falls_as_its_gradient_says(objective: str, kind: str) -> None:
    """A short step of phi down the gradient, on one and the same request; without weights, which are constants to the gradient alone."""
    here = world(kind)  # type: ignore[arg-type]
    chosen = options(objective=objective, unlearning_steps=2, weigh_by_score=False)
    plan = _plan(granted(here), chosen, here.context())
    learning = Learning(here.model, granted(here), plan, chosen, here.context())
    learning.h.eval()
    length = 2e-3 * learning.scale
    value, parts, _ = learning.gradient(plan[0], 0, length)
    slope = sum((part**2).sum().item() for part in parts)
    promised = 5e-4 * abs(value)
    with torch.no_grad():
        for parameter, part in zip(learning.h.parameters(), parts, strict=True):
            parameter -= promised / slope * part
    assert value - learning.gradient(plan[0], 0, length)[0] == pytest.approx(promised, rel=0.2)


def test_objectives_share_their_draws_and_retain_images_are_of_others() -> None:
    here = world("multi_label")
    data = granted(here)
    base = Learning(here.model, data, [], options(), here.context())
    chosen = options(objective="retain")
    for number, (request,) in enumerate(_plan(data, replace(chosen, steps=6), here.context())):
        plain = base.objective(request, (number, 0))
        ours = Learning(here.model, data, [], chosen, here.context()).objective(request, (number, 0))
        for name in ("forget", "val"):
            assert ours.sets[name].rows.tolist() == plain.sets[name].rows.tolist()
        stay = set(ours.sets["retain"].identities.tolist())
        assert stay
        assert not stay & set(request.people)
        assert set(ours.sets["forget"].identities.tolist()) <= set(request.people)
        assert len(ours.sets["retain"]) == min(len(ours.sets["forget"]), len(data.train) - len(request.forget))
        assert set(ours.sets["retain"].rows.tolist()) <= set(data.train.rows.tolist())
        assert "retain" not in plain.sets


@pytest.mark.parametrize("weigh", [True, False])
def test_what_held_before_is_what_the_original_says(weigh: bool) -> None:
    here = world("single_label")
    chosen = options(objective="retain", weigh_by_score=weigh, distance="l1", chunk=3)
    learning = Learning(here.model, granted(here), [], chosen, here.context())
    ours = learning.objective(_plan(granted(here), chosen, here.context())[0][0], (0, 0))
    assert (ours.objective, ours.distance, ours.weigh, ours.chunk) == ("retain", "l1", weigh, 3)
    assert set(ours.before) == {"val", "retain"}
    for name, value in ours.before.items():
        pixels, labels = ours.sets[name].batch(torch.arange(len(ours.sets[name])))
        with torch.no_grad():
            logits = here.model(pixel_values=pixels).logits
        wrong = (logits.argmax(1) != labels).float().mean().item()
        loss = losses(logits, labels, "single_label").mean().item()
        assert value == pytest.approx(loss * wrong if weigh else loss, rel=1e-5, abs=1e-9)


def test_nobody_left_to_retain_is_an_error_before_the_work() -> None:
    here = world("multi_label")
    for objective in OBJECTIVES:
        chosen = options(objective=objective, simulated_size=8, vary_size=False, unseen_support=False)
        if objective in ("retain", "scrub"):
            for call in (MetaUnlearn().prepare, MetaUnlearn().cost):
                with pytest.raises(UsageError, match=f"--objective {objective} finds nobody to retain"):
                    call(here.model, granted(here), chosen, here.context())
        else:
            _plan(granted(here), chosen, here.context())


# Several steps.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 3])
def test_raw_steps_are_plain_descent(steps: int, kind: str) -> None:
    here = world(kind)  # type: ignore[arg-type]
    request = named(here.request, None, None)
    values = {"step": "raw", "eta": 0.2, "unlearning_steps": steps}
    artefact = prepare(here, **values)
    step, report = apply(here, artefact, request, **values)
    expected = descent(here, artefact, request, 0.2, steps, normalised=False)
    assert norm({name: step[name] - expected[name] for name in step}) / norm(expected) < 1e-3
    assert report["step_length"] == pytest.approx(norm(expected).item(), rel=1e-3)
    one = descent(here, artefact, request, 0.2 * steps, 1, normalised=False)
    assert steps == 1 or norm({name: step[name] - one[name] for name in step}) / norm(one) > 1e-2


def test_normalised_steps_walk_the_learned_length_and_the_chosen_one_rescales_where_they_lead(tmp_path: Path) -> None:
    here = world("multi_label")
    request = named(here.request, None, None)
    scale = norm(parameters(here.model)).item()
    values = {"unlearning_steps": 3, "steps": 3}
    artefact = prepare(here, tmp_path / "a", **values)
    assert artefact.values["length"] is None  # none was chosen: the path as it is
    # A long path, so that it bends.
    artefact.values["walked"] = 0.05
    path = descent(here, artefact, request, 0.05 * scale, 3, normalised=True)
    straight = descent(here, artefact, request, 0.05 * scale, 1, normalised=True)
    assert norm(path) < 0.999 * 0.05 * scale
    assert cosine(path, straight) < 0.999
    step, report = apply(here, artefact, request, **values)
    assert norm({name: step[name] - path[name] for name in step}) / norm(path) < 1e-3
    assert report["step_length"] == pytest.approx(norm(path).item(), rel=1e-3)
    # A length that is given rescales the same displacement.
    step, report = apply(here, artefact, request, length=1e-3, **values)
    assert norm(step).item() == pytest.approx(1e-3 * scale, rel=1e-2)
    assert report["step_length"] == pytest.approx(1e-3 * scale, rel=1e-5)
    assert cosine(step, path) == pytest.approx(1, abs=1e-4)
    # And so does one that was chosen in preparation.
    chosen = replace(artefact, values=artefact.values | {"length": 2e-3})
    step, report = apply(here, chosen, request, **values)
    assert norm(step).item() == pytest.approx(2e-3 * scale, rel=1e-2)
    assert cosine(step, path) == pytest.approx(1, abs=1e-4)


def test_the_length_is_chosen_along_the_path_walked_at_the_learned_length(monkeypatch: pytest.MonkeyPatch) -> None:
    from oneshui_hf import methods

    here, scale = world("multi_label"), norm(parameters(world("multi_label").model)).item()
    directions = {}

    def choose(model: Any, data: Any, direction: Any, chosen: Any, context: Any) -> tuple[float, list[Any]]:
        (request,) = _plan(data, chosen, context)[0]
        directions["request"], directions["unit"] = request, direction(request)
        return 0.01, []

    monkeypatch.setattr(methods, "choose_length", choose)
    monkeypatch.setattr(metaunlearn, "START_LENGTH", 0.05)
    values = {"unlearning_steps": 2, "calibration": 1, "steps": 1}
    artefact = prepare(here, **values)
    assert artefact.values["length"] == pytest.approx(0.01 / scale)
    assert artefact.values["walked"] == pytest.approx(0.05, rel=0.1)
    request = directions["request"]
    pixels, labels = request.support_set.batch(request.support)
    handed_in = Request(pixels, (None,) * len(pixels), labels, labels_given=True)
    path = descent(here, artefact, handed_in, artefact.values["walked"] * scale, 2, normalised=True)
    assert norm(directions["unit"]).item() == pytest.approx(1, rel=1e-5)
    assert cosine(directions["unit"], path) == pytest.approx(1, abs=1e-5)
    assert cosine(directions["unit"], descent(here, artefact, handed_in, 1e-3 * scale, 2, normalised=True)) < 0.9999
    # The step that is taken in the end is the one that was judged.
    step, _ = apply(here, artefact, handed_in, **values)
    assert norm({name: step[name] - 0.01 * directions["unit"][name] for name in step}).item() < 1e-2 * 0.01


def test_one_step_keeps_its_artefact() -> None:
    assert set(prepare(world("multi_label")).values) == {"length"}


def test_a_length_means_nothing_to_a_raw_step() -> None:
    here = world("multi_label")
    with pytest.raises(UsageError, match="--length sets a normalised step"):
        prepare(here, step="raw", length=1e-3)
    with pytest.raises(UsageError, match="--length sets a normalised step"):
        apply(here, prepare(here, step="raw"), step="raw", length=1e-3)


@pytest.mark.parametrize("values", [{}, {"unlearning_steps": 2}, {"objective": "scrub"}, {"see_identity": False, "step": "raw"}])
def test_the_same_seed_gives_the_same_bytes_and_nothing_else_changes(values: dict[str, Any]) -> None:
    here = world("multi_label")
    before = {name: p.clone() for name, p in parameters(here.model).items()}
    state = torch.get_rng_state()
    (a, b) = (prepare(here, **values) for _ in range(2))
    assert same(a.tensors, b.tensors)
    assert a.values == b.values
    assert same(apply(here, a, **values)[0], apply(here, b, **values)[0])
    assert same(parameters(here.model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in here.model.parameters())


# The size of simulated requests.


@pytest.mark.parametrize(
    ("values", "sizes"),
    [
        ({"vary_size": False}, {2}),  # the run's own
        ({}, {1, 2, 3, 4}),
        ({"simulated_size": 1, "vary_size": False}, {1}),
        ({"simulated_size": 3, "vary_size": False}, {3}),
        ({"simulated_size": 1}, {1, 2}),
    ],
)
def test_simulated_requests_have_the_size_that_was_asked_for(values: dict[str, Any], sizes: set[int]) -> None:
    here = world("multi_label")
    assert here.context().request_size == 2
    # Six people can ask, so requests of 1, 2 and 3 leave no smaller rest; from sizes that vary the rest is one of them.
    plan = _plan(granted(here), options(steps=40, **values), here.context())
    assert {len(request.people) for group in plan for request in group} == sizes


def test_more_people_than_can_ask_is_an_error() -> None:
    here = world("multi_label")
    with pytest.raises(UsageError, match="--simulated-size 7 is more than the 6 people who can ask"):
        prepare(here, simulated_size=7)


# What it costs.


FEW = {"photos": 7, "steps": 4}
MANY = {"simulated_size": 6, "vary_size": False}  # more forget images than there are of strangers, or of others


@pytest.mark.parametrize(
    ("objective", "steps", "values"), [*((name, steps, FEW) for name in OBJECTIVES for steps in (1, 3)), ("retain", 1, MANY)]
)
def test_the_dry_run_counts_what_is_done(objective: str, steps: int, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    here = world("multi_label")
    chosen = options(objective=objective, unlearning_steps=steps, **values)
    done = {"forward": 0, "backward": 0}

    def count(module: Any, name: str, what: str, size: Any, weight: int = 1) -> None:
        right = getattr(module, name)

        def counting(*given: Any, **more: Any) -> Any:
            done[what] += weight * size(given)
            return right(*given, **more)

        monkeypatch.setattr(module, name, counting)

    def predicted(model: Any, faces: FaceSet, accelerator: Any) -> torch.Tensor:
        done["forward"] += len(faces)
        return torch.zeros(len(faces), 4)

    from oneshui_hf import methods

    monkeypatch.setattr(methods, "predict", predicted)
    count(meta_objective, "mean_gradient", "backward", lambda given: len(given[2]))
    count(meta_objective, "answers", "forward", lambda given: len(given[1]))
    count(meta_loss, "said", "backward", lambda given: len(given[2]))  # once a gradient, once a product
    count(meta_loss, "_hessian_product", "backward", lambda given: len(given[3].pixels))  # the second photo of a Hessian product
    MetaUnlearn().prepare(here.model, granted(here), chosen, here.context())
    told = MetaUnlearn().cost(here.model, granted(here), chosen, here.context())
    # `cost` asks for nothing, so what is counted is the preparation's alone.
    assert {"forward": told.forward, "backward": told.backward} == done


def test_the_dry_run_counts_the_paths_on_which_the_length_is_chosen() -> None:
    here = world("multi_label")
    costs = {}
    for steps in (1, 3):
        for calibration in (0, 2):
            chosen = options(unlearning_steps=steps, calibration=calibration)
            costs[steps, calibration] = MetaUnlearn().cost(here.model, granted(here), chosen, here.context())
    for steps in (1, 3):  # two requests of two people, each as many gradients as there are steps
        assert costs[steps, 2].backward - costs[steps, 0].backward == steps * 2 * 2
        assert costs[steps, 2].forward - costs[steps, 0].forward == costs[1, 2].forward - costs[1, 0].forward


def test_the_dry_run_knows_the_size_of_what_is_kept() -> None:
    here = world("multi_label")
    for values in ({}, {"see_identity": False}, {"see_features": False, "see_targets": False}):
        artefact = prepare(here, **values)
        rows = (part for parts in artefact.people.values() for part in parts.values())
        kept = sum(part.numel() for part in (*artefact.tensors.values(), *rows))
        assert MetaUnlearn().cost(here.model, granted(here), options(**values), here.context()).bytes == 4 * kept

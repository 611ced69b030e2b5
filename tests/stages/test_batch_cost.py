"""What a batch costs the others: the sizes, the curve against independent scores, and the interpolation."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from oneshui_hf.errors import OneshuiError
from oneshui_hf.methods import Artefact, Context, DataAccess, Method, Needs, Request, generator, option
from oneshui_hf.methods.resume import ResumeState
from oneshui_hf.stages import batch_cost
from oneshui_hf.stages.batch_cost import DRAWS, LARGEST, SIMULATED, batch_sizes, estimate_cost, simulate_batches, simulation_cost
from oneshui_hf.testing.toy_problem import ToyProblem, toy_problem
from support.recording_reporter import RecordingReporter


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the method that is simulated."""

    noise: float = option(0.2, "Standard deviation of the noise, per person.")


class Noisy(Method[Options]):
    """Adds noise to the head, the more the more people are forgotten."""

    summary, paper, options, prepares = "noise", "-", Options, "required"
    needs = Needs(prepare=frozenset({"train"}), apply=frozenset({"support", "forget", "retain"}))

    def __init__(self) -> None:
        self.made: list[tuple[Request, DataAccess, torch.nn.Module]] = []

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
        assert artefact is not None
        new, size = copy.deepcopy(model), len(data.support)
        assert context.request_size == size
        with torch.no_grad():
            weight = new.classifier.weight
            weight += options.noise * size * torch.randn(weight.shape, generator=generator(context.seed, "noise", size))
        self.made.append((data.support, data, new))
        return new


class Failing(Noisy):
    def apply(self, *given: Any) -> Any:
        raise RuntimeError("a shape")


@pytest.fixture(scope="module")
def problem() -> ToyProblem:
    return toy_problem("multi_label")


def context(problem: ToyProblem) -> Context:
    from oneshui_hf.stages.distributed import make_accelerator

    return Context(problem.task, 3, make_accelerator(), RecordingReporter())


def independent_map(model: torch.nn.Module, faces: Any) -> float:
    with torch.no_grad():
        logits = model(pixel_values=faces.batch(torch.arange(len(faces)))[0]).logits.double().numpy()
    labels = faces.labels.numpy()
    varying = [k for k in range(labels.shape[1]) if 0 < labels[:, k].sum() < len(labels)]
    return float(100 * np.mean([average_precision_score(labels[:, k], logits[:, k]) for k in varying]))


def test_sizes_grow_and_leave_half_of_the_people() -> None:
    assert batch_sizes(0) == batch_sizes(1) == []
    assert batch_sizes(2) == [1]
    assert batch_sizes(14) == [1, 2, 5, 7]
    assert batch_sizes(178) == [1, 2, 5, 10, 20, 50, 89]
    assert batch_sizes(10**6) == [1, 2, 5, 10, 20, 50, LARGEST]


def test_the_curve_has_the_mean_scores_of_models_that_forget_the_first_people_of_each_draw(problem: ToyProblem) -> None:
    method, artefact = Noisy(), Artefact(values={"kept": 1})
    found = simulate_batches(method, problem.model, problem.sets, artefact, Options(), context(problem))[SIMULATED]
    train, val = problem.sets["train"], problem.sets["val"]
    assert train.reserved is not None
    sizes = batch_sizes(len(train.reserved.positions_of))  # only these people have a photo that the model has not seen
    assert (len(method.made), artefact) == (DRAWS * len(sizes), Artefact(values={"kept": 1}))
    expected = []
    for draw in range(DRAWS):
        made = method.made[draw * len(sizes) : (draw + 1) * len(sizes)]
        people = [tuple(request.people) for request, _, _ in made]
        assert [len(set(names)) for names in people] == sizes
        assert all(people[-1][: len(names)] == names for names in people)  # each size has the first people of the largest one
        for (request, data, _), names in zip(made, people, strict=True):
            numbers = {train.people.index(str(name)) for name in names}
            assert set(data.forget.identities.tolist()) == numbers
            assert not numbers & set(data.retain.identities.tolist())
            assert request.labels_given
        others = train.subset(train.positions_without({train.people.index(str(name)) for name in people[-1]}))
        models = [problem.model, *(model for _, _, model in made)]
        expected.append([[independent_map(model, others), independent_map(model, val)] for model in models])
    rows = [[row["retain"], row["val"]] for row in found["rows"]]
    assert np.allclose(rows, np.mean(expected, axis=0), atol=1e-3)
    assert [row["people"] for row in found["rows"]] == [0, *sizes]
    assert rows[0][0] > rows[-1][0]  # noise costs something, or the test shows nothing
    assert found == simulate_batches(Noisy(), problem.model, problem.sets, artefact, Options(), context(problem))[SIMULATED]
    models, photos = simulation_cost(Noisy, problem.sets, 3)
    assert (models, photos) == (DRAWS * len(sizes), DRAWS * (1 + len(sizes)) * (len(train) + len(val)))


def test_no_name_is_in_the_curve(problem: ToyProblem) -> None:
    found = simulate_batches(Noisy(), problem.model, problem.sets, Artefact(), Options(), context(problem))
    assert not any(str(person) in str(found) for person in problem.sets["train"].people)


def test_a_failing_simulation_is_a_warning_and_nothing_is_kept(problem: ToyProblem) -> None:
    for method, model in ((Failing(), problem.model), (Noisy(), problem.model)):
        given = context(problem)
        sets = problem.sets if isinstance(method, Failing) else {**problem.sets, "train": problem.sets["train"].subset(torch.arange(1))}
        assert simulate_batches(method, model, sets, Artefact(), Options(), given) == {}
        (warning,) = given.reporter.warnings  # type: ignore[attr-defined]
        assert warning.startswith("What a batch of requests costs the others is not known")
    assert simulation_cost(Noisy, {**problem.sets, "train": problem.sets["train"].subset(torch.arange(1))}, 0) == (0, 0)


def report(*rows: tuple[int, float, float]) -> dict[str, Any]:
    return {SIMULATED: {"rows": [{"people": people, "retain": retain, "val": val} for people, retain, val in rows]}}


def test_the_estimate_is_interpolated_and_continued() -> None:
    known = report((0, 90.0, 60.0), (1, 89.5, 60.5), (5, 88.0, 60.0), (10, 84.0, 59.0))
    for people in range(11):
        found = estimate_cost(known, people)
        assert found is not None
        assert found.retain == pytest.approx(np.interp(people, [0, 1, 5, 10], [0, 0.5, 2, 6]))
        assert found.val == pytest.approx(np.interp(people, [0, 1, 5, 10], [0, -0.5, 0, 1]))
    found = estimate_cost(known, 20)
    assert found is not None
    assert (found.retain, found.val, found.simulated) == (pytest.approx(14), pytest.approx(3), 10)
    falling = estimate_cost(report((0, 90.0, 60.0), (1, 80.0, 60.0), (2, 85.0, 60.0)), 9)
    assert falling is not None
    assert falling.retain == pytest.approx(5)  # a rise by chance is not continued
    assert estimate_cost({}, 1) is None
    assert estimate_cost({SIMULATED: {"rows": []}}, 1) is None


def test_photos_on_which_no_label_varies_have_no_score(problem: ToyProblem) -> None:
    val = problem.sets["val"]
    constant = dataclasses.replace(val, labels=torch.zeros_like(val.labels))
    with pytest.raises(OneshuiError, match="no label varies"):
        batch_cost.val_sample(constant, problem.task, 0)


def test_simulated_requests_do_not_read_the_saved_state_of_the_preparation(problem: ToyProblem, tmp_path: Path) -> None:
    class Saving(Noisy):
        """Continues its own sum, as a preparation of the same method does under the same name."""

        def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
            state = context.resume_state.part("sums")
            assert state.load() is None
            state.save({"sum": torch.ones(1)}, {"done": 1})
            return super().apply(model, data, artefact, options, context)

    saved = dataclasses.replace(context(problem), resume_state=ResumeState(tmp_path / "state"))
    saved.resume_state.part("sums").save({"sum": torch.zeros(1)}, {"done": 7})
    method = Saving()
    assert simulate_batches(method, problem.model, problem.sets, Artefact(), Options(), saved)
    assert method.made

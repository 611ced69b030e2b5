"""Simulated requests: their identities and photos, and choosing a step length on them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.data.schema import Task
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import Context, DataAccess, StepOptions, choose_length, losses, norm, parameters, unit
from oneshui_hf.methods.simulation import SimulatedRequest, sample, simulate
from oneshui_hf.methods.step_length import SHORTEST
from oneshui_hf.models.new import new_model
from oneshui_hf.reporting import Reporter
from oneshui_hf.seeding import generator

SIZE = 16
TASK = Task("multi_label", ("a", "b", "c"))


def face_set(people: list[int], first_row: int = 0, reserved: FaceSet | None = None) -> FaceSet:
    """One photo of noise per entry, of that identity; rows count from `first_row`."""
    random = np.random.default_rng([first_row, len(people)])
    store = np.zeros((first_row + len(people), 3, SIZE, SIZE), dtype=np.uint8)
    store[first_row:] = random.integers(0, 256, (len(people), 3, SIZE, SIZE))
    labels = torch.from_numpy(random.integers(0, 2, (len(people), 3))).float()
    rows, names = np.arange(first_row, first_row + len(people)), tuple(f"p{i}" for i in range(100))
    return FaceSet(store, rows, labels, torch.tensor(people, dtype=torch.int64), Preprocess(SIZE), names, reserved)


def training_set(counts: list[int], reserved: list[int] | None = None) -> FaceSet:
    """Identity i has counts[i] photos, and one reserved photo if `reserved` contains it."""
    people = [person for person, count in enumerate(counts) for _ in range(count)]
    return face_set(people, reserved=face_set(reserved, 1000) if reserved is not None else None)


photo_counts = st.lists(st.integers(1, 5), min_size=2, max_size=25).filter(lambda counts: max(counts) >= 2)


@settings(max_examples=60, deadline=None)
@given(photo_counts, st.integers(1, 4), st.integers(0, 4), st.integers(0, 2**31))
def test_each_eligible_identity_occurs_once_per_epoch(counts: list[int], smallest: int, range_of_sizes: int, seed: int) -> None:
    train = training_set(counts)
    requests = list(simulate(train, (smallest, smallest + range_of_sizes), generator(seed), unseen=False))
    people = [person for request in requests for person in request.people]
    assert sorted(people) == [person for person, count in enumerate(counts) if count >= 2]
    assert all(smallest <= len(request.people) <= smallest + range_of_sizes for request in requests[:-1])
    assert 1 <= len(requests[-1].people) <= smallest + range_of_sizes  # the last one has the remaining identities


@settings(max_examples=60, deadline=None)
@given(photo_counts, st.integers(0, 2**31))
def test_no_photo_is_both_support_and_forget(counts: list[int], seed: int) -> None:
    train = training_set(counts)
    for request in simulate(train, (1, 3), generator(seed), unseen=False):
        assert request.support_set is train
        support, forget = request.support.tolist(), request.forget.tolist()
        assert train.identities[support].tolist() == list(request.people)
        assert not set(support) & set(forget)
        expected = torch.isin(train.identities, torch.tensor(request.people)).nonzero().squeeze(1).tolist()
        assert sorted(support + forget) == expected


@settings(max_examples=40, deadline=None)
@given(photo_counts, st.integers(0, 2**31))
def test_unseen_support_images_are_reserved_photos(counts: list[int], seed: int) -> None:
    eligible = list(range(0, len(counts), 2))
    train = training_set(counts, reserved=[*eligible, 99])  # 99 has no training photo
    requests = list(simulate(train, (1, 2), generator(seed), unseen=True))
    assert sorted(person for request in requests for person in request.people) == eligible
    for request in requests:
        assert request.support_set is train.reserved
        assert request.support_set.identities[request.support].tolist() == list(request.people)
        expected = torch.isin(train.identities, torch.tensor(request.people)).nonzero().squeeze(1)
        assert sorted(request.forget.tolist()) == expected.tolist()


def contents(requests: list[SimulatedRequest]) -> list[tuple[object, ...]]:
    return [(r.people, tuple(r.support.tolist()), tuple(r.forget.tolist())) for r in requests]


def test_requests_depend_on_the_seed_alone() -> None:
    train = training_set([4] * 12)
    first, again, other = (contents(list(simulate(train, (1, 3), generator(seed), unseen=False))) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_global_random_state_is_neither_read_nor_changed() -> None:
    train = training_set([4] * 12)
    torch.manual_seed(1)
    first, state = contents(list(simulate(train, (1, 3), generator(0), unseen=False))), torch.get_rng_state()
    torch.manual_seed(2)
    assert contents(list(simulate(train, (1, 3), generator(0), unseen=False))) == first
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_error_states_why_no_request_can_be_simulated() -> None:
    with pytest.raises(UsageError, match="No request can be simulated: no training identity has two photos"):
        next(simulate(training_set([1, 1]), (1, 1), generator(0), unseen=False))
    message = "no identity that may be simulated has a reserved photo in the split; train with a larger --reserve-supports"
    for reserved in (None, [], [99]):
        with pytest.raises(UsageError, match=message):
            next(simulate(training_set([2, 2], reserved), (1, 1), generator(0), unseen=True))


@given(st.integers(0, 20), st.integers(0, 25), st.integers(0, 2**31))
def test_sample_is_without_replacement_and_in_order(count: int, size: int, seed: int) -> None:
    positions = torch.arange(count) * 3
    drawn = sample(positions, size, generator(seed)).tolist()
    assert drawn == sorted(set(drawn))
    assert set(drawn) <= set(positions.tolist())
    assert len(drawn) == min(count, size)
    assert [3 * i for i in sample(count, size, generator(seed)).tolist()] == drawn


class RecordingReporter(Reporter):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def choose(
    train: FaceSet, max_retain_drop: float = 5.0, reporter: Reporter | None = None, people: int = 2, requests: int = 2
) -> tuple[torch.nn.Module, float, list[dict[str, float]]]:
    """Return a tiny model, the length chosen for gradient ascent as a share of the norm of its parameters, and the rows."""
    model = new_model("tiny", TASK, SIZE, 0)[0].eval()

    def direction(request: SimulatedRequest) -> dict[str, torch.Tensor]:
        pixels, labels = request.support_set.batch(request.support)
        loss = losses(model(pixel_values=pixels).logits, labels, "multi_label").mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        return unit({n: g for (n, _), g in zip(model.named_parameters(), gradients, strict=True)})

    context = Context(TASK, 0, Accelerator(cpu=True), reporter or RecordingReporter(), request_size=people)
    data = DataAccess({"train": train, "val": face_set([50 + i // 3 for i in range(30)], 500)}, frozenset({"train", "val"}))
    length, rows = choose_length(
        model, data, direction, StepOptions(unseen_support=False, calibration=requests, max_retain_drop=max_retain_drop), context
    )
    return model, length / norm(parameters(model)).item(), rows


@pytest.mark.parametrize("max_retain_drop", [0.0, 2.0, 100.0])
def test_chosen_length_has_the_highest_tow_within_the_bound(max_retain_drop: float) -> None:
    _, share, rows = choose(training_set([4] * 10), max_retain_drop)
    chosen = next(row for row in rows if row["length"] == pytest.approx(share, rel=1e-5))
    within = [row for row in rows[1:] if rows[0]["retain"] - row["retain"] <= max_retain_drop]
    assert chosen["length"] > 0
    assert chosen["tow"] == (max(row["tow"] for row in within) if within else rows[1]["tow"])


def test_lengths_are_doubled_from_the_shortest() -> None:
    _, _, rows = choose(training_set([4] * 10))
    lengths = [row["length"] for row in rows]
    assert lengths == sorted(set(lengths))
    assert lengths[0] == 0
    assert lengths[1] == SHORTEST
    assert all(longer / shorter <= 2.0001 for shorter, longer in itertools.pairwise(lengths[1:]))


def test_first_row_is_the_original_model() -> None:
    _, _, rows = choose(training_set([4] * 10), requests=1)
    baseline = rows[0]
    assert baseline["length"] == 0
    # retain and val are unchanged, so ToW depends only on the difference between the forget and val scores
    assert baseline["tow"] == pytest.approx(100 - abs(baseline["forget"] - baseline["val"]))
    assert 0 < baseline["retain"] <= 100


def test_step_that_does_not_raise_tow_gives_a_warning() -> None:
    reporter = RecordingReporter()
    _, share, rows = choose(training_set([4] * 10), 0.0, reporter)
    chosen = next(row for row in rows if row["length"] == pytest.approx(share, rel=1e-5))
    assert bool(reporter.warnings) == (chosen["tow"] <= rows[0]["tow"])


def test_choosing_a_length_changes_neither_model_nor_global_state() -> None:
    original = parameters(new_model("tiny", TASK, SIZE, 0)[0])
    torch.manual_seed(3)
    state = torch.get_rng_state()
    model, _, _ = choose(training_set([4] * 10))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, original[name]) for name, value in parameters(model).items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_choosing_a_length_is_reproducible() -> None:
    train = training_set([4] * 10)
    assert choose(train)[1:] == choose(train)[1:]


def test_request_of_all_training_identities_leaves_no_retain_set() -> None:
    with pytest.raises(OneshuiError, match="takes in all training people, so no retain set is left"):
        choose(training_set([4] * 3), people=3)

"""Simulated requests: who asks, with which photo, and choosing a step length on them."""

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
from oneshui_hf.methods import Context, DataAccess, StepOptions, choose_length, inner, losses, moved, norm, parameters, unit
from oneshui_hf.methods.simulation import Simulated, sample, simulate
from oneshui_hf.methods.step_length import SHORTEST
from oneshui_hf.models.load import new_model
from oneshui_hf.reporting import Reporter
from oneshui_hf.seeding import generator

SIZE = 16
TASK = Task("multi_label", ("a", "b", "c"))


def face_set(people: list[int], first_row: int = 0, reserved: FaceSet | None = None) -> FaceSet:
    """One photo of noise an entry, of that person; rows count from `first_row`."""
    draws = np.random.default_rng([first_row, len(people)])
    store = np.zeros((first_row + len(people), 3, SIZE, SIZE), dtype=np.uint8)
    store[first_row:] = draws.integers(0, 256, (len(people), 3, SIZE, SIZE))
    labels = torch.from_numpy(draws.integers(0, 2, (len(people), 3))).float()
    rows, names = np.arange(first_row, first_row + len(people)), tuple(f"p{i}" for i in range(100))
    return FaceSet(store, rows, labels, torch.tensor(people, dtype=torch.int64), Preprocess(SIZE), names, reserved)


def training_set(counts: list[int], reserved: list[int] | None = None) -> FaceSet:
    """Person i has counts[i] photos, and one reserved photo where `reserved` names them."""
    kept = face_set(reserved, 1000) if reserved is not None else None
    return face_set([person for person, count in enumerate(counts) for _ in range(count)], reserved=kept)


counts_of_people = st.lists(st.integers(1, 5), min_size=2, max_size=25).filter(lambda counts: max(counts) >= 2)


@settings(max_examples=60, deadline=None)
@given(counts_of_people, st.integers(1, 4), st.integers(0, 4), st.integers(0, 2**31))
def test_each_person_who_can_asks_once_an_epoch(counts: list[int], least: int, more: int, seed: int) -> None:
    train = training_set(counts)
    requests = list(simulate(train, (least, least + more), generator(seed), unseen=False))
    asked = [person for request in requests for person in request.people]
    assert sorted(asked) == [person for person, count in enumerate(counts) if count >= 2]
    assert all(least <= len(request.people) <= least + more for request in requests[:-1])
    assert 1 <= len(requests[-1].people) <= least + more  # the last one takes whoever is left


@settings(max_examples=60, deadline=None)
@given(counts_of_people, st.integers(0, 2**31))
def test_a_photo_is_not_both_support_and_forget(counts: list[int], seed: int) -> None:
    train = training_set(counts)
    for request in simulate(train, (1, 3), generator(seed), unseen=False):
        assert request.support_set is train
        support, forget = request.support.tolist(), request.forget.tolist()
        assert train.identities[support].tolist() == list(request.people)
        assert not set(support) & set(forget)
        theirs = torch.isin(train.identities, torch.tensor(request.people)).nonzero().squeeze(1).tolist()
        assert sorted(support + forget) == theirs


@settings(max_examples=40, deadline=None)
@given(counts_of_people, st.integers(0, 2**31))
def test_an_unseen_photo_is_a_reserved_one(counts: list[int], seed: int) -> None:
    able = list(range(0, len(counts), 2))
    train = training_set(counts, reserved=[*able, 99])  # 99 has no training photo left to forget
    requests = list(simulate(train, (1, 2), generator(seed), unseen=True))
    assert sorted(person for request in requests for person in request.people) == able
    for request in requests:
        assert request.support_set is train.reserved
        assert request.support_set.identities[request.support].tolist() == list(request.people)
        expected = torch.isin(train.identities, torch.tensor(request.people)).nonzero().squeeze(1)
        assert sorted(request.forget.tolist()) == expected.tolist()


def words(requests: list[Simulated]) -> list[tuple[object, ...]]:
    return [(r.people, tuple(r.support.tolist()), tuple(r.forget.tolist())) for r in requests]


def test_the_same_seed_gives_the_same_requests_and_another_different_ones() -> None:
    train = training_set([4] * 12)
    first, second, other = (words(list(simulate(train, (1, 3), generator(seed), unseen=False))) for seed in (0, 0, 1))
    assert first == second
    assert first != other


def test_global_random_state_neither_matters_nor_changes() -> None:
    train = training_set([4] * 12)
    torch.manual_seed(1)
    first, state = words(list(simulate(train, (1, 3), generator(0), unseen=False))), torch.get_rng_state()
    torch.manual_seed(2)
    assert words(list(simulate(train, (1, 3), generator(0), unseen=False))) == first
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_where_nobody_can_ask_the_sentence_says_why() -> None:
    with pytest.raises(UsageError, match="No request can be simulated: no training person has two photos"):
        next(simulate(training_set([1, 1]), (1, 1), generator(0), unseen=False))
    message = "nobody who may ask has a photo reserved in the split; train with a larger --reserve-supports, or use --no-unseen-support"
    for reserved in (None, [], [99]):
        with pytest.raises(UsageError, match=message):
            next(simulate(training_set([2, 2], reserved), (1, 1), generator(0), unseen=True))


@given(st.integers(0, 20), st.integers(0, 25), st.integers(0, 2**31))
def test_a_sample_is_without_replacement_and_in_order(count: int, wanted: int, seed: int) -> None:
    positions = torch.arange(count) * 3
    drawn = sample(positions, wanted, generator(seed)).tolist()
    assert drawn == sorted(set(drawn))
    assert set(drawn) <= set(positions.tolist())
    assert len(drawn) == min(count, wanted)
    assert [3 * i for i in sample(count, wanted, generator(seed)).tolist()] == drawn


def test_a_step_is_added_to_a_copy() -> None:
    model = torch.nn.Linear(2, 1)
    before = {name: p.clone() for name, p in parameters(model).items()}
    new = moved(model, {"weight": torch.ones(1, 2)}, 0.5)
    assert torch.equal(new.weight, before["weight"] + 0.5)
    assert torch.equal(new.bias, before["bias"])
    assert all(torch.equal(p, before[name]) for name, p in parameters(model).items())


def test_a_unit_step_has_length_one_and_the_same_direction() -> None:
    step = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}
    assert norm(step).item() == 5
    assert inner(step, step).item() == 25
    assert norm(unit(step)).item() == pytest.approx(1)
    assert unit(step)["a"].tolist() == pytest.approx([0.6, 0.0])


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_step_without_direction_is_refused(value: float) -> None:
    with pytest.raises(OneshuiError, match="no direction to step in; try another photo"):
        unit({"a": torch.full((2,), value)})


class Hearing(Reporter):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def chosen(
    train: FaceSet, max_damage: float = 5.0, reporter: Reporter | None = None, people: int = 2, requests: int = 2
) -> tuple[torch.nn.Module, float, list[dict[str, float]]]:
    """A tiny model, the length chosen for steps up its loss, as a share of its norm, and the rows tried."""
    model = new_model("tiny", TASK, SIZE, 0)[0].eval()

    def direction(request: Simulated) -> dict[str, torch.Tensor]:
        pixels, labels = request.support_set.batch(request.support)
        loss = losses(model(pixel_values=pixels).logits, labels, "multi_label").mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        return unit({n: g for (n, _), g in zip(model.named_parameters(), gradients, strict=True)})

    context = Context(TASK, 0, Accelerator(cpu=True), reporter or Hearing(), request_size=people)
    data = DataAccess({"train": train, "val": face_set([50 + i // 3 for i in range(30)], 500)}, frozenset({"train", "val"}))
    length, rows = choose_length(
        model, data, direction, StepOptions(unseen_support=False, calibration=requests, max_damage=max_damage), context
    )
    return model, length / norm(parameters(model)).item(), rows


@pytest.mark.parametrize("max_damage", [0.0, 2.0, 100.0])
def test_the_length_chosen_is_the_best_of_those_tried_that_cost_the_others_little(max_damage: float) -> None:
    _, share, rows = chosen(training_set([4] * 10), max_damage)
    taken = next(row for row in rows if row["length"] == pytest.approx(share, rel=1e-5))
    allowed = [row for row in rows[1:] if rows[0]["retain"] - row["retain"] <= max_damage]
    assert taken["length"] > 0
    assert taken["tow"] == (max(row["tow"] for row in allowed) if allowed else rows[1]["tow"])


def test_the_lengths_tried_rise_by_doubling_from_nothing() -> None:
    _, _, rows = chosen(training_set([4] * 10))
    lengths = [row["length"] for row in rows]
    assert lengths == sorted(set(lengths))
    assert lengths[0] == 0
    assert lengths[1] == SHORTEST
    assert all(longer / shorter <= 2.0001 for shorter, longer in itertools.pairwise(lengths[1:]))


def test_the_first_row_is_doing_nothing() -> None:
    _, _, rows = chosen(training_set([4] * 10), requests=1)
    nothing = rows[0]
    assert nothing["length"] == 0
    # retain and val have not moved, so what is left of ToW is the distance of forget from the level of strangers
    assert nothing["tow"] == pytest.approx(100 - abs(nothing["forget"] - nothing["val"]))
    assert 0 < nothing["retain"] <= 100


def test_a_step_that_does_not_help_is_told() -> None:
    hearing = Hearing()
    _, share, rows = chosen(training_set([4] * 10), 0.0, hearing)
    taken = next(row for row in rows if row["length"] == pytest.approx(share, rel=1e-5))
    assert bool(hearing.warnings) == (taken["tow"] <= rows[0]["tow"])


def test_choosing_a_length_leaves_the_model_and_global_state_alone() -> None:
    fresh = parameters(new_model("tiny", TASK, SIZE, 0)[0])
    torch.manual_seed(3)
    state = torch.get_rng_state()
    model, _, _ = chosen(training_set([4] * 10))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, fresh[name]) for name, value in parameters(model).items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_choosing_a_length_gives_the_same_again() -> None:
    train = training_set([4] * 10)
    assert chosen(train)[1:] == chosen(train)[1:]


def test_a_request_of_everybody_leaves_nobody_to_judge_by() -> None:
    with pytest.raises(OneshuiError):
        chosen(training_set([4] * 3), people=3)

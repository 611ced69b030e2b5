"""The difference attack on weights: row spaces against numpy, and updates with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from oneshui_hf.errors import OneshuiError
from oneshui_hf.metrics.attacks import row_spaces, weight_difference_scores
from oneshui_hf.metrics.attacks.weight_difference import changed_numbers
from oneshui_hf.metrics.intervals import auc_interval
from oneshui_hf.metrics.owner_identification import OwnerIdentification, identify_owners
from oneshui_hf.models.layer_inputs import layer_energies
from support.attack_data import normal, rng
from support.token_model import IDENTITIES, TokenModel, inputs_of, photos_of_people

Weights = dict[str, torch.Tensor]


@pytest.mark.parametrize("shape", [(7, 20), (20, 7), (9, 9)])
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_row_space_is_that_of_numpys_singular_value_decomposition(shape: tuple[int, int], rank: int) -> None:
    update = normal(rng(rank), shape[0], rank) @ normal(rng(50 + rank), rank, shape[1])
    before = normal(rng(99), *shape).float()
    after = (before.double() + update).float()
    exact = after.double().numpy() - before.double().numpy()
    _, values, vectors = np.linalg.svd(exact, full_matrices=False)
    energies = values**2 / (values**2).sum()
    (space,) = row_spaces({"layer": after}, {"layer": before}).values()
    assert len(space.energies) == rank  # what float32 rounds off is no direction
    assert np.allclose(space.energies.numpy(), energies[:rank], rtol=1e-9)
    projector = space.directions.double().T @ space.directions.double()
    assert np.allclose(projector.numpy(), vectors[:rank].T @ vectors[:rank], atol=1e-5)
    assert np.allclose((space.directions @ space.directions.T).numpy(), np.eye(rank), atol=1e-5)


def test_only_matrices_that_differ_have_a_row_space() -> None:
    before = {"a": torch.ones(3, 3), "b": torch.ones(3, 3), "bias": torch.ones(3), "steps": torch.tensor([[1]])}
    after = before | {"b": 2 * torch.ones(3, 3), "bias": torch.tensor([1.0, 2.0, 3.0]), "steps": torch.tensor([[2]])}
    assert set(row_spaces(after, before)) == {"b"}
    assert changed_numbers(after, before) == {"b": 9, "bias": 2, "steps": 1}


@pytest.mark.parametrize("other", [{"a": torch.ones(3, 2)}, {"b": torch.ones(3, 3)}, {}])
def test_other_layers_or_shapes_are_refused(other: Weights) -> None:
    with pytest.raises(OneshuiError, match="other layers or shapes"):
        row_spaces({"a": torch.ones(3, 3)}, other)


def test_scores_are_standardised_by_layer() -> None:
    energies = {"a": torch.tensor([1.0, 2.0, 6.0]), "b": torch.tensor([300.0, 200.0, 250.0]), "constant": torch.full((3,), 0.1)}
    standardised = [(of.double() - of.double().mean()) / of.double().std(correction=0) for of in (energies["a"], energies["b"])]
    expected = (standardised[0] + standardised[1]) / 3
    assert torch.allclose(weight_difference_scores(energies), expected)
    with pytest.raises(OneshuiError, match="No linear layer"):
        weight_difference_scores({})


# ---------------------------------------------------------------- updates with a known answer


def attack(model: TokenModel, update: Weights, pixels: torch.Tensor) -> torch.Tensor:
    before = model.state_dict()
    after = {name: weight + update[name].float() if name in update else weight for name, weight in before.items()}
    return weight_difference_scores(layer_energies(model, row_spaces(after, before), pixels.split(32), "cpu"))


def ranks(scores: torch.Tensor, forgotten: list[int]) -> OwnerIdentification:
    return identify_owners(scores, IDENTITIES, torch.tensor(forgotten), rng(0), repetitions=200)


def gradient_of(inputs: torch.Tensor, people: list[int], rows: int, seed: int) -> torch.Tensor:
    """Return an update as gradients of some people's photos are: outer products of their inputs with random errors."""
    own = inputs[torch.isin(IDENTITIES, torch.tensor(people))].flatten(0, 1)
    return normal(rng(seed), rows, len(own)) @ own / len(own)


@pytest.mark.parametrize("people", [[5], [3, 8, 17]])
def test_gradients_of_some_people_are_found(people: list[int]) -> None:
    model, pixels = TokenModel(), photos_of_people(shared=1.0)
    inputs = inputs_of(model, pixels)
    update = {name: gradient_of(of, people, len(model.state_dict()[name]), 1) for name, of in inputs.items()}
    found = ranks(attack(model, update, pixels), people)
    assert found.rank.value == 1
    assert found.batch_share == 1


def test_a_rank_one_update_along_a_persons_features_is_found_among_layers_that_changed_for_another_reason() -> None:
    model, pixels = TokenModel(), photos_of_people()
    inputs = inputs_of(model, pixels)["first.weight"]
    direction = inputs[IDENTITIES == 5].mean(dim=(0, 1)) - inputs.mean(dim=(0, 1))
    update = {"first.weight": torch.outer(normal(rng(1), 32), direction), "second.weight": normal(rng(2), 5, 32)}
    assert ranks(attack(model, update, pixels), [5]).rank.value == 1


def test_squared_singular_values_as_weights_or_no_centring_would_miss_people() -> None:
    """Gradients are spanned by inputs, which share their mean: the strongest direction is that of the mean, and identifies no one."""
    people, found = [3, 8, 17], {"ours": 0.0, "squared": 0.0, "not centred": 0.0}
    for seed in range(5):
        model, pixels = TokenModel(), photos_of_people(seed, shared=10.0)
        inputs = inputs_of(model, pixels)["first.weight"]
        update = gradient_of(inputs, people, 32, seed)
        centred = inputs - inputs.mean(dim=(0, 1))
        scores = {"ours": attack(model, {"first.weight": update}, pixels)}
        for name, of in (("squared", centred), ("not centred", inputs)):
            scores[name] = ((of @ update.T).square().sum(-1) / of.square().sum(-1)).mean(1)
        for name in found:
            found[name] += ranks(scores[name], people).rank.value / 5
    assert found["ours"] < 1.8
    assert found["squared"] > 3
    assert found["not centred"] > 3


def test_a_small_update_is_found_under_noise_in_all_directions() -> None:
    """The difference has full rank, so the share of an input that lies in its row space is the same for all photos without weights."""
    model, pixels = TokenModel(), photos_of_people(shared=1.0)
    inputs = inputs_of(model, pixels)["first.weight"]
    update = gradient_of(inputs - inputs.mean(dim=(0, 1)), [5], 32, 1)
    noise = normal(rng(2), 32, 48)
    noisy = update + 0.3 * noise * update.norm() / noise.norm()
    assert ranks(attack(model, {"first.weight": noisy}, pixels), [5]).rank.value == 1


def test_updates_that_do_not_depend_on_the_person_are_chance_within_the_interval() -> None:
    """Differences of full rank, as of two trainings: the expected rank is that of chance over updates."""
    pixels, model, forgotten = photos_of_people(), TokenModel(), list(range(8))
    inside = 0
    for seed in range(20):
        update = {"first.weight": normal(rng(seed), 32, 48), "second.weight": normal(rng(100 + seed), 5, 32)}
        scores = attack(model, update, pixels)
        is_forgotten = torch.isin(IDENTITIES, torch.tensor(forgotten))
        ids = IDENTITIES[is_forgotten], IDENTITIES[~is_forgotten]
        interval = auc_interval(scores[is_forgotten], scores[~is_forgotten], ids)
        inside += interval.low <= 0.5 <= interval.high
    assert inside >= 16

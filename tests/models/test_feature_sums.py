"""Integer sums: exact, in any order, and the head of linear discriminant analysis that follows from them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from oneshui_hf.errors import OneshuiError
from oneshui_hf.models.feature_sums import GRID, LIMIT, MAX_ROWS, FeatureSums, log_prior, round_to_grid, solve_head
from oneshui_hf.seeding import generator

ROWS, FEATURES = 240, 7


def integers(rows: int = ROWS, features: int = FEATURES, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    draws = torch.randn(rows, features, generator=generator(seed, "rows"), dtype=torch.float64)
    return round_to_grid(scale * draws @ torch.randn(features, features, generator=generator(seed, "mix"), dtype=torch.float64))


def attributes(rows: torch.Tensor, labels: int = 3) -> torch.Tensor:
    noise = torch.randn(len(rows), labels, generator=generator(1, "noise"))
    return ((rows[:, :labels].double() / GRID + 2 * noise) > 0.8).to(torch.uint8)


def classes(rows: torch.Tensor, count: int = 3) -> torch.Tensor:
    scores = rows[:, :count].double() / GRID + 2 * torch.randn(len(rows), count, generator=generator(2, "noise"))
    return torch.nn.functional.one_hot(scores.argmax(dim=1), count)


def same(one: FeatureSums, other: FeatureSums) -> bool:
    parts = [(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one)]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in parts)


def test_sums_are_those_of_whole_numbers_at_the_limit_of_the_grid() -> None:
    rows = round_to_grid(torch.randn(3000, 5, generator=generator(0, "large"), dtype=torch.float64) * 1e4)
    assert rows.abs().max() == LIMIT
    labels = attributes(rows)
    sums, x, y = FeatureSums.of(rows, labels), rows.numpy().astype(object), labels.numpy().astype(object)  # Python's own integers
    for found, expected in ((sums.x, x.sum(0)), (sums.y, y.sum(0)), (sums.xx, x.T @ x), (sums.xy, x.T @ y)):
        assert (found.numpy().astype(object).astype(int) == expected).all()
    assert sums.count == 3000


def test_subtracted_photos_leave_the_sums_of_the_others_bit_for_bit() -> None:
    rows = integers()
    labels = attributes(rows)
    parts = [FeatureSums.of(rows[part], labels[part]) for part in torch.arange(ROWS).split([100, 30, 77, 33])]
    whole = FeatureSums.of(rows, labels)
    assert same(parts[2] + parts[0] + parts[3] + parts[1], whole)
    assert same(whole - parts[1] - parts[3], FeatureSums.of(*(torch.cat([of[:100], of[130:207]]) for of in (rows, labels))))
    assert same(whole - parts[1] - parts[3], whole - parts[3] - parts[1])
    assert same(FeatureSums.zeros(FEATURES, 3) + whole, whole)


def test_sums_are_stored_as_whole_numbers_and_read_again() -> None:
    sums = FeatureSums.of(integers(), attributes(integers()))
    tensors = sums.tensors()
    assert all(tensor.dtype == torch.int64 for tensor in tensors.values())
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == FeatureSums.shapes(FEATURES, 3)
    assert same(FeatureSums.from_tensors(tensors), sums)


def test_impossible_subtractions_are_refused() -> None:
    rows = integers()
    labels = attributes(rows)
    whole = FeatureSums.of(rows[:50], labels[:50])
    with pytest.raises(OneshuiError, match="contains all training identities"):
        whole - whole
    with pytest.raises(OneshuiError, match="do not contain the photos of the request"):
        whole - FeatureSums.of(4 * rows[60:100], labels[60:100])


def test_more_rows_than_are_exact_are_refused() -> None:
    assert MAX_ROWS * LIMIT**2 < 2**53 <= (MAX_ROWS + 1) * LIMIT**2
    sums = dataclasses.replace(FeatureSums.zeros(2, 1), count=MAX_ROWS)
    one = FeatureSums.of(integers(1, 2), torch.ones(1, 1))
    assert (dataclasses.replace(sums, count=MAX_ROWS - 1) + one).count == MAX_ROWS
    with pytest.raises(OneshuiError, match=f"up to {MAX_ROWS:,} photos"):
        sums + one


@pytest.mark.parametrize("shrinkage", [1e-12, 0.3])
def test_attributes_have_the_discriminant_of_a_direct_computation(shrinkage: float) -> None:
    rows = integers()
    labels = attributes(rows)
    weight, bias = solve_head(FeatureSums.of(rows, labels), shrinkage, 1.0, "multi_label")
    x = rows.numpy().astype(float)
    spread = np.sqrt(x.var(axis=0) + 1)
    z = (x - x.mean(axis=0)) / spread
    for attribute in range(3):
        has = labels[:, attribute].numpy() == 1
        share = has.mean()
        difference = z[has].mean(axis=0) - z[~has].mean(axis=0)
        within = share * np.cov(z[has].T, bias=True) + (1 - share) * np.cov(z[~has].T, bias=True)
        w = np.linalg.solve(within + shrinkage * np.eye(FEATURES), difference)
        middle = (z[has].mean(axis=0) + z[~has].mean(axis=0)) / 2
        expected = np.log((has.sum() + 0.5) / ((~has).sum() + 0.5)) + (z - middle) @ w
        found = rows.double() / GRID @ weight[attribute] + bias[attribute]
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-7, atol=1e-8)


def test_classes_have_the_discriminant_of_scikit_learn() -> None:
    rows = integers()
    labels = classes(rows)
    weight, bias = solve_head(FeatureSums.of(rows, labels), 1e-12, 1.0, "single_label")
    lda = LinearDiscriminantAnalysis(solver="lsqr").fit(rows.numpy() / GRID, labels.argmax(dim=1).numpy())
    found = rows.double() / GRID @ weight.mT + bias - log_prior(FeatureSums.of(rows, labels), "single_label")
    expected = torch.from_numpy(lda.decision_function(rows.numpy() / GRID) - np.log(lda.priors_))
    centre = lambda scores: scores - scores.mean(dim=1, keepdim=True)  # noqa: E731
    torch.testing.assert_close(centre(found), centre(expected), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shrinkage", [1e-3, 2.0])
def test_an_attribute_has_the_log_odds_of_two_classes(shrinkage: float) -> None:
    rows = integers()
    label = attributes(rows, 1)
    of_attribute = solve_head(FeatureSums.of(rows, label), shrinkage, 0.7, "multi_label")
    of_classes = solve_head(FeatureSums.of(rows, torch.cat([1 - label, label], dim=1)), shrinkage, 0.7, "single_label")
    for one, two in zip(of_attribute, of_classes, strict=True):
        torch.testing.assert_close(one[0], two[1] - two[0], rtol=1e-9, atol=1e-9)


def test_temperature_scales_the_evidence_and_not_the_prior() -> None:
    sums = FeatureSums.of(integers(), attributes(integers()))
    prior = log_prior(sums, "multi_label")
    (weight, bias), (half_weight, half_bias) = (solve_head(sums, 0.1, temperature, "multi_label") for temperature in (1.0, 0.5))
    torch.testing.assert_close(half_weight, weight / 2)
    torch.testing.assert_close(half_bias - prior, (bias - prior) / 2)


def test_constant_features_and_labels_without_positives_give_finite_heads() -> None:
    rows = integers()
    rows[:, 2] = 5
    labels = torch.cat([attributes(rows, 2), torch.zeros(ROWS, 1), torch.ones(ROWS, 1)], dim=1)
    weight, bias = solve_head(FeatureSums.of(rows, labels), 0.1, 1.0, "multi_label")
    assert weight.isfinite().all() and bias.isfinite().all()
    assert not weight[2:].any() and weight[:, 2].abs().max() < 1e-9
    assert bias[2] < -5 and bias[3] > 5
    empty = torch.cat([classes(rows), torch.zeros(ROWS, 1, dtype=torch.int64)], dim=1)
    weight, bias = solve_head(FeatureSums.of(rows, empty), 0.1, 1.0, "single_label")
    assert weight.isfinite().all() and bias.isfinite().all()
    assert not weight[3].any()


def test_solution_has_the_same_bytes_for_any_number_of_threads() -> None:
    sums = FeatureSums.of(integers(900, 300), attributes(integers(900, 300)))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(solve_head(sums, 0.1, 1.0, "multi_label"))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))

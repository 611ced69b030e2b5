"""The identity probe against scikit-learn's ridge classifier, and on features with and without identity information."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

from oneshui_hf.errors import UsageError
from oneshui_hf.metrics.probe import halve_photos, identity_probe


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def person_features(seed: int, people: int, width: int, effect: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Features around a centre per person, at distance `effect`; photos in random order, identities that are not 0, 1, 2."""
    generator = rng(seed)
    identities = torch.arange(people).repeat_interleave(torch.randint(2, 12, (people,), generator=generator))
    identities = identities[torch.randperm(len(identities), generator=generator)]
    centres = effect * torch.randn(people, width, generator=generator)
    features = centres[identities] + torch.randn(len(identities), width, generator=generator)
    return 3 * features + 5, 100 - 7 * identities


@pytest.mark.parametrize(("people", "width"), [(2, 3), (12, 8), (12, 300), (60, 20)])
def test_probe_matches_the_ridge_classifier_of_scikit_learn(people: int, width: int) -> None:
    features, identities = person_features(0, people, width, 0.5)
    found = identity_probe(features, identities, rng(1), ridge=2.0)
    training = halve_photos((identities.unique(return_inverse=True)[1]), rng(1)).numpy()
    x, y = features.double().numpy(), identities.numpy()
    scaler = StandardScaler().fit(x[training])
    theirs = RidgeClassifier(alpha=2.0).fit(scaler.transform(x[training]), y[training]).predict(scaler.transform(x[~training]))
    assert found.accuracy == pytest.approx(100 * accuracy_score(y[~training], theirs), abs=1e-9)
    assert found.balanced_accuracy == pytest.approx(100 * balanced_accuracy_score(y[~training], theirs), abs=1e-9)
    assert (found.people, found.photos, found.left_out) == (people, (~training).sum(), 0)


def test_probe_identifies_people_with_separable_features() -> None:
    found = identity_probe(*person_features(0, 20, 30, 3.0), rng(0))
    assert found.accuracy > 95
    assert found.balanced_accuracy > 90
    assert found.chance < 15


def test_probe_is_at_chance_without_identity_information() -> None:
    found = [identity_probe(*person_features(seed, 10, 5, 0.0), rng(seed)).balanced_accuracy for seed in range(60)]
    assert sum(found) / 60 == pytest.approx(10, abs=1.5)


def test_no_photo_is_both_trained_on_and_scored() -> None:
    """Features identify the photo and nothing else: training on the scored photos would identify all of them."""
    identities = torch.arange(10).repeat_interleave(6)
    found = identity_probe(torch.eye(60), identities, rng(0))
    assert found.accuracy <= 20


def test_half_of_every_persons_photos_train() -> None:
    identities = torch.tensor([5, 2, 5, 9, 2, 5, 9, 5, 2, 5])
    halves = [halve_photos(identities, rng(seed)) for seed in range(40)]
    for training in halves:
        assert [int(training[identities == p].sum()) for p in (2, 5, 9)] == [2, 3, 1]
    assert torch.stack(halves).any(0).all()  # every photo trains for some seed,
    assert not torch.stack(halves).all(0).any()  # and is scored for another
    assert torch.equal(halves[3], halve_photos(identities, rng(3)))


def test_chance_is_the_most_frequent_person_of_the_training_half() -> None:
    identities = torch.tensor([0] * 8 + [1] * 2 + [2] * 2)
    found = identity_probe(torch.randn(12, 4, generator=rng(0)), identities, rng(0))
    assert found.chance == pytest.approx(100 * 4 / 6)


def test_people_with_one_photo_are_left_out_and_counted() -> None:
    features, identities = person_features(0, 8, 5, 1.0)
    more = torch.cat([torch.tensor([-1000]), identities, torch.tensor([50_000])])
    found = identity_probe(torch.cat([torch.full((1, 5), 1e6), features, torch.full((1, 5), -1e6)]), more, rng(0))
    assert found.left_out == 2
    assert (found.people, found.photos) == (8, identity_probe(features, identities, rng(0)).photos)
    assert found.accuracy == identity_probe(features, identities, rng(0)).accuracy  # photos left out do not affect the scale


def test_constant_feature_changes_nothing() -> None:
    features, identities = person_features(0, 8, 5, 3.0)
    assert identity_probe(torch.cat([features, torch.ones(len(features), 1)], 1), identities, rng(0)) == identity_probe(
        features, identities, rng(0)
    )


def test_invalid_arguments_are_rejected() -> None:
    with pytest.raises(UsageError, match="two photos of at least two people"):
        identity_probe(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]), rng(0))
    with pytest.raises(UsageError, match="above 0, not 0"):
        identity_probe(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1]), rng(0), ridge=0)

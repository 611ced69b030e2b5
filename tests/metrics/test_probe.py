"""The identity probe against scikit-learn's ridge classifier, and on features whose people are known to be there or not."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

from oneshui_hf.errors import UsageError
from oneshui_hf.metrics.probe import halve_photos, identity_probe


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def world(seed: int, people: int, width: int, effect: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Features with a person's own centre `effect` away, photos in random order; names that are not 0, 1, 2."""
    generator = draws(seed)
    identities = torch.arange(people).repeat_interleave(torch.randint(2, 12, (people,), generator=generator))
    identities = identities[torch.randperm(len(identities), generator=generator)]
    centres = effect * torch.randn(people, width, generator=generator)
    features = centres[identities] + torch.randn(len(identities), width, generator=generator)
    return 3 * features + 5, 100 - 7 * identities


@pytest.mark.parametrize(("people", "width"), [(2, 3), (12, 8), (12, 300), (60, 20)])
def test_the_probe_is_scikit_learns_ridge_classifier(people: int, width: int) -> None:
    features, identities = world(0, people, width, 0.5)
    found = identity_probe(features, identities, draws(1), ridge=2.0)
    training = halve_photos((identities.unique(return_inverse=True)[1]), draws(1)).numpy()
    x, y = features.double().numpy(), identities.numpy()
    scaler = StandardScaler().fit(x[training])
    theirs = RidgeClassifier(alpha=2.0).fit(scaler.transform(x[training]), y[training]).predict(scaler.transform(x[~training]))
    assert found.accuracy == pytest.approx(100 * accuracy_score(y[~training], theirs), abs=1e-9)
    assert found.balanced_accuracy == pytest.approx(100 * balanced_accuracy_score(y[~training], theirs), abs=1e-9)
    assert (found.people, found.photos, found.left_out) == (people, (~training).sum(), 0)


def test_people_that_are_in_the_features_are_found() -> None:
    found = identity_probe(*world(0, 20, 30, 3.0), draws(0))
    assert found.accuracy > 95
    assert found.balanced_accuracy > 90
    assert found.chance < 15


def test_people_that_are_not_in_the_features_are_guessed_at_chance() -> None:
    found = [identity_probe(*world(seed, 10, 5, 0.0), draws(seed)).balanced_accuracy for seed in range(60)]
    assert sum(found) / 60 == pytest.approx(10, abs=1.5)


def test_no_photo_is_both_trained_on_and_scored() -> None:
    """Features that name the photo and nothing else: a probe that saw the scored photos would know them all."""
    identities = torch.arange(10).repeat_interleave(6)
    found = identity_probe(torch.eye(60), identities, draws(0))
    assert found.accuracy <= 20


def test_half_of_every_persons_photos_train() -> None:
    identities = torch.tensor([5, 2, 5, 9, 2, 5, 9, 5, 2, 5])
    halves = [halve_photos(identities, draws(seed)) for seed in range(40)]
    for training in halves:
        assert [int(training[identities == p].sum()) for p in (2, 5, 9)] == [2, 3, 1]
    assert torch.stack(halves).any(0).all()  # every photo trains in some draw,
    assert not torch.stack(halves).all(0).any()  # and is scored in another
    assert torch.equal(halves[3], halve_photos(identities, draws(3)))


def test_chance_is_the_commonest_person_of_the_training_half() -> None:
    identities = torch.tensor([0] * 8 + [1] * 2 + [2] * 2)
    found = identity_probe(torch.randn(12, 4, generator=draws(0)), identities, draws(0))
    assert found.chance == pytest.approx(100 * 4 / 6)


def test_people_with_one_photo_are_left_out_and_counted() -> None:
    features, identities = world(0, 8, 5, 1.0)
    more = torch.cat([torch.tensor([-1000]), identities, torch.tensor([50_000])])
    found = identity_probe(torch.cat([torch.full((1, 5), 1e6), features, torch.full((1, 5), -1e6)]), more, draws(0))
    assert found.left_out == 2
    assert (found.people, found.photos) == (8, identity_probe(features, identities, draws(0)).photos)
    assert found.accuracy == identity_probe(features, identities, draws(0)).accuracy  # the far ones had no say in the scale


def test_a_feature_that_never_varies_does_no_harm() -> None:
    features, identities = world(0, 8, 5, 3.0)
    assert identity_probe(torch.cat([features, torch.ones(len(features), 1)], 1), identities, draws(0)) == identity_probe(
        features, identities, draws(0)
    )


def test_wrong_calls_say_so() -> None:
    with pytest.raises(UsageError, match="two photos of at least two people"):
        identity_probe(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]), draws(0))
    with pytest.raises(UsageError, match="above 0, not 0"):
        identity_probe(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1]), draws(0), ridge=0)

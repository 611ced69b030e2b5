"""`safer_release.py`: a key is found from both differences, and what is added to a release has the length that it should have."""

from __future__ import annotations

import copy
import functools
from statistics import fmean

import pytest
import torch
from safer_release import COLUMNS, Study, make_study, variants

from oneshui_hf.methods import DataAccess, generator
from oneshui_hf.testing.toy_problem import toy_problem
from oneshui_plugins.forget_keys.method import ForgetKeys
from oneshui_plugins.forget_keys.options import ForgetKeysOptions

OPTIONS = ForgetKeysOptions(targets="quantile", steps_per_identity=4, identities_per_step=4, damping=0.1)


@functools.cache
def study() -> Study:
    problem = toy_problem("multi_label")
    data = DataAccess(problem.sets, ForgetKeys.needs.prepare)
    artefact = ForgetKeys().prepare(problem.model, data, OPTIONS, problem.context())
    model = copy.deepcopy(problem.model)  # a study freezes its model, and all tests share that of the problem
    return make_study(model, problem.sets, artefact, problem.context())


def test_a_release_of_one_key_is_found_by_both_attacks_and_costs_little() -> None:
    found = [study().measure(study().release([identity]), [identity]) for identity in study().keys]
    assert fmean(row["share, outputs"] for row in found) > 0.4  # chance is one in all candidates
    assert fmean(row["rank, weights"] for row in found) < 5
    assert all(set(row) == set(COLUMNS) for row in found)
    assert fmean(row["retain"] for row in found) > -2


@pytest.mark.parametrize("length", [0.5, 2.0])
def test_added_updates_have_the_length_of_keys(length: float) -> None:
    rng = generator(0, "test")
    added = [*study().random_updates(2, length, rng)]
    decoy = study().decoy(next(iter(study().candidates.sets["val"].positions_of)), rng)
    for name in decoy:
        mean = fmean(key[name].delta_weight().norm().item() for key in study().keys.values())
        assert decoy[name].delta_weight().norm().item() == pytest.approx(mean, rel=1e-4)
        for update in added:
            assert update[name].delta_weight().norm().item() == pytest.approx(length * mean, rel=1e-4)


def test_every_variant_contains_the_requested_keys() -> None:
    forgotten = list(study().keys)[:2]
    made = dict(variants(study(), forgotten, generator(0, "test")))
    plain = dict(made["keys"].named_parameters())
    for name, model in made.items():
        changed = any(not torch.equal(value, plain[key]) for key, value in model.named_parameters())
        assert changed == (name != "keys")

"""The difference attacks: does an attacker who holds the original and the unlearned model find the forgotten people?

Three scores of photos: loss rise and logit distance (`attacks.output_difference`), and the energy in the row space of the weight difference
(`attacks.weight_difference`). Each is measured against retain and test, per photo and per person, and by the rank of the forgotten people.
The oracle's difference to the same original is the floor: an exact retraining changes a model, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from ..data.schema import TaskKind
from ..seeding import generator
from .attacks.output_difference import OutputDifference, output_difference
from .attacks.weight_difference import weight_difference_scores
from .comparison import CANDIDATES, Comparison, NotRun, PredictionsBySet, Settings, WeightEnergies
from .intervals import Interval, auc_interval, interval_ends
from .owner_identification import identify_owners, person_means

NOT_FORGOTTEN = ("retain", "test")
Scores = Mapping[str, torch.Tensor]  # of the photos of each of `CANDIDATES`


def difference(compared: Comparison, kind: TaskKind, settings: Settings) -> dict[str, Any] | None:
    """Return the entry `difference` of `metrics.json`; None without an original, or where the model is the original.

    Args:
        compared: Predictions of the models, and the energies in their weight differences.
        kind: What the models predict.
        settings: Of intervals.
    """
    if compared.original is None or compared.original is compared.model:
        return None
    entry = _entry(compared.model, compared.original, compared.weight_energies, kind, settings)
    oracle = compared.oracle
    if oracle is compared.model:
        floor: dict[str, Any] | None = dict(entry)
    else:
        floor = _entry(oracle, compared.original, compared.oracle_weight_energies, kind, settings) if oracle else None
    return entry | {"oracle": floor}


def difference_limitations(compared: Comparison) -> list[str]:
    """Return sentences on the difference attacks that were not run."""
    if compared.original is None:
        return ["Without the original, the attacks on the difference of the two models were not run."]
    states = {"of this model": compared.weight_energies, "of the oracle": compared.oracle_weight_energies}
    return [
        f"The attack on the weight difference {whose} was not run: {state.reason}."
        for whose, state in states.items()
        if isinstance(state, NotRun)
    ]


def _entry(
    model: PredictionsBySet, original: PredictionsBySet, energies: WeightEnergies | NotRun | None, kind: TaskKind, settings: Settings
) -> dict[str, Any]:
    """Return the entries of both difference attacks on one pair of models."""
    by_set = {name: output_difference(model[name].logits, original[name].logits, model[name].labels, kind) for name in CANDIDATES}
    identities = {name: model[name].identities for name in CANDIDATES}
    scores = [field.name for field in fields(OutputDifference)]
    outputs = {score: score_entry({name: getattr(of, score) for name, of in by_set.items()}, identities, settings) for score in scores}
    weights = None
    if isinstance(energies, WeightEnergies):
        of_all = weight_difference_scores(energies.layers)
        own = {name: of_all[energies.sets == number] for number, name in enumerate(CANDIDATES)}
        people = {name: energies.identities[energies.sets == number] for number, name in enumerate(CANDIDATES)}
        weights = score_entry(own, people, settings) | {"layers": len(energies.layers), "numbers_left_out": energies.numbers_left_out}
    return {"outputs": outputs, "weights": weights}


def score_entry(scores: Scores, identities: Scores, settings: Settings) -> dict[str, Any]:
    """Return how well a score separates forgotten people from others, and at which rank it puts them.

    Args:
        scores: Of the photos of each set, higher for "more likely forgotten".
        identities: The person on each photo.
        settings: Of intervals.
    """
    means = {name: person_means(scores[name], identities[name]) for name in ("forget", *NOT_FORGOTTEN)}
    numbers = {name: torch.arange(len(of)) for name, of in means.items()}
    return {
        "photos": {name: _auc(scores, identities, name) for name in NOT_FORGOTTEN},
        "people": {name: _auc(means, numbers, name) for name in NOT_FORGOTTEN},
        "owner": _owner(scores, identities, settings),
    }


def _auc(scores: Scores, identities: Scores, others: str) -> dict[str, Any]:
    """Return the AUC of forget against another set, with its interval over people; without one where all scores are equal."""
    found = auc_interval(scores["forget"], scores[others], (identities["forget"], identities[others]))
    is_constant = len(torch.cat([scores["forget"], scores[others]]).unique()) < 2
    return {"auc": found.value, "interval": None if is_constant else interval_ends(found)}


def _owner(scores: Scores, identities: Scores, settings: Settings) -> dict[str, Any]:
    names = ("forget", *NOT_FORGOTTEN)
    found = identify_owners(
        torch.cat([scores[name] for name in names]),
        torch.cat([identities[name] for name in names]),
        identities["forget"].unique(),
        generator(settings.seed, "difference", "ranks"),
        support=(scores["support"], identities["support"]) if len(scores["support"]) else None,
        repetitions=settings.resamples,
        level=settings.level,
    )
    ranks: dict[str, Interval | None] = {name: getattr(found, name) for name in ("rank", "rank_1_share", "photo_rank", "support_rank")}
    entry: dict[str, Any] = {"people": found.people, "candidates": found.candidates, "batch_share": found.batch_share}
    entry |= {name: interval and interval.value for name, interval in ranks.items()}
    return entry | {"intervals": {name: interval and interval_ends(interval) for name, interval in ranks.items()}}

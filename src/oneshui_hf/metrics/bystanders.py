"""Bystanders: what unlearning changes for people who are not forgotten, person by person and by group of people.

A mean over a set hides a few people whose predictions become much worse, and a group that loses more than all others. Only statistics over
people are returned, without a number or a name of an identity.

Direction: changes should be those of the oracle, which is measured next to the model.

What it cannot show: groups of fewer than `MIN_GROUP` people, and groups that no label describes. The worst tenth is chosen by the same
losses that it reports, so it is above zero without any harm: compare with the oracle's.

Source: this project; the exposure is RMIA's score (Zarifzadeh, Liu, Shokri, ICML 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..data.schema import TaskKind
from ..seeding import generator
from .attack_suite import signals
from .attacks.rmia import dominance, log_likelihood_ratios
from .comparison import Comparison, Predictions, PredictionsBySet, Settings
from .functional import identity_losses
from .intervals import chunk_sizes, student_quantile

BYSTANDERS = ("retain", "test")  # people who are in no request; val chose epochs and options
MIN_GROUP = 5  # people on either side of a comparison of groups; smaller groups are left out


def bystanders(compared: Comparison, kind: TaskKind, settings: Settings) -> dict[str, Any] | None:
    """Return the `bystanders` entry of `metrics.json`; None without an original.

    Loss change: the mean loss on a person's photos, minus the same under the original. Exposure change: the mean RMIA score of a person's
    photos (`attacks.rmia.dominance`, population val), minus the same under the original, each model with its own reference models. These
    were trained on the retain set, so for its people the score itself is no test of membership; only its change is of use.

    Args:
        compared: Predictions of the models.
        kind: What the models predict.
        settings: Of RMIA, the level of intervals and verdicts, and the names of labels.

    Returns:
        `retain` and `test`, and the same of the oracle under `oracle`, since retraining changes bystanders, too: `people`, `loss_change`,
        `exposure_change` (see `summarise_changes`; None without reference models), and `beyond_spread`: the share of people whose loss
        rises by more than one standard deviation of the oracle's loss changes. `groups` of retain and test: see `compare_groups`. A set
        with a loss that is not finite is None.
    """
    if compared.original is None:
        return None
    original, oracle = compared.original, compared.oracle
    expected = {name: _loss_changes(oracle, original, name) for name in BYSTANDERS} if oracle else {}
    before = _exposures(original, compared.oracles, kind, settings) if compared.references else {}

    def entry_of(model: PredictionsBySet, references: Sequence[PredictionsBySet]) -> dict[str, Any]:
        after = _exposures(model, references, kind, settings) if compared.references else {}
        entry: dict[str, Any] = {}
        for name in BYSTANDERS:
            changes = _loss_changes(model, original, name)
            exposure = summarise_changes(after[name] - before[name]) if after else None
            entry[name] = _set_entry(changes, expected.get(name), exposure) if _is_known(changes) else None
        return entry

    return {
        **entry_of(compared.model, compared.references),
        "oracle": entry_of(oracle, compared.oracles) if oracle else None,
        "groups": _groups(compared.model, original, expected, kind, settings),
        "level": settings.level,
    }


def _groups(
    model: PredictionsBySet, original: PredictionsBySet, expected: Mapping[str, torch.Tensor], kind: TaskKind, settings: Settings
) -> dict[str, Any]:
    """Return the comparisons of each set, the largest difference first, and the number of labels that were left out."""
    changes = {name: _loss_changes(model, original, name) for name in BYSTANDERS}
    known = {name: of_set for name, of_set in changes.items() if _is_known(of_set)}
    shares = {name: label_shares(model[name], kind) for name in known}
    found = compare_groups(known, shares, settings, expected)
    left_out = sum(of_set.shape[1] - len(found[name]) for name, of_set in shares.items())
    return {name: sorted(found.get(name, []), key=lambda one: -abs(one["difference"])) for name in BYSTANDERS} | {"left_out": left_out}


def summarise_changes(changes: torch.Tensor) -> dict[str, float]:
    """Return `mean`, `sd`, `worst_tenth` and `largest` of the changes of people, (P,).

    `worst_tenth` is the mean over the tenth of the people with the largest changes, rounded down, but at least one person. `sd` has the
    denominator P - 1, and is 0 with one person.
    """
    ordered = changes.sort(descending=True).values
    return {
        "mean": changes.mean().item(),
        "sd": changes.std().item() if len(changes) > 1 else 0.0,
        "worst_tenth": ordered[: max(1, len(ordered) // 10)].mean().item(),
        "largest": ordered[0].item(),
    }


def label_shares(predictions: Predictions, kind: TaskKind) -> torch.Tensor:
    """Return the share of each person's photos that have each label, float64 (P, K), people in the order of their numbers."""
    people, person_index = predictions.identities.unique(return_inverse=True)
    counts = torch.zeros(len(people), predictions.logits.shape[-1], dtype=torch.float64)
    if kind == "multi_label":
        counts.index_add_(0, person_index, predictions.labels.double())
    else:
        ones = torch.ones(len(person_index), dtype=torch.float64)
        counts.index_put_((person_index, predictions.labels), ones, accumulate=True)
    return counts / torch.bincount(person_index, minlength=len(people))[:, None]


def compare_groups(
    changes: Mapping[str, torch.Tensor], shares: Mapping[str, torch.Tensor], settings: Settings, of_oracle: Mapping[str, torch.Tensor]
) -> dict[str, list[dict[str, Any]]]:
    """Compare people who have a label with those who lack it, by the difference of their mean changes.

    A person has a label that more than half of their photos have, and lacks one that fewer than half have. With exactly half, they are on
    neither side. A label with fewer than `MIN_GROUP` people on a side is left out: its interval would be a rough guide.

    The p-values are those of the single-step maxT procedure (Westfall and Young, "Resampling-Based Multiple Testing", 1993): the changes
    are permuted over the people of a set, and Welch's t of a label is compared with the largest over all labels of all sets. If changes
    do not depend on labels, the probability that any p-value is at most alpha is at most alpha, however few the people and however skewed
    the changes. Welch's own p-values with Holm's correction had 14 % instead of 5 % in a simulation with skewed changes.

    Args:
        changes: Of each person of each set, float64 (P,).
        shares: Share of each person's photos that have each label, (P, K).
        settings: Number of permutations (`resamples`), level, seed, and names of labels.
        of_oracle: The oracle's changes, (P,), where known.

    Returns:
        For each label of each set: `label` (its position), `name`, `people_with`, `people_without`, `difference` (above 0: people with the
        label lose more), its `interval` by Welch's t, for this label alone, `p_value`, `differs` (whether it is at most 1 - level), and
        `oracle`, the oracle's difference.
    """
    labels, sides, largest = {}, {}, torch.zeros(settings.resamples, dtype=torch.float64)
    for name, of_set in changes.items():
        has, lacks = (shares[name] > 0.5).double(), (shares[name] < 0.5).double()
        labels[name] = (torch.minimum(has.sum(0), lacks.sum(0)) >= MIN_GROUP).nonzero().flatten()
        sides[name] = has[:, labels[name]], lacks[:, labels[name]]
        if len(labels[name]):
            rng = generator(settings.seed, "bystanders", name)
            drawn = [torch.rand(size, len(of_set), generator=rng).argsort(1) for size in chunk_sizes(settings.resamples, len(of_set))]
            largest = torch.maximum(largest, torch.cat([_welch(of_set[order], *sides[name]).t.amax(1) for order in drawn]))
    found: dict[str, list[dict[str, Any]]] = {}
    for name, of_set in changes.items():
        test = _welch(of_set[None], *sides[name])
        expected = _welch(of_oracle[name][None], *sides[name]).difference[0] if name in of_oracle else None
        found[name] = [
            {
                "label": label,
                "name": settings.labels[label] if settings.labels else None,
                "people_with": int(sides[name][0][:, column].sum()),
                "people_without": int(sides[name][1][:, column].sum()),
                "difference": test.difference[0, column].item(),
                "interval": test.ends(column, settings.level),
                "p_value": (p_value := _exceedance(largest, test.t[0, column].item())),
                "differs": p_value <= 1 - settings.level,
                "oracle": None if expected is None else expected[column].item(),
            }
            for column, label in enumerate(labels[name].tolist())
        ]
    return found


@dataclass(frozen=True, eq=False)
class _Welch:
    """Welch's t-test of two sides for K labels and R permutations of the changes, all float64 (R, K); `t` is absolute."""

    difference: torch.Tensor
    error: torch.Tensor
    degrees: torch.Tensor
    t: torch.Tensor

    def ends(self, column: int, level: float) -> list[float] | None:
        """Return the ends of the interval of the first permutation; None without variation."""
        difference, error, degrees = (of[0, column].item() for of in (self.difference, self.error, self.degrees))
        if not error:
            return None
        half_width = student_quantile((1 + level) / 2, degrees) * error
        return [difference - half_width, difference + half_width]


def _welch(changes: torch.Tensor, has: torch.Tensor, lacks: torch.Tensor) -> _Welch:
    """Compare the people of two sides, 0/1 (P, K), by their changes (R, P)."""
    centred = changes - changes.mean(dim=1, keepdim=True)  # which loses fewer digits in the variances
    means, parts = [], []
    for side in (has, lacks):
        count = side.sum(0)
        means.append(centred @ side / count)
        parts.append(((centred**2 @ side / count - means[-1] ** 2) / (count - 1)).clamp(min=0))  # squared error of the mean
    difference, variance = means[0] - means[1], parts[0] + parts[1]
    degrees = variance**2 / sum(part**2 / (side.sum(0) - 1) for part, side in zip(parts, (has, lacks), strict=True))
    t = torch.where(difference == 0, 0.0, difference.abs() / variance.sqrt())
    return _Welch(difference, variance.sqrt(), degrees, t)


def _exceedance(permuted: torch.Tensor, value: float) -> float:
    """Return the share of permutations, and of the data itself, whose statistic is at least a value; equal ones may differ by rounding."""
    return (1 + int((permuted >= value * (1 - 1e-9)).sum())) / (1 + len(permuted))


def _set_entry(changes: torch.Tensor, of_oracle: torch.Tensor | None, exposure: Mapping[str, float] | None) -> dict[str, Any]:
    spread = of_oracle.std() if of_oracle is not None and len(changes) > 1 else None
    return {
        "people": len(changes),
        "loss_change": summarise_changes(changes),
        "beyond_spread": None if spread is None else (changes > spread).double().mean().item(),
        "exposure_change": exposure,
    }


def _loss_changes(model: PredictionsBySet, original: PredictionsBySet, name: str) -> torch.Tensor:
    """Return each person's mean loss minus the original's, float64 (P,)."""
    changes = model[name].losses.double() - original[name].losses.double()
    return identity_losses(changes, model[name].identities)[1]


def _is_known(changes: torch.Tensor) -> bool:
    return len(changes) > 0 and bool(changes.isfinite().all())


def _exposures(
    model: PredictionsBySet, references: Sequence[PredictionsBySet], kind: TaskKind, settings: Settings
) -> dict[str, torch.Tensor]:
    """Return the mean RMIA score of each person's photos, float64 (P,), of each set."""
    population, *others = (
        log_likelihood_ratios(signals(model, references, name, kind, all_versions=False), settings.rmia_a) for name in ("val", *BYSTANDERS)
    )
    return {
        name: identity_losses(dominance(ratios, population[0], settings.rmia_gamma), model[name].identities)[1]
        for name, ratios in zip(BYSTANDERS, others, strict=True)
    }

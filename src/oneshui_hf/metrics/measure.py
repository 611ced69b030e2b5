"""All metrics of a model, computed from its predictions and those of the models it is compared with. No model and no photo is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..data.schema import TaskKind
from ..seeding import generator
from ..sets import ATTACKED, COMPARED, EVALUATED
from .attack_scores import AttackResult
from .attack_suite import attack_entry, gives_equal_scores, run_attacks, run_person_level, strongest_comparable_attack
from .bystanders import bystanders
from .collapse import collapse
from .comparison import Comparison, Predictions, Settings, scores_by_set
from .curves import curves
from .difference import difference, difference_limitations
from .functional import (
    accuracy,
    balanced_accuracy,
    gap_closure,
    identity_loss_gap,
    jensen_shannon,
    mean_average_precision,
    tug_of_war,
    varying_labels,
)
from .intervals import MIN_PEOPLE, is_beyond_noise
from .noise_floor import noise_floor
from .probe import identity_probe
from .score_intervals import score_intervals

FEW_PEOPLE = 5  # with fewer people an interval is a rough guide


def measure(compared: Comparison, kind: TaskKind, settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the metrics and the curves for figures, as JSON values; an unknown number is None.

    Args:
        compared: Predictions of the models.
        kind: What the models predict.
        settings: Of intervals and attacks.
    """
    model, original, oracle = compared.model, compared.original, compared.oracle
    metrics: dict[str, Any] = {"task": kind, "score": "map" if kind == "multi_label" else "accuracy"}
    metrics |= {name: _set_metrics(predictions, kind) for name, predictions in model.items()}
    scores = {"model": {name: metrics[name][metrics["score"]] for name in EVALUATED}}
    scores |= {which: scores_by_set(of, kind) for which, of in (("original", original), ("oracle", oracle)) if of}
    metrics["tow"] = tug_of_war({name: scores["model"][name] for name in COMPARED}, scores["oracle"]) if oracle else None
    metrics["noise_floor"] = noise_floor(compared, scores, kind, settings) if oracle and compared.oracles else None
    metrics["collapse"] = collapse(scores["model"], scores.get("original"), scores.get("oracle"), metrics["noise_floor"])
    gap = _gap(scores, metrics["noise_floor"])
    metrics["gap_closure"] = gap_closure(*(scores[which]["forget"] for which in ("original", "model", "oracle"))) if gap else None
    metrics["intervals"] = score_intervals(compared, kind, settings, metrics)
    metrics["to_oracle"] = {name: _distance_to_oracle(model[name], oracle[name], kind) for name in EVALUATED} if oracle else None
    attacks = run_attacks(model, compared.references, [of for of in (oracle, *compared.oracles) if of], kind, settings)
    metrics["attacks"] = {attack.name: attack_entry(attack, model) for attack in attacks}
    metrics["attacks"]["strongest"] = strongest_comparable_attack(attacks, compared).name
    metrics["person_level"] = run_person_level(model, compared.references, kind, settings)
    if metrics["person_level"] and oracle and compared.oracles:
        metrics["person_level"]["oracle"] = run_person_level(oracle, compared.oracles, kind, settings)
    metrics["difference"] = difference(compared, kind, settings)
    metrics["bystanders"] = bystanders(compared, kind, settings)
    metrics["probe"] = _probe(model["forget"], settings)
    metrics["cannot_tell"] = _limitations(compared, attacks, gap)
    return to_json(metrics), to_json(curves(compared, attacks))


def _set_metrics(predictions: Predictions, kind: TaskKind) -> dict[str, Any]:
    metrics: dict[str, Any] = {
        "images": len(predictions.labels),
        "people": len(predictions.identities.unique()),
        "loss": predictions.losses.double().mean().item(),
    }
    if kind == "multi_label":
        metrics["map"], metrics["labels_left_out"] = mean_average_precision(predictions.logits, predictions.labels)
    else:
        metrics["accuracy"] = accuracy(predictions.logits, predictions.labels)
    metrics["balanced_accuracy"], _ = balanced_accuracy(predictions.logits, predictions.labels, kind)
    return metrics


def _gap(scores: Mapping[str, Mapping[str, float]], floor: Mapping[str, float] | None) -> float | None:
    """Return the original's score on forget minus the oracle's; None where either is unknown or the gap is within the noise floor."""
    if "original" not in scores or "oracle" not in scores:
        return None
    gap = scores["original"]["forget"] - scores["oracle"]["forget"]
    return None if floor and not is_beyond_noise(gap, floor["forget"]) else gap


def _distance_to_oracle(predictions: Predictions, oracle: Predictions, kind: TaskKind) -> dict[str, float]:
    gap = identity_loss_gap(predictions.losses, oracle.losses, predictions.identities)
    divergence = jensen_shannon(predictions.logits, oracle.logits, kind)
    return {"jensen_shannon": divergence, "loss_gap": gap.mean, "largest_loss_gap": gap.largest}


def _probe(forget: Predictions, settings: Settings) -> dict[str, Any] | None:
    """Return how well features of the forget set identify its people; None where the probe cannot be trained."""
    if forget.features is None or (torch.bincount(forget.identities) > 1).sum() < 2 or not forget.features.isfinite().all():
        return None
    probe = identity_probe(forget.features, forget.identities, generator(settings.seed, "probe"))
    return {name: getattr(probe, name) for name in ("accuracy", "balanced_accuracy", "chance", "people", "photos")}


def _limitations(compared: Comparison, attacks: Sequence[AttackResult], gap: float | None) -> list[str]:
    """Return sentences that state what the metrics do not show."""
    sentences = []
    if compared.oracle is None:
        sentences.append("Without an oracle, the predictions of a model that was never trained on the forget set are unknown.")
    if not compared.references:
        sentences.append("RMIA, IAM and the range attack were not run and there is no noise floor: all need reference models.")
    sentences += difference_limitations(compared)
    sets = compared.model
    unscored = [name for name, of in sets.items() if of.labels.dim() == 2 and len(of.labels) and not varying_labels(of.labels).any()]
    if unscored:
        sentences.append(f"No attribute varies over the photos of {', '.join(unscored)}, so mAP and what depends on it are unknown there.")
    if compared.oracle and compared.original and gap is None and "forget" not in unscored:
        sentences.append("Original and oracle differ on forget by no more than the noise floor: there is no gap to close.")
    people = {name: len(compared.model[name].identities.unique()) for name in ATTACKED}
    if people["forget"] < FEW_PEOPLE:
        count = "one person" if people["forget"] == 1 else f"{people['forget']} people"
        effect = "there are no intervals" if people["forget"] < MIN_PEOPLE else "intervals are a rough guide"
        sentences.append(f"With {count} in the forget set {effect}.")
    if uninformative := [attack.name.replace("_", "-") for attack in attacks if gives_equal_scores(attack)]:
        sentences.append(f"These attacks give all photos the same score: {', '.join(uninformative)}. This is no evidence of forgetting.")
    nonmembers = len(compared.model["test"].labels)
    unresolved = [fpr for fpr, rate in attacks[0].tpr.items() if rate is None]
    if unresolved:
        sentences.append(
            f"{nonmembers} photos of {people['test']} unseen identities (test) do not resolve a false positive rate below "
            f"{1 / nonmembers:.3g}, so no TPR is reported at FPR {', '.join(f'{fpr:g}' for fpr in unresolved)}."
        )
    if compared.oracles and len(compared.oracles) < 2:
        sentences.append(
            "U-LiRA and the noise floor use only two oracles, so U-LiRA is not considered for the strongest attack. "
            "More oracles would give more reliable numbers."
        )
    if incomplete := sum(not varying_labels(of.labels).all() for of in sets.values() if of.labels.dim() == 2):
        sentences.append(
            f"In {incomplete} of {len(sets)} sets some attributes are the same on every photo (none positive, or all) and are left out of "
            "the mean."
        )
    sentences.append("A failed attack does not prove forgetting: a stronger one may succeed.")
    return sentences


def to_json(value: Any) -> Any:
    """Return a value with None in place of NaN and infinity, which JSON lacks."""
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

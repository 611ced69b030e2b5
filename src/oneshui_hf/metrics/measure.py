"""Every metric of a model, from what it and the models beside it said about the photos. No model, no photo and no name is needed here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from ..data.schema import TaskKind
from ..seeding import generator
from .attack_scores import Attack, roc, strongest
from .attack_signals import Signals, confidence_features, label_log_probabilities, scaled_logits
from .attacks import logistic_attack, loss_attack, rmia, u_lira
from .functional import (
    accuracy,
    balanced_accuracy,
    gap_closure,
    identity_loss_gap,
    identity_losses,
    jensen_shannon,
    mean_average_precision,
    score_of,
    tug_of_war,
)
from .intervals import Interval, auc_interval, beyond_noise, bootstrap, percentile_interval
from .paired_bootstrap import Resamples, reflected, tow_interval
from .probe import identity_probe

SCORED = ("retain", "forget", "val", "test")
TOW_SETS = ("retain", "forget", "test")
BINS = 24  # of the loss histograms
POINTS = 512  # of a curve, at most
FEW = 5  # people below which an interval is a rough guide
FEWEST = 3  # people below which drawing them anew gives no interval: two have three resamples


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says about the photos of a set.

    Attributes:
        logits: float32 (n, K).
        labels: (n, K) of 0/1, or classes (n,).
        losses: (n,).
        identities: Number of the person on each photo, (n,).
        features: Inputs of the classification head (n, d), where they are known.
        views: Logits (n, K) of further versions of the photos, mirrored and shifted.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    losses: torch.Tensor
    identities: torch.Tensor
    features: torch.Tensor | None = None
    views: tuple[torch.Tensor, ...] = ()

    @property
    def versions(self) -> torch.Tensor:
        """The logits of all versions, (q, n, K)."""
        return torch.stack([self.logits, *self.views])


Says = Mapping[str, Predictions]  # by set


@dataclass(frozen=True, eq=False)
class Comparison:
    """A model and those that it is compared with.

    Attributes:
        model: What is measured.
        original: The model that still knows everybody.
        oracle: The one that was trained without those who ask.
        oracles: Oracles of other seeds.
        references: The same method applied to each of `oracles`, for RMIA.
    """

    model: Says
    original: Says | None = None
    oracle: Says | None = None
    oracles: Sequence[Says] = ()
    references: Sequence[Says] = ()


@dataclass(frozen=True)
class Settings:
    """What the numbers depend on besides the predictions; see `EvaluateOptions`."""

    resamples: int = 1000
    level: float = 0.95
    rmia_a: float = 0.3
    rmia_gamma: float = 2.0
    seed: int = 0


def measure(compared: Comparison, kind: TaskKind, settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the metrics, and the curves that figures are drawn from; both are numbers alone, None where a number is not known.

    Args:
        compared: What the models said.
        kind: What they predict.
        settings: Of intervals and attacks.
    """
    name = "map" if kind == "multi_label" else "accuracy"
    model, original, oracle = compared.model, compared.original, compared.oracle
    found: dict[str, Any] = {"task": kind, "score": name}
    found |= {name: _summary(said, kind) for name, said in model.items()}
    scores = {who: _scores(says, kind) for who, says in (("original", original), ("oracle", oracle)) if says}
    scores["model"] = {name: found[name][found["score"]] for name in SCORED}
    found["tow"] = _tow(scores["model"], scores["oracle"]) if oracle else None
    found["noise_floor"] = _noise_floor(compared, scores, kind, settings) if oracle and compared.oracles else None
    gap = _gap(scores, found["noise_floor"])
    found["gap_closure"] = gap_closure(*(scores[who]["forget"] for who in ("original", "model", "oracle"))) if gap else None
    found["intervals"] = _intervals(compared, kind, settings, found)
    found["to_oracle"] = {name: _to_oracle(model[name], oracle[name], kind) for name in SCORED} if oracle else None
    attacks = _attacks(model, compared.references, [says for says in (oracle, *compared.oracles) if says], kind, settings)
    found["attacks"] = {attack.name: _told(attack, model) for attack in attacks}
    found["attacks"]["strongest"] = _strongest(attacks, compared).name
    found["probe"] = _probe(model["forget"], settings)
    found["cannot_tell"] = _cannot_tell(compared, attacks, gap)
    return _plain(found), _plain(_curves(compared, attacks))


def _summary(said: Predictions, kind: TaskKind) -> dict[str, Any]:
    row: dict[str, Any] = {"images": len(said.labels), "people": len(said.identities.unique()), "loss": said.losses.double().mean().item()}
    if kind == "multi_label":
        row["map"], row["labels_left_out"] = mean_average_precision(said.logits, said.labels)
    else:
        row["accuracy"] = accuracy(said.logits, said.labels)
    row["balanced_accuracy"], _ = balanced_accuracy(said.logits, said.labels, kind)
    return row


def _scores(says: Says, kind: TaskKind) -> dict[str, float]:
    return {name: _score(says[name], kind) for name in SCORED}


def _score(said: Predictions, kind: TaskKind) -> float:
    return score_of(said.logits, said.labels, kind)


def _tow(scores: Mapping[str, float], oracle: Mapping[str, float]) -> float:
    return tug_of_war({name: scores[name] for name in TOW_SETS}, oracle)


def _gap(scores: Mapping[str, Mapping[str, float]], floor: Mapping[str, float] | None) -> float | None:
    """Return how much lower the oracle scores on forget than the original; None where either is unknown, or it is no more than noise."""
    if "original" not in scores or "oracle" not in scores:
        return None
    gap = scores["original"]["forget"] - scores["oracle"]["forget"]
    return None if floor and not beyond_noise(gap, floor["forget"]) else gap


# Intervals


def _intervals(compared: Comparison, kind: TaskKind, settings: Settings, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return intervals of scores, losses, ToW and gap closure, from people drawn anew: the same people for every model."""
    told: dict[str, Any] = {"level": settings.level, "resamples": settings.resamples, "tow": None, "gap_closure": None}
    away: list[tuple[float, torch.Tensor, int]] = []  # from the oracle, set by set
    for name in SCORED:
        said, people = compared.model[name], found[name]["people"]
        resamples = Resamples.draw(said.identities, settings.resamples, generator(settings.seed, "resamples", name))
        score, drawn = found[name][found["score"]], _resampled(resamples, said, kind)
        loss = bootstrap(said.losses, said.identities, settings.resamples, generator(settings.seed, "losses", name), settings.level)
        told[name] = {found["score"]: _ends(percentile_interval(score, drawn, people, settings.level)), "loss": _ends(loss)}
        if compared.oracle and compared.oracle is not compared.model and name in TOW_SETS:
            ideal = _resampled(resamples, compared.oracle[name], kind)
            away.append((score - _score(compared.oracle[name], kind), drawn - ideal, people))
            if compared.original and compared.original is not compared.model and found["gap_closure"] is not None and name == "forget":
                before = _resampled(resamples, compared.original[name], kind)
                told["gap_closure"] = _closure(found["gap_closure"], before, drawn, ideal, people, settings.level)
    if away:
        told["tow"] = _ends(tow_interval(found["tow"], away, settings.level))
    return told


def _resampled(resamples: Resamples, said: Predictions, kind: TaskKind) -> torch.Tensor:
    """Return the score of each resample, without what resampling adds to it, (R,)."""
    if kind == "multi_label":
        found = resamples.average_precision(said.logits, said.labels)
    else:
        found = 100 * resamples.mean((said.logits.argmax(dim=1) == said.labels).double())
    return reflected(_score(said, kind), found).clamp(0, 100)


def _closure(value: float, before: torch.Tensor, after: torch.Tensor, ideal: torch.Tensor, people: int, level: float) -> list[float] | None:
    """Return the interval of a gap closure; None where the gap that it divides by may as well be 0."""
    gap = percentile_interval(math.nan if math.isnan(value) else 0.0, before - ideal, people, level)
    if not (gap.low > 0 or gap.high < 0):
        return None
    return _ends(percentile_interval(value, (before - after) / (before - ideal), people, level))


def _ends(interval: Interval) -> list[float] | None:
    unknown = interval.units < FEWEST or math.isnan(interval.low) or math.isnan(interval.high)
    return None if unknown else [interval.low, interval.high]


# The oracle


def _to_oracle(said: Predictions, ideal: Predictions, kind: TaskKind) -> dict[str, float]:
    gap = identity_loss_gap(said.losses, ideal.losses, said.identities)
    return {"jensen_shannon": jensen_shannon(said.logits, ideal.logits, kind), "loss_gap": gap.mean, "largest_loss_gap": gap.largest}


def _noise_floor(
    compared: Comparison, scores: Mapping[str, Mapping[str, float]], kind: TaskKind, settings: Settings
) -> dict[str, float] | None:
    """Return what another seed alone changes: oracles of other seeds, measured against the oracle as any model is."""
    assert compared.oracle
    ideal, others = scores["oracle"], [_scores(says, kind) for says in compared.oracles]
    floor = {name: fmean(abs(other[name] - ideal[name]) for other in others) for name in SCORED}
    floor["tow"] = fmean(_tow(other, ideal) for other in others)
    if compared.original:
        closures = [gap_closure(scores["original"]["forget"], other["forget"], ideal["forget"]) for other in others]
        floor["gap_closure"] = fmean(abs(closure - 1) for closure in closures)
    floor["jensen_shannon"] = fmean(
        jensen_shannon(other["forget"].logits, compared.oracle["forget"].logits, kind) for other in compared.oracles
    )
    attacks = _attacks(compared.oracle, compared.oracles, compared.oracles, kind, settings)
    floor["auc_either_way"] = _strongest(attacks, compared).auc_either_way
    return floor | {"oracles": len(others)}


# Attacks


def _attacks(says: Says, references: Sequence[Says], oracles: Sequence[Says], kind: TaskKind, settings: Settings) -> list[Attack]:
    """Return what each attacker achieves who can be tried: photos of the forget set against those of strangers (test)."""
    forget, test, val = says["forget"], says["test"], says["val"]
    people = forget.identities, test.identities

    def draws(attack: str) -> torch.Generator:
        return generator(settings.seed, "attack", attack)

    found = [loss_attack(forget.losses, test.losses, people, draws("loss"))]
    if all(len(side.unique()) > 1 for side in people):
        features = [confidence_features(said.logits, said.losses, kind) for said in (forget, test)]
        found.append(logistic_attack(features[0], features[1], people, draws("logistic")))
    if references:
        members, nonmembers, population = (
            Signals(
                label_log_probabilities(said.versions if asked else said.logits, said.labels, kind),
                torch.stack(
                    [
                        label_log_probabilities(other[name].versions if asked else other[name].logits, said.labels, kind)
                        for other in references
                    ]
                ),
            )
            for name, said, asked in (("forget", forget, True), ("test", test, True), ("val", val, False))
        )
        for two_sided in (False, True):
            found.append(
                rmia(
                    members,
                    nonmembers,
                    population,
                    people,
                    draws("rmia"),
                    a=settings.rmia_a,
                    gamma=settings.rmia_gamma,
                    two_sided=two_sided,
                )
            )
    others = [other for other in oracles if other is not says]
    if len(others) > 1:
        target, ideal = (
            torch.stack([scaled_logits(some["forget"].logits, forget.labels, kind) for some in models]) for models in ([says], others)
        )
        found.append(u_lira(target, ideal))
    return found


def _strongest(attacks: Sequence[Attack], compared: Comparison) -> Attack:
    """Return the strongest of the attacks that the oracle can be put to, too: U-LiRA needs two oracles besides the model."""
    return strongest(attack for attack in attacks if attack.members.dim() == 1 or len(compared.oracles) > 1)


def _is_blind(attack: Attack) -> bool:
    """Whether an attack gives every photo the same score."""
    return len(torch.cat([attack.members, attack.nonmembers], dim=-1).unique()) < 2


def _told(attack: Attack, says: Says) -> dict[str, Any]:
    """Return an attack's numbers. U-LiRA asks about the same photos on both sides, for which the interval has no formula."""
    interval = None
    if attack.members.dim() == 1 and not _is_blind(attack):
        interval = _ends(auc_interval(attack.members, attack.nonmembers, (says["forget"].identities, says["test"].identities)))
    return {
        "auc": attack.auc,
        "interval": interval,
        "auc_either_way": attack.auc_either_way,
        "balanced_accuracy": attack.balanced_accuracy,
        "tpr": {str(fpr): share for fpr, share in attack.tpr.items()},
        "smallest_fpr": attack.smallest_fpr,
        "direction": attack.direction,
    }


def _probe(said: Predictions, settings: Settings) -> dict[str, Any] | None:
    """Return how well people are told apart by the features of the forget set; None where they cannot be."""
    if said.features is None or (torch.bincount(said.identities) > 1).sum() < 2 or not said.features.isfinite().all():
        return None
    probe = identity_probe(said.features, said.identities, generator(settings.seed, "probe"))
    return {name: getattr(probe, name) for name in ("accuracy", "balanced_accuracy", "chance", "people", "photos")}


def _cannot_tell(compared: Comparison, attacks: Sequence[Attack], gap: float | None) -> list[str]:
    """Return in sentences what these numbers leave open."""
    told = []
    if compared.oracle is None:
        told.append("Without an oracle nothing says how a model that never saw the forget set would answer.")
    if not compared.references:
        told.append("RMIA was not tried, since it needs reference models, and there is no noise floor.")
    if compared.oracle and compared.original and gap is None:
        told.append("Original and oracle differ on forget by no more than the noise floor: there is no gap to close.")
    people = {name: len(compared.model[name].identities.unique()) for name in ("forget", "test")}
    if people["forget"] < FEW:
        some = "one person" if people["forget"] == 1 else f"{people['forget']} people"
        what = "there are no intervals" if people["forget"] < FEWEST else "intervals are a rough guide"
        told.append(f"With {some} on the forget set {what}.")
    if blind := [attack.name.replace("_", "-") for attack in attacks if _is_blind(attack)]:
        told.append(f"No photo told apart from another, all with one score: {', '.join(blind)}. That is no sign of forgetting.")
    strangers = len(compared.model["test"].labels)
    unresolved = [fpr for fpr, caught in attacks[0].tpr.items() if caught is None]
    if unresolved:
        told.append(
            f"{strangers} photos of {people['test']} strangers do not resolve a false positive rate below {1 / strangers:.3g}, "
            f"so nothing is said at {', '.join(f'{fpr:g}' for fpr in unresolved)}."
        )
    if compared.oracles and len(compared.oracles) < 2:
        told.append("U-LiRA and the noise floor rest on two oracles, so U-LiRA is not counted among the strongest; more would say more.")
    if left_out := sum(bool((said.labels == 0).all(0).sum()) for said in compared.model.values() if said.labels.dim() == 2):
        told.append(f"In {left_out} of {len(compared.model)} sets some attributes hold on no photo and are left out of the mean.")
    told.append("An attack that fails is no proof: a stronger one may succeed.")
    return told


# Curves


def _curves(compared: Comparison, attacks: Sequence[Attack]) -> dict[str, Any]:
    before, after, ideal = compared.original, compared.model, compared.oracle
    losses = {
        who: identity_losses(says["forget"].losses, says["forget"].identities)[1].tolist()
        for who, says in (("original", before), ("model", after), ("oracle", ideal))
        if says
    }
    people = [
        {who: losses[who][i] if who in losses else None for who in ("original", "model", "oracle")} for i in range(len(losses["model"]))
    ]
    people.sort(key=lambda person: next(loss for loss in person.values() if loss is not None))
    shown = [says[name].losses for says in (before, after) if says for name in ("forget", "test")]
    top = max(torch.cat(shown).nan_to_num(0, 0, 0).double().quantile(0.99).item(), 1e-6)

    def histogram(says: Says) -> dict[str, list[int]]:
        """Count losses; the last bin takes all that lie beyond."""
        return {
            name: torch.histc(says[name].losses.nan_to_num(top).clamp(0, top), BINS, 0, top).int().tolist() for name in ("forget", "test")
        }

    return {
        "people": people,
        "losses": {
            "edges": [top * i / BINS for i in range(BINS + 1)],
            "before": histogram(before) if before else None,
            "after": histogram(after),
        },
        "roc": {attack.name: _roc(attack) for attack in attacks if attack.members.dim() == 1 and not math.isnan(attack.auc)},
    }


def _roc(attack: Attack) -> dict[str, Any]:
    fpr, tpr = roc(attack.sign * attack.members, attack.sign * attack.nonmembers)
    shown = torch.linspace(0, len(fpr) - 1, min(POINTS, len(fpr))).round().long().unique()
    return {
        "fpr": fpr[shown].tolist(),
        "tpr": tpr[shown].tolist(),
        "smallest_fpr": attack.smallest_fpr,
        "members": len(attack.members),
        "nonmembers": len(attack.nonmembers),
    }


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: no NaN and no infinity, but None."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

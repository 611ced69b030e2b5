"""All membership inference attacks that the available models allow, on the predictions of one model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..data.schema import TaskKind
from ..seeding import generator
from .attack_scores import AttackResult, strongest_attack
from .attack_signals import Signals, confidence_features, label_log_probabilities, scaled_logits
from .attacks import iam, logistic_attack, loss_attack, person_range_attack, rmia, u_lira
from .attacks.rmia import log_likelihood_ratios
from .comparison import Comparison, PredictionsBySet, Settings
from .intervals import auc_interval, interval_ends


def run_attacks(
    model: PredictionsBySet,
    references: Sequence[PredictionsBySet],
    oracles: Sequence[PredictionsBySet],
    kind: TaskKind,
    settings: Settings,
) -> list[AttackResult]:
    """Return the result of each attack that can be run: members are photos of forget, non-members photos of test.

    Args:
        model: The attacked model.
        references: Reference models of RMIA and IAM, which are not run without any.
        oracles: Oracles of U-LiRA, which needs two besides the attacked model.
        kind: What the models predict.
        settings: Of RMIA and the seed.
    """
    forget, test = model["forget"], model["test"]
    identities = forget.identities, test.identities

    def rng(attack: str) -> torch.Generator:
        return generator(settings.seed, "attack", attack)

    results = [loss_attack(forget.losses, test.losses, identities, rng("loss"))]
    if all(len(side.unique()) > 1 for side in identities):
        features = [confidence_features(of.logits, of.losses, kind) for of in (forget, test)]
        results.append(logistic_attack(features[0], features[1], identities, rng("logistic")))
    if references:
        members, nonmembers = (signals(model, references, name, kind, all_versions=True) for name in ("forget", "test"))
        population = signals(model, references, "val", kind, all_versions=False)
        for two_sided in (False, True):
            results.append(
                rmia(
                    members,
                    nonmembers,
                    population,
                    identities,
                    rng("rmia"),
                    a=settings.rmia_a,
                    gamma=settings.rmia_gamma,
                    two_sided=two_sided,
                )
            )
        photos = [signals(model, references, name, kind, all_versions=False) for name in ("forget", "test")]
        results.append(iam(photos[0], photos[1], population, identities, rng("iam")))
    others = [oracle for oracle in oracles if oracle is not model]
    if len(others) > 1:
        unlearned, retrained = (
            torch.stack([scaled_logits(one["forget"].logits, forget.labels, kind) for one in models]) for models in ([model], others)
        )
        results.append(u_lira(unlearned, retrained))
    return results


def signals(model: PredictionsBySet, references: Sequence[PredictionsBySet], name: str, kind: TaskKind, *, all_versions: bool) -> Signals:
    """Return the signals of a set under the attacked model and the references, of all versions of its photos or of the photos alone."""
    labels = model[name].labels
    target, *others = (
        label_log_probabilities(of[name].versions if all_versions else of[name].logits, labels, kind) for of in (model, *references)
    )
    return Signals(target, torch.stack(others))


def run_person_level(
    model: PredictionsBySet, references: Sequence[PredictionsBySet], kind: TaskKind, settings: Settings
) -> dict[str, Any] | None:
    """Return the result of the range attack on people of forget, with their support photos, against people of test.

    Args:
        model: The attacked model.
        references: As for RMIA; the attack is not run without any.
        kind: What the models predict.
        settings: Of RMIA and the seed.
    """
    if not references:
        return None
    groups = [("forget", "support"), ("test",)]
    ratios = [
        torch.cat([log_likelihood_ratios(signals(model, references, name, kind, all_versions=False), settings.rmia_a)[0] for name in names])
        for names in groups
    ]
    identities = [torch.cat([model[name].identities for name in names]) for names in groups]
    attack = person_range_attack(ratios[0], ratios[1], (identities[0], identities[1]), generator(settings.seed, "attack", "person_range"))
    people = torch.arange(len(attack.members)), torch.arange(len(attack.nonmembers))
    return {
        "people": len(attack.members),
        "unseen_people": len(attack.nonmembers),
        "auc": attack.auc,
        "interval": None if gives_equal_scores(attack) else interval_ends(auc_interval(attack.members, attack.nonmembers, people)),
        "auc_either_way": attack.auc_best_direction,
    }


def strongest_comparable_attack(attacks: Sequence[AttackResult], compared: Comparison) -> AttackResult:
    """Return the strongest of the attacks that can also be run on the oracle; U-LiRA needs two oracles besides the attacked model."""
    return strongest_attack(attack for attack in attacks if attack.members.dim() == 1 or len(compared.oracles) > 1)


def gives_equal_scores(attack: AttackResult) -> bool:
    """Return whether an attack gives every photo the same score."""
    return len(torch.cat([attack.members, attack.nonmembers], dim=-1).unique()) < 2


def attack_entry(attack: AttackResult, model: PredictionsBySet) -> dict[str, Any]:
    """Return an attack's entry in `metrics.json`. U-LiRA has the same photos on both sides, for which the interval has no formula."""
    interval = None
    if attack.members.dim() == 1 and not gives_equal_scores(attack):
        identities = (model["forget"].identities, model["test"].identities)
        interval = interval_ends(auc_interval(attack.members, attack.nonmembers, identities))
    return {
        "auc": attack.auc,
        "interval": interval,
        "auc_either_way": attack.auc_best_direction,
        "balanced_accuracy": attack.balanced_accuracy,
        "tpr": {str(fpr): rate for fpr, rate in attack.tpr.items()},
        "smallest_fpr": attack.smallest_fpr,
        "direction": attack.direction,
    }

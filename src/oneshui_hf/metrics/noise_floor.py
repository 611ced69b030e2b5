"""The noise floor: how far oracles of different seeds differ. A smaller difference between two models shows nothing."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from ..data.schema import TaskKind
from ..sets import COMPARED, EVALUATED
from .attack_suite import run_attacks, strongest_comparable_attack
from .comparison import Comparison, Settings, scores_by_set
from .functional import gap_closure, jensen_shannon, tug_of_war


def noise_floor(compared: Comparison, scores: Mapping[str, Mapping[str, float]], kind: TaskKind, settings: Settings) -> dict[str, float]:
    """Return the metrics of oracles of other seeds, measured against the oracle as any model is; means over those oracles.

    Args:
        compared: With an oracle and at least one oracle of another seed.
        scores: Score of each set, in percent, of `original` (where known) and `oracle`.
        kind: What the models predict.
        settings: Of the attacks.
    """
    assert compared.oracle
    ideal, others = scores["oracle"], [scores_by_set(other, kind) for other in compared.oracles]
    floor = {name: fmean(abs(other[name] - ideal[name]) for other in others) for name in EVALUATED}
    floor["tow"] = fmean(tug_of_war({name: other[name] for name in COMPARED}, ideal) for other in others)
    if compared.original:
        original = scores["original"]["forget"]
        floor["gap_closure"] = fmean(abs(gap_closure(original, other["forget"], ideal["forget"]) - 1) for other in others)
    logits = compared.oracle["forget"].logits
    floor["jensen_shannon"] = fmean(jensen_shannon(other["forget"].logits, logits, kind) for other in compared.oracles)
    attacks = run_attacks(compared.oracle, compared.oracles, compared.oracles, kind, settings)
    floor["auc_either_way"] = strongest_comparable_attack(attacks, compared).auc_best_direction
    return floor | {"oracles": len(others)}

"""Benchmark rows and files of a run in the format of `oneshui evaluate`, with random numbers, for tests of reports."""

from __future__ import annotations

from typing import Any

import numpy as np

SENTENCE = (
    "80 photos of 10 unseen identities (test) do not resolve a false positive rate below 0.0125, so no TPR is reported at FPR 0.01, 0.001."
)
EDGES = np.linspace(0, 1.6, 25)


def metrics(seed: int, strength: float, *, kind: str = "unlearned", people: int = 4, photos: int = 8, score: str = "map") -> dict[str, Any]:
    """Metrics of a model that closes the share `strength` of the gap to the oracle."""
    rng = np.random.default_rng([seed, round(100 * strength), people])
    forget, noise = 92 - 14 * strength, rng.normal(0, 0.4, 6)
    drop = 8 * max(0, strength - 1) ** 2
    sets = {
        "retain": (94 - drop + noise[0], 40 * photos, 40),
        "forget": (forget + noise[1], people * photos, people),
        "val": (79 - drop + noise[2], 80, 10),
        "test": (78 - drop + noise[3], 80, 10),
        "support": (85.0, people, people),
    }
    set_metrics = {
        name: {"images": n, "people": p, "loss": 2 - value / 60, score: value, "balanced_accuracy": value - 2, "labels_left_out": 0}
        for name, (value, n, p) in sets.items()
    }
    tow = 100 * (1 - abs(14 - 14 * strength - noise[1]) / 100) * (1 - drop / 100) ** 2
    auc = min(0.97, max(0.05, 0.82 - 0.31 * strength + 0.03 * noise[4]))
    names = ("loss", "logistic", "rmia", "rmia_two_sided")
    aucs = {name: min(0.98, max(0.02, auc + 0.015 * i)) for i, name in enumerate(names)}
    attacks: dict[str, Any] = {
        name: {
            "auc": value, "interval": [max(0, value - 0.08), min(1, value + 0.08)], "auc_either_way": max(value, 1 - value),
            "balanced_accuracy": 0.6, "tpr": {"0.1": 0.3, "0.01": None, "0.001": None}, "smallest_fpr": 1 / 80,
            "direction": "0.5 is ideal: the attacker cannot distinguish members from non-members",
        }
        for name, value in aucs.items()
    }  # fmt: skip
    attacks["strongest"] = max(names, key=lambda name: attacks[name]["auc_either_way"])
    intervals = {name: {score: [value - 3, value + 3], "loss": [0.1, 0.9]} for name, (value, _, _) in sets.items()}
    return {
        "format": 3, "key": f"{seed:064d}", "kind": kind, "task": "multi_label", "score": score, **set_metrics,
        "intervals": {"level": 0.95, "resamples": 1000, **intervals, "tow": [tow - 4, tow + 2],
                      "gap_closure": [strength - 1, strength + 1]},
        "tow": tow, "gap_closure": (92 - forget) / 14 + 0.02 * noise[5],
        "to_oracle": {name: {"jensen_shannon": 0.1, "loss_gap": 0.2, "largest_loss_gap": 0.6} for name in sets},
        "attacks": attacks,
        "probe": {"accuracy": 80.0, "balanced_accuracy": 80.0, "chance": 100 / people, "people": people, "photos": people * photos},
        "relearning": {"steps": None if strength > 1 else 12, "at_most": 50},
        "noise_floor": {
            "retain": 0.4, "forget": 1.3, "val": 0.6, "test": 0.5, "tow": 98.2, "gap_closure": 0.09, "jensen_shannon": 0.02,
            "auc_either_way": 0.53, "oracles": 1,
        },
        "collapse": {**{name: {"drop": drop, "limit": 5.0} for name in ("retain", "test")}, "collapsed": drop > 5},
        "difference": difference(strength, people), "bystanders": bystanders(strength),
        "person_level": {"people": people, "unseen_people": 10, "auc": auc, "interval": [auc - 0.1, min(1, auc + 0.1)],
                         "auc_either_way": max(auc, 1 - auc), "oracle": None},
        "cannot_tell": [SENTENCE],
        "compared_with": {"original": "a" * 64, "oracle": "b" * 64, "references": ["c" * 64]},
    }  # fmt: skip


def difference(strength: float, people: int, candidates: int = 51) -> dict[str, Any]:
    """Difference attacks on a model, which find people the better the more was forgotten, and on the oracle."""

    def score(rank: float, auc: float) -> dict[str, Any]:
        separation = {name: {"auc": auc, "interval": [auc - 0.05, min(1.0, auc + 0.05)]} for name in ("retain", "test")}
        ranks = {"rank": rank, "rank_1_share": 1 / rank, "photo_rank": rank + 2, "support_rank": rank + 1}
        owner = {"people": people, "candidates": candidates, "batch_share": 1 / rank, **ranks}
        return {"photos": separation, "people": separation, "owner": owner | {"intervals": {"rank": [max(1, rank - 1.5), rank + 1.5]}}}

    def entry(rank: float, auc: float) -> dict[str, Any]:
        weights = score(rank + 0.5, auc) | {"layers": 3, "numbers_left_out": 0}
        return {"outputs": {"loss_rise": score(rank, auc), "logit_distance": score(rank + 1, auc - 0.02)}, "weights": weights}

    return entry(max(1.0, 20 - 19 * strength), 0.55 + 0.35 * min(1, strength)) | {"oracle": entry(13.5, 0.625)}


def bystanders(strength: float) -> dict[str, Any]:
    def of_set(people: int, scale: float) -> dict[str, Any]:
        changes = {"mean": 0.01 * scale, "sd": 0.02, "worst_tenth": 0.0625 * scale, "largest": 0.15 * scale}
        return {"people": people, "loss_change": changes, "beyond_spread": 0.125 * min(1, scale), "exposure_change": changes}

    def group(label: int, name: str | None, difference: float, *, differs: bool) -> dict[str, Any]:
        ends = [difference - 0.03, difference + 0.03]
        return {"label": label, "people_with": 15, "people_without": 25, "difference": difference, "interval": ends, "p_value": 0.001,
                "oracle": 0.002, "name": name, "differs": differs}  # fmt: skip

    groups = {"retain": [group(20, "Male", 0.0405, differs=True), group(39, None, -0.0105, differs=False)], "test": [], "left_out": 3}
    oracle = {"retain": of_set(40, 0.5), "test": of_set(10, 0.5)}
    return {"retain": of_set(40, strength), "test": of_set(10, strength), "oracle": oracle, "groups": groups, "level": 0.95}


def curves(seed: int, strength: float, *, people: int = 4, photos: int = 8) -> dict[str, Any]:
    rng = np.random.default_rng([seed, people])
    before = np.sort(rng.gamma(4, 0.05, people))
    oracle = rng.normal(0.75, 0.15, people).clip(0.2)
    after = before + strength * (oracle - before) * np.random.default_rng([seed, round(100 * strength)]).uniform(0.6, 1.4, people)
    after *= 1 + 8 * max(0, strength - 1.3)

    def counts(middle: float, n: int) -> list[int]:
        return np.histogram(rng.gamma(4, middle / 4, n).clip(0, EDGES[-1]), EDGES)[0].tolist()

    def roc_entry(shift: float) -> dict[str, Any]:
        members, nonmembers = rng.normal(shift, 1, people * photos), rng.normal(0, 1, 80)
        steps = np.concatenate([[np.inf], np.sort(np.concatenate([members, nonmembers]))[::-1]])
        rates = [[float((side >= step).mean()) for step in steps] for side in (nonmembers, members)]
        return {"fpr": rates[0], "tpr": rates[1], "smallest_fpr": 1 / 80, "members": people * photos, "nonmembers": 80}

    shift = 1.4 * (1 - strength)
    return {
        "key": f"{seed:064d}",
        "people": [dict(zip(("original", "model", "oracle"), map(float, p), strict=True)) for p in zip(before, after, oracle, strict=True)],
        "losses": {
            "edges": EDGES.tolist(),
            "before": {"forget": counts(0.2, people * photos), "test": counts(0.7, 80)},
            "after": {"forget": counts(0.2 + 0.5 * strength, people * photos), "test": counts(0.7, 80)},
        },
        "roc": {name: roc_entry(shift + 0.1 * i) for i, name in enumerate(("loss", "logistic", "rmia", "rmia_two_sided"))},
    }  # fmt: skip


def row(
    label: str, strength: float, *, seed: int = 0, forget: int = 4, reads: tuple[str, ...] = ("support",), **more: Any
) -> dict[str, Any]:
    """A row without a failure; `label` is "original", "oracle" or a method's name."""
    is_builtin = label in ("original", "oracle")
    seconds = float(np.random.default_rng([len(label), forget]).uniform(-2, 2.5))
    cost = {"prepare_s": None if label < "m" else 10 ** (seconds + 2.5), "prepare_mb": 900.0, "apply_s": 10**seconds, "apply_mb": 410.0}
    return {
        "dataset": "synthetic", "forget": forget, "seed": seed, "row": label if is_builtin else "method", "method": label,
        "reads": list(reads),
        "state": "done", "reason": None, "metrics": metrics(seed, strength, people=forget),
        "curves": curves(seed, strength, people=forget), "cost": None if is_builtin else cost | {"kept_mb": 12.5},
    } | more  # fmt: skip


def failed(label: str, reason: str, *, seed: int = 0, forget: int = 4) -> dict[str, Any]:
    return row(label, 0.0, seed=seed, forget=forget) | {"state": "failed", "reason": reason, "metrics": None, "curves": None, "cost": None}

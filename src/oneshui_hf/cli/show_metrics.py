"""How metrics and comparisons of models are printed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..metrics import collapse
from ..sets import COMPARED, EVALUATED
from .printing import number, number_with_interval, print_line, table
from .show_attacks import further_attacks
from .show_bystanders import bystanders

FPRS = (0.1, 0.01)  # false positive rates whose true positive rate is printed


def metrics(result: dict[str, Any]) -> None:
    """Print the metrics of one model, each with its ideal value."""
    score = result["score"]
    title = {"map": "mAP %", "accuracy": "accuracy %"}[score]
    rows = [
        [
            f"{name}{collapse.MARK if name in collapse.collapsed_sets(result['collapse']) else ''}",
            str(result[name]["images"]),
            str(result[name]["people"]),
            number_with_interval(result[name][score], result["intervals"][name][score], 1),
            number(result[name]["balanced_accuracy"], 1),
            number_with_interval(result[name]["loss"], result["intervals"][name]["loss"], 3),
        ]
        for name in EVALUATED
    ]
    table(["set", "images", "identities", f"{title} [95 %]", "balanced acc. %", "loss [95 %]"], rows)
    if collapse.collapsed_sets(result["collapse"]):
        print_line(collapse.EXPLANATION)
    left_out = {name: result[name].get("labels_left_out", 0) for name in EVALUATED}
    if any(left_out.values()):
        counts = ", ".join(f"{count} in {name}" for name, count in left_out.items() if count)
        print_line(f"Labels that are the same on every photo, excluded from the mean: {counts}.")
    _print_comparison(result)
    _print_attacks(result["attacks"], collapse.MARK if collapse.collapsed_sets(result["collapse"]) else "")
    _print_person_level(result["person_level"])
    _print_difference(result["difference"])
    bystanders(result["bystanders"])
    if probe := result["probe"]:
        print_line(
            f"Identity probe: a linear probe on the features finds which of {probe['people']} forget identities is on an image in "
            f"{probe['balanced_accuracy']:.1f} % of cases (chance: {100 / probe['people']:.1f}; compare with the oracle)."
        )
    if relearning := result["relearning"]:
        steps = f"{relearning['steps']} steps" if relearning["steps"] is not None else f"more than {relearning['at_most']} steps"
        print_line(f"Relearning: {steps} until the forget loss is restored (compare with the oracle; fewer steps indicate memory).")
    if further := result.get("further"):
        further_attacks(further, title)
    print_line("Limits of these measurements:")
    for sentence in result["cannot_tell"]:
        print_line(f"- {sentence}")


def _print_comparison(result: dict[str, Any]) -> None:
    """Print how close a model is to the oracle."""
    if result["to_oracle"] is None:
        print_line("ToW and gap closure need an oracle: train one with `oneshui retrain`, or name one with --oracle.")
        return
    intervals, gap = result["intervals"], result["gap_closure"]
    if result["tow"] is None:
        print_line("ToW and gap closure are unknown, because a set has no score.")
    else:
        closure = "unknown (original and oracle differ by no more than noise)"
        if gap is not None:
            closure = f"{number_with_interval(gap, intervals['gap_closure'], 2)} (do nothing: 0, oracle: 1)"
        tow = number_with_interval(result["tow"], intervals["tow"], 1)
        print_line(f"ToW {tow} (oracle: 100; doing nothing can also score high). Gap closure {closure}.")
    forget = result["to_oracle"]["forget"]
    print_line(
        f"Distance to the oracle on the forget set: loss {number(forget['loss_gap'], 3)} (0 is ideal; below 0, too little is forgotten), "
        f"{number(forget['largest_loss_gap'], 3)} for the identity with the largest gap; predictions {number(forget['jensen_shannon'], 4)} "
        "(Jensen-Shannon divergence, 0 is ideal)."
    )
    if floor := result["noise_floor"]:
        print_line(
            f"Noise floor, the difference between oracles of two seeds: retain {number(floor['retain'], 1)}, "
            f"forget {number(floor['forget'], 1)}, test {number(floor['test'], 1)} points, gap closure "
            f"{number(floor.get('gap_closure'), 2)}, ToW {number(floor['tow'], 1)}. Strongest attack on the oracle "
            f"itself: {number(floor['auc_either_way'], 3)}. Smaller differences are not significant."
        )


def _print_attacks(attacks: dict[str, Any], collapse_mark: str) -> None:
    """Print the success of each membership inference attack, with the mark of a collapsed model."""
    rows = []
    for name, attack in attacks.items():
        if name == "strongest":
            continue
        rates = [number(attack["tpr"].get(str(fpr)), 2) for fpr in FPRS]
        mark = " *" if name == attacks["strongest"] else ""
        rows.append(
            [
                name.replace("_", "-") + collapse_mark + mark,
                number_with_interval(attack["auc"], attack["interval"], 3),
                number(attack["auc_either_way"], 3),
                number(attack["balanced_accuracy"], 3),
                *rates,
            ]
        )
    columns = ["attack", "AUC [95 %]", "held-out direction", "bal. acc.", *(f"TPR at {fpr:.0%}" for fpr in FPRS)]
    table(columns, rows, "Membership inference: forget set against unseen identities (test). AUC 0.5 is ideal")
    print_line(
        "* strongest attack: highest AUC with the direction chosen on half of the identities, scored on the others; up to 0.5 is chance."
    )


def _print_person_level(attack: dict[str, Any] | None) -> None:
    """Print the success of the range attack on people, and that on the oracle."""
    if attack is None:
        return  # why is in the limits
    rows = [
        [
            which,
            f"{found['people']} against {found['unseen_people']}",
            number_with_interval(found["auc"], found["interval"], 3),
            number(found["auc_either_way"], 3),
        ]
        for which, found in (("this model", attack), ("oracle", attack.get("oracle")))
        if found
    ]
    table(["model", "identities", "AUC [95 %]", "held-out direction"], rows, "Range attack: one score per identity, from all of its photos")
    print_line("0.5 is ideal. Compare with the oracle's: with few identities chance alone is far from 0.5.")


def _print_difference(difference: dict[str, Any] | None) -> None:
    """Print what an attacker finds who also holds the original, next to the same for the oracle."""
    if difference is None:
        print_line("The attacks on the difference of two models need a model and its original.")
        return
    pairs = (("", difference), (", oracle", difference["oracle"]))
    scores = [(f"loss rise{whose}", pair["outputs"]["loss_rise"]) for whose, pair in pairs if pair]
    scores += [(f"logit distance{whose}", pair["outputs"]["logit_distance"]) for whose, pair in pairs if pair]
    scores += [(f"weights{whose}", pair["weights"]) for whose, pair in pairs if pair]
    rows = []
    for name, score in scores:
        if score is None:  # why is in the limits
            continue
        owner = score["owner"]
        ends = owner["intervals"]
        rows.append(
            [
                name,
                *(number_with_interval(of["auc"], of["interval"], 2) for of in (score["photos"][other] for other in ("retain", "test"))),
                f"{number_with_interval(owner['rank'], ends['rank'], 1)} of {owner['candidates']}",
                number(owner["photo_rank"], 1),
                number(owner["support_rank"], 1),
                number(owner["rank_1_share"], 2),
                f"{number(owner['batch_share'], 2)} (k = {owner['people']})",
            ]
        )
    columns = [
        *("difference to the original", "AUC retain [95 %]", "AUC test [95 %]", "rank of the identity [95 %]"),
        *("from one image", "from the support image", "rank 1", "right in top k"),
    ]
    table(columns, rows, "Attacker who also holds the original: forget set against retain, against test; rank among candidates")
    print_line(
        "AUC 0.5 and a rank in the middle are chance, rank 1 identifies who was forgotten. Compare with the oracle's rows: retraining "
        "changes a model, too. Delete the original where it is not public."
    )


def comparison(rows: Sequence[dict[str, Any]], title: str) -> None:
    """Print one row per model: scores and losses of retain, forget and test, ToW, gap closure."""
    score = "map" if "map" in rows[0]["metrics"]["retain"] else "accuracy"
    name = {"map": "mAP", "accuracy": "acc."}[score]
    columns = ["model", *(f"{s} {what}" for s in COMPARED for what in (name, "loss")), "ToW", "gap closure"]
    cells = []
    collapsed = [bool(collapse.collapsed_sets(row["metrics"].get("collapse"))) for row in rows]
    for row, is_collapsed in zip(rows, collapsed, strict=True):
        measured = row["metrics"]
        numbers = [number(measured[s][key], digits) for s in COMPARED for key, digits in ((score, 1), ("loss", 3))]
        label = f"{row['model']}{collapse.MARK * is_collapsed}"
        cells.append([label, *numbers, number(measured["tow"], 1), number(measured["gap_closure"], 2)])
    table(columns, cells, title)
    if any(collapsed):
        print_line(collapse.EXPLANATION)


def demo(result: dict[str, Any]) -> None:
    """Print the demo's comparison and the next command."""
    comparison(result["rows"], "Forgetting generated identities, one support image each")
    print_line("ToW: the oracle has 100. Gap closure on the forget set: do nothing has 0, the oracle 1.")
    print_line(f"The runs are in {result['folder']}/. Next: {result['next']}")

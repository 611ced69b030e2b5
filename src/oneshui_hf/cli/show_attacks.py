"""How the attacks of `--attacks all` are printed."""

from __future__ import annotations

from typing import Any

from .printing import number, number_with_interval, print_line, table

TITLES = {
    "few_shot_relearning": "Training on one photo",
    "quantization": "Rounded weights",
    "inversion": "Reconstruction from the weights",
    "representation": "Features",
}
ROLES = {"unlearned": "model", "original": "original", "oracle": "oracle"}
PRECISIONS = ("float32", "bf16", "int8", "int4")
SIMILARITIES = {"cka": "CKA", "neighbours": "neighbours"}


def further_attacks(found: dict[str, Any], score: str) -> None:
    """Print each attack that was run, and why the others were not.

    Args:
        found: The entry `further` of `metrics.json`.
        score: Title of the score, with its unit.
    """
    if quantization := found["quantization"]:
        _print_quantization(quantization, score)
    if representation := found["representation"]:
        _print_representation(representation)
    if relearning := found["few_shot_relearning"]:
        _print_few_shot_relearning(relearning)
    if inversion := found["inversion"]:
        _print_inversion(inversion)
    for name, reason in found["not_run"].items():
        print_line(f"{TITLES[name]}: not run. {reason}")


def _print_few_shot_relearning(found: dict[str, Any]) -> None:
    people = "the forget identity" if found["people"] == 1 else f"each of {found['people']} forget identities"
    results = [
        f"{ROLES[role]} {number(of['loss_before'], 3)} to {number(of['loss_after'], 3)}, "
        f"recovery {number_with_interval(of['recovery'], of['interval'], 2)} (after {of['steps']} steps at {of['lr']:g})"
        for role in ("unlearned", "oracle")
        if (of := found[role])
    ]
    print_line(
        f"{TITLES['few_shot_relearning']} of {people}: loss of the other photos, {'; '.join(results)} "
        "(the original's loss: 1; more than the oracle's indicates memory)."
    )
    if excess := found["excess"]:
        print_line(f"The loss falls {number_with_interval(excess['value'], excess['interval'], 3)} more than the oracle's (ideal: 0).")


def _print_quantization(found: dict[str, Any], score: str) -> None:
    roles = [role for role in ROLES if found["float32"].get(role)]
    rows = [
        [
            precision,
            number_with_interval(entry.get("gap_closure"), entry.get("gap_closure_interval"), 2),
            *(" / ".join(number(entry[role][name], 1) for role in roles) for name in ("forget", "retain", "test")),
            " / ".join(number(entry[role]["forget_loss"], 3) for role in roles),
            " / ".join(number(entry[role]["attacks"]["loss"]["auc"], 3) for role in roles if role != "oracle"),
            number(entry.get("update_kept"), 2),
        ]
        for precision, entry in ((precision, found[precision]) for precision in PRECISIONS)
    ]
    scores = [f"{name} {score}" for name in ("forget", "retain", "test")]
    columns = ["weights", "gap closure", *scores, "forget loss", "loss attack AUC", "update kept"]
    compared = " / ".join(ROLES[role] for role in roles)
    table(columns, rows, f"{TITLES['quantization']}: {compared}. What was forgotten should stay so at every precision")


def _print_representation(found: dict[str, Any]) -> None:
    roles = [role for role in ROLES if role in found["forget"]]
    columns = [(name, similarity) for name in ("forget", "test") for similarity in SIMILARITIES]
    rows = [
        [str(layer), *(" / ".join(number(found[name][role][similarity][layer], 3) for role in roles) for name, similarity in columns)]
        for layer in range(len(found["forget"]["unlearned"]["cka"]))
    ]
    compared = " / ".join(ROLES[role] for role in roles)
    title = f"{TITLES['representation']}: similarity to the oracle's, {compared}. 1 is ideal"
    table(["layer", *(f"{name} {SIMILARITIES[similarity]}" for name, similarity in columns)], rows, title)


def _print_inversion(found: dict[str, Any]) -> None:
    print_line(
        f"{TITLES['inversion']}: the forget identity has rank {found['rank']:g} of {found['candidates']} by correlation (chance: "
        f"{(found['candidates'] + 1) / 2:g}); correlation {number(found['correlation'], 2)}, others "
        f"{number(found['correlation_of_others'], 2)}; PSNR {number(found['psnr'], 1)} dB, others {number(found['psnr_of_others'], 1)} dB."
    )

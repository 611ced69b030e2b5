"""How the findings of a data check and a split are printed."""

from __future__ import annotations

from typing import Any

from .printing import print_line, table

FINDINGS = {
    "rows_without_image": "annotated images that are missing",
    "images_without_row": "images without an annotation row",
    "images_without_identity": "images without an identity",
    "near_duplicates_removed": "near-duplicates excluded",
    "unreadable": "unreadable images",
    "tiny": "images smaller than 32 pixels on a side",
    "not_rgb": "images not in RGB (converted)",
    "single_image_identities": "identities with one image (never in a forget set)",
    "contradictory_labels": "identities with contradictory labels",
    "constant_labels": "constant labels",
    "exact_duplicates": "groups of identical files",
    "near_duplicates": "groups of near-duplicates",
    "duplicates_across_sets": "groups of duplicates across sets of the split",
}


EXAMPLES, NAMED = 2, 5  # examples per finding, unreadable images listed


WIDTH = 72  # of the examples


def check(result: dict[str, Any]) -> None:
    """Print the findings of a data check."""
    spread = result["images_per_identity"]
    print_line(
        f"{result['data']}: {result['images']:,} images of {result['identities']:,} identities, "
        f"{spread['min']:g} to {spread['max']:g} each (median {spread['median']:g})."
    )
    rows = []
    for key, words in FINDINGS.items():
        found = result.get(key)
        if found is None:
            continue
        across = [item for item in found if isinstance(item, dict) and len(item.get("identities", [])) > 1]
        if across:
            words += f", {len(across)} of them across identities"
        more = ["..."] if len(found) > EXAMPLES else []
        rows.append([words, f"{len(found):,}", _cut("; ".join([*map(_example, (across or found)[:EXAMPLES]), *more]))])
    table(["finding", "count", "examples"], rows, text=(0, 2))
    shares = sorted(result["class_balance"].items(), key=lambda item: item[1])
    named = shares if len(shares) <= 2 * EXAMPLES + 4 else [*shares[: EXAMPLES + 1], ("...", None), *shares[-EXAMPLES - 1 :]]
    print_line(
        "Share of images with each label: " + ", ".join(name if share is None else f"{name} {share:.1%}" for name, share in named) + "."
    )
    for item in result["unreadable"][:NAMED]:
        print_line(f"{item['photo']} {item['reason']}")
    for note in [*result["notes"], *result.get("split_notes", [])]:
        print_line(note)
    if not result["breaks"]:
        print_line("No finding would break a run. --json lists all findings by name.")


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"


def _example(item: Any) -> str:
    if not isinstance(item, dict):
        return str(item)
    if "photos" in item:
        return " = ".join(item["photos"][:3]) + (f" in {', '.join(item['sets'])}" if "sets" in item else "")
    if "label" in item:
        return f"{item['identity']} ({item['label']}: {item['values']['0']} no, {item['values']['1']} yes)"
    return str(item["photo"])


def blocking_findings(result: dict[str, Any]) -> str | None:
    """Return the findings that would break a run."""
    return " ".join(result["breaks"]) or None


def split(result: dict[str, Any]) -> None:
    """Print the file of a split and the size of its sets."""
    sets = ", ".join(f"{name} {result['images'][name]:,} images of {count:,}" for name, count in result["people"].items())
    print_line(
        f"Split: {result['split']} ({sets} identities; forget set: {result['forget']} identities; {result['reserved']:,} reserved images)."
    )
    known = " (the published split)" if result["published"] else ""
    print_line(f"SHA-256: {result['sha256']}{known}")

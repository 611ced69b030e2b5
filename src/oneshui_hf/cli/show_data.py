"""How the findings of a data check and a split are printed."""

from __future__ import annotations

from typing import Any

from .printing import _print, table

FINDINGS = {
    "rows_without_image": "annotated photos that are not there",
    "images_without_row": "photos without an annotation row",
    "images_without_identity": "photos without an identity",
    "near_duplicates_removed": "near-duplicates left out",
    "unreadable": "photos that cannot be read",
    "tiny": "photos smaller than 32 pixels a side",
    "not_rgb": "photos not in RGB (converted)",
    "single_image_identities": "people with one photo (never asked to forget)",
    "contradictory_labels": "people with a label both ways",
    "constant_labels": "labels that never vary",
    "exact_duplicates": "groups of equal files",
    "near_duplicates": "groups of near-duplicates",
    "duplicates_across_sets": "groups of duplicates across the split's sets",
}


EXAMPLES, NAMED = 2, 5  # in the table, and of photos that cannot be read


WIDTH = 72  # of the examples


def check(result: dict[str, Any]) -> None:
    """Print what was found in a data set."""
    spread = result["images_per_identity"]
    _print(
        f"{result['data']}: {result['images']:,} photos of {result['identities']:,} people, "
        f"{spread['min']:g} to {spread['max']:g} each (median {spread['median']:g})."
    )
    rows = []
    for key, words in FINDINGS.items():
        found = result.get(key)
        if found is None:
            continue
        across = [item for item in found if isinstance(item, dict) and len(item.get("identities", [])) > 1]
        if across:
            words += f", {len(across)} of them across people"
        more = ["..."] if len(found) > EXAMPLES else []
        rows.append([words, f"{len(found):,}", _cut("; ".join([*map(_example, (across or found)[:EXAMPLES]), *more]))])
    table(["finding", "how many", "for example"], rows, words=(0, 2))
    shares = sorted(result["class_balance"].items(), key=lambda item: item[1])
    named = shares if len(shares) <= 2 * EXAMPLES + 4 else [*shares[: EXAMPLES + 1], ("...", None), *shares[-EXAMPLES - 1 :]]
    _print("Share of photos: " + ", ".join(name if share is None else f"{name} {share:.1%}" for name, share in named) + ".")
    for item in result["unreadable"][:NAMED]:
        _print(f"{item['photo']} {item['reason']}")
    for note in [*result["notes"], *result.get("split_notes", [])]:
        _print(note)
    if not result["breaks"]:
        _print("Nothing found would break a run; --json lists everything by name.")


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


def breaks(result: dict[str, Any]) -> str | None:
    """Return what would break a run."""
    return " ".join(result["breaks"]) or None


def split(result: dict[str, Any]) -> None:
    """Print where a split lies and what is in it."""
    sets = ", ".join(f"{name} {result['images'][name]:,} photos of {count:,}" for name, count in result["people"].items())
    _print(f"Split: {result['split']} ({sets} people; {result['forget']} ask, {result['reserved']:,} photos reserved).")
    known = "; the published split" if result["published"] else ""
    _print(f"SHA-256 {result['sha256']}{known}")

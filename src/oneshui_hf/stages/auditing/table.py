"""The table and the sentences of an audit as text, for the terminal and the page. This module imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TITLES = {"loss_rise": "loss rise", "logit_distance": "logit distance", "weight_difference": "weight difference"}
SHOWN = 10  # candidates in the table


@dataclass(frozen=True)
class AuditTable:
    """The candidates with the best ranks, and the scores that were needed to stand out, as text.

    Attributes:
        title: How many there are.
        columns: The headings.
        rows: One per candidate, and a last one.
        numbers: The positions of the columns of numbers.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    numbers: range


def audit_table(result: Mapping[str, Any]) -> AuditTable:
    """Return the table of an audit. Candidates without a name, as in a file without names, are called by their number."""
    attacks, floor = [name for name in TITLES if name in result["attacks"]], result["oracle"] is not None
    people = result["people"][:SHOWN]
    known = any(row["forgotten"] for row in result["people"])
    rows = []
    for row in people:
        cells = [f"{row['scores'][name]:.3g} ({row['ranks'][name]:g})" for name in attacks]
        found = [_listed(row[key]) for key in ("stands_out", "oracle_stands_out")[: 1 + floor]]
        rows.append(
            [row.get("name") or f"candidate {row['number']}", str(row["photos"]), *cells, *found, *["yes" * row["forgotten"]] * known]
        )
    needed = ["not tested" if (score := result["attacks"][name]["needed"]) is None else f"{score:.3g}" for name in attacks]
    rows.append(["needed to stand out", "", *needed, *[""] * (1 + floor + known)])
    columns = ["candidate", "photos", *(f"{TITLES[name]} (rank)" for name in attacks), "stands out by"]
    columns += ["stands out by the oracle's"] * floor + ["forgotten"] * known
    title = f"{len(people)} of {result['candidates']} candidates, {result['photos']} photos"
    return AuditTable(title, columns, rows, range(1, 2 + len(attacks)))


def owner_sentences(result: Mapping[str, Any]) -> list[str]:
    """Return a sentence per attack on the ranks of the people who are known to be forgotten, with the oracle's next to it."""
    sentences = []
    for name, title in TITLES.items():
        if (found := result["attacks"].get(name, {}).get("forgotten")) is None:
            continue
        of = "the forgotten person has" if found["people"] == 1 else f"the {found['people']} forgotten people have on average"
        floor = ((result["oracle"] or {}).get(name) or {}).get("forgotten")
        oracle = f"; by the oracle's difference rank {_rank(floor)}" if floor else ""
        sentences.append(f"{title.capitalize()}: {of} rank {_rank(found)} (by chance: p = {found['by_chance']:.2g}){oracle}.")
    return sentences


def _rank(found: Mapping[str, Any]) -> str:
    ends, people = found["rank_interval"], found["people"]
    interval = f" [{ends[0]:.3g}, {ends[1]:.3g}]" if ends else ""
    of_top = f", and {found['top_k_share']:.0%} of the {people} highest are right" if people > 1 else ""
    return f"{found['rank']:.3g}{interval} of {found['candidates']}{of_top}"


def _listed(attacks: Sequence[str]) -> str:
    return ", ".join(TITLES[name] for name in attacks)

"""How changes for people who are not forgotten are printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .printing import number, number_with_interval, print_line, table

SETS = ("retain", "test")


def bystanders(found: Mapping[str, Any] | None) -> None:
    """Print how losses and exposure of retain and unseen identities changed, and which groups of people differ."""
    if found is None:
        return
    rows = []
    for name in SETS:
        for which, entry in (("", found), (", oracle", found["oracle"] or {})):
            if of_set := entry.get(name):
                loss, exposure = of_set["loss_change"], of_set["exposure_change"] or {}
                share = of_set["beyond_spread"]
                rows.append(
                    [
                        f"{name}{which}",
                        str(of_set["people"]),
                        *(number(loss[key], 3) for key in ("mean", "sd", "worst_tenth", "largest")),
                        number(None if share is None else 100 * share, 0),
                        *(number(exposure.get(key), 3) for key in ("mean", "worst_tenth")),
                    ]
                )
    columns = ["set", "identities", "mean", "sd", "worst tenth", "largest", "beyond spread %", "exposure mean", "exposure worst tenth"]
    table(columns, rows, "Bystanders: change against the original, by identity. Loss: mean 0 is ideal; compare with the oracle")
    _print_groups(found["groups"], found["level"])


def _print_groups(groups: Mapping[str, Any], level: float) -> None:
    """Print the groups of people that differ, the number that was compared, and that of the groups that are too small."""
    compared: Sequence[tuple[str, Mapping[str, Any]]] = [(name, one) for name in SETS for one in groups[name]]
    for name, one in compared:
        if one["differs"]:
            label = one["name"] or f"label {one['label']}"
            print_line(
                f"{name}: people with '{label}' ({one['people_with']}) have a loss change of "
                f"{number_with_interval(one['difference'], one['interval'], 3)} more than people without ({one['people_without']}); "
                f"under the oracle {number(one['oracle'], 3)}."
            )
    differ = sum(one["differs"] for _, one in compared)
    print_line(
        f"{differ} of {len(compared)} compared groups of people differ (one permutation test for all, {1 - level:.0%}); "
        f"{groups['left_out']} have too few people to be compared."
    )

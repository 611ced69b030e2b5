"""The page of an audit, from its `audit.json`: no model, no photo, and no name unless the audit kept it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ...files import lock_output, write_bytes
from ...runs import read_checked
from ...validation import Count, Schema, Text, check_fields
from ..audit_options import AUDIT
from .table import TITLES, audit_table, owner_sentences

TEMPLATE = "audit.html"

AttackName = Literal["loss_rise", "logit_distance", "weight_difference"]


class _Owners(Schema):
    people: Count
    candidates: Count
    rank: float
    rank_interval: list[float] | None
    top_k_share: float
    by_chance: float


class _Attack(Schema):
    needed: float | None
    forgotten: _Owners | None


class _Person(Schema):
    number: Count
    name: Text | None = None
    photos: Count
    forgotten: bool
    stands_out: list[AttackName]
    oracle_stands_out: list[AttackName] = Field(default_factory=list)
    scores: dict[AttackName, float]
    ranks: dict[AttackName, float]


class _Audit(Schema):
    verdict: Text
    family_wise_error: float
    candidates: Count
    photos: Count
    attacks: dict[AttackName, _Attack]
    oracle: dict[AttackName, _Attack] | None
    people: list[_Person]
    notes: list[Text]
    not_run: list[Text]
    cannot_show: list[Text]


def write_page(folder: Path, output: Path) -> dict[str, Any]:
    """Write the page of the audit in a folder; returns `report`, its path, and `figures`, which it has none of.

    Raises:
        OneshuiError: The audit is damaged, or another process writes the page.
    """
    from jinja2 import Environment, StrictUndefined

    result = read_checked(folder / AUDIT)
    check_fields(_Audit, result, folder / AUDIT)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = resources.files(f"{__package__.partition('.')[0]}.cards").joinpath(TEMPLATE).read_text(encoding="utf-8")
    has_names = any("name" in row for row in result["people"])
    html = environment.from_string(text).render(
        audit=result, table=audit_table(result), owners=owner_sentences(result), titles=TITLES, has_names=has_names
    )
    with lock_output(output):
        write_bytes(output, f"{html}\n".encode(), private=has_names)
    return {"report": str(output), "figures": []}

"""What the page shows, as HTML from the templates of this package. All values are escaped; nothing refers to another address or file."""

from __future__ import annotations

import base64
import functools
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import torch

from ..desk.entries import LIKE_UNSEEN, shows_no_change
from ..printable import printable
from ..recognition.matching import Match
from ..results.table_columns import BUILTIN_ROWS
from ..stages.unseen_range import NOT_YET, TOO_MUCH
from .choices import Choice
from .occlusion import GRID, strongest_place
from .photos import Photo
from .prediction import SHOWN, LabelBar

if TYPE_CHECKING:
    from jinja2 import Environment

    from .evaluated import Comparison
    from .forgetting import Forgotten
    from .trial import Trial
    from .workbench import Examination

AXIS_ROOM = 1.15  # the axis of losses ends this far beyond the largest value
FULL = 0.75  # opacity of the strongest cell of a map
VERDICTS = {
    LIKE_UNSEEN: ("good", "Looks like an unseen identity"),
    NOT_YET: ("open", "Not forgotten yet"),
    TOO_MUCH: ("open", "Too much: stands out by a large loss"),
}
NO_CHANGE = ("open", "This photo shows no change: it looked like an unseen identity before, too")
UNKNOWN_VERDICT = ("open", "No verdict: the range of unseen identities is not known")
MAPS = ("before", "after", "after minus before")
MAP_WORDS = ("The model before", "The model after", "What changed")


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("oneshui_hf.app"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {"percent": _percent, "number": _number, "printable": printable}
    return made


def render(template: str, **context: Any) -> str:
    """Return a template of this package with its values."""
    return _environment().get_template(f"{template}.html").render(**context)


def stylesheet() -> str:
    """Return the style sheet of the page."""
    return resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")


def error_box(sentence: str) -> str:
    """Return an error as the page shows it."""
    return render("message", sentence=printable(sentence))


def person_on(photo: Photo, found: Examination, notes: Sequence[str], origin: str | None = None) -> str:
    """Return who is on a photo, and what may be wrong with it.

    Args:
        photo: The photo.
        found: What was found out about it.
        notes: Notes and warnings.
        origin: What a generated photo is; who is on it is known then.
    """
    return render(
        "person",
        preview=photo.preview(),
        warnings=[] if origin else [*found.warnings, *notes],
        note=None if origin else found.note,
        match=found.match,
        has_runner_up=found.match is not None and math.isfinite(found.match.runner_up_margin),
        calibration=found.calibration,
        unmatched=found.unmatched,
        person=_person(found.match),
        origin=origin,
    )


def prediction(found: Examination) -> str:
    """Return what the model predicts for a photo."""
    return render("prediction", **_bars(found.bars))


def _bars(bars: Sequence[LabelBar]) -> dict[str, Any]:
    return {"bars": bars[:SHOWN], "more": bars[SHOWN:], "has_range": any(bar.low is not None for bar in bars)}


def _person(match: Match | None) -> str | None:
    return None if match is None or match.person is None else printable(match.person)


def trial(photo: Photo, found: Trial, size: int, notes: Sequence[str]) -> str:
    """Return what forgetting would change.

    Args:
        photo: The photo.
        found: The result of a trial.
        size: Side of the model's input, in pixels.
        notes: Notes and warnings.
    """
    kind, headline = NO_CHANGE if shows_no_change(found.loss) else VERDICTS.get(found.loss["verdict"], UNKNOWN_VERDICT)
    return render(
        "trial",
        method=found.method,
        kind=kind,
        headline=headline,
        sentence=found.sentence,
        **_bars(found.bars),
        axis=loss_axis(found.loss),
        square=photo.square(max(size, 160)),
        maps=heat_maps(found.maps),
        grid=GRID,
        samples=found.samples,
        stored=found.stored,
        seconds=found.seconds,
        notes=notes,
    )


def loss_axis(loss: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the positions on the axis of losses, in percent of its length; None if the loss before is not known.

    Args:
        loss: The result of `unseen_range.judged`. A loss after that is unknown is infinite, and is drawn at the end of the axis.
    """
    before, after, ends = loss["loss_before"], loss["loss_after"], loss["unseen"]
    if before is None:
        return None
    known = [value for value in (before, after, *(ends or ())) if value is not None]
    length = max(known) * AXIS_ROOM or 1.0

    def place(value: float | None) -> float:
        return 100.0 if value is None else round(100 * value / length, 2)

    return {
        "before": before,
        "after": after,
        "before_at": place(before),
        "after_at": place(after),
        "band": None if ends is None else {"low": ends[0], "high": ends[1], "from": place(ends[0]), "to": place(ends[1])},
        "end": length,
    }


def heat_maps(maps: Sequence[torch.Tensor]) -> list[dict[str, Any]]:
    """Return the cells of each map with their colours. Before and after share a scale; the difference has its own."""
    shared = max(grid.abs().max().item() for grid in maps[:2])
    scales = (shared, shared, maps[2].abs().max().item())
    return [
        {
            "title": title,
            "words": words,
            "place": strongest_place(grid),
            "largest": grid.abs().max().item(),
            "cells": [_cell(value, scale) for value in grid.flatten().tolist()],
        }
        for title, words, grid, scale in zip(MAPS, MAP_WORDS, maps, scales, strict=True)
    ]


def _cell(value: float, scale: float) -> dict[str, Any]:
    share = abs(value) / scale if scale > 0 else 0.0
    return {"sign": "up" if value >= 0 else "down", "opacity": round(FULL * share, 3)}


def choice_label(choice: Choice) -> str:
    """Return the text next to the button that chooses a method."""
    return f"{choice.name}{'' if choice.prepared else ' (not prepared)'}: {choice.sentence}"


def forgotten(found: Forgotten, notes: Sequence[str]) -> str:
    """Return what is shown after a request was applied, with the receipt and the card to download."""
    files = [(f"{found.request}.json", "Receipt", "application/json", found.receipt)]
    if found.card is not None:
        files.append((f"{found.run.path.name}-README.md", "Model card", "text/markdown", found.card.encode()))
    return render("forgotten", found=found, run=printable(found.run.path), files=_downloads(files), notes=notes)


def answered(request: str, letter: str, run: str) -> str:
    """Return what is shown after the new model was put into service, with the letter to download."""
    files = [(f"{request}.md", "Letter", "text/markdown", letter.encode())]
    return render("answered", request=request, letter=letter, run=printable(run), files=_downloads(files))


def _downloads(files: Sequence[tuple[str, str, str, bytes]]) -> list[dict[str, str]]:
    """Return links that contain their files, so that no copy is left on the disk of the server."""
    encoded = [(name, label, f"data:{kind};base64,{base64.b64encode(data).decode()}") for name, label, kind, data in files]
    return [{"name": name, "label": label, "address": address} for name, label, address in encoded]


def requests_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the requests of the desk with their deadlines."""
    return render("requests", rows=rows)


def _percent(share: float) -> str:
    """Return a probability in percent; one that is not 0 or 1 is not shown as such."""
    percent = 100 * share
    if 0 < percent < 1:
        return "<1 %"
    if 99 < percent < 100:
        return ">99 %"
    return f"{percent:.0f} %"


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if not value or abs(value) >= 10**-digits else f"{value:.0e}"


def steps() -> str:
    """Return what a visitor does first."""
    return render("steps")


def heading(name: str, task: str, labels: int, *, photo_alone: bool) -> str:
    """Return the top of the page."""
    return render("heading", name=printable(name), task=task, labels=labels, photo_alone=photo_alone)


def comparison_table(found: Comparison, column: str, *, descending: bool) -> str:
    """Return a table of methods, sorted by a column; rows without a value are last, and those for comparison are marked.

    Args:
        found: The table.
        column: A heading of the table.
        descending: Whether the largest value is first.
    """
    place = list(found.columns).index(column)
    known = [row for row in found.rows if row[place] not in (None, "")]
    ordered = sorted(known, key=lambda row: row[place], reverse=descending) + [row for row in found.rows if row[place] in (None, "")]
    sort = "descending" if descending else "ascending"
    return render("comparison", found=found, rows=ordered, place=place, sort=sort, builtin=tuple(BUILTIN_ROWS.values()))


def nothing_to_compare(run: str) -> str:
    """Return what the tab shows if no run was evaluated."""
    return render("nothing", run=printable(run))

"""Figures of evaluated runs and of benchmarks, as the report draws them, for notebooks and papers.

    from oneshui_hf import plots

    plots.scores("demo/original-METHOD", "demo/original-OTHER")   # a notebook shows the figure
    plots.tradeoff("benchmarks/demo").save("tradeoff.svg")

Needs `pip install "oneshui-hf[plots]"`. A figure contains numbers and the names of methods and data sets; identities are numbered.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .card import SCORES
from .errors import OneshuiError, UsageError
from .files import write_bytes
from .option_values import expand_home
from .results import figures as draw
from .results.aggregate import summarise
from .results.figures.set_scores import SetScores, set_scores, set_scores_legend
from .results.load import Result, load_benchmark, load_run
from .results.report_figures import draw_kind, results_by_line
from .results.table_columns import get_nested
from .runs import RECORD, Run
from .sets import COMPARED
from .stages.compared_runs import runs_for_comparison

Source = str | os.PathLike[str] | Run
GAP = 16.0  # points between panels
NOTHING = "nothing was measured for this figure; the source needs"

__all__ = ["Figure", "attacks", "cost", "identity_losses", "losses", "scores", "tradeoff"]


@dataclass(frozen=True)
class Figure:
    """A figure. A notebook shows it.

    Attributes:
        svg: The text of a standalone SVG file, on a white background.
    """

    svg: str = field(repr=False)

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the SVG file and return its path.

        Raises:
            UsageError: The name does not end in .svg.
        """
        target = Path(expand_home(os.fspath(path)))
        if target.suffix != ".svg":
            raise UsageError(f"A figure is written as SVG, so name a file that ends in .svg, not '{target.name}'.")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, f"{self.svg}\n".encode())
        return target


def scores(*runs: Source, title: str = "Scores before and after unlearning") -> Figure:
    """Draw the scores of forget, retain and test under each unlearned model, its original and the oracle.

    Args:
        *runs: Evaluated runs of unlearned models. Their original and oracle are found next to them.
        title: The title.

    Raises:
        UsageError: No run is named, a source is no run or was not evaluated, two runs have the same method, or different scores.
        OneshuiError: A file is damaged, or matplotlib is not installed.
    """
    draw.require_matplotlib()
    loaded = [_load(source) for source in runs]
    used = {results[0].row["metrics"]["score"] for results in loaded}
    if len(used) != 1:
        raise UsageError("plots.scores takes one or more evaluated runs that have the same score, mAP or accuracy.")
    [score] = used
    methods = {results[0].row["method"]: _set_scores(results, score) for results in loaded}
    if len(methods) < len(loaded):
        raise UsageError("plots.scores takes one run of each method, since it names runs by their method; draw two figures.")
    drawn = [set_scores_legend("scores-key"), set_scores("scores", title, methods, SCORES[score])]
    return Figure(_grid(drawn))


def tradeoff(source: Source) -> Figure:
    """Draw forgetting (gap closure, or attack AUC without an oracle) over the points that retain and test lost.

    Args:
        source: An evaluated run, or the folder of a benchmark.

    Raises:
        UsageError: The source is neither, was not evaluated, or nothing was measured for the figure.
        OneshuiError: A file is damaged, or matplotlib is not installed.
    """
    return _of_kind("tradeoff", source, "the original next to it, evaluated")


def identity_losses(source: Source) -> Figure:
    """Draw the mean loss of each forget identity before and after unlearning, and the oracle's. Source and errors as for `tradeoff`."""
    return _of_kind("people", source, "curves.json of `oneshui evaluate`")


def losses(source: Source) -> Figure:
    """Draw the losses of the forget set against those of unseen identities (test). Source and errors as for `tradeoff`."""
    return _of_kind("losses", source, "curves.json of `oneshui evaluate`")


def attacks(source: Source) -> Figure:
    """Draw the ROC curves of the membership inference attacks. Source and errors as for `tradeoff`."""
    return _of_kind("attacks", source, "attacks with at least two people on each side")


def cost(source: Source) -> Figure:
    """Draw ToW over seconds. Source and errors as for `tradeoff`; it has to be a benchmark of at least two methods."""
    return _of_kind("cost", source, "at least two methods, with times and an oracle")


def _of_kind(kind: str, source: Source, needed: str) -> Figure:
    draw.require_matplotlib()
    results = _load(source, benchmark=True)
    panels: list[str] = []
    for number, group in enumerate(summarise([result.row for result in results]), 1):
        panels += draw_kind(kind, results_by_line(group, results), group, f"{number}").values()
    if not panels:
        raise UsageError(f"{os.fspath(source)}: {NOTHING} {needed}.")
    return Figure(_grid(panels))


def _load(source: Source, *, benchmark: bool = False) -> list[Result]:
    """Return the results of a run with its rows for comparison, or of a benchmark."""
    path = Path(expand_home(os.fspath(source)))
    if benchmark and path.is_dir() and not (path / RECORD).is_file():
        return load_benchmark(path)
    run = source if isinstance(source, Run) else Run.open(path)
    return load_run(run, *runs_for_comparison(run))


def _set_scores(results: Sequence[Result], score: str) -> dict[str, SetScores]:
    """Return the scores of each set of a run, whose own row is the first, and of the rows for comparison."""
    others = {result.row["row"]: result.row["metrics"] for result in results[1:]}
    found = {}
    for name in ("forget", *(one for one in COMPARED if one != "forget")):
        after = get_nested(results[0].row["metrics"], name, score)
        if after is None:
            raise OneshuiError(f"The score on {name} is unknown; evaluate the run again.")
        found[name] = SetScores(get_nested(others.get("original"), name, score), after, get_nested(others.get("oracle"), name, score))
    return found


def _grid(panels: Sequence[str]) -> str:
    """Return one SVG of several, two in a row on a white background; a legend fills a row."""
    sizes = [_size(panel) for panel in panels]
    columns = 2 if len(panels) > 2 else 1
    width = columns * draw.WIDTH + (columns - 1) * GAP
    parts, left, top, row_height = [], 0.0, GAP / 2, 0.0
    for panel, (_, height) in zip(panels, sizes, strict=True):
        is_legend = 'aria-label="Legend' in panel
        if left and (is_legend or left + draw.WIDTH > width):
            left, top, row_height = 0.0, top + row_height + GAP, 0.0
        parts.append(panel.strip().replace("<svg ", f'<svg x="{left:g}" y="{top:g}" width="{draw.WIDTH:g}" height="{height:g}" ', 1))
        row_height = max(row_height, height)
        left = width if is_legend else left + draw.WIDTH + GAP
    total = top + row_height + GAP / 2
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {total:g}" width="{width:g}" height="{total:g}" role="img">'
    return f'{opening}<rect width="100%" height="100%" fill="#ffffff"/>{"".join(parts)}</svg>'


def _size(svg: str) -> tuple[float, float]:
    """Return width and height of a figure, from its view box."""
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert found is not None
    return float(found[1]), float(found[2])

"""The report: one self-contained HTML file with tables and figures, and every figure as an SVG file next to it.

    oneshui report RUN
    oneshui report BENCHMARK
    oneshui report AUDIT

It is made from the files of `oneshui evaluate` or of a benchmark; no model is needed. The page loads nothing from the network. It contains
numbers and the names of methods and data sets; identities are numbered. Only `--with-images` adds photos, in a copy that must not be
shared.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..card import SCORES
from ..files import lock_output, new_folder, write_bytes
from ..metrics import collapse
from ..reporting import SILENT, Reporter
from ..results import figures as draw
from ..results.aggregate import Group, Line, Value, summarise
from ..results.load import Result, load_benchmark, load_run, run_label
from ..results.report_figures import FiguresByKind, LineResults, draw_figures, results_by_line, slug
from ..results.report_tables import bystander_context, difference_context, table_context
from ..results.table_columns import COLUMNS, MARK, Column
from ..results.verdict import verdict
from ..runs import Run
from .audit_options import has_audit
from .auditing.page import write_page
from .checks import check_report, report_files
from .command_options import ReportOptions
from .compared_runs import runs_for_comparison

COSTS = {
    "prepare_s": Column("preparation time, s", "", 1),
    "prepare_mb": Column("peak memory of preparation, MB", "", 0),
    "kept_mb": Column("stored for requests, MB", "", 1),
    "apply_s": Column("request time, s", "", 2),
    "apply_mb": Column("peak memory of the request, MB", "", 0),
}


def report(options: ReportOptions, reporter: Reporter = SILENT) -> dict[str, Any]:
    """Write the report of a run or of a benchmark.

    Returns:
        `report`, the HTML file, and `figures`, the SVG files.

    Raises:
        UsageError: The source is neither a run nor a benchmark, was not evaluated, or the output exists or cannot be written.
        OneshuiError: A file is damaged, no row is done, matplotlib is not installed, or another process writes the same report.
    """
    check_report(options)
    if has_audit(Path(options.source)):
        return write_page(Path(options.source), report_files(options)[0])
    draw.require_matplotlib()
    with lock_output(report_files(options)[0]):
        return _write_report(check_report(options), options, reporter)  # checked again: another process may have written it meanwhile


def _write_report(run: Run | None, options: ReportOptions, reporter: Reporter) -> dict[str, Any]:
    output, folder = report_files(options)
    results = load_run(run, *runs_for_comparison(run)) if run else load_benchmark(Path(options.source))
    groups = summarise([result.row for result in results])
    photos = _support_images(run, options.data_dir, reporter) if run and options.with_images else []
    pages = []
    figures: dict[str, str] = {}
    for number, group in enumerate(reporter.track(groups, "Drawing"), 1):
        shown = results_by_line(group, results)
        drawn = draw_figures(shown, group, f"{number}-{slug(group.dataset)}-{group.forget}")
        for kind in drawn.values():
            figures |= kind
        pages.append(_page_context(group, shown, drawn))
    html = _render_page(pages, photos, _run_context(run, results[0]))
    with new_folder(folder, replace=options.overwrite) as scratch:
        for name, svg in figures.items():
            (scratch / f"{name}.svg").write_text(svg, encoding="utf-8")
        write_bytes(output, html.encode())
    return {"report": str(output), "figures": [str(folder / f"{name}.svg") for name in figures]}


def _page_context(group: Group, shown: Sequence[LineResults], drawn: FiguresByKind) -> dict[str, Any]:
    """Return the template's variables for a group."""
    methods = [one for one in shown if one.line.row == "method"]
    measured = [result.row for one in shown for result in one.results if _is_measured(result)]
    described = [line for line in group.lines if line.row in ("original", "method")]
    by_definition = [one.line.label for one in shown if one.results and not any(_is_measured(result) for result in one.results)]
    costs = {name: column for name, column in COSTS.items() if any(one.cost(name) is not None for one in methods)}
    cost_lines = [replace(one.line, values={name: Value(one.cost(name)) for name in costs}) for one in methods]
    secondary = [line for line in group.lines if not line.done or any(line.values[name].mean is not None for name in group.secondary)]
    drawn_attacks = {attack for one in shown for result in one.results for attack in result.roc}
    return {
        "id": f"{slug(group.dataset)}-{group.forget}",
        "dataset": group.dataset,
        "forget": group.forget,
        "score": SCORES[group.score],
        "seeds": group.seeds,
        "first": measured[0] if measured else None,
        "methods": len(methods),
        "verdicts": [_verdict_context(line, group) for line in described],
        "best": any(line.best for line in described),
        "by_definition": by_definition,
        "main": table_context(group.lines, {name: COLUMNS[name] for name in group.columns}, group.score),
        "secondary": table_context(secondary, {name: COLUMNS[name] for name in group.secondary}, group.score),
        "shown": group.secondary,
        "costs": table_context(cost_lines, costs, group.score),
        "relearning": "relearning" in group.columns,
        "marked": any(value.within_floor for line in group.lines for value in line.values.values()),
        "floor": bool(group.floor),
        "unprepared": [one.line.label for one in methods if not one.cost("prepare_s")] if drawn["cost"] else [],
        "figures": {kind: [draw.inline(svg) for svg in figures.values()] for kind, figures in drawn.items()},
        "without_curve": _unique(note for line in group.lines if (note := line.values["attack"].note) not in ("", *drawn_attacks)),
        "cannot_tell": _unique(sentence for row in measured for sentence in row["metrics"]["cannot_tell"]),
    }


def _is_measured(result: Result) -> bool:
    """Return whether a result has more than the values that follow from the definition."""
    return bool(result.row["metrics"].get("retain"))


def _verdict_context(line: Line, group: Group) -> dict[str, Any]:
    flags = {"collapsed": line.collapsed, "unchanged": line.unchanged, "best": line.best}
    return {"label": line.label, "verdict": verdict(line, group), **flags}


def _unique(sentences: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(sentences))


def _support_images(run: Run, data_dir: str | None, reporter: Reporter) -> list[str]:
    """Return the support images of the split's own request, as PNG in base64."""
    import torch
    from PIL import Image

    from .distributed import make_accelerator
    from .run_data import open_data

    support = open_data(run, make_accelerator(), data_dir, reporter).sets["support"]
    photos = []
    for pixels in support.raw_pixels(torch.arange(len(support))):
        stream = io.BytesIO()
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(stream, "PNG")
        photos.append(base64.b64encode(stream.getvalue()).decode())
    return photos


def _run_context(run: Run | None, result: Result) -> dict[str, Any] | None:
    """Return kind, label and the sections of a run's model alone; None for a benchmark."""
    if run is None:
        return None
    metrics = result.row["metrics"]
    sections = {"difference": difference_context(metrics), "bystanders": bystander_context(metrics["bystanders"])}
    return {"kind": run.record.kind, "label": run_label(run), "seconds": result.row["cost"].get("apply_s"), **sections}


def _render_page(pages: Sequence[Mapping[str, Any]], photos: Sequence[str], single: Mapping[str, Any] | None) -> str:
    """Return the page. Its policy lets a browser run the script below, by its hash, and load nothing."""
    from importlib import resources

    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    cards = resources.files(f"{__package__.rpartition('.')[0]}.cards")
    template, css, script = (cards.joinpath(f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    marks = {"mark": MARK, "collapse_mark": collapse.MARK, "collapse_explanation": collapse.EXPLANATION}
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {"css": Markup(css), "script": Markup(script), "script_hash": digest}
    return environment.from_string(template).render(pages=pages, photos=photos, single=single, svg=Markup, **marks, **parts) + "\n"

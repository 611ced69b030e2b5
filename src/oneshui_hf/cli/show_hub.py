"""How the revisions of a repository on the Hub are printed, and the two questions before they end."""

from __future__ import annotations

import sys
from typing import Any

from .. import api, api_hub
from ..api_options import read_options
from ..errors import UsageError
from ..reporting import Reporter
from ..stages.command_options import TrainOptions
from ..stages.download import download_question
from .printing import megabytes, print_line, table

HASH_WIDTH = 12  # characters of a commit or a hash that are printed


def history(result: dict[str, Any]) -> None:
    """Print the revisions of a repository."""
    rows = [
        [
            row["date"],
            row["revision"][:HASH_WIDTH],
            ", ".join(row["references"]),
            row["kind"] or "-",
            (row["weights"] or "-")[:HASH_WIDTH],
            "as in main" if row["is_head"] else "OTHER WEIGHTS" if row["earlier"] else "none",
            row["note"] or "",
        ]
        for row in result["revisions"]
    ]
    table(["date", "revision", "in", "model", "weights", "", "note"], rows, title=result["repository"], text=(0, 1, 2, 3, 4, 5, 6))
    if not result["complete"]:
        print_line(f"Only {len(rows):,} revisions were read; there are more.")
    if result["earlier"]:
        print_line(f"Revisions with other weights than main, which anyone with access can read: {result['earlier']:,} of {len(rows):,}.")
        print_line(f"`oneshui hub squash {result['repository']}` ends those of the branches.")
    elif result["complete"]:
        print_line("No revision contains other weights than main.")


def squashed(result: dict[str, Any]) -> None:
    """Print what was removed from a repository, or would be removed."""
    removed, done = result["deleted"], not result["dry_run"]
    for row in result["branches"]:
        print_line(f"Commits of {row['branch']}: {row['commits']:,}, {'now' if done else 'would be'} 1.")
    if removed:
        rows = [[row["file"], row["sha256"][:HASH_WIDTH], megabytes(row["bytes"]), row["pushed"]] for row in removed]
        table(["large file", "SHA-256", "size", "pushed"], rows, text=(0, 1, 3))
    print_line(f"Large files {'' if done else 'that would be '}deleted: {len(removed):,} ({megabytes(result['bytes'])}).")
    if result["kept_by"]:
        print_line(f"Revisions of tags and pull requests stay, with their files: {', '.join(result['kept_by'])}.")
    print_line(result["untouched"])


def derived(result: dict[str, Any]) -> None:
    """Print the models that name a repository as their base model."""
    rows = [[row["model"], row["relation"] or "-", "private" if row["private"] else "public"] for row in result["models"]]
    if rows:
        table(["model", "relation", ""], rows, text=(0, 1, 2))
    more = "" if result["complete"] else " There are more."
    print_line(f"Models that name {result['repository']} as their base model: {len(rows):,}.{more}")
    print_line("Models that were computed from it and do not name it are not listed.")


def squash_after_questions(*, reporter: Reporter, **options: Any) -> dict[str, Any]:
    """Call `api_hub.squash_history`. On a terminal, first ask twice, unless the options confirm it.

    Raises:
        UsageError: The answers do not confirm it.
    """
    is_confirmed = options.get("yes") or options.get("confirm") is not None
    if sys.stdin.isatty() and not is_confirmed and not options.get("dry_run"):
        plan = api_hub.squash_history(**{**options, "dry_run": True}, reporter=reporter)
        name, commits = plan["repository"], sum(row["commits"] for row in plan["branches"])
        question = (
            f"The {commits:,} commits of {name} become {len(plan['branches']):,}, and large files are deleted for good "
            f"({len(plan['deleted']):,}, {megabytes(plan['bytes'])}). Continue?"
        )
        if not reporter.confirm(question) or _typed_line("Type the name of the repository to confirm: ") != name:
            raise UsageError("Not confirmed; nothing was changed.")
        options |= {"yes": True, "confirm": name}
    return api_hub.squash_history(**options, reporter=reporter)


def train_after_question(*, reporter: Reporter, **options: Any) -> Any:
    """Call `api.train`. On a terminal, first ask if it downloads a data set.

    Raises:
        UsageError: The answer is no.
    """
    if options.get("download") and sys.stdin.isatty():
        question = download_question(read_options(TrainOptions, options, "train"))
        if question and not reporter.confirm(question):
            raise UsageError("Not confirmed; nothing was downloaded. Name a folder with --data-dir, or another --dataset.")
    return api.train(**options, reporter=reporter)


def _typed_line(prompt: str) -> str:
    """Return a line from the terminal. The prompt is printed on stderr, so that stdout has the result alone."""
    print(prompt, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()

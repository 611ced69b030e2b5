"""Every command of the command line, with values for what it requires."""

from __future__ import annotations

import functools
import typing
from collections.abc import Iterator
from typing import Any

import typer

from oneshui_hf.cli.app import app
from oneshui_hf.cli.commands import Command
from oneshui_hf.options import types_of

PLACEHOLDERS = {
    **{"dataset": "synthetic", "repo_id": "user/name", "grid": "demo", "source": "run", "images": "a.jpg", "run": "run"},
    **{
        "image": "a.jpg",
        "request": "R-000001",
        "requests": "R-000001",
        "reason": "none",
        "identity": "4711",
        "file": "requests/ledger.jsonl",
    },
}
PLACEHOLDERS |= {"unlearned": "a/b", "original": "a/c", "candidates": "."}


def all_commands(group: typer.Typer = app) -> Iterator[Command]:
    for found in group.registered_commands:
        if isinstance(found.cls, functools.partial):
            yield found.cls.args[0]
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from all_commands(inner.typer_instance)


COMMANDS = list(all_commands())


def kind_of(options: type[Any], name: str) -> Any:
    """Return the type of one value of an option: bool, int, float or str; tuple for a list."""
    wanted = types_of(options)[name]
    if wanted == tuple[str, ...]:
        return tuple
    return next(iter([kind for kind in typing.get_args(wanted) if kind is not type(None)] or [wanted]))

"""The signatures of the Python functions, made from the options dataclasses, and how their arguments are read."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from . import runs
from .errors import UsageError
from .options import convert, field_name, fields, names, resolve, types_of
from .stages.command_options import ShowOptions

AnyRun = runs.Run | str | Path | None

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
OptionsT = TypeVar("OptionsT")


def with_options(options: type[Any], *, method: bool = False) -> Callable[[FunctionT], FunctionT]:
    """Give a function the signature and the list of options of a dataclass, for `help()` and a notebook's completion.

    Args:
        options: The dataclass. Fields that the function itself names stay as they are.
        method: Whether the options of a method may be added.
    """

    def decorate(function: FunctionT) -> FunctionT:
        own = inspect.signature(function)
        parameters = [parameter for parameter in own.parameters.values() if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
        named = {parameter.name for parameter in parameters}
        types, known = types_of(options), {name: field for name, field in fields(options).items() if name not in named}
        keywords = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=types[name],
                default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            )
            for name, field in known.items()
        ]
        reporter = [parameter for parameter in parameters if parameter.name == "reporter"]
        leading = [parameter for parameter in parameters if parameter.name != "reporter"]
        rest = [inspect.Parameter("method_options", inspect.Parameter.VAR_KEYWORD, annotation=Any)] if method else []
        function.__signature__ = own.replace(parameters=[*leading, *keywords, *reporter, *rest])  # type: ignore[attr-defined]
        lines = [f"    {name}: {_sentence(field.metadata)}" for name, field in known.items()]
        lines += ["    reporter: Receives progress; automatic by default."] if reporter else []
        lines += ["    **method_options: Options of the method; `oneshui methods show NAME` lists them."] if method else []
        function.__doc__ = "\n".join([inspect.getdoc(function) or "", "", "Options:", *lines])
        return function

    return decorate


def _sentence(metadata: Mapping[str, Any]) -> str:
    choices = metadata["choices"]
    return metadata["help"] + (f" One of {', '.join(map(repr, choices))}." if choices else "")


def split_options(stage: type[Any], values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide options into those of a command and all others, which are the method's."""
    known = names(stage)
    own = {key: value for key, value in values.items() if field_name(key) in known}
    return own, {key: value for key, value in values.items() if key not in own}


def read_options(options: type[OptionsT], values: Mapping[str, Any], where: str) -> OptionsT:
    """Return an instance of an options class from keyword arguments; see `options.resolve`.

    Raises:
        UsageError: A name is unknown or given in two spellings, or a value is wrong.
    """
    known, seen = names(options), dict[str, str]()
    for key in values:
        name = known.get(field_name(key), key)
        if name in seen:
            raise UsageError(f"{where} was given '{seen[name]}' and '{key}', which are the same option; give one of them.")
        seen[name] = key
    return resolve(options, values, where)


def run_path(run: AnyRun, where: str) -> str | None:
    """Return the path of a run that a command names; None if it names none.

    Raises:
        UsageError: It is no path.
    """
    found: str | None = convert(run, str | None, fields(ShowOptions)["run"], where)
    return found

"""Turning an options dataclass and a function of `api` into a Typer command.

The dataclass is the one definition of a command's options: their types, defaults, help and flags become the signature that Typer reads.
Only values that were really given, on the command line or in `--config`, are passed on.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any

import typer

from ..errors import OneshuiError, UsageError, did_you_mean
from ..options import fields, flag, names, parse_words, types_of
from .console import ConsoleReporter, is_main_process
from .errors import StoppedError

Show = Callable[[Any], None]
NOTHING = "nothing was written"


def command(
    app: typer.Typer,
    name: str,
    options: type[Any],
    call: Callable[..., Any],
    show: Show,
    *,
    as_json: Callable[[Any], Any] = lambda result: result,
    positional: tuple[str, ...] = (),
    with_method: bool = False,
    fails: Callable[[Any], str | None] = lambda result: None,
    stopped: str | None = None,
    help: str,
    epilog: str = "",
) -> None:
    """Register a command.

    Args:
        app: Where.
        name: The command's name.
        options: The dataclass of its options.
        call: The function of `api` that it calls, with `reporter` and the given options.
        show: Prints the result for people.
        as_json: Turns the result into what `--json` prints.
        positional: Fields given as arguments rather than options.
        with_method: Whether a method's own options may follow.
        fails: Says why a result, shown nevertheless, counts as a failure.
        stopped: What is left by Ctrl-C, where it is not told by whether there is a `resume`.
        help: The help text.
        epilog: Examples.
    """

    def callback(ctx: typer.Context, **values: Any) -> None:
        given = {key: value for key, value in values.items() if _was_given(ctx, key)}
        want_json, config = bool(given.pop("json_", False)), given.pop("config", None)
        stored = read_config(Path(config)) if config else {}
        if ctx.args or with_method:
            method = given.get("method") or stored.get("method") or fields(options)["method"].default
            given |= _method_words(ctx.args, str(method), name)
        given = _merge(options, stored, given, with_method, name)
        try:
            result = call(reporter=ConsoleReporter(), **given)
        except KeyboardInterrupt:
            kept = stopped or ("what was finished is kept, and --resume goes on from there" if "resume" in fields(options) else NOTHING)
            raise StoppedError(f"Stopped; {kept}.") from None
        if not is_main_process():
            return
        if want_json:
            print(json.dumps(as_json(result), indent=2, sort_keys=True, ensure_ascii=False))
        else:
            show(result)
        if reason := fails(result):
            raise OneshuiError(reason)

    callback.__signature__ = _signature(options, positional)  # type: ignore[attr-defined]
    callback.__annotations__ = {p.name: p.annotation for p in callback.__signature__.parameters.values()}  # type: ignore[attr-defined]
    settings = {"allow_extra_args": True, "ignore_unknown_options": True} if with_method else {}
    app.command(name, help=help, epilog=epilog, context_settings=settings)(callback)


def _was_given(ctx: typer.Context, key: str) -> bool:
    source = ctx.get_parameter_source(key)
    return source is not None and source.name == "COMMANDLINE"


def _method_words(words: list[str], method: str, command: str) -> dict[str, Any]:
    """Read the words that the command did not know as options of the method."""
    if not words:
        return {}
    from ..plugins import METHODS, Plugins

    return parse_words(words, Plugins(METHODS).load(method).options, f"'{command}' with method '{method}'")


def _merge(options: type[Any], stored: Mapping[str, Any], given: Mapping[str, Any], with_method: bool, command: str) -> dict[str, Any]:
    """Return the options of the configuration file under those of the command line."""
    spellings = names(options)
    merged: dict[str, Any] = {}
    for key, value in stored.items():
        name = key.replace("-", "_")
        if name not in spellings and not with_method:
            raise UsageError(f"The configuration's '{key}' is no option of '{command}'.{did_you_mean(key, spellings)}")
        merged[spellings.get(name, name)] = value
    return merged | dict(given)


def read_config(file: Path) -> dict[str, Any]:
    """Read a YAML file of options.

    Raises:
        UsageError: It is missing, not YAML, or no mapping.
    """
    import yaml

    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError:
        raise UsageError(f"There is no configuration file {file}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise UsageError(f"{file} must hold 'option: value' lines.")
    return {str(key): value for key, value in values.items()}


def _signature(options: type[Any], positional: tuple[str, ...]) -> inspect.Signature:
    parameters = [inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
    known, types = fields(options), types_of(options)
    for name in [*positional, *(name for name in known if name not in positional)]:
        field = known[name]
        kind, default = _cli_type(types[name]), field.default
        text = _help(field)
        if name in positional:
            about: Any = typer.Argument(help=text, show_default=False)
        else:
            flags = field.metadata["flags"] or (flag(name),)
            missing = default in (None, (), dataclasses.MISSING)
            about = typer.Option(*flags, help=text, show_default=not missing)
        if name in positional:
            default = inspect.Parameter.empty
        elif default is dataclasses.MISSING:  # a configuration file may name it, so Typer must not insist
            default = None
        default = list(default) if isinstance(default, tuple) else default
        annotation: Any = Annotated[kind, about] if default is not None else Annotated[kind | None, about]  # type: ignore[valid-type]
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default))
    extra = {
        "config": (
            Path | None,
            None,
            typer.Option("--config", help="A YAML file of the same options; the command line wins."),
        ),
        "json_": (bool, False, typer.Option("--json", help="Print the result as JSON, and nothing else, on stdout.")),
    }
    for name, (kind, default, about) in extra.items():
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, about], default=default))
    return inspect.Signature(parameters)


def _cli_type(wanted: Any) -> Any:
    """Return the type that Typer reads: X for X | None, a list for a tuple."""
    if typing.get_origin(wanted) in (typing.Union, UnionType):
        wanted = next(t for t in typing.get_args(wanted) if t is not type(None))
    return list[str] if typing.get_origin(wanted) is tuple else wanted


def _help(field: dataclasses.Field[Any]) -> str:
    choices = field.metadata["choices"]
    return field.metadata["help"] + (f" One of {', '.join(map(str, choices))}." if choices else "")

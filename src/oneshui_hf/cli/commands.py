"""From an options dataclass and a function of `api` to a Typer command.

The dataclass is the one definition of a command's options: their types, defaults, help, ranges and panels become the signature that Typer
reads. Only values that were given, on the command line or in `--config`, are passed on.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import itertools
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..errors import OneshuiError, UsageError, describe_os_error, find_os_error
from ..options import convert, field_name, fields, flag, names, types_of
from ..plugins import DATASETS, METHODS, Plugins
from ..printable import printable
from ..reporting import ConsoleReporter, is_main_process
from ..runs import RECORD, RUNS
from ..stages.method_choice import refuse_method_options
from .config import merge_config, read_config
from .errors import StoppedError, exit_code
from .printing import print_json, print_traceback

NOTHING_WRITTEN = "nothing was written"
RESUMABLE = "what was finished is kept, and --resume continues from there"
REPEAT = "run the same command again"
RESUME = "continue with --resume, or run the same command again if there is nothing to resume"
NEGATED = "not__"  # prefix of the parameter that turns a boolean option off
OUTPUT = "Output"  # the panel of options that every command has
MAX_SHOWN = 2**31  # a larger bound, as of a seed, is checked and not listed


@dataclasses.dataclass(frozen=True)
class Command:
    """A command: its options, the function that it calls, and how the result is printed.

    Attributes:
        name: The command's name.
        options: The dataclass of its options.
        call: The function of `api`, called with `reporter` and the given options.
        show: Prints the result for people.
        summary: One line of help.
        details: Further help.
        examples: Command lines.
        as_json: Converts the result to what `--json` prints.
        positional: Fields that are arguments rather than options.
        method_step: "prepare", "apply" or "tune" if the options of a method are added: those that this step reads are listed.
        failure: Returns why a result, printed nevertheless, counts as a failure.
        stopped: What Ctrl-C leaves. Derived from whether there is `--resume` by default.
        panel: The panel of `oneshui --help` that lists the command.
        group: The group of commands that it belongs to.
    """

    name: str
    options: type[Any]
    call: Callable[..., Any]
    show: Callable[[Any], None]
    summary: str
    details: str = ""
    examples: tuple[str, ...] = ()
    as_json: Callable[[Any], Any] = lambda result: result
    positional: tuple[str, ...] = ()
    method_step: str | None = None
    failure: Callable[[Any], str | None] = lambda result: None
    stopped: str | None = None
    panel: str | None = None
    group: str = ""

    @property
    def path(self) -> str:
        """The words that call the command, after `oneshui`."""
        return f"{self.group} {self.name}".strip()

    def current_words(self, args: Sequence[str]) -> list[str]:
        """Return the words of a command line without aliases and earlier spellings; `--run RUN` is the first argument.

        Raises:
            UsageError: `--run` has no value, or a boolean option is given in both spellings.
        """
        words = without_aliases(args, self.options)
        return _run_first(words) if "run" in self.positional else words

    def add_to(self, app: typer.Typer, *, hidden: bool = False) -> None:
        """Register the command."""
        cls = functools.partial(MethodCommand if self.method_step else AliasCommand, self)
        self._register(app, cls, self._signature({}), hidden)

    def with_options_of(self, method: str) -> TyperCommand:
        """Return the command with the options of one method.

        Raises:
            UsageError: There is no such method.
            OneshuiError: The method cannot be loaded.
        """
        method_class = Plugins(METHODS).load(method)
        app = typer.Typer(add_completion=False, rich_markup_mode="rich")
        self._register(app, None, self._signature({method: method_class}), hidden=False)
        command = typer.main.get_command(app)
        assert isinstance(command, TyperCommand)
        return command

    def _register(self, app: typer.Typer, cls: Any, signature: inspect.Signature, hidden: bool) -> None:
        def callback(ctx: typer.Context, **values: Any) -> None:
            self._run(ctx, values)

        callback.__signature__ = signature  # type: ignore[attr-defined]
        callback.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
        examples = "\n".join(f"$ {example}" for example in self.examples)
        app.command(
            self.name,
            cls=cls,
            help=_escape("\n\n".join(filter(None, (self.summary, self.details)))),
            epilog=_escape(f"Example{'s' if len(self.examples) > 1 else ''}:\n{examples}") if examples else None,
            rich_help_panel=self.panel,
            hidden=hidden,
            context_settings={"help_option_names": ["-h", "--help"]},
        )(callback)

    def _run(self, ctx: typer.Context, values: dict[str, Any]) -> None:
        given = {key: value for key, value in values.items() if _was_given(ctx, key)}
        as_json, quiet, debug = (bool(given.pop(name, False)) for name in ("json_", "quiet", "debug"))
        stored = read_config(config) if (config := given.pop("config", None)) else None
        for name in [name for name in given if name.startswith(NEGATED)]:
            given[name.removeprefix(NEGATED)] = not given.pop(name)
        if stored is not None:
            method = self._method_class(given.get("method") or stored.get("method")) if self.method_step else None
            if self.method_step and method is None:
                refuse_method_options(name for name in stored if field_name(name) not in names(self.options))
            given = merge_config(stored, given, self.options, self.path, method)
        resumes = "resume" in fields(self.options)
        try:
            result = self.call(reporter=ConsoleReporter(quiet=quiet), **given)
        except KeyboardInterrupt as interrupt:
            kept = self.stopped or (RESUMABLE if resumes else NOTHING_WRITTEN)
            raise StoppedError(kept, exit_code(interrupt)) from None
        except Exception as error:
            if debug:
                print_traceback(type(error), error, error.__traceback__)
            if isinstance(error, OneshuiError) or (found := find_os_error(error)) is None:
                raise
            raise OneshuiError(describe_os_error(found, RESUME if resumes else REPEAT)) from error
        if not is_main_process():
            return
        if as_json:
            print_json(self.as_json(result))
        else:
            self.show(result)
        if reason := self.failure(result):
            raise OneshuiError(reason)

    def _method_class(self, name: Any) -> Any:
        """Return the class of the method that is named, or of the default one; None if there is no default."""
        field = fields(self.options)["method"]
        found = field.default if name is None else convert(name, str, field, self.path)
        return None if found is None else Plugins(METHODS).load(str(found))

    def _signature(self, methods: Mapping[str, type[Any]]) -> inspect.Signature:
        """Return the signature that Typer reads: positional fields, options, those of the method, and the common ones."""
        context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        types, known = types_of(self.options), fields(self.options)
        parameters = [context, *(self._argument(known[name], types[name]) for name in self.positional)]
        for name in known:
            if name not in self.positional:
                parameters += _option(known[name], types[name], self.path)
        for method, method_class in methods.items():
            parameters += self._method_options(method, method_class)
        config = typer.Option("--config", help="YAML file with options. The command line takes precedence.", rich_help_panel=OUTPUT)
        json = typer.Option("--json", help="Print the result as JSON on stdout.", rich_help_panel=OUTPUT)
        quiet = typer.Option("--quiet", "-q", help="Print no progress and no notes.", rich_help_panel=OUTPUT)
        debug = typer.Option("--debug", help="Print the traceback of an error.", rich_help_panel=OUTPUT)
        parameters.append(_parameter("config", str | None, None, config))
        parameters += [_parameter(name, bool, False, about) for name, about in (("json_", json), ("quiet", quiet), ("debug", debug))]
        return inspect.Signature(parameters)

    def _argument(self, field: dataclasses.Field[Any], wanted: Any) -> inspect.Parameter:
        kind = _cli_type(wanted)
        optional = len(self.positional) == 1 and field.default is not dataclasses.MISSING
        text = _escape(field.metadata["help"])
        about = typer.Argument(help=text, show_default=False, autocompletion=run_names if field.name == "run" else None)
        about.metavar = {"images": "IMAGE"}.get(field.name, field.name.upper())
        return _parameter(field.name, kind | None if optional else kind, None if optional else inspect.Parameter.empty, about)

    def _method_options(self, method: str, method_class: type[Any]) -> list[inspect.Parameter]:
        """Return the options of a method. Those that another step reads are accepted but not listed; the step explains the error."""
        types, own = types_of(method_class.options), names(self.options)
        where, panel = f"'{self.path}' with method '{method}'", f"Options of {method}"
        listed = {name for name, field in fields(method_class.options).items() if self._reads(field, method_class)}
        parameters = []
        for name, field in fields(method_class.options).items():
            if name not in own:
                parameters += _option(field, types[name], where, panel=panel, hidden=name not in listed)
        return parameters

    def _reads(self, field: dataclasses.Field[Any], method_class: type[Any]) -> bool:
        return self.method_step in ("tune", field.metadata["at"]) or method_class.prepares == "never"


class AliasCommand(TyperCommand):
    """A command that accepts aliases and earlier names of its options."""

    def __init__(self, command: Command, **settings: Any) -> None:
        super().__init__(**settings)
        self._command = command

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Return the context of the command, with each alias replaced."""
        return super().make_context(info_name, self._command.current_words(args), parent=parent, **extra)


class MethodCommand(AliasCommand):
    """A command that has the options of the method that its words name, so that `--help` lists and the shell completes them."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Return the context of the same command with the options of the method.

        Raises:
            UsageError: The words contain an option of a method, and name no method where none is the default.
        """
        method = named_method(args, self._command)
        if method is None:
            try:
                return super().make_context(info_name, args, parent=parent, **extra)
            except typer.TyperException as error:
                if option := getattr(error, "option_name", None):
                    refuse_method_options([option.removeprefix("--").removeprefix("no-"), option])
                raise
        command = self._command.with_options_of(method)
        words = without_aliases(self._command.current_words(args), Plugins(METHODS).load(method).options)
        return command.make_context(info_name, words, parent=parent, **extra)


def _run_first(words: list[str]) -> list[str]:
    """Return the words with `--run RUN`, the spelling of earlier versions, as the first argument."""
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name != "--run":
            continue
        if equals:
            return [value, *words[:place], *words[place + 1 :]]
        if place + 1 == len(words):
            raise UsageError("--run needs a value.")
        return [words[place + 1], *words[:place], *words[place + 2 :]]
    return words


def named_method(args: Sequence[str], command: Command) -> str | None:
    """Return the method that the words of a command line name, in `--method`, in the file of `--config`, or by default.

    Returns None if they name none and there is no default.
    """
    values: dict[str, str | None] = {"--method": None, "--config": None}
    for word, following in itertools.zip_longest(args, args[1:]):
        name, equals, value = word.partition("=")
        if name in values:
            values[name] = value if equals else following
    if values["--method"]:
        return str(values["--method"])
    field = fields(command.options)["method"]
    stored = read_config(values["--config"]) if values["--config"] else {}
    found: Any = convert(stored["method"], str, field, command.path) if "method" in stored else field.default
    return None if found is None else str(found)


def without_aliases(args: Iterable[str], options: type[Any]) -> list[str]:
    """Return the words of a command line with aliases and earlier names of options replaced by the names that `--help` lists.

    Raises:
        UsageError: A boolean option is given in both spellings.
    """
    listed = {alias: shown_flags(field)[0] for field in fields(options).values() for alias in aliases(field)}
    words = []
    for word in args:
        name, equals, value = word.partition("=")
        words.append(listed.get(name, name) + equals + value)
    for field in fields(options).values():
        on, off = boolean_flags(field)
        if {on, off} <= set(words):
            raise UsageError(f"{on} and {off} exclude each other; give one of them.")
    return words


def shown_flags(field: dataclasses.Field[Any]) -> tuple[str, ...]:
    """Return the spellings of an option that `--help` lists: the first one, with its negation for booleans that have one."""
    return tuple(field.metadata["flags"][:1]) or (flag(field.name),)


def boolean_flags(field: dataclasses.Field[Any]) -> tuple[str, str]:
    """Return the spellings that turn a boolean option on and off."""
    on, _, off = shown_flags(field)[0].partition("/")
    return on, off or f"--no-{on[2:]}"


def aliases(field: dataclasses.Field[Any]) -> list[str]:
    """Return the further spellings of an option: those of other libraries, and earlier names."""
    return [*field.metadata["flags"][1:], *map(flag, field.metadata["formerly"])]


def run_names(incomplete: str) -> list[str]:
    """Return the runs whose path starts with the given text, for the shell's completion."""
    names = [str(file.parent) for file in sorted(RUNS.glob(f"*/{RECORD}"))]
    return [name for name in names if name.startswith(incomplete) and name == printable(name)]


def plugin_names(group: str, incomplete: str) -> list[str]:
    """Return the installed plugins whose name starts with the given text, for the shell's completion."""
    return [name for name in Plugins(group).names if name.startswith(incomplete)]


def method_names(incomplete: str) -> list[str]:
    """Complete the name of a method."""
    return plugin_names(METHODS, incomplete)


def dataset_names(incomplete: str) -> list[str]:
    """Complete the name of a data set."""
    return plugin_names(DATASETS, incomplete)


COMPLETIONS = {"method": method_names, "dataset": dataset_names}


def _was_given(ctx: typer.Context, key: str) -> bool:
    source = ctx.get_parameter_source(key)
    return source is not None and source.name == "COMMANDLINE"


def _parameter(name: str, kind: Any, default: Any, about: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, about], default=default)


def _option(
    field: dataclasses.Field[Any], wanted: Any, where: str, *, panel: str | None = None, hidden: bool = False
) -> list[inspect.Parameter]:
    """Return an option as Typer reads it: one parameter, or two for a boolean that has a default."""
    metadata, default = field.metadata, field.default
    required = default is dataclasses.MISSING
    text = _escape(metadata["help"])
    settings: dict[str, Any] = {"help": text, "rich_help_panel": panel or metadata["panel"], "hidden": hidden}
    kind: Any = list[str] if metadata["joined"] else _cli_type(wanted)
    if kind is bool and default is not None:
        return _boolean(field, settings)
    settings |= {"show_default": default not in (None, ()) and not required, "autocompletion": COMPLETIONS.get(field.name)}
    if kind == list[str]:
        default = []
    elif kind is not bool:
        # Typer lists and completes the values; `convert` checks them, in the words of every other way to give them.
        settings["parser"] = functools.partial(convert, wanted=wanted, field=field, where=where)
        if kind in (int, float):
            limit = metadata["max"]
            settings |= {"min": metadata["min"], "max": limit if limit is None or limit < MAX_SHOWN else None}
        if metadata["choices"]:
            kind = _choices(metadata["choices"])
    if required:  # a configuration file may give it, so Typer must not insist
        default, settings["help"] = None, f"{text} [dim red]\\[required][/]"
    about = typer.Option(*shown_flags(field), **settings)
    return [_parameter(field.name, kind if default is not None else kind | None, default, about)]


def _boolean(field: dataclasses.Field[Any], settings: dict[str, Any]) -> list[inspect.Parameter]:
    """Return the two parameters of a boolean option. `--help` lists the spelling that changes the default."""
    on, off = boolean_flags(field)
    text = settings["help"]
    listed = settings | ({"help": f"Turn off: {text[0].lower()}{text[1:]}"} if field.default else {})
    unlisted = settings | {"hidden": True}
    return [
        _parameter(field.name, bool, False, typer.Option(on, **(unlisted if field.default else listed))),
        _parameter(NEGATED + field.name, bool, False, typer.Option(off, **(listed if field.default else unlisted))),
    ]


def _choices(values: Sequence[str | int]) -> Any:
    """Return an Enum, whose members Typer lists and completes."""
    members = [(str(value), value) for value in values]
    return enum.Enum("Choice", members)


def _cli_type(wanted: Any) -> Any:
    """Return the type that Typer reads: X for X | None, a list for a tuple."""
    if typing.get_origin(wanted) in (typing.Union, UnionType):
        wanted = next(t for t in typing.get_args(wanted) if t is not type(None))
    return list[str] if typing.get_origin(wanted) is tuple else wanted


def _escape(text: str) -> str:
    """Return text in which brackets are not markup."""
    return text.replace("[", "\\[")

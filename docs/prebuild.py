"""Write the source of the documentation site: the pages of this folder, and the reference, which is generated from the code.

    python docs/prebuild.py build/docs

Commands and their options come from the command line's own definitions, methods and their options from the plugins, functions and classes
from signatures and docstrings, and the contents of `metrics.json` from its schema. `nox -s docs` then builds the site.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
import shutil
import sys
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import typer

import oneshui_hf
import oneshui_hf.methods as public
from oneshui_hf.metrics.schema import StoredMetrics
from oneshui_hf.options import fields, flag, types_of
from oneshui_hf.plugins import METHODS, Plugins

DOCS = Path(__file__).parent
OWN = ("*.py", "__pycache__", "tables.md")  # scripts, and tables that a page repeats
SECTIONS = ("Args", "Attributes", "Options", "Raises", "Returns", "Yields")
WORDS = {"dict": "by name", "list": "list", "tuple": "list", "bool": "on or off", "int": "whole number", "float": "number"}
NOTE = "This page is generated from the code."


def main(target: Path) -> None:
    """Write all pages into a folder, replacing what is there."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(DOCS, target, ignore=shutil.ignore_patterns(*OWN))
    reference = target / "reference"
    reference.mkdir()
    for name, text in pages().items():
        (reference / f"{name}.md").write_text(text.rstrip() + "\n", encoding="utf-8")
    for file in sorted((DOCS / "tutorials").glob("*.ipynb")):
        write_notebook(file, target / "tutorials")
    for place in (target / "index.md", target / "tutorial.md"):
        place.write_text(to_pages(place.read_text(encoding="utf-8")), encoding="utf-8")


def write_notebook(file: Path, folder: Path) -> None:
    """Write a notebook as a page: its text, code and outputs; figures become SVG files next to it."""
    parts, figures = [], 0
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(to_pages(source) if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/svg+xml" in data:
                figures += 1
                (folder / f"{file.stem}-{figures}.svg").write_text("".join(data["image/svg+xml"]), encoding="utf-8")
                parts.append(f"![Figure {figures}]({file.stem}-{figures}.svg)")
            else:
                parts.append(f"```text\n{''.join(data['text/plain']).rstrip()}\n```")
    parts.append(f"[Download this notebook]({file.name})")
    (folder / f"{file.stem}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def to_pages(text: str) -> str:
    """Return a text whose links to notebooks lead to their pages."""
    return re.sub(r"\]\(([\w/-]+)\.ipynb\)", r"](\1.md)", text)


def pages() -> dict[str, str]:
    """Return the generated pages by name."""
    return {
        "commands": commands_page(),
        "methods": methods_page(),
        "python": python_page(),
        "plugin-api": plugin_page(),
        "metrics-file": metrics_page(),
    }


def page(title: str, summary: str, *parts: str) -> str:
    """Return a page: its title, a summary, and the parts."""
    return "\n\n".join((f"# {title}", f"{summary}\n{NOTE}", *parts))


def table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a Markdown table; bars in cells are escaped."""
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in line)} |" for line in lines)


def code(value: Any) -> str:
    """Return a default as inline code; nothing for an empty one."""
    return "" if value in (None, "", ()) else {"True": "on", "False": "off"}.get(str(value), f"`{value}`")


def plain(text: str | None) -> str:
    """Return a help text or docstring as Markdown: what is not code is escaped."""
    parts = re.split(r"(`+[^`]*`+)", text or "")
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;").replace("*", "\\*") for part in parts)


# --- commands and methods ---------------------------------------------------------------------------------------------------------------


def listed(group: typer.Typer, words: tuple[str, ...] = ()) -> Iterator[tuple[str, str, Any]]:
    """Yield the words of each command that `--help` lists, its help, and its definition (None where it has no options)."""
    for found in group.registered_commands:
        command = found.cls.args[0] if isinstance(found.cls, functools.partial) else None
        name = command.name if command else found.name or found.callback.__name__
        texts = (command.summary, command.details) if command else (inspect.getdoc(found.callback),)
        if not found.hidden:
            yield " ".join((*words, name)), "\n\n".join(filter(None, texts)), command
    for inner in group.registered_groups:
        assert inner.typer_instance is not None and isinstance(inner.name, str)
        yield from listed(inner.typer_instance, (*words, inner.name))


def commands_page() -> str:
    """Return the reference of the command line."""
    from oneshui_hf.cli.app import app

    commands = list(listed(app))
    overview = ((f"[`oneshui {path}`](#oneshui-{path.replace(' ', '-')})", plain(help.partition("\n")[0])) for path, help, _ in commands)
    common = (
        ("`--config`", "a YAML file with options; the command line takes precedence"),
        ("`--json`", "print the result as JSON on stdout"),
        ("`--quiet`, `-q`", "print no progress and no notes"),
        ("`--debug`", "print the traceback of an error"),
        ("`--help`, `-h`", "print the help; with `--method NAME` also the options of the method"),
    )
    return page(
        "Commands",
        "Every command of `oneshui`, with its arguments, options and defaults.\n"
        "A YAML file (`--config`) and the Python functions take the same names.",
        table(("command", "what it does"), overview),
        "## Options of every command",
        table(("option", "meaning"), common),
        *(command_part(*one) for one in commands),
    )


def command_part(path: str, help: str, command: Any) -> str:
    """Return the part of the reference on one command."""
    if command is None:
        return f"## oneshui {path}\n\n{plain(help)}"
    known = fields(command.options)
    arguments = [known[name] for name in command.positional]
    usage = " ".join(("oneshui", path, *(field.name.upper() for field in arguments), "[OPTIONS]"))
    parts = [f"## oneshui {path}", plain(help), f"```text\n{usage}\n```"]
    if arguments:
        parts.append(table(("argument", "meaning"), ((f"`{field.name.upper()}`", plain(field.metadata["help"])) for field in arguments)))
    if rows := [option_row(field, command.options) for name, field in known.items() if name not in command.positional]:
        parts.append(table(("option", "values", "default", "meaning"), rows))
    if command.method_step:
        parts.append("The options of the method are added: see [methods](methods.md).")
    if command.examples:
        parts.append("```console\n" + "\n".join(f"$ {example}" for example in command.examples) + "\n```")
    return "\n\n".join(parts)


def option_row(field: Any, options: Any) -> tuple[str, str, str, str]:
    """Return the spelling, the values, the default and the meaning of an option."""
    about, kind = field.metadata, types_of(options)[field.name]
    spelling = (about["flags"] or (flag(field.name),))[0]
    if about["choices"]:
        values = ", ".join(f"`{one}`" for one in about["choices"])
    else:
        low, high = about["min"], about["max"]
        bounds = (f" from {low:g}" if low is not None else "") + (f" to {high:g}" if high is not None and high < 2**31 else "")
        values = in_words(kind) + bounds
    required = " **Required.**" if field.default is dataclasses.MISSING else ""
    return f"`{spelling}`", values, "" if required else code(field.default), plain(about["help"]) + required


def in_words(kind: Any) -> str:
    """Return a type in words: the outermost one."""
    return next((word for name, word in WORDS.items() if re.search(rf"\b{name}\b", str(kind))), "text")


def methods_page() -> str:
    """Return the reference of the methods."""
    methods = Plugins(METHODS).loadable()
    return page(
        "Methods",
        "Every built-in method: what it does, its paper, what it reads at each step, and its options.\n"
        "To decide between them read [which method?](../methods/choosing.md).",
        table(("method", "what it does"), ((f"[`{name}`](#{name})", method.summary) for name, method in methods.items())),
        *(method_part(name, method) for name, method in methods.items()),
    )


def method_part(name: str, method: Any) -> str:
    """Return the part of the reference on one method."""
    facts = (
        ("paper", method.paper),
        ("reads when preparing", ", ".join(sorted(method.needs.prepare)) or "-"),
        ("reads at the request", ", ".join(sorted(method.needs.apply)) or "-"),
        ("preparation", method.prepares),
        ("presets", ", ".join(f"`{one}`" for one in method.all_presets()) or "-"),
    )
    steps = {"prepare": "`prepare`", "apply": "`unlearn`"}
    parts = [f"## {name}", f"{method.summary[0].upper()}{method.summary[1:]}.", table(("", ""), facts)]
    rows = []
    for field in fields(method.options).values():
        spelling, *others = option_row(field, method.options)
        rows.append((spelling, steps[field.metadata["at"]], *others))
    if rows:
        parts.append(table(("option", "read by", "values", "default", "meaning"), rows))
    return "\n\n".join(parts)


# --- Python ---------------------------------------------------------------------------------------------------------------------------


def python_page() -> str:
    """Return the reference of the Python functions."""
    functions = [name for name in oneshui_hf.__all__ if name != "Run"]
    return page(
        "Python",
        "The commands as functions of `oneshui_hf`, and `Run`, which they return.\n"
        "Options have the names of the command line, with underscores.",
        overview(oneshui_hf, ["Run", *functions]),
        *class_part("Run", oneshui_hf.Run),
        *(member_part(name, getattr(oneshui_hf, name)) for name in functions),
    )


def plugin_page() -> str:
    """Return the reference of what a method may import."""
    names = [name for name in public.__all__ if str(getattr(getattr(public, name), "__module__", "")).startswith("oneshui")]
    functions = [name for name in names if name != "Method"]
    return page(
        "Interface of a method",
        "Everything that a method may import, from `oneshui_hf.methods`.\n"
        "[Write a method](../plugins.md) explains how the parts work together.",
        overview(public, ["Method", *functions]),
        *class_part("Method", public.Method),
        *(member_part(name, getattr(public, name)) for name in functions),
    )


def overview(module: Any, names: Iterable[str]) -> str:
    """Return the table of the names of a module, with links."""
    return table(("name", "what it does"), ((f"[`{name}`](#{name.lower()})", first_line(getattr(module, name))) for name in names))


def class_part(name: str, value: Any) -> Iterator[str]:
    """Yield the parts of the reference on a class: its docstring, and each of its public members."""
    yield f"## {name}"
    yield docstring(value)
    for member, found in vars(value).items():
        if not member.startswith("_") and isinstance(found, FunctionType | classmethod | property) and inspect.getdoc(found):
            yield member_part(f"{name}.{member}", found, level=3)


def first_line(value: Any) -> str:
    """Return the first line of a docstring."""
    return plain((inspect.getdoc(value) or "").partition("\n")[0])


def member_part(name: str, value: Any, level: int = 2) -> str:
    """Return the part of the reference on one function, class or property."""
    value = getattr(value, "__func__", value)
    parts = [f"{'#' * level} {name}"]
    if not isinstance(value, property):
        parts.append(f"```python\n{signature(name, value)}\n```")
    return "\n\n".join((*parts, docstring(value)))


class Raw(str):
    """Text that `inspect` prints without quotes."""

    __repr__ = str.__str__


def signature(name: str, value: Any) -> str:
    """Return a call with its parameters, one a line where they do not fit into one line."""
    found = inspect.signature(value)
    parameters = [shown(one) for one in found.parameters.values() if one.name not in ("self", "cls")]
    back = found.return_annotation
    found = found.replace(parameters=parameters, return_annotation=Raw(back) if isinstance(back, str) else back)
    if len(line := name + str(found)) <= 88:
        return line
    words = [str(one) for one in parameters]
    if named := [place for place, one in enumerate(parameters) if one.kind is one.KEYWORD_ONLY]:
        words.insert(named[0], "*")
    return f"{name}(\n" + "".join(f"    {word},\n" for word in words) + ")" + line.rpartition(")")[2]


def shown(parameter: inspect.Parameter) -> inspect.Parameter:
    """Return a parameter as a reader writes it: annotations without quotes, defaults without addresses."""
    kind, default = parameter.annotation, parameter.default
    return parameter.replace(
        annotation=Raw(kind) if isinstance(kind, str) else kind,
        default=Raw("...") if default is not parameter.empty and repr(default).startswith("<") else default,
    )


def docstring(value: Any) -> str:
    """Return a docstring in Google's style as Markdown: its sections become lists, indented examples become code."""
    found = re.split(rf"\n(?=(?:{'|'.join(SECTIONS)}):\n)", inspect.getdoc(value) or "")
    return "\n\n".join(filter(None, map(section, found)))


def section(text: str) -> str:
    """Return one section of a docstring as Markdown."""
    title, _, body = text.partition(":\n")
    if title not in SECTIONS:
        paragraphs = text.strip().split("\n\n")
        return "\n\n".join(f"```python\n{inspect.cleandoc(one)}\n```" if one.startswith("    ") else plain(one) for one in paragraphs)
    items = re.split(r"\n(?=\S)", inspect.cleandoc(body))
    if title in ("Returns", "Yields"):
        return f"**{title}**: {plain(' '.join(body.split()))}"
    pairs = [re.sub(r"\s+", " ", item).partition(": ") for item in items]
    return f"**{title}**\n\n" + "\n".join(f"- `{name}`: {plain(meaning)}" if meaning else f"- {plain(name)}" for name, _, meaning in pairs)


# --- metrics.json ---------------------------------------------------------------------------------------------------------------------


def metrics_page() -> str:
    """Return the reference of the fields of `metrics.json`."""
    parts, seen, waiting = [], set(), [StoredMetrics]
    while waiting:
        schema = waiting.pop(0)
        if schema not in seen:
            seen.add(schema)
            known = schema.model_fields
            waiting += [inner for field in known.values() for inner in schemas_in(field.annotation)]
            title = "metrics.json" if schema is StoredMetrics else schema.__name__
            rows = ((f"`{name}`", type_text(field.annotation)) for name, field in known.items())
            parts.append("\n\n".join((f"## {title}", plain(inspect.getdoc(schema)), table(("field", "type"), rows))))
    return page(
        "The file metrics.json",
        "The fields that `oneshui evaluate` writes, in the order of the schema that every reader checks.\n"
        "[Metrics](../metrics.md) defines the numbers; an unknown value is `null`.",
        *parts,
    )


def schemas_in(annotation: Any) -> list[Any]:
    """Return the schemas that a type contains."""
    if inspect.isclass(annotation) and hasattr(annotation, "model_fields"):
        return [annotation]
    return [found for inner in typing.get_args(annotation) for found in schemas_in(inner)]


def type_text(annotation: Any) -> str:
    """Return a type in words, with links to schemas."""
    outer = {dict: "by name: ", list: "list of "}.get(typing.get_origin(annotation), "")  # type: ignore[arg-type]
    if inner := schemas_in(annotation):
        return outer + ", ".join(f"[{one.__name__}](#{one.__name__.lower()})" for one in inner)
    return in_words(annotation)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

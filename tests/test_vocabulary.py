"""Plain technical English: words that were replaced by the field's terms do not come back."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from oneshui_hf.cli import app as cli_app
from oneshui_hf.options import fields
from oneshui_hf.plugins import DATASETS, METHODS, Plugins
from support.all_commands import COMMANDS
from support.vocabulary import INSTEAD, INSTEAD_IN_TEXT

ROOT = Path(__file__).parent.parent
CODE = [ROOT / "src", ROOT / "plugins", ROOT / "tests"]


def defined_names(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of the functions, classes, parameters, variables and attributes that a module defines."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.alias) and node.asname:
            yield node.lineno if hasattr(node, "lineno") else 0, node.asname


def parts(name: str) -> list[str]:
    """Return the words of an identifier: `said_with`, `SaidWith` and `SAID_WITH` have `said` and `with`."""
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def test_identifiers_are_split_into_words() -> None:
    assert parts("said_with") == parts("SaidWith") == parts("SAID_WITH") == ["said", "with"]
    assert parts("_toy_problem2") == ["toy", "problem"]


@pytest.mark.parametrize("folder", CODE, ids=[folder.name for folder in CODE])
def test_identifiers_use_the_terms_of_the_field(folder: Path) -> None:
    files = list(folder.rglob("*.py"))
    assert len(files) > 30
    found = [
        f"{file.relative_to(ROOT)}:{line} {name}: use '{INSTEAD[word]}' for '{word}'"
        for file in files
        for line, name in defined_names(file)
        for word in parts(name)
        if word in INSTEAD
    ]
    found += [f"{file.relative_to(ROOT)}: module" for file in files if set(parts(file.stem)) & INSTEAD.keys()]
    assert not found, "\n".join(sorted(set(found)))


def help_texts() -> Iterator[tuple[str, str]]:
    """Yield (where, text) of everything that `--help`, `methods` and `data list` print."""
    for command in COMMANDS:
        yield from ((f"oneshui {command.path}", text) for text in (command.summary, command.details))
    for kind in {command.options for command in COMMANDS}:
        yield from ((f"{kind.__name__}.{field.name}", field.metadata["help"]) for field in fields(kind).values())
    for name in Plugins(METHODS).names:
        method = Plugins(METHODS).load(name)
        yield name, method.summary
        yield from ((f"{name} --{field.name}", field.metadata["help"]) for field in fields(method.options).values())
    for name in Plugins(DATASETS).names:
        yield name, Plugins(DATASETS).load(name).summary
    for node in ast.walk(ast.parse(Path(str(cli_app.__file__)).read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield f"cli/app.py:{node.lineno}", node.value


def test_help_texts_use_the_terms_of_the_field() -> None:
    texts = list(help_texts())
    assert len(texts) > 200
    patterns = {word: re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE) for word in INSTEAD_IN_TEXT}
    found = [
        f"{where}: use '{INSTEAD_IN_TEXT[word]}' for '{word}': {text}"
        for where, text in texts
        for word, pattern in patterns.items()
        if pattern.search(text)
    ]
    assert not found, "\n".join(found)


def prose(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of the docstrings and comments of a module, or of the lines of a card."""
    text = file.read_text()
    if file.suffix != ".py":
        yield from enumerate(re.sub(r"\{[{%].*?[}%]\}", "", text).splitlines(), 1)
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (docstring := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), docstring
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def test_docstrings_comments_and_cards_use_the_terms_of_the_field() -> None:
    files = [
        file for folder in ("src", "plugins", "cards") for file in (ROOT / folder).rglob("*") if file.suffix in (".py", ".md", ".html")
    ]
    assert len(files) > 150
    patterns = {word: re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE) for word in INSTEAD_IN_TEXT}
    found = [
        f"{file.relative_to(ROOT)}:{line}: use '{INSTEAD_IN_TEXT[word]}' for '{word}'"
        for file in files
        for line, text in prose(file)
        for word, pattern in patterns.items()
        if pattern.search(text)
    ]
    assert not found, "\n".join(found)


def test_every_word_has_a_replacement() -> None:
    assert len(INSTEAD) > 30
    assert all(term and word not in term.split() for word, term in INSTEAD_IN_TEXT.items())

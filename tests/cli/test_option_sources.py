"""The same value on the command line, in --config, in a grid and in Python gives the same options, or the same kind of sentence."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oneshui_hf.api_options import split_options
from oneshui_hf.cli.commands import Command, shown_flags
from oneshui_hf.cli.config import merge_config, read_config
from oneshui_hf.errors import UsageError
from oneshui_hf.options import fields, resolve
from oneshui_hf.plugins import METHODS, Plugins
from oneshui_hf.stages.benchmarking.grid import NOT_IN_EVALUATION, NOT_IN_TRAINING, read_grid
from oneshui_hf.stages.command_options import EvaluateOptions, TrainOptions
from support.all_commands import COMMANDS, PLACEHOLDERS, kind_of
from support.commands import Oneshui, sentence

WORDS = [
    *("011", "9", "010", "0x10", "0o17", "1e3", "1_000", "1.0", "1.5", ".5", "-1", "+3", "1,5", "12:30", "99999999999999999999", "1e400"),
    *("yes", "No", "on", "off", "true", "False", "y", "null", "Null", "None", "nan", ".nan", ".inf", "2024-01-01", "=", "<<", "~", "~/x"),
    *("sgd", "all", "a,b", "(25, 32)", "a: b", "#x", "- x", "[1]", "{}", "&a", "*a", "!x", "%x", "@x", "'", '"', " x ", "日本", "😀", "é"),
]
PLAIN = re.compile(r"[\w.+~=:<-]+")  # words that YAML can hold without quotes
NO_VALUE = {"null", "Null", "~"}  # in a file, a plain word for nothing: the option is not given


load_method = functools.cache(Plugins(METHODS).load)
OPTIONS = [(command, None, name) for command in COMMANDS for name in fields(command.options)]
OPTIONS += [
    (command, method, name)
    for command in COMMANDS
    if command.method_step == "prepare"
    for method in Plugins(METHODS).names
    for name in fields(load_method(method).options)
    if name not in fields(command.options)
]
Outcome = tuple[str, Any]


def outcome(call: Any) -> Outcome:
    """Return what a call gives: the value, or the kind of the sentence, without the place and the owner of the option."""
    try:
        return "value", call()
    except UsageError as error:
        text = re.sub(r"^.*?, line \d+: ", "", str(error))
        assert "\n" not in text
        return "sentence", re.sub(r"(--[\w-]+) of .*? (takes|must|is empty|contains)", r"\1 \2", text)


def resolved(command: Command, method: str | None, name: str, values: dict[str, Any]) -> Any:
    """Return one option as the functions of `api` read it."""
    own, others = split_options(command.options, values)
    options = resolve(command.options, own, command.path)
    if not command.method_step or options.method is None:
        return getattr(options, name)
    method_class = load_method(options.method)
    return getattr(method_class.prepare_options(options.method, {}, others) if method else options, name)


def required(command: Command, name: str) -> dict[str, str]:
    return {
        key: PLACEHOLDERS[key] for key, field in fields(command.options).items() if field.default is dataclasses.MISSING and key != name
    }


def in_python(command: Command, method: str | None, name: str, value: Any) -> Outcome:
    values = {**required(command, name), **({"method": method} if method else {}), name: value}
    return outcome(lambda: resolved(command, method, name, values))


def on_command_line(command: Command, method: str | None, name: str, text: str) -> Outcome:
    found: list[Any] = []

    def call(reporter: Any, **given: Any) -> None:
        found.append(resolved(command, method, name, given))

    recorder = dataclasses.replace(command, call=call, show=lambda result: None, failure=lambda result: None)
    alone = typer.Typer(add_completion=False)
    alone.callback()(lambda: None)  # makes it a group, as `oneshui` is
    recorder.add_to(alone)
    words = [command.name, *(["--method", method] if method else [])]
    needed = required(command, name)
    arguments = [text if key == name else PLACEHOLDERS[key] for key in command.positional]
    words += [f"--{key}={value}" for key, value in needed.items() if key not in command.positional]
    if name not in command.positional:
        owner = load_method(method).options if method else command.options
        words.append(f"{shown_flags(fields(owner)[name])[0]}={text}")
    return outcome(lambda: (typer.main.get_command(alone)([*words, "--", *arguments], standalone_mode=False), found[0])[1])


def in_config(folder: Path, command: Command, method: str | None, name: str, written: str) -> Outcome:
    file = folder / "config.yaml"
    file.write_text(f"{name.replace('_', '-')}: {written}\n", encoding="utf-8")
    base = required(command, name) | ({"method": method} if method else {})
    class_ = load_method(method or "jit") if command.method_step else None
    return outcome(
        lambda: resolved(command, method, name, merge_config(read_config(str(file)), base, command.options, command.path, class_))
    )


def in_grid(folder: Path, command: Command, method: str | None, name: str, written: str) -> Outcome | None:
    """Return what a grid makes of an option; None if a grid cannot set it."""
    parts = {"dataset": "{dataset: synthetic, model: tiny}", "methods": "[jit]", "evaluate": "{references: 0}"}
    if method:
        parts["methods"] = f"[{{method: {method}, options: {{{name}: {written}}}}}]"
    elif command.options is TrainOptions and name not in (*NOT_IN_TRAINING, "dataset", "forget", "split"):
        parts["dataset"] = f"{{dataset: synthetic, {name}: {written}}}"
    elif command.options is EvaluateOptions and name not in NOT_IN_EVALUATION:
        parts["evaluate"] = f"{{{name}: {written}}}"
    else:
        return None
    file = folder / "grid.yaml"
    text = (
        f"name: g\ndatasets:\n  - {parts['dataset']}\nforget: [2]\nseeds: [0]\nmethods: {parts['methods']}\nevaluate: {parts['evaluate']}\n"
    )
    file.write_text(text, encoding="utf-8")

    def read() -> Any:
        grid = read_grid(str(file))
        if method:
            return grid.methods[0].options[name]
        return getattr(grid.cells[0].train if command.options is TrainOptions else grid.evaluate, name)

    return outcome(read)


def spellings(text: str, *, list_too: bool) -> Iterator[str]:
    """Yield the ways to write a text in YAML."""
    if PLAIN.fullmatch(text) and not text.startswith(("-", "=", "<", ":")) and not text.endswith(":") and text not in NO_VALUE:
        yield text
    yield json.dumps(text, ensure_ascii=False)
    if list_too:
        yield f"[{json.dumps(text)}]"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.path)
def test_configuration_gives_what_python_gives(command: Command, tmp_path: Path) -> None:
    for other, method, name in OPTIONS:
        if other is not command or name == "method":
            continue
        kind = kind_of(load_method(method).options if method else command.options, name)
        position = OPTIONS.index((other, method, name))
        step = 15 if method else 5
        for text in WORDS[position % step :: step]:
            expected = in_python(command, method, name, text)
            for written in spellings(text, list_too=kind is tuple):
                assert in_config(tmp_path, command, method, name, written) == expected, (name, written)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(OPTIONS), st.sampled_from(WORDS) | st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=20))
def test_every_source_gives_the_same(tmp_path: Path, option: tuple[Command, str | None, str], text: str) -> None:
    command, method, name = option
    kind = kind_of(load_method(method).options if method else command.options, name)
    expected = in_python(command, method, name, text)
    if kind is not bool:  # a flag takes no value
        assert on_command_line(command, method, name, text) == expected
    for written in spellings(text, list_too=False):
        found = in_grid(tmp_path, command, method, name, written)
        assert found in (None, expected) or (found[0], expected[0]) == ("sentence", "value")  # a grid checks that folders exist
        if name not in ("method",):
            assert in_config(tmp_path, command, method, name, written) == expected


@given(st.sampled_from(OPTIONS), st.integers(-(2**70), 2**70) | st.floats() | st.booleans() | st.none())
@settings(max_examples=200, deadline=None)
def test_numbers_of_python_are_the_numbers_of_text(option: tuple[Command, str | None, str], value: Any) -> None:
    command, method, name = option
    kind = kind_of(load_method(method).options if method else command.options, name)
    found = in_python(command, method, name, value)
    if kind in (int, float) and value is not None and not isinstance(value, bool):
        assert found == in_python(command, method, name, repr(value))
    if isinstance(value, bool) and kind is not bool:
        assert found[0] == "sentence"


@pytest.mark.parametrize("word", ["null", "Null", "~", ""])
def test_word_for_nothing_means_that_an_option_is_not_given(word: str, tmp_path: Path) -> None:
    train = next(command for command in COMMANDS if command.name == "train")
    unlearn = next(command for command in COMMANDS if command.name == "unlearn")
    assert in_config(tmp_path, train, None, "subset", word) == ("value", None)
    assert in_config(tmp_path, train, None, "sharded", word) == ("value", None)
    assert in_config(tmp_path, train, None, "optimizer", word) == ("sentence", "--optimizer is empty; give a value or omit the option.")
    assert in_config(tmp_path, train, None, "seed", word)[0] == "sentence"
    person = ("value", (word,)) if word else ("sentence", "--identity is empty; give a value or omit the option.")
    assert in_config(tmp_path, unlearn, None, "identity", word) == person  # somebody may have this name


def test_tilde_in_a_configuration_is_the_home_folder_for_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = 0
    for command, method, name in OPTIONS:
        field = fields(load_method(method).options if method else command.options)[name]
        if not field.metadata["path"] or name in ("method",):
            continue
        paths += 1
        for text, expected in (("~", str(tmp_path)), ("~/runs/a b", f"{tmp_path}/runs/a b"), ("google/vit", "google/vit")):
            for found in (
                in_config(tmp_path, command, method, name, text),
                in_python(command, method, name, text),
                in_python(command, method, name, Path(text)),
                on_command_line(command, method, name, text),
            ):
                assert found[0] == "value", (name, found)
                assert found[1] == (expected if isinstance(found[1], str) else (expected,)), (name, found)
    assert paths > 40


PATH_WORDS = re.compile(r"(^|_)(dir|file|path|folder|output|root|run|split|model|image|images|grid|oracle|original|preset|source|encoder)$")


def test_every_option_that_names_a_path_is_marked_as_one() -> None:
    for command, method, name in OPTIONS:
        owner = load_method(method).options if method else command.options
        if kind_of(owner, name) in (str, tuple) and PATH_WORDS.search(name) and not (command.name == "benchmark" and name == "data_dir"):
            assert fields(owner)[name].metadata["path"], (command.path, name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset: synthetic\nepochs: zero\n", "c.yaml, line 2: --epochs of train takes a whole number, not 'zero'."),
        ("dataset: synthetic\nseed: 0x10\n", "c.yaml, line 2: --seed of train takes a whole number, not '0x10'."),
        ("dataset: synthetic\nseed: true\n", "c.yaml, line 2: --seed of train takes a whole number, not 'true'."),
        ("dataset: synthetic\nlr: .inf\n", "c.yaml, line 2: --lr of train takes a number, not '.inf'."),
        ("dataset: synthetic\n\nbf16: maybe\n", "c.yaml, line 3: --bf16 of train takes true or false, not 'maybe'."),
        ("dataset: synthetic\noutput-dir: [a]\n", "c.yaml, line 2: --output-dir of train takes one value, not a list."),
        ("dataset: {a: 1}\n", "c.yaml, line 1: --dataset of train takes one value, not a mapping."),
        (
            "dataset: synthetic\nlabel-columns: {a: 1}\n",
            "c.yaml, line 2: --label-columns of train takes one value or a list, not a mapping.",
        ),
        ("dataset: synthetic\nepoch: 1\n", "c.yaml, line 2: 'epoch' is no option of 'train'. Did you mean 'epochs'?"),
        ("lr: 1\nlearning-rate: 2\n", "c.yaml, line 2: 'lr' and 'learning-rate' are the same option; keep one of them."),
        ("batch_size: 1\nbatch-size: 2\n", "c.yaml, line 2: 'batch_size' and 'batch-size' are the same option; keep one of them."),
        ("reporter: 1\n", "c.yaml, line 1: 'reporter' is no option of 'train'."),
    ],
)
def test_wrong_value_of_a_configuration_names_file_and_line(
    oneshui: Oneshui, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(text)
    code, out, err = oneshui("train", "--config", tmp_path / "c.yaml")
    assert (code, out) == (2, "")
    assert sentence(err).startswith(f"Error: {tmp_path}/{message}")
    assert [file.name for file in tmp_path.iterdir()] == ["c.yaml"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("copies: 0\n", "c.yaml, line 1: --copies of method 'jit' must be at least 1, not 0."),
        ("method: jit\nreporter: x\n", "c.yaml, line 2: 'reporter' is no option of 'unlearn'."),
        ("method: [jit]\n", "c.yaml, line 1: --method of unlearn takes one value, not a list."),
        ("method: jti\n", "There is no method 'jti'. Did you mean 'jit'?"),
        ("run: [a]\n", "c.yaml, line 1: --run of unlearn takes one value, not a list."),
    ],
)
def test_wrong_value_for_a_method_names_file_and_line(oneshui: Oneshui, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    words = [] if "method" in text else ["--method", "jit"]
    run = tmp_path / "run"
    run.mkdir()
    (run / "oneshui.json").write_text(
        json.dumps({"format": 1, "kind": "original", "seed": 0, "options": {}, "dataset": {}, "weights": "x"})
    )
    runs = [] if "run:" in text else [run]
    code, _, err = oneshui("unlearn", *runs, *words, "--image", run / "oneshui.json", "--config", tmp_path / "c.yaml")
    assert (code, message in sentence(err)) == (2, True), err

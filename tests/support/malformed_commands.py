"""Command lines that are wrong, from a seed: every command and option, with wrong values, spellings, paths and configurations.

No command line of these does any work: the runs and data sets that they name cannot be used, so the command ends with an error even if what
was changed happens to be valid. Those with a NUL character cannot be passed to another process.
"""

from __future__ import annotations

import functools
import json
import os
import random
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from oneshui_hf.cli.commands import Command, boolean_flags, shown_flags
from oneshui_hf.options import fields
from oneshui_hf.plugins import METHODS, Plugins
from support.all_commands import COMMANDS, kind_of

MAX_MESSAGE = 600  # characters of an error message
WRITTEN = ("output", "output_dir", "cache_dir")  # options that name what a command writes
FAMILY = "👩\u200d👩\u200d👧"  # joined, and printed as it is
HOSTILE = (
    *("\x1b[2J\x1b]0;title\x07", "a\nError: b", "a\rb", "\x00", "a\x7f\x9b31mb", "\u202egnp.exe", "a\u2066b\u2069", "\u200b\u2060\ufeff"),
    *("\u2028\u2029", "\udcff\udc80", "\U000e0041\U000e007f", "[red]x[/red]", "{{ 7 * 7 }}", "%s%n", "'; --", "日本語", FAMILY, "ü" * 5000),
)
NUMBERS = (
    *("", " ", "x", "nan", "-nan", "inf", "-inf", "1e400", "1e999999999", "0x10", "1_000", "--", "-", "1,5", "\u0663\u066b\u0665", "one"),
    *("1" * 5000, *HOSTILE),
)
LONG = ("x" * 300, "/".join(["d" * 200] * 30))
UNREADABLE = (
    *("", "missing", "missing/below", "file", "file/below", "folder", "fifo", "locked", "locked/below", "loop", "dangling", "/dev/null/x"),
    *("~nobody-here/x", *LONG, *HOSTILE),
)
UNWRITABLE = (
    *("", "\x00", "file", "file/below", "fifo", "fifo/below", "loop", "/dev/null/x", "/proc/x", *LONG),
    *(f"file/{text}" for text in HOSTILE),
)
ALIASES = b"".join(b"k%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9) if n else b"x") for n in range(12))
MERGES = b"a0: &a0 {x: 1}\n" + b"".join(b"a%d: &a%d {<<: [%s]}\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 10))
CONFIGS = (
    *(
        b"",
        b"- a\n",
        b"a",
        b"a: 1\na: 2\n",
        b"dataset: [1\n",
        b"? [a]\n: 1\n",
        b"a: !!python/object/apply:os.system [ls]\n",
        b"!!set {a}\n",
    ),
    *(b"a: &a [*a]\n", b"a: " + b"[" * 5000, b"a: " + b"{a: " * 5000, b"\n".join(b" " * n + b"a:" for n in range(500)), ALIASES, MERGES),
    *(
        b"a: \x00\n",
        "a: 1".encode("utf-16"),
        b"\xfe\xff\x00a\x00:",
        b"a: \xff\n",
        b"\xef\xbb\xbfno-such-option: 1\n",
        b"<<: [1]\n",
        b"&a\n",
    ),
    *(b"a: 1\n---\nb: 2\n", b"--- \n" * 500, b"a: \x1b[31m\n", b'"\\e[31m\\nb": 1\n', "\u202eabc: 1\n".encode(), b"%YAML 9.9\n---\na: 1\n"),
    *(b"a: '" + b"x" * 90_000, b"x" * 3000 + b": 1\n", b"seed: " + b"9" * 90_000, b"#" * 2_000_000, b"a: |\n" + b"  x\n" * 20_000),
    *(b"\ta: 1\n", b"a: @x\n", b"*a : 1\n", b'a: "\\UFFFFFFFF"\n', b'a: "\\ud83d"\n'),
)
UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")  # categories of Unicode that are not printed, except line breaks


def malformed_commands(seed: int, count: int, folder: Path) -> Iterator[list[str]]:
    """Yield command lines that are wrong. The same seed gives the same ones; the first ones do not depend on how many are requested.

    Args:
        seed: Of the random choices.
        count: How many.
        folder: An empty folder. The files that the command lines name are written into it first.
    """
    rng = random.Random(seed)
    _write_files(folder)
    makers: list[Maker] = []
    for _ in range(count):
        if not makers:
            makers = [*_makers(rng)]
            rng.shuffle(makers)
        yield makers.pop()(rng, folder)


def faults(code: int, err: str) -> list[str]:
    """Return what is wrong with the answer to a malformed command line: its exit code, and what it printed on stderr."""
    found = []
    errors = [line for line in err.splitlines() if line.startswith("Error: ")]
    if code not in (0, 1, 2):
        found.append(f"exit code {code}")
    if "Traceback" in err:
        found.append("a traceback")
    if len(errors) != (code != 0):
        found.append(f"{len(errors)} error messages with exit code {code}")
    if any(len(line) > MAX_MESSAGE for line in err.splitlines()):
        found.append("a long message")
    raw = {character for character in err.replace(FAMILY, "") if character != "\n" and unicodedata.category(character) in UNSAFE}
    if raw:
        found.append(f"unescaped characters: {''.join(sorted(raw))!a}")
    return found


def _write_files(folder: Path) -> None:
    """Write what the command lines name: a run without weights, a folder without photos, damaged files, things that are no files."""
    for place in ("run", "data", "folder", "locked"):
        (folder / place).mkdir()
    data = {"name": "synthetic", "task": "multi_label", "labels": ["Smiling", "Young"]}
    record = {"format": 1, "kind": "original", "state": "complete", "seed": 0, "options": {"dataset": "synthetic"}, "dataset": data}
    record |= {"weights": "0", "versions": {}, "report": {"split": {"forget_identities": 2}}}
    (folder / "run" / "oneshui.json").write_text(json.dumps(record))
    (folder / "run" / "split.json").write_text("{}")
    (folder / "data" / "metadata.csv").write_text("file_name,identity,Smiling\nmissing.png,a,1\n")
    (folder / "file").write_bytes(b"x")
    for number, content in enumerate(CONFIGS):
        (folder / f"{number}.yaml").write_bytes(content)
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "dangling").symlink_to(folder / "nowhere")
    (folder / "locked").chmod(0)


Maker = Callable[[random.Random, Path], list[str]]


def _makers(rng: random.Random) -> Iterator[Maker]:
    """Yield functions that return a command line each, at least one for each option of each command and each configuration."""
    for command in COMMANDS:
        yield from (
            functools.partial(made, command) for made in (_unknown_option, _wrong_config, _more_words, _random_words, _misplaced_option)
        )
        for name in fields(command.options):
            if name not in command.positional:
                yield functools.partial(_wrong_value, command, command.options, name)
    for number in range(len(CONFIGS)):
        yield functools.partial(_one_config, number)
    steps = [command for command in COMMANDS if command.method_step]
    for method in rng.sample(Plugins(METHODS).names, 4):
        options = Plugins(METHODS).load(method).options
        for name in fields(options):
            yield functools.partial(_wrong_method_value, rng.choice(steps), options, name, method)
    for words in ([], ["data"], ["methods"], ["methods", "show"], ["cache"], ["data", "list"], ["datasets"], ["--version"]):
        yield from [functools.partial(_wrong_word, words)] * 2


def _unknown_option(command: Command, rng: random.Random, folder: Path) -> list[str]:
    """Return a command line with an option that is written almost like one that exists."""
    word = rng.choice(_spellings(command))
    place = rng.randrange(2, len(word))
    changed = (word[:place] + word[place + 1 :], word[:place] + rng.choice("qzx_") + word[place:], word.upper(), f"{word}=", f"{word}-x")
    return [*_base(command, folder), f"{rng.choice(changed)}q"]


def _wrong_config(command: Command, rng: random.Random, folder: Path) -> list[str]:
    files = ([], [_place(rng, folder, UNREADABLE)], [str(folder / f"{rng.randrange(len(CONFIGS))}.yaml")])
    return [*_base(command, folder), "--config", *rng.choice(files)]


def _more_words(command: Command, rng: random.Random, folder: Path) -> list[str]:
    return [*_base(command, folder), *[rng.choice(HOSTILE)] * 20]


def _random_words(command: Command, rng: random.Random, folder: Path) -> list[str]:
    known = [*_spellings(command), *HOSTILE[:-1], "--", "-", "="]
    return [*command.path.split(), *rng.choices(known, k=rng.randint(3, 8)), "--no-such"]


def _misplaced_option(command: Command, rng: random.Random, folder: Path) -> list[str]:
    return [rng.choice(["--json=1", "--quiet=x", "--debugg", "--config"]), *_base(command, folder)]


def _one_config(number: int, rng: random.Random, folder: Path) -> list[str]:
    start = rng.choice([["train", "--config"], ["benchmark"], ["prepare", str(folder / "run"), "--config"], ["data", "split", "--config"]])
    return [*start, str(folder / f"{number}.yaml")]


def _wrong_word(words: list[str], rng: random.Random, folder: Path) -> list[str]:
    misspelt = ("trian", "evalute", "--jsn", "--help=1", "-z", "--", "-", "=", "--=", "--json", "")
    return [*words, rng.choice(HOSTILE if rng.random() < 0.5 else misspelt)]


def _wrong_method_value(command: Command, options: type[Any], name: str, method: str, rng: random.Random, folder: Path) -> list[str]:
    return [*_wrong_value(command, options, name, rng, folder), "--method", method]


def _wrong_value(command: Command, options: type[Any], name: str, rng: random.Random, folder: Path) -> list[str]:
    """Return a command line in which one option has a wrong value, is repeated, lacks its value, or excludes another."""
    field, kind = fields(options)[name], kind_of(options, name)
    words, spelling = _base(command, folder, without=name), shown_flags(field)[0].partition("/")[0]
    on, off = boolean_flags(field)
    if kind is bool:
        return [*words, *rng.choice([[f"{on}={rng.choice(['1', 'yes', '', *HOSTILE])}"], [on, off], [off, on], [on, "yes"], [f"{on}e"]])]
    if rng.random() < 0.1:
        return [*words, spelling]
    if name in WRITTEN:
        value = _place(rng, folder, UNWRITABLE)
    elif field.metadata["path"]:
        value = _place(rng, folder, UNREADABLE)
    elif field.metadata["choices"]:
        value = rng.choice(["", "Best", "al", *HOSTILE])
    elif kind in (int, float):
        bounds = [str(limit + step) for limit, step in ((field.metadata["min"], -1), (field.metadata["max"], 1)) if limit is not None]
        value = rng.choice([*NUMBERS, *bounds, "1.5" if kind is int else "nan"])
    else:
        value = rng.choice(["", ",", "a,b", '"', *HOSTILE])
    given = [f"{spelling}={value}"] if rng.random() < 0.5 else [spelling, value]
    return [*words, *given, *(given if rng.random() < 0.2 else [])]


def _base(command: Command, folder: Path, without: str = "") -> list[str]:
    """Return a command line that is complete and cannot do anything, since what it reads or writes cannot be used."""
    values = {
        **dict.fromkeys(("run", "source", "root", "oracle", "unlearned"), str(folder / "run")),
        "repo_id": "not/a/name",
        "grid": str(folder / "file"),
        **dict.fromkeys(("image", "images"), str(folder / "missing.jpg")),
        **dict.fromkeys(("request", "requests"), "R-000001"),
        "reason": "none",
        "file": str(folder / "file"),
        "desk": str(folder / "file" / "below"),
        "dataset": str(folder / "data"),
        "output_dir": str(folder / "file" / "below"),
        "output": str(folder / "file" / "below.json"),
        "cache_dir": str(folder / "folder"),
    }
    words = [*command.path.split(), *(values[name] for name in command.positional)]
    for name, field in fields(command.options).items():
        if name in values and name not in command.positional and name != without:
            words += [shown_flags(field)[0], values[name]]
    return words


def _spellings(command: Command) -> list[str]:
    return [spelling for field in fields(command.options).values() for spelling in boolean_flags(field) if spelling.startswith("--")]


def _place(rng: random.Random, folder: Path, names: tuple[str, ...]) -> str:
    """Return a path that cannot be used, most often below the folder."""
    name = rng.choice(names)
    is_whole = not name or name.startswith(("/", "~")) or (names is UNREADABLE and rng.random() < 0.3)
    return name if is_whole else f"{folder}/{name}"

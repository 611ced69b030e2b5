"""The rooms of the code: who may import whom, what stays light, and that the wheel takes it all."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from oneshui_hf.plugins import METHODS, Plugins

ROOT = Path(__file__).parent.parent
SRC, PLUGINS = ROOT / "src" / "oneshui_hf", ROOT / "plugins" / "oneshui_plugins"

# A room imports from those before it and from itself, never from those behind.
FLOORS = [
    {
        *(
            "cache",
            "errors",
            "files",
            "hub",
            "imports",
            "json_text",
            "memory",
            "name_lists",
            "option_values",
            "options",
            "plugins",
            "printable",
            "processes",
            "progress",
            "public_names",
            "random_search",
            "record_schema",
        ),
        *("reporting", "runs", "seeding", "sets", "stop_signals", "validation", "vault", "yaml_lines"),
    },
    {"data"},
    {"models"},
    {"metrics"},
    {"methods"},
    {"recognition"},
    {"card"},
    {"results"},
    {"desk"},
    {"stages"},
    {"app"},
    {"api_options", "api_run", "api_app", "api_desk", "api_hub", "plots"},
    {"api", "testing"},
    {"cli"},
]


def floor(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, room) of every import of the core, absolute ones and relative ones, also inside functions."""
    package = file.relative_to(SRC).parts[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            target = [*base, *(node.module.split(".") if node.module else [])]
            names = [target[0]] if target else [alias.name for alias in node.names]
            yield from ((node.lineno, name) for name in names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("oneshui_hf."):
            yield node.lineno, str(node.module).split(".")[1]


def test_rooms_import_in_one_direction() -> None:
    wrong, seen = [], 0
    for file in SRC.rglob("*.py"):
        room = file.relative_to(SRC).parts[0].removesuffix(".py")
        if room in ("__init__", "__main__"):
            continue
        for line, other in imports(file):
            seen += 1
            if floor(other) > floor(room):
                wrong.append(f"{file.relative_to(ROOT)}:{line} {room} -> {other}")
    assert seen > 50
    assert not wrong, "\n".join(wrong)


def test_no_two_modules_import_each_other() -> None:
    modules = {".".join(file.relative_to(SRC.parent).with_suffix("").parts).removesuffix(".__init__"): file for file in SRC.rglob("*.py")}
    below: dict[str, set[str]] = {}
    for name, file in modules.items():
        package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
        found = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = [*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else [])]
                found |= {".".join([*base, alias.name]) for alias in node.names} | {".".join(base)}
        below[name] = {target for target in found & modules.keys() if modules[target].name != "__init__.py"} - {name}

    def reached(start: str) -> set[str]:
        seen, queue = set(), list(below[start])
        while queue:
            if (name := queue.pop()) not in seen:
                seen.add(name)
                queue += below[name]
        return seen

    assert sum(map(len, below.values())) > 300
    assert not [name for name in below if name in reached(name)]


def test_methods_import_the_public_api_alone() -> None:
    own = {"oneshui_plugins"}
    for file in PLUGINS.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            for name in names:
                top = name.split(".")[0]
                allowed = name == "oneshui_hf.methods" or top in own | {"torch", "__future__"} or top in sys.stdlib_module_names
                assert allowed, f"{file.name}:{node.lineno} imports {name}"


def test_core_names_no_method_but_the_default() -> None:
    entries = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["oneshui.methods"]
    words = {
        word for name, value in entries.items() for word in (name, value.partition(":")[2], value.partition(":")[0].rpartition(".")[2])
    }
    pattern = re.compile(rf"(?<!torch\.)\b({'|'.join(sorted(words))})\b")
    named = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for file in sorted(SRC.rglob("*.py"))
        for line in file.read_text().splitlines()
        if pattern.search(line)
    ]
    assert named == [
        'src/oneshui_hf/stages/command_options.py: DEFAULT_METHOD = "metaunlearn"  # the one method that the core knows by name'
    ]


def test_wheel_takes_every_package() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {".".join(f.parent.relative_to(ROOT / "src").parts) for f in (ROOT / "src").rglob("__init__.py")}
    folders |= {".".join(f.parent.relative_to(ROOT / "plugins").parts) for f in PLUGINS.rglob("__init__.py")}
    assert listed == folders | {"oneshui_hf.cards"}


DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "huggingface_hub": "huggingface-hub", "dlib": "dlib-bin"}
LONGEST = 400  # lines of a module


def test_no_module_is_long() -> None:
    lengths = {file: len(file.read_text().splitlines()) for folder in (SRC, PLUGINS) for file in folder.rglob("*.py")}
    assert len(lengths) > 100
    assert not {str(file.relative_to(ROOT)): length for file, length in lengths.items() if length > LONGEST}


def test_imported_distributions_are_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *(line for lines in project["optional-dependencies"].values() for line in lines)]
    names = {re.split(r"[\[<>=~! ]", line)[0].lower() for line in declared}
    imported = set()
    for file in [*SRC.rglob("*.py"), *PLUGINS.rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(str(node.module).split(".")[0])
    foreign = imported - sys.stdlib_module_names - {"oneshui_hf", "oneshui_plugins"}
    assert {"torch", "numpy", "scipy", "PIL"} <= foreign
    assert {DISTRIBUTIONS.get(name, name).replace("_", "-").lower() for name in foreign} <= names


@pytest.mark.parametrize("command", [["--help"], ["methods"], ["train", "--help"]])
def test_light_commands_import_nothing_heavy(command: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['oneshui', *{command!r}]\n"
        "from oneshui_hf.cli import main\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'evaluate', 'accelerate', 'numpy', 'pandas', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    own = os.environ | {"ONESHUI_PLUGINS": ",".join(Plugins(METHODS).names)}  # a method of another package may import anything
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=own)
    assert done.returncode == 0, done.stderr

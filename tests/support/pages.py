"""The pages of the documentation, taken apart: blocks of code, commands with their output, headings and links."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if page != DOCS / "results" / "faces" / "tables.md")  # written by `oneshui benchmark`
TOP = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the number of its first line, and the last line of text before it."""

    language: str
    text: str
    line: int
    before: str

    @property
    def file(self) -> str | None:
        """The file that the block is the content of, if the text before it names one."""
        found = re.findall(r"`([\w.-]+\.(?:py|toml|yaml))`", self.before)
        return found[-1] if found and self.language in ("python", "toml", "yaml") else None


@dataclass(frozen=True)
class Command:
    """A command of a console block, without its comment, and the lines that it prints."""

    words: str
    output: tuple[str, ...]


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    before, inside = "", None
    lines: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            if inside is None:
                inside, start, lines = line.strip().removeprefix("```"), number + 1, []
            else:
                yield Block(inside, "\n".join(lines), start, before)
                inside = None
        elif inside is not None:
            lines.append(line)
        elif line.strip():
            before = line


def commands(block: Block) -> Iterator[Command]:
    """Yield the commands of a console block; a line that ends with a backslash, or a loop, continues on the next line."""
    for part in re.split(r"(?m)^\$ ", block.text)[1:]:
        first, *output = part.replace("\\\n", " ").splitlines()
        while first.startswith("for ") and not first.rstrip().endswith("done"):
            first += "\n" + output.pop(0)
        yield Command(re.sub(r"\s+#\s.*", "", first), tuple(line for line in output if line.strip()))


def console_commands(page: Path) -> Iterator[Command]:
    """Yield the commands of all console blocks of a page, in their order."""
    for block in blocks(page):
        if block.language == "console":
            yield from commands(block)


def calls(command: Command) -> Iterator[list[str]]:
    """Yield the arguments of each call of `oneshui` in a command, with 1 for variables of the shell."""
    words = shlex.split(re.sub(r"\$\w+", "1", command.words).replace("\n", " ; "))
    for place, word in enumerate(words):
        if word in ("oneshui", "oneshui_hf"):
            found: list[str] = []
            for following in words[place + 1 :]:
                if following in ("&&", "|", ";"):
                    break
                found.append(following.removesuffix(";"))
                if following.endswith(";"):
                    break
            yield found


def shape(line: str) -> str:
    """Return a printed line without what differs between machines: numbers, widths, marks, and which labels are the most probable."""
    line = re.sub(r"[-+]?\d[\d.,:]*", "0", line.replace("‡", "").strip("= "))
    line = re.sub(r" in 0s \(0\)$", " in 0s", line)  # pytest adds minutes
    return " ".join(re.sub(r"─+", "─", re.sub(r"\b[A-Z]\w* (?=0%)", "LABEL ", line)).split())


def prose(text: str) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"(?ms)^```.*?^```$", "", text)


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub and the site make them."""
    titles = [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title) for title in re.findall(r"(?m)^#+ (.+)$", prose(text))]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(text: str) -> list[str]:
    """Return the targets of the links and images of a page that are not addresses."""
    found = re.findall(r"\]\(([^()\s]+)\)", re.sub(r"`[^`]*`", "", prose(text)))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def prebuild() -> ModuleType:
    """Return the module that writes the site's source."""
    spec = importlib.util.spec_from_file_location("prebuild", DOCS / "prebuild.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

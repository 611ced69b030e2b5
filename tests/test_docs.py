"""The documentation: its form, its links, and that every command in it is one that `oneshui` takes."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from oneshui_hf.cli.app import app
from oneshui_hf.plugins import METHODS, Plugins
from support.all_commands import COMMANDS
from support.pages import DOCS, PAGES, ROOT, TOP, Command, anchors, blocks, calls, commands, links, prebuild, prose
from support.vocabulary import INSTEAD_IN_TEXT

STUDIES = DOCS / "results" / "expected" / "studies.json"
EXAMPLE = "head-ascent"  # the method that a guide writes; tests/test_docs_commands.py runs its commands


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@functools.cache
def generated() -> dict[Path, str]:
    return {DOCS / "reference" / f"{title}.md": text for title, text in prebuild().pages().items()}


def text_of(page: Path) -> str:
    return generated()[page] if page in generated() else page.read_text(encoding="utf-8")


def all_calls() -> list[Any]:
    found = []
    for page in [*TOP, *PAGES]:
        for block in blocks(page):
            if block.language == "console":
                for command in commands(block):
                    found += [pytest.param(call, id=f"{name(page)}:{block.line}-{'-'.join(call[:2])}") for call in calls(command)]
    for study, entry in json.loads(STUDIES.read_text(encoding="utf-8")).items():
        for words in entry["commands"]:
            found += [pytest.param(call, id=f"{study}-{'-'.join(call[:2])}") for call in calls(Command(words, ()))]
    return found


@pytest.mark.parametrize("call", all_calls())
def test_commands_and_options_exist(call: list[str]) -> None:
    if EXAMPLE in call:
        pytest.skip("of a method that the guide writes")
    command: Any = typer.main.get_command(app)
    words = list(call)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert not words or not hasattr(command, "commands"), f"there is no command {words[0]}"
    command.make_context("oneshui", words)  # reads all words, and runs nothing


def test_commands_are_found() -> None:
    assert len(all_calls()) > 80


def test_shell_scripts_are_valid() -> None:
    scripts = [block for page in [*TOP, *PAGES] for block in blocks(page) if block.language == "bash"]
    assert scripts
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script.text, text=True, check=True)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_opens_with_a_summary_and_a_table_or_figure(page: Path) -> None:
    title, empty, *lines = page.read_text(encoding="utf-8").splitlines()
    assert title.startswith("# ")
    assert not empty
    summary = lines[: lines.index("")]
    assert 2 <= len(summary) <= 4, "a summary has about three lines"
    assert not summary[0].startswith(("#", "|", "- ", "!"))
    opening = "\n".join(lines[:30])
    assert re.search(r"^\||^!\[|^```text", opening, re.MULTILINE), "a table or a figure"


@pytest.mark.parametrize("page", [*TOP, *PAGES], ids=name)
def test_lines_are_short(page: Path) -> None:
    printed = {block.line + place for block in blocks(page) if block.language == "console" for place in _output_lines(block.text)}
    lines = enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
    assert not [number for number, line in lines if len(line) > 120 and not line.lstrip().startswith("|") and number not in printed]


def _output_lines(text: str) -> list[int]:
    """Return the places of the lines of a console block that are printed, not typed."""
    return [place for place, line in enumerate(text.splitlines()) if not line.startswith("$ ")]


@pytest.mark.parametrize("page", [*TOP, *PAGES], ids=name)
def test_links_and_anchors_resolve(page: Path) -> None:
    check_links(page, page.read_text(encoding="utf-8"))


def test_links_of_generated_pages_resolve() -> None:
    for page, text in generated().items():
        check_links(page, text)


def test_links_of_the_written_site_lead_to_its_files(tmp_path: Path) -> None:
    """Links to reference/ have no target in the repository; `nox -s docs` builds the site from what is written here."""
    prebuild().main(tmp_path / "site")
    found = [
        (page, link.partition("#")[0]) for page in (tmp_path / "site").rglob("*.md") for link in links(page.read_text(encoding="utf-8"))
    ]
    targets = {(page, path): (page.parent / path).resolve() for page, path in found if path}
    assert sum(target.parent.name == "reference" for target in targets.values()) >= 5
    assert not [f"{page.relative_to(tmp_path)}: {path}" for (page, path), target in targets.items() if not target.is_file()]


def check_links(page: Path, text: str) -> None:
    for link in links(text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target in generated() or target.is_file(), f"{link}: there is no such file"
        if page.is_relative_to(DOCS):
            assert target.is_relative_to(DOCS), f"{link} is not part of the site"
        if anchor:
            assert anchor in anchors(text_of(target)), f"{link}: there is no such heading"


@pytest.mark.parametrize("page", [*TOP, *PAGES], ids=name)
def test_pages_use_the_terms_of_the_glossary(page: Path) -> None:
    text = prose(page.read_text(encoding="utf-8")).partition("\n## Words that are avoided")[0]
    text = re.sub(r"`[^`]*`|\]\([^)]*\)", "", text)
    found = [
        f"use '{term}' for '{word}'" for word, term in INSTEAD_IN_TEXT.items() if re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE)
    ]
    assert not found


def test_navigation_lists_every_page() -> None:
    def paths(entry: Any) -> list[str]:
        inner = next(iter(entry.values()))
        return [inner] if isinstance(inner, str) else [path for one in inner for path in paths(one)]

    listed = [path for entry in tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"] for path in paths(entry)]
    notebooks = [notebook.with_suffix(".md") for notebook in DOCS.rglob("*.ipynb")]  # docs/prebuild.py writes their pages
    pages = [str(page.relative_to(DOCS)) for page in [*PAGES, *generated(), *notebooks]]
    assert sorted(listed) == sorted(pages)


def test_reference_lists_every_command_method_and_function() -> None:
    import oneshui_hf

    pages = {page.stem: text for page, text in generated().items()}
    for command in COMMANDS:
        assert f"\n## oneshui {command.path}\n" in pages["commands"]
    for method in Plugins(METHODS).names:
        assert f"\n## {method}\n" in pages["methods"]
    for function in oneshui_hf.__all__:
        assert f"\n## {function}\n" in pages["python"]
    for text in pages.values():
        assert "\n## " in text
        assert not re.search(r"0x[0-9a-f]{8}|/home/|<function", text)


def test_readme_is_short_and_shows_how_to_start() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 900
    for start in ("pip install .", "oneshui demo", "pip install nox && nox -s tests"):
        assert start in text


def test_citation_has_the_version_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version
    assert f"version = {{{version}}}" in (ROOT / "README.md").read_text()


def test_issue_templates_ask_for_the_environment() -> None:
    forms = [yaml.safe_load(file.read_text()) for file in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yaml")]
    assert len(forms) >= 3
    assert all("oneshui env" in str(form["body"]) for form in forms)


def test_sessions_that_the_pages_name_exist() -> None:
    sessions = set(re.findall(r"@nox\.session\ndef (\w+)", (ROOT / "noxfile.py").read_text()))
    for page in [*TOP, *PAGES]:
        for names in re.findall(r"nox -s ((?:[a-z]+(?: |`|$))+)", page.read_text()):
            assert set(re.findall(r"[a-z]+", names)) & sessions

"""The notebooks of docs/tutorials: they run from an empty folder, and their stored outputs are small, complete and without places."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from support.pages import DOCS, prebuild

NOTEBOOKS = ("forgetting-in-ten-minutes", "method-of-your-own", "auditing-a-model", "reading-a-benchmark")  # the first makes runs
MOST_BYTES = 600_000


def read(name: str) -> dict[str, Any]:
    return json.loads((DOCS / "tutorials" / f"{name}.ipynb").read_text(encoding="utf-8"))


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_notebooks_are_listed_and_small() -> None:
    files = sorted((DOCS / "tutorials").glob("*.ipynb"))
    assert sorted(file.stem for file in files) == sorted(NOTEBOOKS)
    assert sum(file.stat().st_size for file in files) < MOST_BYTES


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_outputs_are_of_one_run_from_top_to_bottom(name: str) -> None:
    cells = code_cells(read(name))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert kinds <= {"stream", "execute_result", "display_data"}
    assert any("image/svg+xml" in output.get("data", {}) for cell in cells for output in cell["outputs"])


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_outputs_contain_no_place_of_the_machine(name: str) -> None:
    text = json.dumps([cell["outputs"] for cell in code_cells(read(name))])
    place = re.compile(r"(?<![\w.:/<-])/\w[\w.-]*/\w|site-packages|0x[0-9a-f]{8}|[A-Za-z]:\\\\")  # of a file, a package or an object
    assert place.search("saved in /folder/run")
    assert not place.search(text)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_page_of_the_site_has_every_cell_and_figure(name: str, tmp_path: Path) -> None:
    notebook = read(name)
    prebuild().write_notebook(DOCS / "tutorials" / f"{name}.ipynb", tmp_path)
    page = (tmp_path / f"{name}.md").read_text(encoding="utf-8")
    for cell in notebook["cells"]:
        assert "".join(cell["source"]).replace(".ipynb", "") in page.replace(".md", "").replace(".ipynb", "")
    figures = re.findall(r"!\[.+\]\((.+\.svg)\)", page)
    assert len(figures) == sum("image/svg+xml" in output.get("data", {}) for cell in code_cells(notebook) for output in cell["outputs"]) > 0
    assert all((tmp_path / figure).read_text(encoding="utf-8").startswith("<svg ") for figure in figures)


@pytest.mark.slow
def test_notebooks_run_from_an_empty_folder(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs the extra dev")
    nbclient = pytest.importorskip("nbclient", reason="needs the extra dev")
    pytest.importorskip("ipykernel", reason="needs the extra dev")
    pytest.importorskip("matplotlib")
    for name in NOTEBOOKS:
        notebook = nbformat.read(DOCS / "tutorials" / f"{name}.ipynb", 4)
        stored = outputs(notebook)
        place = {"metadata": {"path": str(tmp_path)}}
        nbclient.NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=place).execute()  # raises the error of a cell
        assert outputs(notebook) == stored, name


def outputs(notebook: Any) -> list[list[str]]:
    """Return what a reader sees below each cell. A stream that arrives in several parts is one, and progress is not compared."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            seen = [each for each in map(kind, cell.outputs) if each != "stderr"]
            found.append([one for before, one in zip([None, *seen], seen, strict=False) if (before, one) != ("stdout", "stdout")])
    return found


def kind(output: Any) -> str:
    """Return what a reader sees of an output: the name of a stream, a figure, or text."""
    if output["output_type"] == "stream":
        return output["name"]
    return "figure" if "image/svg+xml" in output["data"] else "text"

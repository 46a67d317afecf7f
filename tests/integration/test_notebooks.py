"""The notebooks, executed as they are: every cell runs, and shows what the stored one shows."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(path.stem for path in EXAMPLES.glob("*.ipynb"))


def executed(name: str, place: Path) -> Any:
    """A notebook after its cells have run, in a directory of its own."""
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", 4)
    for cell in notebook.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell["outputs"] = []
    client = NotebookClient(notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": str(place)}})
    return client.execute()


def value(cell: Any) -> Any:
    """What a cell's last line is worth, where it is a plain value."""
    return ast.literal_eval(cell.outputs[-1]["data"]["text/plain"])


def kinds(notebook: Any) -> list[list[str]]:
    """What each cell shows: text, pictures, tables."""
    return [
        sorted(kind for output in cell.get("outputs", []) for kind in output.get("data", {output.output_type: None}))
        for cell in notebook.cells
    ]


@pytest.fixture(scope="module", params=NOTEBOOKS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    return request.param, executed(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_notebook_runs_and_shows_what_it_shows_on_the_web(run: tuple[str, Any]) -> None:
    name, notebook = run
    stored = nbformat.read(EXAMPLES / f"{name}.ipynb", 4)
    assert kinds(notebook) == kinds(stored)
    assert sum("image/png" in kind for kind in kinds(notebook)) >= 2
    if name == "iris":
        assert [text.split()[0] for cell in notebook.cells[7:8] for text in value(cell).values()] == ["5", "7", "9"]
    else:
        assert name == "mnist"
        (said,) = [value(cell) for cell in notebook.cells if "rows, {right" in cell.source]
        assert float(said.split()[2].rstrip("%")) >= 92
        (group,) = [cell for cell in notebook.cells if cell.source.startswith("list(db[")]
        assert value(group) == []


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_stored_notebook_is_whole_and_holds_no_error(name: str) -> None:
    stored = nbformat.read(EXAMPLES / f"{name}.ipynb", 4)
    nbformat.validate(stored)
    outputs = [item for cell in stored.cells for item in cell.get("outputs", [])]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]

"""The notebooks: each pair agrees, the committed outputs are whole, and each runs from scratch."""

from __future__ import annotations

import os
import pathlib
import sys
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
LARGEST = 400_000  # bytes; a page that opens at once
UPDATE = "python notebooks/execute.py {}"

each = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)


def read(path: pathlib.Path) -> Any:
    import jupytext

    return jupytext.read(path)


def cells(notebook: Any) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def complaints(notebook: Any) -> list[str]:
    """What its cells wrote to standard error (warnings land there), and errors."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return [
        output.get("text") or output.get("evalue", "")
        for output in outputs
        if output.output_type == "error" or output.get("name") == "stderr"
    ]


def test_every_notebook_has_its_script():
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert [path.with_suffix(".py") for path in notebooks] == SCRIPTS
    assert SCRIPTS


@each
def test_notebook_and_script_agree(script):
    notebook = script.with_suffix(".ipynb")
    update = UPDATE.format(script.stem)
    assert cells(read(notebook)) == cells(read(script)), f"run: {update}"


@each
def test_committed_outputs_are_whole_and_small(script):
    path = script.with_suffix(".ipynb")
    assert path.stat().st_size <= LARGEST
    notebook = read(path)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1)), "execute it once, from top to bottom"
    assert complaints(notebook) == []
    pictures = [
        output
        for cell in code_cells(notebook)
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    shown = [cell for cell in code_cells(notebook) if "plt.show()" in cell.source]
    assert len(pictures) == len(shown) > 0
    # Nothing of the machine that executed it.
    text = path.read_text()
    assert str(ROOT) not in text
    assert sys.prefix not in text


@pytest.mark.slow
@each
def test_runs_from_top_to_bottom(script, tmp_path, monkeypatch):
    # Building its font cache takes matplotlib seconds, once on a machine, and it says so aloud.
    import matplotlib.font_manager  # noqa: F401
    from nbclient import NotebookClient

    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    # The compiler logs when it is slow; that says something about the machine, not the notebook.
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = read(script)
    client = NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    assert complaints(notebook) == []
    assert list(tmp_path.iterdir()) == [], "it leaves nothing behind"

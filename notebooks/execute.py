"""Executes notebooks from their scripts and stores them with their outputs, pictures made small.

    python notebooks/execute.py [01_frequency_switching ...]

The script (percent format) is what one edits; the notebook beside it is written anew.
"""

from __future__ import annotations

import base64
import io
import pathlib
import sys
import tempfile

import jupytext
from nbclient import NotebookClient
from PIL import Image

FOLDER = pathlib.Path(__file__).parent


def small(png: str) -> str:
    """A picture in base64, redrawn with 256 colours: a third of the bytes, the same to the eye."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    buffer = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def execute(script: pathlib.Path) -> pathlib.Path:
    """Runs one script as a notebook in an empty folder and writes the ``.ipynb`` beside it."""
    notebook = jupytext.read(script)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"  # drawn at random otherwise, which every diff would show
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(
            notebook,
            timeout=1800,
            kernel_name="python3",
            resources=resources,
            coalesce_streams=True,
            record_timing=False,
        ).execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = small(data["image/png"])
    path = script.with_suffix(".ipynb")
    jupytext.write(notebook, path)
    return path


if __name__ == "__main__":
    stems = sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("[0-9]*.py"))
    for stem in stems:
        written = execute(FOLDER / f"{stem}.py")
        print(f"{written.name}: {written.stat().st_size / 1000:.0f} kB")

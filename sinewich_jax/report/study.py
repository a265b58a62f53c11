"""Pages of ``docs/results``: text, tables and the commands that make them, written whole.

page = study.Page("Six tasks on scenes")
page.text("Three seeds, 600 steps each.")
page.table("Primary metrics", cells, columns=("semseg", "depth"), command="python ...")
page.write("docs/results/scenes.md")
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sinewich_jax import storage
from sinewich_jax.report.tables import NOT_RUN, command_block, markdown_table, mean_spread

__all__ = [
    "NOT_RUN",
    "Page",
    "command_block",
    "markdown_table",
    "mean_spread",
    "method_rows",
    "write_page",
]


def method_rows(
    cells: Mapping[str, Mapping[str, Any]],
    columns: Sequence[str],
    digits: int | Mapping[str, int] = 3,
) -> list[list[str]]:
    """Table rows from a dictionary: one row a method, one cell a column.

    Args:
      cells: ``{method: {column: values over seeds | text | None}}``. What is missing is "not run".
      columns: which columns, in order.
      digits: decimals, for all columns or one by one.

    Returns:
      Lists of the method's name and one text a column.

    Examples:
      >>> method_rows({"lora": {"depth": [0.5, 0.5]}}, ("depth", "edge"), digits=2)
      [['lora', '0.50 ± 0.00', 'not run']]
    """
    rows = []
    for method, row in cells.items():
        texts = [method]
        for column in columns:
            value = row.get(column)
            decimals = digits if isinstance(digits, int) else digits[column]
            texts.append(value if isinstance(value, str) else mean_spread(value, decimals))
        rows.append(texts)
    return rows


class Page:
    """A Markdown page under construction."""

    def __init__(self, title: str) -> None:
        """Begins with ``title`` as the first heading."""
        self._parts = [f"# {title}\n"]

    def text(self, *paragraphs: str) -> Page:
        """Adds paragraphs."""
        self._parts.extend(f"{paragraph.strip()}\n" for paragraph in paragraphs)
        return self

    def heading(self, title: str) -> Page:
        """Begins a section."""
        self._parts.append(f"## {title}\n")
        return self

    def picture(self, path: str, description: str) -> Page:
        """Shows a picture that lies beside the page."""
        self._parts.append(f"![{description}]({path})\n")
        return self

    def command(self, *commands: str) -> Page:
        """Shows commands in a block."""
        self._parts.append(command_block(*commands))
        return self

    def table(
        self,
        title: str,
        cells: Mapping[str, Mapping[str, Any]],
        columns: Sequence[str],
        command: str | None = None,
        digits: int | Mapping[str, int] = 3,
        first: str = "method",
    ) -> Page:
        """Adds a section with a table over seeds and the command that makes it.

        Args:
          title: heading of the section; empty for none.
          cells: as in :func:`method_rows`.
          columns: keys of the columns, also their titles.
          command: what makes the numbers.
          digits: decimals, for all columns or one by one.
          first: title of the first column.
        """
        if title:
            self.heading(title)
        rows = method_rows(cells, columns, digits)
        self._parts.append(markdown_table([first, *columns], rows))
        if command is not None:
            self.command(command)
        return self

    def render(self) -> str:
        """The page as Markdown."""
        return "\n".join(self._parts)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Writes the page, wholly or not at all."""
        return write_page(path, self.render())


def write_page(path: str | os.PathLike[str], content: str) -> Path:
    """Writes a Markdown page, wholly or not at all, ending in one newline.

    Args:
      path: the file; folders are made.
      content: Markdown.

    Returns:
      The path.
    """
    storage.write_text(path, content.strip("\n") + "\n")
    return Path(path)

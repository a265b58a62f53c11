"""Markdown: tables whose cells say what is known, how often it was measured and what was not."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from sinewich_jax.errors import SinewichError

NOT_RUN = "not run"


def markdown_table(
    headers: Sequence[str], rows: Iterable[Sequence[object]], align: str | None = None
) -> str:
    """A table in GitHub's Markdown, columns padded so that it also reads well as text.

    Args:
      headers: one title a column.
      rows: cells, turned into text by ``str``; None reads "not run".
      align: one letter a column, ``l`` or ``r``. By default the first column is left and the
        others are right.

    Returns:
      Lines ending in a newline.

    Raises:
      SinewichError: a row or ``align`` has another number of columns than the headers.

    Examples:
      >>> print(markdown_table(["task", "RMSE"], [["depth", 0.31], ["height", None]]), end="")
      | task   |    RMSE |
      | :----- | ------: |
      | depth  |    0.31 |
      | height | not run |
    """
    count = len(headers)
    align = "l" + "r" * (count - 1) if align is None else align
    if len(align) != count or set(align) - set("lr"):
        raise SinewichError(
            f"align is {align!r} for {count} columns; expected one of the letters l and r a column"
        )
    lines = [[_cell(title) for title in headers]]
    for row in rows:
        lines.append([_cell(cell) for cell in row])
        if len(row) != count:
            raise SinewichError(
                f"the table row {list(row)!r} has {len(row)} cells, expected {count}: "
                f"{', '.join(headers)}"
            )
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(count)]
    rule = [
        ":" + "-" * (width - 1) if side == "l" else "-" * (width - 1) + ":"
        for width, side in zip(widths, align, strict=True)
    ]
    lines.insert(1, rule)
    return "".join(
        "| "
        + " | ".join(
            cell.ljust(width) if side == "l" else cell.rjust(width)
            for cell, width, side in zip(line, widths, align, strict=True)
        )
        + " |\n"
        for line in lines
    )


def mean_spread(values: Sequence[float] | None, digits: int = 3, count: bool = False) -> str:
    """Mean and sample standard deviation over seeds, as a table cell.

    Args:
      values: one number a seed; None or nothing is "not run".
      digits: decimals of both.
      count: add the number of seeds.

    Returns:
      ``"0.712 ± 0.004"``; a single value says that it is one; seeds that are not finite are counted
      and not averaged away.

    Examples:
      >>> mean_spread([1.0, 2.0, 3.0], digits=1)
      '2.0 ± 1.0'
      >>> mean_spread([0.5])
      '0.500 (1 seed)'
    """
    values = [] if values is None else [float(value) for value in values]
    if not values:
        return NOT_RUN
    broken = sum(not math.isfinite(value) for value in values)
    if broken:
        return f"{broken} of {len(values)} not finite"
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:z.{digits}f} (1 seed)"
    spread = statistics.stdev(values)
    seeds = f" ({len(values)} seeds)" if count else ""
    return f"{mean:z.{digits}f} ± {spread:.{digits}f}{seeds}"


def command_block(*commands: str) -> str:
    """Commands as a fenced block, to stand beside the table that they make."""
    return "```sh\n" + "".join(f"{command.strip()}\n" for command in commands) + "```\n"


def _cell(value: object) -> str:
    if value is None:
        return NOT_RUN
    return str(value).replace("|", "\\|").replace("\n", " ")

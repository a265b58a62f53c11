"""A progress bar for work that is not a training run: rendering, pretraining."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

Advance = Callable[..., None]


@contextlib.contextmanager
def progress_bar(title: str, total: int) -> Iterator[Advance]:
    """Shows ``title``, a bar, the rate and the time left on standard error.

    Args:
      title: what is being done.
      total: units in all.

    Yields:
      ``advance(done, total, note="")``, to be called with the units done so far.
    """
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[note]}"),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, note="")

        def advance(done: int, total: int = total, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield advance

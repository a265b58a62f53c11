"""Where numbers go while a run is on: ``metrics.jsonl``, TensorBoard, a progress bar.

Only the main process writes; every other one gets writers that do nothing.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sinewich_jax import parallel, storage

Scalars = Mapping[str, float | None]
METRICS_FILE = "metrics.jsonl"


class Writer(Protocol):
    """One place that numbers and messages go to."""

    def write(self, step: int, scalars: Scalars) -> None:
        """Records numbers that belong to ``step``."""

    def note(self, step: int, kind: str, text: str) -> None:
        """Records a message; ``kind`` is ``"info"`` or ``"warning"``."""

    def close(self) -> None:
        """Gives back files and the terminal."""


class JsonlWriter:
    """Appends one JSON object a line: ``{"step": 10, "loss": 1.5, ...}``.

    Lines beyond ``from_step`` (written after the checkpoint from which the run goes on) and a line
    cut off by a crash are dropped first, so that the file reads as if the run had never stopped.
    A number that is not finite is written as null.

    Args:
      path: the file.
      from_step: the step from which the run goes on; 0 starts the file anew.
    """

    def __init__(self, path: Path, from_step: int = 0) -> None:
        if path.exists():
            kept = [
                line
                for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
                if from_step and _step_of(line) <= from_step
            ]
            storage.write_text(path, "".join(f"{line}\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, scalars: Scalars) -> None:
        """Appends one line and flushes it."""
        self._append({"step": step, **{key: _finite(value) for key, value in scalars.items()}})

    def note(self, step: int, kind: str, text: str) -> None:
        """Appends a line ``{"step": ..., "<kind>": text}``."""
        self._append({"step": step, kind: text})

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _append(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()


class TensorBoardWriter:
    """Event files, by ``tensorboardX`` (extra ``tb``), without TensorFlow."""

    def __init__(self, directory: Path, from_step: int = 0) -> None:
        import tensorboardX

        self._events = tensorboardX.SummaryWriter(str(directory), purge_step=from_step or None)

    def write(self, step: int, scalars: Scalars) -> None:
        """Adds each number under its own tag."""
        for key, value in scalars.items():
            if _finite(value) is not None:
                self._events.add_scalar(key, float(value), step)

    def note(self, step: int, kind: str, text: str) -> None:
        """Adds a text."""
        self._events.add_text(kind, text, step)

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._events.close()


class ConsoleWriter:
    """A progress bar on a terminal; plain lines where there is none (a log file, a pipe).

    Shows the loss, images a second and the time left.

    Args:
      total_steps: length of the bar.
      from_step: where it begins.
      shown: names of evaluation scores to print; the files hold all.
    """

    def __init__(self, total_steps: int, from_step: int = 0, shown: Sequence[str] = ()) -> None:
        from rich import progress
        from rich.console import Console

        self._console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
        self._total, self._shown = total_steps, tuple(shown)
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[numbers]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._bar.start()
        self._task = self._bar.add_task(
            "training", total=total_steps, completed=from_step, numbers=""
        )

    def write(self, step: int, scalars: Scalars) -> None:
        """Moves the bar when the numbers are those of a training step; shows evaluations too."""
        if "loss" in scalars:
            numbers = f"loss {scalars['loss']:.4f}"
            speed = scalars.get("images_per_second", math.nan)
            if math.isfinite(speed):
                numbers += f"  {speed:.1f} examples/s  ETA {_clock(scalars['eta_seconds'])}"
            self._bar.update(self._task, completed=step, numbers=numbers)
            if not self._console.is_terminal:
                self._console.print(f"step {step}/{self._total}  {numbers}")
        shown = [
            f"{key.removeprefix('eval/')} {scalars[key]:.4f}"
            for key in self._shown
            if scalars.get(key) is not None
        ]
        if shown:
            self._console.print(f"step {step}  " + "  ".join(shown))

    def note(self, step: int, kind: str, text: str) -> None:
        """Prints the message above the bar."""
        self._console.print(text if kind == "info" else f"{kind} at step {step}: {text}")

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.stop()


class Writers:
    """Several writers as one, closed together (a context manager)."""

    def __init__(self, writers: Sequence[Writer]) -> None:
        self._writers = tuple(writers)

    def write(self, step: int, scalars: Scalars) -> None:
        """Records numbers everywhere."""
        for writer in self._writers:
            writer.write(step, scalars)

    def note(self, step: int, text: str, kind: str = "info") -> None:
        """Records a message everywhere."""
        for writer in self._writers:
            writer.note(step, kind, text)

    def __enter__(self) -> Writers:
        """Returns itself."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Closes every writer."""
        for writer in self._writers:
            writer.close()


def make_writers(
    workdir: Path, total_steps: int, from_step: int = 0, shown: Sequence[str] = ()
) -> Writers:
    """All writers that this process should have.

    Args:
      workdir: gets ``metrics.jsonl`` and, where ``tensorboardX`` is installed, event files.
      total_steps: length of the progress bar.
      from_step: the step from which the run goes on.
      shown: names of evaluation scores for the terminal.
    """
    if not parallel.is_main_process():
        return Writers([])
    writers: list[Writer] = [JsonlWriter(workdir / METRICS_FILE, from_step)]
    if importlib.util.find_spec("tensorboardX"):
        writers.append(TensorBoardWriter(workdir / "tensorboard", from_step))
    else:
        announce("no TensorBoard events are written: the extra tb (tensorboardX) is not installed")
    return Writers([*writers, ConsoleWriter(total_steps, from_step, shown)])


def announce(text: str) -> None:
    """One line on stderr from the main process, for what happens before writers exist."""
    if parallel.is_main_process():
        print(text, file=sys.stderr, flush=True)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

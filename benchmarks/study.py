"""What every study shares: cells that run once, two at a time, and can be stopped at any moment.

A cell is one ``train.py`` run in a work directory of its own. A finished cell is never run again,
nor is one whose loss became infinite; a stopped one goes on from its checkpoint, and one that was
not reached says "not run" on the page.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import hashlib
import importlib
import itertools
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sinewich_jax import config as configs

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
      config: config file and variant, ``configs/scenes.py:lora``.
      overrides: (key, value) pairs of ``--config.KEY=VALUE``.
    """

    config: str
    overrides: tuple[tuple[str, Any], ...] = ()

    @property
    def command(self) -> str:
        """The command as a user would type it."""
        flags = "".join(f" --config.{key}={_text(value)}" for key, value in self.overrides)
        return f"python train.py --config={self.config}{flags}"

    def directory(self, root: Path) -> Path:
        """Where this cell leaves its files."""
        stem = Path(self.config.split(":")[0]).stem
        variant = self.config.partition(":")[2] or "sinewich"
        keys = "_".join(f"{key}={_plain(value)}" for key, value in self.overrides)
        return root / stem / variant / (keys or "default")


def _text(value: Any) -> str:
    """A value as a command spells it; a tuple of words in quotes, for the shell."""
    if not isinstance(value, tuple):
        return str(value)
    return '"(' + "".join(f"'{word}'," for word in value) + ')"'


def _plain(value: Any) -> str:
    """A value in the name of a folder."""
    if isinstance(value, str) and "/" in value:
        name = Path(value).name  # of the folder of another cell it would be too long
        return name if "=" not in name else f"path-{_short(value)}"
    if not isinstance(value, tuple):
        return str(value)
    text = "+".join(value)
    if "/" not in text:
        return text
    return f"{len(value)}-paths-{_short(text)}"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def result(cell: Cell, root: Path) -> dict[str, Any] | None:
    """The content of ``results.json`` of a cell that has trained all its steps, or None.

    A directory of another config (the file has changed since) counts as not run.
    """
    path = cell.directory(root) / "results.json"
    if not path.is_file() or not _is_of(cell, root):
        return None
    results = json.loads(path.read_text(encoding="utf-8"))
    return results if results["steps"] == _config(cell).steps else None


def diverged(cell: Cell, root: Path) -> int | None:
    """The step at which a cell stopped because its loss or gradient was not finite, or None."""
    found = sorted(cell.directory(root).glob("nan_step_*.json"))
    return int(found[0].stem.rpartition("_")[2]) if found and _is_of(cell, root) else None


def is_done(cell: Cell, root: Path) -> bool:
    """Whether running the cell (again) would tell nothing new."""
    return result(cell, root) is not None or diverged(cell, root) is not None


def _is_of(cell: Cell, root: Path) -> bool:
    """Whether the cell's directory holds a run of the config that its command has today."""
    path = cell.directory(root) / "config.json"
    if not path.is_file():
        return False
    recorded = configs.from_dict(json.loads(path.read_text(encoding="utf-8")))
    return not configs.differences(recorded, _config(cell))


@functools.cache
def _config(cell: Cell) -> configs.Config:
    """What the cell's command would train."""
    path, _, variant = cell.config.partition(":")
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    config = module.get_config(variant)
    for key, value in cell.overrides:
        group, _, inner = key.rpartition(".")
        (config[group] if group else config)[inner] = value
    return configs.from_config_dict(config)


def make_parser(description: str) -> argparse.ArgumentParser:
    """The options that every study has; ``description`` is its docstring."""
    parser = argparse.ArgumentParser(description=description.split("\n", maxsplit=1)[0])
    parser.add_argument("--minutes", type=float, default=90.0, help="wall-clock budget")
    parser.add_argument("--root", type=Path, default=ROOT / "runs" / "study")
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time")
    parser.add_argument("--page", action="store_true", help="only write the page")
    return parser


def run(cells: Sequence[Cell], root: Path, minutes: float, jobs: int = 2) -> None:
    """Runs the cells that are not finished, in order, until the budget is spent.

    Args:
      cells: what to run.
      root: folder of the work directories.
      minutes: wall-clock budget; a cell under way at the end is asked to save and stop.
      jobs: cells at a time; each is pinned to an equal share of the cores.
    """
    deadline = time.monotonic() + 60 * minutes
    todo = [cell for cell in cells if not is_done(cell, root)]
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // jobs)
    slots = [set(cores[i * share : (i + 1) * share]) or set(cores) for i in range(jobs)]
    free = list(slots)
    numbers = itertools.count(1)

    def one(cell: Cell) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            return
        slot = free.pop()
        directory = cell.directory(root)
        directory.mkdir(parents=True, exist_ok=True)
        words = shlex.split(cell.command)[1:]
        print(f"[{next(numbers)}/{len(todo)}] {cell.command}", flush=True)
        with open(directory / "log.txt", "a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, *words, f"--workdir={directory}"],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: os.sched_setaffinity(0, slot),
            )
            try:
                code = process.wait(timeout=left)
            except subprocess.TimeoutExpired:
                process.terminate()
                code = process.wait()
        free.append(slot)
        if code:
            print(f"  failed with code {code}, see {directory / 'log.txt'}", flush=True)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, todo))

"""Cells that are calls of a function: each leaves one JSON file and is skipped once it is there.

A cell is a kind (which names the function) and settings. Its file is named after a hash of the
settings, those of everything it builds on included, so that a cell whose settings have changed is
another cell. Arrays that later cells read lie beside the JSON, written before it.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import study
from sinewich_jax.core.trees import flatten_paths, unflatten_paths
from sinewich_jax.storage import atomic


@dataclasses.dataclass(frozen=True)
class Cell:
    """One call of a study.

    Attributes:
      kind: names the function.
      text: its settings as JSON with sorted keys.
      study: the folder of its files.
    """

    kind: str
    text: str
    study: str = "merging"

    @classmethod
    def of(cls, kind: str, study: str = "merging", **settings: Any) -> Cell:
        """A cell of settings that JSON can hold."""
        return cls(kind, json.dumps(settings, sort_keys=True), study)

    @property
    def settings(self) -> dict[str, Any]:
        """What the function is called with."""
        return json.loads(self.text)

    def path(self, root: Path) -> Path:
        """The JSON file; what tells cells of a kind apart at a glance leads its name."""
        known = ("task", "seed", "steps", "rate", "name")
        settings = self.settings
        words = [f"{key}={settings[key]}" for key in known if key in settings]
        digest = hashlib.sha256(self.text.encode()).hexdigest()[:10]
        stem = re.sub(r"[^\w.=-]+", "-", "_".join([*words, digest]))
        return root / self.study / self.kind / f"{stem}.json"

    def arrays(self, root: Path) -> Path:
        """Where its arrays lie, if it has any."""
        return self.path(root).with_suffix(".npz")


def result(cell: Cell, root: Path) -> dict[str, Any] | None:
    """What a finished cell has left, or None."""
    path = cell.path(root)
    return json.loads(path.read_text(encoding="utf-8"))["result"] if path.is_file() else None


def record(cell: Cell, root: Path, found: Mapping[str, Any]) -> None:
    """Marks a cell as finished."""
    atomic.write_json(cell.path(root), {"settings": cell.settings, "result": found})


def save_arrays(path: Path, tree: Any) -> None:
    """Writes a tree of dictionaries of arrays, wholly or not at all."""
    flat = {name: np.asarray(leaf) for name, leaf in flatten_paths(tree).items()}
    with atomic.atomic_write(path) as temporary:
        np.savez(temporary, **flat)


def load_arrays(path: Path) -> Any:
    """What :func:`save_arrays` has written."""
    with np.load(path) as file:
        return unflatten_paths({name: file[name] for name in file.files})


def make_parser(
    description: str, parts: Sequence[str], seeds: Sequence[int]
) -> argparse.ArgumentParser:
    """The options of a study of such cells; ``description`` is its docstring."""
    parser = study.make_parser(description)
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=list(parts))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(seeds))
    parser.add_argument("--tiny", action="store_true", help="a try of all code, without a page")
    parser.add_argument("--cell", nargs=2, metavar=("KIND", "SETTINGS"), help="only this cell")
    return parser


def run(module: Sequence[str], cells: Sequence[Cell], root: Path, end: float, jobs: int) -> None:
    """Runs the cells that are not finished, each in a process on its own share of the cores.

    Args:
      module: is called as ``python -m *MODULE --root=ROOT --cell KIND SETTINGS``.
      cells: independent of each other.
      root: folder of the study.
      end: on the clock of ``time.monotonic``; a cell under way then is stopped and will be run
        again from its start.
      jobs: cells at a time.
    """
    todo = [cell for cell in cells if result(cell, root) is None]
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // jobs)
    free = [set(cores[i * share : (i + 1) * share]) or set(cores) for i in range(jobs)]

    def one(cell: Cell) -> None:
        left = end - time.monotonic()
        if left <= 0:
            return
        slot = free.pop()
        try:
            _call(module, cell, root, left, slot)
        finally:
            free.append(slot)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, todo))


def _call(module: Sequence[str], cell: Cell, root: Path, left: float, cores: set[int]) -> None:
    """One cell in a process of its own, for at most ``left`` seconds."""
    log = cell.path(root).with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", *module, f"--root={root}", "--cell", cell.kind, cell.text]
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str((root / cell.study / "compiled").absolute()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }
    print(f"{cell.kind}: {cell.path(root).stem}", flush=True)
    with open(log, "a", encoding="utf-8") as file:
        process = subprocess.Popen(
            words,
            cwd=study.ROOT,
            env={**cache, **os.environ},
            stdout=file,
            stderr=file,
        )
        os.sched_setaffinity(process.pid, cores)  # inherited by the threads that it will start
        try:
            code = process.wait(timeout=left)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
            code = 0
    if code:
        print(f"  failed with code {code}, see {log}", flush=True)

"""``sinewich bench merge``: the real command on files of its own, against a plain copy."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from sinewich_jax.bench.process import Cost, python, versions
from sinewich_jax.errors import ConfigError
from sinewich_jax.storage.leaf_writer import write_leaves
from sinewich_jax.storage.leaves import LeafSpec

# Sizes of the leaves of a model, as fractions of the largest; one each of the small ones.
_LARGEST = 10_000_000
_SHARES = (1.0, 0.25, 0.25, 0.1, 0.01, 0.001, 0.0001)
_SPREAD = 1e-3  # of the change that training made; that of the weights is 20 times as large

# The same bytes through NumPy and nothing else: every input read, one file written.
_COPY = """
import sys
import numpy as np
*inputs, out = sys.argv[1:]
for path in inputs:
    read = np.fromfile(path, np.uint8)
read.tofile(out)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of this part."""
    parser.add_argument("--rule", default="ties", help="the merge rule; ties when left out")
    parser.add_argument("--params", metavar="N", type=float, default=40e6, help="of each model")
    parser.add_argument("--experts", metavar="N", type=int, default=4)
    parser.add_argument("--repeats", metavar="N", type=int, default=5, help="the best is reported")
    parser.add_argument(
        "--dir", metavar="DIR", type=Path, help="where to make the input; a temporary folder"
    )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Makes the input, runs the command and the copy in turn, and reports the best of each.

    The files are in the page cache: what is measured is the merge, not the disk.
    """
    if arguments.params < 1 or arguments.experts < 2 or arguments.repeats < 1:
        raise ConfigError("expected at least 1 parameter, 2 experts and 1 repeat")
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="sinewich-bench-") as made:
        folder = Path(made)
        files = make_input(folder, round(arguments.params), arguments.experts)
        runs: list[Cost] = []
        copies: list[Cost] = []
        for number in range(arguments.repeats):
            copies.append(python(["-c", _COPY, *map(str, files), str(folder / "copy")]))
            (folder / "copy").unlink()
            runs.append(python(_command(arguments.rule, files, folder / f"out{number}")))
            for path in (folder / f"out{number}").iterdir():
                path.unlink()
        best, copy = (min(costs, key=lambda cost: cost.wall_s) for costs in (runs, copies))
    return {
        "rule": arguments.rule,
        "params": round(arguments.params),
        "experts": arguments.experts,
        "wall_s": round(best.wall_s, 3),
        "cpu_s": round(best.cpu_s, 3),
        "peak_rss_mb": round(max(cost.peak_rss_mb for cost in runs), 1),
        "io_ratio": round(best.wall_s / copy.wall_s, 2),
        "copy_wall_s": round(copy.wall_s, 3),
        "all_wall_s": [round(cost.wall_s, 3) for cost in runs],
        "repeats": arguments.repeats,
        "versions": versions(),
    }


def make_input(folder: Path, params: int, experts: int) -> list[Path]:
    """Writes a base and experts around it, Laplace changes of normal weights, from a fixed seed.

    Returns:
      The files, the base's first.
    """
    shapes = leaf_shapes(params)
    specs = {name: LeafSpec(shape, np.dtype(np.float32)) for name, shape in shapes.items()}
    paths = [folder / f"{name}.safetensors" for name in ("base", *range(experts))]
    for number, path in enumerate(paths):
        weights, changes = np.random.default_rng(0), np.random.default_rng([1, number])
        with write_leaves(path, specs) as writer:
            for name, shape in shapes.items():
                leaf = weights.standard_normal(shape, np.float32) * np.float32(20 * _SPREAD)
                if number:
                    leaf += changes.laplace(0.0, _SPREAD, shape).astype(np.float32)
                writer.write(name, leaf)
    return paths


def leaf_shapes(params: int) -> dict[str, tuple[int, ...]]:
    """Leaves of the sizes that a model has, from thousands to ten millions, ``params`` in all."""
    shapes: dict[str, tuple[int, ...]] = {}
    largest = min(_LARGEST, max(1, params // 2))
    left = params
    while left:
        for share in _SHARES:
            size = min(left, max(1, round(largest * share)))
            if size:
                width = next(w for w in (1024, 128, 1) if size % w == 0)
                shapes[f"block{len(shapes):03}/kernel"] = (size // width, width)
                left -= size
    return shapes


def _command(rule: str, files: list[Path], out: Path) -> list[str]:
    named = [f"--expert={path.stem}={path}" for path in files[1:]]
    return ["-m", "sinewich_jax", "merge", rule, f"--base={files[0]}", *named, f"--out={out}"]

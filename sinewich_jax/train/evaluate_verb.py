"""``sinewich evaluate WORKDIR``."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("workdir", metavar="WORKDIR", type=Path, help="a run's work directory")
    parser.add_argument(
        "--reference",
        metavar="RUN",
        type=Path,
        action="append",
        default=[],
        help="work directory of a finished single-task run; may be given once a task",
    )
    parser.add_argument(
        "--boundaries",
        action="store_true",
        help="also score edges by the boundary benchmark (odsF), about ten seconds an image",
    )
    parser.add_argument(
        "--resolution",
        choices=("train", "original"),
        help="score at the size of training or at that of each label file (default: as the run's "
        "config says)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Scores the newest checkpoint, rewrites the results and prints them."""
    from sinewich_jax.train import cache, evaluate

    cache.enable_compilation_cache()
    results = evaluate.evaluate_workdir(
        arguments.workdir,
        arguments.reference,
        boundaries=arguments.boundaries,
        resolution=arguments.resolution,
    )
    for name, row in results["tasks"].items():
        numbers = f"{_text(row['value'])} (mean label map {_text(row['baseline'])})"
        print(f"{name:<14}{row['metric']:<14}{numbers}")
        if "ods" in row["all"]:
            print(f"{name:<14}{'odsF':<14}{_text(row['all']['ods'])}")
    if results["delta_m"] is not None:
        print(f"Delta m       {results['delta_m']:+.2f} %")
    print(f"written: {arguments.workdir / 'results.md'}")
    return 0


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"

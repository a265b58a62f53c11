"""``sinewich evaluate WORKDIR [--weights FILE]``."""

from __future__ import annotations

import argparse
from pathlib import Path

from sinewich_jax.errors import ConfigError


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
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="score the run's model with these weights instead, and leave the run's results as "
        "they are: what 'sinewich merge' or 'sinewich switch apply' wrote, or FILE.swb@TASK",
    )
    parser.add_argument("--task", metavar="NAME", help="with --weights: score only this task")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="with --weights: write the scores there, as JSON"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="with --out: write over a file that is there"
    )


def run(arguments: argparse.Namespace) -> int:
    """Scores the newest checkpoint, rewrites the results and prints them."""
    if arguments.weights is not None:
        return _weights(arguments)
    for option in ("task", "out", "overwrite"):
        if getattr(arguments, option):
            raise ConfigError(f"--{option} goes with --weights; the run's results hold all tasks")
    from sinewich_jax.train import cache, evaluate

    cache.enable_compilation_cache()
    results = evaluate.evaluate_workdir(
        arguments.workdir,
        arguments.reference,
        boundaries=arguments.boundaries,
        resolution=arguments.resolution,
    )
    for name, row in results["tasks"].items():
        numbers = f"{_text(row['value'])} (mean label {_text(row['baseline'])})"
        print(f"{name:<14}{row['metric']:<14}{numbers}")
        if "ods" in row["all"]:
            print(f"{name:<14}{'odsF':<14}{_text(row['all']['ods'])}")
    if results["delta_m"] is not None:
        print(f"Delta m       {results['delta_m']:+.2f} %")
    print(f"written: {arguments.workdir / 'results.md'}")
    return 0


def _weights(arguments: argparse.Namespace) -> int:
    """Scores other weights in the run's model and prints them beside the run's own scores."""
    if arguments.reference or arguments.boundaries:
        option = "--reference" if arguments.reference else "--boundaries"
        raise ConfigError(f"{option} is about the run itself; leave out it or --weights")
    from sinewich_jax import storage
    from sinewich_jax.train import cache, evaluate_weights
    from sinewich_jax.train.switch_out import check_new

    if arguments.out is not None:
        inputs = {"the run": arguments.workdir, "the weights": Path(arguments.weights)}
        check_new(arguments.out, inputs, arguments.overwrite)

    cache.enable_compilation_cache()
    found = evaluate_weights.evaluate_weights(
        arguments.workdir, arguments.weights, arguments.task, resolution=arguments.resolution
    )
    for name, row in found["tasks"].items():
        own = "" if row["own"] is None else f" (the run itself {_text(row['own'])})"
        print(f"{name:<14}{row['metric']:<14}{_text(row['value'])}{own}")
    leaves = "1 leaf" if found["replaced"] == 1 else f"{found['replaced']} leaves"
    print(f"{leaves} of {arguments.weights}, {found['kept']} of the run")
    if arguments.out is not None:
        storage.write_json(arguments.out, found)
        print(f"written: {arguments.out}")
    return 0


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"

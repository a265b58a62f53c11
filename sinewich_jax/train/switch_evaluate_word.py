"""``sinewich switch evaluate FILE.swb NAME=WORKDIR ...``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sinewich_jax.train.switch_out import check_new
from sinewich_jax.train.switch_verb import bar, file, pairs, positive, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the word's arguments."""
    parser.add_argument("bank", metavar="FILE", help="a file of switches that has a router")
    parser.add_argument(
        "runs",
        metavar="NAME=WORKDIR",
        nargs="+",
        help="a task of the router, and the run on whose evaluation data it is scored",
    )
    parser.add_argument(
        "--base",
        metavar="PATH",
        type=Path,
        help="what the bank was packed with (default: what the first run started from)",
    )
    parser.add_argument(
        "--protocols",
        metavar="NAME",
        nargs="+",
        help="some of oracle, per_sample, top1, batch_mean, batch_top1 (default: all)",
    )
    parser.add_argument(
        "--batch",
        type=positive,
        default=256,
        metavar="N",
        help="images of one task in a batch, of which the batch protocols take the mean "
        "(default: 256)",
    )
    parser.add_argument(
        "--abstain", action="store_true", help="send images far from all examples to the base"
    )
    parser.add_argument(
        "--side", type=positive, metavar="PIXELS", help="height and width at which the base looks"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document in place of tables")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the scores there, as JSON")
    parser.add_argument("--overwrite", action="store_true", help="write over a file that is there")


def run(arguments: argparse.Namespace) -> int:
    """Prints the protocols side by side."""
    bank = file(arguments.bank)
    runs = pairs("a run", arguments.runs)
    if arguments.out is not None:
        inputs = {"the bank": bank} | {f"the run {n!r}": Path(path) for n, path in runs.items()}
        if arguments.base is not None:
            inputs["the base"] = arguments.base
        check_new(arguments.out, inputs, arguments.overwrite)
    from sinewich_jax import storage
    from sinewich_jax.switches.traffic import PROTOCOLS
    from sinewich_jax.train import cache, switch_evaluate

    cache.enable_compilation_cache()
    with bar("routing") as advance:
        found = switch_evaluate.evaluate_runs(
            bank,
            runs,
            arguments.base,
            protocols=arguments.protocols or PROTOCOLS,
            batch=arguments.batch,
            abstain=arguments.abstain,
            side=arguments.side,
            progress=advance,
        )
    say(found["notes"])
    print(json.dumps(found, indent=2) if arguments.json else switch_evaluate.table(found))
    if arguments.out is not None:
        storage.write_json(arguments.out, found)
        say([f"written: {arguments.out}"])
    return 0

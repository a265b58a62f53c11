"""``sinewich switch apply FILE.swb TASK --base PATH --out FILE.safetensors``."""

from __future__ import annotations

import argparse
from pathlib import Path

from sinewich_jax.errors import ConfigError
from sinewich_jax.train.switch_verb import bar, file, leaves, needed, number, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the word's arguments."""
    parser.add_argument("bank", metavar="FILE", help="a file of switches")
    parser.add_argument(
        "tasks",
        metavar="TASK[=WEIGHT]",
        nargs="+",
        help="the task to switch on, or several with their weights for a mixture",
    )
    parser.add_argument(
        "--base", metavar="PATH", type=Path, help="what the bank was packed with; it is checked"
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="a safetensors file")
    parser.add_argument("--weight", metavar="W", help="of a single task (default: 1)")
    parser.add_argument("--overwrite", action="store_true", help="write over a file that is there")


def run(arguments: argparse.Namespace) -> int:
    """Writes the base with tasks switched on."""
    from sinewich_jax.train import switch_leaves

    needed("apply", arguments, "base", "out")
    bank = file(arguments.bank)
    inputs = {"the bank": bank, "the base": arguments.base}
    switch_leaves.check_out(arguments.out, inputs, arguments.overwrite)
    weights = _weights(arguments.tasks, arguments.weight)
    with switch_leaves.opened_bank(bank, weights, arguments.base) as source:
        with bar("applying") as advance:
            switch_leaves.write(
                source, arguments.out, overwrite=arguments.overwrite, progress=advance
            )
        say(source.notes)
        changed = " + ".join(f"{weight:g} x {task}" for task, weight in weights.items())
        print(f"{leaves(len(source.names))} of {arguments.base} + {changed}")
    print(f"written: {arguments.out}")
    return 0


def _weights(texts: list[str], weight: str | None) -> dict[str, float]:
    weights: dict[str, float] = {}
    for text in texts:
        task, equals, value = text.partition("=")
        if task in weights:
            raise ConfigError(f"the task {task!r} is named twice; give it one weight")
        if len(texts) > 1 and not equals:
            raise ConfigError(
                f"found {len(texts)} tasks and no weight of {task!r}; a mixture needs TASK=WEIGHT "
                "of each"
            )
        weights[task] = number(f"the weight of {task!r}", value) if equals else 1.0
    if weight is not None:
        if len(texts) > 1 or "=" in texts[0]:
            raise ConfigError("--weight is for a single TASK; a mixture has TASK=WEIGHT of each")
        weights = dict.fromkeys(weights, number("--weight", weight))
    return weights

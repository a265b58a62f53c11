"""``sinewich bench PART --out FILE``: one module of this room for each part."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

# Part -> module with ``add_arguments(parser)``, ``measure(arguments) -> JSON`` and, if it has one,
# ``table(JSON) -> text``, which is printed in the place of the JSON.
PARTS = {
    "fusion": ("sinewich_jax.bench.fusion", "AdapterFusion: forward time by number of adapters"),
    "merge": ("sinewich_jax.bench.merge", "a merge of files: time, memory, ratio to a copy"),
    "optim": ("sinewich_jax.bench.optim", "optimizers: bytes of state, time of a step"),
    "switch": ("sinewich_jax.bench.switch", "task switches: rates, and bytes beside the entropy"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the parts, each with its own arguments."""
    parts = parser.add_subparsers(dest="part", metavar="PART", required=True)
    for name, (path, text) in PARTS.items():
        own = parts.add_parser(name, help=text, description=text)
        own.add_argument("--out", metavar="FILE", type=Path, required=True, help="a JSON file")
        importlib.import_module(path).add_arguments(own)


def run(arguments: argparse.Namespace) -> int:
    """Measures one part, prints the numbers and writes them."""
    import json

    from sinewich_jax.storage.atomic import write_json

    part = importlib.import_module(PARTS[arguments.part][0])
    found = part.measure(arguments)
    write_json(arguments.out, found)
    shown = getattr(part, "table", None)
    print(shown(found) if shown else json.dumps(found, indent=2, sort_keys=True))
    return 0

"""``sinewich switch inspect FILE.swb``: from the indexes alone, without JAX, in half a second."""

from __future__ import annotations

import argparse
import json
from typing import Any

from sinewich_jax.train.switch_verb import file, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the word's arguments."""
    parser.add_argument("bank", metavar="FILE", help="a file of switches")
    parser.add_argument("--leaves", action="store_true", help="a line for each leaf, too")
    parser.add_argument("--verify", action="store_true", help="read everything, all checksums too")
    parser.add_argument("--json", action="store_true", help="one JSON document in place of a table")


def run(arguments: argparse.Namespace) -> int:
    """Prints what the file holds."""
    from sinewich_jax.switches.bank import SwitchBank

    with SwitchBank.open(file(arguments.bank)) as bank:
        if arguments.verify:
            bank.verify()
        report, router = bank.report(), bank.router()
    if arguments.json:
        found = report.as_dict() | {"router": _router(router), "verified": arguments.verify}
        if not arguments.leaves:
            del found["leaves"]
        print(json.dumps(found, indent=2))
        return 0
    print(report.table(leaves=arguments.leaves))
    for name, meta in report.meta.items():
        if made := _made(meta):
            print(f"{name}: {made}")
    if router is not None:
        facts = _router(router)
        examples = ", ".join(f"{count} of {name}" for name, count in facts["examples"].items())
        print(f"router: {examples}; {facts['k']} neighbours; {facts['extractor']}")
    if arguments.verify:
        print("verified: every checksum holds and every task can be read")
    if report.tail:
        say([f"{report.tail} bytes behind the last commit were passed over: a writer was stopped"])
    return 0


def _made(meta: dict[str, Any]) -> str:
    """How a task was packed, as far as its record says so."""
    options = meta.get("options")
    if not isinstance(options, dict):  # whoever added it in Python has other words
        return ""
    words = [f"{name} {value}" for name, value in options.items()]
    words += [f"chosen by {meta['score']}"] if meta.get("score") else []
    words += [f"from {meta['source']}"] if meta.get("source") else []
    return ", ".join(words)


def _router(router: Any) -> dict[str, Any] | None:
    if router is None:
        return None
    counts = {name: int((router.queries.tasks == i).sum()) for i, name in enumerate(router.names)}
    return {
        "examples": counts,
        "width": int(router.queries.features.shape[1]),
        "k": int(router.k),
        "metric": router.metric,
        "threshold": router.threshold,
        "extractor": router.extractor,
    }

"""``sinewich switch route FILE.swb --base PATH [--queries NAME=FOLDER ...] [IMAGE ...]``."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from sinewich_jax.errors import ConfigError, did_you_mean
from sinewich_jax.train.switch_verb import bar, file, needed, pairs, positive, say

_MODES = ("per_sample", "top1", "batch_mean", "batch_top1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the word's arguments."""
    parser.add_argument("bank", metavar="FILE", help="a file of switches")
    parser.add_argument(
        "images",
        metavar="IMAGE",
        type=Path,
        nargs="*",
        help="JPEG or PNG files, folders of them, or a run for its evaluation images",
    )
    parser.add_argument(
        "--base",
        metavar="PATH",
        type=Path,
        help="what the bank was packed with, as a Swin of this library or a run; its frozen "
        "backbone looks at the images",
    )
    parser.add_argument(
        "--queries",
        metavar="NAME=PATH",
        action="append",
        default=[],
        help="examples of a task: a folder of images, or a run for its training images",
    )
    parser.add_argument("--save", action="store_true", help="keep the examples in the bank")
    parser.add_argument(
        "--examples", type=positive, default=100, metavar="N", help="a task (default: 100)"
    )
    parser.add_argument("--k", type=positive, default=10, help="neighbours (default: 10)")
    parser.add_argument("--metric", default="l2", help="l2 (default) or cosine")
    parser.add_argument(
        "--mode",
        default="per_sample",
        help=f"{', '.join(_MODES)}: each image for itself (default), or as was published, with all "
        "images as one batch of one task",
    )
    parser.add_argument(
        "--side", type=positive, metavar="PIXELS", help="height and width at which the base looks"
    )
    parser.add_argument(
        "--never-abstain", action="store_true", help="switch a task on however far an image is"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document in place of a table")


def run(arguments: argparse.Namespace) -> int:
    """Makes a router, keeps it, and asks it."""
    needed("route", arguments, "base")
    path = file(arguments.bank)
    examples = pairs("--queries", arguments.queries)
    if arguments.save and not examples:
        raise ConfigError("--save keeps examples and there are none; add --queries NAME=FOLDER")
    if not arguments.images and not arguments.save:
        raise ConfigError("nothing to do: name images to route, or --queries with --save")
    if arguments.mode not in _MODES:
        raise ConfigError(f"--mode is {arguments.mode!r}{did_you_mean(arguments.mode, _MODES)}")
    from sinewich_jax.switches.bank import SwitchBank
    from sinewich_jax.train import cache, switch_features, switch_origin, switch_route

    with SwitchBank.open(path) as bank:
        names, mark = bank.names, bank.base
        stored = None if examples else bank.router()
    for name in examples:
        if name not in names:
            raise ConfigError(f"the bank {path} has no task {name!r}{did_you_mean(name, names)}")
    if not examples and stored is None:
        raise ConfigError(
            f"the bank {path} has no router; make one with --queries NAME=FOLDER of each task, and "
            "keep it with --save"
        )
    cache.enable_compilation_cache()
    with switch_origin.opened_base(arguments.base, mark, path) as base:
        features = switch_features.Features(base, arguments.base, arguments.side)
    if examples:
        with bar("looking at examples") as advance:
            router = switch_route.make_router(
                features,
                {name: Path(place) for name, place in examples.items()},
                count=arguments.examples,
                progress=advance,
                k=arguments.k,
                metric=arguments.metric,
            )
    else:
        router = stored
    routes = []
    if arguments.images:
        routes = switch_route.route(
            router,
            features,
            arguments.images,
            arguments.mode,
            abstain=not arguments.never_abstain,
        )
    if arguments.save:  # last: whatever went wrong before leaves the bank as it was
        with SwitchBank.open(path, mode="a") as bank:
            bank.set_router(router)
    if examples and (left := [name for name in names if name not in examples]):
        say([f"there are no examples of {', '.join(left)}, so that no image goes there"])
    if arguments.json:
        print(json.dumps([_plain(one) for one in routes], indent=2))
        return 0
    if routes:
        print(switch_route.table(routes))
    if arguments.save:
        counts = [f"{(router.queries.tasks == i).sum()} of {n}" for i, n in enumerate(router.names)]
        print(f"examples kept in {path}: {', '.join(counts)}; {router.extractor}")
    return 0


def _plain(one) -> dict[str, object]:
    """A route for JSON, which has no infinity."""
    fields = one._asdict()
    if not math.isfinite(one.distance):
        fields["distance"] = None
    return fields

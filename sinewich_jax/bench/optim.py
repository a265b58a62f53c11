"""``sinewich bench optim``: what optimizers keep and take on the parameters of a Swin.

The fields of the file:

* ``backbone``, ``params``, ``param_bytes``: the tree whose state is counted, from shapes alone;
* ``rank`` of UMTAM's momentum and of GaLore's projection, ``stats_every`` of the tracker;
* ``optimizers``: by name ``state_bytes``, and as ``state_ratio`` these over the parameters' bytes;
  under ``update`` the optimizer's own part of a step (update and addition) on noise gradients:
  ``ms``, AdamW's ``reference_ms`` beside it, the median ``ratio`` of ``pairs`` runs in turn, and
  its ``quartiles``. A run of the tracker is ``stats_every`` updates, that of others is one; GaLore
  is timed between its SVDs;
* ``timed_backbone``: the tree that updates were timed on;
* ``training``: a whole step (forward, backward, AdamW) with the tracker over one without, likewise,
  in runs of ``stats_every`` steps; ``image``, ``batch``, and ``tracker_share``, the ratio less 1;
* ``versions``.
"""

from __future__ import annotations

import argparse
from typing import Any

from sinewich_jax.bench.process import versions
from sinewich_jax.errors import ConfigError

_EVERY = 10  # as runs record by default (merge_stats_every)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of this part."""
    whole = {"metavar": "N", "type": int}
    parser.add_argument("--backbone", default="swin_t", help="whose state is counted; swin_t")
    parser.add_argument("--timed", metavar="BACKBONE", help="what is timed, when another one")
    parser.add_argument("--rank", **whole, default=32, help="of UMTAM and GaLore; 32")
    parser.add_argument(
        "--stats-every", **whole, default=_EVERY, help=f"steps between recordings; {_EVERY}"
    )
    parser.add_argument("--image", **whole, default=224, help="pixels of a side; 224")
    parser.add_argument("--batch", **whole, default=2, help="images a training step; 2")
    parser.add_argument("--pairs", **whole, default=9, help="runs of each, in turn; 9")
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=float,
        default=60.0,
        help="the time for one optimizer's updates, after which no pair is begun; 60",
    )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Counts bytes, then times each optimizer's update and a training step with the tracker.

    Returns:
      The fields that the module describes.
    """
    for name in ("rank", "stats_every", "image", "batch", "pairs"):
        if getattr(arguments, name) < 1:
            raise ConfigError(
                f"--{name.replace('_', '-')} is {getattr(arguments, name)}; expected 1 or more"
            )
    import jax
    import optax

    from sinewich_jax.bench import optimizers

    every, timed = arguments.stats_every, arguments.timed or arguments.backbone
    params = optimizers.abstract_params(arguments.backbone)
    small = optimizers.abstract_params(timed)
    size = optimizers.size_of(params)
    found: dict[str, Any] = {}
    for name, tx in optimizers.optimizers(arguments.rank, every).items():
        count = optimizers.state_bytes(tx, params)
        found[name] = {"state_bytes": count, "state_ratio": round(count / size, 4)}
        if name != optimizers.REFERENCE:
            steps = every if name == optimizers.TRACKER else 1
            times = optimizers.update_pairs(
                tx, small, steps=steps, pairs=arguments.pairs, seconds=arguments.seconds
            )
            found[name]["update"] = times.summary(steps)
    training = optimizers.training_pairs(
        timed,
        image=arguments.image,
        batch=arguments.batch,
        stats_every=every,
        pairs=arguments.pairs,
    )
    whole = training.summary(every)
    return {
        "backbone": arguments.backbone,
        "timed_backbone": timed,
        "params": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "param_bytes": size,
        "rank": arguments.rank,
        "stats_every": every,
        "optimizers": found,
        "training": {
            "image": arguments.image,
            "batch": arguments.batch,
            "tracker_share": round(whole["ratio"] - 1, 4),
            **whole,
        },
        "versions": versions()
        | {"jax": jax.__version__, "optax": optax.__version__, "device": jax.default_backend()},
    }


def table(found: dict[str, Any]) -> str:
    """The numbers to read: a row an optimizer, and a line on the training step."""
    from sinewich_jax.report.tables import markdown_table

    headers = (
        "optimizer",
        "state MB",
        "/ parameters",
        "update ms",
        "/ AdamW",
        "quartiles",
        "pairs",
    )
    rows = []
    for name, one in found["optimizers"].items():
        row = [name, f"{one['state_bytes'] / 1e6:.1f}", f"{one['state_ratio']:.3f}"]
        update = one.get("update")
        if update is None:
            row += ["", "1", "", ""]
        else:
            row += [f"{update['ms']:.1f}", f"{update['ratio']:.2f}"]
            row += [_range(update["quartiles"], ".2f"), update["pairs"]]
        rows.append(row)
    step = found["training"]
    return (
        f"state on {found['backbone']} ({found['param_bytes'] / 1e6:.1f} MB of parameters, rank "
        f"{found['rank']}), updates on {found['timed_backbone']}\n\n"
        f"{markdown_table(headers, rows)}\n"
        f"a training step of {found['timed_backbone']} ({step['image']} pixels, batch "
        f"{step['batch']}, AdamW): {step['reference_ms']:.0f} ms; with the tracker "
        f"(stats_every={found['stats_every']}) {100 * step['tracker_share']:+.1f} %, quartiles "
        f"{_range([100 * (x - 1) for x in step['quartiles']], '+.1f')} % over {step['pairs']} pairs"
    )


def _range(pair: list[float], form: str) -> str:
    return " to ".join(format(number, form) for number in pair)

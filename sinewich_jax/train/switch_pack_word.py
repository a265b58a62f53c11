"""``sinewich switch pack --base PATH --expert NAME=PATH[@TASK] ... --out FILE.swb``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sinewich_jax.errors import ConfigError
from sinewich_jax.train.switch_verb import bar, needed, number, pairs, say, size
from sinewich_jax.train.switch_verb import leaves as counted

_SHOWN = 3  # names of leaves on one line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the word's arguments."""
    parser.add_argument(
        "--base",
        metavar="PATH",
        type=Path,
        help="what all experts started from: safetensors (also in shards), .npz, one of a run's "
        "checkpoints, or the run's work directory for what that run started from. Runs with "
        "adapters are packed as the kernels that these make where PATH is a plain backbone, and "
        "as factors where it is a run",
    )
    parser.add_argument(
        "--expert",
        metavar="NAME=PATH[@TASK]",
        action="append",
        default=[],
        help="a model that was trained from the base, and what its task is called; give it once "
        "for each. Of a run with adapters and several tasks one is taken: TASK, or that which is "
        "called NAME",
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="the bank, by custom NAME.swb")
    parser.add_argument(
        "--alpha", metavar="X", help="fraction that is dropped, or 'auto' (default: 0.6)"
    )
    parser.add_argument("--density", metavar="X", help="fraction that is kept, in place of --alpha")
    parser.add_argument(
        "--knob",
        metavar="NAME",
        help="by how much active entries move: l2_kept (the published one), l1 (least squares), "
        "l2_full (keeps the norm of the whole change)",
    )
    parser.add_argument(
        "--method", metavar="NAME", default="tswitch", help="tswitch (default) or bitdelta"
    )
    parser.add_argument(
        "--scope", metavar="NAME", help="thresholds of each leaf (default), or one: leaf, global"
    )
    parser.add_argument("--keep-dense", metavar="REGEX", help="leaves whose change is kept in full")
    parser.add_argument(
        "--only", metavar="REGEX", help="leaves to pack; all others stay those of the base"
    )
    parser.add_argument(
        "--stats",
        metavar="NAME=PATH",
        action="append",
        default=[],
        help="curvature of an expert, by which is chosen what is kept (curvature x change^2 in "
        "place of the size): leaves PATH/row and PATH/col or PATH/diag, or a run's work directory",
    )
    parser.add_argument("--append", action="store_true", help="add tasks to a bank that is there")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="write over a bank, or with --append over its tasks of these names",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be packed; write nothing"
    )


def run(arguments: argparse.Namespace) -> int:
    """Packs, or says what would be packed."""
    from sinewich_jax.train import switch_out, switch_pack, switch_plan

    experts = pairs("--expert", arguments.expert)
    needed("pack", arguments, "base", "expert", *(() if arguments.dry_run else ("out",)))
    options = switch_pack.method_options(
        arguments.method,
        alpha=_fraction("--alpha", arguments.alpha),
        density=_fraction("--density", arguments.density),
        knob=arguments.knob,
        scope=arguments.scope,
    )
    stats = pairs("--stats", arguments.stats)
    if arguments.out is not None:  # before anything is read
        inputs = switch_out.inputs_of(arguments.base, experts, stats)
        switch_out.check_target(
            arguments.out, list(experts), inputs, arguments.append, arguments.overwrite
        )
    with switch_plan.planned(
        arguments.base,
        experts,
        stats=stats or None,
        only=arguments.only,
        keep_dense=arguments.keep_dense,
    ) as plan:
        if arguments.dry_run:
            _show(plan, options)
            return 0
        with bar("packing") as advance:
            packed = switch_pack.pack(
                plan,
                arguments.out,
                options,
                append=arguments.append,
                overwrite=arguments.overwrite,
                progress=advance,
            )
    print(packed.report.table())
    say(packed.notes)
    print(f"written: {packed.path}")
    return 0


def _show(plan: Any, options: dict[str, Any]) -> None:
    print(", ".join(f"{name} {value}" for name, value in options.items()))
    for expert in plan.experts:
        print(f"{expert.name}: {expert.source.path}")
        for title, leaves in (
            ("  switched     ", expert.switched),
            ("  kept in full ", expert.dense),
            ("  must agree   ", expert.same),
            ("  of its own   ", expert.own),
        ):
            if leaves:
                print(f"{title}{_listed(leaves)}")
        entries = sum(_entries(plan.base.spec(leaf)) for leaf in expert.switched)
        dense = sum(plan.base.spec(leaf).nbytes for leaf in expert.dense)
        dense += sum(expert.source.spec(leaf).nbytes for leaf in expert.own)
        print(f"  takes        at most about {size(2 * entries / 8 + dense)}")
    if plan.left:
        print(f"as the base: {_listed(plan.left)}")
    say(plan.notes)
    print("nothing was read or written (--dry-run)")


def _fraction(option: str, text: str | None) -> float | str | None:
    if text is None or text == "auto":
        if text and option != "--alpha":
            raise ConfigError(f"{option} is {text!r}, expected a number; 'auto' is an --alpha")
        return text
    return number(option, text)


def _entries(spec: Any) -> int:
    return spec.nbytes // spec.dtype.itemsize


def _listed(leaves: tuple[str, ...]) -> str:
    more = f", ... {leaves[-1]}" if len(leaves) > _SHOWN else ""
    return f"{counted(len(leaves))}: {', '.join(leaves[:_SHOWN])}{more}"

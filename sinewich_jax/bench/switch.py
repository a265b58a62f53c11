"""``sinewich bench switch``: task switches made, written, read, applied and merged.

The fields of the file; a rate is entries a second by the median time of ``pairs`` runs, a ``speed``
the median of that beside a reference which was timed in turn, with its ``quartiles``:

* ``params`` of a Laplace task vector, ``leaves``, the discard ratio ``alpha``;
* ``select``: thresholds of both signs; the reference is one ``np.partition`` of the magnitudes;
* ``pack``: planes and knobs once thresholds are known, with NumPy and under ``jax`` with JAX; the
  reference is a copy;
* ``make``: ``make_switch`` altogether; the reference is a copy;
* ``code``: by density, the rates of ``encode`` and ``decode`` of masks and signs;
* ``storage``: by density, ``file_bytes`` of a bank of one task, ``bound_bytes`` by the entropy,
  their ratio ``file_ratio``, by how many bytes a leaf the file is above 1.02 times the bound
  (``beyond_per_leaf``), the ratio of masks and signs alone ``payload_ratio``,
  ``bits_per_parameter`` on the disk, and how many leaves took which of the ``codecs``;
* ``apply``: a switch added in place, with NumPy and under ``jax`` donated to a compiled function;
  the reference adds 1 in place;
* ``merge``: ``tasks`` switches at once over one switch, as ``time_ratio``, likewise twice;
* ``bank``: ``write_ms`` and ``read_ms`` of a file with one task at ``alpha``, ``open_ms`` to its
  index; ``inspect_s`` is the wall time of ``sinewich switch inspect`` on it, the interpreter's
  start included, the least of its runs;
* ``versions``.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

from sinewich_jax.bench.process import python, versions
from sinewich_jax.errors import ConfigError

LEAST = 1000
"""Parameters of the smallest task vector, of which any density leaves some."""

_CODED = (0.1, 0.4)
STORED = (0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.01)
_TASKS = 4
_INSPECTIONS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of this part."""
    parser.add_argument(
        "--params", metavar="N", type=float, default=50e6, help="of the task vector; 50e6"
    )
    parser.add_argument("--pairs", metavar="N", type=int, default=9, help="runs of each; 9")
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=float,
        default=60.0,
        help="the time for one measurement, after which no pair is begun; 60",
    )
    parser.add_argument(
        "--dir", metavar="DIR", type=Path, help="where to write banks; a temporary folder"
    )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Makes the task vector and measures one operation after the other.

    Returns:
      The fields that the module describes.
    """
    if not LEAST <= arguments.params < math.inf:
        raise ConfigError(
            f"--params is {arguments.params:g}, expected a number from {LEAST}: of fewer nothing "
            "may be left at a density of 0.01"
        )
    if arguments.pairs < 1:
        raise ConfigError(f"--pairs is {arguments.pairs}, expected at least 1")
    import jax

    from sinewich_jax.bench import switch_runs as runs
    from sinewich_jax.switches.make import make_switch

    params = round(arguments.params)
    timer = runs.timer(arguments.pairs, arguments.seconds)
    delta = runs.task_vector(params)
    found: dict[str, Any] = {"params": params, "leaves": len(delta), "alpha": runs.ALPHA}
    found["select"] = runs.share(runs.select(delta, timer), params)
    found["pack"] = runs.share(runs.pack(delta, timer), params)
    found["pack"]["jax"] = runs.share(runs.pack_traced(delta, timer), params)
    found["make"] = runs.share(runs.whole(delta, timer), params)
    found["code"], found["storage"] = {}, {}
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="sinewich-bench-") as made:
        path = Path(made) / "bank.swb"
        for density in STORED:
            switch = make_switch(delta, density=density)
            found["storage"][str(density)] = runs.storage(path, switch)
            if density in _CODED:
                times = runs.code(switch, timer)
                found["code"][str(density)] = {
                    "encode": runs.rate(times.first_s, params),
                    "decode": runs.rate(times.second_s, params),
                    "pairs": len(times.ratios),
                }
        del delta
        switches = [
            make_switch(runs.task_vector(params, seed), alpha=runs.ALPHA) for seed in range(_TASKS)
        ]
        found["bank"] = _bank(path, switches[0], timer)
    base = runs.task_vector(params, _TASKS)
    found["apply"] = runs.share(runs.apply_host(base, switches[0], timer), params)
    found["apply"]["jax"] = runs.share(runs.apply_traced(base, switches[0], timer), params)
    found["merge"] = _merged(runs.merge_host(base, switches, timer))
    found["merge"]["jax"] = _merged(runs.merge_traced(base, switches, timer))
    found["merge"]["tasks"] = _TASKS
    found["versions"] = versions() | {"jax": jax.__version__, "device": jax.default_backend()}
    return found


def table(found: dict[str, Any]) -> str:
    """The numbers to read: a row an operation, and a row a density."""
    from sinewich_jax.report.tables import markdown_table

    rows = []
    for name, reference in (
        ("select", "np.partition"),
        ("pack", "a copy"),
        ("make", "a copy"),
        ("apply", "a donated add"),
    ):
        for where, one in (("NumPy", found[name]), ("JAX", found[name].get("jax"))):
            if one:
                speed = f"{one['speed']:.2f} of {reference}"
                quartiles = " to ".join(f"{q:.2f}" for q in one["quartiles"])
                rows.append([name, where, _mega(one["per_s"]), speed, quartiles, one["pairs"]])
    for density, one in found["code"].items():
        for name in ("encode", "decode"):
            rows.append([f"{name} at {density}", "NumPy", _mega(one[name]), "", "", one["pairs"]])
    headers = ("operation", "with", "M entries/s", "speed", "quartiles", "pairs")
    stored = [
        [
            density,
            f"{one['file_bytes'] / 1e6:.3f}",
            f"{one['bits_per_parameter']:.3f}",
            f"{one['file_ratio']:.4f}",
            f"{one['payload_ratio']:.4f}",
            ", ".join(f"{name} {count}" for name, count in one["codecs"].items()),
        ]
        for density, one in found["storage"].items()
    ]
    merge, bank = found["merge"], found["bank"]
    return (
        f"{found['params']} parameters in {found['leaves']} leaves\n\n"
        f"{markdown_table(headers, rows)}\n"
        f"{merge['tasks']} switches at once take {merge['time_ratio']:.2f} times one (NumPy), "
        f"{merge['jax']['time_ratio']:.2f} times (JAX)\n"
        f"bank of one task: written in {bank['write_ms']:.0f} ms, read in {bank['read_ms']:.0f} "
        f"ms, opened in {bank['open_ms']:.1f} ms; inspect takes {bank['inspect_s']:.2f} s\n\n"
        + markdown_table(
            ("density", "file MB", "bits/param", "/ bound", "payload / bound", "mask codecs"),
            stored,
        )
    )


def _bank(path: Path, switch: Any, timer: Any) -> dict[str, float]:
    from sinewich_jax.bench import switch_runs as runs

    whole, start = runs.bank_times(path, switch, timer)
    command = ["-m", "sinewich_jax", "switch", "inspect", str(path)]
    walls = [python(command).wall_s for _ in range(_INSPECTIONS)]
    return {
        "write_ms": round(1e3 * statistics.median(whole.first_s), 2),
        "read_ms": round(1e3 * statistics.median(whole.second_s), 2),
        "open_ms": round(1e3 * statistics.median(start.first_s), 3),
        "inspect_s": round(min(walls), 3),
    }


def _merged(pairs: Any) -> dict[str, Any]:
    found = pairs.summary()
    found["time_ratio"] = found.pop("ratio")
    return found


def _mega(rate: int) -> str:
    return f"{rate / 1e6:.0f}"

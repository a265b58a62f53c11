"""The programs that ``sinewich bench switch`` times, on leaves of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sinewich_jax.bench.merge import leaf_shapes
from sinewich_jax.bench.pairs import Pairs, interleaved, quartiles
from sinewich_jax.core.ternary import entropy_bits
from sinewich_jax.switches import codecs
from sinewich_jax.switches.apply import apply_switch, merge_switches, stack_switches
from sinewich_jax.switches.bank import SwitchBank
from sinewich_jax.switches.leaf import Switch
from sinewich_jax.switches.make import make_switch
from sinewich_jax.switches.planes import encode
from sinewich_jax.switches.selection import Cut, How, leaf_cuts

Tree = dict[str, np.ndarray]
Timer = Callable[[Callable[[], object], Callable[[], object]], Pairs]

ALPHA = 0.6  # the published discard ratio
_SPREAD = 1e-3
_OFFICIAL = How(sign_split=True, exact=False, compat=False)


def task_vector(params: int, seed: int = 0) -> Tree:
    """Laplace changes of leaves from thousands to ten millions, the same for the same seed."""
    leaves = {}
    for number, (name, shape) in enumerate(leaf_shapes(params).items()):
        rng = np.random.default_rng([seed, number])
        # The difference of two exponential variables is a Laplace variable.
        leaf = rng.standard_exponential(shape, np.float32)
        leaf -= rng.standard_exponential(shape, np.float32)
        leaves[name] = leaf * np.float32(_SPREAD)
    return leaves


def select(delta: Tree, timer: Timer) -> Pairs:
    """``np.partition`` of the magnitudes, and the search for the thresholds of both signs."""
    sizes = {name: np.abs(leaf).ravel() for name, leaf in delta.items()}

    def partition() -> None:
        for leaf in sizes.values():
            np.partition(leaf, int(leaf.size * ALPHA))

    return timer(partition, lambda: _cuts(delta))


def pack(delta: Tree, timer: Timer) -> Pairs:
    """A copy of the task vector, and planes and knobs once thresholds are known."""
    cuts, target = _cuts(delta), {name: np.empty_like(leaf) for name, leaf in delta.items()}

    def copy() -> None:
        for name, leaf in delta.items():
            np.copyto(target[name], leaf)

    def packed() -> None:
        for name, leaf in delta.items():
            encode(leaf, None, cuts[name], "l2_kept", by_row=False)

    return timer(copy, packed)


def pack_traced(delta: Tree, timer: Timer) -> Pairs:
    """Likewise with JAX."""
    import jax
    import jax.numpy as jnp

    arrays = jax.tree.map(jnp.asarray, delta)
    thresholds = {
        name: [jnp.asarray(cut.threshold) for cut in cuts] for name, cuts in _cuts(delta).items()
    }

    def planes(leaf: Any, above: list[Any]) -> Any:
        cuts = [Cut(side, at, None) for side, at in zip(_OFFICIAL.sides, above, strict=True)]
        return encode(leaf, None, cuts, "l2_kept", by_row=False)

    run = jax.jit(lambda leaves, cuts: {n: planes(leaf, cuts[n]) for n, leaf in leaves.items()})
    copy = jax.jit(lambda leaves: jax.tree.map(jnp.copy, leaves))
    return timer(
        lambda: jax.block_until_ready(copy(arrays)),
        lambda: jax.block_until_ready(run(arrays, thresholds)),
    )


def whole(delta: Tree, timer: Timer) -> Pairs:
    """A copy, and ``make_switch`` as it stands."""
    return timer(
        lambda: [leaf.copy() for leaf in delta.values()], lambda: make_switch(delta, alpha=ALPHA)
    )


def code(switch: Switch, timer: Timer) -> Pairs:
    """Masks and signs to bytes, and back."""
    written: dict[str, tuple[str, bytes, bytes]] = {}

    def encoded() -> None:
        for name, leaf in switch.leaves.items():
            mask = codecs.encode_mask(leaf.mask, leaf.size)
            written[name] = (*mask, codecs.gather(leaf.sign, leaf.mask, leaf.size))

    counts = {name: _active(leaf) for name, leaf in switch.leaves.items()}

    def decoded() -> None:
        for name, leaf in switch.leaves.items():
            codec, blob, signs = written[name]
            mask = codecs.decode_mask(codec, blob, leaf.size, counts[name])
            codecs.scatter(signs, mask, leaf.size, counts[name])

    return timer(encoded, decoded)


def storage(path: Path, switch: Switch) -> dict[str, Any]:
    """A bank of this one switch: bytes of the file and of its parts, codecs, entropy bound."""
    with SwitchBank.create(path, overwrite=True) as bank:
        bank.add("task", switch)
        (found,) = bank.report().tasks
        entries = bank.entries("task")
        size = bank.nbytes
    bound = sum(entropy_bits(leaf.size, _active(leaf)) for leaf in switch.leaves.values()) / 8
    params = sum(leaf.size for leaf in switch.leaves.values())
    chosen = [entry.mask.codec for entry in entries]
    return {
        "file_bytes": size,
        "bound_bytes": round(bound),
        "file_ratio": round(size / bound, 4),
        "beyond_per_leaf": round((size - 1.02 * bound) / len(switch.leaves), 1),
        "payload_ratio": round((found.mask + found.sign) / bound, 4),
        "bits_per_parameter": round(8 * size / params, 4),
        "codecs": {name: chosen.count(name) for name in sorted(set(chosen))},
    }


def apply_host(base: Tree, switch: Switch, timer: Timer) -> Pairs:
    """One added to every entry in place, and a switch added in place; the base is spent."""

    def add() -> None:
        for leaf in base.values():
            np.add(leaf, np.float32(1), out=leaf)

    return timer(add, lambda: apply_switch(base, switch, in_place=True))


def merge_host(base: Tree, switches: list[Switch], timer: Timer) -> Pairs:
    """One switch added to a new tree, and several."""
    named = {str(number): switch for number, switch in enumerate(switches)}
    weights = dict.fromkeys(named, 0.3)
    return timer(
        lambda: apply_switch(base, switches[0], 0.3), lambda: merge_switches(base, named, weights)
    )


def apply_traced(base: Tree, switch: Switch, timer: Timer) -> Pairs:
    """:func:`apply_host` with JAX: the trees are donated to compiled functions."""
    import jax

    def add(tree: Any, _: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf + 1, tree)

    return timer(_donated(add, base, switch), _donated(apply_switch, base, switch))


def merge_traced(base: Tree, switches: list[Switch], timer: Timer) -> Pairs:
    """:func:`merge_host` with JAX, likewise."""
    weights = np.full(len(switches), 0.3, np.float32)
    stack = stack_switches(switches)
    one = functools.partial(apply_switch, weight=0.3)
    many = functools.partial(merge_switches, weights=weights)
    return timer(_donated(one, base, switches[0]), _donated(many, base, stack))


def bank_times(path: Path, switch: Switch, timer: Timer) -> tuple[Pairs, Pairs]:
    """A file written and read back whole; and opened, and one leaf read."""

    def write() -> None:
        with SwitchBank.create(path, overwrite=True) as bank:
            bank.add("task", switch)

    def read() -> None:
        with SwitchBank.open(path) as bank:
            bank.get("task")

    def look() -> None:
        with SwitchBank.open(path) as bank:
            bank.entries("task")

    return timer(write, read), timer(look, read)


def share(pairs: Pairs, params: int) -> dict[str, Any]:
    """Entries a second of the second program, and how fast it is beside the first."""
    lower, middle, upper = quartiles(tuple(1 / ratio for ratio in pairs.ratios))
    return {
        "per_s": rate(pairs.second_s, params),
        "reference_per_s": rate(pairs.first_s, params),
        "speed": round(middle, 4),
        "quartiles": [round(lower, 4), round(upper, 4)],
        "pairs": len(pairs.ratios),
    }


def rate(seconds: tuple[float, ...], params: int) -> int:
    """Entries a second by the median time, to four digits."""
    return int(float(f"{params / quartiles(seconds)[1]:.4g}"))


def timer(pairs: int, seconds: float) -> Timer:
    """Runs both programs once, for what is made on first use, and then in turn."""

    def run(first: Callable[[], object], second: Callable[[], object]) -> Pairs:
        first(), second()
        return interleaved(first, second, pairs, seconds)

    return run


def _donated(function: Callable[[Any, Any], Any], base: Tree, given: Any) -> Callable[[], object]:
    """A compiled function of a tree that goes on from where it stopped, in the same memory."""
    import jax
    import jax.numpy as jnp

    step = jax.jit(function, donate_argnums=0)
    carry = [jax.tree.map(jnp.array, base)]
    given = jax.tree.map(jnp.asarray, given)

    def run() -> None:
        carry[0] = step(carry[0], given)
        jax.block_until_ready(carry[0])

    return run


def _cuts(delta: Tree) -> dict[str, list[Cut]]:
    return {name: leaf_cuts(leaf, None, 1 - ALPHA, _OFFICIAL) for name, leaf in delta.items()}


def _active(leaf: Any) -> int:
    return int(np.bitwise_count(leaf.mask).sum(dtype=np.int64))

"""Serving a batch whose samples go to different tasks: one merged tree for each distinct route.

A model whose weights depend on the sample cannot run a batch at once. Votes of k neighbours take
few distinct values, so samples are grouped by route; a tree is merged once a route, kept while it
is among the last used, and applied to its group. For small models ``vmap`` merges one tree a sample
inside one program.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sinewich_jax.core.trees import flatten_paths, map_paths
from sinewich_jax.errors import ConfigError, DataError, did_you_mean
from sinewich_jax.switches.leaf import Switch, register_pytrees
from sinewich_jax.switches.router import Routing

Array = Any
Tree = Any
LEVELS = 2520
"""The least common multiple of 1 to 10: votes of up to ten neighbours are exact multiples of it."""

STRATEGIES = ("group", "vmap")


class Routes(NamedTuple):
    """The distinct routes of a batch.

    Attributes:
      counts: int64 (D, T), weights in units of 1 / levels.
      group: int (B,), the row of ``counts`` a sample goes to.
    """

    counts: np.ndarray
    group: np.ndarray

    @property
    def sizes(self) -> list[int]:
        """Samples of each route."""
        return np.bincount(self.group, minlength=len(self.counts)).tolist()

    @property
    def forwards(self) -> int:
        """Rows that go through a model, with the padding of each group."""
        return sum(map(padded_size, self.sizes))


class Dispatched(NamedTuple):
    """The outputs of a batch and what they cost.

    Attributes:
      outputs: what the model gives, as NumPy, in the order of the samples.
      trees: distinct routes, the base among them.
      merged: trees that had to be merged.
      hits: trees that were found in the cache.
      multiplier: rows that went through a model, with padding, for each sample.
    """

    outputs: Tree
    trees: int
    merged: int
    hits: int
    multiplier: float


def group_routes(weights: Array, levels: int = LEVELS) -> Routes:
    """Samples by equal weights, once these are rounded to multiples of ``1 / levels``.

    Args:
      weights: (B, T), at least one sample.
      levels: a multiple of every k whose votes are to stay exact.

    Raises:
      DataError: weights that are no finite matrix with a row, or beyond ``2**53 / levels``.
    """
    weights = np.asarray(weights)
    if weights.ndim != 2 or not weights.size or not np.isfinite(weights).all():
        raise DataError(
            f"weights have shape {weights.shape}; expected finite numbers (B, T), one row a sample"
        )
    counts = np.rint(weights.astype(np.float64) * levels)
    if np.abs(counts).max() > 2**53:  # no longer exact, and soon beyond int64
        raise DataError(
            f"weights reach {np.abs(weights).max():g}; expected at most {2**53 / levels:g}, below "
            f"which multiples of 1 / {levels} can be told apart"
        )
    counts, group = np.unique(counts.astype(np.int64), axis=0, return_inverse=True)
    return Routes(counts, group.reshape(-1))


def padded_size(size: int) -> int:
    """The power of two that a group is filled up to, so that few shapes are compiled."""
    return 1 << (size - 1).bit_length()


class Dispatcher:
    """Applies a model to samples, each with the weights of its route."""

    def __init__(
        self,
        apply_fn: Callable[[Tree, Any], Any],
        base: Tree,
        switches: Mapping[str, Switch],
        *,
        names: Sequence[str] | None = None,
        strategy: str = "group",
        cache: int = 8,
        levels: int = LEVELS,
    ) -> None:
        """Keeps references only; nothing is merged yet.

        Args:
          apply_fn: ``apply_fn(tree, inputs)`` to outputs, both with one row a sample (arrays or
            trees of them). Jit it: groups come in powers of two.
          base: the parameters that all switches change.
          switches: by name.
          names: what the columns of weights mean; ``router.names``, or the order of ``switches``.
          strategy: ``"group"``, or ``"vmap"`` for small models: one merged tree a sample, in
            memory together.
          cache: merged trees to keep beside the base; 0 keeps none.
          levels: see :func:`group_routes`. Weights between multiples of ``1 / levels`` are rounded
            (by ``"vmap"`` not).

        Raises:
          ConfigError: another strategy, a name without a switch, a negative size.
        """
        if strategy == "dense":
            raise ConfigError(
                "the strategy 'dense' would mix the outputs of one forward pass a task, and a mix "
                "of outputs is not the output of mixed weights; use 'group' or 'vmap'"
            )
        if strategy not in STRATEGIES:
            raise ConfigError(f"the strategy is {strategy!r}{did_you_mean(strategy, STRATEGIES)}")
        if cache < 0 or levels < 1:
            raise ConfigError(f"cache is {cache} and levels {levels}; expected at least 0 and 1")
        names = tuple(switches) if names is None else tuple(names)
        for name in names:
            if name not in switches:
                hint = did_you_mean(name, switches)
                raise ConfigError(f"weights are for a task {name!r} without a switch{hint}")
        self._apply, self._base, self._levels = apply_fn, base, levels
        self._switches = {name: switches[name] for name in names}
        self._strategy, self._size = strategy, cache
        self._trees: collections.OrderedDict[bytes, Tree] = collections.OrderedDict()
        self._mapped: Callable[..., Any] | None = None

    def __call__(self, inputs: Any, weights: Array | Routing) -> Dispatched:
        """Runs a batch.

        Args:
          inputs: arrays or a tree of them, one row a sample.
          weights: (B, T), or what a :class:`~sinewich_jax.switches.router.Router` gives; a row of
            zeros runs the base.

        Raises:
          DataError: weights that are no finite matrix of one row a sample and one column a switch,
            or outputs without one row a sample.
        """
        if isinstance(weights, Routing):
            weights = weights.weights
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused as infinity
            weights = np.asarray(weights, np.float32)
        routes = group_routes(weights, self._levels)
        if weights.shape[1] != len(self._switches):
            raise DataError(
                f"weights have {weights.shape[1]} columns for the switches "
                f"{list(self._switches)}; expected one each, in this order"
            )
        for path, leaf in flatten_paths(inputs).items():
            if np.shape(leaf)[:1] != weights.shape[:1]:
                raise DataError(
                    f"inputs {path!r} have shape {np.shape(leaf)} for {len(weights)} rows of "
                    "weights; expected one row a sample"
                )
        return (self._grouped if self._strategy == "group" else self._vmapped)(
            inputs, weights, routes
        )

    def _grouped(self, inputs: Any, weights: np.ndarray, routes: Routes) -> Dispatched:
        merged = hits = 0
        order, parts = [], []
        for route, counts in enumerate(routes.counts):
            tree, source = self._tree(counts)
            merged += source == "merged"
            hits += source == "cache"
            rows = np.flatnonzero(routes.group == route)
            outputs = self._apply(tree, _take(inputs, _padded(rows)))
            order.append(rows)
            parts.append((outputs, len(rows)))
        # Only now wait for what was started: groups of an accelerator overlap with merging.
        pieces = [_host(outputs, size) for outputs, size in parts]
        place = np.argsort(np.concatenate(order))
        flat = [flatten_paths(piece) for piece in pieces]
        outputs = map_paths(
            lambda path, _: np.concatenate([piece[path] for piece in flat])[place], pieces[0]
        )
        count = len(weights)
        return Dispatched(outputs, len(flat), merged, hits, routes.forwards / count)

    def _vmapped(self, inputs: Any, weights: np.ndarray, routes: Routes) -> Dispatched:
        count = len(weights)
        rows = _padded(np.arange(count))
        outputs = self._mapping()(self._base, self._switches, weights[rows], _take(inputs, rows))
        multiplier = len(rows) / count
        return Dispatched(_host(outputs, count), len(routes.counts), len(rows), 0, multiplier)

    def _tree(self, counts: np.ndarray) -> tuple[Tree, str]:
        """The tree of a route, a function of its counts alone, and where it came from."""
        from sinewich_jax.switches.apply import merge_switches

        if not counts.any():
            return self._base, "base"
        key = counts.tobytes()
        if key in self._trees:
            self._trees.move_to_end(key)
            return self._trees[key], "cache"
        if self._size and len(self._trees) >= self._size:
            self._trees.popitem(last=False)  # before the next one is made: memory holds ``cache``
        tree = merge_switches(self._base, self._switches, np.float32(counts / self._levels))
        if self._size:
            self._trees[key] = tree
        return tree, "merged"

    def _mapping(self) -> Callable[..., Any]:
        """One program that merges and applies a tree for every sample."""
        if self._mapped is None:
            import jax

            from sinewich_jax.switches.apply import merge_switches

            register_pytrees()

            def one(base: Tree, switches: Any, weights: Array, sample: Any) -> Any:
                tree = merge_switches(base, switches, weights)
                outputs = self._apply(tree, jax.tree.map(lambda leaf: leaf[None], sample))
                return jax.tree.map(lambda leaf: leaf[0], outputs)

            self._mapped = jax.jit(jax.vmap(one, in_axes=(None, None, 0, 0)))
        return self._mapped


def _padded(rows: np.ndarray) -> np.ndarray:
    """Rows with the first of them repeated up to the next power of two."""
    return np.concatenate([rows, np.repeat(rows[:1], padded_size(len(rows)) - len(rows))])


def _take(tree: Any, rows: np.ndarray) -> Any:
    return map_paths(lambda _, leaf: leaf[rows], tree)


def _host(outputs: Any, size: int) -> Any:
    """The first rows as NumPy: cutting on the device would compile a program for every size."""

    def cut(path: str, leaf: Any) -> np.ndarray:
        if np.shape(leaf)[:1] != (padded_size(size),):
            raise DataError(
                f"outputs {path!r} of apply_fn have shape {np.shape(leaf)} for "
                f"{padded_size(size)} samples; expected one row a sample"
            )
        return np.asarray(leaf)[:size]

    return map_paths(cut, outputs)

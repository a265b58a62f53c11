"""``merge``: looks the rule up, checks the trees, and hands it the leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from sinewich_jax.core.arrays import content, dtype_of, namespace, widen
from sinewich_jax.core.trees import map_paths
from sinewich_jax.errors import ConfigError
from sinewich_jax.merging.align import check_integers, matched
from sinewich_jax.merging.conditional import TaskConditional
from sinewich_jax.merging.leaf import Leaf
from sinewich_jax.merging.registry import Rule, check_options, find, results
from sinewich_jax.merging.statistics import WORDS, by_leaf


def merge(
    rule: str,
    base: Any,
    experts: Mapping[str, Any],
    *,
    stats: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """One model out of several that were trained from one base.

    Args:
      rule: the name of a rule, see :func:`sinewich_jax.merging.rules`.
      base: the tree that all experts started from.
      experts: the trained trees by name; same paths and shapes as ``base``.
      stats: for rules that need one, the statistic of each expert by name: a tree with the paths of
        ``base`` and at each leaf a :class:`~sinewich_jax.core.curvature.Factored` or ``Diagonal``
        curvature, an array of Fisher information in the leaf's shape, or a Gram matrix.
      **options: those of the rule.

    Returns:
      A tree like ``base``, in its containers and dtypes; for a conditional rule a
      :class:`~sinewich_jax.merging.conditional.TaskConditional`, whose ``select(name)`` is such a
      tree. Each leaf is computed in float32 at least. Integer leaves have to agree and stay as they
      are.

    Raises:
      ConfigError: for an unknown rule or option (the nearest name is offered), or statistics that
        the rule needs and did not get.
      SinewichError: when the trees or the statistics do not fit, or hold NaN or infinity; expert
        and leaf are named.
    """
    chosen = find(rule)
    check_options(chosen, options)
    if not isinstance(experts, Mapping) or not experts:
        raise ConfigError(
            f"experts must be a mapping from names to at least one tree, found {experts!r:.60}"
        )
    flat = {}
    for name, tree in experts.items():
        flat_base, flat[name] = matched(base, tree, f"the expert {name!r}")
        check_integers(flat_base, flat[name], f"the expert {name!r}")
    leaves = TreeLeaves(flat_base, flat, flat_stats(chosen, experts, stats), base)
    found = dict(results(chosen, leaves, options))
    if chosen.conditional:
        return TaskConditional(base, tuple(experts), found)
    return leaves.rebuild(found)


class TreeLeaves(NamedTuple):
    """:class:`~sinewich_jax.merging.registry.Leaves` of trees in memory.

    Attributes:
      base: path to array.
      experts: name to path to array.
      stats: name to path to statistic, or None where the rule needs none.
      tree: the base in its containers.
    """

    base: dict[str, Any]
    experts: dict[str, dict[str, Any]]
    stats: dict[str, dict[str, Any]] | None
    tree: Any = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the experts."""
        return tuple(self.experts)

    def rebuild(self, found: Mapping[str, Any]) -> Any:
        """The base with new arrays at some of its paths, in its containers and dtypes."""
        return map_paths(
            lambda path, leaf: found[path].astype(dtype_of(leaf)) if path in found else leaf,
            self.tree,
        )

    def __iter__(self) -> Iterator[Leaf]:
        """The leaves that hold reals, one at a time."""
        for path, leaf in sorted(self.base.items()):  # as files are read, ties fall alike
            if content(leaf) == "real":
                arrays = [leaf, *(flat[path] for flat in self.experts.values())]
                own = () if self.stats is None else (s.get(path) for s in self.stats.values())
                yield view(path, arrays, tuple(own))


def view(path: str, arrays: list[Any], stats: tuple[Any, ...] = ()) -> Leaf:
    """What a rule sees of one parameter: the base's array, then the experts'."""
    xp = namespace(*arrays)
    first, *others = (widen(array, xp) for array in arrays)
    return Leaf(path, first, tuple(others), stats, xp)


def flat_stats(
    rule: Rule, experts: Mapping[str, Any], stats: Mapping[str, Any] | None
) -> dict[str, dict[str, Any]] | None:
    """The statistics of each expert by path, in the order of the experts.

    Raises:
      ConfigError: the rule needs statistics and has none of an expert, or needs none.
    """
    wanted = [need for need in rule.needs if need != "data"]
    if not wanted:
        if stats is not None:
            raise ConfigError(f"the merge rule {rule.name!r} reads no statistics; leave stats out")
        return None
    missing = [name for name in experts if name not in (stats or {})]
    if missing:
        raise ConfigError(
            f"the merge rule {rule.name!r} needs the {WORDS.get(wanted[0], wanted[0])} of every "
            f"expert and has none of {missing[0]!r}; pass stats={{{missing[0]!r}: ...}}"
        )
    return {name: by_leaf(stats[name]) for name in experts}

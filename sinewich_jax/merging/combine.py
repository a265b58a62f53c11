"""``merge``: looks the rule up, checks the trees, and hands it the leaves."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from sinewich_jax.core.trees import map_paths
from sinewich_jax.errors import ConfigError, did_you_mean
from sinewich_jax.merging.align import check_integers, matched
from sinewich_jax.merging.arrays import content, dtype_of, namespace, widen
from sinewich_jax.merging.registry import Leaf, Rule, find


def merge(rule: str, base: Any, experts: Mapping[str, Any], **options: Any) -> Any:
    """One model out of several that were trained from one base.

    Args:
      rule: the name of a rule, see :func:`sinewich_jax.merging.rules`.
      base: the tree that all experts started from.
      experts: the trained trees by name; same paths and shapes as ``base``.
      **options: those of the rule.

    Returns:
      A tree like ``base``, in its containers and dtypes. Each leaf is computed in float32 at least.
      Integer leaves have to agree and stay as they are.

    Raises:
      ConfigError: for an unknown rule or option; the nearest name is offered.
      SinewichError: when the trees do not fit; expert and leaf are named.
    """
    chosen = find(rule)
    _check_options(chosen, options)
    if not isinstance(experts, Mapping) or not experts:
        raise ConfigError(
            f"experts must be a mapping from names to at least one tree, found {experts!r:.60}"
        )
    flat_experts = {}
    for name, tree in experts.items():
        flat_base, flat_experts[name] = matched(base, tree, f"the expert {name!r}")
        check_integers(flat_base, flat_experts[name], f"the expert {name!r}")

    def view(path: str) -> Leaf:
        arrays = [flat_base[path], *(flat[path] for flat in flat_experts.values())]
        xp = namespace(*arrays)
        first, *others = (widen(array, xp) for array in arrays)
        return Leaf(path, first, tuple(others), xp)

    real = [path for path, leaf in flat_base.items() if content(leaf) == "real"]
    if not chosen.streaming:
        whole = chosen.function({path: view(path) for path in real}, **options)

    def merged(path: str, leaf: Any) -> Any:
        if content(leaf) == "discrete":
            return leaf
        array = chosen.function(view(path), **options) if chosen.streaming else whole[path]
        return array.astype(dtype_of(leaf))

    return map_paths(merged, base)


def _check_options(rule: Rule, options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in rule.options:
            hint = did_you_mean(name, rule.options) or " (it has none)"
            raise ConfigError(f"the merge rule {rule.name!r} has no option {name!r}{hint}")
    for name, default in rule.options.items():
        if default is inspect.Parameter.empty and name not in options:
            raise ConfigError(f"the merge rule {rule.name!r} needs the option {name!r}; pass it")

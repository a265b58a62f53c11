"""The registry of merge rules: one decorated function each, found by looking into ``methods/``."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

from sinewich_jax.errors import ConfigError, did_you_mean
from sinewich_jax.merging.leaf import Leaves
from sinewich_jax.merging.settings import in_order
from sinewich_jax.merging.sound import Sound


@dataclasses.dataclass(frozen=True)
class Rule:
    """A merge rule and what a user should know before choosing it.

    Attributes:
      name: what :func:`merge` is called with.
      needs: which statistic it asks for beside the parameters (``"curvature"``, ``"fisher"``,
        ``"gram"``) or ``"data"``; empty for none.
      whole: whether it looks at all leaves, not at one at a time.
      streaming: whether memory stays bounded by a few leaves (a whole rule then passes over the
        model more than once).
      conditional: whether the result keeps a mask for each task.
      cost: beside reading and writing, in words.
      source: paper and number of its equation.
      summary: one line.
      options: keyword options with their defaults.
      function: ``function(leaf, **options) -> result`` for one leaf, or, when ``whole``,
        ``function(leaves, **options) -> iterator of (path, result)``. A result is an array in the
        place of the leaf, or a :class:`~sinewich_jax.merging.Conditional`.
    """

    name: str
    needs: tuple[str, ...]
    whole: bool
    streaming: bool
    conditional: bool
    cost: str
    source: str
    summary: str
    options: dict[str, Any]
    function: Callable[..., Any]


_RULES: dict[str, Rule] = {}


def register(
    name: str,
    *,
    source: str,
    cost: str = "one pass",
    needs: tuple[str, ...] = (),
    whole: bool = False,
    streaming: bool = True,
    conditional: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a function a merge rule: ``@register("average", source="...")``.

    Its first docstring line becomes the summary and its keyword-only arguments the options.

    Args:
      name: the rule's name; one that is taken is refused.
      source: where the rule is from.
      cost: beside reading and writing, in words.
      needs: what it asks for beside the parameters.
      whole: see :class:`Rule`.
      streaming: see :class:`Rule`.
      conditional: see :class:`Rule`.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        if name in _RULES:
            raise ConfigError(f"there is a merge rule {name!r} already; choose another name")
        parameters = inspect.signature(function).parameters.values()
        _RULES[name] = Rule(
            name=name,
            needs=needs,
            whole=whole,
            streaming=streaming,
            conditional=conditional,
            cost=cost,
            source=source,
            summary=(inspect.getdoc(function) or name).splitlines()[0],
            options={p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY},
            function=function,
        )
        return function

    return decorate


def results(rule: Rule, leaves: Leaves, options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Runs a rule over a model: (path, result) for every leaf, in the order of ``leaves``.

    What no rule could merge is refused on the way, see :class:`~sinewich_jax.merging.sound.Sound`.
    """
    sound, options = Sound(leaves, rule.name, rule.needs), in_order(options, leaves.names)
    if rule.whole:
        yield from rule.function(sound, **options)
    else:
        for leaf in sound:
            yield leaf.path, rule.function(leaf, **options)


def check_options(rule: Rule, options: dict[str, Any]) -> None:
    """Refuses options that a rule does not have, and misses those that it needs.

    Raises:
      ConfigError: naming the option and, where there is one, the nearest name.
    """
    for name in options:
        if name not in rule.options:
            hint = did_you_mean(name, rule.options) or " (it has none)"
            raise ConfigError(f"the merge rule {rule.name!r} has no option {name!r}{hint}")
    for name, default in rule.options.items():
        if default is inspect.Parameter.empty and name not in options:
            raise ConfigError(f"the merge rule {rule.name!r} needs the option {name!r}; pass it")


def rules() -> tuple[Rule, ...]:
    """All merge rules by name: what each needs and costs, whether it streams, its source."""
    _discover()
    return tuple(_RULES[name] for name in sorted(_RULES))


def find(name: str) -> Rule:
    """The rule called ``name``.

    Raises:
      ConfigError: when there is none; the nearest name is offered.
    """
    _discover()
    if name not in _RULES:
        raise ConfigError(f"unknown merge rule {name!r}{did_you_mean(name, _RULES)}")
    return _RULES[name]


@functools.cache
def _discover() -> None:
    package = importlib.import_module("sinewich_jax.merging.methods")
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)

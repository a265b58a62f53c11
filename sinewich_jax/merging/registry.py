"""The registry of merge rules: one decorated function each, found by looking into ``methods/``."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from sinewich_jax.errors import ConfigError, did_you_mean
from sinewich_jax.merging.settings import in_order
from sinewich_jax.merging.sound import Sound


class Leaf(NamedTuple):
    """What a rule sees: one parameter of the base and of every expert.

    Attributes:
      path: its name, ``"stage0/block1/kernel"``; the seed of anything random, so that a result does
        not depend on the order of leaves.
      base: the base's array, float32 at least.
      experts: the experts' arrays in the order given, same shape and dtype.
      stats: what the rule asked for of each expert in ``needs``, in that order; () where it asked
        for nothing, None where a leaf has no Gram matrix; whoever lacks another is refused.
      xp: ``numpy`` or ``jax.numpy``, to compute with.
    """

    path: str
    base: Any
    experts: tuple[Any, ...]
    stats: tuple[Any, ...]
    xp: ModuleType

    @property
    def deltas(self) -> tuple[Any, ...]:
        """The task vectors ``W_t - W_0``, made anew at each call."""
        return tuple(expert - self.base for expert in self.experts)


class Leaves(Protocol):
    """The leaves of a whole model, for rules that look at all of them.

    Iterating reads every leaf once more, one at a time and always in the same order, so that a rule
    may pass over a model that does not fit in memory.

    Attributes:
      names: of the experts.
    """

    names: tuple[str, ...]

    def __iter__(self) -> Iterator[Leaf]:
        """The leaves that hold reals."""
        ...


class Conditional(NamedTuple):
    """One leaf of a model that keeps a mask for each task: ``W_0 + scale_t mask_t shared``.

    Attributes:
      base: ``W_0``.
      shared: the vector that all tasks use.
      masks: one boolean array a task.
      scales: one number a task.
    """

    base: Any
    shared: Any
    masks: tuple[Any, ...]
    scales: tuple[Any, ...]

    def select(self, task: int) -> Any:
        """The leaf of one task."""
        return self.base + self.scales[task] * (self.masks[task] * self.shared)


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
        place of the leaf, or a :class:`Conditional`.
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
    sound, options = Sound(leaves, rule), in_order(options, leaves.names)
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

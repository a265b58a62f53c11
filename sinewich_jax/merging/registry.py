"""The registry of merge rules: one decorated function each, found by looking into ``methods/``."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from sinewich_jax.errors import ConfigError, did_you_mean


class Leaf(NamedTuple):
    """What a rule sees: one parameter of the base and of every expert.

    Attributes:
      path: its name, ``"stage0/block1/kernel"``; the seed of anything random, so that a result does
        not depend on the order of leaves.
      base: the base's array, float32 at least.
      experts: the experts' arrays in the order given, same shape and dtype.
      xp: ``numpy`` or ``jax.numpy``, to compute with.
    """

    path: str
    base: Any
    experts: tuple[Any, ...]
    xp: ModuleType


@dataclasses.dataclass(frozen=True)
class Rule:
    """A merge rule and what a user should know before choosing it.

    Attributes:
      name: what :func:`merge` is called with.
      needs: what it asks for beside the parameters (``"curvature"``, ``"data"``); empty for none.
      streaming: whether it looks at one leaf at a time, so that memory stays bounded.
      source: paper and number of its equation.
      summary: one line.
      options: keyword options with their defaults.
      function: ``function(leaf, **options) -> array`` when streaming, else
        ``function(leaves: dict[path, Leaf], **options) -> dict[path, array]``.
    """

    name: str
    needs: tuple[str, ...]
    streaming: bool
    source: str
    summary: str
    options: dict[str, Any]
    function: Callable[..., Any]


_RULES: dict[str, Rule] = {}


def register(
    name: str, *, source: str, needs: tuple[str, ...] = (), streaming: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a function a merge rule: ``@register("average", source="...")``.

    Its first docstring line becomes the summary and its keyword-only arguments the options.

    Args:
      name: the rule's name; one that is taken is refused.
      source: where the rule is from.
      needs: what it asks for beside the parameters.
      streaming: see :class:`Rule`.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        if name in _RULES:
            raise ConfigError(f"there is a merge rule {name!r} already; choose another name")
        parameters = inspect.signature(function).parameters.values()
        _RULES[name] = Rule(
            name=name,
            needs=needs,
            streaming=streaming,
            source=source,
            summary=(inspect.getdoc(function) or name).splitlines()[0],
            options={p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY},
            function=function,
        )
        return function

    return decorate


def rules() -> tuple[Rule, ...]:
    """All merge rules by name: what each needs, whether it streams, where it is from."""
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

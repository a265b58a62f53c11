"""Arguments that this room's transformations have in common, checked before anything is traced."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import jax

from sinewich_jax.errors import ConfigError, did_you_mean


def whole(name: str, value: Any, least: int) -> int:
    """``value`` as a Python integer of at least ``least``; sizes must be known when tracing.

    Raises:
      ConfigError: it is no integer, too small, or traced (by ``optax.inject_hyperparams``).
    """
    if isinstance(value, jax.core.Tracer):
        raise ConfigError(
            f"{name} decides shapes and cannot be traced; name it in static_args of "
            "optax.inject_hyperparams"
        )
    try:
        number = operator.index(value)
    except TypeError:
        raise ConfigError(f"{name} is {value!r}; expected an integer") from None
    if number < least:
        raise ConfigError(f"{name} is {number}; expected at least {least}")
    return number


def fraction(name: str, value: Any) -> None:
    """Checks ``0 <= value < 1`` where the value is known; schedules and traced values pass.

    Raises:
      ConfigError: it is outside.
    """
    if isinstance(value, (int, float)) and not 0 <= value < 1:
        raise ConfigError(f"{name} is {value}; expected at least 0 and below 1")


def choice(name: str, value: Any, options: Iterable[str]) -> None:
    """Checks that ``value`` is one of ``options``.

    Raises:
      ConfigError: it is not; the nearest one is offered.
    """
    options = tuple(options)
    if value not in options:
        raise ConfigError(f"{name} is {value!r}{did_you_mean(str(value), options)}")

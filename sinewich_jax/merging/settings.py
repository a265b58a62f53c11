"""Options of rules: read once, refused with a sentence that names the option."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sinewich_jax.errors import ConfigError, did_you_mean

PER_EXPERT = ("weights", "density", "lam")
"""Options that may differ from expert to expert; a mapping from names is put in their order."""


def in_order(options: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The options with each mapping from the names of experts as a tuple in their order.

    Raises:
      ConfigError: a mapping lacks an expert, or has one that there is not.
    """
    ordered = dict(options)
    for option in PER_EXPERT:
        value = options.get(option)
        if not isinstance(value, Mapping):
            continue
        for name in value:
            if name not in names:
                raise ConfigError(
                    f"the option {option!r} names {name!r}, which is no expert"
                    f"{did_you_mean(name, names)}"
                )
        for name in names:
            if name not in value:
                raise ConfigError(f"the option {option!r} has nothing for the expert {name!r}")
        ordered[option] = tuple(value[name] for name in names)
    return ordered


def per_expert(option: str, value: Any, count: int) -> tuple[Any, ...]:
    """One number an expert: a number is every expert's, a sequence is in the order of experts.

    Raises:
      ConfigError: a sequence of another length, or a number that is not finite.
    """
    values = tuple(value) if isinstance(value, Iterable) else (value,) * count
    if len(values) != count:
        raise ConfigError(
            f"the option {option!r} has {len(values)} numbers for {count} experts; "
            "give one an expert, in their order"
        )
    return tuple(finite(option, each) for each in values)


def weights_of(value: Any, count: int) -> tuple[Any, ...]:
    """The weights of experts, 1 where none are given."""
    return per_expert("weights", 1.0 if value is None else value, count)


def shares_of(value: Any, count: int) -> tuple[Any, ...]:
    """Weights of a mean: non-negative, and not all zero.

    Raises:
      ConfigError: where they are not.
    """
    weights = weights_of(value, count)
    known = [w for w in weights if isinstance(w, float)]
    if any(w < 0 for w in known) or (len(known) == count and not any(known)):
        raise ConfigError(
            f"weights are {', '.join(map(str, weights))}; the weights of a mean must not be "
            "negative, nor all zero"
        )
    return weights


def finite(option: str, value: Any) -> Any:
    """A number as a Python float, so that it cannot widen an array; a traced one as it is.

    Raises:
      ConfigError: something that is no finite number.
    """
    if hasattr(value, "aval"):  # an array of JAX, possibly traced
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ConfigError(f"the option {option!r} is {value!r}; expected a finite number")
    return float(value)


def one_of(option: str, value: Any, known: Sequence[str]) -> str:
    """A word out of a few.

    Raises:
      ConfigError: another word; the nearest is offered, or all of them.
    """
    if value not in known:
        raise ConfigError(f"the option {option!r} is {value!r}{did_you_mean(str(value), known)}")
    return value


def is_one(value: Any) -> bool:
    """Whether a number is known to be 1, so that multiplying by it can be left out."""
    return isinstance(value, int | float) and value == 1

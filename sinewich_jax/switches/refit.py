"""A task's own linear head, fitted to the features that its switch makes.

A switch leaves out most of a task vector, and the features in front of the head shift and shrink
with it. The head is the task's own in any case, so that fitting it anew costs no bits, and the
expert's own answers on a few unlabelled inputs are enough to fit it to. It mends what is small:
where a switch keeps next to nothing, few inputs mislead it, and the old head is better.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sinewich_jax.errors import ConfigError, DataError

Array = Any
_LARGEST = float(np.finfo(np.float32).max)


def refit_head(
    kernel: Array, bias: Array, expert: Array, switched: Array, *, strength: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """The linear head that answers on switched features as the head did on those of the expert.

    With rows ``f_i`` of the expert's features and ``g_i`` of the switched ones it minimises, in
    closed form,

    ``mean_i |g_i W' + b' - (f_i W + b)|^2 + strength * v * |W' - W|^2``

    where ``v`` is the mean variance of the switched features, so that ``strength`` has no unit. An
    infinite ``strength`` moves the bias alone, by the mean shift of the features (bias correction,
    arXiv 1906.04721); weaker ones follow the few inputs more closely.

    Args:
      kernel: (e, c), ``W``.
      bias: (c,), ``b``.
      expert: (N, e), the expert's features of N inputs; labels are not needed.
      switched: (N, e), features of the same inputs by the base with the switch on.
      strength: above 0.

    Returns:
      ``W'`` and ``b'``, float32; computed in float64.

    Raises:
      ConfigError: a strength that is not above 0.
      DataError: shapes that do not fit, fewer than two inputs, or numbers that are not finite.

    Examples:
      >>> rng = np.random.default_rng(0)
      >>> features = rng.normal(size=(100, 8))
      >>> head = np.ones((8, 3)), np.zeros(3)
      >>> kernel, bias = refit_head(*head, features, 2 * features, strength=1e-6)
      >>> bool(np.allclose(kernel, 0.5, atol=1e-4))
      True
    """
    if not strength > 0:
        raise ConfigError(f"strength is {strength}; expected a number above 0")
    kernel, bias, expert, switched = (
        np.asarray(array, np.float64) for array in (kernel, bias, expert, switched)
    )
    _check(kernel, bias, expert, switched)
    fitted, mean = kernel, switched.mean(axis=0)
    if math.isfinite(strength):
        x = switched - mean
        left = (expert - expert.mean(axis=0)) @ kernel - x @ kernel
        # Where no feature varies there is nothing to fit, whatever stands on the diagonal.
        ridge = strength * (x.var(axis=0).mean() or 1.0)
        moments = x.T @ x / len(x) + ridge * np.eye(len(kernel))
        fitted = kernel + _solve(moments, x.T @ left / len(x), strength)
    moved = bias + expert.mean(axis=0) @ kernel - mean @ fitted
    with np.errstate(over="ignore"):
        found = np.float32(fitted), np.float32(moved)
    if not all(np.isfinite(array).all() for array in found):
        raise DataError(
            "the refitted head has numbers that float32 does not hold; give features and a head of "
            "smaller size"
        )
    return found


def _solve(moments: np.ndarray, right: np.ndarray, strength: float) -> np.ndarray:
    try:
        return np.linalg.solve(moments, right)
    except np.linalg.LinAlgError as error:
        raise ConfigError(
            f"at strength {strength:g} these inputs do not settle the head; give a larger one"
        ) from error


def _check(kernel: np.ndarray, bias: np.ndarray, expert: np.ndarray, switched: np.ndarray) -> None:
    if kernel.ndim != 2 or bias.shape != kernel.shape[1:]:
        raise DataError(
            f"the head has shapes {kernel.shape} and {bias.shape}; expected (e, c) and (c,)"
        )
    if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
        raise DataError("the head holds numbers that are not finite")
    for name, rows in (("expert", expert), ("switched", switched)):
        if rows.ndim != 2 or rows.shape[1] != len(kernel) or len(rows) < 2:
            raise DataError(
                f"the features {name!r} have shape {rows.shape}; expected (N, {len(kernel)}) of at "
                "least two inputs"
            )
        if not np.isfinite(rows).all():
            raise DataError(f"the features {name!r} hold numbers that are not finite")
        if rows.size and np.abs(rows).max() > _LARGEST:
            raise DataError(f"the features {name!r} reach beyond {_LARGEST:g}, what float32 holds")
    if len(expert) != len(switched):
        raise DataError(
            f"there are {len(expert)} rows of the expert's features and {len(switched)} of the "
            "switched ones; expected the same inputs"
        )

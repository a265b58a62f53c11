"""From a task vector to a switch: what is kept, what is binarised, what stays as it is."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from sinewich_jax.core.arrays import content, dtype_of, fails, is_traced, namespace, widen
from sinewich_jax.core.trees import flatten_paths
from sinewich_jax.errors import ConfigError, SinewichError, did_you_mean
from sinewich_jax.switches.leaf import DenseLeaf, LeafSwitch, Switch
from sinewich_jax.switches.planes import KNOBS, Knob, encode
from sinewich_jax.switches.selection import How, leaf_cuts, shared_cuts

Array = Any
Fraction = float | Literal["auto"]

METHODS: dict[str, dict[str, Any]] = {
    "tswitch": {"alpha": 0.6, "knob": "l2_kept"},
    "bitdelta": {"alpha": 0.0, "knob": "l1", "sign_split": False},
}
"""Published methods as settings of :func:`make_switch`: T-Switch (arXiv 2412.00054), and BitDelta
(arXiv 2402.10193), a sign for every entry that is not zero and the scale of least squares."""


class _Item(NamedTuple):
    """A leaf that will be binarised."""

    values: Array
    scores: Array | None


def make_switch(
    delta: Any,
    *,
    alpha: Any = None,
    density: Any = None,
    knob: Knob = "l2_kept",
    scope: Literal["leaf", "global"] = "leaf",
    sign_split: bool = True,
    group: Literal["row"] | None = None,
    score: Any = None,
    min_size: int = 1,
    ties: Literal["keep", "exact"] = "keep",
    keep_dense: str | Callable[[str, Any], bool] | None = None,
    compat: bool = False,
) -> Switch:
    """A task vector as ``knob * mask * sign``, leaf by leaf (T-Switch, equations 2 to 5).

    As it stands it selects what the official code does, bit for bit: of the positive entries, and
    of the negative ones, the ``int(count * (1 - alpha))`` largest magnitudes and all that tie with
    the smallest of them. NumPy arrays are worked on in blocks; JAX arrays under ``jit``, ``vmap``
    and any sharding, with the same planes. Numbers are read in float32, whatever their dtype;
    leaves that stay dense are kept in their own.

    The official counts are truncated: a small leaf loses its whole change where ``count * (1 -
    alpha)`` of both signs is below 1. ``min_size`` and ``keep_dense`` keep such leaves.

    Args:
      delta: a task vector, a tree of arrays (see :func:`sinewich_jax.merging.task_vector`).
      alpha: the fraction of the non-zero entries that is dropped, from 0 to below 1; 0.6 if density
        is not given either. A number, also as an array without axes, but static under ``jit``. A
        tree or mapping by path, or a function of the path, gives each leaf its own. ``"auto"``
        keeps as many as bring the leaf nearest to its task vector (see
        :func:`sinewich_jax.core.ternary.best_count`), with one threshold for both signs.
      density: the fraction that is kept instead, above 0 and at most 1; in the same forms. Counts
        are those of decimals: .29 of 100 entries are 29, where ``int(100 * .29)`` is 28.
      knob: with k kept entries: ``"l2_kept"`` is ``||kept|| / sqrt(k)`` (the official one),
        ``"l1"`` the mean of ``|kept|`` (least squares), ``"l2_full"`` is ``||delta|| / sqrt(k)``,
        which keeps the norm of the leaf. A leaf of which nothing is kept has the knob 0.
      scope: thresholds of each leaf by itself, or one (a sign) for all leaves together.
      sign_split: positive and negative entries have thresholds of their own.
      group: ``"row"`` gives each index of the last axis (output channel) a knob of its own, 32 bits
        each; leaves with fewer than two axes have one.
      score: a tree of non-negative saliencies with the paths of ``delta``, which choose the active
        entries in the place of the magnitudes. How many ``"auto"`` keeps, and the knob, still come
        from ``delta``.
      min_size: leaves with fewer entries are kept as they are, and so are those of no axis.
      ties: ``"exact"`` keeps the count and no more, of equal scores the first in row-major order.
      keep_dense: a regular expression on the whole path, or a function of path and leaf, that says
        which leaves are kept as they are.
      compat: where the count of a sign comes to nothing keep all of that sign, as the official code
        does by mistake, instead of none.

    Returns:
      The switch. Leaves of integers or booleans are no part of it: they do not change.

    Raises:
      ConfigError: a setting that cannot be.
      SinewichError: a leaf that holds NaN or infinity, or integers that are not all zero, or no
        numbers; scores that do not fit. Values that JAX traces cannot be looked at: NaN is then
        inactive but spoils the knob, and the integers of ``delta`` are taken for zeros.

    Examples:
      >>> switch = make_switch({"w": np.float32([1, -2, 3, 0, 5])}, alpha=0.5)
      >>> switch.leaves["w"].mask, float(switch.leaves["w"].knob)
      (array([16], dtype=uint8), 5.0)
    """
    _check("knob", knob, KNOBS)
    _check("scope", scope, ("leaf", "global"))
    _check("group", group, (None, "row"))
    _check("ties", ties, ("keep", "exact"))
    if compat and ties == "exact":
        raise ConfigError("compat does as the official code, which keeps all ties: ties is 'exact'")
    flat = flatten_paths(delta)
    given = None if score is None else flatten_paths(score)
    stays = _stays(keep_dense, min_size)
    leaves: dict[str, LeafSwitch | DenseLeaf | None] = {}
    items: dict[str, _Item] = {}
    for path, leaf in flat.items():
        if not _changes(path, leaf):
            continue
        array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        leaves[path] = None  # in the order of the tree
        if stays(path, leaf):
            _check_finite(path, array)
            leaves[path] = DenseLeaf(array)
        else:
            values = _read(path, array)
            scores = None if given is None else _scores(path, values, given)
            items[path] = _Item(values, scores)
    fractions = _fractions(alpha, density, list(flat), list(items), scope)
    how = How(sign_split, ties == "exact", compat)
    rows = {path: group == "row" and item.values.ndim > 1 for path, item in items.items()}
    if scope == "leaf":
        for path, item in items.items():
            leaves[path] = _switched(item, fractions[path], how, knob, rows[path])
    elif items:
        cuts = shared_cuts(list(items.values()), fractions[""], how)
        for (path, item), here in zip(items.items(), cuts, strict=True):
            leaves[path] = encode(*item, here, knob, rows[path])
    return Switch(leaves)


def _switched(item: _Item, fraction: Fraction, how: How, knob: Knob, by_row: bool) -> LeafSwitch:
    """A leaf that is cut by itself."""
    if namespace(*item) is np:
        return encode(*item, leaf_cuts(*item, fraction, how), knob, by_row)
    return _compiled()(item, fraction, how, knob, by_row)


@functools.cache
def _compiled() -> Callable[..., LeafSwitch]:
    """One function, so that leaves of equal shape share one compilation."""
    import jax

    def switched(item: _Item, fraction: Fraction, how: How, knob: Knob, by_row: bool) -> LeafSwitch:
        return encode(*item, leaf_cuts(*item, fraction, how), knob, by_row)

    return jax.jit(switched, static_argnums=(1, 2, 3, 4))


def _check(name: str, value: Any, options: tuple[Any, ...]) -> None:
    if value not in options:
        known = ", ".join(repr(option) for option in options)
        raise ConfigError(f"{name} is {value!r}; expected one of {known}")


def _changes(path: str, leaf: Any) -> bool:
    """Whether a leaf holds real numbers; integers do not change."""
    kind, xp = content(leaf), namespace(leaf)
    if kind == "other" or dtype_of(leaf).name.startswith("complex"):
        raise SinewichError(
            f"the leaf {path!r} of the task vector holds {dtype_of(leaf).name}; a switch is made "
            "of real numbers, so leave that leaf out"
        )
    if kind == "discrete" and fails((xp.asarray(leaf) == 0).all()):
        raise SinewichError(
            f"the leaf {path!r} of the task vector holds {dtype_of(leaf).name} that are not all "
            "zero; integers cannot be scaled by a knob, so leave that leaf out"
        )
    return kind == "real"


def _read(path: str, leaf: Array) -> Array:
    """The leaf in float32, looked at."""
    with np.errstate(over="ignore"):
        values = namespace(leaf).asarray(leaf).astype(np.float32, copy=False)
    if not _is_finite(values):
        _check_finite(path, leaf)
        raise SinewichError(
            f"the leaf {path!r} of the task vector holds {dtype_of(leaf).name} beyond float32, in "
            "which leaves are binarised; keep it dense with keep_dense"
        )
    return values


def _check_finite(path: str, leaf: Array) -> None:
    if not _is_finite(widen(leaf, namespace(leaf))):
        raise SinewichError(
            f"the leaf {path!r} of the task vector holds NaN or infinity; make it from a "
            "checkpoint from before training diverged"
        )


def _is_finite(values: Array) -> bool:
    """Whether no value is known to be NaN or infinite."""
    xp = namespace(values)
    if xp is np:  # no array of booleans
        return values.size == 0 or bool(np.isfinite([values.max(), values.min()]).all())
    return not fails(xp.isfinite(values).all())


def _scores(path: str, values: Array, given: Mapping[str, Any]) -> Array:
    if path not in given:
        raise SinewichError(
            f"score has nothing for the leaf {path!r}; give it an array of shape {values.shape}, "
            "or keep that leaf dense"
        )
    xp = namespace(values, given[path])
    scores = xp.asarray(given[path])
    if scores.shape != values.shape:
        raise SinewichError(
            f"score has the shape {scores.shape} for the leaf {path!r}; expected {values.shape}"
        )
    with np.errstate(over="ignore"):
        scores = scores.astype(np.float32, copy=False)
    if fails((xp.isfinite(scores) & (scores >= 0)).all()):
        raise SinewichError(
            f"score for the leaf {path!r} holds negative numbers, NaN or infinity; expected "
            "saliencies of at least 0"
        )
    return scores


def _stays(keep_dense: Any, min_size: int) -> Callable[[str, Any], bool]:
    """Which leaves are kept as they are."""
    if isinstance(keep_dense, str):
        try:
            named = re.compile(keep_dense)
        except re.error as error:
            raise ConfigError(
                f"keep_dense is {keep_dense!r}, which is no regular expression: {error}"
            ) from error
        chosen = lambda path, _: named.fullmatch(path) is not None  # noqa: E731
    elif keep_dense is None:
        chosen = lambda path, leaf: False  # noqa: E731
    elif callable(keep_dense):
        chosen = keep_dense
    else:
        raise ConfigError(
            f"keep_dense is {keep_dense!r}; expected a regular expression on the path ('a|b' for "
            "two leaves), or a function of path and leaf"
        )
    return lambda path, leaf: (
        np.ndim(leaf) == 0 or np.size(leaf) < min_size or bool(chosen(path, leaf))
    )


def _fractions(
    alpha: Any, density: Any, paths: list[str], binarised: list[str], scope: str
) -> dict[str, Fraction]:
    """The fraction that is kept of each leaf; under the path "" that of all of them together."""
    if alpha is not None and density is not None:
        raise ConfigError(
            "both alpha, the fraction dropped, and density, the fraction kept, are given; "
            "give one of them"
        )
    if density is None:
        name, setting, convert = "alpha", 0.6 if alpha is None else alpha, _kept_of_alpha
    else:
        name, setting, convert = "density", density, _kept_of_density
    if scope == "global":
        if isinstance(setting, str | Mapping) or callable(setting):
            raise ConfigError(
                f"scope='global' has one threshold for all leaves, but {name} is {setting!r}; "
                "give one number"
            )
        return {"": convert(setting, "")}
    if callable(setting):
        return {path: convert(setting(path), path) for path in binarised}
    by_path = flatten_paths(setting)
    if set(by_path) == {""}:
        kept = convert(setting, "")
        return dict.fromkeys(binarised, kept)
    for path in by_path:
        if path not in paths:
            raise ConfigError(
                f"{name} names the leaf {path!r}, which the task vector has not"
                f"{did_you_mean(path, paths)}"
            )
    for path in binarised:
        if path not in by_path:
            raise ConfigError(
                f"{name} has nothing for the leaf {path!r}; give every leaf its number, or a "
                "function of the path"
            )
    return {path: convert(by_path[path], path) for path in binarised}


def _kept_of_alpha(alpha: Any, path: str) -> Fraction:
    alpha = _static("alpha", alpha, path)
    if isinstance(alpha, str) and alpha == "auto":
        return "auto"
    if not _is_number(alpha) or not 0 <= alpha < 1:
        hint = ""
        if _is_number(alpha) and 1 < alpha < 100:
            hint = f"; {alpha} per cent, as the official code reads it, is {alpha / 100:g}"
        raise ConfigError(
            f"alpha{_at(path)} is {alpha!r}; expected the fraction that is dropped, at least 0 "
            f"and below 1, or 'auto'{hint}"
        )
    return 1 - float(alpha)


def _kept_of_density(density: Any, path: str) -> Fraction:
    density = _static("density", density, path)
    if not _is_number(density) or not 0 < density <= 1:
        raise ConfigError(
            f"density{_at(path)} is {density!r}; expected the fraction that is kept, above 0 and "
            "at most 1"
        )
    # One unit up: the double may be below the decimal that it stands for, and counts are truncated.
    return min(1.0, math.nextafter(density, 1.0))


def _static(name: str, value: Any, path: str) -> Any:
    """A setting as Python has it, if it is an array without axes."""
    if is_traced(value):
        raise ConfigError(
            f"{name}{_at(path)} is traced by JAX, and is static under jit; name it in "
            "static_argnames, or bind it with functools.partial"
        )
    return value.item() if hasattr(value, "dtype") and np.ndim(value) == 0 else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _at(path: str) -> str:
    return f" of the leaf {path!r}" if path else ""

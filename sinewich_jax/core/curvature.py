"""Factored curvature: what an optimizer keeps of squared gradients and merging reads.

Of a second moment ``V_ij = E[g_ij^2]`` of a weight, seen as a matrix (m, n), only the means over
rows and columns are kept:

    row_i = mean_j V_ij        col_j = mean_i V_ij        V~_ij = row_i col_j / mean(row)

``V~`` has the row and column means of ``V``, and of all non-negative matrices of rank one it is the
closest to ``V`` in generalised Kullback-Leibler divergence (Shazeer and Stern 2018, Adafactor,
arXiv 1804.04235). Small weights keep ``V`` itself. Means, not sums, so that leaves of different
size compare.

Everything here works on NumPy and JAX arrays alike and imports neither.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from sinewich_jax.core.arrays import namespace

Array = Any


class Factored(NamedTuple):
    """The second moment of a matrix by its margins.

    Attributes:
      row: (m,) float32, means over columns; m is the product of the leading axes of the weight.
      col: (n,) float32, means over rows.
    """

    row: Array
    col: Array


class Diagonal(NamedTuple):
    """The second moment itself.

    Attributes:
      diag: float32, in the shape of the weight.
    """

    diag: Array


Curvature = Factored | Diagonal
"""The second moment of one leaf."""


def matrix_shape(shape: tuple[int, ...], rows: int | None = None) -> tuple[int, int]:
    """A weight's shape as that of a matrix (m, n).

    Args:
      shape: of the weight.
      rows: how many leading axes make the rows; None takes all but the last (Flax's kernels end
        in the output). A query kernel (d, heads, width) has ``rows=1``.
    """
    rows = max(len(shape) - 1, 0) if rows is None else rows
    return math.prod(shape[:rows]), math.prod(shape[rows:])


def of_squares(squares: Array, rows: int | None = None, *, factored: bool) -> Curvature:
    """What is kept of squared gradients.

    Args:
      squares: non-negative, in the shape of the weight.
      rows: see :func:`matrix_shape`.
      factored: margins only, or all of it.
    """
    if not factored:
        return Diagonal(squares)
    matrix = squares.reshape(matrix_shape(squares.shape, rows))
    return Factored(matrix.mean(axis=1), matrix.mean(axis=0))


def dense(curvature: Curvature, shape: tuple[int, ...]) -> Array:
    """The second moment of every entry: ``row x col / mean(row)``, or the diagonal.

    Args:
      curvature: of one leaf.
      shape: of the weight; the rows' axes need not be known, because both are in C order.

    Returns:
      Non-negative, of shape ``shape``; zero where all of it is zero.
    """
    if isinstance(curvature, Diagonal):
        return curvature.diag.reshape(shape)
    mean = curvature.row.mean()
    # The small factor is divided first: a product of two tiny margins would underflow.
    col = curvature.col / (mean + (mean == 0))
    return (curvature.row[:, None] * col).reshape(shape)


def scaled(curvature: Curvature, factor: Any) -> Curvature:
    """``factor * V``; both margins are linear in ``V``."""
    return type(curvature)(*(part * factor for part in curvature))


def largest(curvature: Curvature) -> Array:
    """The largest entry of the dense form, without making it."""
    if isinstance(curvature, Diagonal):
        return curvature.diag.max(initial=0)
    mean = curvature.row.mean()
    return curvature.row.max(initial=0) * (curvature.col.max(initial=0) / (mean + (mean == 0)))


def root(curvature: Curvature, shape: tuple[int, ...]) -> Array:
    """``sqrt(V~)`` of every entry, from the roots of the margins.

    ``|delta| sqrt(V~)`` ranks entries as the saliency does, without underflow: a curvature of
    1e-30 and a step of 1e-6 have a product that float32 holds.
    """
    if isinstance(curvature, Diagonal):
        return namespace(curvature.diag).sqrt(curvature.diag).reshape(shape)
    xp = namespace(*curvature)
    mean = curvature.row.mean()
    col = xp.sqrt(curvature.col / (mean + (mean == 0)))
    return (xp.sqrt(curvature.row)[:, None] * col).reshape(shape)


def saliency(delta: Array, curvature: Curvature) -> Array:
    """``delta^2 V~``: twice the loss that resetting each entry costs, to second order.

    With ``V`` in place of the Hessian's diagonal (the Fisher information; Matena and Raffel 2022,
    arXiv 2111.09832). A product of tiny gradients and tiny steps can underflow float32: rank by
    :func:`root`, or divide the curvature by :func:`largest` first.

    Args:
      delta: what training changed, in the shape of the weight.
      curvature: of that leaf.
    """
    return delta * delta * dense(curvature, delta.shape)

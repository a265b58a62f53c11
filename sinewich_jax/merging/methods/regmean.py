"""RegMean: the linear layer with outputs closest to those of every expert on its own inputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from sinewich_jax.errors import ConfigError, SinewichError
from sinewich_jax.merging.leaf import Leaf
from sinewich_jax.merging.means import towards
from sinewich_jax.merging.methods.average import average
from sinewich_jax.merging.registry import register
from sinewich_jax.merging.settings import finite


@register(
    "regmean",
    source="Jin et al. 2023 (RegMean), arXiv 2212.09849, the closed form of a linear layer",
    needs=("gram",),
    cost="one pass and a linear system a layer, cubic in its inputs",
)
def regmean(leaf: Leaf, *, ratio: float = 0.9, loading: float = 1e-6, scale: float = 1.0) -> Any:
    """``W = (sum_t G_t)^-1 sum_t G_t W_t``, ``G_t = X_t^T X_t`` over the layer's inputs.

    It minimises ``sum_t ||X_t W - X_t W_t||^2``. Leaves without a Gram matrix are averaged, as are
    directions that no input has. A kernel (inputs, ..., outputs) is read as a matrix whose rows are
    the inputs, as many as its Gram matrix has.

    Args:
      leaf: the arrays, and for each expert the Gram matrix or None.
      ratio: off-diagonal entries are multiplied by it; 0.9 is the paper's, 1 the exact solution.
      loading: this fraction of the mean of the diagonal is added to it. Deviations from the average
        are solved for, which loading therefore pulls to the average, not to zero.
      scale: of what is added to the base; 1 is the solution itself.

    Raises:
      ConfigError: a ratio outside 0 to 1, or negative loading.
      SinewichError: a singular system, without loading.
    """
    if not 0 <= ratio <= 1 or finite("loading", loading) < 0:
        raise ConfigError(
            f"ratio is {ratio} and loading {loading}; expected a ratio from 0 to 1 and loading "
            "that is not negative"
        )
    mean = average(leaf)
    if leaf.stats[0] is None:
        return towards(leaf.base, mean, scale)
    xp = leaf.xp
    # In double precision where it costs nothing to ask for: systems may be ill-conditioned.
    dtype = np.float64 if xp is np else leaf.base.dtype
    grams = [xp.asarray(gram).astype(dtype) for gram in leaf.stats]
    size = len(grams[0])
    top = sum(gram.diagonal().mean() for gram in grams)
    top = top + (top == 0)
    keep = xp.full((size, size), ratio, dtype) + (1 - ratio) * xp.eye(size, dtype=dtype)
    grams = [gram / top * keep for gram in grams]
    deviations = [(expert - mean).reshape(size, -1).astype(dtype) for expert in leaf.experts]
    right = sum(gram @ deviation for gram, deviation in zip(grams, deviations, strict=True))
    system = sum(grams) + loading * xp.eye(size, dtype=dtype)
    try:
        solved = xp.linalg.solve(system, right)
    except np.linalg.LinAlgError:
        raise SinewichError(
            f"the Gram matrices of {leaf.path!r} are singular: fewer different inputs than "
            f"{size}; collect more, or pass loading=1e-6"
        ) from None
    return towards(leaf.base, mean + solved.reshape(mean.shape).astype(mean.dtype), scale)

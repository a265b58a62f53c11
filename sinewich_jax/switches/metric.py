"""A metric for routing, learned from the query set: neighbours in a projection of low rank.

FlexSwitch (arXiv 2604.28109) routes in a learned space of about 32 dimensions. Its equations could
not be found in the open; this is neighbourhood components analysis (Goldberger et al. 2004) from a
start at the principal components, which fits what its summaries say.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sinewich_jax.core.neighbours import soft_neighbours, squared_distances
from sinewich_jax.errors import ConfigError, TrainingError
from sinewich_jax.switches.fits import check_whole
from sinewich_jax.switches.queries import QuerySet

Array = Any
_RANK = 32
_NEIGHBOUR = 10  # its distance sets the temperature, as k = 10 neighbours vote


def fit_metric(
    queries: QuerySet,
    rank: int | None = None,
    steps: int = 300,
    learning_rate: float = 1e-2,
    key: Any = None,
    *,
    batch: int = 1024,
) -> np.ndarray:
    """A projection in which the neighbours of an example are of its task.

    Minimises ``-log sum_{j != i, y_j = y_i} p_ij``, ``p_ij = softmax_{j != i}(-||L^T f_i - L^T
    f_j||^2 / temperature)`` by Adam from the principal components. Features enter in units of their
    standard deviation; the temperature is the median squared distance to the tenth neighbour at the
    start. Needs JAX.

    Args:
      queries: M examples, at least two of one task.
      rank: r, at most e; None for 32, or e if that is less.
      steps: of Adam; 0 gives the principal components.
      learning_rate: of Adam.
      key: of JAX's random numbers, or a seed of them (None is 0); it chooses the examples of a
        step where there are more than ``batch``, and nothing else.
      batch: examples whose neighbours a step looks at.

    Returns:
      float32 (e, r), for :class:`~sinewich_jax.switches.router.Router`.

    Raises:
      ConfigError: a rank, steps or a rate that cannot be, or no task with two examples.
      TrainingError: the projection became infinite or NaN.
    """
    import jax
    import jax.numpy as jnp
    import optax

    features, tasks = np.asarray(queries.features, np.float32), np.asarray(queries.tasks)
    rank = min(_RANK, features.shape[1]) if rank is None else rank
    _check(features, tasks, rank, steps, learning_rate, batch)
    center, scale = features.mean(axis=0), features.std()
    features = (features - center) / (scale if scale > 0 else 1.0)
    # The first axes of an orthonormal basis: principal ones first, then any that are left.
    start = np.linalg.svd(features, full_matrices=rank > min(features.shape))[2][:rank].T
    projected = features @ start
    distances = np.array(squared_distances(projected, projected))
    np.fill_diagonal(distances, np.inf)
    place = min(_NEIGHBOUR, len(tasks) - 1) - 1
    typical = float(np.median(np.partition(distances, place, axis=1)[:, place]))
    temperature = typical if typical > 0 else 1.0
    # An example that is alone in its task has nobody to be near to, and teaches nothing.
    anchors = np.flatnonzero(np.bincount(tasks)[tasks] > 1)
    optimizer = optax.adam(learning_rate)

    def loss(projection: Array, rows: Array, points: Array, labels: Array) -> Array:
        found = points @ projection
        squared = squared_distances(found[rows], found)
        itself = rows[:, None] == jnp.arange(len(points))
        shares = soft_neighbours(jnp.where(itself, jnp.inf, squared), temperature)
        same = jnp.where(labels[rows][:, None] == labels, shares, 0).sum(axis=1)
        return -jnp.log(same + 1e-12).mean()

    def learn(projection: Array, points: Array, labels: Array, anchors: Array, key: Array) -> Array:
        def step(carry: Any, key: Array) -> tuple[Any, None]:
            projection, state = carry
            rows = anchors
            if len(anchors) > batch:
                rows = jax.random.choice(key, anchors, (batch,), replace=False)
            gradient = jax.grad(loss)(projection, rows, points, labels)
            updates, state = optimizer.update(gradient, state, projection)
            return (optax.apply_updates(projection, updates), state), None

        carry = (projection, optimizer.init(projection))
        return jax.lax.scan(step, carry, jax.random.split(key, steps))[0][0]

    key = 0 if key is None else key
    key = jax.random.key(key) if isinstance(key, int | np.integer) else key
    found = np.asarray(jax.jit(learn)(start, features, tasks, anchors, key)) if steps else start
    found = np.float32(found / (scale if scale > 0 else 1.0))
    if not np.isfinite(found).all():
        raise TrainingError(
            f"the metric became infinite or NaN at a learning rate of {learning_rate}; lower it"
        )
    return found


def _check(
    features: np.ndarray, tasks: np.ndarray, rank: int, steps: int, rate: float, batch: int
) -> None:
    for name, value, least in (("rank", rank, 1), ("steps", steps, 0), ("batch", batch, 1)):
        check_whole(name, value, least)
    width = features.shape[1]
    if rank > width:
        raise ConfigError(f"rank is {rank} for features of width {width}; expected 1 to {width}")
    if not 0 < rate < np.inf:
        raise ConfigError(f"learning_rate is {rate}; expected a positive number")
    if np.bincount(tasks).max() < 2:
        raise ConfigError(
            "no task of the query set has two examples, so none can be near another of its own; "
            "give more examples"
        )

"""Running an optimizer over given gradients, as one compiled loop."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def over(tx: Any, params: Any, grads: Any, state: Any = None) -> tuple[Any, Any, Any]:
    """Parameters, state and stacked updates after the gradients ``grads`` [steps, ...]."""

    @jax.jit
    def loop(params: Any, state: Any, grads: Any) -> Any:
        state = tx.init(params) if state is None else state

        def step(carry: Any, grad: Any) -> Any:
            params, state = carry
            updates, state = tx.update(grad, state, params)
            return (optax.apply_updates(params, updates), state), updates

        (last, state), updates = jax.lax.scan(step, (params, state), grads)
        return last, state, updates

    return loop(params, state, grads)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tree(*leading: int, seed: int = 0) -> dict[str, Any]:
    """A matrix, a kernel of three axes, a bias and a scalar, with leading axes."""
    shapes = {"w": (12, 10), "q": (12, 2, 6), "b": (10,), "s": ()}
    return {
        name: jnp.asarray(normal(*leading, *shape, seed=seed + k))
        for k, (name, shape) in enumerate(shapes.items())
    }


def take(tree: Any, *index: Any) -> Any:
    """``leaf[index]`` of every leaf, on the host: no program is compiled for it."""
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[index]), tree)


def difference(a: Any, b: Any) -> float:
    """``|a - b| / |b|`` over whole trees, in double precision on the host."""
    a, b = (jax.tree.map(lambda x: np.asarray(x, np.float64), tree) for tree in (a, b))
    gap = sum(jax.tree.leaves(jax.tree.map(lambda x, y: np.square(x - y).sum(), a, b)))
    return float(np.sqrt(gap / sum(np.square(x).sum() for x in jax.tree.leaves(b))))

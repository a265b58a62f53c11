"""Random keys that belong to a sample, not to a device or a place in the batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def sample_keys(seed: int | jax.Array, step: int | jax.Array, index: jax.Array) -> jax.Array:
    """One key per sample: ``fold_in(fold_in(key(seed), step), index)``.

    Dropout and drop path drawn from these are the same numbers however the batch is sharded,
    ordered or split over hosts, because nothing but the global index of a sample enters.

    Args:
      seed: an integer, or a typed key (``jax.random.key``).
      step: the global step, so that a sample seen again is dropped differently.
      index: int [B], global sample indices (below 2**32 - 1).

    Returns:
      Typed PRNG keys [B].
    """
    is_key = isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key)
    key = jax.random.fold_in(seed if is_key else jax.random.key(seed), step)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


def step_key(seed: int, step: int | jax.Array) -> jax.Array:
    """One typed key for what a step draws once: that of a sample which does not exist."""
    return sample_keys(seed, step, jnp.full(1, 2**32 - 1, jnp.uint32))[0]

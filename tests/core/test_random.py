"""Keys belong to samples: neither the order nor the split of a batch changes what is drawn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sinewich_jax.core.random import sample_keys


@jax.jit
def draw(keys: jax.Array) -> jax.Array:
    return jax.vmap(lambda key: jax.random.uniform(key, (5,)))(keys)


def test_a_key_is_two_folds_of_the_seed():
    keys = sample_keys(7, 3, jnp.array([10, 11]))
    expected = jax.random.fold_in(jax.random.fold_in(jax.random.key(7), 3), 11)
    assert keys.shape == (2,)
    assert jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
    assert jnp.array_equal(jax.random.key_data(keys[1]), jax.random.key_data(expected))


def test_a_typed_key_serves_as_seed():
    index = jnp.arange(4)
    np.testing.assert_array_equal(
        draw(sample_keys(jax.random.key(7), 3, index)), draw(sample_keys(7, 3, index))
    )


def test_order_and_batch_size_do_not_matter():
    index = jnp.array([5, 2, 9, 0])
    together = draw(sample_keys(0, 1, index))
    alone = np.concatenate([draw(sample_keys(0, 1, index[i : i + 1])) for i in range(4)])
    np.testing.assert_array_equal(together, alone)


def test_seed_step_and_sample_all_matter():
    index = jnp.arange(3)
    draws = [draw(sample_keys(seed, step, index)) for seed in (0, 1) for step in (0, 1)]
    assert len(np.unique(np.concatenate(draws)[:, 0])) == 12


def test_sharding_the_batch_gives_the_same_numbers_under_jit():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    index = jnp.arange(16)
    sharded = jax.device_put(index, NamedSharding(mesh, PartitionSpec("data")))

    @jax.jit
    def compute(step, index):
        return draw(sample_keys(0, step, index))

    np.testing.assert_array_equal(compute(2, index), compute(2, sharded))
    np.testing.assert_array_equal(compute(2, index), draw(sample_keys(0, 2, index)))

"""Squares of single gradients: against a loop, and whole or in chunks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinewich_jax.errors import ConfigError
from sinewich_jax.optim import micro_batch_squares, per_example_squares
from tests.optim.helpers import normal

PARAMS = {"w": jnp.asarray(normal(4, 3)), "b": jnp.zeros(3, jnp.bfloat16)}
BATCH = (jnp.asarray(normal(6, 4, seed=1)), jnp.asarray(normal(6, 3, seed=2)))


def loss(params, example):
    x, y = example
    return jnp.square(jnp.tanh(x @ params["w"] + params["b"]) - y).sum()


def mean_loss(params, batch):
    return jax.vmap(loss, (None, 0))(params, batch).mean()


def mean_of_squares(function, groups):
    gradient = jax.jit(jax.grad(function))
    gradients = [gradient(PARAMS, group) for group in groups]
    return {
        name: np.mean([np.square(np.asarray(g[name], np.float32)) for g in gradients], axis=0)
        for name in PARAMS
    }


@pytest.mark.parametrize("chunk", [None, 2])
def test_they_are_means_of_squares(chunk):
    found = jax.jit(lambda p, b: per_example_squares(loss, p, b, chunk=chunk))(PARAMS, BATCH)
    expected = mean_of_squares(loss, list(zip(*map(np.asarray, BATCH), strict=True)))
    assert found["b"].dtype == jnp.float32
    np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-5)
    np.testing.assert_allclose(found["b"], expected["b"], rtol=2e-2)


def test_micro_batches_group_what_follows_each_other():
    found = jax.jit(lambda p, b: micro_batch_squares(mean_loss, p, b, 3))(PARAMS, BATCH)
    groups = [tuple(np.asarray(part)[i : i + 3] for part in BATCH) for i in (0, 3)]
    np.testing.assert_allclose(found["w"], mean_of_squares(mean_loss, groups)["w"], rtol=1e-5)
    single = jax.jit(lambda p, b: micro_batch_squares(mean_loss, p, b, 1, chunk=6))(PARAMS, BATCH)
    expected = mean_of_squares(loss, list(zip(*map(np.asarray, BATCH), strict=True)))
    np.testing.assert_allclose(single["w"], expected["w"], rtol=1e-5)


def test_bad_input():
    with pytest.raises(ConfigError, match="chunk is 4 and does not divide the 6 gradients"):
        per_example_squares(loss, PARAMS, BATCH, chunk=4)
    with pytest.raises(ConfigError, match="size is 0; expected at least 1"):
        micro_batch_squares(mean_loss, PARAMS, BATCH, 0)
    with pytest.raises(ConfigError, match=r"lengths \[5, 6\]"):
        per_example_squares(loss, PARAMS, (BATCH[0], BATCH[1][:5]))

"""A product of many rows: the numbers of ``x @ kernel``, alone and for many kernels at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinewich_jax.core.products import rows_product


@pytest.mark.parametrize("leading", [(), (1,), (5,), (2, 3), (2, 3, 4), (0, 3)])
def test_equals_a_product_on_the_last_axis(leading):
    x = np.random.default_rng(0).standard_normal((*leading, 7)).astype(np.float32)
    kernel = np.random.default_rng(1).standard_normal((7, 6)).astype(np.float32)

    made = rows_product(jnp.asarray(x), jnp.asarray(kernel))

    assert made.shape == (*leading, 6)
    np.testing.assert_allclose(made, x @ kernel, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_many_kernels_at_once_and_their_gradients(axis):
    """Closed form: with L = sum(y g), dL/dK_t = x_t^T g_t and dL/dx_t = g_t K_t^T."""
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((2, 3, 4, 5, 7)), rng.standard_normal((2, 3, 4, 5, 6))
    kernels = rng.standard_normal((x.shape[axis], 7, 6))
    given = [jnp.asarray(array, jnp.float32) for array in (x, kernels, g)]

    product = jax.vmap(rows_product, (axis, 0), axis)
    made, back = jax.vjp(product, *given[:2])
    of_x, of_kernels = back(given[2])

    first, last = np.moveaxis(x, axis, 0), np.moveaxis(g, axis, 0)
    wanted = np.moveaxis(np.einsum("tabci,tio->tabco", first, kernels), 0, axis)
    np.testing.assert_allclose(made, wanted, rtol=1e-5, atol=1e-5)
    wanted = np.einsum("tabci,tabco->tio", first, last)
    np.testing.assert_allclose(of_kernels, wanted, rtol=1e-4, atol=1e-4)
    wanted = np.moveaxis(np.einsum("tabco,tio->tabci", last, kernels), 0, axis)
    np.testing.assert_allclose(of_x, wanted, rtol=1e-5, atol=1e-5)

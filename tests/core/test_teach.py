"""T-teach: where the tasks' kernels are related through one M, a sine learns what a gain cannot."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sinewich_jax.core import sine

CHANNELS, RANK, STEPS = 48, 4, 3000


def task_kernels(up: jax.Array, down: jax.Array, omega: jax.Array) -> jax.Array:
    return jax.vmap(sine.modulate, (None, 0))(sine.awb_kernel(up, None, down), omega)


@jax.jit
def train(student: dict[str, jax.Array], targets: jax.Array) -> jax.Array:
    """The student's normalised error after Adam, 3e-3 with a cosine to zero."""
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, STEPS))

    def loss(student):
        return jnp.sum((task_kernels(**student) - targets) ** 2) / jnp.sum(targets**2)

    def step(carry, _):
        student, state = carry
        updates, state = optimizer.update(jax.grad(loss)(student), state)
        return (optax.apply_updates(student, updates), state), None

    (student, _), _ = jax.lax.scan(step, (student, optimizer.init(student)), length=STEPS)
    return loss(student)


def scalar_gain_error(targets: jax.Array) -> float:
    """The normalised error of the best ``gain_t * M`` with M of rank r, the student without sine.

    Exact in each half step: for gains of norm one the best M is the truncated SVD of the weighted
    sum of the targets, for an M the best gains are projections. Every start ends at one value.
    """
    targets = np.asarray(targets, np.float64).reshape(-1, CHANNELS, CHANNELS)
    gains = np.ones(len(targets))
    for _ in range(50):
        gains /= np.linalg.norm(gains)
        left, values, right = np.linalg.svd(np.tensordot(gains, targets, 1))
        shared = left[:, :RANK] * values[:RANK] @ right[:RANK]
        gains = np.tensordot(targets, shared) / np.sum(shared**2)
    residual = gains[:, None, None] * shared - targets
    return float(np.sum(residual**2) / np.sum(targets**2))


@pytest.mark.parametrize(
    ("omega", "without_sine"), [((0.5, 1.0, 1.5, 2.0), 0.3), ((0.5, 1.5, 2.5, 3.5), 0.55)]
)
def test_t_teach_the_sine_finds_the_teacher(omega, without_sine):
    omega = jnp.array(omega)
    up, down = sine.anchor_factors(jax.random.key(0), CHANNELS, CHANNELS, RANK, std=1.0)
    targets = task_kernels(up, down, omega)
    keys = jax.random.split(jax.random.key(1), 2)

    def perturbed(factor, key):
        return factor + 0.1 * jnp.std(factor) * jax.random.normal(key, factor.shape)

    student = {
        "up": perturbed(up, keys[0]),
        "down": perturbed(down, keys[1]),
        "omega": jnp.mean(omega) + jnp.linspace(-0.3, 0.3, len(omega)),
    }
    with_gain = scalar_gain_error(targets)
    assert with_gain > without_sine
    error = train(student, targets)
    assert error < 1e-3
    assert error < 0.01 * with_gain

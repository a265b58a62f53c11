"""The bias that a head starts with costs least among all constants, by a fine search."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from sinewich_jax import tasks

RNG = np.random.default_rng(0)
SHAPE = (6, 5, 4)
VALID = np.ones(SHAPE, bool)


def cost(task, label, constant):
    logits = jnp.broadcast_to(jnp.asarray(constant, jnp.float32), (*SHAPE, task.channels))
    return float(task.loss(logits, label, VALID))


@pytest.mark.parametrize(
    ("task", "label"),
    [
        (tasks.make("semseg", channels=3), RNG.choice(3, SHAPE, p=[0.6, 0.3, 0.1])),
        (tasks.make("edge"), RNG.random(SHAPE) < 0.2),
        (tasks.make("saliency"), RNG.random(SHAPE) < 0.3),
    ],
)
def test_no_other_constant_costs_less(task, label):
    label = label.astype(np.uint8)
    best = task.best_constant(task.mean_label(label, VALID))
    assert best.shape == (task.channels,) and best.dtype == np.float32
    lowest = cost(task, label, best)
    for channel in range(task.channels):
        for step in (-0.5, 0.5):
            other = best.copy()
            other[channel] += step
            assert cost(task, label, other) > lowest


def test_values_start_at_their_mean():
    depth = RNG.uniform(1, 5, SHAPE).astype(np.float32)
    task = tasks.make("depth")
    np.testing.assert_allclose(
        task.best_constant(task.mean_label(depth, VALID)), [depth.mean()], rtol=1e-5
    )

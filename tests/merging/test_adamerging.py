"""AdaMerging: entropy falls, coefficients find the expert that is certain, and what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinewich_jax import merging
from sinewich_jax.errors import ConfigError, SinewichError

FAST = {"steps": 40, "learning_rate": 0.05}


def predict(params: dict, batch: np.ndarray) -> jax.Array:
    return batch @ params["layers"][0] + params["bias"]


def study() -> tuple[dict, dict, list[np.ndarray]]:
    """One expert makes predictions certain, the other blurs them."""
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 4)).astype(np.float32)

    def tree(scale: float) -> dict:
        return {"layers": [scale * kernel], "bias": np.zeros(4, np.float32), "steps": np.int32(1)}

    batches = [rng.standard_normal((8, 3)).astype(np.float32) for _ in range(3)]
    return tree(1.0), {"sharp": tree(3.0), "blunt": tree(0.1)}, batches


def entropy(params: dict, batches: list[np.ndarray]) -> float:
    scores = predict(params, np.concatenate(batches))
    log = jax.nn.log_softmax(scores)
    return float(-(jnp.exp(log) * log).sum(axis=-1).mean())


@pytest.mark.parametrize("granularity", ["task", "leaf"])
def test_entropy_falls(granularity):
    base, experts, batches = study()
    start = merging.merge("task_arithmetic", base, experts, scale=0.3)
    options = {"predict": predict, "batches": batches, "granularity": granularity, **FAST}
    found = merging.merge("adamerging", base, experts, **options)
    assert entropy(found, batches) < entropy(start, batches) - 0.05
    assert isinstance(found["layers"], list) and isinstance(found["layers"][0], np.ndarray)
    assert found["steps"] == 1 and found["bias"].dtype == np.float32
    on_device = merging.merge("adamerging", *jax.tree.map(jnp.asarray, (base, experts)), **options)
    np.testing.assert_allclose(on_device["layers"][0], found["layers"][0], rtol=1e-4)


def test_one_step_moves_each_coefficient_by_the_learning_rate():
    """Adam's first step is the sign of the gradient: up for the sharp, down for the blunt."""
    base, experts, batches = study()
    found = merging.merge(
        "adamerging", base, experts, predict=predict, batches=batches, steps=1, learning_rate=0.01
    )
    kernel = base["layers"][0]
    expected = kernel + 0.31 * 2.0 * kernel - 0.29 * 0.9 * kernel
    np.testing.assert_allclose(found["layers"][0], expected, rtol=1e-5)


def test_heads_by_name_and_equal_experts():
    base, experts, batches = study()

    def heads(params: dict, batch: np.ndarray) -> dict:
        return {"sharp": predict(params, batch), "blunt": predict(params, batch)}

    options = {"batches": batches, "steps": 2}
    one = merging.merge("adamerging", base, experts, predict=predict, **options)
    two = merging.merge("adamerging", base, experts, predict=heads, **options)
    np.testing.assert_allclose(two["layers"][0], one["layers"][0], rtol=1e-5)
    same = merging.merge("adamerging", base, dict.fromkeys(experts, base), predict=heads, **options)
    jax.tree.map(np.testing.assert_array_equal, same, base)


def test_it_refuses():
    base, experts, batches = study()

    def run(**options: object) -> object:
        given = {"predict": predict, "batches": batches, "steps": 1} | options
        return merging.merge("adamerging", base, experts, **given)

    with pytest.raises(ConfigError, match="needs the option 'predict'"):
        merging.merge("adamerging", base, experts)
    with pytest.raises(ConfigError, match="batches ended after 2 of 9 steps and cannot be read"):
        run(batches=iter(batches[:2]), steps=9)
    with pytest.raises(ConfigError, match="steps is 0"):
        run(steps=0)
    with pytest.raises(ConfigError, match="predict has to be a function"):
        run(predict=None)
    with pytest.raises(ConfigError, match=r"logits of 'sharpp', which is no expert \(did you mean"):
        run(predict=lambda params, batch: {"sharpp": predict(params, batch)})
    with pytest.raises(ConfigError, match="'granularity' is 'layer'"):
        run(granularity="layer")
    with pytest.raises(SinewichError, match="coefficients of adamerging became NaN"):
        run(predict=lambda params, batch: predict(params, batch) * jnp.nan)
    with pytest.raises(SinewichError, match="cannot be traced; call it unjitted"):
        jax.jit(lambda e: merging.merge("adamerging", base, e, predict=predict, batches=batches))(
            experts
        )

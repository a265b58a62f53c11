"""Dropout on the inputs of adapters: what it thins, what it leaves alone, whose random numbers."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.pascal_context import get_config as pascal
from sinewich_jax.config import from_config_dict
from sinewich_jax.core.random import sample_keys
from sinewich_jax.core.trees import flatten_paths, unflatten_paths
from sinewich_jax.nn import mtlora
from sinewich_jax.nn.layers import Dense, dropout
from sinewich_jax.nn.mtlora import MTLoRASpec
from sinewich_jax.nn.swin import Swin
from sinewich_jax.nn.tadformer import TADFormerSpec
from sinewich_jax.nn.task_kernel import TaskSpec
from sinewich_jax.train import build
from tests.helpers import fake_params
from tests.tiers import cases

TASKS = 2
SMALL = dict(patch_size=2, embed_dim=8, depths=(2, 1), heads=(2, 2), window=4, lora_rank=2)
SHAPES = {"params": jax.random.key(1), "anchor": jax.random.key(2)}
KINDS = {
    "sinewich": dict(task=TaskSpec(TASKS, rank=2, start="zero")),
    "mtlora_plus": dict(task=MTLoRASpec(TASKS), features="merged", lora_merging=True),
    "tadformer": dict(task=TADFormerSpec(TASKS, rank=2), prompts=True),
}


def test_dropout_keeps_the_mean_and_follows_the_example():
    x = jnp.ones((50, 20, 40))
    keys = sample_keys(0, 0, jnp.arange(50))
    thinned = dropout(x, 0.3, keys)
    np.testing.assert_allclose(np.unique(thinned), [0.0, 1 / 0.7], rtol=1e-6)
    # Standard error of the mean: sqrt(0.3 / 0.7 / 40,000) = 0.0033; four of them.
    assert abs(float(thinned.mean()) - 1.0) < 0.0132
    order = np.arange(50)[::-1]
    np.testing.assert_array_equal(dropout(x, 0.3, keys[order]), thinned[order])
    assert len({row.tobytes() for row in np.asarray(thinned)}) == 50
    assert dropout(x, 0.0, keys) is x


def test_only_the_update_of_a_linear_map_reads_the_thinned_input():
    dense = Dense(6, 5, lora_rank=2, lora_dropout=0.5)
    x = jax.random.normal(jax.random.key(0), (4, 3, 6))
    variables = fake_params(jax.eval_shape(lambda: dense.init(SHAPES, x)))
    keys = sample_keys(0, 0, jnp.arange(4))
    read = dropout(x, 0.5, keys)
    frozen = dense.apply(variables, x, method="frozen")
    update = dense.apply(variables, read, method="low_rank")
    np.testing.assert_allclose(dense.apply(variables, x, keys), frozen + update, rtol=1e-6)


def test_mtlora_tasks_without_a_stream_read_what_the_shared_update_reads():
    """``proj`` is where streams part; with one pair of factors for all, the updates agree."""
    spec = TaskSpec(TASKS, kind="task", rank=2, scale=4.0)
    dense = Dense(6, 6, lora_rank=2, lora_dropout=0.5, task=spec)
    x = jax.random.normal(jax.random.key(0), (4, 3, 6))
    shapes = jax.eval_shape(lambda: dense.init(SHAPES, x, None, method=_everything))
    flat = flatten_paths(fake_params(shapes["params"]))
    for own, shared in (("task/down", "lora_down"), ("task/up", "lora_up")):
        flat[own] = jnp.broadcast_to(flat[shared], flat[own].shape)
    variables = {"params": unflatten_paths(flat)}
    keys = sample_keys(0, 0, jnp.arange(4))
    both = _both(variables, dense, x, None, keys)
    np.testing.assert_allclose(both[1], jnp.stack([both[0]] * TASKS), rtol=1e-5, atol=1e-6)
    # A stream of the task's own is not dropped.
    own = _both(variables, dense, x, jnp.stack([x] * TASKS), keys)
    plain = dense.apply(variables, x)
    np.testing.assert_allclose(own[1], jnp.stack([plain] * TASKS), rtol=1e-5, atol=1e-6)


def _everything(dense: Dense, x: jax.Array, omega: jax.Array | None) -> jax.Array:
    return dense(x) + dense.task_kernels(omega).sum()


def _both(variables: dict, dense: Dense, *args: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    return dense.apply(variables, *args, method=mtlora._both)


@functools.cache
def outputs(kind: str):
    """Features with dropout, with the same model but no keys, and with its adapters at zero."""
    model = Swin(**SMALL, **KINDS[kind], lora_dropout=0.5)
    image = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    tokens = None
    if model.prompts:
        tokens = (jnp.ones((TASKS, 8)), [jnp.ones((8, 16)) / 8])
    omega = {name: jnp.arange(1.0, TASKS + 1) for name in model.task_layers}
    shapes = jax.eval_shape(lambda: model.init(SHAPES, image, omega, None, tokens))
    variables = fake_params(shapes, scale=0.3)
    keys = sample_keys(7, 3, jnp.arange(4))
    with_keys = jax.jit(lambda v, image, keys: model.apply(v, image, omega, keys, tokens))
    without = jax.jit(lambda v, image: model.apply(v, image, omega, None, tokens))
    return with_keys, without, variables, image, keys


@pytest.mark.parametrize("kind", cases(KINDS, fast=("sinewich",)))
def test_dropout_of_a_network_follows_the_example_not_its_place(kind):
    with_keys, without, variables, image, keys = outputs(kind)
    features = with_keys(variables, image, keys)
    order = np.array([3, 1, 0, 2])
    shuffled = with_keys(variables, image[order], keys[order])
    plain = without(variables, image)
    for a, b, c in zip(features, shuffled, plain, strict=True):
        np.testing.assert_allclose(a[:, order], b, rtol=1e-5, atol=1e-5)
        assert not np.allclose(a, c)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_does_not_touch_the_frozen_maps(kind):
    with_keys, without, variables, image, keys = outputs(kind)
    flat = flatten_paths(variables["params"])
    untouched = {k: jnp.zeros_like(v) if k.endswith(("lora_up", "task/up")) else v
                 for k, v in flat.items()}  # fmt: skip
    variables = {"params": unflatten_paths(untouched)}
    thinned, plain = with_keys(variables, image, keys), without(variables, image)
    for a, b in zip(thinned, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_the_published_recipe_drops_and_the_network_is_told():
    config = from_config_dict(pascal("mtlora"))
    assert config.adapter_dropout == 0.05
    assert build.experiment(config).model.backbone.lora_dropout == 0.05

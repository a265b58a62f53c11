from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinewich_jax.core import adapters
from sinewich_jax.errors import ConfigError, DataError
from sinewich_jax.nn.bert import PLACES, Bert, mean_pool

BERT = Bert(vocabulary=30, width=16, depth=2, heads=4, hidden=24, positions=12)


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 30, (3, 7))
    mask = np.arange(7) < np.array([[7], [5], [2]])
    shapes = jax.eval_shape(BERT.init, jax.random.key(0), ids, mask)
    draw = lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32)  # noqa: E731
    return jax.tree.map(draw, shapes), ids, mask


def test_padding_is_not_seen(case):
    params, ids, mask = case
    plain = BERT.apply(params, ids, mask)
    other = BERT.apply(params, np.where(mask, ids, 29), mask)
    np.testing.assert_array_equal(plain[mask], other[mask])
    assert not np.allclose(plain, BERT.apply(params, ids, np.ones_like(mask)))
    pooled = mean_pool(plain, mask)
    np.testing.assert_allclose(pooled[2], plain[2, :2].mean(0), rtol=1e-5, atol=1e-6)


def test_segments_and_places_matter(case):
    params, ids, mask = case
    plain = BERT.apply(params, ids, mask)
    assert not np.allclose(plain, BERT.apply(params, ids, mask, np.ones_like(ids)))
    turned = BERT.apply(params, ids[:1, ::-1], mask[:1])[:, ::-1]
    assert not np.allclose(plain[:1], turned)


def test_dropout_follows_the_example_not_its_place(case):
    params, ids, mask = case
    keys = jax.random.split(jax.random.key(1), 3)
    found = BERT.apply(params, ids, mask, None, keys)
    again = BERT.apply(params, ids[::-1], mask[::-1], None, keys[::-1])[::-1]
    np.testing.assert_allclose(found, again, atol=1e-5)
    assert not np.allclose(found, BERT.apply(params, ids, mask), atol=1e-3)


def test_adapters_end_a_sub_layer(case):
    """A zero adapter in every placement is the plain network, another one is not."""
    params, ids, mask = case
    plain = BERT.apply(params, ids, mask)
    rng = np.random.default_rng(2)
    own = adapters.Bottleneck(
        *(rng.normal(0, 0.2, shape).astype(np.float32) for shape in ((16, 4), (4,), (4, 16), (16,)))
    )
    zero = own._replace(up_kernel=np.zeros((4, 16), np.float32), up_bias=np.zeros(16, np.float32))
    seen = []

    def run(placement, adapter):
        def end(layer, place, x, residual, norm):
            seen.append((layer, place))
            return placement(x, residual, norm, lambda h: adapters.bottleneck(h, adapter).up)

        return BERT.apply(params, ids, mask, end=end)

    for placement in (adapters.after_norm, adapters.before_norm, adapters.in_parallel):
        np.testing.assert_allclose(run(placement, zero), plain, atol=1e-5)
        assert not np.allclose(run(placement, own), plain, atol=1e-2)
    assert seen[:4] == [(layer, place) for layer in range(2) for place in PLACES]


def test_too_many_tokens_are_refused(case):
    params, *_ = case
    long = np.zeros((1, 13), np.int32)
    with pytest.raises(DataError, match="texts are 13 tokens long, expected at most 12"):
        BERT.apply(params, long, np.ones_like(long))
    roberta = BERT.clone(padding=1)
    assert roberta.longest == 10


def test_another_activation_is_refused(case):
    params, ids, mask = case
    for name, words in (
        ("gelo", r"'gelo' \(did you mean 'gelu'\?\)"),
        (None, r"None \(known: gelu"),
    ):
        with pytest.raises(ConfigError, match=f"the activation is {words}"):
            BERT.clone(activation=name).apply(params, ids, mask)


def test_bfloat16_keeps_parameters_in_float32(case):
    params, ids, mask = case
    narrow = BERT.clone(dtype=jnp.bfloat16)
    found = narrow.apply(params, ids, mask)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found[mask], BERT.apply(params, ids, mask)[mask], atol=0.15)
    made = jax.eval_shape(narrow.init, jax.random.key(0), ids, mask)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype(jnp.float32)}


def test_parameters_of_bert_base():
    base = Bert(vocabulary=30522, width=768, depth=12, heads=12, hidden=3072, positions=512)
    ids = jnp.zeros((1, 2), jnp.int32)
    made = jax.eval_shape(base.init, jax.random.key(0), ids, ids)
    count = sum(leaf.size for leaf in jax.tree.leaves(made))
    assert count == 109_482_240 - (768 * 768 + 768)  # BertModel without its pooler

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinewich_jax.errors import ConfigError, DataError
from sinewich_jax.switches.queries import QuerySet
from sinewich_jax.switches.router import FIELDS, MODES, Router, route

VOTES = np.float32([[0.5, 0.5, 0], [0, 0, 1], [0, 0.4, 0.6], [0, 0, 0]])


@pytest.fixture
def queries() -> QuerySet:
    """Two tasks, a hundred examples each, around (0, 0, ...) and (4, 4, ...)."""
    rng = np.random.default_rng(0)
    tasks = np.repeat([0, 1], 100)
    return QuerySet.checked(rng.standard_normal((200, 6)) + 4 * tasks[:, None], tasks, ["a", "b"])


@pytest.mark.parametrize(
    "mode, expected",
    [
        ("per_sample", VOTES),
        ("top1", [[1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 0]]),
        ("batch_mean", [[1 / 6, 0.3, 1.6 / 3]] * 3 + [[0, 0, 0]]),
        ("batch_top1", [[0, 0, 1]] * 3 + [[0, 0, 0]]),
    ],
)
@pytest.mark.parametrize("xp", [np, jnp])
def test_modes(mode, expected, xp):
    found = route(xp.asarray(VOTES), mode)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32


@settings(max_examples=60)
@given(st.data(), st.sampled_from(MODES))
def test_weights_follow_their_samples(data, mode):
    votes = np.float32(
        data.draw(st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=1))
    )
    votes /= np.maximum(votes.sum(axis=1, keepdims=True), 1)
    order = data.draw(st.permutations(range(len(votes))))
    np.testing.assert_allclose(route(votes[order], mode), route(votes, mode)[order], atol=1e-6)
    heard = votes.any(axis=1)
    np.testing.assert_allclose(route(votes, mode).sum(axis=1), heard, rtol=1e-6)


def test_another_mode_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'batch_mean'"):
        route(VOTES, "batchmean")


def test_far_samples_abstain_and_known_ones_do_not(queries):
    router = Router.fit(queries)
    rng = np.random.default_rng(1)
    known = (rng.standard_normal((200, 6)) + 4 * np.repeat([0, 1], 100)[:, None]).astype(np.float32)
    far = known + np.float32([20, -20, 0, 0, 0, 0])
    strange = np.full((1, 6), np.nan, np.float32)
    routing = router(np.concatenate([known, far, strange]))
    assert routing.unknown[:200].mean() < 0.05 and routing.unknown[200:].all()
    np.testing.assert_array_equal(routing.weights[200:], 0)
    np.testing.assert_allclose(routing.weights[:200].sum(1), ~routing.unknown[:200])
    assert routing.votes[200:400].sum() == pytest.approx(200)  # the best guess stays
    assert (routing.votes[:200].argmax(1) == np.repeat([0, 1], 100)).mean() > 0.95

    bold = router(far, abstain=False)
    assert bold.unknown.all()
    np.testing.assert_array_equal(bold.weights, bold.votes)


@pytest.mark.parametrize("mode", MODES)
def test_unknown_samples_are_in_no_mean(queries, mode):
    router = Router.fit(queries)
    near, far = queries.features[:5], queries.features[:2] + 100
    alone, mixed = router(near, mode), router(np.concatenate([near, far]), mode)
    np.testing.assert_allclose(mixed.weights, [*alone.weights, [0, 0], [0, 0]], atol=1e-6)


def test_routing_under_jit_is_routing_with_numpy(queries):
    router = Router.fit(queries, 7, metric="cosine", weighting="distance")
    features = np.random.default_rng(2).standard_normal((50, 6)).astype(np.float32) + 2
    plain, traced = router(features), jax.jit(router.__call__)(features)
    for a, b in zip(plain, traced, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_projection_is_applied_to_both_sides(queries):
    projection = np.random.default_rng(3).standard_normal((6, 2)).astype(np.float32)
    features = np.random.default_rng(4).standard_normal((9, 6)).astype(np.float32)
    projected = Router.fit(queries.project(projection))
    router = Router.fit(queries, projection=projection)
    assert router.queries.features.shape == (200, 2)
    for a, b in zip(router(features), projected(features @ projection), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    by_jax = jax.jit(router.__call__)(features)
    np.testing.assert_allclose(by_jax.weights, router(features).weights, atol=1e-6)


def test_a_router_without_a_threshold_cannot_abstain(queries):
    router = Router.fit(queries, quantile=None)
    assert router.threshold is None
    with pytest.raises(ConfigError, match="no threshold to abstain by"):
        router(queries.features)
    assert not router(queries.features, abstain=False).unknown.any()


def test_a_router_comes_back_from_its_fields(queries):
    projection = np.eye(6, 3)
    router = Router.fit(queries, 4, projection=projection, extractor="stem, pooled")
    fields = router.to_fields()
    assert set(fields) == set(FIELDS)
    again = Router.from_fields(fields)
    features = np.random.default_rng(5).standard_normal((9, 6)).astype(np.float32)
    for a, b in zip(router(features), again(features), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.extractor == "stem, pooled" and again.names == ("a", "b")
    bare = Router.from_fields({name: fields[name] for name in ("features", "tasks", "names")})
    assert (bare.k, bare.metric, bare.threshold) == (10, "l2", None)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"neighbours": 3}, "no field 'neighbours'"),
        ({"k": 0}, "k is 0"),
        ({"k": "10"}, "k is '10'"),
        ({"metric": "L2"}, "metric is 'L2'"),
        ({"weighting": "inverse"}, "weighting is 'inverse'"),
        ({"threshold": -1.0}, "threshold is -1.0"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"projection": np.zeros((6, 5))}, r"expected \(e, 6\)"),
        ({"extractor": 3}, "expected words"),
        ({"tasks": np.zeros(200, np.int32)}, "no example of the task 'b'"),
    ],
)
def test_fields_that_are_no_router_are_refused(queries, change, words):
    with pytest.raises((ConfigError, DataError), match=words):
        Router.from_fields(Router.fit(queries).to_fields() | change)


def test_a_missing_field_and_a_projection_that_does_not_fit_are_refused(queries):
    with pytest.raises(ConfigError, match="no 'tasks'"):
        Router.from_fields({"features": queries.features, "names": ["a", "b"]})
    with pytest.raises(DataError, match=r"expected \(6, r\)"):
        Router.fit(queries, projection=np.eye(5))
    router = Router.fit(queries, projection=np.eye(6, 3))
    with pytest.raises(DataError, match="features have width 5"):
        router(np.zeros((2, 5), np.float32))

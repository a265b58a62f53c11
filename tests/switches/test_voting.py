from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinewich_jax.errors import ConfigError, DataError
from sinewich_jax.switches import voting
from sinewich_jax.switches.queries import QuerySet, build_query_set

NAMES = ("a", "b", "c")
LIBRARIES = [pytest.param(lambda f: f, id="numpy"), pytest.param(jax.jit, id="jax")]


def made_up(count: int = 90, width: int = 12, seed: int = 0) -> QuerySet:
    rng = np.random.default_rng(seed)
    tasks = np.arange(count) % len(NAMES)
    features = rng.standard_normal((count, width)) + tasks[:, None] * 0.5
    return QuerySet.checked(features, tasks, NAMES[: min(count, len(NAMES))])


def samples(count: int = 500, width: int = 12, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, width)) + 0.5).astype(np.float32)


# --- votes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", voting.METRICS)
@pytest.mark.parametrize("weighting", voting.WEIGHTINGS)
@pytest.mark.parametrize("k", [1, 10])
def test_votes_are_the_class_probabilities_of_scikit_learn(metric, weighting, k):
    neighbors = pytest.importorskip("sklearn.neighbors", reason="it is in the test extra")
    queries, features = made_up(), samples()
    # Some samples are examples: at distance 0 these vote alone.
    features[:4] = queries.features[:4]
    model = neighbors.KNeighborsClassifier(k, weights=weighting, metric=metric, algorithm="brute")
    model.fit(np.float64(queries.features), queries.tasks)
    expected = model.predict_proba(np.float64(features))
    distances = np.sort(model.kneighbors(np.float64(features), k + 1)[0])
    clear = distances[:, k] - distances[:, k - 1] > 1e-6  # not decided by rounding
    assert clear.sum() >= 490
    by_jax = jax.jit(lambda x: voting.votes(queries, x, k, metric=metric, weighting=weighting))(
        features
    )
    by_numpy = voting.votes(queries, features, k, metric=metric, weighting=weighting)
    # A cosine of float32 has an error of its own near 1, where 1 / distance is large.
    tolerance = {"atol": 1e-6 if weighting == "uniform" else 2e-5, "rtol": 0}
    np.testing.assert_allclose(by_numpy[clear], expected[clear], **tolerance)
    np.testing.assert_allclose(by_jax[clear], expected[clear], **tolerance)
    assert isinstance(by_numpy, np.ndarray) and by_numpy.dtype == by_jax.dtype == np.float32


@settings(max_examples=40)
@given(st.integers(0, 2**16), st.integers(1, 40), st.sampled_from(voting.WEIGHTINGS))
def test_votes_sum_to_one_and_follow_the_samples(seed, k, weighting):
    queries, features = made_up(30, 4, seed), samples(20, 4, seed + 1)
    found = voting.votes(queries, features, k, weighting=weighting)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    order = np.random.default_rng(seed).permutation(20)
    shuffled = voting.votes(queries, features[order], k, weighting=weighting)
    np.testing.assert_allclose(shuffled, found[order], atol=1e-6)


def test_one_example_and_more_neighbours_than_examples():
    alone = QuerySet.checked([[1.0, 2.0]], [0], ["a"])
    poll = voting.poll(alone, np.float32([[4.0, 6.0]]), k=10)
    np.testing.assert_array_equal(poll.votes, [[1.0]])
    np.testing.assert_array_equal(poll.distance, [5.0])
    few = QuerySet.checked([[0.0], [1.0], [2.0], [3.0]], [0, 0, 0, 1], ["a", "b"])
    np.testing.assert_allclose(voting.votes(few, np.float32([[9.0]]), k=100), [[0.75, 0.25]])


def test_equal_distances_go_to_the_first_examples():
    ring = QuerySet.checked([[1, 0], [0, 1], [-1, 0], [0, -1]], [2, 0, 1, 1], NAMES)
    for wrap in (lambda f: f, jax.jit):
        found = wrap(lambda x: voting.votes(ring, x, k=2))(np.zeros((1, 2), np.float32))
        np.testing.assert_array_equal(found, [[0.5, 0, 0.5]])


@pytest.mark.parametrize("wrap", LIBRARIES)
@pytest.mark.parametrize(
    "weighting, metric", [("uniform", "l2"), ("distance", "l2"), ("distance", "cosine")]
)
def test_features_that_are_not_finite_have_no_votes(wrap, weighting, metric):
    features = samples(3)
    features[1, 0] = np.nan
    poll = wrap(lambda x: voting.poll(made_up(), x, metric=metric, weighting=weighting))
    found = poll(features)
    np.testing.assert_array_equal(found.votes[1], 0)
    np.testing.assert_array_equal(np.isinf(found.distance), [False, True, False])
    np.testing.assert_allclose(found.votes.sum(axis=1), [1, 0, 1], rtol=1e-6)


def test_half_precision_features_and_zero_vectors_under_cosine():
    queries = QuerySet.checked([[2, 0], [0, 3], [0, 0]], [0, 1, 2], NAMES)
    features = jnp.asarray([[1, 0], [0, 0]], jnp.bfloat16)
    poll = jax.jit(lambda x: voting.poll(queries, x, 1, metric="cosine"))(features)
    np.testing.assert_array_equal(poll.votes, [[1, 0, 0], [1, 0, 0]])  # all of 1 - cos 1 for zero
    np.testing.assert_array_equal(poll.distance, [0, 1])


@pytest.mark.parametrize(
    "options, words",
    [
        ({"k": 0}, "k is 0"),
        ({"k": True}, "k is True"),
        ({"k": 2.5}, "k is 2.5"),
        ({"metric": "cosin"}, "did you mean 'cosine'"),
        ({"weighting": "distances"}, "did you mean 'distance'"),
    ],
)
def test_unknown_options_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        voting.votes(made_up(), samples(2), **options)


@pytest.mark.parametrize("shape", [(12,), (2, 11), (2, 12, 1)])
def test_features_of_another_width_are_refused(shape):
    with pytest.raises(DataError, match=r"expects \(B, 12\)"):
        voting.votes(made_up(), np.zeros(shape, np.float32))


# --- the threshold ------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", voting.METRICS)
def test_leave_one_out_distances_against_a_loop(metric):
    queries = made_up(40, 5)
    found = voting.leave_one_out_distances(queries, 3, metric=metric)
    points = np.float64(queries.features)
    if metric == "cosine":
        unit = points / np.linalg.norm(points, axis=1, keepdims=True)
        distances = 1 - unit @ unit.T
    else:
        distances = np.linalg.norm(points[:, None] - points, axis=-1)
    np.fill_diagonal(distances, np.inf)
    np.testing.assert_allclose(found, np.sort(distances, axis=1)[:, 2], rtol=1e-5)
    threshold = voting.abstention_threshold(queries, 3, metric=metric)
    assert threshold == pytest.approx(np.quantile(found, 0.995))


def test_blocks_of_examples_do_not_change_distances(monkeypatch):
    queries = made_up(50, 5)
    whole = voting.leave_one_out_distances(queries)
    monkeypatch.setattr(voting, "_BLOCK", 7)
    np.testing.assert_allclose(voting.leave_one_out_distances(queries), whole, rtol=1e-6)


def test_examples_that_are_all_equal_are_at_distance_zero():
    queries = QuerySet.checked(np.full((20, 6), 0.1), np.arange(20) % 2, ["a", "b"])
    assert voting.abstention_threshold(queries, 3) == 0
    assert voting.poll(queries, np.full((1, 6), 0.1, np.float32), 3).distance == 0


def test_no_threshold_from_one_example_nor_beyond_all():
    with pytest.raises(ConfigError, match="one example has no neighbour"):
        voting.abstention_threshold(QuerySet.checked([[1.0]], [0], ["a"]))
    with pytest.raises(ConfigError, match=r"quantile is 99\.5"):
        voting.abstention_threshold(made_up(), quantile=99.5)


# --- query sets ---------------------------------------------------------------------------------


def test_a_query_set_takes_the_first_examples_of_every_task():
    batches = {
        "a": (np.full((4, 2), 10 * i, np.float32) for i in range(5)),
        "b": [jnp.ones((3, 2))],
    }
    read = []

    def features(inputs):
        read.append(len(inputs))
        return jnp.asarray(inputs) + 1

    queries = build_query_set(features, batches, n=10)
    assert queries.names == ("a", "b") and read == [4, 4, 2, 3]
    np.testing.assert_array_equal(queries.tasks, [0] * 10 + [1] * 3)
    np.testing.assert_array_equal(queries.features[:, 0], [1] * 4 + [11] * 4 + [21] * 2 + [2] * 3)
    assert queries.features.dtype == np.float32 and queries.tasks.dtype == np.int32
    assert len(list(batches["a"])) == 2  # no more was read than needed


def test_balanced_examples_take_turns_by_label():
    inputs = {"x": np.arange(12, dtype=np.float32)[:, None], "extra": {"y": np.zeros(12)}}
    labels = np.array([0] * 8 + [1] * 3 + [2])
    queries = build_query_set(
        lambda batch: batch["x"], {"a": [(inputs, labels)]}, n=7, balanced=True
    )
    assert queries.features[:, 0].tolist() == [0, 8, 11, 1, 9, 2, 10]


@pytest.mark.parametrize(
    "batches, options, words",
    [
        ({}, {}, "no batches of any task"),
        ({"a": []}, {}, "task 'a' has no example"),
        ({"a": [np.ones((2, 3))], "b": [np.ones((0, 3))]}, {}, "task 'b' has no example"),
        ({"a": []}, {"balanced": True}, "task 'a' has no example"),
        ({"a": [np.ones((2, 3))]}, {"balanced": True}, "no pair of inputs and labels"),
        ({"a": [(np.ones((2, 3)), np.ones(3))]}, {"balanced": True}, "one label an input"),
        ({"a": [np.ones((2, 3))], "b": [np.ones((2, 4))]}, {}, r"'b' have shape \(2, 4\)"),
        ({"a": [np.ones((2, 3))], "b": [np.full((2, 3), np.nan)]}, {}, "first of the task 'b'"),
        ({"a": [np.float32(1)]}, {}, "leading axes"),
        ({"a": [np.ones((2, 3))]}, {"n": 0}, "n is 0"),
        ({"a": [np.ones((2, 3))]}, {"n": 2.0}, "n is 2.0"),
    ],
)
def test_what_is_no_query_set_is_refused(batches, options, words):
    with pytest.raises((ConfigError, DataError), match=words):
        build_query_set(lambda inputs: inputs, batches, **options)


@pytest.mark.parametrize(
    "features, tasks, names, words",
    [
        ([[1.0]], [0], ["a", "a"], "each once"),
        ([[1.0]], [0], [], "each once"),
        ([1.0], [0], ["a"], r"expected \(M, e\)"),
        ([[1.0]], [0, 0], ["a"], r"expected \(M, e\)"),
        ([[1.0]], [1], ["a"], "from 0 to 0"),
        ([[1.0]], [0.5], ["a"], "from 0 to 0"),
        ([[1.0]], [0], ["a", "b"], "no example of the task 'b'"),
    ],
)
def test_arrays_that_are_no_query_set_are_refused(features, tasks, names, words):
    with pytest.raises((ConfigError, DataError), match=words):
        QuerySet.checked(features, tasks, names)


def test_routing_with_numpy_needs_no_jax():
    script = """
import sys
import numpy as np
from sinewich_jax.switches import dispatch, metric, protocols
from sinewich_jax.switches.queries import build_query_set
from sinewich_jax.switches.router import Router
rng = np.random.default_rng(0)
batches = {name: [rng.standard_normal((20, 4)) + i] for i, name in enumerate("ab")}
router = Router.fit(build_query_set(lambda x: x, batches), 5)
routing = router(rng.standard_normal((6, 4)).astype(np.float32), "batch_mean")
assert dispatch.group_routes(routing.weights).group.shape == (6,)
assert not {"jax", "optax", "flax"} & set(sys.modules), sorted(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr

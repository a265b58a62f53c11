from __future__ import annotations

import jax
import numpy as np
import pytest

from sinewich_jax.core.neighbours import soft_neighbours, squared_distances
from sinewich_jax.errors import ConfigError
from sinewich_jax.switches.metric import fit_metric
from sinewich_jax.switches.queries import QuerySet
from sinewich_jax.switches.router import Router


def hidden(count: int = 80, seed: int = 0) -> QuerySet:
    """Four tasks that differ in two small directions among twelve, the others being loud."""
    rng = np.random.default_rng(seed)
    tasks = np.arange(count) % 4
    features = 2 * rng.standard_normal((count, 12))
    features[:, 3] = 0.2 * rng.standard_normal(count) + 2 * (tasks % 2)
    features[:, 7] = 0.2 * rng.standard_normal(count) + 2 * (tasks // 2)
    return QuerySet.checked(7 + 3 * features, tasks, ["a", "b", "c", "d"])


def test_a_learned_metric_finds_the_task_where_the_plain_one_does_not():
    queries, others = hidden(200), hidden(200, seed=1)
    plain = Router.fit(queries)(others.features)
    projection = fit_metric(queries, rank=4, steps=200)
    assert projection.shape == (12, 4) and projection.dtype == np.float32
    learned = Router.fit(queries, projection=projection)(others.features)
    found = [(routing.votes.argmax(1) == others.tasks).mean() for routing in (plain, learned)]
    assert found[0] < 0.6 and found[1] > 0.8


def test_without_steps_it_is_the_principal_components():
    queries = hidden()
    projection = fit_metric(queries, rank=3, steps=0)
    centered = queries.features - queries.features.mean(0)
    expected = np.linalg.svd(centered)[2][:3].T / queries.features.std()
    np.testing.assert_allclose(np.abs(projection), np.abs(expected), rtol=1e-3, atol=1e-6)


def test_the_scale_of_the_features_does_not_matter():
    queries = hidden(40)
    larger = queries._replace(features=queries.features * 100)
    found = [fit_metric(q, rank=2, steps=5) for q in (queries, larger)]
    np.testing.assert_allclose(found[1] * 100, found[0], rtol=1e-2, atol=1e-4)


def test_the_loss_goes_down_and_the_key_only_chooses_batches():
    queries = hidden(40)

    def loss(projection: np.ndarray) -> float:
        found = queries.features @ projection
        squared = np.array(squared_distances(found, found))
        np.fill_diagonal(squared, np.inf)
        shares = soft_neighbours(squared, np.median(np.sort(squared, axis=1)[:, 9]))
        same = queries.tasks[:, None] == queries.tasks
        return -np.log((shares * same).sum(1)).mean()

    start, end = (fit_metric(queries, 2, steps) for steps in (0, 60))
    assert loss(end) < loss(start) - 0.2
    again = fit_metric(queries, 2, 60, key=jax.random.key(5))
    np.testing.assert_array_equal(again, end)
    few = [fit_metric(queries, 2, 60, key=jax.random.key(i), batch=16) for i in (5, 5, 6)]
    np.testing.assert_array_equal(few[0], few[1])
    assert not np.array_equal(few[0], few[2]) and loss(few[0]) < loss(start) - 0.2


def test_a_rank_above_the_number_of_examples():
    queries = QuerySet.checked(np.eye(3, 6), [0, 0, 1], ["a", "b"])
    projection = fit_metric(queries, rank=6, steps=2)
    assert projection.shape == (6, 6) and np.isfinite(projection).all()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"rank": 13}, "expected 1 to 12"),
        ({"rank": 0}, "rank is 0"),
        ({"steps": -1}, "steps is -1"),
        ({"rank": 2.0}, r"rank is 2\.0; expected a whole number from 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        fit_metric(hidden(), **({"rank": 2} | options))


def test_tasks_of_one_example_each_teach_nothing():
    with pytest.raises(ConfigError, match="no task of the query set has two examples"):
        fit_metric(QuerySet.checked(np.eye(2), [0, 1], ["a", "b"]), rank=1)


def test_narrow_features_have_a_rank_and_seeds_are_keys():
    queries = hidden(40)
    assert fit_metric(queries, steps=0).shape == (12, 12)
    given = [
        fit_metric(queries, 2, 5, key=key, batch=16) for key in (np.int64(5), jax.random.key(5))
    ]
    np.testing.assert_array_equal(*given)

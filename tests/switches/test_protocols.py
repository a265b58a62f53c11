from __future__ import annotations

import numpy as np
import pytest

from sinewich_jax.errors import ConfigError, DataError
from sinewich_jax.switches.dispatch import Dispatched
from sinewich_jax.switches.protocols import PROTOCOLS, Examples, evaluate_protocols
from sinewich_jax.switches.queries import QuerySet
from sinewich_jax.switches.router import Router

FEATURES = {"a": [0.0, 0.1, 0.9], "b": [1.0, 1.1, 0.8]}
"""On a line with examples at 0 and at 1: the last of "a" is taken for "b"."""


@pytest.fixture
def router() -> Router:
    queries = QuerySet.checked([[0.0], [0.01], [1.0], [1.01]], [0, 0, 1, 1], ["a", "b"])
    return Router.fit(queries, 1, quantile=None)._replace(threshold=0.15)


@pytest.fixture
def tasks() -> dict[str, Examples]:
    return {
        name: Examples({"x": np.float32(x)}, np.float32(x)[:, None], np.full(len(x), i))
        for i, (name, x) in enumerate(FEATURES.items())
    }


def run(inputs, weights):
    return np.concatenate([inputs["x"][:, None], weights], axis=1)


def score(outputs, heads, labels):
    """Right are a trunk switched to the task of the label and a head of it, half each."""
    switched = outputs[np.arange(len(labels)), 1 + labels]
    return (switched + (heads == labels)) / 2


def test_protocols_by_hand(router, tasks):
    found = evaluate_protocols(run, score, router, tasks, batch=2)
    assert tuple(found.rows) == PROTOCOLS and found.names == ("a", "b")
    oracle, single = found.rows["oracle"], found.rows["per_sample"]
    assert oracle.accuracy == oracle.routed_accuracy == oracle.task_accuracy == 1
    np.testing.assert_array_equal(oracle.confusion, [[3, 0], [0, 3]])
    assert oracle.trees == 2 and oracle.multiplier == 1

    # One sample of six goes wrong: the trunk for both heads, the head only where it is chosen.
    np.testing.assert_allclose(single.by_task, [1 - 1 / 6, 1])
    np.testing.assert_allclose(single.routed_by_task, [1 - 2 / 6, 1])
    assert single.accuracy == pytest.approx(11 / 12)
    assert single.routed_accuracy == pytest.approx(10 / 12)
    assert single.task_accuracy == pytest.approx(5 / 6)
    assert single.unknown == pytest.approx(1 / 6)  # 0.8 is 0.2 away from 1
    np.testing.assert_array_equal(single.confusion, [[2, 1], [0, 3]])
    assert single.trees == 2 and single.multiplier == 2  # the features, then the model
    for mode in ("top1", "batch_mean", "batch_top1"):  # votes of one neighbour are one-hot
        np.testing.assert_array_equal(found.rows[mode].confusion, single.confusion)


def test_a_batch_of_one_task_hides_a_wrong_sample(router, tasks):
    rows = evaluate_protocols(run, score, router, tasks, batch=3).rows
    assert rows["batch_top1"].accuracy == rows["batch_top1"].task_accuracy == 1
    np.testing.assert_allclose(rows["batch_mean"].by_task, [(2 / 3 + 1) / 2, 1], rtol=1e-6)
    np.testing.assert_allclose(rows["batch_mean"].routed_accuracy, 11 / 12, rtol=1e-6)
    # Two groups of one and two, no padding; three in one group are filled up to four.
    assert rows["per_sample"].multiplier == pytest.approx((6 + 3 + 4) / 6)


def test_samples_that_abstain_go_to_the_base_and_to_their_best_guess_of_a_head(router, tasks):
    rows = evaluate_protocols(run, score, router, tasks, batch=3, abstain=True).rows
    assert rows["oracle"].unknown == 0
    found = rows["per_sample"]
    assert found.unknown == pytest.approx(1 / 6)
    assert found.confusion.sum() == 5 and found.task_accuracy == pytest.approx(4 / 6)
    np.testing.assert_allclose(found.by_task, [5 / 6, 5 / 6])
    np.testing.assert_allclose(found.routed_by_task, [4 / 6, 5 / 6])
    assert found.trees == 3


def test_the_table(router, tasks):
    text = evaluate_protocols(run, score, router, tasks, protocols=["oracle", "per_sample"]).table()
    assert text.splitlines() == [
        "protocol    true head  chosen head  task found  unknown  trees  passes",
        "oracle       100.00 %     100.00 %     100.0 %    0.0 %      2    1.33",
        "per_sample    91.67 %      83.33 %      83.3 %   16.7 %      2    2.17",
        "",
        "per_sample:",
        "true \\ chosen  a  b",
        "a              2  1",
        "b              0  3",
    ]
    assert (
        "chosen  a"
        not in evaluate_protocols(run, score, router, tasks, protocols=["oracle"]).table()
    )


def test_what_cannot_be_measured_is_refused(router, tasks):
    with pytest.raises(ConfigError, match="did you mean 'oracle'"):
        evaluate_protocols(run, score, router, tasks, protocols=["orcale"])
    with pytest.raises(ConfigError, match=r"examples of \['a'\]"):
        evaluate_protocols(run, score, router, {"a": tasks["a"]})
    with pytest.raises(ConfigError, match="batch is 0"):
        evaluate_protocols(run, score, router, tasks, batch=0)
    short = tasks | {"b": tasks["b"]._replace(labels=np.ones(2, int))}
    with pytest.raises(DataError, match="task 'b' has 3 features and 2 labels"):
        evaluate_protocols(run, score, router, short)
    with pytest.raises(DataError, match=r"shape \(\); expected \(3,\)"):
        evaluate_protocols(run, lambda *_: np.float32(1), router, tasks)


def test_one_protocol_and_a_dispatcher_are_taken_as_they_are(router, tasks):
    outcome = evaluate_protocols(
        lambda *batch: Dispatched(run(*batch), 1, 1, 0, 1.0), score, router, tasks, protocols="top1"
    )
    plain = evaluate_protocols(run, score, router, tasks, protocols=["top1"])
    assert outcome.table() == plain.table()

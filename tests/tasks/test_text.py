"""Text tasks: scores equal scikit-learn and SciPy, and neither padding nor cutting changes them."""

from __future__ import annotations

import functools
import itertools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy import stats
from sklearn import metrics as sklearn_metrics

from sinewich_jax import report, tasks
from sinewich_jax.errors import ConfigError, DataError, SinewichError
from sinewich_jax.tasks.text import Classification, Similarity
from tests.tasks.examples import loss, loss_and_slope, update

ALL = tasks.names(tasks.TextTask)
KINDS = ("cola", "mnli", "sick_relatedness")
COUNT = 8


def one_hot(guess, classes):
    return (np.asarray(guess)[:, None] == np.arange(classes)).astype(np.float32)


def make(classes):
    return Classification(name="topic", channels=classes)


@functools.cache
def examples(name):
    """Eight examples, two of them not valid and with labels that must not be read."""
    task, rng = tasks.make(name), np.random.default_rng(3)
    logits = rng.normal(size=(COUNT, task.channels)).astype(np.float32)
    valid = np.array([1, 1, 0, 1, 1, 1, 0, 1], bool)
    if isinstance(task, Classification):
        label = rng.integers(0, task.channels, COUNT).astype(np.int32)
        label[~valid] = 255
    else:
        label = rng.uniform(task.low, task.high, COUNT).astype(np.float32)
        label[~valid] = np.nan
    return logits, label, valid


@functools.cache
def state_of(name, start, stop):
    return update(tasks.make(name).metric())(*(x[start:stop] for x in examples(name)))


def score(task, logits, label, valid=None):
    metric, label = task.metric(), np.asarray(label)
    valid = np.ones(label.shape, bool) if valid is None else valid
    return metric.compute(metric.merge(metric.empty(), update(metric)(logits, label, valid)))


# --- the list ------------------------------------------------------------------------------------


def test_what_is_registered():
    made = {name: tasks.make(name) for name in ALL}
    assert len(ALL) == 20
    assert tasks.names() == (*tasks.names(tasks.DenseTask), *ALL)
    assert all(task.name == name and task.weight == 1.0 for name, task in made.items())
    assert all(task.higher_is_better for task in made.values())
    pairs = {name for name, task in made.items() if task.pair}
    assert pairs == {
        *("mrpc", "rte", "sts", "sick", "sick_relatedness", "qqp", "qnli", "mnli", "wnli", "stsb")
    }
    primary = {name: task.primary for name, task in made.items() if task.primary != "accuracy"}
    assert primary == {"cola": "matthews"} | dict.fromkeys(tasks.names(Similarity), "spearman")
    assert {name: task.channels for name, task in made.items() if task.channels > 3} == {
        "trec": 6,
        "snips": 7,
        "clinc150": 150,
        "banking77": 77,
    }
    assert made["mnli"].class_names == ("entailment", "neutral", "contradiction")
    assert (made["sick_relatedness"].low, made["sick_relatedness"].high) == (1.0, 5.0)


@pytest.mark.parametrize("name", ALL)
def test_every_primary_metric_is_computed(name):
    metric = tasks.make(name).metric()
    values = metric.compute(metric.empty())
    assert tasks.make(name).primary in values
    assert all(math.isnan(value) for value in values.values())
    assert metric.chart(metric.empty()) is None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cola", {"channels": 1}, "labels are class ids, so it takes 2 to 65535 classes"),
        ("cola", {"channels": 65536}, "2 to 65535 classes"),
        ("mnli", {"channels": 3, "class_names": ("a", "b")}, "3 channels but 2 class names"),
        ("sts", {"channels": 2}, "a similarity takes one"),
        ("sts", {"low": 5.0}, "low and high are 5.0 and 5.0, expected .* low < high"),
        ("sts", {"high": math.inf}, "expected finite numbers"),
    ],
)
def test_fields_that_make_no_sense_are_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        tasks.make(name, **options)


# --- scores --------------------------------------------------------------------------------------


@hypothesis.settings(max_examples=60)
@hypothesis.given(data=st.data(), classes=st.sampled_from([2, 3, 5]))
def test_agreement_equals_scikit_learn(data, classes):
    pairs = st.lists(st.tuples(*[st.integers(0, classes - 1)] * 2), min_size=1, max_size=COUNT)
    true, guess = np.array(data.draw(pairs), np.int32).T
    # One shape for all, so that it is compiled once.
    pad = COUNT - len(true)
    logits = one_hot(np.pad(guess, (0, pad)), classes)
    valid = np.arange(COUNT) < len(true)
    ours = score(make(classes), logits, np.pad(true, (0, pad)), valid)
    average = {"average": "binary", "zero_division": 0.0} if classes == 2 else {"average": "macro"}
    assert ours["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(true, guess))
    assert ours["f1"] == pytest.approx(sklearn_metrics.f1_score(true, guess, **average))
    # Of a single label in all, scikit-learn says what we do, and warns.
    if len({*true, *guess}) > 1:
        theirs = sklearn_metrics.matthews_corrcoef(true, guess)
    else:
        theirs = 0.0
    assert ours["matthews"] == pytest.approx(theirs, abs=1e-12)


def test_matthews_correlation_by_hand():
    true, guess = [1, 1, 1, 0, 0], [1, 1, 0, 0, 1]
    values = score(make(2), one_hot(guess, 2), np.int32(true))
    assert values["matthews"] == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))
    assert values["f1"] == pytest.approx(2 / 3)
    assert values["accuracy"] == pytest.approx(3 / 5)


@pytest.mark.parametrize("kind", ["random", "ties", "reversed", "two"])
@pytest.mark.parametrize("seed", range(3))
def test_correlation_equals_scipy(kind, seed):
    task, rng = tasks.make("sts"), np.random.default_rng(seed)
    label = rng.uniform(0, 5, 40).astype(np.float32)
    logits = (label / 5 + rng.normal(size=40)).astype(np.float32)[:, None]
    if kind == "ties":
        label, logits = np.round(label), np.round(logits)
    elif kind == "reversed":
        logits = -label[:, None]
    elif kind == "two":
        label, logits = label[:2], logits[:2]
    guess = np.asarray(task.predict(logits), np.float64)
    ours = score(task, logits, label)
    assert ours["spearman"] == pytest.approx(stats.spearmanr(guess, label).statistic, abs=1e-12)
    pearson = stats.pearsonr(guess, np.float64(label)).statistic
    assert ours["pearson"] == pytest.approx(pearson, abs=1e-12)
    assert ours["mse"] == pytest.approx(np.mean((guess - label) ** 2), rel=1e-9)
    if kind == "reversed":
        assert ours["spearman"] == pytest.approx(-1.0)


@pytest.mark.parametrize("logit", [0.3, np.inf, np.nan])
def test_what_has_no_correlation_is_nan(logit):
    """Constant predictions (0.3 is rounded, so their mean may differ from them) and broken ones."""
    label = np.linspace(0, 5, 7, dtype=np.float32)
    values = score(tasks.make("sts"), np.full((7, 1), logit, np.float32), label)
    assert math.isnan(values["spearman"]) and math.isnan(values["pearson"])
    assert math.isfinite(values["mse"]) == (logit == 0.3)


def test_one_example_has_no_correlation():
    values = score(tasks.make("sts"), np.float32([[0.5]]), np.float32([2.5]))
    assert math.isnan(values["spearman"])
    assert values["mse"] == 0.0


def test_the_confusion_matrix_is_shown(tmp_path):
    task = tasks.make("mnli")
    state = update(task.metric())(one_hot([0, 1, 1], 3), np.int32([0, 0, 1]), np.ones(3, bool))
    shown = task.metric().chart(state)
    np.testing.assert_array_equal(shown.counts, [[1, 1, 0], [0, 1, 0], [0, 0, 0]])
    assert shown.names == task.class_names
    assert report.write_diagnostics(tmp_path, {"mnli": shown})[0].stat().st_size > 1000


def test_hundreds_of_classes_are_counted_where_they_belong():
    task = tasks.make("clinc150")
    state = update(task.metric())(
        one_hot([149, 0, 3, 4], 150), np.int32([149, 7, 2**31 - 1, -1]), np.ones(4, bool)
    )
    assert state["confusion"].sum() == state["strays"] == 2
    assert state["confusion"][149, 149] == state["confusion"][7, 0] == 1


# --- sets, batches, padding ----------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
@hypothesis.settings(max_examples=15)
@hypothesis.given(cuts=st.sets(st.integers(1, COUNT - 1)), order=st.randoms(use_true_random=False))
def test_any_split_gives_the_same_scores(name, cuts, order):
    metric = tasks.make(name).metric()
    states = [state_of(name, a, b) for a, b in itertools.pairwise([0, *sorted(cuts), COUNT])]
    order.shuffle(states)
    merged = functools.reduce(metric.merge, states, metric.empty())
    whole = metric.compute(state_of(name, 0, COUNT))
    assert metric.compute(merged) == pytest.approx(whole, rel=1e-12)
    assert all(isinstance(value, np.ndarray | np.generic) for value in merged.values())
    assert merged.keys() == metric.empty().keys()


@pytest.mark.parametrize("name", KINDS)
def test_what_is_not_valid_counts_nowhere(name):
    task, (logits, label, valid) = tasks.make(name), examples(name)
    known = [x[valid] for x in (logits, label, valid)]
    assert score(task, logits, label, valid) == pytest.approx(score(task, *known), rel=1e-12)
    value, slope = loss_and_slope(task)(logits, label, valid)
    assert value == pytest.approx(float(loss(task)(*known)), rel=1e-6)
    assert np.all(np.asarray(slope)[valid] != 0) and not np.any(np.asarray(slope)[~valid])


@pytest.mark.parametrize("name", KINDS)
def test_nothing_valid_gives_zero_a_zero_gradient_and_no_score(name):
    task, (logits, label, valid) = tasks.make(name), examples(name)
    value, slope = loss_and_slope(task)(logits, label, valid & False)
    assert value == 0.0 and value.dtype == jnp.float32
    assert not np.any(np.asarray(slope))
    scores = score(task, logits, label, valid & False)
    assert all(math.isnan(value) for value in scores.values())


@pytest.mark.parametrize("name", KINDS)
def test_a_sharded_batch_gives_the_same_scores(name):
    task, batch = tasks.make(name), examples(name)
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    shared = [jax.device_put(x, sharding) for x in batch]
    metric = task.metric()
    assert metric.compute(update(metric)(*shared)) == metric.compute(state_of(name, 0, COUNT))
    np.testing.assert_allclose(loss(task)(*shared), loss(task)(*batch), rtol=1e-6)


def test_states_of_different_metrics_are_not_merged():
    with pytest.raises(SinewichError, match=r"CorrelationMetric\.merge got states"):
        tasks.make("sts").metric().merge(state_of("sick_relatedness", 0, 2), state_of("cola", 0, 2))


# --- losses and predictions ----------------------------------------------------------------------


def test_losses_by_hand():
    logits = np.float32([[0.0, math.log(3.0)], [5.0, 5.0]])
    value = loss(tasks.make("cola"))(logits, np.int32([1, 0]), np.array([True, True]))
    assert value == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, rel=1e-6)
    task = tasks.make("sick_relatedness")  # from 1 to 5: the label 4 lies at three quarters
    value = loss(task)(np.float32([[0.25], [0.0]]), np.float32([4, 1]), np.array([True, True]))
    assert value == pytest.approx(0.5**2 / 2, rel=1e-6)
    np.testing.assert_allclose(task.predict(np.float32([[0.25], [1.0]])), [2.0, 5.0])


@pytest.mark.parametrize("name", KINDS)
def test_half_precision_is_computed_with_in_float32(name):
    task, (logits, label, valid) = tasks.make(name), examples(name)
    half = jnp.asarray(logits, jnp.bfloat16)
    assert loss(task)(half, label, valid).dtype == jnp.float32
    wide = loss(task)(half.astype(jnp.float32), label, valid)
    np.testing.assert_array_equal(loss(task)(half, label, valid), wide)
    assert task.predict(half).dtype in (jnp.int32, jnp.float32)
    assert {str(x.dtype) for x in update(task.metric())(half, label, valid).values()} <= {
        *("int32", "float32", "bool")
    }


def test_shapes_that_would_broadcast_are_refused():
    task, ones = tasks.make("sts"), np.ones(4, bool)
    with pytest.raises(SinewichError, match=r"sts got logits \(4, 1\), label \(4, 1\)"):
        task.loss(jnp.zeros((4, 1)), jnp.zeros((4, 1)), ones)
    with pytest.raises(SinewichError, match=r"expected \(4, 1\), \(4,\) and \(4,\)"):
        task.metric().update(jnp.zeros((4, 2)), jnp.zeros(4), ones)
    with pytest.raises(SinewichError, match="cola got logits"):
        tasks.make("cola").metric().update(jnp.zeros((3, 2)), jnp.zeros(4, int), ones)


# --- labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int32, np.uint8])
def test_a_class_id_out_of_range_is_reported_and_not_counted(dtype):
    label, valid = np.array([0, 9, 200, 200], dtype), np.array([1, 1, 1, 0], bool)
    with pytest.raises(DataError, match="2 valid examples of topic hold a class id outside 0 to 2"):
        score(make(3), np.zeros((4, 3), np.float32), label, valid)
    # An 8-bit label cannot be compared with 300 as it is.
    assert score(make(300), one_hot(label, 300), label, valid)["accuracy"] == 1.0


def test_a_number_out_of_range_is_reported():
    label = np.float32([0.0, 5.5, np.nan, np.nan])
    with pytest.raises(DataError, match="2 valid examples of sts hold a label outside 0 to 5"):
        score(tasks.make("sts"), np.zeros((4, 1)), label, np.array([1, 1, 1, 0], bool))


@pytest.mark.parametrize(
    ("name", "label", "message"),
    [
        ("cola", 2, "is 2, expected a whole number, a class id from 0 to 1; correct the label"),
        ("cola", np.int32(-1), "is -1, expected"),
        ("cola", 1.0, "is 1.0, expected"),
        ("cola", True, "is True, expected"),
        ("cola", "acceptable", "is 'acceptable', expected"),
        ("cola", None, "is None, expected"),
        ("cola", np.array([0, 1]), r"is \[0, 1\], expected"),
        ("sick_relatedness", 0.5, "is 0.5, expected a number from 1 to 5"),
        ("sick_relatedness", math.nan, "is nan, expected"),
        ("sick_relatedness", "3", "is '3', expected"),
    ],
)
def test_an_unknown_label_names_place_and_expectation(name, label, message):
    with pytest.raises(DataError, match=rf"train\.tsv, line 7: the {name} label {message}"):
        tasks.make(name).check_label(label, "train.tsv, line 7")


@pytest.mark.parametrize(
    ("name", "label"),
    [("cola", 1), ("cola", np.uint8(0)), ("clinc150", 149), ("sts", 0), ("sts", np.float32(5))],
)
def test_good_labels_pass(name, label):
    tasks.make(name).check_label(label, "x")


def test_words():
    cola, sts = tasks.make("cola"), tasks.make("sts")
    assert [cola.words(x) for x in (0, np.int32(1))] == ["unacceptable", "acceptable"]
    assert cola.words(cola.predict(np.float32([0.1, 0.2]))) == "acceptable"
    assert tasks.make("banking77").words(76) == "76"
    assert sts.words(np.float32(3.14159)) == "3.14"


# --- constants -----------------------------------------------------------------------------------


def cost(task, label, constant):
    logits = jnp.broadcast_to(jnp.asarray(constant, jnp.float32), (len(label), task.channels))
    return float(loss(task)(logits, label, np.ones(len(label), bool)))


@pytest.mark.parametrize("name", KINDS)
def test_no_other_constant_costs_less_than_the_mean_label(name):
    task, rng = tasks.make(name), np.random.default_rng(0)
    if isinstance(task, Classification):
        label = rng.choice(task.channels, 400, p=[0.7, 0.3, 0.0][: task.channels]).astype(np.int32)
    else:
        label = rng.uniform(1, 5, 400).astype(np.float32)
    mean = task.mean_label(label, np.ones(400, bool))
    best = task.best_constant(mean)
    assert mean.dtype == best.dtype == np.float32
    assert mean.shape == best.shape == (task.channels,)
    assert np.all(np.isfinite(best))
    assert cost(task, label, best) < cost(task, label, np.zeros(task.channels))
    for channel, step in itertools.product(range(task.channels), (-0.5, 0.5)):
        other = best.copy()
        other[channel] += step
        if label.dtype == np.float32 or np.any(label == channel):
            assert cost(task, label, other) > cost(task, label, best)


def test_the_mean_label_scores_the_majority_and_the_variance():
    task, label = tasks.make("mnli"), np.int32([2, 0, 2, 1, 2])
    mean = task.mean_label(iter(label), iter([True] * 5))
    logits = np.broadcast_to(mean, (5, 3))
    values = score(task, logits, label)
    assert values["accuracy"] == 0.6
    assert values["matthews"] == 0.0
    sts, numbers = tasks.make("sts"), np.float32([0, 1, 5])
    mean = sts.mean_label(numbers, np.ones(3, bool))
    assert score(sts, np.broadcast_to(mean, (3, 1)), numbers)["mse"] == pytest.approx(14 / 3)


def test_labels_that_are_not_valid_have_no_part_in_the_mean():
    task = tasks.make("sts")
    mean = task.mean_label(np.float32([5, np.nan, 0]), [True, False, False])
    np.testing.assert_allclose(mean, [1.0])
    for name in KINDS:
        with pytest.raises(DataError, match=f"mean label of {name} needs a valid label"):
            tasks.make(name).mean_label([1, 1], [False, False])

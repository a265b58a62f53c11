"""Losses: hand-computed values, published values, and what must never happen to a gradient."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from sinewich_jax import tasks
from sinewich_jax.errors import SinewichError
from sinewich_jax.tasks import losses
from tests.tasks.examples import golden, golden_batch, loss, loss_and_slope, random_batch, small

ALL = tasks.names(tasks.DenseTask)


def mask(*rows):
    return np.array([rows], bool)


# --- closed forms (2 x 2 images) -----------------------------------------------------------------


def binary_example():
    return np.array([[[2.0, -1.0], [0.0, 3.0]]]), np.array([[[1, 0], [0, 1]]]), mask([1, 1], [1, 1])


@pytest.mark.parametrize(("weight", "value"), [(None, 0.1477405), (0.95, 0.0542650)])
def test_balanced_cross_entropy_has_the_published_value(weight, value):
    assert losses.balanced_bce(*binary_example(), weight) == pytest.approx(value, abs=2e-7)


def test_balanced_cross_entropy_is_zero_without_positives():
    z, y, v = binary_example()
    assert losses.balanced_bce(z, 0 * y, v) == 0.0


def test_balance_counts_valid_pixels_only():
    z, y, v = binary_example()
    wide = [np.concatenate([x, x], axis=2) for x in (z, y, v)]
    wide[1][:, :, 2:] = 1  # would change the balance if it were counted
    wide[2][:, :, 2:] = False
    assert losses.balanced_bce(*wide) == pytest.approx(
        float(losses.balanced_bce(z, y, v)), rel=1e-6
    )


def test_cross_entropy_has_the_published_value():
    z = np.stack([[[1.0, 0.0], [5.0, 2.0]], [[0.0, 1.0], [-5.0, 1.0]]], axis=-1)[None]
    value = losses.cross_entropy(z, np.array([[[0, 1], [255, 1]]]), mask([1, 1], [0, 1]))
    assert value == pytest.approx(0.6465949, abs=2e-7)


def test_normals_reductions_differ_by_exactly_three():
    z = np.array([[[[3.0, 0.0, 4.0], [1.0, 2.0, 3.0]]]])
    y = np.array([[[[0.0, 0.0, 1.0], [255.0, 255.0, 255.0]]]])
    entry = losses.normals_l1(z, y, mask([1, 0]))
    pixel = losses.normals_l1(z, y, mask([1, 0]), "pixel")
    assert entry == pytest.approx(0.2666667, abs=2e-7)
    assert pixel == pytest.approx(0.8, abs=2e-7)
    assert losses.normals_cosine(z, y, mask([1, 0])) == pytest.approx(0.2, abs=2e-7)


def test_depth_loss_has_the_published_value():
    z, y = np.array([[[1.0, 2.0], [3.0, 4.0]]]), np.array([[[1.5, 255.0], [2.0, 4.0]]])
    assert losses.depth_l1(z, y, mask([1, 0], [1, 1])) == pytest.approx(0.5, abs=1e-7)


def test_squared_depth_loss_is_the_square_of_the_rmse():
    z, y = np.array([[[1.0, 1e30], [3.0, 4.0]]]), np.array([[[1.5, np.nan], [2.0, 4.0]]])
    assert losses.depth_l2(z, y, mask([1, 0], [1, 1])) == pytest.approx(1.25 / 3, abs=1e-7)
    task = tasks.make("depth", loss_kind="l2")
    logits, label, valid = random_batch(task, 3)
    metric = task.metric()
    rmse = metric.compute(metric.merge(metric.empty(), metric.update(logits, label, valid)))["rmse"]
    value, grad = loss_and_slope(task)(logits, label, valid)
    assert value == pytest.approx(rmse**2, rel=1e-5)
    assert np.isfinite(np.asarray(grad)).all() and not np.any(np.asarray(grad)[~valid])


# --- published code on random inputs -------------------------------------------------------------

PARITY = [
    ("semseg", {}, "label", "mtlora/semseg"),
    ("human_parts", {}, "label", "mtlora/human_parts"),
    ("saliency", {}, "label", "mtlora/sal"),
    ("saliency", {}, "label", "invpt/sal_2ch"),
    ("saliency", {}, "label", "atrc/sal_2ch"),
    ("edge", {}, "label", "mtlora/edge"),
    ("edge", {"positive_weight": 0.8}, "label", "mtlora/edge_w0.8"),
    ("edge", {}, "label_with_ignore", "invpt/edge_ignore"),
    ("edge", {"positive_weight": 0.8}, "label_with_ignore", "atrc/edge_w0.8_ignore"),
    ("edge", {"positive_weight": None}, "label_with_ignore", "invpt/edge_auto_ignore"),
    ("normals", {}, "label", "mtlora/normals"),
    ("normals", {"reduction": "pixel"}, "label", "invpt/normals"),
    ("depth", {}, "label", "mtlora/depth"),
]


@pytest.mark.parametrize(("name", "options", "label", "key"), PARITY)
def test_loss_equals_the_published_code(name, options, label, key):
    value = loss(tasks.make(name, **options))(*golden_batch(name, label=label))
    assert value == pytest.approx(float(golden()[f"loss/{key}"]), rel=1e-5)


def test_weighted_total_equals_the_published_code():
    total = sum(t.weight * loss(t)(*golden_batch(t.name)) for t in map(tasks.make, ALL))
    assert total == pytest.approx(float(golden()["loss/mtlora/total_all_six"]), rel=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_gradient_equals_the_published_code(name):
    task, (logits, label, valid) = tasks.make(name), golden_batch(name)
    ours = task.weight * loss_and_slope(task)(logits, label, valid)[1]
    key = {"saliency": "sal"}.get(name, name)
    theirs = np.moveaxis(golden()[f"grad/mtlora/total/{key}"], 1, -1)
    known = np.isfinite(theirs)
    assert known.mean() > 0.99
    scale = np.abs(theirs[known]).max()
    np.testing.assert_allclose(np.asarray(ours)[known], theirs[known], rtol=2e-5, atol=1e-6 * scale)


def test_an_ignored_label_is_not_a_positive():
    logits, label, valid = golden_batch("edge", label="label_with_ignore")
    value = float(loss(tasks.make("edge"))(logits, label, valid))
    assert value != pytest.approx(float(golden()["loss/mtlora/edge_label255_is_positive"]), rel=0.1)


# --- what must hold for every task ---------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_nothing_valid_gives_zero_and_a_zero_gradient(name):
    task = small(name)
    logits, label, valid = random_batch(task, 0)
    label = np.full_like(label, np.nan if label.dtype.kind == "f" else 255)
    value, grad = loss_and_slope(task)(logits, label, valid & False)
    assert value == 0.0
    assert not np.any(np.asarray(grad))


def test_the_all_ignored_example_that_is_nan_elsewhere():
    assert np.isnan(golden()["loss/mtlora/semseg_all_ignored"])
    assert loss(tasks.make("semseg"))(*golden_batch("semseg", "semseg_all_ignored")) == 0.0


@pytest.mark.parametrize("name", ALL)
def test_invalid_pixels_change_neither_value_nor_gradient(name):
    task = small(name)
    logits, label, valid = random_batch(task, 1)
    spoiled = label.copy()
    spoiled[~valid] = np.nan if label.dtype.kind == "f" else 255
    other = logits.copy()
    other[~valid] += 7.0
    value, slope = loss_and_slope(task)(logits, label, valid)
    value2, slope2 = loss_and_slope(task)(other, spoiled, valid)
    np.testing.assert_allclose(value2, value, rtol=1e-6)
    np.testing.assert_allclose(slope2, slope, rtol=1e-6)
    assert not np.any(np.asarray(slope)[~valid])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("scale", [0.0, 200.0, -200.0, 1e4])
def test_extreme_outputs_stay_finite(name, scale):
    task = small(name)
    logits, label, valid = random_batch(task, 2)
    value, grad = loss_and_slope(task)(np.float32(scale) * logits, label, valid)
    assert np.isfinite(value)
    assert np.all(np.isfinite(grad))


@pytest.mark.parametrize("kind", ["l1", "cosine"])
def test_a_zero_normal_has_a_bounded_useful_gradient(kind):
    task = tasks.make("normals", loss_kind=kind)
    label = np.broadcast_to(np.float32([0.0, 0.6, -0.8]), (1, 1, 1, 3))
    zero = np.zeros((1, 1, 1, 3), np.float32)
    grad = loss_and_slope(task)(zero, label, np.ones((1, 1, 1), bool))[1][0, 0, 0]
    assert np.all(np.abs(grad) <= 1.0 / losses.NORM_FLOOR)
    assert float(np.dot(-grad, label[0, 0, 0])) > 0  # a step goes towards the label


@pytest.mark.parametrize("name", ALL)
def test_half_precision_outputs_are_summed_in_float32(name):
    task = small(name)
    logits, label, valid = random_batch(task, 3, batch=4, height=32, width=32)
    half = jnp.asarray(logits, jnp.bfloat16)
    value = loss(task)(half, label, valid)
    assert value.dtype == jnp.float32
    assert value == pytest.approx(
        float(loss(task)(half.astype(jnp.float32), label, valid)), rel=1e-6
    )


def test_images_without_a_person_do_not_train_the_parts():
    task = small("human_parts")
    logits, label, valid = random_batch(task, 4)
    label[1] = 0
    one = [x[[0, 2]] for x in (logits, label, valid)]
    assert loss(task)(logits, label, valid) == pytest.approx(float(loss(task)(*one)), rel=1e-6)
    assert loss(small("semseg"))(logits, label, valid) != pytest.approx(
        float(loss(task)(*one)), rel=1e-3
    )


def test_shapes_that_would_broadcast_are_refused():
    task = tasks.make("depth")
    with pytest.raises(
        SinewichError, match=r"depth got logits \(2, 4, 4, 1\), label \(2, 4, 4, 1\)"
    ):
        task.loss(np.zeros((2, 4, 4, 1)), np.zeros((2, 4, 4, 1)), np.ones((2, 4, 4), bool))

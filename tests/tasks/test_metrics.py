"""Metrics: published values, closed forms, and the published mistakes that are not repeated."""

from __future__ import annotations

import numpy as np
import pytest

from sinewich_jax import tasks
from sinewich_jax.errors import DataError, SinewichError
from tests.tasks.examples import golden, golden_batch, update

ALL = tasks.names(tasks.DenseTask)


def score(task, *batches):
    metric = task.metric()
    state = metric.empty()
    for batch in batches:
        state = metric.merge(state, update(metric)(*batch))
    return metric.compute(state)


def one_by_one(batch):
    return [tuple(x[i : i + 1] for x in batch) for i in range(len(batch[0]))]


@pytest.mark.parametrize("name", ["semseg", "human_parts"])
def test_iou_equals_the_published_code(name):
    task = tasks.make(name)
    ours, theirs = score(task, golden_batch(name)), golden()
    assert ours["miou"] == pytest.approx(float(theirs[f"metric/mtlora/{name}/mIoU"]), rel=1e-6)
    assert ours["miou"] == pytest.approx(float(theirs[f"metric/atrc/{name}/mIoU"]), rel=1e-6)
    per_class = [ours[f"iou/{c}"] for c in task.class_names]
    np.testing.assert_allclose(per_class, theirs[f"metric/mtlora/{name}/per_class"], rtol=1e-6)


def test_saliency_equals_the_published_code():
    ours, theirs = score(tasks.make("saliency"), golden_batch("saliency")), golden()
    assert ours["max_miou"] == pytest.approx(float(theirs["metric/mtlora/sal/mIoU"]), rel=1e-5)
    assert ours["maxf_beta1"] == pytest.approx(float(theirs["metric/mtlora/sal/maxF"]), rel=1e-5)
    assert ours["maxf"] == pytest.approx(float(theirs["metric/atrc/sal/maxF_1ch_logits"]), rel=1e-5)


def test_saliency_curves_equal_the_published_code():
    metric, theirs = tasks.make("saliency").metric(), golden()
    batch = golden_batch("saliency")
    state = update(metric)(*batch)
    images = len(batch[0])
    for ours, key in (("iou", "mIoUs"), ("precision", "mPrec"), ("recall", "mRec")):
        curve = np.asarray(state[ours]) / images
        np.testing.assert_allclose(curve, theirs[f"metric/mtlora/sal/{key}"], rtol=1e-5, atol=1e-7)
    for image, single in enumerate(one_by_one(batch)):
        np.testing.assert_allclose(
            update(metric)(*single)["iou"],
            theirs["metric/mtlora/sal/all_jaccards"][image],
            rtol=1e-5,
        )


def test_an_empty_mask_that_is_predicted_empty_scores_one():
    assert (
        score(tasks.make("saliency"), golden_batch("saliency", "sal_empty_empty"))["max_miou"] == 1
    )


def test_normals_equal_the_published_code():
    ours, theirs = score(tasks.make("normals"), golden_batch("normals")), golden()
    for family in ("normals_v1", "normals_v2"):
        value = float(theirs[f"metric/mtlora/{family}/mean"])
        assert ours["mean_deg"] == pytest.approx(value, rel=1e-5)
    assert ours["mean_deg"] == pytest.approx(
        float(theirs["metric/atrc/normals/mean_deg"]), rel=1e-5
    )
    for key, limit in (("within_11_25", "11.25"), ("within_22_5", "22.5"), ("within_30", "30")):
        percent = float(theirs[f"metric/mtlora/normals_v1/{limit}"])
        assert 100 * ours[key] == pytest.approx(percent, abs=1e-6)


def test_normals_equal_the_offline_evaluation():
    """Predictions from 8-bit pictures; valid where the label is not zero."""
    theirs = golden()
    _, label, valid = golden_batch("normals")
    logits = theirs["in/normals/png_pred_rgb"].astype(np.float32) * (2.0 / 255.0) - 1.0
    ours = score(tasks.make("normals"), (logits, label, valid))
    prefix = "metric/mtinet_offline/normals/"
    assert ours["mean_deg"] == pytest.approx(float(theirs[prefix + "mean"]), rel=1e-5)
    assert ours["rmse_deg"] == pytest.approx(float(theirs[prefix + "rmse"]), rel=1e-5)
    assert ours["median_deg"] == pytest.approx(float(theirs[prefix + "median"]), abs=0.05)
    for key, limit in (("within_11_25", "11.25"), ("within_22_5", "22.5"), ("within_30", "30")):
        assert 100 * ours[key] == pytest.approx(float(theirs[prefix + limit]), abs=1e-6)


def test_depth_equals_the_published_code():
    batch, theirs = golden_batch("depth"), golden()
    free = score(tasks.make("depth"), batch)
    clamped = score(tasks.make("depth", clamp=True), batch)
    assert free["rmse"] == pytest.approx(float(theirs["metric/atrc/depth/rmse"]), rel=1e-5)
    assert free["log_rmse"] == pytest.approx(float(theirs["metric/invpt/depth/log_rmse"]), rel=1e-5)
    for key in ("rmse", "log_rmse", "abs_rel", "sq_rel"):
        value = float(theirs[f"metric/invpt/depth/{key}"])
        assert clamped[key] == pytest.approx(value, rel=1e-5)


# --- published mistakes --------------------------------------------------------------------------


def test_batches_of_one_score_images_and_not_rows():
    batch = golden_batch("saliency")
    whole = score(tasks.make("saliency"), batch)
    assert score(tasks.make("saliency"), *one_by_one(batch)) == pytest.approx(whole, rel=1e-6)
    assert whole["max_miou"] != pytest.approx(
        float(golden()["metric/mtlora/sal/mIoU_batch1_defect"]), rel=0.1
    )


@pytest.mark.parametrize("name", ALL)
def test_a_new_epoch_starts_from_nothing(name):
    task, batch = tasks.make(name), golden_batch(name)
    metric = task.metric()
    first = metric.merge(metric.empty(), update(metric)(*batch))
    again = metric.merge(metric.empty(), update(metric)(*batch))
    assert metric.compute(first) == metric.compute(again)
    assert all(not np.any(x) for x in metric.empty().values())


def test_the_sigmoid_is_applied_once():
    logits, label, valid = golden_batch("saliency")
    task = tasks.make("saliency")
    twice = score(task, (np.asarray(task.predict(logits))[..., None], label, valid))["maxf"]
    mistake = float(golden()["metric/invpt/sal/maxF_double_sigmoid"])
    assert twice == pytest.approx(mistake, rel=1e-5)
    assert score(task, (logits, label, valid))["maxf"] > mistake + 0.05


def test_mean_and_root_mean_square_angle_differ():
    label = np.broadcast_to(np.float32([0, 0, -1]), (1, 1, 2, 3))
    logits = np.float32([[[[0, 0, -5], [0, 3, 0]]]])  # 0 and 90 degrees
    values = score(tasks.make("normals"), (logits, label, np.ones((1, 1, 2), bool)))
    assert values["mean_deg"] == pytest.approx(45.0, abs=1e-4)
    assert values["rmse_deg"] == pytest.approx(90.0 / np.sqrt(2.0), abs=1e-4)
    assert values["within_30"] == 0.5


@pytest.mark.parametrize("name", ALL)
def test_nothing_counted_is_nan_and_not_a_number_that_looks_real(name):
    task = tasks.make(name)
    logits, label, valid = golden_batch(name)
    values = score(task, (logits, label, valid & False))
    assert all(np.isnan(v) for v in values.values())
    assert task.primary in values


# --- closed forms --------------------------------------------------------------------------------


def one_hot(label, classes):
    return (np.asarray(label)[..., None] == np.arange(classes)).astype(np.float32)


def test_iou_by_hand():
    label = np.array([[[0, 0, 1, 1]]], np.uint8)
    guess = np.array([[[0, 1, 1, 1]]])
    task = tasks.make("semseg", class_names=("sky", "sea", "ship"))
    values = score(task, (one_hot(guess, 3), label, np.ones((1, 1, 4), bool)))
    assert values["iou/sky"] == 0.5
    assert values["iou/sea"] == pytest.approx(2 / 3)
    assert values["iou/ship"] == 0.0
    assert values["miou"] == pytest.approx((0.5 + 2 / 3) / 3)  # the absent class counts as 0
    assert values["miou_present"] == pytest.approx((0.5 + 2 / 3) / 2)
    assert values["pixel_accuracy"] == 0.75


def test_images_without_a_person_are_skipped_by_the_parts():
    task = tasks.make("human_parts")
    label = np.zeros((2, 2, 2), np.uint8)
    label[0, 0] = 1
    guess = label.copy()
    guess[1] = 1  # wrong everywhere in the image without a person
    values = score(task, (one_hot(guess, 7), label, np.ones((2, 2, 2), bool)))
    assert values["pixel_accuracy"] == 1.0


def test_a_class_id_out_of_range_is_reported_and_not_counted():
    task = tasks.make("semseg", channels=3)
    label = np.array([[[0, 9, -1]]], np.int32)
    with pytest.raises(DataError, match="2 valid pixels of semseg hold a class id outside 0 to 2"):
        score(task, (np.zeros((1, 1, 3, 3)), label, np.ones((1, 1, 3), bool)))


def test_two_class_iou_by_hand():
    logits = np.float32([[[[1], [1], [-1], [-1]]]])
    label = np.array([[[1, 0, 0, 0]]], np.uint8)
    values = score(tasks.make("saliency"), (logits, label, np.ones((1, 1, 4), bool)))
    assert values["miou2"] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_depth_errors_by_hand():
    logits, label = np.float32([[[[3], [1]]]]), np.float32([[[2, 4]]])
    values = score(tasks.make("depth"), (logits, label, np.ones((1, 1, 2), bool)))
    assert values["rmse"] == pytest.approx(np.sqrt(5.0))
    assert values["abs_rel"] == pytest.approx((1 / 2 + 3 / 4) / 2)
    assert values["sq_rel"] == pytest.approx((1 / 2 + 9 / 4) / 2)
    logs = np.log([3 / 2, 1 / 4])
    assert values["log_rmse"] == pytest.approx(np.sqrt(np.mean(logs**2)), rel=1e-6)


def test_the_median_angle_is_as_fine_as_it_says():
    degrees = np.radians(np.random.default_rng(0).uniform(0, 170, 401))
    logits = np.stack([np.sin(degrees), 0 * degrees, -np.cos(degrees)], -1)[None, None]
    label = np.broadcast_to(np.float32([0, 0, -1]), logits.shape)
    batch = (logits.astype(np.float32), label, np.ones(logits.shape[:3], bool))
    value = score(tasks.make("normals"), batch)["median_deg"]
    assert value == pytest.approx(np.degrees(np.median(degrees)), abs=0.05)


def test_small_angles_are_resolved():
    """acos of a float32 cosine would return 0 or 0.02 degrees here."""
    angle = np.radians(0.01)
    logits = np.float32([[[[np.sin(angle), 0, -np.cos(angle)]]]])
    label = np.float32([[[[0, 0, -1]]]])
    values = score(tasks.make("normals"), (logits, label, np.ones((1, 1, 1), bool)))
    assert values["mean_deg"] == pytest.approx(0.01, rel=1e-3)


def test_states_of_different_metrics_do_not_merge():
    metric = tasks.make("depth").metric()
    with pytest.raises(SinewichError, match="merge only states of the same metric"):
        metric.merge(metric.empty(), tasks.make("normals").metric().empty())

"""Making tasks by name, checking their labels, and Delta m."""

from __future__ import annotations

import dataclasses
import doctest

import numpy as np
import pytest

from sinewich_jax import tasks
from sinewich_jax.errors import ConfigError, DataError, SinewichError
from sinewich_jax.tasks import base, delta
from tests.tasks.examples import golden, random_batch, small

ALL = tasks.names(tasks.DenseTask)


def test_the_six_and_their_published_weights():
    made = {name: tasks.make(name) for name in ALL}
    assert ALL == ("semseg", "human_parts", "saliency", "normals", "depth", "edge")
    assert [t.weight for t in made.values()] == [1, 2, 5, 10, 1, 50]
    assert [t.channels for t in made.values()] == [21, 7, 1, 3, 1, 1]
    primary = ["miou", "miou", "max_miou", "mean_deg", "rmse", "f"]
    assert [t.primary for t in made.values()] == primary
    assert [n for n, t in made.items() if not t.higher_is_better] == ["normals", "depth"]
    assert len({hash(t) for t in made.values()}) == 6


def test_a_wrong_name_gets_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'normals'"):
        tasks.make("normal")
    with pytest.raises(ConfigError, match=r"the task edge has no field 'tolerence'.*'tolerance'"):
        tasks.make("edge", tolerence=2)


def test_class_names_and_channels_go_together():
    assert tasks.make("semseg", class_names=["wall", "floor"]).channels == 2
    assert tasks.make("semseg", channels=16).class_names is None
    assert tasks.make("semseg", weight=3.0).class_names[15] == "person"
    with pytest.raises(ConfigError, match="4 channels but 2 class names"):
        tasks.make("semseg", channels=4, class_names=("a", "b"))
    with pytest.raises(ConfigError, match="class_names of sst2 is 'no yes', expected a sequence"):
        tasks.make("sst2", class_names="no yes")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("semseg", {"channels": 1}, "2 to 255 classes"),
        ("saliency", {"channels": 2}, "takes one logit"),
        ("edge", {"positive_weight": 95}, "positive_weight is 95"),
        ("normals", {"channels": 2}, "takes three"),
        ("normals", {"loss_kind": "l2"}, "expected 'l1' or 'cosine'"),
        ("normals", {"reduction": "sum"}, "expected 'entry' or 'pixel'"),
        ("depth", {"channels": 2}, "takes one"),
        ("depth", {"picture_range": (3.0, 2.0)}, "0 <= near < far"),
    ],
)
def test_fields_that_make_no_sense_are_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        tasks.make(name, **options)


def test_a_user_adds_a_task(monkeypatch):
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))

    @tasks.register("heat")
    def heat():
        return dataclasses.replace(tasks.make("depth"), name="heat", unit="K")

    assert tasks.make("heat", weight=2.0).unit == "K"
    assert tasks.names()[-1] == "heat"
    with pytest.raises(ConfigError, match="'heat' is registered already"):
        tasks.register("heat")(heat)


# --- labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_good_labels_pass_whatever_lies_under_the_mask(name):
    task = small(name)
    _, label, valid = random_batch(task, 0)
    label[~valid] = np.nan if label.dtype.kind == "f" else 255
    task.check_label(label[0], valid[0], "a.png", size=label.shape[1:3])
    task.check_label(label[0], np.zeros_like(valid[0]), "a.png")


BAD_VALUES = [
    ("semseg", np.uint8, 37, "semseg label holds 37 at row 1, column 2 .1 such pixels.*0 to 4"),
    ("human_parts", np.int32, -1, "human_parts label holds -1 .*0 to 4"),
    ("saliency", np.uint8, 255, "saliency label holds 255 .*0 or 1"),
    ("edge", np.float32, 0.5, "edge label holds 0.5 .*0 or 1"),
    ("depth", np.float32, 0.0, "depth label holds 0. .*metres above 0"),
    ("depth", np.float32, np.nan, "depth label holds nan"),
    ("normals", np.float32, 0.3, r"normals label holds \[0.3, 0.3, 0.3\] .*a unit vector"),
]


@pytest.mark.parametrize(("name", "dtype", "value", "message"), BAD_VALUES)
def test_a_value_out_of_range_names_file_place_and_expectation(name, dtype, value, message):
    task = small(name)
    _, label, _ = random_batch(task, 1)
    label = label[0].astype(dtype)
    label[1, 2] = value
    valid = np.ones(label.shape[:2], bool)
    with pytest.raises(DataError, match=r"train/7\.png: the " + message):
        task.check_label(label, valid, "train/7.png")
    valid[1, 2] = False
    task.check_label(label, valid, "train/7.png")


def test_wrong_shapes_and_types_are_explained():
    task, valid = tasks.make("semseg"), np.ones((4, 5), bool)
    with pytest.raises(DataError, match=r"x: .*shape \(4, 5, 3\).*save it with one channel"):
        task.check_label(np.zeros((4, 5, 3), np.uint8), valid, "x")
    with pytest.raises(DataError, match=r"x: .*is 4 x 5 pixels .* the image is 8 x 10"):
        task.check_label(np.zeros((4, 5), np.uint8), valid, "x", size=(8, 10))
    with pytest.raises(DataError, match=r"x: the mask of semseg is uint8"):
        task.check_label(np.zeros((4, 5), np.uint8), valid.astype(np.uint8), "x")
    with pytest.raises(DataError, match=r"x: .*a whole number"):
        task.check_label(np.zeros((4, 5), np.float32), valid, "x")
    with pytest.raises(DataError, match=r"x: the normals label has shape \(4, 5\)"):
        tasks.make("normals").check_label(np.zeros((4, 5), np.float32), valid, "x")
    with pytest.raises(DataError, match="floating point"):
        tasks.make("depth").check_label(np.ones((4, 5), np.uint16), valid, "x")


# --- Delta m -------------------------------------------------------------------------------------

COLUMNS = ("semseg", "human_parts", "saliency", "normals")
UP = dict(zip(COLUMNS, (True, True, True, False), strict=True))
SINGLE = dict(zip(COLUMNS, (67.21, 61.93, 62.35, 17.97), strict=True))
ROWS = [
    ("single task", (67.21, 61.93, 62.35, 17.97), 0.0),
    ("MTLoRA r=64", (67.90, 59.84, 65.40, 16.60), 2.55),
    ("TADFormer r=64", (70.82, 60.45, 65.88, 16.48), 4.24),
    ("Free Sinewich r=32", (71.02, 60.75, 65.94, 16.44), 4.51),
    ("Free Sinewich r=64", (71.25, 61.38, 66.24, 16.14), 5.39),
    ("without LCN", (70.83, 61.37, 66.09, 16.17), 5.12),
    ("without low-pass", (70.95, 61.33, 65.44, 16.22), 4.82),
    ("without sine", (69.68, 60.69, 64.91, 16.37), 3.67),
    ("independent base", (70.81, 61.56, 65.42, 16.09), 5.03),
    ("independent decoder", (70.91, 61.57, 66.03, 16.10), 5.31),
]


@pytest.mark.parametrize(("name", "values", "printed"), ROWS)
def test_delta_m_reproduces_the_published_rows(name, values, printed):
    results = dict(zip(COLUMNS, values, strict=True))
    assert tasks.delta_m(results, SINGLE, UP) == pytest.approx(printed, abs=0.02), name


def test_delta_m_equals_the_published_code():
    columns = ("semseg", "normals", "saliency", "human_parts")
    model, single = (
        dict(zip(columns, row, strict=True)) for row in golden()["in/delta_m/model_then_base"]
    )
    expected = 100 * float(golden()["metric/mtlora/delta_m_fraction"])
    assert tasks.delta_m(model, single, UP) == pytest.approx(expected, rel=1e-9)


def test_delta_m_refuses_what_it_cannot_compare():
    with pytest.raises(SinewichError, match="at least one task"):
        tasks.delta_m({}, SINGLE, UP)
    with pytest.raises(SinewichError, match=r"no reference .* 'depth'"):
        tasks.delta_m({"depth": 1.0}, SINGLE, UP)
    for bad in (0.0, float("nan"), -1.0):
        with pytest.raises(SinewichError, match="must be a positive number"):
            tasks.delta_m({"semseg": 1.0}, {"semseg": bad}, UP)


def test_the_example_in_the_docstring():
    assert doctest.testmod(delta).failed == 0
    assert doctest.testmod(delta).attempted > 0

"""Arrays become examples: sentinels turn into masks, bad input into one clear sentence."""

from __future__ import annotations

import numpy as np
import pytest

from sinewich_jax.data import DataSource, from_arrays
from sinewich_jax.data.labels import KINDS, kind_of, register_kind, to_label
from sinewich_jax.errors import DataError


def arrays(n: int = 3, height: int = 6, width: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    normals = rng.standard_normal((n, height, width, 3))
    return {
        "image": rng.integers(0, 256, (n, height, width, 3), dtype=np.uint8),
        "semseg": rng.integers(0, 4, (n, height, width)),
        "human_parts": rng.integers(0, 7, (n, height, width), dtype=np.uint8),
        "saliency": rng.random((n, height, width)) < 0.5,
        "edge": rng.integers(0, 2, (n, height, width, 1), dtype=np.int32),
        "depth": rng.uniform(0.5, 9, (n, height, width)),
        "normals": normals / np.linalg.norm(normals, axis=-1, keepdims=True),
    }


def test_six_tasks_in_label_form():
    given = arrays()
    given["semseg"][0, 0, 0] = 3
    source = from_arrays(given)
    assert isinstance(source, DataSource)
    assert len(source) == 3 and source.size == (6, 5) and source.tasks == tuple(given)[1:]
    expected = {"semseg": 4, "human_parts": 7, "saliency": 1, "edge": 1, "depth": 1, "normals": 3}
    assert source.channels == expected
    example = source[2]
    assert example["image"].dtype == np.uint8
    for task, label in example["labels"].items():
        floats = task in ("depth", "normals")
        assert label.dtype == (np.float32 if floats else np.uint8)
        assert label.shape == ((6, 5, 3) if task == "normals" else (6, 5))
        assert example["valid"][task].dtype == bool and example["valid"][task].all()
    np.testing.assert_array_equal(example["labels"]["semseg"], given["semseg"][2])
    np.testing.assert_allclose(example["labels"]["normals"], given["normals"][2], atol=1e-6)


def test_sentinels_become_masks():
    given = arrays()
    given["semseg"][0, 0, 0] = 255
    given["edge"][0, 0, 1] = 255
    given["depth"][0, 0, :4] = (0, -1, np.nan, np.inf)
    given["normals"][0, 0, 0] = 0
    given["normals"][0, 0, 1] = (0.05, 0.05, 0)
    given["normals"][0, 0, 2] = np.nan
    given["normals"][0, 0, 3] = (0, 0.3, -0.4)
    valid = from_arrays(given, channels={"semseg": 4})[0]["valid"]
    assert np.argwhere(~valid["semseg"]).tolist() == [[0, 0]]
    assert np.argwhere(~valid["edge"]).tolist() == [[0, 1]]
    assert np.argwhere(~valid["depth"])[:, 1].tolist() == [0, 1, 2, 3]
    assert np.argwhere(~valid["normals"])[:, 1].tolist() == [0, 1, 2]
    label = from_arrays(given, channels={"semseg": 4})[0]["labels"]
    np.testing.assert_allclose(label["normals"][0, 3], [0, 0.6, -0.8], atol=1e-6)
    assert np.isfinite(label["depth"]).all() and np.isfinite(label["normals"]).all()


def test_normals_whose_components_cancel_are_valid():
    label, valid = to_label("normals", np.array([[[0.6, -0.6, 0.0]]]), "x")
    assert valid.all() and np.linalg.norm(label) == pytest.approx(1)


def test_masks_for_pixels_and_for_whole_examples():
    given = arrays()
    given["depth_valid"] = np.array([True, False, True])
    given["semseg_valid"] = np.ones((3, 6, 5), bool)
    given["semseg_valid"][1, 2, 3] = False
    source = from_arrays(given, channels={"semseg": 4})
    assert source.tasks == tuple(task for task in given if task in KINDS)
    assert source[0]["valid"]["depth"].all() and not source[1]["valid"]["depth"].any()
    assert np.argwhere(~source[1]["valid"]["semseg"]).tolist() == [[2, 3]]


def test_class_names_say_the_number_of_classes():
    source = from_arrays(arrays(), class_names={"semseg": list("abcdefg")})
    assert source.channels["semseg"] == 7 and source.class_names["semseg"] == tuple("abcdefg")
    assert len(source.class_names["human_parts"]) == 7


def test_examples_are_read_only_views_and_the_callers_arrays_stay_writable():
    given = arrays()
    source = from_arrays(given)
    with pytest.raises(ValueError, match="read-only"):
        source[0]["image"][0, 0] = 0
    given["image"][0, 0, 0, 0] = 1


def change(key, value):
    def apply(given):
        given[key] = value(given[key]) if callable(value) else value

    return apply


def put(key, where, value):
    def apply(given):
        given[key][where] = value

    return apply


BAD = {
    "no image": (lambda g: g.pop("image"), 'no "image"'),
    "float image": (change("image", lambda a: a / 255), "float64, expected uint8"),
    "grey images": (change("image", lambda a: a[..., 0]), r"shape \(3, 6, 5\)"),
    "no example": (change("image", lambda a: a[:0]), "no example"),
    "unknown task": (change("semsegg", np.zeros((3, 6, 5), int)), "did you mean 'semseg'"),
    "unknown mask": (change("dept_valid", np.ones(3, bool)), "did you mean 'depth_valid'"),
    "mask of numbers": (change("depth_valid", np.ones(3)), "depth_valid.*float64.*expected bool"),
    "fewer labels": (change("semseg", lambda a: a[:2]), "2 labels for 3 images"),
    "another size": (change("semseg", lambda a: a[:, :4]), r"size \[4, 5\].*\[6, 5\]"),
    "flat normals": (change("normals", lambda a: a[..., 0]), r"normals of example 0.*\[H, W, 3\]"),
    "8-bit normals": (change("normals", lambda a: (a * 127).astype(np.int8)), "int8, expected"),
    "long normals": (change("normals", lambda a: a * 127), "expected unit vectors"),
    "whole depth": (change("depth", lambda a: (a * 1000).astype(int)), "expected float metres"),
    "float classes": (change("semseg", lambda a: a * 1.0), "float64, expected whole numbers"),
    "nan classes": (change("semseg", lambda a: a * np.nan), "contains NaN"),
    "negative class": (put("semseg", (1, 0, 0), -1), "semseg of example 1 contains -1"),
    "large class": (put("semseg", (2, 0, 0), 300), "semseg of example 2 contains 300"),
    "part out of range": (
        put("human_parts", (1, 2, 3), 7),
        "example 1.*holds 7 at row 2, column 3",
    ),
    "edge of two": (put("edge", (1, 0, 0), 2), "edge of example 1 contains 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_are_refused_with_what_was_found(case):
    break_it, message = BAD[case]
    given = arrays()
    break_it(given)
    with pytest.raises(DataError, match=message):
        from_arrays(given)


def test_a_class_beyond_the_stated_number_is_refused():
    given = arrays()
    given["semseg"][1, 4, 2] = 9
    with pytest.raises(DataError, match=r"example 1.*holds 9 at row 4, column 2.*0 to 4"):
        from_arrays(given, channels={"semseg": 5})


@pytest.mark.parametrize("value", [0, 255])
def test_classes_that_the_arrays_do_not_show_have_to_be_told(value):
    given = arrays()
    given["semseg"][:] = value
    with pytest.raises(
        DataError, match=r"semseg shows no class but 0 .*channels=\{\"semseg\": N\}"
    ):
        from_arrays(given)
    assert from_arrays(given, channels={"semseg": 5}).channels["semseg"] == 5


def test_counts_for_a_task_that_is_not_there_are_refused():
    with pytest.raises(DataError, match="channels names 'humanparts'"):
        from_arrays(arrays(), channels={"humanparts": 5})


def test_images_alone_are_refused():
    with pytest.raises(DataError, match="no task"):
        from_arrays({"image": arrays()["image"]})


def test_own_kinds(monkeypatch):
    monkeypatch.setattr("sinewich_jax.data.labels.KINDS", dict(KINDS))
    with pytest.raises(DataError, match="no label is known by the name 'heat'"):
        kind_of("heat")
    register_kind("heat", "depth")
    register_kind("heat", "depth")
    assert kind_of("heat") == "depth"
    with pytest.raises(DataError, match="already"):
        register_kind("heat", "class")
    with pytest.raises(DataError, match="did you mean 'class'"):
        register_kind("cold", "clas")


def test_images_of_several_sizes_and_names_that_are_no_list_are_refused():
    images = [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 6, 3), np.uint8)]
    with pytest.raises(DataError, match=r"several shapes, \(4, 4, 3\) and \(4, 6, 3\)"):
        from_arrays({"image": images, "depth": images})
    arrays = {"image": np.zeros((1, 4, 4, 3), np.uint8), "semseg": np.zeros((1, 4, 4), np.uint8)}
    with pytest.raises(DataError, match="class_names of semseg is the text 'road'"):
        from_arrays(arrays, class_names={"semseg": "road"})

"""Geometry of the joint augmentation against closed forms."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinewich_jax.core.interpolate import cubic_weight
from sinewich_jax.data.augment import Augment, jitter, look_through
from sinewich_jax.data.warp import Sampler, Window
from sinewich_jax.errors import ConfigError


def make_example(height: int = 24, width: int = 20, seed: int = 0, holes: bool = False) -> dict:
    rng = np.random.default_rng(seed)
    normals = rng.standard_normal((height, width, 3)).astype(np.float32)
    labels = {
        "semseg": rng.integers(0, 8, (height, width), dtype=np.uint8),
        "edge": rng.integers(0, 2, (height, width), dtype=np.uint8),
        "depth": rng.uniform(1, 5, (height, width)).astype(np.float32),
        "normals": normals / np.linalg.norm(normals, axis=-1, keepdims=True),
    }
    valid = {t: rng.random((height, width)) < (0.8 if holes else 2) for t in labels}
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return {"image": image, "labels": labels, "valid": valid}


def assert_same(a: dict, b: dict) -> None:
    np.testing.assert_array_equal(a["image"], b["image"])
    for task in a["labels"]:
        mask = a["valid"][task]
        np.testing.assert_array_equal(mask, b["valid"][task])
        np.testing.assert_array_equal(a["labels"][task][mask], b["labels"][task][mask])


def plane_normals(height: int, width: int, vector) -> dict:
    label = np.broadcast_to(np.float32(vector), (height, width, 3)).copy()
    return {
        "image": np.zeros((height, width, 3), np.uint8),
        "labels": {"normals": label},
        "valid": {"normals": np.ones((height, width), bool)},
    }


@pytest.mark.parametrize("method", ["linear", "cubic"])
def test_rotation_turns_normals_counter_clockwise(method):
    out = look_through(plane_normals(21, 21, (1, 0, 0)), Window((21, 21), degrees=20), method)
    good = out["labels"]["normals"][out["valid"]["normals"]]
    assert len(good) > 300
    np.testing.assert_allclose(good, np.broadcast_to([0.93969, -0.34202, 0], good.shape), atol=1e-5)


def test_rotation_moves_pixels_counter_clockwise():
    """What lies to the right of the centre moves up (y points down)."""
    example = make_example(21, 21)
    example["labels"]["semseg"][:] = 0
    example["labels"]["semseg"][10, 18] = 7
    out = look_through(example, Window((21, 21), degrees=90))
    assert np.argwhere(out["labels"]["semseg"] == 7).tolist() == [[2, 10]]


def test_quarter_turns_agree_with_rot90():
    example = make_example(17, 17)
    out = look_through(example, Window((17, 17), degrees=90))
    np.testing.assert_array_equal(out["image"], np.rot90(example["image"]))
    np.testing.assert_array_equal(out["labels"]["edge"], np.rot90(example["labels"]["edge"]))
    x, y, z = np.moveaxis(np.rot90(example["labels"]["normals"]), -1, 0)
    np.testing.assert_allclose(out["labels"]["normals"], np.stack([y, -x, z], -1), atol=1e-5)
    assert all(mask.all() for mask in out["valid"].values())


def test_flip_mirrors_maps_and_negates_x_of_normals():
    example = make_example(holes=True)
    out = look_through(example, Window((24, 20), flip=True))
    np.testing.assert_array_equal(out["image"], example["image"][:, ::-1])
    np.testing.assert_array_equal(out["labels"]["depth"], example["labels"]["depth"][:, ::-1])
    mirrored = example["labels"]["normals"][:, ::-1] * np.float32([-1, 1, 1])
    mask = out["valid"]["normals"]
    np.testing.assert_array_equal(mask, example["valid"]["normals"][:, ::-1])
    np.testing.assert_array_equal(out["labels"]["normals"][mask], mirrored[mask])


@given(seed=st.integers(0, 99), height=st.integers(1, 9), width=st.integers(1, 9))
@settings(max_examples=25)
def test_flip_twice_is_identity(seed, height, width):
    example = make_example(height, width, seed, holes=True)
    window = Window((height, width), flip=True)
    assert_same(look_through(look_through(example, window), window), example)


def test_flip_then_rotation_compose_on_normals():
    """The mirror comes first: (1, 0, 0) becomes (-1, 0, 0), then turns."""
    window = Window((15, 15), flip=True, degrees=20)
    out = look_through(plane_normals(15, 15, (1, 0, 0)), window)
    np.testing.assert_allclose(out["labels"]["normals"][7, 7], [-0.93969, 0.34202, 0], atol=1e-5)


def test_depth_is_divided_by_the_zoom():
    example = make_example()
    out = look_through(example, Window((24, 20), zoom=1.5))
    assert out["valid"]["depth"].all()
    values = np.unique((example["labels"]["depth"] / np.float32(1.5)).astype(np.float32))
    assert np.isin(out["labels"]["depth"], values).all()
    out = look_through(example, Window((24, 20), zoom=0.5))
    mask = out["valid"]["depth"]
    assert mask.sum() == 12 * 10
    values = np.unique(example["labels"]["depth"] / np.float32(0.5))
    assert np.isin(out["labels"]["depth"][mask], values).all()


def test_a_tilted_plane_rendered_again_is_the_same_plane():
    """Zooming about the principal point and dividing depth leaves x = u z / f in place."""
    height = width = 41
    u = np.arange(width) - 20.0
    depth = (3 / (1 + 0.01 * u))[None].repeat(height, 0).astype(np.float32)
    example = make_example(height, width)
    example["labels"]["depth"] = depth
    out = look_through(example, Window((height, width), zoom=2))
    expected = (3 / (1 + 0.01 * u / 2))[None].repeat(height, 0) / 2
    np.testing.assert_allclose(out["labels"]["depth"], expected, rtol=0.006)  # half a pixel


def test_border_is_invalid_unless_asked_otherwise():
    example = make_example(21, 21)
    window = Window((21, 21), degrees=45)
    out = look_through(example, window)
    inside = Sampler(window, (21, 21)).inside
    assert 0 < inside.sum() < 21 * 21 and not inside[0, 0]
    for task, mask in out["valid"].items():
        if task != "normals":
            np.testing.assert_array_equal(mask, inside)
        assert not out["labels"][task][~inside].any()
    assert not out["valid"]["normals"][~inside].any()
    assert not out["image"][~inside].any()
    compat = look_through(example, window, zero_border=True)
    assert compat["valid"]["semseg"].all() and compat["valid"]["edge"].all()
    assert not compat["valid"]["depth"][0, 0] and not compat["valid"]["normals"][0, 0]


def test_masks_move_with_their_pixels_and_invalid_normals_do_not_bleed():
    example = plane_normals(20, 20, (0, 0, -1))
    example["labels"]["normals"][:, :10] = (0, 1, 0)
    example["valid"]["normals"][:, :10] = False
    out = look_through(example, Window((20, 20), zoom=1.3, degrees=5))
    good = out["labels"]["normals"][out["valid"]["normals"]]
    assert 150 < len(good) < 250
    np.testing.assert_allclose(good, np.broadcast_to([0, 0, -1], good.shape), atol=1e-6)


def reference(array: np.ndarray, window: Window, method: str) -> np.ndarray:
    """Pixel by pixel in float64, from the formula in Window's docstring."""
    height, width = array.shape
    out = np.zeros(window.size)
    angle = np.deg2rad(window.degrees)
    for i in range(window.size[0]):
        for j in range(window.size[1]):
            u = j - (window.size[1] - 1) / 2 + window.offset[1]
            v = i - (window.size[0] - 1) / 2 + window.offset[0]
            p = (np.cos(angle) * u - np.sin(angle) * v) / window.zoom
            q = (np.sin(angle) * u + np.cos(angle) * v) / window.zoom
            x = (width - 1) / 2 + (-p if window.flip else p)
            y = (height - 1) / 2 + q
            if not (-0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5):
                continue
            for r in range(int(np.floor(y)) - 1, int(np.floor(y)) + 3):
                for c in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
                    if method == "linear":
                        weight = max(0, 1 - abs(y - r)) * max(0, 1 - abs(x - c))
                    else:
                        weight = float(
                            cubic_weight(np.array(y - r)) * cubic_weight(np.array(x - c))
                        )
                    out[i, j] += weight * array[np.clip(r, 0, height - 1), np.clip(c, 0, width - 1)]
    return out


@pytest.mark.parametrize("method", ["linear", "cubic"])
@pytest.mark.parametrize(
    "window",
    [
        Window((9, 12), zoom=1.3, degrees=-17, offset=(0.7, -1.2)),
        Window((14, 7), flip=True, zoom=0.8, degrees=31),
        Window((1, 1), zoom=2),
    ],
)
def test_sampler_equals_the_formula(window, method):
    array = np.random.default_rng(0).random((11, 9))
    ours = Sampler(window, (11, 9)).smooth(array[..., None], method)[..., 0]
    np.testing.assert_allclose(ours, reference(array, window, method), atol=3e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1)])
def test_one_pixel_wide_sources(shape):
    array = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)
    window = Window((4, 4), zoom=1.5)
    ours = Sampler(window, shape).smooth(array[..., None], "linear")[..., 0]
    np.testing.assert_allclose(ours, reference(array, window, "linear"), atol=1e-5)


def test_image_overshoot_is_clipped():
    example = make_example(32, 32)
    example["image"][:] = 0
    example["image"][:, 16:] = 255
    out = look_through(example, Window((32, 32), zoom=2), "cubic")
    assert (np.diff(out["image"][0, :, 0].astype(int)) >= 0).all()


def test_crop_is_exact_pixels_and_covers_all_positions():
    example = make_example(8, 7)
    augment = Augment(crop=(5, 4))
    seen = set()
    for seed in range(200):
        out = augment(example, np.random.default_rng(seed))
        at = [
            (r, c)
            for r in range(4)
            for c in range(4)
            if np.array_equal(out["image"], example["image"][r : r + 5, c : c + 4])
        ]
        assert len(at) == 1
        ((r, c),) = at
        np.testing.assert_array_equal(
            out["labels"]["depth"], example["labels"]["depth"][r : r + 5, c : c + 4]
        )
        assert out["valid"]["depth"].all()
        seen.add((r, c))
    assert len(seen) == 16


def test_crop_larger_than_the_frame_pads_with_invalid_pixels():
    example = make_example(8, 7)
    places = set()
    for seed in range(100):
        out = Augment(crop=(10, 9))(example, np.random.default_rng(seed))
        mask = out["valid"]["semseg"]
        assert mask.shape == (10, 9) and mask.sum() == 56
        np.testing.assert_array_equal(out["image"][mask].reshape(8, 7, 3), example["image"])
        places.add(tuple(np.argwhere(mask)[0]))
    assert places == {(r, c) for r in range(3) for c in range(3)}


@given(
    seed=st.integers(0, 1000),
    rotate=st.floats(0, 180),
    crop=st.sampled_from([None, (5, 9), (30, 30)]),
    method=st.sampled_from(["linear", "cubic"]),
)
@settings(max_examples=40)
def test_what_comes_out_is_always_an_example(seed, rotate, crop, method):
    example = make_example(16, 12, seed, holes=True)
    augment = Augment(True, (0.5, 2.0), rotate, crop, method=method, brightness=0.2, contrast=0.3)
    before = {task: label.copy() for task, label in example["labels"].items()}
    out = augment(example, np.random.default_rng(seed))
    size = crop or (16, 12)
    assert out["image"].shape == (*size, 3) and out["image"].dtype == np.uint8
    assert out["image"].flags.c_contiguous
    for task, label in out["labels"].items():
        assert label.shape[:2] == size == out["valid"][task].shape
        assert label.dtype == example["labels"][task].dtype and out["valid"][task].dtype == bool
        np.testing.assert_array_equal(example["labels"][task], before[task])
    mask = out["valid"]["normals"]
    length = np.linalg.norm(out["labels"]["normals"][mask], axis=-1)
    np.testing.assert_allclose(length, 1, atol=1e-5)
    assert (out["labels"]["depth"][out["valid"]["depth"]] > 0).all()


def test_default_changes_nothing():
    example = make_example(holes=True)
    assert_same(Augment()(example, np.random.default_rng(0)), example)


def test_scale_and_rotation_cover_the_stated_ranges():
    """Also for ranges that are not symmetric, where a common formula draws from the wrong one."""
    augment = Augment(flip=True, scale=(0.5, 2.0), rotate=20)
    windows = [
        augment._window(np.random.default_rng(seed).random(7), (8, 8)) for seed in range(500)
    ]
    zooms = [window.zoom for window in windows]
    degrees = [window.degrees for window in windows]
    assert 0.5 <= min(zooms) < 0.52 and 1.98 < max(zooms) <= 2.0
    assert -20 <= min(degrees) < -19.5 and 19.5 < max(degrees) <= 20
    assert 200 < sum(window.flip for window in windows) < 300


def test_zooms_are_drawn_from_the_named_ones_alone():
    augment = Augment(zooms=(1.0, 1.2, 1.5))
    drawn = [augment._window(np.random.default_rng(i).random(7), (8, 8)).zoom for i in range(90)]
    assert set(drawn) == {1.0, 1.2, 1.5}
    assert min(map(drawn.count, (1.0, 1.2, 1.5))) > 15


def test_jitter_is_the_formula_and_leaves_the_border_black():
    values = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, -1)
    expected = np.clip(np.rint(127.5 + 0.5 * (np.arange(256) - 127.5) + 10), 0, 255)
    np.testing.assert_array_equal(jitter(values, 10, 0.5)[0, :, 0], expected)
    example = make_example(16, 16)
    out = Augment(scale=(0.5, 0.5), brightness=1.0)(example, np.random.default_rng(1))
    assert not out["image"][0].any()


def test_switching_one_effect_on_keeps_the_others():
    plain = Augment(scale=(0.5, 2.0), rotate=20)
    more = dataclasses.replace(plain, flip=True, brightness=0.5)
    u = np.random.default_rng(3).random(7)
    a, b = plain._window(u, (8, 8)), more._window(u, (8, 8))
    assert (a.zoom, a.degrees) == (b.zoom, b.degrees)


@pytest.mark.parametrize(
    "bad",
    [
        {"scale": (0.0, 1.0)},
        {"scale": (2.0, 1.0)},
        {"zooms": (1.0, 0.0)},
        {"scale": (1.0, 2.0), "zooms": (1.0, 1.5)},
        {"rotate": -1.0},
        {"crop": (0, 4)},
        {"method": "nearest"},
        {"contrast": 2.0},
    ],
)
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ConfigError, match=rf"augment\.{next(iter(bad))}|augment\.brightness"):
        Augment(**bad)

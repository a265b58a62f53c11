"""The picture of one photograph's predictions."""

from __future__ import annotations

import numpy as np
import pytest

from sinewich_jax import report, tasks
from sinewich_jax.report import canvas, predictions

SEMSEG = tasks.make("semseg", channels=5)
DEPTH = tasks.make("depth")


@pytest.mark.parametrize(("height", "width"), [(30, 20), (20, 50), (600, 900)])
def test_every_tile_shows_its_task(height, width, tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    values = {
        "semseg": rng.integers(0, 5, (height, width)),
        "depth": rng.uniform(1, 8, (height, width)).astype(np.float32),
    }
    page = predictions.draw_predictions([SEMSEG, DEPTH], image, values, "beach.jpg")
    tall, wide = canvas.fit(height, width, predictions.LEAST, predictions.MOST)
    pixels, top = np.asarray(page), canvas.MARGIN + 30 + predictions.HEAD
    for task in (SEMSEG, DEPTH):
        expected = np.asarray(canvas.tile(task.picture(values[task.name]), (tall, wide)))
        found = [
            left
            for left in range(canvas.MARGIN + wide, pixels.shape[1] - wide + 1)
            if np.array_equal(pixels[top, left : left + wide], expected[0])
            and np.array_equal(pixels[top : top + tall, left : left + wide], expected)
        ]
        assert len(found) == 1
    path = report.write_predictions(tmp_path / "p.png", [DEPTH], image, values, "x" * 80)
    assert path.stat().st_size > 0


def test_more_than_four_tiles_take_two_rows():
    image = np.zeros((40, 60, 3), np.uint8)
    names = ("depth", "saliency", "edge", "normals")
    values = {name: np.zeros((40, 60), np.float32) for name in names[:3]}
    values["normals"] = np.broadcast_to(np.float32([0, 0, -1]), (40, 60, 3))
    made = [tasks.make(name) for name in names]
    one = predictions.draw_predictions(made[:3], image, values, "a")
    two = predictions.draw_predictions(made, image, values, "a")
    assert two.width == one.width and two.height > 1.8 * one.height

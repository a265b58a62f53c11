"""Pictures of what the metrics have to show."""

from __future__ import annotations

import numpy as np
import pytest

from sinewich_jax import report, tasks
from sinewich_jax.report import diagnostics
from sinewich_jax.tasks import charts

RNG = np.random.default_rng(0)


def states() -> dict[str, dict]:
    """A plausible metric state of every dense task."""
    made = {name: tasks.make(name).metric().empty() for name in tasks.names(tasks.DenseTask)}
    for name in ("semseg", "human_parts"):
        n = tasks.make(name).channels
        made[name]["confusion"] = RNG.integers(0, 9, (n, n)) + np.diag(RNG.integers(50, 99, n))
    made["normals"]["histogram"][:400] = 5
    made["depth"]["range_pixels"][8:20] = 100
    made["depth"]["range_square"][8:20] = np.linspace(0.1, 4.0, 12)
    falling = np.linspace(1.0, 0.1, 99)
    made["edge"] |= {"truth": np.int64(100), "claims": (200 * falling).astype(int)}
    made["edge"] |= {"found": (90 * falling).astype(int), "right": (80 * falling).astype(int)}
    made["saliency"]["confusion"] = np.array([[500, 20], [30, 100]])
    made["saliency"]["hits"] = np.linspace(120, 20, 19).astype(int)
    made["saliency"]["claims"] = np.linspace(300, 21, 19).astype(int)
    return made


def test_every_dense_task_has_a_picture(tmp_path):
    shown = {name: tasks.make(name).metric().chart(state) for name, state in states().items()}
    paths = report.write_diagnostics(tmp_path, shown)
    assert {path.stem for path in paths} == set(tasks.names(tasks.DenseTask))
    assert all(path.stat().st_size > 1000 for path in paths)


@pytest.mark.parametrize("name", tasks.names())
def test_nothing_counted_is_nothing_to_see(name):
    metric = tasks.make(name).metric()
    assert metric.chart(metric.empty()) is None


def test_the_diagonal_is_dark_and_mistakes_are_named():
    counts = np.array([[90, 10, 0], [0, 50, 50], [0, 0, 0]])
    shown = charts.Matrix("pixels", counts, ("road", "car", "sky"))
    page = np.asarray(diagnostics.draw_diagnostic("semseg", shown))
    assert np.any(np.all(page == diagnostics._shade(0.9), axis=-1))
    lines = diagnostics._confusions(counts / np.array([[100], [100], [1]]), shown.names)
    assert lines == ["most often mistaken:", "car for sky, 50 %", "road for car, 10 %"]


def test_bars_are_as_high_as_their_values():
    heights = np.array([1.0, 2.0, np.nan, 4.0])
    shown = charts.Bars("t", "x", np.arange(5.0), heights)
    page = np.asarray(diagnostics.draw_diagnostic("depth", shown))
    columns = np.flatnonzero(np.all(page == diagnostics.BLUE, axis=-1).any(axis=0))
    blue = np.all(page == diagnostics.BLUE, axis=-1).sum(axis=0)
    tall = np.unique(blue[columns])
    assert len(tall) == 3
    np.testing.assert_allclose(tall / tall[-1], [0.25, 0.5, 1.0], atol=0.02)

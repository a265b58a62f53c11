from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sinewich_jax import report
from sinewich_jax.errors import DataError, SinewichError
from sinewich_jax.report import canvas, chart, compare, curves


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_inside_even_and_few(low, width):
    high = low + width
    values = [value for value, _ in chart.ticks(low, high, False)]
    assert 3 <= len(values) <= 8
    tolerance = 1e-6 * max(abs(low), abs(high))
    assert values[0] >= low - tolerance and values[-1] <= high + tolerance
    np.testing.assert_allclose(np.diff(values), values[1] - values[0], rtol=1e-3)


@given(st.floats(1e-6, 1e6), st.floats(1.05, 1e9))
def test_logarithmic_ticks_are_positive_and_few(low, factor):
    values = [value for value, _ in chart.ticks(low, low * factor, True)]
    assert 2 <= len(values) <= 8
    assert all(low * 0.999 <= value <= low * factor * 1.001 for value in values)


def test_tick_texts_tell_the_ticks_apart():
    for low, high in ((0, 1), (0.5, 0.52), (0, 12000), (-3, 3)):
        texts = [text for _, text in chart.ticks(low, high, False)]
        assert len(set(texts)) == len(texts)
    assert [text for _, text in chart.ticks(0.0, 600.0, False)] == ["0", "200", "400", "600"]


def test_a_line_goes_through_its_points():
    line = chart.Line("", np.array([0.0, 10.0]), np.array([1.0, 1.0]), (255, 0, 0), width=3)
    image = np.asarray(chart.draw_chart("flat", [line], (200, 100), include=(0.0, 2.0)))
    red = (image[..., 0] > 200) & (image[..., 1] < 60)
    rows, columns = np.nonzero(red)
    middle = (chart.HEAD + 100 - chart.FOOT) / 2
    assert abs(rows.mean() - middle) < 1.0 and rows.max() - rows.min() <= 3
    assert columns.max() - columns.min() > 140


def test_the_running_mean_keeps_a_line_and_halves_a_zigzag():
    x = np.arange(40.0)
    np.testing.assert_allclose(chart.Line("", x, np.full(40, 3.0), canvas.INK).smooth().y, 3.0)
    zigzag = chart.Line("", x, np.where(x % 2, 1.0, -1.0), canvas.INK).smooth()
    assert np.abs(zigzag.y).max() <= 0.5


def test_names_at_the_lines_ends_do_not_cover_each_other():
    line = chart.Line("a", np.zeros(1), np.zeros(1), canvas.INK)
    placed = [y for y, _ in chart._apart([(50.0 + i, line) for i in range(6)], 0, 120)]
    assert np.diff(placed).min() >= canvas.SMALL and placed[0] >= 0 and placed[-1] <= 120


def records(steps=12):
    rows = []
    for step in range(1, steps + 1):
        row = {"step": step, "loss": 3.0 / step, "images_per_second": None if step == 1 else 9.0}
        for task in ("depth", "edge"):
            row[f"loss/{task}"] = 1.0 / step
            row[f"omega/global/{task}"] = 50.0 + step
            for layer in ("a", "b"):
                row[f"modulation_index/{layer}/{task}"] = {"a": 1.0, "b": 3.0}[layer]
                row[f"update_cosine/{layer}"] = 0.5
        row["update_cosine"] = 0.5
        rows.append(row)
    return [*rows, {"step": steps, "warning": "text"}, {"step": steps, "eval/depth/rmse": 1.0}]


def test_the_curves_of_a_run(tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in records())
    (tmp_path / "metrics.jsonl").write_text(lines, encoding="utf-8")
    path = report.write_curves(tmp_path)
    first = path.read_bytes()
    assert report.write_curves(tmp_path).read_bytes() == first
    with Image.open(path) as image:
        assert image.size[0] == 2 * canvas.MARGIN + 3 * 440 + 2 * curves.GAP


def test_layers_are_averaged_and_steps_without_a_number_left_out():
    by_task = curves._by_task(records(), "modulation_index")
    assert list(by_task) == ["depth", "edge"]
    np.testing.assert_array_equal(by_task["edge"][1], np.full(12, 2.0))
    steps, values = curves._series(records(), "images_per_second")
    assert steps.tolist() == list(range(2, 13)) and set(values) == {9.0}


def test_a_method_without_frequencies_gets_the_charts_it_has():
    plain = [{"step": step, "loss": 1.0} for step in range(3)]
    assert curves.draw_curves(plain).size[0] == 2 * canvas.MARGIN + 440
    assert curves.draw_curves([{"step": 1, "info": "text"}]) is None


def test_no_metrics_no_curves_and_a_broken_line_is_named(tmp_path):
    assert report.write_curves(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1}\n{"st', encoding="utf-8")
    with pytest.raises(DataError, match=r"metrics.jsonl, line 2 is '\{\"st', expected a JSON"):
        report.write_curves(tmp_path)
    assert not (tmp_path / "curves.png").exists()


METHODS = {
    "lora": {"depth": [0.50, 0.52, 0.48], "edge": [0.7]},
    "sinewich": {"depth": [0.40, 0.41, 0.42], "edge": None},
}


def test_methods_side_by_side(tmp_path):
    options = {"higher_is_better": {"depth": False}, "baselines": {"depth": 0.6}}
    one = report.compare_methods(METHODS, tmp_path / "one.png", **options)
    two = report.compare_methods(METHODS, tmp_path / "two.png", **options)
    assert one.read_bytes() == two.read_bytes()
    with Image.open(one) as image:
        page = np.asarray(image.convert("RGB")).astype(int)
    for colour in canvas.LINE_COLOURS[:2]:
        assert (np.abs(page - colour).max(-1) == 0).any()
    for edge in (page[:8], page[-8:], page[:, :12], page[:, -12:]):
        assert (edge == canvas.PAPER).all()


def test_better_methods_stand_on_the_right_side():
    def centre(colour):
        values = {"a": [1.0, 1.0], "b": [2.0, 2.0]}
        page = np.asarray(compare._facet("t", values, "t", None, None, 2))
        return np.nonzero((page == colour).all(-1))[1].mean()

    assert centre(canvas.LINE_COLOURS[0]) + 100 < centre(canvas.LINE_COLOURS[1])


def test_nothing_to_compare_is_refused(tmp_path):
    with pytest.raises(SinewichError, match="no method or no task"):
        report.compare_methods({}, tmp_path / "x.png")

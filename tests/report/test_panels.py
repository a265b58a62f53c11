from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from sinewich_jax import report, tasks
from sinewich_jax.errors import SinewichError
from sinewich_jax.report import canvas, legends, overview, panels, scores
from tests.report import examples

SEMSEG = tasks.make("semseg", channels=5)
DEPTH = tasks.make("depth")


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def grown(picture: np.ndarray, factor: int) -> np.ndarray:
    return picture.repeat(factor, 0).repeat(factor, 1)


def tile_at(page: np.ndarray, row_top: int, column: int, height: int, width: int) -> np.ndarray:
    left = canvas.MARGIN + column * (width + panels.GAP)
    return page[row_top : row_top + height, left : left + width]


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 24)])
def test_a_panel_holds_every_picture_pixel_by_pixel(height, width):
    example = examples.example([SEMSEG, DEPTH], height, width)
    example["valid"]["depth"][:4] = False
    page = np.asarray(panels.draw_panel([SEMSEG, DEPTH], example))
    tall, wide = height * 10, width * 10
    top = canvas.MARGIN + 48 + panels.HEAD
    for task in (SEMSEG, DEPTH):
        guess, label, valid = (
            example[kind][task.name] for kind in ("predictions", "labels", "valid")
        )
        expected = (
            example["image"],
            task.picture(guess),
            task.picture(label, valid),
            task.error_picture(guess, label, valid),
        )
        for column, picture in enumerate(expected):
            found = tile_at(page, top, column, tall, wide)
            np.testing.assert_array_equal(found, grown(picture, 10), err_msg=task.name)
        top += tall + panels.HEAD + panels.GAP
    assert page.shape[0] == top - panels.HEAD - panels.GAP + canvas.MARGIN
    assert page.shape[1] > canvas.MARGIN * 2 + 4 * wide + 3 * panels.GAP + panels.LEGEND_GAP


def test_six_tasks_on_disk_with_the_same_bytes_every_time(tmp_path):
    small = {"semseg": {"channels": 5}, "human_parts": {"channels": 5}}
    dense = tasks.names(tasks.DenseTask)
    all_tasks = [tasks.make(name, **small.get(name, {})) for name in dense]
    rows = [examples.example(all_tasks, index=index) for index in (3, 12)]
    first = report.write_panels(tmp_path / "a", all_tasks, rows)
    second = report.write_panels(tmp_path / "b", all_tasks, rows)
    assert [path.name for path in first] == ["example_0003.png", "example_0012.png", "overview.png"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [p.name for p in first]


def test_nothing_reaches_the_margins():
    odd = tasks.make("semseg", class_names=["a very long class name é"] * 3)
    odd = dataclasses.replace(odd, name="odd task " * 12)
    for task_list, size in (([odd], (16, 16)), ([SEMSEG, DEPTH], (8, 40)), ([DEPTH], (600, 300))):
        page = np.asarray(panels.draw_panel(task_list, examples.example(task_list, *size)))
        paper = np.array(canvas.PAPER)
        for edge in (page[:12], page[-12:], page[:, :12], page[:, -12:]):
            assert (edge == paper).all()


def test_a_label_that_is_no_class_is_hatched_where_invalid():
    example = examples.example([SEMSEG])
    example["labels"]["semseg"][:8] = 255
    example["valid"]["semseg"][:8] = False
    page = np.asarray(panels.draw_panel([SEMSEG], example))
    found = tile_at(page, canvas.MARGIN + 48 + panels.HEAD, 2, 80, 160)
    assert {tuple(c) for c in found.reshape(-1, 3)} == {(56, 56, 56), (84, 84, 84)}


@pytest.mark.parametrize("count", [2, 7, 16, 21, 60])
def test_a_legend_shows_each_class_in_its_colour_and_keeps_its_height(count):
    task = tasks.make("semseg", channels=count)
    legend = np.asarray(legends.value_legend(task, 140))
    assert legend.shape[0] <= 140
    seen = {tuple(c) for c in legend.reshape(-1, 3)}
    wanted = {tuple(c) for c in task.picture(np.arange(count)[None])[0]}
    assert wanted <= seen


def test_legends_are_painted_by_the_task():
    bar = np.asarray(legends.value_legend(DEPTH, 140))[legends.BAR[1] // 2]
    near, far = DEPTH.picture(np.array([list(DEPTH.picture_range)]))[0]
    np.testing.assert_allclose(bar[1], near, atol=4)
    np.testing.assert_allclose(bar[-2], far, atol=4)
    normals = tasks.make("normals")
    ball = np.asarray(legends.value_legend(normals, 118))
    facing = normals.picture(np.array([[[0.0, 0.0, -1.0]]]))[0, 0]
    middle = ball[ball.shape[0] // 2, ball.shape[1] // 2]
    np.testing.assert_allclose(middle.astype(int), facing, atol=4)


def test_scores_are_those_of_the_tasks_metric():
    valid = np.ones((4, 4), bool)
    label = np.full((4, 4), 2.0, np.float32)
    assert scores.caption(DEPTH, label + 0.5, label, valid) == "RMSE 0.50 m"
    normals = tasks.make("normals")
    straight = np.tile(np.array([0, 0, -1], np.float32), (4, 4, 1))
    slanted = np.tile(np.array([0.5, 0, -np.sqrt(0.75)], np.float32), (4, 4, 1))
    assert scores.caption(normals, slanted, straight, valid) == "mean angle 30.0°"
    saliency = tasks.make("saliency")
    half = np.tile(np.array([0, 0, 1, 1], np.uint8), (4, 1))
    assert scores.caption(saliency, 0.9 * half.astype(np.float32), half, valid) == "max mIoU 1.00"
    assert scores.image_score(SEMSEG, half, half, valid) == ("miou_present", 1.0)
    quarter = scores.image_score(SEMSEG, np.zeros_like(half), half, valid)
    assert quarter == ("miou_present", pytest.approx(0.25))


def test_without_a_valid_pixel_there_is_nothing_to_score():
    example = examples.example([SEMSEG])
    nowhere = np.zeros((16, 16), bool)
    text = scores.caption(
        SEMSEG, example["predictions"]["semseg"], example["labels"]["semseg"], nowhere
    )
    assert text == "nothing to score"


@pytest.mark.parametrize("count", [1, 3])
def test_the_overview_is_a_grid_of_predictions_above_truths(count):
    task_list = [SEMSEG, DEPTH]
    rows = [examples.example(task_list, index=index) for index in range(count)]
    page = np.asarray(overview.draw_overview(task_list, rows))
    tall = 2 * 112 + overview.GAP
    top = canvas.MARGIN + 26
    band = tall + overview.BETWEEN
    assert page.shape[0] == top + count * band - overview.BETWEEN + canvas.MARGIN
    left = canvas.MARGIN + tall + overview.GAP + overview.LABELS + 112 + overview.GAP
    for row, example in enumerate(rows):
        for part, kind in enumerate(("predictions", "labels")):
            y = top + row * band + part * (112 + overview.GAP)
            found = page[y : y + 112, left : left + 112]
            expected = grown(DEPTH.picture(example[kind]["depth"]), 7)
            np.testing.assert_array_equal(found, expected)


def test_names_wider_than_the_tiles_of_a_tall_image_get_room():
    parts = tasks.make("human_parts", channels=5)
    rows = [examples.example([parts, SEMSEG], 200, 50)]
    page = np.asarray(overview.draw_overview([parts, SEMSEG], rows))
    tile, gap = 40, overview.GAP
    first = canvas.MARGIN + 2 * tile + gap + gap + overview.LABELS
    pitch = canvas.text_width("human parts") + 4 + gap
    left = first + pitch + (pitch - gap - tile) // 2
    expected = canvas.tile(SEMSEG.picture(rows[0]["predictions"]["semseg"]), (160, tile))
    top = canvas.MARGIN + 26
    np.testing.assert_array_equal(page[top : top + 160, left : left + tile], expected)


def test_what_is_missing_is_named(tmp_path):
    example = examples.example([SEMSEG])
    with pytest.raises(SinewichError, match="at least one example and one task, got 0 examples"):
        report.write_panels(tmp_path, [SEMSEG], [])
    with pytest.raises(SinewichError, match=r"example 0: 'predictions' of depth .* found none"):
        report.write_panels(tmp_path, [DEPTH], [example])
    example["labels"]["semseg"] = example["labels"]["semseg"][:3]
    with pytest.raises(SinewichError, match=r"'labels' of semseg .* 16 x 16, .*\(3, 16\)"):
        report.write_panels(tmp_path, [SEMSEG], [example])
    assert not list(tmp_path.iterdir())


def test_letters_that_the_font_lacks_do_not_become_boxes():
    assert canvas.plain("tête 30° ± 1 山") == "tete 30° ± 1 ?"

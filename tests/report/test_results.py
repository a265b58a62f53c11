from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest

from sinewich_jax import config, report
from sinewich_jax.report import results as pages
from tests.report import examples

GOLDEN = Path(__file__).parent / "golden_results.md"


def recorded(**keys):
    return config.to_dict(config.Config(**keys))


def test_the_page_is_the_golden_one():
    content = {**examples.results(), "command": "python train.py --config=configs/scenes.py"}
    page = report.result_page(content, recorded(batch_size=4, seed=3, steps=20))
    assert page == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("value", "baseline", "text"),
    [(0.6, 1.5, "0.40×"), (3.0, 1.5, "2.00×"), (1.0, 0.0, "undefined"), (None, 1.0, "no value")],
)
def test_ratio(value, baseline, text):
    assert pages.ratio(value, baseline) == text


@pytest.mark.parametrize(
    ("value", "reference", "higher", "text"),
    [
        (0.6, 0.5, True, "+20.0 %"),
        (0.6, 0.5, False, "-20.0 %"),
        (0.4, 0.5, False, "+20.0 %"),
        (0.4, None, True, "not known"),
        (math.nan, 0.5, True, "no value"),
        (0.4, 0.0, True, "undefined"),
    ],
)
def test_relative_change(value, reference, higher, text):
    assert pages.relative_change(value, reference, higher) == text


def test_delta_m_is_the_mean_of_the_changes_printed_above_it():
    content = examples.results()
    content["tasks"]["semseg"]["reference"] = 0.4
    content["delta_m"] = 4.0425
    page = report.result_page(content)
    assert "**Delta m: +4.04 %** against the single-task references." in page
    assert "+28.1 %" in page and "-20.0 %" in page


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_value_that_is_not_there_is_said_and_not_printed_as_a_number(missing):
    content = examples.results()
    content["tasks"]["depth"].update(value=missing, baseline=missing)
    content.update(train_seconds=missing, images_per_second=missing)
    page = report.result_page(content)
    row = next(line for line in page.splitlines() if line.startswith("| depth"))
    assert [cell.strip() for cell in row.split("|")[3:6]] == ["no value"] * 3
    assert "nan" not in page.lower() and "None" not in page and "Training:" not in page


def test_without_any_reference_no_task_is_singled_out():
    content = examples.results()
    content["tasks"]["depth"]["reference"] = None
    assert "**Delta m: not known**, no single-task reference;" in report.result_page(content)


def test_the_page_says_after_how_many_steps_the_run_was_scored():
    page = report.result_page(examples.results(), recorded(steps=600))
    assert "16 x 16 pixels, after 20 of 600 steps, 8 images a step, seed 3" in page
    page = report.result_page(examples.results(), recorded(steps=20))
    assert "16 x 16 pixels, after 20 steps, 8 images a step" in page


def test_the_page_says_what_the_data_set_decided_on_reading():
    content = {**examples.results(), "notes": {"depth means": "disparity_px"}}
    assert "Data: depth means: disparity_px" in report.result_page(content)
    assert "Data:" not in report.result_page({**content, "notes": {}})


def test_metrics_and_tasks_of_a_user_are_printed_under_their_own_names():
    row = dict(examples.results()["tasks"]["depth"], metric="mean_kelvin", unit="K")
    row["all"] = {"mean_kelvin": 2.0}
    page = report.result_page({"tasks": {"heat": row}})
    assert "| heat | mean kelvin [K] ↓ |" in page
    assert "Metric variants" not in page


def test_the_page_shows_the_pictures_that_are_there(tmp_path):
    before = copy.deepcopy(content := examples.results())
    path = report.write_results(tmp_path, content)
    assert path == tmp_path / "results.md" and "![" not in path.read_text(encoding="utf-8")
    (tmp_path / "panels").mkdir()
    (tmp_path / "panels" / "overview.png").write_bytes(b"x")
    (tmp_path / "config.json").write_text(json.dumps(recorded(batch_size=5)), encoding="utf-8")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n', encoding="utf-8")
    page = report.write_results(tmp_path, content).read_text(encoding="utf-8")
    assert "(panels/overview.png)" in page and "(curves.png)" in page and "5 images" in page
    assert (tmp_path / "curves.png").exists() and content == before
    assert not list(tmp_path.glob(".tmp*"))

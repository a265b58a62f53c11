from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinewich_jax import report
from sinewich_jax.errors import SinewichError
from sinewich_jax.report import study


def test_table_is_padded_aligned_and_escaped():
    text = report.markdown_table(
        ["rule", "a|b", "note"], [["ties", 1.5, "x\ny"], ["average", None, "|z|"]], "lrl"
    )
    assert text == (
        "| rule    |    a\\|b | note  |\n"
        "| :------ | ------: | :---- |\n"
        "| ties    |     1.5 | x y   |\n"
        "| average | not run | \\|z\\| |\n"
    )


@given(st.lists(st.lists(st.text("ab|\n é"), min_size=2, max_size=2), max_size=4))
def test_every_line_of_a_table_has_its_columns_and_one_width(rows):
    lines = report.markdown_table(["x", "y"], rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert len({len(line) for line in lines}) == 1
    assert {line.replace("\\|", "").count("|") for line in lines} == {3}


def test_a_row_of_another_length_is_refused():
    with pytest.raises(SinewichError, match=r"\['a'\] has 1 cells, expected 2: x, y"):
        report.markdown_table(["x", "y"], [["a"]])
    with pytest.raises(SinewichError, match="align is 'lc' for 2 columns"):
        report.markdown_table(["x", "y"], [], "lc")


def test_a_mean_that_rounds_to_zero_has_no_sign():
    assert report.mean_spread([-0.001, 0.0005], digits=2) == "0.00 ± 0.00"
    assert report.mean_spread([-0.001], digits=2) == "0.00 (1 seed)"


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=6))
def test_mean_spread_is_the_sample_deviation(values):
    mean, spread = report.mean_spread(values, digits=6).split(" ± ")
    assert float(mean) == pytest.approx(statistics.fmean(values), abs=1e-6)
    assert float(spread) == pytest.approx(statistics.stdev(values), abs=1e-6)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (None, "not run"),
        ([], "not run"),
        ([0.25], "0.25 (1 seed)"),
        ([1.0, 2.0, 3.0], "2.00 ± 1.00 (3 seeds)"),
        ([1.0, float("nan"), float("inf")], "2 of 3 not finite"),
    ],
)
def test_what_was_not_measured_is_said(values, text):
    assert report.mean_spread(values, digits=2, count=True) == text


def test_a_page_has_each_table_beside_its_command(tmp_path):
    cells = {"lora": {"depth": [0.5, 0.7], "edge": "diverged"}, "sinewich": {"depth": [0.25]}}
    page = study.Page("Scenes").text("Two seeds.")
    page.table("Primary", cells, ("depth", "edge"), "python study.py", {"depth": 2, "edge": 3})
    path = page.picture("scenes.png", "methods").write(tmp_path / "docs" / "scenes.md")
    assert path.read_text(encoding="utf-8") == (
        "# Scenes\n\nTwo seeds.\n\n## Primary\n\n"
        "| method   |         depth |     edge |\n"
        "| :------- | ------------: | -------: |\n"
        "| lora     |   0.60 ± 0.14 | diverged |\n"
        "| sinewich | 0.25 (1 seed) |  not run |\n"
        "\n```sh\npython study.py\n```\n\n![methods](scenes.png)\n"
    )

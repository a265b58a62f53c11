"""Pages and pictures of runs on texts: they speak of texts, and what a text holds stays text."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sinewich_jax import report, tasks
from sinewich_jax.report import answers, attention, metric_names
from tests.report import examples


def example(words, label, prediction, valid=True):
    return {
        "words": words,
        "labels": {name: np.asarray(label) for name in words},
        "valid": {name: np.bool_(valid) for name in words},
        "predictions": {name: np.asarray(prediction) for name in words},
    }


def rows(page: str) -> list[list[str]]:
    lines = [line for line in page.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_answers_stand_beside_what_is_right(tmp_path):
    task = tasks.make("sst2")
    found = [
        example({"sst2": ("a fine film", None, 1)}, 1, 1),
        example({"sst2": ("a dull\none", None, 0)}, 0, 1),
        example({"sst2": None}, 0, 1, valid=False),
    ]
    path = report.write_answers(tmp_path / "panels", [task], found)
    assert path == tmp_path / "panels" / "answers.md"
    head, _, first, second = rows(path.read_text(encoding="utf-8"))
    assert head == ["text", "right", "answer", ""]
    assert first == ["a fine film", "positive", "positive", ""]
    assert second == ["a dull one", "negative", "positive", "wrong"]


def test_pairs_have_two_columns_and_numbers_are_never_wrong():
    page = answers.answer_page([tasks.make("sts")], [example({"sts": ("a", "b", 2.5)}, 2.5, 3.125)])
    head, _, row = rows(page)
    assert head == ["text", "second text", "right", "answer", ""]
    assert row == ["a", "b", "2.50", "3.12", ""]


@pytest.mark.parametrize("names", [None, tuple(f"c{n}" for n in range(150))])
def test_classes_without_names_are_numbers(names):
    task = tasks.make("clinc150", class_names=names)
    page = answers.answer_page([task], [example({"clinc150": ("hi", None, 3)}, 3, 14)])
    right, answer = ("3", "14") if names is None else ("c3", "c14")
    assert rows(page)[2] == ["hi", right, answer, "wrong"]


def test_a_text_is_no_markdown():
    words = "``a|b`` *c* <b> [d](e) \\ $f$ g_h_"
    page = answers.answer_page([tasks.make("sst2")], [example({"sst2": (words, None, 1)}, 1, 1)])
    shown = page.splitlines()[-1].removeprefix("| ").split("  ")[0].split(" | positive")[0]
    expected = r"\`\`a\|b\`\` \*c\* \<b\> \[d\](e) \\ \$f\$ g\_h\_"
    assert shown == expected
    long = answers.answer_page(
        [tasks.make("sst2")], [example({"sst2": ("x" * 900, None, 1)}, 1, 1)]
    )
    assert f"{'x' * (answers.MOST - 1)}…" in long and "x" * answers.MOST not in long


def test_the_page_of_a_run_on_texts_speaks_of_texts(tmp_path):
    row = {"metric": "matthews", "unit": "", "higher_is_better": True, "value": 0.5}
    row |= {"baseline": 0.0, "reference": 0.4, "all": {"matthews": 0.5, "accuracy": 0.8}}
    content = {**examples.results(), "tasks": {"cola": row}, "images_per_second": 9.5}
    config = {"batch_size": 16}
    page = report.result_page({**content, "inputs": "text"}, config)
    assert "which reads no text;" in page and "16 texts of each task a step" in page
    assert "9.5 texts/s of each task" in page and "[answers]" not in page
    assert "| cola | Matthews correlation ↑ | 0.5000 |" in page
    assert "share of texts with the right answer" in page
    dense = report.result_page(content, config)
    assert dense == report.result_page({**content, "inputs": "image"}, config)
    assert "looks at no image" in dense and "16 images a step" in dense and "images/s" in dense
    for name in ("panels/answers.md", "diagnostics/attention.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("")
    page = report.write_results(tmp_path, {**content, "inputs": "text"}).read_text("utf-8")
    assert "(diagnostics/attention.png)" in page and "[answers](panels/answers.md)" in page


@pytest.mark.parametrize("name", ["cola", "sick", "sts"])
def test_every_metric_of_texts_says_what_it_is(name):
    metric = tasks.make(name).metric()
    for key in metric.compute(metric.empty()):
        assert metric_names.meaning(key) and metric_names.label(key)


def found(*shares, names=("cola", "sst2", "sick_relatedness")):
    places = {f"layer{n}_output": list(row) for n, row in enumerate(shares)}
    return {"target": "cola", "adapters": list(names), "places": places}


def colours(image: Image.Image) -> list[tuple[int, int, int]]:
    """The colours of the picture's cells, a row after another, left to right."""
    pixels = np.asarray(image)
    blue = pixels[..., 2].astype(int) - pixels[..., 0] > 8
    down = np.flatnonzero(np.diff(blue.mean(1) > 0.2, prepend=False))[::2]
    cells = []
    for y in down:
        across = np.flatnonzero(np.diff(blue[y + 1], prepend=False))[::2]
        cells += [tuple(pixels[y + 1, x + 1].tolist()) for x in across]
    return cells


def test_more_attention_is_darker(tmp_path):
    shares = [(0.02, 0.28, 0.7), (0.3, 0.3, 0.4)]
    path = report.write_attention(tmp_path / "a" / "attention.png", found(*shares))
    with Image.open(path) as image:
        cells = colours(image.convert("RGB"))
    assert len(cells) == 9  # two layers and their mean
    flat = [share for row in (*shares, np.mean(shares, axis=0)) for share in row]
    order = np.argsort(flat, kind="stable")
    darkness = [-sum(cells[i]) for i in order]
    assert darkness == sorted(darkness) and len(set(cells)) > 6


def test_numbers_of_the_picture_are_rounded_and_not_cut(monkeypatch):
    said = []
    write = attention.canvas.write
    monkeypatch.setattr(
        attention.canvas, "write", lambda page, at, text, *rest, **more: said.append(text)
    )
    attention.draw_attention(found((0.999, 0.0005, 0.0005)))
    assert said[0] == "cola: attention over adapters" and write is not attention.canvas.write
    assert said[-3:] == ["1.00", ".00", ".00"] and "layer0 output" in said and "mean" in said

"""``sinewich data check DIR``: what it prints and writes, and that it never writes into DIR."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from sinewich_jax.cli import main
from sinewich_jax.data.archives.reader import Sample
from sinewich_jax.report import canvas
from sinewich_jax.tasks import make
from sinewich_jax.train import data_check
from tests.data.archives.trees import (
    PASCAL_IDS,
    add_member,
    cityscapes,
    nyud,
    nyuv2,
    pack,
    pascal,
    state,
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("SINEWICH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "here"


def check(*words):
    return main(["data", "check", *map(str, words)])


def test_it_says_layout_counts_units_and_histograms(tmp_path, capsys, elsewhere):
    root = nyud(tmp_path / "NYUD_MT", "atrc", scale=1000)
    before = state(root)
    assert check(root) == 0
    text = capsys.readouterr().out
    assert re.search(r"nyud_mt in .*NYUD_MT\nlayout +NYU-Depth v2 .* release of ATRC", text)
    assert "depth unit of the files: mm" in text
    assert re.search(r"train +2 images\nval +1 images", text)
    assert "looked at  3 examples of 48 x 64" in text
    assert re.search(r"depth: 3 labels, 91\.7 % .*\n  least, median, greatest: 0\.7", text)
    assert re.search(r"normals: .*\n  100\.0 % face the viewer", text)
    assert re.search(r"edge: .*\n  no +9\d\.\d %  #{30}\n  yes +\d\.\d %  ##", text)
    assert "faults" not in text and "written: nyud_mt_samples.png" in text
    assert [path.name for path in elsewhere.iterdir()] == ["nyud_mt_samples.png"]
    assert state(root) == before and not (tmp_path / "cache").exists()


def test_the_picture_shows_eight_samples(tmp_path, elsewhere):
    assert check(nyuv2(tmp_path / "nyuv2"), "--out", "p.png") == 0
    with Image.open(elsewhere / "p.png") as image:
        height, width = canvas.fit(24, 32, data_check.LEAST, data_check.MOST)
        assert image.height == 2 * canvas.MARGIN + 24 + 8 * (height + 24)
        assert image.width >= 4 * width


def test_a_fault_is_exit_code_1_and_everything_else_is_still_said(tmp_path, capsys, elsewhere):
    root = pascal(tmp_path / "PASCAL_MT")
    (root / f"semseg/VOC12/{PASCAL_IDS[0]}.png").write_bytes(b"")
    (root / f"sal_distill/{PASCAL_IDS[1]}.png").unlink()
    assert check(root, "--json", "r.json") == 1
    text = capsys.readouterr().out
    assert f"1 saliency files missing, first {root}/sal_distill/{PASCAL_IDS[1]}.png" in text
    assert re.search(rf"faults +1\n  .*VOC12/{PASCAL_IDS[0]}\.png is not an image", text)
    found = json.loads((elsewhere / "r.json").read_text())
    assert found["splits"]["train"]["missing"]["saliency"]["count"] == 1
    assert found["looked_at"] == 3 and "samples" not in found


def test_a_missing_label_alone_is_no_fault(tmp_path):
    root = pascal(tmp_path / "PASCAL_MT")
    (root / f"sal_distill/{PASCAL_IDS[1]}.png").unlink()
    assert check(root) == 0


def test_a_tar_and_its_parent(tmp_path, capsys):
    (tmp_path / "tars").mkdir()
    pack(pascal(tmp_path / "a/PASCAL_MT"), tmp_path / "tars/PASCAL_MT.tgz", "w:gz")
    before = state(tmp_path / "tars")
    assert check(tmp_path / "tars/PASCAL_MT.tgz") == 0 == check(tmp_path / "tars")
    assert "PASCAL_MT.tgz:PASCAL_MT" in capsys.readouterr().out
    assert state(tmp_path / "tars") == before


def error(capsys):
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1
    return text


def test_nothing_is_written_into_the_folder(tmp_path, capsys, monkeypatch):
    root = nyud(tmp_path / "NYUD_MT")
    before = state(root)
    assert check(root, "--out", root / "x.png") == 2
    assert "which is only read; name another place by --out" in error(capsys)
    assert check(root, "--json", root / "depth/x.json") == 2
    assert "only read" in error(capsys)
    monkeypatch.chdir(root)
    assert check(".") == 2
    assert "nyud_mt_samples.png would be written into" in error(capsys)
    assert check(".", "--out", tmp_path / "fine.png") == 0
    assert state(root) == before


def test_options_of_layouts(tmp_path, capsys):
    nyu = nyud(tmp_path / "NYUD_MT", scale=6)
    assert check(nyu) == 1 and "say depth_unit" in capsys.readouterr().out
    assert check(nyu, "--depth-unit", "mm") == 0
    assert check(nyu, "--target", "depth_m") == 2
    assert "--target means nothing for nyud_mt" in error(capsys)
    city = cityscapes(tmp_path / "city")
    capsys.readouterr()
    assert check(city, "--target", "depth_m") == 0
    assert re.search(r"depth means: depth_m(.|\n)* m ", capsys.readouterr().out)
    assert check(city) == 0
    assert re.search(r"depth means: disparity_px(.|\n)* px", capsys.readouterr().out)
    numpy = cityscapes(tmp_path / "n", "numpy", 7)
    assert check(numpy) == 2 and "channels.semseg" in error(capsys)
    assert check(numpy, "--classes", 7) == 0


def test_a_layout_that_is_said(tmp_path, capsys):
    root = nyuv2(tmp_path / "x")
    for split in ("train", "val"):
        (root / split / "normal").rename(tmp_path / split)
    assert check(root, "--layout", "nyuv2_mtan") == 0
    assert "NYUv2 in NumPy files" in capsys.readouterr().out
    assert check(root, "--layout", "nyu") == 2
    assert "there is no archive layout 'nyu'" in error(capsys)


def test_what_cannot_be_read_at_all_is_one_sentence(tmp_path, capsys):
    assert check(tmp_path / "absent") == 2
    assert "does not exist, expected a folder or a tar" in error(capsys)
    (tmp_path / "empty").mkdir()
    assert check(tmp_path / "empty") == 2
    assert "none of the layouts" in error(capsys)
    evil = pack(nyud(tmp_path / "NYUD_MT"), tmp_path / "e.tar")
    add_member(evil, "../../evil.txt")
    assert check(evil) == 2
    assert "holds '../../evil.txt', which leaves the folder" in error(capsys)
    assert check(tmp_path, "--examples", -1) == 2
    assert "--examples is -1" in error(capsys)


def test_a_task_without_any_valid_pixel_is_drawn(tmp_path):
    image = np.zeros((20, 30, 3), np.uint8)
    nothing = {"depth": np.zeros((20, 30), np.float32)}
    sample = Sample("x", image, {}, nothing, {"depth": np.zeros((20, 30), bool)}, (), ())
    page = data_check.draw([sample], {"depth": make("depth")}, {})
    assert page.height > 100

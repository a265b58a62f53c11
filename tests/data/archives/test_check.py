"""What `data check` counts, on archives whose numbers are known."""

from __future__ import annotations

import numpy as np
import pytest

from sinewich_jax.data.archives.check import examine, spread
from sinewich_jax.data.archives.layouts import detect
from sinewich_jax.errors import DataError
from tests.data.archives.trees import (
    NYUD_IDS,
    PASCAL_IDS,
    cityscapes,
    nyud,
    nyud_truth,
    nyuv2,
    pascal,
    save,
    state,
)

FIRST, SECOND, THIRD = PASCAL_IDS


def look(path, **options):
    tree, kind = detect(path)
    with tree:
        return examine(kind(tree), **options)


@pytest.mark.parametrize("make", [pascal, nyud, nyuv2, cityscapes])
def test_a_whole_archive_has_no_fault_and_is_not_touched(tmp_path, make):
    root = make(tmp_path / "set")
    before = state(root)
    report = look(root)
    assert report.faults == [] and state(root) == before
    assert all(split.images and not split.missing for split in report.splits.values())
    assert report.looked_at == sum(split.images for split in report.splits.values())
    assert len(report.samples) == min(8, report.looked_at)


def test_counts_and_sizes_of_pascal(tmp_path):
    report = look(pascal(tmp_path / "PASCAL_MT"))
    assert {name: split.images for name, split in report.splits.items()} == {"train": 2, "val": 1}
    assert report.sizes == ((36, 36), (40, 50))
    pixels = {FIRST: 2000, SECOND: 1900, THIRD: 1296}
    semseg = report.tasks["semseg"]
    labelled = 2000 - 50 + 1900 - 38 + 1296 - 36
    assert semseg.valid == pytest.approx(labelled / sum(pixels.values()))
    assert semseg.shares[15] == pytest.approx(300 / labelled) and len(semseg.shares) == 21
    parts = report.tasks["human_parts"]
    assert parts.labels == 3 and parts.valid == pytest.approx(3296 / 5196)
    assert parts.shares[2] == pytest.approx(2 * 40 / 3296)
    assert report.tasks["saliency"].shares[1] == pytest.approx(300 / 5196)
    assert report.tasks["normals"].towards_viewer == 1.0


def test_depth_of_nyud(tmp_path):
    report = look(nyud(tmp_path / "NYUD_MT", scale=1000))
    assert report.notes == {"depth unit of the files": "mm"}
    depth = report.tasks["depth"]
    truth = np.concatenate([nyud_truth(id)["depth"][:-4].ravel() for id in NYUD_IDS])
    assert depth.valid == 44 / 48
    assert depth.lowest == pytest.approx(truth.min(), rel=1e-5)
    assert depth.highest == pytest.approx(truth.max(), rel=1e-5)
    assert depth.median == pytest.approx(np.median(truth), rel=0.05)
    assert sum(depth.histogram) == pytest.approx(1) and len(depth.edges) == 11


def test_normals_the_other_way_round_are_seen(tmp_path):
    root = nyud(tmp_path / "NYUD_MT")
    for id in NYUD_IDS[:1]:
        save(root / f"normals/{id}.npy", -nyud_truth(id)["normals"])
    assert look(root).tasks["normals"].towards_viewer == pytest.approx(2 / 3)


def test_it_goes_on_after_a_fault(tmp_path):
    root = pascal(tmp_path / "PASCAL_MT")
    (root / f"semseg/VOC12/{FIRST}.png").write_bytes(b"no image")
    (root / f"JPEGImages/{SECOND}.jpg").unlink()
    (root / f"JPEGImages/{THIRD}.jpg").write_bytes(b"no image either")
    (root / f"sal_distill/{FIRST}.png").unlink()
    report = look(root)
    assert report.looked_at == 1 and report.splits["train"].images == 1
    missing = report.splits["train"].missing
    assert missing["saliency"] == {"count": 1, "first": f"{root}/sal_distill/{FIRST}.png"}
    assert len(report.faults) == 3
    for name in (f"JPEGImages/{SECOND}.jpg", f"VOC12/{FIRST}.png", f"JPEGImages/{THIRD}.jpg"):
        assert sum(name in fault for fault in report.faults) == 1
    (sample,) = report.samples
    assert set(sample.labels) == {"human_parts", "saliency", "normals", "edge"}
    assert report.tasks["semseg"].labels == 0 and report.tasks["saliency"].labels == 0


def test_an_undecided_unit_is_one_fault(tmp_path):
    report = look(nyud(tmp_path / "NYUD_MT", scale=6))
    assert len(report.faults) == 1 and "say depth_unit" in report.faults[0]
    assert report.looked_at == 3 and report.tasks["depth"].labels == 0


def test_a_list_that_cannot_be_read(tmp_path):
    root = nyud(tmp_path / "NYUD_MT")
    (root / "gt_sets/val.txt").write_text("../../x\n")
    report = look(root)
    assert report.splits["val"].images == 0 and "without a path" in report.splits["val"].fault
    assert report.looked_at == 2 and len(report.faults) == 1


def test_no_list_at_all(tmp_path):
    root = nyud(tmp_path / "NYUD_MT")
    for path in (root / "gt_sets").iterdir():
        path.unlink()
    assert ["has no split" in fault for fault in look(root).faults] == [True]


def test_only_some_are_read(tmp_path):
    report = look(nyuv2(tmp_path / "nyuv2"), examples=5, samples=2)
    assert report.looked_at == 5 and len(report.samples) == 2
    assert look(tmp_path / "nyuv2", examples=0).looked_at == 13
    assert spread(13, 5) == [0, 2, 5, 7, 10] and spread(3, 8) == [0, 1, 2] and spread(0, 4) == []


def test_what_is_no_archive(tmp_path):
    with pytest.raises(DataError, match="none of the layouts that are known"):
        look(tmp_path)

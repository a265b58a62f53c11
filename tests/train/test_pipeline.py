"""docs/pipeline.md: the six commands that stand there, one after the other, in fresh processes."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

from sinewich_jax.switches.bank import SwitchBank
from tests.test_docs import ROOT, blocks

PAGE = ROOT / "docs" / "pipeline.md"


def shell(code: str, folder: pathlib.Path) -> str:
    """Runs a block as a newcomer would, with this interpreter's commands on the path."""
    where = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-e", "-c", code],
        cwd=folder,
        env={**os.environ, "PATH": where, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_page_has_six_commands():
    words = [block.split("\n")[0].split()[:3] for block in blocks(PAGE, "bash")]
    assert [w[0] for w in words] == ["for", *["sinewich"] * 5]
    assert [w[1:] for w in words[1:]] == [
        ["merge", "curvature_average"],
        ["switch", "pack"],
        ["switch", "inspect"],
        ["switch", "route"],
        ["evaluate", "runs/night"],
    ]


@pytest.mark.slow
def test_the_six_commands_run_one_after_the_other(tmp_path):
    # What a clone has in its root.
    for name in ("train.py", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (code,) = blocks(PAGE, "python")
    (tmp_path / "places.py").write_text(code)
    shell("python places.py", tmp_path)
    train, merge, pack, inspect, route, evaluate = blocks(PAGE, "bash")
    shell(train, tmp_path)
    before = {p: p.read_bytes() for p in (tmp_path / "runs").rglob("*") if p.is_file()}
    assert "117 leaves of 2 experts merged" in shell(merge, tmp_path)
    assert "written: tasks.swb" in shell(pack, tmp_path)
    assert "bits/param" in shell(inspect, tmp_path)
    *_, day, night, kept = shell(route, tmp_path).splitlines()
    for place, line, votes in (("day", day, "1.00 0.00"), ("night", night, "0.00 1.00")):
        words = line.replace("|", " ").split()
        assert words[:4] == [f"{place}/images/30.png", *votes.split(), place]
        # Among nobody's examples, which are the training images.
        assert "30" in (tmp_path / place / "splits" / "val.txt").read_text().split()
    assert kept.startswith("examples kept in tasks.swb: 24 of day, 24 of night")
    # The bank answers by itself now, and the base wherever it is asked for.
    alone = "sinewich switch route tasks.swb night/images --base runs/night"
    assert len(shell(alone, tmp_path).splitlines()) == 34
    assert "127 leaves of tasks.swb@night, 0 of the run" in shell(evaluate, tmp_path)
    merged = evaluate.replace("tasks.swb@night", "merged/merged.safetensors")
    assert "117 leaves of merged/merged.safetensors, 10 of the run" in shell(merged, tmp_path)
    (both,) = re.findall(r"`(sinewich switch evaluate [^`]*)`", PAGE.read_text(encoding="utf-8"))
    table, confusion = shell(both, tmp_path).split("\n\n")
    assert "| chosen |" in table and "0 |" in confusion
    # Without touching the runs, in a bank whose every checksum holds.
    after = {p: p.read_bytes() for p in (tmp_path / "runs").rglob("*") if p.is_file()}
    assert after == before
    with SwitchBank.open(tmp_path / "tasks.swb") as bank:
        bank.verify()
        # A bit and a half a parameter, and the index of 127 small leaves.
        total = bank.report().total
        assert total.bits_per_parameter < 1.8

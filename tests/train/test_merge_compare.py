"""``sinewich merge --compare`` as a user runs it: on runs that train.py left."""

from __future__ import annotations

import importlib.resources
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sinewich_jax import cli
from sinewich_jax.train import merge_compare

ROOT = pathlib.Path(__file__).parents[2]
BASE = importlib.resources.files("sinewich_jax.nn") / "weights" / "tiny.safetensors"
TASKS = ("depth", "edge")
RULES = ("average", "curvature_average", "emr")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run of two steps for each task, from the shipped backbone, all of it trained."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SINEWICH_CACHE", str(folder / "cache"))
        command(
            "train.py",
            "--config=configs/scenes.py:single_task,debug",
            "--config.backbone_weights=shipped",
            f"--config.tasks={TASKS}",
            "--config.steps=2",
            f"--workdir={folder}",
        )
        yield folder


def command(*words: str) -> str:
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def arguments(runs: pathlib.Path, base: object = BASE) -> list[str]:
    return ["--compare", f"--base={base}", *(f"--expert={t}={runs / t}" for t in TASKS)]


@pytest.mark.slow
def test_the_table_its_files_and_the_picture(runs, tmp_path):
    out = tmp_path / "compared"
    words = [*arguments(runs), f"--rules={','.join(RULES)}", f"--out={out}"]
    shown = command("-m", "sinewich_jax.cli", "merge", *words)
    found = json.loads((out / "compare.json").read_bytes())
    assert list(found["columns"]) == ["depth: depth", "edge: edge"]
    assert found["rows"].keys() == found["delta_m"].keys() == {"the experts", *RULES}
    assert found["delta_m"]["the experts"] == 0 and found["left_out"] == {}
    for task in TASKS:
        results = json.loads((runs / task / "results.json").read_bytes())["tasks"][task]
        column = found["columns"][f"{task}: {task}"]
        assert column["metric"] == results["metric"]
        value = found["rows"]["the experts"][f"{task}: {task}"]
        assert value == pytest.approx(results["value"], rel=1e-5)
    title, _, *rows = [line for line in shown.splitlines() if line.startswith("|")]
    assert "depth: depth" in title and "Delta m %" in title
    gains = [float(row.split("|")[-2]) for row in rows]
    assert len(rows) == 1 + len(RULES) and gains == sorted(gains, reverse=True)
    page = (out / "compare.md").read_text(encoding="utf-8")
    assert all(row in page for row in rows)
    assert f"written: {out / 'compare.md'}" in shown
    with Image.open(out / "compare.png") as picture:
        assert min(picture.size) > 100 and np.asarray(picture.convert("L")).std() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rules=averge"], "unknown merge rule 'averge' (did you mean 'average'?)"),
        (["--rules=fisher"], "the merge rule 'fisher' needs the Fisher"),
        (["--rules=adamerging"], "'adamerging' learns from data; call it from Python"),
        (["--only=nothing.*"], "no leaf is left to merge"),
        (["--stats=dpeth=x"], "there are statistics of 'dpeth', which is no expert"),
        ([f"--expert=file={BASE}"], "expected the work directory of a training run"),
    ],
)
def test_what_cannot_be_compared_is_one_line_and_leaves_nothing(
    runs, tmp_path, capsys, words, message
):
    out = tmp_path / "compared"
    assert cli.main(["merge", *arguments(runs), *words, f"--out={out}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ties"], "--compare tries rules with their default options, found 'ties'"),
        (["--density", "0.2"], "found '--density'; name rules by --rules"),
        (["--dry-run"], "found '--dry-run'"),
        (["--expert=a=x"], "--compare needs --base PATH and two runs at least"),
        (["--base=x", "--expert=a=x"], "--compare needs --base PATH and two runs at least"),
        (["--base=x", "--expert=a=x", "--expert=b"], "--expert is 'b', expected NAME=PATH"),
    ],
)
def test_words_that_do_not_go_with_compare(words, message, capsys):
    assert cli.main(["merge", "--compare", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_experts_that_learnt_nothing_have_no_delta_m():
    columns = {
        name: {"metric": "matthews", "unit": "", "higher_is_better": True} for name in ("a", "b")
    }
    up = dict.fromkeys(columns, True)
    rows = {merge_compare.EXPERTS: {"a": 0.5, "b": 0.0}, "ties": {"a": 0.25, "b": 0.1}}
    assert merge_compare.relative(rows, up) is None
    lines = merge_compare.Comparison(columns, rows, None, {}).table().splitlines()
    assert [line.split("|")[-2].strip() for line in lines[2:4]] == ["-", "-"]
    assert lines[-1].startswith("Delta m is not known")
    rows[merge_compare.EXPERTS]["b"] = 0.1
    gains = merge_compare.relative(rows, up)
    assert gains == {merge_compare.EXPERTS: 0.0, "ties": -25.0}
    lines = merge_compare.Comparison(columns, rows, gains, {}).table().splitlines()
    assert lines[3].startswith("| ties") and "-25.00" in lines[3]

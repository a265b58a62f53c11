"""``sinewich bench merge``: the fields it writes; a time is never asserted."""

from __future__ import annotations

import json
import math

import pytest

from sinewich_jax.bench import merge, process
from sinewich_jax.cli import main
from sinewich_jax.errors import SinewichError
from sinewich_jax.storage import open_leaves


@pytest.mark.parametrize("params", [1, 1000, 123_457, 40_000_000])
def test_leaves_have_the_sizes_of_a_model(params):
    sizes = [math.prod(shape) for shape in merge.leaf_shapes(params).values()]
    assert sum(sizes) == params
    assert params < 40_000_000 or (max(sizes) == 10_000_000 and min(sizes) == 1000)


def test_the_input_is_the_same_each_time(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        files = merge.make_input(tmp_path / folder, 5000, 2)
    for file in files:
        assert file.read_bytes() == (tmp_path / "a" / file.name).read_bytes()
    with open_leaves(files[0]) as base, open_leaves(files[1]) as expert:
        for name in base.names:
            assert (base.read(name) != expert.read(name)).any()


def test_a_command_that_fails_is_told():
    with pytest.raises(SinewichError, match=r"ended with 2: error: unknown verb 'x'"):
        process.python(["-m", "sinewich_jax", "x"])


@pytest.mark.slow
def test_the_fields_of_the_file(tmp_path, capsys):
    out = tmp_path / "merge.json"
    words = ["--params=2e5", "--experts=3", "--repeats=1", f"--dir={tmp_path}", f"--out={out}"]
    assert main(["bench", "merge", *words]) == 0
    found = json.loads(out.read_text())
    assert found == json.loads(capsys.readouterr().out)
    assert found["rule"] == "ties" and found["params"] == 200_000 and found["experts"] == 3
    assert {"wall_s", "cpu_s", "peak_rss_mb", "io_ratio", "repeats", "versions"} <= found.keys()
    assert found["peak_rss_mb"] < 200
    assert [path.name for path in tmp_path.iterdir()] == ["merge.json"]
    assert main(["bench", "merge", "--rule=tis", *words]) == 2
    assert "unknown merge rule 'tis'" in capsys.readouterr().err

"""``sinewich bench switch``: bytes beside the entropy, and the fields; a time is never asserted."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sinewich_jax.bench import switch, switch_runs
from sinewich_jax.bench.pairs import Pairs
from sinewich_jax.cli import main
from sinewich_jax.switches.make import make_switch

RATES = {"per_s", "reference_per_s", "speed", "quartiles", "pairs"}


def test_the_task_vector_is_laplace_and_the_same_each_time():
    delta = switch_runs.task_vector(50_000, seed=3)
    again = switch_runs.task_vector(50_000, seed=3)
    other = switch_runs.task_vector(50_000, seed=4)
    values = np.concatenate([leaf.ravel() for leaf in delta.values()])
    assert values.size == 50_000 and values.dtype == np.float32
    assert all(np.array_equal(leaf, again[name]) for name, leaf in delta.items())
    assert not any(np.array_equal(leaf, other[name]) for name, leaf in delta.items())
    # E|x| = s, E x^2 = 2 s^2
    assert np.abs(values).mean() == pytest.approx(1e-3, rel=0.02)
    assert np.square(values).mean() == pytest.approx(2e-6, rel=0.05)


def test_a_share_is_of_neighbours():
    found = switch_runs.share(Pairs((1.0, 10.0, 2.0), (2.0, 10.0, 8.0)), 1000)
    assert found == {
        "per_s": 125,
        "reference_per_s": 500,
        "speed": 0.5,
        "quartiles": [0.375, 0.75],
        "pairs": 3,
    }


def test_a_bank_of_one_task_beside_the_entropy(tmp_path):
    params = 200_000
    delta = switch_runs.task_vector(params)
    for density in (0.4, 0.05):
        made = make_switch(delta, density=density)
        found = switch_runs.storage(tmp_path / "bank.swb", made)
        assert found["file_bytes"] == (tmp_path / "bank.swb").stat().st_size
        p = density
        bound = params / 8 * (-p * np.log2(p) - (1 - p) * np.log2(1 - p) + p)
        assert found["bound_bytes"] == pytest.approx(bound, rel=0.01)
        assert 1 <= found["payload_ratio"] < 1.02 < found["file_ratio"]
        assert found["beyond_per_leaf"] < 1024
        assert found["bits_per_parameter"] == pytest.approx(8 * found["file_bytes"] / params, 1e-3)
        assert sum(found["codecs"].values()) == len(delta)


def test_arguments_that_cannot_be_used(tmp_path, capsys):
    out = f"--out={tmp_path / 'switch.json'}"
    for option, wrong, message in (
        ("params", ("0", "1", "999", "nan", "inf"), "expected a number from 1000"),
        ("pairs", ("0",), "expected at least 1"),
    ):
        for value in wrong:
            assert main(["bench", "switch", out, f"--{option}={value}"]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith(f"error: --{option} is ") and message in line
    assert list(tmp_path.iterdir()) == []


def test_the_least_task_vector_has_a_bound_at_every_density(tmp_path):
    delta = switch_runs.task_vector(switch.LEAST)
    for density in switch.STORED:
        found = switch_runs.storage(tmp_path / "bank.swb", make_switch(delta, density=density))
        assert found["bound_bytes"] > 0 and found["file_ratio"] > 1


@pytest.mark.slow
def test_the_fields_of_the_file(tmp_path, capsys):
    out = tmp_path / "switch.json"
    words = ["--params=1e5", "--pairs=2", f"--dir={tmp_path}", f"--out={out}"]
    assert main(["bench", "switch", *words]) == 0
    found = json.loads(out.read_text())
    names = set(switch.__doc__.split("``")[1::2]) - {
        "sinewich bench switch",
        "sinewich switch inspect",
        "np.partition",
        "make_switch",
    }
    text = json.dumps(found)
    assert [name for name in names if f'"{name}"' not in text] == []
    assert found["params"] == 100_000 and found["merge"]["tasks"] == 4
    for name in ("select", "pack", "make", "apply"):
        assert found[name].keys() >= RATES and found[name]["pairs"] == 2
    for name in ("pack", "apply"):
        assert found[name]["jax"].keys() == RATES
    assert found["code"].keys() == {"0.1", "0.4"}
    assert len(found["storage"]) == 7
    for one in found["storage"].values():
        assert one["payload_ratio"] < 1.05 and one["beyond_per_leaf"] < 1024
    printed = capsys.readouterr().out
    assert "| select " in printed and "inspect takes" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["switch.json"]

"""``sinewich bench optim``: bytes against closed forms and bounds; a time is never asserted."""

from __future__ import annotations

import functools
import json

import pytest

from sinewich_jax.bench import optim, optimizers, pairs
from sinewich_jax.cli import main

NAMES = {"adamw", "adamw_tracker", "umtam_lean", "umtam_faithful", "adafactor", "muon", "galore"}


@pytest.fixture(scope="module")
def swin_t():
    return optimizers.abstract_params("swin_t")


@functools.cache
def ratios():
    params = optimizers.abstract_params("swin_t")
    size = optimizers.size_of(params)
    made = optimizers.optimizers(rank=32, stats_every=10)
    return {name: optimizers.state_bytes(tx, params) / size for name, tx in made.items()}


def test_the_tree_is_a_whole_swin_t(swin_t):
    # The published network without its last norm and its head of 1000 classes.
    assert optimizers.size_of(swin_t) == 4 * (28_288_354 - 2 * 768 - 769 * 1000)


def test_lean_keeps_a_tenth_of_the_parameters_and_the_tracker_next_to_nothing():
    found = ratios()
    assert found.keys() == NAMES
    assert found["umtam_lean"] <= 0.10
    assert found["adamw"] == pytest.approx(2.0, abs=1e-6)
    assert 0 < found["adamw_tracker"] - found["adamw"] < 0.006
    assert 3.0 <= found["umtam_faithful"] <= 3.2
    assert found["adafactor"] < found["umtam_lean"] < found["galore"] < found["muon"] < 1.01


def test_pairs_take_turns_and_stop():
    said: list[str] = []
    first, second = (functools.partial(said.append, name) for name in "ab")
    times = pairs.interleaved(first, second, 3)
    assert "".join(said) == "abbaab"
    assert len(times.first_s) == len(times.second_s) == 3
    assert len(pairs.interleaved(first, second, 3, seconds=0.0).ratios) == 1


def test_the_summary_is_of_ratios_of_neighbours():
    times = pairs.Pairs((1.0, 10.0, 2.0), (2.0, 10.0, 3.0))
    assert times.ratios == (2.0, 1.0, 1.5)
    assert times.summary(10) == {
        "reference_ms": 200.0,
        "ms": 300.0,
        "ratio": 1.5,
        "quartiles": [1.25, 1.75],
        "pairs": 3,
    }
    assert pairs.Pairs((1.0,), (2.0,)).summary()["quartiles"] == [2.0, 2.0]


def test_arguments_that_cannot_be_used(tmp_path, capsys):
    out = f"--out={tmp_path / 'optim.json'}"
    assert main(["bench", "optim", out, "--stats-every=0"]) == 2
    assert "--stats-every is 0; expected 1 or more" in capsys.readouterr().err
    assert main(["bench", "optim", out, "--backbone=swin_x"]) == 2
    assert "unknown backbone 'swin_x'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_fields_of_the_file(tmp_path, capsys):
    out = tmp_path / "optim.json"
    words = ["--timed=tiny", "--image=32", "--batch=1", "--pairs=2", "--stats-every=3"]
    assert main(["bench", "optim", *words, f"--out={out}"]) == 0
    found = json.loads(out.read_text())
    for field in optim.__doc__.split("``")[1::2]:
        assert field in str(found) or field in ("sinewich bench optim",), field
    assert found["optimizers"].keys() == NAMES
    assert found["optimizers"]["umtam_lean"]["state_ratio"] <= 0.10
    for name, one in found["optimizers"].items():
        assert ("update" in one) == (name != "adamw")
        assert one.get("update", {}).get("pairs", 2) == 2
    training = found["training"]
    assert training["ratio"] - 1 == pytest.approx(training["tracker_share"])
    assert (training["image"], training["batch"], training["pairs"]) == (32, 1, 2)
    printed = capsys.readouterr().out
    assert "(stats_every=3)" in printed
    assert all(f"| {name} " in printed for name in NAMES)

"""``sinewich bench fusion``: every field is there and the forms agree; a time is never asserted."""

from __future__ import annotations

import json

import pytest

from sinewich_jax.bench.fusion import FORMS
from sinewich_jax.cli import main

SMALL = ("--width=24", "--hidden=4", "--batch=2", "--tokens=5", "--depth=1", "--pairs=2")


def test_it_measures_a_layer_and_an_encoder(tmp_path, capsys):
    out = tmp_path / "fusion.json"
    assert main(["bench", "fusion", f"--out={out}", "--adapters=3", *SMALL]) == 0
    found = json.loads(out.read_text())
    assert found["adapters"] == 3 and found["layer"].keys() == set(FORMS)
    for part in ("layer", "encoder"):
        for one in found[part].values():
            assert one["pairs"] == 2 and one["ratio"] > 0 and one["ms"] > 0
    inside = {form: one["products"] for form, one in found["layer"].items()}
    assert inside == {"folded": [], "bottleneck": ["up"], "reference": []}
    assert all(one["products"] == ["down", "up"] for one in found["encoder"].values())
    for what in ("layer", "encoder"):
        reached = {form for form, one in found[what].items() if one["ratio"] <= found["goal"]}
        assert set(found["reached"][what]) == reached
    assert all(value < 2e-5 for value in found["agreement"].values())
    printed = capsys.readouterr().out
    assert "| 3 adapters, ms |" in printed and "encoder, bottleneck" in printed
    assert "goal: 3 adapters at 1.3 times one; reached by " in printed


def test_sizes_below_one_are_refused(tmp_path, capsys):
    assert main(["bench", "fusion", f"--out={tmp_path / 'x'}", "--tokens=0"]) == 2
    assert "--tokens is 0; expected 1 or more" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "fusion", "--help"])
    assert stopped.value.code == 0

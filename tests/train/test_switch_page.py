"""The page on switches: its code and its commands run, one after the other."""

from __future__ import annotations

import pathlib
import re
import runpy
import shlex

import pytest

from sinewich_jax.cli import main
from sinewich_jax.storage import load_safetensors
from sinewich_jax.switches.bank import SwitchBank
from tests.test_docs import ROOT, blocks

PAGE = ROOT / "docs" / "switches.md"


def commands() -> list[list[str]]:
    lines = "\n".join(blocks(PAGE, "bash")).replace("\\\n", "").splitlines()
    return [shlex.split(line) for line in lines if line]


@pytest.mark.slow
def test_the_code_and_the_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = pathlib.Path("page.py")
    code = re.findall(r"^```py(?:thon)?\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    page.write_text("\n".join(code))
    found = runpy.run_path(str(page))
    out = capsys.readouterr().out
    assert "bits/param" in out and "[False False False]" in out
    assert found["routing"].weights.argmax(axis=1).tolist() == [1, 1, 1]
    ran = 0
    for program, *words in commands():
        assert program == "sinewich" and words[0] == "switch"
        if any("runs/" in word for word in words):
            continue  # those are run in test_pipeline.py
        assert main(words) == 0, capsys.readouterr().err
        ran += 1
        assert "--dry-run" not in words or not pathlib.Path("town.swb").exists()
    assert ran == 6
    with SwitchBank.open("town.swb") as bank:
        assert bank.names == ("cars", "signs")
    assert load_safetensors("mixed.safetensors")[0].keys() == {"trunk/kernel"}
    assert load_safetensors("cars_again.safetensors")[0].keys() == {"trunk/kernel", "head/kernel"}

"""``sinewich import-backbone``: what it prints, what it leaves, how it fails."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

from sinewich_jax import cli
from tests.convert import foreign
from tests.convert.test_backbone import state_of


def test_a_torch_file_becomes_a_backbone(tmp_path, capsys):
    state = {f"module.{name}": value for name, value in state_of("tiny", window=5).items()}
    state["module.head.weight"] = np.ones((2, 192), np.float32)
    state["teacher"] = np.ones(3, np.float32)
    path = tmp_path / "swin.pth"
    path.write_bytes(foreign.torch_file(state, "model"))
    assert cli.main(["import-backbone", str(path), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "swin.pth: tiny, official names under 'module.', 117 parameters"
    assert "position tables resized: 8" in out
    assert out[out.index("unmatched keys, not read: 1") + 1] == "  teacher"
    assert out[out.index("keys that a pyramid does not need: 1") + 1] == "  module.head.weight"
    written = tmp_path / "out" / "tiny.safetensors"
    assert out[-1] == f"use: --config.backbone=tiny --config.backbone_weights={written}"
    assert written.is_file() and [p.name for p in written.parent.iterdir()] == [written.name]


class Evil:
    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("kind", ["pickle", "zip", "absent", "text", "another geometry"])
def test_failures_are_one_line_and_leave_nothing(tmp_path, capsys, kind):
    path, out, marker = tmp_path / "weights.pth", tmp_path / "out", tmp_path / "ran"
    evil = pickle.dumps({"model": Evil(f"touch {marker}")}, 2)
    if kind == "pickle":
        path.write_bytes(evil)
    elif kind == "zip":
        path.write_bytes(foreign.archive(evil[2:-1], {}))
    elif kind == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif kind == "another geometry":
        path.write_bytes((foreign.FIXTURES / "transformers_swin.bin").read_bytes())
    assert cli.main(["import-backbone", str(path), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    words = {
        "pickle": "is a bare pickle",
        "zip": "asks for 'posix.system' and was not read, because loading it could run code",
        "absent": "expected a weight file at",
        "text": "neither a safetensors file nor a torch zip archive",
        "another geometry": "the geometry of no backbone",
    }
    assert line.startswith("error: ") and words[kind] in line
    assert not out.exists() and not marker.exists()

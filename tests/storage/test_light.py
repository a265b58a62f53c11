from __future__ import annotations

import os
import pathlib
import subprocess
import sys


def test_plain_files_need_neither_jax_nor_orbax(tmp_path):
    script = """
import sys
import numpy as np
from sinewich_jax import parallel, storage
mark = storage.save_base(sys.argv[1], {"w": np.arange(3.0)})
assert storage.load_base(sys.argv[1], mark)["w"].sum() == 3
heavy = {"jax", "orbax", "orbax.checkpoint", "tensorflow"} & set(sys.modules)
assert not heavy, heavy
assert "CheckpointStore" in dir(storage) and "make_mesh" in dir(parallel)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr

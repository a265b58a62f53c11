"""Real processes that talk over gloo: every topology sees the same batch, losses and state."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from sinewich_jax.parallel import make_mesh
from sinewich_jax.storage import CheckpointStore
from tests.parallel import worker

# Rows of each process on the mesh (data=2, model=2). With four processes two of them share their
# rows: slicing by the process number instead would change the losses without any error.
ROWS = {2: [[0, 4], [4, 8]], 4: [[0, 4], [0, 4], [4, 8], [4, 8]]}


def launch(processes: int, folder: pathlib.Path, *more: pathlib.Path) -> list[dict]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(4 // processes),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
    }
    environment.pop("XLA_FLAGS", None)
    children = []
    try:
        for this in range(processes):
            arguments = [
                f"127.0.0.1:{port}",
                str(processes),
                str(this),
                str(folder / f"{this}.json"),
            ]
            children.append(
                subprocess.Popen(
                    [sys.executable, worker.__file__, *arguments, *map(str, more)],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        for child in children:
            log, _ = child.communicate(timeout=400)
            assert child.returncode == 0, log[-4000:]
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
                child.communicate()
    return [json.loads((folder / f"{this}.json").read_text()) for this in range(processes)]


def check(results: list[dict], expected: list[float]) -> None:
    assert [result["rows"] for result in results] == ROWS[len(results)]
    assert [result["main"] for result in results] == [True] + [False] * (len(results) - 1)
    total = worker.global_batch(0)["x"].sum(axis=0)
    for result in results:
        np.testing.assert_allclose(result["psum"], total, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(result["losses"], expected, rtol=1e-5)
        assert result["losses"] == results[0]["losses"]
        assert result["psum"] == results[0]["psum"]


@pytest.mark.slow
def test_four_processes_equal_one(tmp_path):
    alone = worker.Run(make_mesh(devices=jax.devices()[:1]))
    check(launch(4, tmp_path), alone.train(0, 6))


@pytest.mark.slow
def test_two_processes_equal_one_and_share_their_checkpoints(tmp_path):
    alone = worker.Run(make_mesh(devices=jax.devices()[:1]))
    results = launch(2, tmp_path, tmp_path / "run")
    check(results, alone.train(0, 6))
    for result in results:
        # The damaged step 6 is passed over by all of them, and going on is bit-identical.
        step, meta, ((skipped, reason),) = result["restored"]
        assert (step, meta, skipped) == (3, {"step": 3}, 6)
        assert "manifest.ocdbt" in reason
        assert result["again"] == result["losses"][3:]

    # What they saved together is restored by one process on one device.
    restored = CheckpointStore(tmp_path / "run").restore_latest(alone.target)
    assert (restored.step, restored.skipped) == (6, [])
    assert (tmp_path / "run" / "6.damaged").is_dir()
    for one, other in zip(
        jax.tree.leaves(restored.items), jax.tree.leaves(alone.items), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)

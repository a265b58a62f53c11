"""A save that cannot finish loses nothing that was saved before."""

from __future__ import annotations

import errno
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import pytest

from sinewich_jax.errors import CheckpointError
from sinewich_jax.storage import CheckpointStore, checkpoints


def tree(value):
    return {"params": {"w": jnp.full((1000,), value, jnp.float32)}}


def target():
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {"params": {"w": jax.ShapeDtypeStruct((1000,), jnp.float32, sharding=sharding)}}


def value(restored):
    return float(restored.items["params"]["w"][0])


def fail(error):
    def instead(*_):
        raise error

    return instead


def test_full_disk(tmp_path, monkeypatch, caplog):
    with CheckpointStore(tmp_path) as store:
        store.save(1, tree(1))
        store.wait()
        with monkeypatch.context() as full:
            full.setattr(checkpoints, "write_manifest", fail(OSError(errno.ENOSPC, "full")))
            store.save(2, tree(2))
            with pytest.raises(CheckpointError) as error:
                store.wait()
        message = str(error.value)
        for word in ("no space left", str(tmp_path / "2"), "0.0 MiB needed", "MiB free in"):
            assert word in message
        assert [path.name for path in tmp_path.iterdir()] == ["1"]
        assert not any(record.exc_info for record in caplog.records)
        restored = store.restore_latest(target())
        assert (restored.step, restored.skipped, value(restored)) == (1, [], 1)
        # When there is room again, the same store and the same step work.
        store.save(2, tree(2))
        store.wait()
        assert value(store.restore_latest(target())) == 2


def test_the_next_save_reports_a_failed_one(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(checkpoints, "write_manifest", fail(RuntimeError("cable\nand more")))
        store.save(1, tree(1))
        with pytest.raises(CheckpointError, match=r"step 1 could not .*\(RuntimeError: cable\)"):
            store.save(2, tree(2))
    store.save(3, tree(3))
    store.close()
    assert store.steps() == [3]


def test_a_failed_save_removes_no_older_step(tmp_path, monkeypatch):
    with CheckpointStore(tmp_path, max_to_keep=1) as store:
        store.save(1, tree(1))
        store.wait()
        monkeypatch.setattr(checkpoints, "write_manifest", fail(OSError(errno.ENOSPC, "full")))
        store.save(2, tree(2))
        with pytest.raises(CheckpointError):
            store.wait()
        assert store.steps() == [1]


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"step 1 could not be saved in .*file/run"):
        CheckpointStore(tmp_path / "file" / "run").save(1, tree(1))


def test_folders_of_killed_saves_are_ignored_and_removed_by_the_next_save(tmp_path):
    with CheckpointStore(tmp_path) as store:
        store.save(1, tree(1))
    killed = tmp_path / "2.orbax-checkpoint-tmp"
    (killed / "params").mkdir(parents=True)
    (killed / "params" / "half").write_bytes(bytes(10))
    with CheckpointStore(tmp_path) as store:
        restored = store.restore_latest(target())
        assert (restored.step, restored.skipped) == (1, [])
        assert killed.is_dir()  # it may belong to a job that is running
        store.save(3, tree(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]


PREAMBLE = """
    import os, resource, signal, sys
    import jax, numpy as np
    from sinewich_jax.errors import CheckpointError
    from sinewich_jax.storage import CheckpointStore, checkpoints
    big = {"params": {"w": jax.numpy.asarray(np.random.default_rng(0).random(10**6, np.float32))}}
    store = CheckpointStore(sys.argv[1])
    store.save(1, {"params": {"w": jax.numpy.ones(1000)}})
    store.wait()
"""


def run(script, directory):
    root = pathlib.Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PREAMBLE) + textwrap.dedent(script), directory],
        env=os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_the_operating_system_refuses_to_write(tmp_path):
    """A real refusal deep inside Orbax: no file of the process may grow beyond 64 KiB."""
    script = """
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
        try:
            store.save(2, big)
            store.wait()
        except CheckpointError as error:
            print(error)
    """
    done = run(script, tmp_path)
    assert "no space left while writing" in done.stdout
    assert "3.8 MiB needed" in done.stdout
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    restored = CheckpointStore(tmp_path).restore_latest(target())
    assert (restored.step, value(restored)) == (1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


@pytest.mark.slow
def test_killed_one_moment_before_the_commit(tmp_path):
    script = """
        checkpoints.write_manifest = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        store.save(2, big)
        store.wait()
    """
    assert run(script, tmp_path).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2  # the step and what the killed save left
    with CheckpointStore(tmp_path) as store:
        restored = store.restore_latest(target())
        assert (restored.step, restored.skipped, value(restored)) == (1, [], 1)
        store.save(2, tree(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]

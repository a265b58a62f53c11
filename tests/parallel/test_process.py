from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from sinewich_jax.errors import ConfigError, DataError
from sinewich_jax.parallel import is_main_process, local_slice, make_mesh, process, put_batch


class Device:
    """Stands for a device of another process: all that ``local_shards`` asks of one."""

    def __init__(self, process_index):
        self.process_index = process_index


def pretend(monkeypatch, grid, this):
    """Lets the mesh say that device (data, model) belongs to process ``grid[data][model]``."""
    parts = len(grid)

    class Sharding:
        def __init__(self, mesh, spec):
            assert spec == P("data")

        def devices_indices_map(self, shape):
            step = shape[0] // parts
            return {
                Device(owner): (slice(row * step, (row + 1) * step),)
                for row, owners in enumerate(grid)
                for owner in owners
            }

    monkeypatch.setattr(process, "NamedSharding", Sharding)
    monkeypatch.setattr(jax, "process_index", lambda: this)


@pytest.mark.parametrize(
    ("grid", "this", "expected"),
    [
        # Four processes of one device: two of them share their rows. Slicing by the process number
        # would give (0, 2), (2, 4), (4, 6), (6, 8) and silently another loss on each process.
        ([[0, 1], [2, 3]], 0, (0, 4)),
        ([[0, 1], [2, 3]], 1, (0, 4)),
        ([[0, 1], [2, 3]], 2, (4, 8)),
        ([[0, 1], [2, 3]], 3, (4, 8)),
        ([[0, 0], [1, 1]], 1, (4, 8)),
        ([[0], [0], [1], [1]], 1, (4, 8)),
        ([[1], [1], [0], [0]], 0, (4, 8)),
    ],
)
def test_the_mesh_says_which_rows(monkeypatch, grid, this, expected):
    pretend(monkeypatch, grid, this)
    mesh = type("Mesh", (), {"shape": {"data": len(grid)}})()
    assert local_slice(mesh, 8) == slice(*expected)


def test_scattered_rows_are_refused(monkeypatch):
    pretend(monkeypatch, [[0], [1], [0], [1]], 0)
    mesh = type("Mesh", (), {"shape": {"data": 4}})()
    with pytest.raises(ConfigError, match=r"process 0 holds the shards \[0, 2\]"):
        local_slice(mesh, 8)


def test_one_process_feeds_everything():
    assert is_main_process()
    assert local_slice(make_mesh(data=4, model=2), 12) == slice(0, 12)


@pytest.mark.parametrize("size", [0, 9, -8])
def test_batch_has_to_divide(size):
    with pytest.raises(ConfigError, match=f"{size} does not divide.*'data' of size 8"):
        local_slice(make_mesh(), size)


def test_put_batch_cuts_the_first_axis():
    mesh = make_mesh(data=4, model=2)
    batch = {
        "image": np.arange(8 * 2 * 2 * 3, dtype=np.uint8).reshape(8, 2, 2, 3),
        "labels": {"depth": np.ones((8, 2, 2), np.float32)},
        "index": np.arange(8, dtype=np.int32),
    }
    placed = put_batch(batch, mesh)
    assert jax.tree.structure(placed) == jax.tree.structure(batch)
    for host, leaf in zip(jax.tree.leaves(batch), jax.tree.leaves(placed), strict=True):
        assert leaf.sharding.spec == P("data")
        assert leaf.sharding.shard_shape(leaf.shape)[0] == 2
        assert leaf.dtype == host.dtype
        np.testing.assert_array_equal(leaf, host)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"a": np.ones(8), "b": {"c": np.ones((16, 2))}}, ("'b/c' has 16 rows", "'a' has 8")),
        ({"a": np.float32(1)}, ("'a' is a scalar",)),
        ({"a": np.ones((12, 2))}, ("'a' has 12 rows", "multiple of 8")),
        ({"a": np.ones((0, 2))}, ("'a' has 0 rows",)),
    ],
)
def test_put_batch_names_the_leaf(batch, words):
    with pytest.raises(DataError) as error:
        put_batch(batch, make_mesh())
    assert all(word in str(error.value) for word in words)

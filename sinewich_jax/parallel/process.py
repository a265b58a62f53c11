"""Which rows of the global batch a process feeds, and how they become global arrays."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sinewich_jax.core.trees import map_paths
from sinewich_jax.errors import ConfigError, DataError


def is_main_process() -> bool:
    """Whether this is the process that prints and writes the work directory's text files."""
    return jax.process_index() == 0


def local_slice(mesh: Mesh, global_batch: int) -> slice:
    """The rows of the global batch that this process has to read.

    The answer comes from the mesh, not from the process number: with ``data=2, model=2`` on four
    processes of one device, two processes hold the *same* rows, and feeding each of them its own
    would silently give every process another loss.

    Args:
      mesh: the mesh of :func:`sinewich_jax.parallel.make_mesh`.
      global_batch: rows of the global batch; a multiple of the mesh's ``data`` axis.

    Returns:
      ``slice(start, stop)`` into the global batch, contiguous.

    Raises:
      ConfigError: the batch does not divide, or this process's rows are not contiguous.
    """
    shards = mesh.shape["data"]
    if global_batch < 1 or global_batch % shards:
        raise ConfigError(
            f"a global batch of {global_batch} does not divide over mesh axis 'data' of size "
            f"{shards}; choose a positive multiple of {shards}"
        )
    mine = local_shards(mesh)
    rows = global_batch // shards
    return slice(mine.start * rows, mine.stop * rows)


def local_shards(mesh: Mesh) -> range:
    """The positions on the mesh's ``data`` axis at which this process has a device."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    shards = mesh.shape["data"]
    mine = sorted(
        {
            index[0].indices(shards)[0]
            for device, index in sharding.devices_indices_map((shards,)).items()
            if device.process_index == jax.process_index()
        }
    )
    if not mine or mine != list(range(mine[0], mine[-1] + 1)):
        raise ConfigError(
            f"process {jax.process_index()} holds the shards {mine} of mesh axis 'data', which are "
            "not one contiguous run; order the devices of the mesh by process"
        )
    return range(mine[0], mine[-1] + 1)


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Makes global arrays, cut along ``data``, out of this process's rows.

    Args:
      batch: pytree of NumPy arrays ``[b, ...]``, b being the length of :func:`local_slice`
        (on one process: the whole global batch). Every leaf has the same b.
      mesh: the mesh of :func:`sinewich_jax.parallel.make_mesh`.

    Returns:
      The same tree with global arrays ``[B, ...]`` sharded ``P("data")`` on the first axis.

    Raises:
      DataError: leaves disagree on b, or b does not divide over this process's shards.
    """
    shards, mine = mesh.shape["data"], len(local_shards(mesh))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    first: tuple[str, int] | None = None

    def put(name: str, leaf: Any) -> jax.Array:
        nonlocal first
        host = np.asarray(leaf)
        if host.ndim == 0:
            raise DataError(f"batch leaf {name!r} is a scalar; every leaf needs a batch axis first")
        rows = host.shape[0]
        first = first or (name, rows)
        if rows != first[1]:
            raise DataError(
                f"batch leaf {name!r} has {rows} rows, but {first[0]!r} has {first[1]}; all leaves "
                "of a batch need the same number"
            )
        if rows == 0 or rows % mine:
            raise DataError(
                f"batch leaf {name!r} has {rows} rows, which do not divide over this process's "
                f"{mine} shard(s) of mesh axis 'data'; choose a multiple of {shards} as batch size"
            )
        shape = (rows // mine * shards, *host.shape[1:])
        return jax.make_array_from_process_local_data(sharding, host, shape)

    return map_paths(put, batch)

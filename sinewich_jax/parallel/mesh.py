"""The device mesh: three named axes, of which one device is the smallest case."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sinewich_jax.errors import ConfigError

MESH_AXES = ("data", "task", "model")


def make_mesh(
    data: int = -1,
    task: int = 1,
    model: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Arranges devices as ``(data, task, model)``.

    Axis types are Auto: the compiler inserts the collectives. (JAX's own default, Explicit, refuses
    the window reshapes of a Swin block.)

    Args:
      data: number of slices of the batch. ``-1`` takes every device that the others leave.
      task: number of slices of the task axis.
      model: number of slices of the parameters. At most one of the three may be ``-1``.
      devices: the devices to use, all of them by default.

    Returns:
      A mesh whose axes are named ``data``, ``task``, ``model``; one device gives ``(1, 1, 1)``.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = dict(zip(MESH_AXES, (data, task, model), strict=True))
    shown = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    for axis, size in sizes.items():
        if size != -1 and size < 1:
            raise ConfigError(
                f"mesh axis {axis!r} has size {size}; expected a positive number, or -1 for the "
                "devices that the other axes leave"
            )
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ConfigError(f"mesh {shown} leaves {' and '.join(free)} open; at most one may be -1")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices) or not devices:
        raise ConfigError(
            f"mesh {shown} does not fit {len(devices)} device(s): the sizes must multiply to the "
            "number of devices; change them, or pass the devices to use"
        )
    return jax.make_mesh(
        tuple(sizes.values()),
        MESH_AXES,
        axis_types=(AxisType.Auto,) * len(MESH_AXES),
        devices=devices,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of a value that every device of ``mesh`` holds whole."""
    return NamedSharding(mesh, PartitionSpec())

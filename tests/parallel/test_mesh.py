from __future__ import annotations

import jax
import pytest
from jax.sharding import AxisType

from sinewich_jax.errors import ConfigError
from sinewich_jax.parallel import MESH_AXES, make_mesh, replicated


@pytest.mark.parametrize(
    ("sizes", "devices", "expected"),
    [
        ({}, 8, (8, 1, 1)),
        ({"model": 2}, 8, (4, 1, 2)),
        ({"data": 2, "task": 2, "model": 2}, 8, (2, 2, 2)),
        ({"data": 2, "model": -1}, 8, (2, 1, 4)),
        ({}, 1, (1, 1, 1)),
    ],
)
def test_sizes(sizes, devices, expected):
    mesh = make_mesh(**sizes, devices=jax.devices()[:devices])
    assert mesh.axis_names == MESH_AXES == ("data", "task", "model")
    assert mesh.devices.shape == expected
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert {device.id for device in mesh.devices.flat} == set(range(devices))


def test_all_devices_are_the_default():
    assert make_mesh().shape["data"] == jax.device_count() == 8


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"data": 3}, ("data=3", "8 device")),
        ({"model": 3}, ("model=3", "8 device")),
        ({"data": 2, "model": 2}, ("data=2, task=1, model=2", "8 device")),
        ({"model": 16}, ("model=16", "8 device")),
        ({"data": 0}, ("'data'", "size 0")),
        ({"task": -2}, ("'task'", "size -2")),
        ({"model": -1}, ("data and model", "-1")),
    ],
)
def test_sizes_that_do_not_fit(sizes, words):
    with pytest.raises(ConfigError) as error:
        make_mesh(**sizes)
    assert all(word in str(error.value) for word in words)


def test_no_devices_do_not_fit():
    with pytest.raises(ConfigError, match="0 device"):
        make_mesh(devices=[])


def test_replicated_is_whole_everywhere():
    assert replicated(make_mesh(model=2)).is_fully_replicated

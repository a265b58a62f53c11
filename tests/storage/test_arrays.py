from __future__ import annotations

import io

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sinewich_jax.errors import CheckpointError
from sinewich_jax.storage import load_npz, load_safetensors, save_safetensors

DTYPES = ["float64", "float32", "float16", "int64", "int32", "int16", "int8"]
DTYPES += ["uint64", "uint32", "uint16", "uint8", "bool", "complex64"]


@settings(max_examples=30)
@given(
    array=st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0))
    ),
    name=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8),
)
def test_round_trip_is_bit_exact(tmp_path_factory, array, name):
    path = tmp_path_factory.mktemp("arrays") / "a.safetensors"
    if name == "__metadata__":  # the one name that the format keeps for itself
        name = "metadata"
    save_safetensors(path, {name: array})
    flat, metadata = load_safetensors(path)
    assert list(flat) == [name]
    assert metadata == {}
    assert (flat[name].dtype, flat[name].shape) == (array.dtype, array.shape)
    assert flat[name].tobytes() == array.tobytes()


def test_strided_scalar_big_endian_bfloat16_and_device_leaves(tmp_path):
    path = tmp_path / "a.safetensors"
    flat = {
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "strided": np.arange(10)[::3],
        "scalar": np.float32(3),
        "big": np.arange(3, dtype=">f4"),
        "bfloat16": np.arange(4).astype(ml_dtypes.bfloat16),
        "device": jnp.full((2, 2), 1.5, jnp.bfloat16),
    }
    save_safetensors(path, flat, {"command": "train"})
    read, metadata = load_safetensors(path)
    assert metadata == {"command": "train"}
    assert read["bfloat16"].dtype == read["device"].dtype == ml_dtypes.bfloat16
    for name, leaf in flat.items():
        assert read[name].shape == leaf.shape
        np.testing.assert_array_equal(read[name], np.asarray(leaf))
    assert read["strided"].dtype == np.int64


def test_the_file_is_what_the_library_reads(tmp_path):
    save_safetensors(tmp_path / "a", {"w": np.eye(3)})
    np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / "a")["w"], np.eye(3))


@pytest.mark.parametrize("leaf", [np.array(["x"]), np.array([None]), np.zeros(2, "complex128")])
def test_dtypes_without_a_form_are_named(tmp_path, leaf):
    with pytest.raises(CheckpointError, match=f"leaf 'w' has dtype {leaf.dtype}"):
        save_safetensors(tmp_path / "a", {"w": leaf})
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_dtype_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"w": np.ones(4, ml_dtypes.float8_e4m3fn)}, path)
    with pytest.raises(CheckpointError, match=r"leaf 'w' of .* has dtype F8_E4M3"):
        load_safetensors(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 64, "cut"])
def test_damaged_safetensors_name_the_file(tmp_path, content):
    path = tmp_path / "a.safetensors"
    if content == "cut":
        save_safetensors(path, {"w": np.ones(100)})
        content = path.read_bytes()[:-1]
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.safetensors is not a whole safetensors file"):
        load_safetensors(path)


@pytest.mark.parametrize("load", [load_safetensors, load_npz])
def test_missing_files(tmp_path, load):
    with pytest.raises(CheckpointError, match="found nothing"):
        load(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="found a folder"):
        load(tmp_path)


def test_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.arange(3), y=np.eye(2))
    flat = load_npz(path)
    assert set(flat) == {"x", "y"}
    np.testing.assert_array_equal(flat["y"], np.eye(2))


def test_bad_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(CheckpointError, match="plain arrays"):
        load_npz(path)
    whole = io.BytesIO()
    np.savez(whole, x=np.arange(1000))
    for content in (whole.getvalue()[:-40], b"PK\x03\x04", b"", b"words"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"a\.npz"):
            load_npz(path)
    np.save(tmp_path / "one.npy", np.arange(3))
    with pytest.raises(CheckpointError, match="one bare array"):
        load_npz(tmp_path / "one.npy")

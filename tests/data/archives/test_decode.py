"""Files that are cut or overwritten give one sentence that names them."""

from __future__ import annotations

import io

import numpy as np
import pytest
import scipy.io

from sinewich_jax.data.archives import decode
from sinewich_jax.errors import DataError
from tests.data.archives.trees import people


def mat_bytes(key, value, compressed):
    file = io.BytesIO()
    scipy.io.savemat(file, {key: value}, do_compression=compressed)
    return file.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
def test_a_mat_cut_anywhere(compressed):
    whole = mat_bytes("anno", people((40, 50), person=True), compressed)
    assert decode.mat(whole, "f.mat", "anno").dtype.names == ("imname", "objects")
    for end in range(0, len(whole), max(1, len(whole) // 97)):
        with pytest.raises(DataError, match=r"f\.mat"):
            decode.mat(whole[:end], "f.mat", "anno")


def test_a_compressed_mat_with_a_wrong_byte():
    whole = mat_bytes("LabelMap", np.arange(2000).reshape(40, 50), True)
    for place in range(140, len(whole), 37):
        broken = bytearray(whole)
        broken[place] ^= 0x55
        with pytest.raises(DataError, match=r"f\.mat"):
            decode.mat_map(bytes(broken), "f.mat", "LabelMap")


@pytest.mark.parametrize("text", [b"", b"hello", b"\0" * 600, b"<html>404</html>" * 50])
def test_what_is_no_mat(text):
    with pytest.raises(DataError, match=r"f\.mat is not a MATLAB file|f\.mat holds no variable"):
        decode.mat(text, "f.mat", "x")


@pytest.mark.parametrize("value", [np.zeros((2, 3, 4)), "words", np.array([[1j]])])
def test_a_variable_that_is_no_map(value):
    with pytest.raises(DataError, match=r"'x' of f\.mat is no map of numbers"):
        decode.mat_map(mat_bytes("x", value, False), "f.mat", "x")


def test_floats_that_are_whole_are_classes():
    got = decode.whole(np.array([[1.0, 40.0]]), "f")
    assert got.dtype == np.int64 and got.tolist() == [[1, 40]]
    for bad in (1.5, np.nan, np.inf):
        with pytest.raises(DataError, match="f holds fractions or NaN"):
            decode.whole(np.array([[bad]]), "f")

"""Torch files: those that torch wrote, those that a test writes byte by byte, and damaged ones."""

from __future__ import annotations

import io
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sinewich_jax.convert import files
from sinewich_jax.convert.torch_zip import read_torch
from sinewich_jax.errors import CheckpointError
from tests.convert import foreign


def written(tmp_path, content: bytes):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    return path


def test_what_torch_wrote():
    tensors, others = read_torch(foreign.FIXTURES / "torch_kinds.pth")
    expected = {
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "scalar": np.array(3),
        "parameter": np.ones(2, ml_dtypes.bfloat16),
        "empty": np.zeros((0, 3), np.float32),
        "typed": np.array([1, 2], np.uint16),
        "slice": np.arange(3.0, 7.0),
        "flags": np.array([True, False]),
    }
    assert tensors.keys() == expected.keys() and others == ()
    for name, array in expected.items():
        assert tensors[name].dtype == array.dtype, name
        np.testing.assert_array_equal(tensors[name], array)


STATE = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array(5),
    "c": np.float16([1, 2]),
}


@pytest.mark.parametrize("wrappers", [(), ("model",), ("state_dict",), ("state_dict", "model")])
def test_a_file_written_byte_by_byte(tmp_path, wrappers):
    source = files.read_weights(written(tmp_path, foreign.torch_file(STATE, *wrappers)))
    assert source.tensors.keys() == STATE.keys()
    for name, array in STATE.items():
        assert source.tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(source.tensors[name], array)
    assert source.name == "weights.pth" and len(source.sha256) == 64


def test_views_share_a_storage_and_plain_values_are_named(tmp_path):
    body = foreign.mapping(
        {
            "rows": foreign.tensor("0", "Float", 6, (2, 3), (3, 1)),
            "columns": foreign.tensor("0", "Float", 6, (3, 2), (1, 3)),
            "tail": foreign.tensor("0", "Float", 6, (2,), (1,), offset=4),
            "step": foreign.number(12),
        }
    )
    raw = np.arange(6, dtype=np.float32)
    tensors, others = read_torch(written(tmp_path, foreign.archive(body, {"0": raw.tobytes()})))
    np.testing.assert_array_equal(tensors["rows"], raw.reshape(2, 3))
    np.testing.assert_array_equal(tensors["columns"], raw.reshape(2, 3).T)
    np.testing.assert_array_equal(tensors["tail"], raw[4:])
    assert others == ("step",)
    assert all(array.flags.writeable and array.flags.c_contiguous for array in tensors.values())


FOUR = np.arange(4, dtype=np.float32).tobytes()


@pytest.mark.parametrize(
    "made",
    [
        foreign.tensor("0", "Float", 4, (5,), (1,)),
        foreign.tensor("0", "Float", 4, (2,), (1,), offset=3),
        foreign.tensor("0", "Float", 4, (2, 2), (3, 1)),
        foreign.tensor("0", "Float", 4, (100000, 100000), (0, 0)),
        foreign.tensor("0", "Float", 4, (1,), (1,), offset=4),
    ],
)
def test_a_view_that_leaves_its_storage(tmp_path, made):
    path = written(tmp_path, foreign.archive(foreign.mapping({"w": made}), {"0": FOUR}))
    with pytest.raises(CheckpointError, match=r"tensor 'w' .* leave its storage of 4 numbers"):
        read_torch(path)


@pytest.mark.parametrize(
    ("made", "storages", "words"),
    [
        (foreign.tensor("0", "Float", 5, (4,), (1,)), {"0": FOUR}, "has 16 bytes, expected 20"),
        (foreign.tensor("0", "Double", 4, (4,), (1,)), {"0": FOUR}, "has 16 bytes, expected 32"),
        (foreign.tensor("1", "Float", 4, (4,), (1,)), {"0": FOUR}, "lacks the entry"),
        (foreign.tensor("../data.pkl", "Float", 4, (4,), (1,)), {"0": FOUR}, "lacks the entry"),
        (foreign.tensor("0", "Complex", 4, (4,), (1,)), {"0": FOUR}, "could run code"),
    ],
)
def test_a_storage_that_is_not_what_was_said(tmp_path, made, storages, words):
    path = written(tmp_path, foreign.archive(foreign.mapping({"w": made}), storages))
    with pytest.raises(CheckpointError, match=words):
        read_torch(path)


def test_every_truncation_is_one_sentence(tmp_path):
    whole = foreign.torch_file(STATE)
    path = tmp_path / "weights.pth"
    for length in (0, 1, 3, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"weights\.pth (is not a whole|starts with)"):
            files.read_weights(path)


def test_a_flipped_bit_is_noticed(tmp_path):
    content = bytearray(foreign.torch_file({"a": np.full(64, 1.5, np.float32)}))
    content[content.index(np.full(8, 1.5, np.float32).tobytes()) + 9] ^= 4
    with pytest.raises(CheckpointError, match=r"is not a whole zip archive .*CRC"):
        read_torch(written(tmp_path, bytes(content)))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_ends_in_one_sentence(tmp_path, data):
    """Bytes of the headers replaced: arrays or our error, nothing else."""
    content = bytearray(foreign.torch_file(STATE, "model"))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(len(content) - 700, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    try:
        files.read_weights(written(tmp_path, bytes(content)))
    except CheckpointError as error:
        assert "weights.pth" in str(error)


def test_compressed_entries_are_refused(tmp_path):
    """So that no entry can be larger than the file: a megabyte of zeros packs into a kilobyte."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        body = foreign.mapping({"w": foreign.tensor("0", "Float", 1 << 18, (1,), (1,))})
        file.writestr(zipfile.ZipInfo("x/data.pkl"), b"\x80\x02" + body + b".")
        file.writestr("x/data/0", bytes(1 << 20))
    with pytest.raises(CheckpointError, match="compressed or encrypted entry 'x/data/0'"):
        read_torch(written(tmp_path, buffer.getvalue()))


@pytest.mark.parametrize(
    ("body", "entries", "words"),
    [
        (foreign.mapping({}), {}, "no state dict: found nothing"),
        (foreign.mapping({"epoch": foreign.number(1)}), {}, "no state dict: found 'epoch'"),
        (
            foreign.mapping({"model": foreign.mapping({"x": b"N"})}),
            {},
            r"at \['model'\]: found 'x'",
        ),
        (b"]", {}, "holds a list, expected a dict of tensors"),
        (b"}q\x00(" + foreign.text("model") + b"h\x00u", {}, "holds a dict"),
        (foreign.mapping({}), {"constants.pkl": b""}, "TorchScript program"),
        (foreign.mapping({}), {"../x/data.pkl": b""}, "no state dict"),
    ],
)
def test_archives_without_a_state_dict(tmp_path, body, entries, words):
    path = written(tmp_path, foreign.archive(body, {}, **entries))
    with pytest.raises(CheckpointError, match=words):
        read_torch(path)


def test_other_zip_archives_and_byte_orders(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("word/document.xml", "<x/>")
    with pytest.raises(CheckpointError, match=r"0 entries NAME/data\.pkl"):
        read_torch(written(tmp_path, buffer.getvalue()))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("x/data.pkl", b"\x80\x02}.")
        file.writestr("x/byteorder", b"big")
    with pytest.raises(CheckpointError, match=r"byte order b'big', expected b'little'"):
        read_torch(written(tmp_path, buffer.getvalue()))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "is a bare pickle .* save it again with"),
        (b"\x80\x04K\x01.", "is a bare pickle"),
        (b"GIF89a..........", "neither a safetensors file nor a torch zip archive"),
        (b"", "neither a safetensors file"),
        (b"\x10\0\0\0\0\0\0\0{not json}", "not a whole safetensors file"),
    ],
)
def test_files_of_other_kinds(tmp_path, content, words):
    with pytest.raises(CheckpointError, match=words):
        files.read_weights(written(tmp_path, content))


def test_no_file(tmp_path):
    with pytest.raises(CheckpointError, match="found nothing"):
        files.read_weights(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="found a folder"):
        files.read_weights(tmp_path)

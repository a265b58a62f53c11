"""The official compressor's stream, against bytes that the official code wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinewich_jax.switches.codecs import (
    CodecError,
    encode_mask,
    from_official_stream,
    official_stream,
    stream,
)

FIXTURE = Path(__file__).parent / "fixtures" / "tswitch.npz"


def packed(bits):
    return np.packbits(np.asarray(bits, bool).ravel(), bitorder="little")


def test_the_official_streams_bit_for_bit():
    seen = 0
    with np.load(FIXTURE) as file:
        for key in file.files:
            if "/stream/" not in key:
                continue
            mask, sign = (file[key.replace("/stream/", f"/{name}/")] for name in ("mask", "sign"))
            blob = file[key].tobytes()
            assert official_stream(packed(mask), packed(sign), mask.size) == blob, key
            assert len(blob) == -(-int(file[key.replace("/stream/", "/stream_bits/")]) // 8)
            back = from_official_stream(blob, mask.size)
            np.testing.assert_array_equal(back[0], packed(mask), key)
            np.testing.assert_array_equal(back[1], packed(sign), key)
            seen += 1
    assert seen == 90


@settings(max_examples=100)
@given(st.integers(1, 9), st.lists(st.sampled_from([-1, 0, 0, 1]), max_size=30))
def test_any_leaf_comes_back(group, values):
    values = np.repeat(values, group)
    mask, sign, n = packed(values != 0), packed(values > 0), len(values)
    back = from_official_stream(official_stream(mask, sign, n, group), n, group)
    np.testing.assert_array_equal(back[0], mask)
    np.testing.assert_array_equal(back[1], sign)


def test_a_stream_of_several_windows(monkeypatch):
    monkeypatch.setattr(stream, "_WINDOW", 1000)
    rng = np.random.default_rng(0)
    n = 40_000
    for density in (0.01, 0.4, 1.0):
        mask = rng.random(n) < density
        sign = mask & (rng.random(n) < 0.5)
        blob = official_stream(packed(mask), packed(sign), n)
        back = from_official_stream(blob, n)
        np.testing.assert_array_equal(back[0], packed(mask))
        np.testing.assert_array_equal(back[1], packed(sign))
        # 1/g + 1 - (1 - p)**g + p bits an entry
        assert 8 * len(blob) / n == pytest.approx(0.25 + 1 - (1 - density) ** 4 + density, abs=0.02)


def test_what_the_official_code_cannot_write_is_refused():
    plane = np.zeros(8, np.uint8)
    with pytest.raises(CodecError, match="63 entries are not divisible by 4"):
        official_stream(plane, plane, 63)
    with pytest.raises(CodecError, match="63 entries are not divisible by 4"):
        from_official_stream(b"", 63)
    with pytest.raises(CodecError, match="groups of 0 entries"):
        official_stream(plane, plane, 64, 0)
    assert official_stream(plane[:0], plane[:0], 0) == b""
    assert from_official_stream(b"", 0)[0].shape == (0,)


@pytest.mark.parametrize(
    ("blob", "n"),
    [
        (b"\xc2\x80", 8),  # a marked group that is empty
        (b"\xa1", 8),  # ones behind the last group
        (b"\xa0\x00\x00", 8),  # a byte behind the last group
        (b"\xbc", 8),  # cut off in its first group
        (b"\xff", 8),  # cut off in its second group
    ],
)
def test_only_one_form_is_read(blob, n):
    with pytest.raises(CodecError, match=r"exactly 8 entries|cut off|cannot hold 8"):
        from_official_stream(blob, n)


def test_two_thousand_mutations_raise_nothing_else():
    rng = np.random.default_rng(0)
    n, refused = 400, 0
    mask = rng.random(n) < 0.3
    blob = official_stream(packed(mask), packed(mask & (rng.random(n) < 0.5)), n)
    for number in range(2000):
        data = bytearray(blob)
        if number % 3 == 0:
            data = data[: rng.integers(0, len(data))]
        elif number % 3 == 1:
            data += rng.bytes(int(rng.integers(1, 50)))
        for _ in range(rng.integers(1, 4)):
            if data:
                data[rng.integers(0, len(data))] ^= 1 << int(rng.integers(0, 8))
        try:
            found, _ = from_official_stream(bytes(data), n)
        except CodecError:
            refused += 1
        else:
            encode_mask(found, n)
    assert refused > 1300

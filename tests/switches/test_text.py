from __future__ import annotations

import random
import zlib

import pytest

from sinewich_jax.switches.swb import text


@pytest.mark.parametrize("dictionary", [b"", b"words", bytes(range(256)) * 300])
def test_what_is_deflated_comes_back(dictionary):
    chance = random.Random(0)
    for data in (b"", b"words", chance.randbytes(5_000), b"a" * 3_000_000, dictionary):
        stream = text.deflate(data, dictionary)
        assert stream == text.deflate(data, dictionary)
        assert text.inflate(memoryview(stream), dictionary) == data
        for size in range(max(0, len(stream) - 40), len(stream)):
            with pytest.raises(ValueError, match="ends too early"):
                text.inflate(stream[:size], dictionary)


def test_what_the_dictionary_has_takes_few_bytes():
    rows = random.Random(0).randbytes(2_000)
    assert len(text.deflate(rows, rows)) < 60 < 2_000 < len(text.deflate(rows))


def test_the_limit_is_exact():
    made = zlib.compressobj(9, zlib.DEFLATED, -15)
    stream = made.compress(b"a" * 300_000) + made.flush()
    most = text.limit(len(stream))
    assert len(stream) < 400 and most < 300_000
    with pytest.raises(ValueError, match=f"of {len(stream)} bytes inflates to more than {most}"):
        text.inflate(stream)

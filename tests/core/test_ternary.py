"""Bit planes, the entropy bound, and the best number of entries against closed forms."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinewich_jax.core import ternary

SIZES = [0, 1, 7, 8, 9, 63, 64, 65, 1000]


@settings(max_examples=200)
@given(st.sampled_from(SIZES), st.sampled_from([0, 0.01, 0.4, 1]), st.integers(0, 2**31))
def test_bits_come_back_and_the_pad_is_zero(n, density, seed):
    bits = np.random.default_rng(seed).random(n) < density
    plane = ternary.pack_bits(bits)
    assert plane.shape == ((n + 7) // 8,) and plane.dtype == np.uint8
    np.testing.assert_array_equal(ternary.unpack_bits(plane, n), bits)
    assert int(np.bitwise_count(plane).sum()) == bits.sum()  # so every other bit is 0
    for i in np.flatnonzero(bits)[:20]:
        assert plane[i >> 3] >> (i & 7) & 1


def test_a_large_plane_comes_back():
    bits = np.random.default_rng(0).random(2**20 + 3) < 0.4
    plane = ternary.pack_bits(bits)
    np.testing.assert_array_equal(ternary.unpack_bits(plane, bits.size), bits)
    assert plane[-1] >> 3 == 0


@pytest.mark.parametrize("n", SIZES)
def test_jax_has_the_same_bytes_and_leading_axes(n):
    bits = np.random.default_rng(n).random((2, 3, n)) < 0.4
    plane = ternary.pack_bits(jnp.asarray(bits))
    np.testing.assert_array_equal(plane, np.packbits(bits, axis=-1, bitorder="little"))
    np.testing.assert_array_equal(plane, ternary.pack_bits(bits))
    found = ternary.unpack_bits(plane, n)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, bits)


@pytest.mark.parametrize(
    ("density", "bits"),
    [(0.5, 1.5), (0.4, 1.371), (0.3, 1.181), (0.2, 0.922), (0.1, 0.569), (0.05, 0.336)],
)
def test_the_entropy_of_ternary_entries(density, bits):
    n = 100_000
    assert ternary.entropy_bits(n, round(n * density)) / n == pytest.approx(bits, abs=6e-4)


def test_the_entropy_of_nothing_of_everything_and_of_levels():
    assert ternary.entropy_bits(0, 0) == ternary.entropy_bits(9, 0) == 0
    assert ternary.entropy_bits(9, 9) == 9
    assert ternary.entropy_bits(9, 9, bits=3) == 27
    n = 3000
    assert ternary.entropy_bits(n, n // 3) == pytest.approx(n * math.log2(3) - n // 3)
    # 2/3 active with balanced signs is the most that three values can hold.
    assert ternary.entropy_bits(n, 2 * n // 3) == pytest.approx(n * math.log2(3))


@settings(max_examples=100)
@given(st.lists(st.sampled_from([0.0, 0.25, 1.0, 1.5, 7.0]), min_size=1, max_size=12))
def test_the_best_count_is_the_first_of_the_best(values):
    ordered = np.sort(np.float32(values))[::-1].astype(float)
    gains = [ordered[:k].sum() ** 2 / k for k in range(1, len(values) + 1)]
    expected = 1 + int(np.argmax(gains)) if ordered[0] > 0 else 0
    assert ternary.best_count(np.float32(values)) == expected


SAMPLES = {
    "laplace": (lambda rng, n: rng.laplace(size=n), 1 / math.e, math.sqrt(2 / math.e)),
    "gauss": (lambda rng, n: rng.normal(size=n), 0.541, 0.8999),
    "student": (lambda rng, n: rng.standard_t(3, size=n), 0.335, 0.760),
}


def cosine(magnitudes, k):
    kept = np.sort(magnitudes)[::-1][: int(k)].astype(float)
    return kept.sum() / math.sqrt(max(len(kept), 1)) / np.linalg.norm(magnitudes.astype(float))


@pytest.mark.parametrize("name", SAMPLES)
def test_the_best_density_is_the_closed_form(name):
    sample, density, fidelity = SAMPLES[name]
    magnitudes = np.abs(sample(np.random.default_rng(0), 1 << 20)).astype(np.float32)
    count = ternary.best_count(magnitudes)
    assert count / magnitudes.size == pytest.approx(density, abs=0.02)
    # sqrt(2 / e) = .858 is e^(-t/2) (1 + t) / sqrt(2) at t = 1. Student's norm hardly settles.
    tolerance = 0.02 if name == "student" else 0.003
    assert cosine(magnitudes, count) == pytest.approx(fidelity, abs=tolerance)


BINNED = jax.jit(ternary.best_count)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 3.7e36])
@pytest.mark.parametrize("name", SAMPLES)
def test_bins_lose_next_to_nothing(name, scale, monkeypatch):
    sample, *_ = SAMPLES[name]
    magnitudes = np.abs(sample(np.random.default_rng(1), 1 << 14)).astype(np.float32)
    best = cosine(magnitudes, ternary.best_count(magnitudes))
    scaled = magnitudes * np.float32(scale)
    traced = BINNED(scaled)
    assert best - cosine(magnitudes, traced) < 1e-4
    monkeypatch.setattr(ternary, "_SORTED", 0)
    on_host = ternary.best_count(scaled)
    assert isinstance(on_host, int)
    assert best - cosine(magnitudes, on_host) < 1e-4


def test_bins_of_arrays_without_spread():
    assert ternary.best_count(np.zeros(0, np.float32)) == 0
    assert int(ternary.best_count(jnp.zeros(0))) == 0
    several = jax.jit(jax.vmap(ternary.best_count))
    rows = [[0, 0, 0, 0], [0, 0, 3, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    np.testing.assert_array_equal(several(np.float32(rows)), [0, 1, 2, 4])

"""Fixtures of the mathematics: double precision, and a kernel with unequal dimensions."""

from __future__ import annotations

import jax
import pytest


@pytest.fixture
def float64():
    """Runs the test in double precision, as the tolerances of closed forms need it."""
    with jax.enable_x64(True):
        yield

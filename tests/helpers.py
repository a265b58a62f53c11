"""Small things that several test files need."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import jax
import numpy as np
import pytest


def data_root() -> pathlib.Path:
    """The folder of real images and weights, or a skip with the reason."""
    root = os.environ.get("SINEWICH_DATA")
    if not root or not pathlib.Path(root).is_dir():
        pytest.skip("SINEWICH_DATA does not name a folder with the real data sets")
    return pathlib.Path(root)


def fake_params(abstract: Any, seed: int = 0, scale: float = 0.02) -> Any:
    """Fills a tree of shapes with noise: much faster than running a random initialisation."""
    rng = np.random.default_rng(seed)

    def fill(leaf: Any) -> np.ndarray:
        return (scale * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    return jax.tree.map(fill, abstract)

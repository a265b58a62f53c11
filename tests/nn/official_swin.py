"""Parity fixtures: frozen outputs of other Swins, and their parameters as ours."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np

from sinewich_jax import convert
from sinewich_jax.core.trees import unflatten_paths

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / f"{name}.npz") as file:
        return dict(file)


def ours(fixture: Mapping[str, np.ndarray], window: int) -> dict:
    """The nested parameter tree of :class:`sinewich_jax.nn.swin.Swin`."""
    state = {
        key.removeprefix("param/"): value
        for key, value in fixture.items()
        if key.startswith("param/")
    }
    made = convert.convert_state(state, smaller="centre")
    assert made.swin.window == window
    return unflatten_paths(made.params)


def nhwc(tokens: np.ndarray, height: int) -> np.ndarray:
    """(B, L, C) row-major tokens as a map of ``height`` rows."""
    return tokens.reshape(tokens.shape[0], height, -1, tokens.shape[-1])

"""Reads convolution layers of small quantised networks, and turns them into real numbers.

The file is an ``.npz`` with a key ``json`` (uint8 of UTF-8 JSON) whose ``layers`` list the network
in execution order. A convolution with key ``007`` has the arrays ``007_w`` (integer kernel, HWIO;
depthwise (kh, kw, 1, C)), ``007_scale`` and ``007_zp`` (one number an output channel, or one for
all), and ``007_b`` (bias, real). Batch norm is already folded in.
"""

from __future__ import annotations

import json
import os
from typing import NamedTuple

import numpy as np

from sinewich_jax.errors import CheckpointError
from sinewich_jax.storage.arrays import load_npz


class QuantisedLayer(NamedTuple):
    """One convolution in real numbers.

    Attributes:
      key: its key in the file.
      kernel: (kh, kw, in, out) float32; depthwise (kh, kw, 1, C).
      bias: (out,) float32.
      stride: step in both directions.
      depthwise: whether each channel is filtered by itself.
    """

    key: str
    kernel: np.ndarray
    bias: np.ndarray
    stride: int
    depthwise: bool


def load_quantised(path: str | os.PathLike[str]) -> list[QuantisedLayer]:
    """Every convolution of a quantised network, in execution order.

    ``kernel = (w - zero_point) * scale``, with scale and zero point along the output channel.

    Args:
      path: the ``.npz`` file.

    Raises:
      CheckpointError: when the file is missing, damaged or in another format.
    """
    arrays = load_npz(path)
    layers = []
    try:
        described = json.loads(arrays["json"].tobytes().decode())["layers"]
        for layer in described:
            if layer["op"] not in ("CONV", "DWCONV"):
                continue
            key = layer["key"]
            scale, zero = arrays[f"{key}_scale"], arrays[f"{key}_zp"]
            kernel = (arrays[f"{key}_w"].astype(np.float32) - zero.astype(np.float32)) * scale
            bias = arrays[f"{key}_b"].astype(np.float32)
            depthwise = layer["op"] == "DWCONV"
            layers.append(QuantisedLayer(key, kernel, bias, int(layer["stride"]), depthwise))
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path} is not a quantised network ({type(error).__name__}: {error}); expected the "
            "key json with its layers, and _w, _scale, _zp and _b of each convolution"
        ) from error
    return layers

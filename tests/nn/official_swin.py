"""The official Swin's parameter names and layouts, turned into ours; for parity tests only."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping

import numpy as np

from sinewich_jax.core.trees import unflatten_paths

FIXTURES = pathlib.Path(__file__).parent / "fixtures"

# official module -> ours
MODULES = (
    (r"patch_embed\.(proj|norm)", r"patch_embed_\1"),
    (
        r"layers\.(\d+)\.blocks\.(\d+)\.(?:attn\.|mlp\.)?(norm1|norm2|qkv|proj|fc1|fc2)",
        r"stage\1_block\2/\3",
    ),
    (r"layers\.(\d+)\.downsample\.(norm|reduction)", r"merge\1/\2"),
)
TABLE = r"layers\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_bias_table"
UNUSED = r"(norm|head)\.(weight|bias)|stage_norm\..*|.*\.(relative_position_index|attn_mask)"


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / f"{name}.npz") as file:
        return dict(file)


def centred_table(table: np.ndarray, window: int) -> np.ndarray:
    """A bias table of a smaller window in the middle of one for ``window``; the rest is unread."""
    small, side = round(len(table) ** 0.5), 2 * window - 1
    margin = (side - small) // 2
    square = table.reshape(small, small, -1)
    return np.pad(square, [(margin, margin)] * 2 + [(0, 0)]).reshape(side * side, -1)


def ours(fixture: Mapping[str, np.ndarray], window: int) -> dict:
    """The nested parameter tree of :class:`sinewich_jax.nn.swin.Swin`."""
    flat = {}
    for key, value in fixture.items():
        name = key.removeprefix("param/")
        if name == key or re.fullmatch(UNUSED, name):
            continue
        if match := re.fullmatch(TABLE, name):
            flat[match.expand(r"stage\1_block\2/bias_table")] = centred_table(value, window)
            continue
        module, kind = name.rsplit(".", 1)
        (path,) = (re.sub(p, new, module) for p, new in MODULES if re.fullmatch(p, module))
        if kind == "bias":
            flat[f"{path}/bias"] = value
        elif value.ndim == 1:
            flat[f"{path}/scale"] = value
        elif value.ndim == 2:
            flat[f"{path}/kernel"] = value.T
        else:  # the patch embedding: (out, in, row, column)
            flat[f"{path}/kernel"] = value.transpose(2, 3, 1, 0).reshape(-1, len(value))
    return unflatten_paths(flat)


def nhwc(tokens: np.ndarray, height: int) -> np.ndarray:
    """(B, L, C) row-major tokens as a map of ``height`` rows."""
    return tokens.reshape(tokens.shape[0], height, -1, tokens.shape[-1])

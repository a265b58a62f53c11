"""What a Swin is besides its numbers: widths, depths, heads, patch. Read from shapes, compared.

The window is no part of it: position tables can be resized to any.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from sinewich_jax.convert.family import Family
from sinewich_jax.convert.names import rules
from sinewich_jax.convert.tables import window_of
from sinewich_jax.core import trees
from sinewich_jax.errors import CheckpointError
from sinewich_jax.nn.swin import PRESETS, Swin

Shapes = dict[str, tuple[int, ...]]

GEOMETRY = ("embed_dim", "depths", "heads", "patch_size", "mlp_ratio")
"""The attributes of a Swin that its weights decide."""


def read_geometry(tensors: Mapping[str, np.ndarray], family: Family, where: str) -> Swin:
    """The Swin that a few shapes describe; the others have to agree with it.

    Args:
      tensors: name -> array, in torch layouts.
      family: where the network lies among them.
      where: names the file in messages.

    Raises:
      CheckpointError: one of these parameters is missing, or has a shape that no Swin has.
    """
    by_path = {
        rule.ours: [tensors.get(family.prefix + key) for key in rule.theirs]
        for rule in rules(family.name, family.depths)
    }

    def shape(path: str, rank: int) -> tuple[int, ...]:
        array = by_path[path][0]
        if array is None or array.ndim != rank or 0 in array.shape:
            found = "nothing" if array is None else f"shape {array.shape}"
            raise CheckpointError(
                f"{where} has {found} where a Swin has its {path}; expected {rank} axes"
            )
        return array.shape

    width, colours, height, patch = shape("patch_embed_proj/kernel", 4)
    if colours != 3 or height != patch:
        raise CheckpointError(
            f"{where} reads patches of {height} x {patch} pixels and {colours} channels; expected "
            "square patches of 3 channels"
        )
    heads = tuple(shape(f"stage{s}_block0/bias_table", 2)[1] for s in range(len(family.depths)))
    for stage, count in enumerate(heads):
        if width * 2**stage % count:
            raise CheckpointError(
                f"{where} has {count} heads for {width * 2**stage} channels in stage {stage}; "
                "expected a divisor"
            )
    blocks = [path for path in by_path if path.endswith("/bias_table")]
    windows = [window_of(by_path[path][0]) for path in blocks if shape(path, 2)]
    return Swin(
        embed_dim=width,
        depths=family.depths,
        heads=heads,
        window=max(windows),
        patch_size=patch,
        mlp_ratio=shape("stage0_block0/fc1/kernel", 2)[0] / width,
    )


def check_geometry(found: Swin, expected: Swin, where: str) -> None:
    """Refuses a network of another geometry than the one expected; the window may differ.

    Raises:
      CheckpointError: names what differs, and the preset that the network is, if it is one.
    """
    wrong = [key for key in GEOMETRY if getattr(found, key) != getattr(expected, key)]
    if wrong:
        fits = preset_of(found)
        hint = f" (it is {fits!r})" if fits else ""
        name = preset_of(expected)
        raise CheckpointError(
            f"{where} is a Swin of {in_words(found, wrong)}{hint}, expected "
            f"{in_words(expected, wrong)}{f' as {name!r} has' if name else ''}"
        )


def in_words(swin: Swin, keys: Iterable[str] = GEOMETRY) -> str:
    """``"embed_dim 96, depths (2, 2, 6, 2)"``."""
    return ", ".join(f"{key} {getattr(swin, key)}" for key in keys)


def preset_of(swin: Swin) -> str | None:
    """The name of the preset with the geometry of ``swin``, whatever its window; None without."""
    for name, fields in PRESETS.items():
        preset = Swin(**fields)
        if all(getattr(preset, key) == getattr(swin, key) for key in GEOMETRY):
            return name
    return None


@functools.cache
def parameter_shapes(swin: Swin) -> Shapes:
    """Path -> shape of every parameter; nothing is computed."""
    image = jnp.zeros((1, 32, 32, 3))
    made = jax.eval_shape(lambda: swin.init(jax.random.key(0), image))
    return {path: leaf.shape for path, leaf in trees.flatten_paths(made["params"]).items()}

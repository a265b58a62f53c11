"""Many scenes at once: a loop in NumPy, or one compiled program in JAX."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sinewich_jax.data.scenes.render import render
from sinewich_jax.data.scenes.sampling import sample_scene
from sinewich_jax.data.scenes.types import Scene
from sinewich_jax.errors import DataError

Progress = Callable[[int, int], None]


def stack_scenes(scenes: Sequence[Scene]) -> Scene:
    """One scene whose leaves have a leading batch axis, for `render_batch`."""
    import jax

    return jax.tree.map(lambda *leaves: np.stack(leaves), *scenes)


@functools.cache
def _compiled(height: int, width: int, image_only: bool) -> Callable[[Scene], dict[str, Any]]:
    import jax
    import jax.numpy as jnp

    one = functools.partial(render, height=height, width=width, xp=jnp, image_only=image_only)
    return jax.jit(jax.vmap(one))


def render_batch(
    scenes: Scene, height: int, width: int, image_only: bool = False
) -> dict[str, Any]:
    """Renders stacked scenes on the device, in one compiled program.

    Args:
      scenes: from `stack_scenes`, batch axis B.
      height: pixels.
      width: pixels.
      image_only: leave the label maps out.

    Returns:
      The same as `render.render` with jax arrays and a leading axis B.
    """
    return _compiled(height, width, image_only)(scenes)


def render_many(
    seeds: Sequence[int],
    height: int,
    width: int,
    backend: str = "numpy",
    image_only: bool = False,
    progress: Progress | None = None,
    chunk: int = 64,
) -> dict[str, Any]:
    """Samples and renders the scenes of many seeds into stacked NumPy arrays.

    Args:
      seeds: one integer a scene; at least one.
      height: pixels.
      width: pixels.
      backend: ``"numpy"``, bit-stable and on a CPU the faster one (it skips the padding), or
        ``"jax"``, for accelerators, equal up to grazing rays.
      image_only: leave the label maps out.
      progress: called with (scenes done, scenes in all) now and then.
      chunk: scenes a compiled call and a progress report.

    Returns:
      The same as `render.render` with a leading axis len(seeds).

    Raises:
      DataError: on an unknown backend or no seeds.
    """
    if backend not in ("numpy", "jax"):
        raise DataError(f"scene backend {backend!r} is unknown: use 'numpy' or 'jax'")
    if len(seeds) == 0:
        raise DataError("no scenes were asked for: give at least one seed")
    out: dict[str, Any] | None = None
    for start in range(0, len(seeds), chunk):
        part = [int(seed) for seed in seeds[start : start + chunk]]
        scenes = [sample_scene(seed) for seed in part]
        if backend == "jax":
            padded = scenes + [scenes[-1]] * (min(chunk, len(seeds)) - len(part))
            made = render_batch(stack_scenes(padded), height, width, image_only)
        else:
            made = _stack([render(scene, height, width, np, image_only) for scene in scenes])
        out = _allocate(made, len(seeds)) if out is None else out
        _fill(out, made, start, len(part))
        if progress is not None:
            progress(start + len(part), len(seeds))
    return out


def _stack(trees: list[dict]) -> dict:
    first = trees[0]
    return {
        key: _stack([tree[key] for tree in trees])
        if isinstance(first[key], dict)
        else np.stack([tree[key] for tree in trees])
        for key in first
    }


def _allocate(tree: dict, count: int) -> dict:
    return {
        key: _allocate(leaf, count)
        if isinstance(leaf, dict)
        else np.empty((count, *leaf.shape[1:]), leaf.dtype)
        for key, leaf in tree.items()
    }


def _fill(out: dict, tree: dict, start: int, count: int) -> None:
    for key, leaf in tree.items():
        if isinstance(leaf, dict):
            _fill(out[key], leaf, start, count)
        else:
            out[key][start : start + count] = np.asarray(leaf[:count])

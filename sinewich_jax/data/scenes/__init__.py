"""Procedural scenes: the default data set, rendered on the spot, exact by construction.

    scene = sample_scene(seed=0)
    example = render(scene, height=64, width=64)             # NumPy, bit-stable
    images = render_many(range(1000), 64, 64, image_only=True)["image"]

`builder` prepares and opens them as a data set on disk.
"""

from __future__ import annotations

from sinewich_jax.data.scenes.batch import render_batch, render_many, stack_scenes
from sinewich_jax.data.scenes.render import TASKS, render
from sinewich_jax.data.scenes.sampling import SPLIT_OFFSETS, sample_scene, step_aside
from sinewich_jax.data.scenes.types import PART_CLASSES, SEMSEG_CLASSES, Scene

__all__ = [
    "PART_CLASSES",
    "SEMSEG_CLASSES",
    "SPLIT_OFFSETS",
    "TASKS",
    "Scene",
    "render",
    "render_batch",
    "render_many",
    "sample_scene",
    "stack_scenes",
    "step_aside",
]

"""The pictures that pretraining looks at: rendered once, kept in the work directory, no labels."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from sinewich_jax.storage import atomic
from sinewich_jax.train import progress


def pictures(workdir: Path, count: int, height: int, width: int) -> np.ndarray:
    """The first pictures of the pretraining split, (count, H, W, 3) uint8."""
    from sinewich_jax.data import scenes

    path = workdir / "pictures.npy"
    shape = (count, height, width, 3)
    if path.exists():
        known = np.load(path, mmap_mode="r", allow_pickle=False)
        if known.shape == shape:
            return known
    first = scenes.SPLIT_OFFSETS["pretrain"]
    seeds = range(first, first + count)
    with progress.progress_bar("rendering", count) as advance:
        rendered = scenes.render_many(
            seeds, height, width, backend="numpy", image_only=True, progress=advance
        )["image"]
    with atomic.atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.save(file, rendered)
    return rendered


class Asides(NamedTuple):
    """What the camera saw after a step, for the training pictures.

    Attributes:
      moved: (images, H, W, 3) uint8.
      step: (images, 3) float32, metres along the first camera's axes.
      focal: (images,) float32, image widths.
    """

    moved: np.ndarray
    step: np.ndarray
    focal: np.ndarray

    def take(self, chosen: np.ndarray, flip: np.ndarray) -> Asides:
        """Some of them, mirrored where ``flip``: a mirror turns a step right into one left."""
        moved = self.moved[chosen]
        moved = np.where(flip[:, None, None, None], moved[:, :, ::-1], moved)
        mirror = np.where(flip[:, None], np.float32([-1, 1, 1]), np.float32(1))
        return Asides(moved, self.step[chosen] * mirror, self.focal[chosen])


def asides(workdir: Path, count: int, height: int, width: int, reach: float, seed: int) -> Asides:
    """The second pictures of the first scenes of the pretraining split.

    Args:
      workdir: keeps them.
      count: number of scenes.
      height: pixels.
      width: pixels.
      reach: largest step of the camera along each axis, metres.
      seed: of the steps.
    """
    from sinewich_jax.data import scenes

    random = np.random.Generator(np.random.Philox(key=[seed, 2**32]))
    step = random.uniform(-reach, reach, (count, 3)).astype(np.float32)
    first = scenes.SPLIT_OFFSETS["pretrain"]
    path = workdir / f"moved_{reach:g}_{seed}.npy"
    shape = (count, height, width, 3)
    focal = np.zeros(count, np.float32)
    moved = np.load(path, mmap_mode="r", allow_pickle=False) if path.exists() else None
    known = moved is not None and moved.shape == shape
    if not known:
        moved = np.zeros(shape, np.uint8)
    with progress.progress_bar("steps aside", count) as advance:
        for i in range(count):
            scene = scenes.sample_scene(first + i)
            focal[i] = scene.camera.focal
            if not known:
                aside = scenes.step_aside(scene, step[i])
                moved[i] = scenes.render(aside, height, width, image_only=True)["image"]
            if i % 64 == 63:
                advance(i + 1, count)
    if not known:
        with atomic.atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.save(file, moved)
    return Asides(moved, step, focal)

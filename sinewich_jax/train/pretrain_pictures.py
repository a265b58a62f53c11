"""The pictures that pretraining looks at: rendered once, kept in the work directory, no labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sinewich_jax.storage import atomic
from sinewich_jax.train import progress

if TYPE_CHECKING:
    from sinewich_jax.train.pretrain import PretrainConfig


def pictures(config: PretrainConfig, workdir: Path) -> np.ndarray:
    """All pictures, (images + held_out, H, W, 3) uint8, rendered once and kept in the workdir."""
    from sinewich_jax.data import scenes

    path = workdir / "pictures.npy"
    count = config.images + config.held_out
    shape = (count, *config.image_size, 3)
    if path.exists():
        known = np.load(path, mmap_mode="r", allow_pickle=False)
        if known.shape == shape:
            return known
    first = scenes.SPLIT_OFFSETS["pretrain"]
    seeds = range(first, first + count)
    with progress.progress_bar("rendering", count) as advance:
        rendered = scenes.render_many(
            seeds, *config.image_size, backend="numpy", image_only=True, progress=advance
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


def asides(config: PretrainConfig, workdir: Path) -> Asides:
    """The second pictures of the training scenes, rendered once and kept in the workdir."""
    from sinewich_jax.data import scenes

    random = np.random.Generator(np.random.Philox(key=[config.seed, 2**32]))
    step = random.uniform(-config.reach, config.reach, (config.images, 3)).astype(np.float32)
    first = scenes.SPLIT_OFFSETS["pretrain"]
    path = workdir / f"moved_{config.reach:g}_{config.seed}.npy"
    shape = (config.images, *config.image_size, 3)
    focal = np.zeros(config.images, np.float32)
    moved = np.load(path, mmap_mode="r", allow_pickle=False) if path.exists() else None
    known = moved is not None and moved.shape == shape
    if not known:
        moved = np.zeros(shape, np.uint8)
    with progress.progress_bar("steps aside", config.images) as advance:
        for i in range(config.images):
            scene = scenes.sample_scene(first + i)
            focal[i] = scene.camera.focal
            if not known:
                aside = scenes.step_aside(scene, step[i])
                moved[i] = scenes.render(aside, *config.image_size, image_only=True)["image"]
            if i % 64 == 63:
                advance(i + 1, config.images)
    if not known:
        with atomic.atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.save(file, moved)
    return Asides(moved, step, focal)

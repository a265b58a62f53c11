"""What a router looks at: pictures as the frozen base sees them, before any task is switched on.

A feature is the mean over the map of the base's last stage. It comes from the base and not from a
task, because whose sample it is has yet to be found out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinewich_jax.config import Config
from sinewich_jax.core.trees import unflatten_paths
from sinewich_jax.data.files import read_image
from sinewich_jax.data.resize import resize_image
from sinewich_jax.errors import CheckpointError
from sinewich_jax.nn.sinewich import is_adapter
from sinewich_jax.storage.leaves import BACKBONE, CHECKPOINTS, LeafSource

SIDE = 224
"""Pixels of a picture where nothing says at which size the base looked at them."""
_BATCH = 8


class Features:
    """The frozen base as a function from pictures to features.

    Attributes:
      size: (height, width) to which pictures are resized.
      extractor: all of it in words; a router may only be asked by the extractor that it was made
        with.
    """

    def __init__(self, base: LeafSource, path: Path, side: int | None = None) -> None:
        """Builds the network and reads its parameters.

        Args:
          base: the open base of a bank.
          path: where it was opened; a run says which network it is, else the shapes do.
          side: height and width; None takes those of the run's training images, or :data:`SIDE`.

        Raises:
          CheckpointError: weights of which no backbone of this library is known.
          ConfigError: a run on texts.
        """
        named, backbone, size = _network(base, path)
        self.size = (side, side) if side else size or (SIDE, SIDE)
        height, width = self.size
        self.extractor = f"{named}, mean of the last stage at {height} x {width} pixels"
        self._backbone = backbone
        self._params = {
            "params": unflatten_paths(
                {
                    name.removeprefix(BACKBONE): jnp.asarray(base.read(name), jnp.float32)
                    for name in base.names
                    if _is_backbone(name, base) and not is_adapter(_full(name))
                }
            )
        }

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features (b, e) float32 of pictures uint8 (b, H, W, 3) of :attr:`size`."""
        rows = []
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            # Batches of one size compile once.
            full = np.zeros((_BATCH, *batch.shape[1:]), np.uint8)
            full[: len(batch)] = batch
            rows.append(np.asarray(self._forward(self._params, full))[: len(batch)])
        return np.concatenate(rows)

    def fitted(self, image: np.ndarray) -> np.ndarray:
        """A picture uint8 (H, W, 3) of any size at :attr:`size`."""
        smaller = any(new < old for new, old in zip(self.size, image.shape[:2], strict=True))
        return np.asarray(resize_image(image, self.size, "cubic", antialias=smaller))

    @functools.cached_property
    def _forward(self) -> Any:
        kind = type(self._backbone)

        @jax.jit
        def forward(params: Any, images: jax.Array) -> jax.Array:
            mean, std = jnp.asarray(kind.image_mean), jnp.asarray(kind.image_std)
            seen = (images.astype(jnp.float32) / 255.0 - mean) / std
            last = self._backbone.apply(params, seen)[-1]
            return last[0].astype(jnp.float32).mean(axis=(1, 2))

        return forward


def pictures(path: Path, features: Features, part: str) -> Iterator[tuple[str, np.ndarray]]:
    """Pictures and what they are called, at the size of the features.

    Args:
      path: an image, a folder of images, or a run, which stands for the examples of its data.
      features: whose size they take.
      part: which examples of a run, ``"train"`` or ``"eval"``.

    Raises:
      DataError: nothing there, or a file that is no image.
      ConfigError: a run on texts.
    """
    if (path / CHECKPOINTS).is_dir():
        experiment, _ = _run(path)
        source = experiment.train_source if part == "train" else experiment.eval_source
        for index in range(len(source)):
            yield f"{path}[{index}]", features.fitted(source[index]["image"])
        return
    from sinewich_jax.train.predict_verb import find_images

    for file in find_images([path]).values():
        yield str(file), features.fitted(read_image(file))


def batches(images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Pictures in batches of a few."""
    held: list[np.ndarray] = []
    for image in images:
        held.append(image)
        if len(held) == _BATCH:
            yield np.stack(held)
            held = []
    if held:
        yield np.stack(held)


def _network(base: LeafSource, path: Path) -> tuple[str, Any, tuple[int, int] | None]:
    """The name of the plain network, the network, and the size of its training images if known."""
    if (path / CHECKPOINTS).is_dir():
        from sinewich_jax.train import networks

        _, config = _run(path)
        plain = dataclasses.replace(config, method="decoder_only", tokens="condition")
        return config.backbone, networks.model(plain, ()).backbone, config.image_size
    from sinewich_jax.convert.geometry import parameter_shapes
    from sinewich_jax.nn.swin import PRESETS, Swin

    shapes = {name: spec.shape for name, spec in base.specs.items()}
    for name, fields in PRESETS.items():
        if parameter_shapes(Swin(**fields)) == shapes:
            return name, Swin(**fields), None
    raise CheckpointError(
        f"{path} holds the weights of no backbone that is known here ({', '.join(PRESETS)}), so "
        "that it makes no features; name a run that started from it as --base, or build the query "
        "set in Python (docs/switches.md)"
    )


def _run(path: Path) -> tuple[Any, Config]:
    """The experiment of a run on images, and its config."""
    from sinewich_jax.train import build, trained, workdir

    config = workdir.read_config(path)
    experiment = build.experiment(build.for_shapes(config))
    trained.check_images(experiment, "a router of pictures")
    return experiment, config


def _full(name: str) -> str:
    return name if name.startswith(BACKBONE) else f"{BACKBONE}{name}"


def _is_backbone(name: str, base: LeafSource) -> bool:
    """Whether a leaf is the backbone's: all of a bare backbone are."""
    prefixed = any(leaf.startswith(BACKBONE) for leaf in base.names)
    return not prefixed or name.startswith(BACKBONE)

"""A trained run looks at photographs of its user: any size, at their own aspect ratio."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sinewich_jax import storage, tasks
from sinewich_jax.data.resize import resize_image
from sinewich_jax.nn.resize import resize_bilinear
from sinewich_jax.train import trained


class Predictor:
    """The model of a run, ready to look at images one by one.

    Args:
      workdir: the work directory of a run that has saved at least once.
      names: tasks to predict; None takes all.
      side: pixels of the shorter side at which the network looks at an image. None takes the
        shorter side of the images that it was trained on, where these had one size, else the
        image's own. A network knows things by the size at which it has seen them.
      experiment: the model and its tasks; None builds what the run's config names.

    Attributes:
      tasks: what is predicted.
      side: as given or found.
      step: optimizer steps behind the weights.

    Raises:
      ConfigError: a task that the run does not have, or a run on texts.
      CheckpointError: no run, or no whole checkpoint, in ``workdir``.
    """

    def __init__(
        self,
        workdir: str | Path,
        names: Sequence[str] | None = None,
        side: int | None = None,
        experiment: Any = None,
    ) -> None:
        made = trained.read_trained(workdir, experiment)
        trained.check_images(made.experiment, "a predictor of images")
        self.tasks: tuple[tasks.DenseTask, ...] = trained.tasks_of(made.experiment, names)
        size = made.config.image_size
        self.side = side if side is not None else min(size) if size else None
        self.step = made.step
        self._made = made

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Predictions at the size of the image.

        Args:
          image: uint8 [H, W, 3].

        Returns:
          ``{task: as its labels are, [H, W] or [H, W, 3]}``: class numbers, probabilities, metres,
          unit vectors.
        """
        height, width = image.shape[:2]
        scale = 1.0 if self.side is None else self.side / min(height, width)
        size = max(1, round(height * scale)), max(1, round(width * scale))
        # Shrinking without a wider kernel would alias.
        seen = resize_image(image, size, "cubic", antialias=scale < 1)
        logits = self._forward(self._made.variables, seen[None])
        return jax.device_get(self._finish((height, width), logits))

    @functools.cached_property
    def _forward(self) -> Any:
        experiment = self._made.experiment

        @jax.jit
        def forward(variables: Mapping[str, Any], image: jax.Array) -> dict[str, jax.Array]:
            outputs = experiment.model.apply(variables, experiment.normalise(image))
            return {task.name: outputs[task.name][0] for task in self.tasks}

        return forward

    @functools.cached_property
    def _finish(self) -> Any:
        def finish(size: tuple[int, int], logits: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            # Logits are resized, not classes: boundaries then lie between pixels.
            return {
                task.name: task.predict(resize_bilinear(logits[task.name], *size))
                for task in self.tasks
            }

        return jax.jit(finish, static_argnums=0)


def save_prediction(folder: Path, task: tasks.Task, name: str, values: np.ndarray) -> Path:
    """Writes one prediction in the form in which a folder of labels is read (docs/data_folder.md).

    Args:
      folder: gets ``<task>/<name>``.
      task: the task.
      name: file name without ending.
      values: what :class:`Predictor` returned for the task.

    Returns:
      The file: classes as an 8-bit PNG; depth in metres and normals as float32 ``.npy``;
      probabilities as an 8-bit PNG, 255 being one.
    """
    place = folder / task.name
    place.mkdir(parents=True, exist_ok=True)
    if np.issubdtype(values.dtype, np.integer):
        return _save_png(place / f"{name}.png", values.astype(np.uint8))
    if task.label_tail or task.unit:
        path = place / f"{name}.npy"
        # Through a file object, because np.save would append its own ending to a name.
        with storage.atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.save(file, values.astype(np.float32))
        return path
    return _save_png(place / f"{name}.png", np.rint(255 * values).astype(np.uint8))


def _save_png(path: Path, pixels: np.ndarray) -> Path:
    from PIL import Image

    with storage.atomic_write(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
    return path

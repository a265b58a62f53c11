"""Watching a run: do the frequencies switch anything, and are the numbers still numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sinewich_jax import storage
from sinewich_jax.errors import TrainingError

COLLAPSED_COSINE = 0.95
COLLAPSED_MODULATION = 0.5


def flatten_diagnostics(diagnostics: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, float]:
    """A model's diagnostics as scalars for the metric writers.

    Args:
      diagnostics: ``{"omega": {name: (T,)}, "modulation_index": {layer: (T,)}, "update_cosine":
        {layer: ()}, "pairwise_cosine": {layer: (T, T)}}``; each may be empty or left out.
      tasks: the T task names.

    Returns:
      ``omega/<name>/<task>``, ``modulation_index/<layer>/<task>``, ``update_cosine/<layer>`` and
      ``kernel_cosine/<task>/<other task>`` (mean over layers), with ``update_cosine`` (mean over
      layers) and ``modulation_index`` (largest) where known.
    """
    scalars: dict[str, float] = {}
    for kind in ("omega", "modulation_index"):
        for name, values in diagnostics.get(kind, {}).items():
            numbers = np.asarray(values, np.float64)
            scalars.update(
                {f"{kind}/{name}/{t}": float(v) for t, v in zip(tasks, numbers, strict=True)}
            )
    pairwise = diagnostics.get("pairwise_cosine", {})
    if pairwise:
        mean = np.mean([np.asarray(value, np.float64) for value in pairwise.values()], axis=0)
        for i, first in enumerate(tasks):
            for j, second in enumerate(tasks[i + 1 :], start=i + 1):
                scalars[f"kernel_cosine/{first}/{second}"] = float(mean[i, j])
    for name, value in diagnostics.get("update_cosine", {}).items():
        scalars[f"update_cosine/{name}"] = float(value)
    cosines = _finite(diagnostics.get("update_cosine", {}))
    if cosines.size:
        scalars["update_cosine"] = float(cosines.mean())
    modulations = _finite(diagnostics.get("modulation_index", {}))
    if modulations.size:
        scalars["modulation_index"] = float(modulations.max())
    return scalars


def collapse_warning(scalars: Mapping[str, float]) -> str | None:
    """Says why the tasks no longer differ by more than a scalar, or None while they do.

    The bounds are measured ones: healthy runs stay at or below a mean update cosine of 0.9, and a
    modulation index below 0.5 makes the sine linear, so that every task shares one direction.

    Args:
      scalars: what :func:`flatten_diagnostics` returns.  A method without frequencies reports no
        modulation index and is never warned about.
    """
    modulation = scalars.get("modulation_index")
    if modulation is None:
        return None
    cosine = scalars.get("update_cosine", math.nan)
    reasons = []
    if cosine > COLLAPSED_COSINE:
        reasons.append(f"their mean update cosine is {cosine:.3f} (above {COLLAPSED_COSINE})")
    if modulation < COLLAPSED_MODULATION:
        reasons.append(
            f"the largest modulation index is {modulation:.3f} (below {COLLAPSED_MODULATION})"
        )
    if not reasons:
        return None
    return (
        f"the task updates have collapsed to a scalar gain: {' and '.join(reasons)}; frequency "
        "switching does nothing in this state; try start='anchored', a larger modulation or "
        "task_lr_mult"
    )


class NanGuard:
    """Finds the first step whose loss or gradient is not finite, without waiting at every step.

    Metrics stay on the devices until :meth:`check`, which is called at each log line and before
    anything is saved: a checkpoint never holds a state that a NaN has reached.

    Args:
      workdir: gets ``nan_step_<step>.json`` with all that is known about the step.
      locate: example of the training set that stands at a position of the stream.
      main: whether this process writes that file.
    """

    def __init__(
        self, workdir: Path, locate: Callable[[int], int | None], main: bool = True
    ) -> None:
        self._workdir, self._locate, self._main = workdir, locate, main
        self._pending: list[tuple[int, Any, np.ndarray]] = []
        self._last: dict[str, float] = {}

    def add(self, step: int, metrics: Mapping[str, jax.Array], index: np.ndarray) -> None:
        """Remembers a step.

        Args:
          step: its number, from 1.
          metrics: ``loss``, ``loss/<task>`` and ``grad_norm``, perhaps still being computed.
          index: int [b], stream positions of its batch (those of this process).
        """
        self._pending.append((step, metrics, index))

    def check(self) -> dict[str, float]:
        """The metrics of the newest step, after a look at all since the last check.

        Raises:
          TrainingError: names the first bad step, its tasks and its batch.
        """
        pending, self._pending = self._pending, []
        for step, metrics, index in pending:
            self._last = {key: float(value) for key, value in jax.device_get(metrics).items()}
            bad = [key for key, value in self._last.items() if not math.isfinite(value)]
            if bad:
                raise self._report(step, self._last, bad, index)
        return self._last

    def _report(
        self, step: int, metrics: dict[str, float], bad: list[str], index: np.ndarray
    ) -> TrainingError:
        tasks = [key.removeprefix("loss/") for key in bad if key.startswith("loss/")]
        values = [f"{task} ({metrics['loss/' + task]})" for task in tasks]
        other = "loss" if "loss" in bad else "gradient norm"
        what = f"the loss of {', '.join(values)}" if values else f"the {other}"
        examples = [self._locate(int(position)) for position in index]
        path = self._workdir / f"nan_step_{step:08d}.json"
        if self._main:
            storage.write_json(
                path,
                {
                    "step": step,
                    "tasks": tasks,
                    "metrics": {key: repr(value) for key, value in metrics.items()},
                    "stream_positions": [int(position) for position in index],
                    "train_examples": examples,
                },
            )
        return TrainingError(
            f"{what} is not finite at step {step}, in the batch of training examples "
            f"{', '.join(map(str, examples))}, and no state that it has reached was saved; look at "
            f"these examples (see {path}), or lower learning_rate or clip_norm and start in "
            "another work directory"
        )


def _finite(values: Mapping[str, Any]) -> np.ndarray:
    if not values:
        return np.zeros(0)
    numbers = np.concatenate([np.ravel(np.asarray(v, np.float64)) for v in values.values()])
    return numbers[np.isfinite(numbers)]

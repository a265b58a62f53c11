"""What a fusion attends to: the mean over the tokens of the evaluation texts, by layer."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinewich_jax import parallel, storage
from sinewich_jax.errors import ConfigError
from sinewich_jax.train import state as states
from sinewich_jax.train import workdir as workdirs

FILE = "attention.json"


def mean_attention(evaluator: Any, state: Any, constants: Any) -> dict[str, Any]:
    """The attention over adapters, averaged over the tokens of all evaluation texts.

    Args:
      evaluator: of an experiment with a fusion.
      state: the trained state.
      constants: the frozen tree.

    Returns:
      ``{"target": task, "adapters": [N names], "places": {"layer0_output": [N shares], ...}}``;
      shares of a place sum to 1.
    """
    experiment, mesh = evaluator.setup.experiment, evaluator.setup.mesh
    model, task = experiment.model, experiment.tasks[0].name

    @functools.partial(jax.jit, out_shardings=parallel.replicated(mesh))
    def sums(params: Any, constants: Any, batch: Any) -> Any:
        variables = states.join_variables(params, state.model_state, constants)
        found = model.apply(variables, batch["text"], method="encode").attention
        counted = batch["text"]["mask"] & batch["valid"][task][:, None, None]
        return {place: jnp.sum(p * counted, axis=(1, 2, 3)) for place, p in found.items()}

    total: dict[str, Any] = {}
    for batch in evaluator.batches():
        for place, values in jax.device_get(sums(state.params, constants, batch)).items():
            total[place] = total.get(place, 0.0) + np.asarray(values, np.float64)
    places = {place: (values / values.sum()).tolist() for place, values in total.items()}
    return {"target": task, "adapters": list(model.names), "places": places}


def leave(workdir: Path, evaluator: Any, state: Any, constants: Any) -> None:
    """Writes :data:`FILE` and a picture of it."""
    found = mean_attention(evaluator, state, constants)
    if parallel.is_main_process():
        from sinewich_jax import report  # Pillow, which nothing before needs

        storage.write_json(workdir / FILE, found)
        report.write_attention(workdir / workdirs.DIAGNOSTICS / "attention.png", found)


def most_attended(found: Mapping[str, Any], keep: int) -> tuple[str, ...]:
    """The adapters to which a fusion attends most, over all its places, the most first.

    Args:
      found: of :func:`mean_attention`, or the content of :data:`FILE`.
      keep: how many.

    Raises:
      ConfigError: not from 1 to the number of adapters.
    """
    names = found["adapters"]
    if not 1 <= keep <= len(names):
        raise ConfigError(f"keep is {keep}, expected from 1 to the {len(names)} adapters")
    shares = np.sum(list(found["places"].values()), axis=0)
    return tuple(names[i] for i in np.argsort(-shares, kind="stable")[:keep])

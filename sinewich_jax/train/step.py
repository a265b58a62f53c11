"""One training step and one evaluation step, jitted with an explicit place for every array."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sinewich_jax import parallel
from sinewich_jax.core import random
from sinewich_jax.train import state as states

Batch = dict[str, Any]
TrainStep = Callable[
    [states.TrainState, dict[str, Any], Batch], tuple[states.TrainState, dict[str, jax.Array]]
]


def task_losses(tasks: Sequence[Any], logits: dict[str, jax.Array], batch: Batch) -> dict[str, Any]:
    """Each task's own loss, unweighted: ``{task: float32 scalar}``."""
    return {
        task.name: task.loss(
            logits[task.name], batch["labels"][task.name], batch["valid"][task.name]
        )
        for task in tasks
    }


def make_train_step(
    experiment: Any,
    tx: optax.GradientTransformation,
    placed: states.Placed,
    mesh: Mesh,
    seed: int,
) -> TrainStep:
    """Builds the step: ``loss = sum_t weight_t * loss_t``, gradients of the trainable tree alone.

    Args:
      experiment: its ``model``, ``tasks`` and ``normalise`` are used.
      tx: the optimizer.
      placed: gives the shardings of state and constants.
      mesh: the mesh of the batch.
      seed: seeds dropout and drop path; keys belong to samples, so sharding changes no number.

    Returns:
      ``step(state, constants, batch) -> (state, metrics)``.  The old state is donated.  metrics are
      replicated float32 scalars: ``loss``, ``loss/<task>`` (unweighted), ``grad_norm``.
    """
    tasks, model = experiment.tasks, experiment.model

    def loss_fn(params: Any, state: states.TrainState, constants: Any, batch: Batch) -> Any:
        variables = states.join_variables(params, state.model_state, constants)
        logits, mutated = model.apply(
            variables,
            experiment.normalise(batch["image"]),
            train=True,
            keys=random.sample_keys(seed, state.step, batch["index"]),
            mutable=list(states.MUTABLE),
        )
        losses = task_losses(tasks, logits, batch)
        total = sum(task.weight * losses[task.name] for task in tasks)
        return total, (losses, {**state.model_state, **mutated})

    def step(
        state: states.TrainState, constants: Any, batch: Batch
    ) -> tuple[states.TrainState, dict[str, jax.Array]]:
        (total, (losses, model_state)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, state, constants, batch
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        new = states.TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            model_state=model_state,
            weighting=state.weighting,
            opt_state=opt_state,
        )
        metrics = {
            "loss": total,
            **{f"loss/{name}": loss for name, loss in losses.items()},
            "grad_norm": optax.tree.norm(grads),
        }
        return new, metrics

    return jax.jit(
        step,
        in_shardings=(placed.shardings, placed.constant_shardings, _batch_sharding(mesh)),
        out_shardings=(placed.shardings, parallel.replicated(mesh)),
        donate_argnums=0,
    )


def make_forward(experiment: Any, placed: states.Placed, mesh: Mesh) -> Callable[..., Any]:
    """Builds ``forward(params, model_state, constants, image) -> {task: logits}`` in test mode.

    The image is uint8 [B, H, W, 3]; logits are float32 [B, H, W, C], cut along the batch.
    """

    def forward(params: Any, model_state: Any, constants: Any, image: jax.Array) -> Any:
        variables = states.join_variables(params, model_state, constants)
        return experiment.model.apply(variables, experiment.normalise(image), train=False)

    shardings = placed.shardings
    return jax.jit(
        forward,
        in_shardings=(
            shardings.params,
            shardings.model_state,
            placed.constant_shardings,
            _batch_sharding(mesh),
        ),
        out_shardings=_batch_sharding(mesh),
    )


def make_metric_step(tasks: Sequence[Any], mesh: Mesh) -> Callable[..., Any]:
    """Builds ``metric_step(logits, batch) -> {task: metric state}``.

    Apart from the forward pass, so that the model is compiled once for scores and pictures, and
    the same step scores a constant prediction.  The states are replicated and cover the whole
    global batch: every process holds the same; they merge over batches on the host.
    """
    metrics = {task.name: task.metric() for task in tasks}

    def metric_step(logits: dict[str, jax.Array], batch: Batch) -> Any:
        return {
            name: metric.update(logits[name], batch["labels"][name], batch["valid"][name])
            for name, metric in metrics.items()
        }

    return jax.jit(
        metric_step,
        in_shardings=(_batch_sharding(mesh), _batch_sharding(mesh)),
        out_shardings=parallel.replicated(mesh),
    )


def _batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec("data"))

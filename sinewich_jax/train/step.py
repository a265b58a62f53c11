"""One training step and one evaluation step, jitted with an explicit place for every array."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sinewich_jax import parallel
from sinewich_jax.core import random, surgery, trees
from sinewich_jax.core.weighting import Signals
from sinewich_jax.nn.resize import resize_in_frame
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
    """Builds the step: one update of the trainable tree from the losses of all tasks.

    A weighting of losses costs one backward pass. One of gradients costs one a task, done one after
    the other, and holds T gradients of the trainable tree; parameters of a single task
    (``experiment.own_rules``) then learn from the plain sum, which is that task's loss alone.

    Args:
      experiment: its ``model``, ``tasks``, ``weighting``, ``own_rules``, ``inputs``, ``normalise``
        and ``penalty`` are used.
      tx: the optimizer.
      placed: gives the shardings of state and constants.
      mesh: the mesh of the batch.
      seed: seeds dropout and drop path; keys belong to samples, so sharding changes no number.

    Returns:
      ``step(state, constants, batch) -> (state, metrics)``.  The old state is donated.  metrics are
      replicated float32 scalars: ``loss`` (weighted), ``loss/<task>`` (unweighted), ``grad_norm``,
      with a weighting that changes ``weight/<task>``, and ``penalty`` where there is one, which
      ``loss`` leaves out.
    """
    tasks, model = experiment.tasks, experiment.model
    weighting, own_rules = experiment.weighting, experiment.own_rules
    task_weights = jnp.asarray([task.weight for task in tasks], jnp.float32)

    def losses_of(
        params: Any, state: states.TrainState, constants: Any, batch: Batch
    ) -> tuple[jax.Array, Any]:
        variables = states.join_variables(params, state.model_state, constants)
        logits, mutated = model.apply(
            variables,
            experiment.normalise(batch[experiment.inputs]),
            train=True,
            keys=random.sample_keys(seed, state.step, batch["index"]),
            mutable=list(states.MUTABLE),
        )
        losses = task_losses(tasks, logits, batch)
        stacked = jnp.stack([losses[task.name] for task in tasks])
        return task_weights * stacked, (losses, {**state.model_state, **mutated})

    def surgical(
        backward: Callable[[jax.Array], tuple[Any]], losses: jax.Array, memory: Any, key: jax.Array
    ) -> tuple[Any, jax.Array, Any]:
        """(gradients, weights, state): the gradients of the tasks one by one, then their sum."""
        each = jax.lax.map(lambda one: backward(one)[0], jnp.eye(len(tasks)))
        parts = trees.split_tree(each, [*((rule, "own") for rule in own_rules), (".*", "shared")])
        signals = Signals(losses, surgery.gram(parts["shared"]), key)
        weights, memory = weighting.weigh(memory, signals)
        shared = surgery.combine(weights, parts["shared"])
        own = jax.tree.map(lambda leaf: leaf.sum(axis=0), parts.get("own", {}))
        return trees.merge_trees(shared, own), weights, memory

    def step(
        state: states.TrainState, constants: Any, batch: Batch
    ) -> tuple[states.TrainState, dict[str, jax.Array]]:
        rest = (state, constants, batch)
        losses, backward, (plain, model_state) = jax.vjp(
            lambda params: losses_of(params, *rest), state.params, has_aux=True
        )
        key = random.step_key(seed, state.step)
        if weighting.needs_gram:
            grads, weights, memory = surgical(backward, losses, state.weighting, key)
        else:
            weights, memory = weighting.weigh(state.weighting, Signals(losses, None, key))
            (grads,) = backward(weights)
        penalty = {}
        if experiment.penalty is not None:
            penalty["penalty"], more = jax.value_and_grad(experiment.penalty)(state.params)
            grads = jax.tree.map(jnp.add, grads, more)
        # What else reads the gradients must not change how XLA rounds them.
        grads = jax.lax.optimization_barrier(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if weighting.observe is not None:
            memory = weighting.observe(memory, losses, losses_of(params, *rest)[0])
        new = states.TrainState(
            step=state.step + 1,
            params=params,
            model_state=model_state,
            weighting=memory,
            opt_state=opt_state,
        )
        metrics = {
            "loss": losses @ weights,
            **{f"loss/{name}": loss for name, loss in plain.items()},
            **penalty,
            "grad_norm": optax.tree.norm(grads),
        }
        if weighting.changes:
            metrics |= {f"weight/{task.name}": weights[i] for i, task in enumerate(tasks)}
        return new, metrics

    return jax.jit(
        step,
        in_shardings=(placed.shardings, placed.constant_shardings, _batch_sharding(mesh)),
        out_shardings=(placed.shardings, parallel.replicated(mesh)),
        donate_argnums=0,
    )


def make_forward(experiment: Any, placed: states.Placed, mesh: Mesh) -> Callable[..., Any]:
    """Builds ``forward(params, model_state, constants, inputs) -> {task: logits}`` in test mode.

    The inputs are what a batch holds for the model, ``batch[experiment.inputs]``; logits are
    float32, cut along the batch.
    """

    def forward(params: Any, model_state: Any, constants: Any, inputs: Any) -> Any:
        variables = states.join_variables(params, model_state, constants)
        return experiment.model.apply(variables, experiment.normalise(inputs), train=False)

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


def at_label_size(logits: Mapping[str, jax.Array], batch: Batch) -> Mapping[str, jax.Array]:
    """Logits as labels are, {task: (B, H, W, C)}: resized where labels have sizes of their own."""
    if "size" not in batch:
        return logits
    return {
        name: resize_in_frame(values, batch["size"], batch["valid"][name].shape[1:])
        for name, values in logits.items()
    }


def make_metric_step(tasks: Sequence[Any], mesh: Mesh) -> Callable[..., Any]:
    """Builds ``metric_step(logits, batch) -> {task: metric state}``.

    Apart from the forward pass, so that the model is compiled once for scores and pictures, and
    the same step scores a constant prediction.  The states are replicated and cover the whole
    global batch: every process holds the same; they merge over batches on the host.

    Where labels have sizes of their own (``batch["size"]``), logits are resized to them.
    """
    metrics = {task.name: task.metric() for task in tasks}

    def metric_step(logits: dict[str, jax.Array], batch: Batch) -> Any:
        logits = at_label_size(logits, batch)
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

"""What training changes, what it does not, and where every leaf of both lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from sinewich_jax import parallel
from sinewich_jax.core import trees
from sinewich_jax.errors import ConfigError

# Variable collections that a training step rewrites without a gradient.
MUTABLE = ("batch_stats",)
_LABELS = ("trainable", "frozen")


class TrainState(NamedTuple):
    """Everything that a step rewrites.

    Attributes:
      step: int32 scalar, optimizer steps done.
      params: trainable parameters only.
      model_state: mutable collections of the model, ``{"batch_stats": ...}`` or ``{}``.
      weighting: state of the loss weighting; ``{}`` for constant weights.
      opt_state: state of the optimizer, over ``params``.
    """

    step: jax.Array
    params: Any
    model_state: Any
    weighting: Any
    opt_state: Any


class Placed(NamedTuple):
    """A state on its mesh.

    Attributes:
      state: the initial state, on the devices.
      shardings: its shardings: a ``NamedSharding`` for every leaf, scalars included.
      constants: what no step rewrites, on the devices: ``{"params": frozen, "anchor": ...}``.
      constant_shardings: the shardings of ``constants``.
    """

    state: TrainState
    shardings: TrainState
    constants: dict[str, Any]
    constant_shardings: dict[str, Any]


def split_variables(
    variables: dict[str, Any], rules: Sequence[tuple[str, str]]
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Divides a model's variables into trained, mutable and constant.

    Args:
      variables: ``{"params": ..., "batch_stats": ..., "anchor": ...}``; only params is required.
      rules: pairs of a regular expression on a parameter's path and ``"trainable"`` or
        ``"frozen"``; every parameter has to match one.

    Returns:
      ``(params, model_state, constants)``; :func:`join_variables` puts them together again.
    """
    for pattern, label in rules:
        if label not in _LABELS:
            raise ConfigError(
                f"the rule {pattern!r} gives the label {label!r}; expected one of "
                f"{' or '.join(map(repr, _LABELS))}"
            )
    parts = trees.split_tree(variables["params"], rules)
    model_state = {name: variables[name] for name in MUTABLE if name in variables}
    others = {name: variables[name] for name in variables if name not in ("params", *MUTABLE)}
    return parts.get("trainable", {}), model_state, {"params": parts.get("frozen", {}), **others}


def join_variables(params: Any, model_state: Any, constants: dict[str, Any]) -> dict[str, Any]:
    """The variables that ``model.apply`` takes: the inverse of :func:`split_variables`."""
    everything = trees.merge_trees(params, constants["params"])
    return {**constants, **model_state, "params": everything}


def place(
    variables: dict[str, Any],
    tx: optax.GradientTransformation,
    rules: Sequence[tuple[str, str]],
    sharding_rules: parallel.rules.Rules,
    mesh: Mesh,
    weighting: Any = None,
) -> Placed:
    """Makes the initial state, each leaf at its place on the mesh.

    A leaf without an explicit sharding (a counter made by a jitted ``tx.init``) would be committed
    to one device by a restore, and the next step would fail; so none is left without.

    Args:
      variables: the model's variables, NumPy or JAX arrays.
      tx: the optimizer of the trainable parameters.
      rules: path rules of :func:`split_variables`.
      sharding_rules: pairs of a regular expression and a ``PartitionSpec``; a path starts below
        its collection (``backbone/...``, not ``params/backbone/...``).
      mesh: the mesh.
      weighting: first state of the loss weighting; every device holds it.

    Returns:
      The state, the constants, and the shardings of both.
    """
    params, model_state, constants = split_variables(variables, rules)
    weighting = {} if weighting is None else weighting

    def shard(collections: dict[str, Any]) -> dict[str, Any]:
        return {
            name: parallel.sharding_tree(tree, mesh, sharding_rules)
            for name, tree in collections.items()
        }

    param_shardings = parallel.sharding_tree(params, mesh, sharding_rules)
    abstract = parallel.abstract_with_shardings(params, param_shardings)
    opt_shardings = parallel.state_shardings(jax.eval_shape(tx.init, abstract), abstract, mesh)
    shardings = TrainState(
        step=parallel.replicated(mesh),
        params=param_shardings,
        model_state=shard(model_state),
        weighting=jax.tree.map(lambda _: parallel.replicated(mesh), weighting),
        opt_state=opt_shardings,
    )
    constant_shardings = shard(constants)
    # Copies, because a donated step must not eat the arrays that the caller still holds.
    params = jax.device_put(jax.tree.map(jnp.array, params), param_shardings)
    state = TrainState(
        step=jax.device_put(jnp.zeros((), jnp.int32), shardings.step),
        params=params,
        model_state=jax.device_put(jax.tree.map(jnp.array, model_state), shardings.model_state),
        weighting=jax.device_put(jax.tree.map(jnp.array, weighting), shardings.weighting),
        opt_state=jax.jit(tx.init, out_shardings=opt_shardings)(params),
    )
    return Placed(
        state, shardings, jax.device_put(constants, constant_shardings), constant_shardings
    )


def abstract_state(placed: Placed) -> TrainState:
    """Shapes, dtypes and shardings of a state: what a restore is told to fill."""
    return parallel.abstract_with_shardings(placed.state, placed.shardings)


def counts(variables: Any, rules: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Parameter counts ``{"trainable": N, "total": M}``; shapes are enough.

    Only ``params`` count: batch statistics and constants remade from a seed are no parameters.
    """
    params, _, _ = split_variables(variables, rules)
    return {"trainable": trees.count(params), "total": trees.count(variables["params"])}

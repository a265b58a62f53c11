"""AdaMerging: coefficients of task vectors that make predictions on unlabelled data certain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from sinewich_jax.core.arrays import is_traced
from sinewich_jax.errors import ConfigError, SinewichError, did_you_mean
from sinewich_jax.merging.leaf import Leaves
from sinewich_jax.merging.registry import register
from sinewich_jax.merging.settings import finite, one_of


@register(
    "adamerging",
    source="Yang et al. 2024 (AdaMerging), arXiv 2310.02575, by task and by layer",
    needs=("data",),
    whole=True,
    streaming=False,
    cost="a forward and a backward pass of the model a step",
)
def adamerging(
    leaves: Leaves,
    *,
    predict: Callable[[Any, Any], Any],
    batches: Iterable[Any],
    granularity: Literal["task", "leaf"] = "task",
    steps: int = 1000,
    learning_rate: float = 1e-3,
    init: float = 0.3,
) -> Iterator[tuple[str, Any]]:
    """``W_0 + sum_t c_t (W_t - W_0)``, ``c_t`` of least entropy of the predictions on your data.

    Needs JAX, and a model that JAX can differentiate. Labels are not used.

    Args:
      leaves: of the model, in memory.
      predict: ``predict(params, batch)`` gives logits (..., classes), or a dictionary of them by
        the name of the expert whose head made them; their entropies are added.
      batches: read again from the start when it ends; what ``predict`` takes. A batch should have
        data of every task.
      granularity: one coefficient a task, or one a task and leaf.
      steps: of Adam; 1000 is what fusion_bench takes.
      learning_rate: of Adam; 1e-3 is fusion_bench's too.
      init: of every coefficient; 0.3 is what the authors start from.

    Raises:
      ConfigError: batches that end early, steps below 1, or logits by an unknown name.
      SinewichError: while JAX traces, or when a coefficient diverges.
    """
    one_of("granularity", granularity, ("task", "leaf"))
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ConfigError(f"steps is {steps!r}; expected a whole number from 1")
    if not callable(predict):
        raise ConfigError("predict has to be a function of parameters and a batch")
    parts = list(leaves)
    if any(is_traced(delta) for leaf in parts for delta in leaf.deltas):
        raise SinewichError("adamerging optimizes by itself and cannot be traced; call it unjitted")
    learned = _learn(leaves, parts, predict, batches, granularity, steps, learning_rate, init)
    for i, leaf in enumerate(parts):
        own = [leaf.xp.asarray(c, leaf.base.dtype) for c in learned[:, i % learned.shape[1]]]
        yield leaf.path, leaf.base + sum(c * d for c, d in zip(own, leaf.deltas, strict=True))


def _learn(
    leaves: Any,
    parts: list[Any],
    predict: Callable[[Any, Any], Any],
    batches: Iterable[Any],
    granularity: str,
    steps: int,
    learning_rate: float,
    init: float,
) -> np.ndarray:
    """The coefficients (experts, leaves or 1)."""
    import jax
    import jax.numpy as jnp
    import optax

    columns = len(parts) if granularity == "leaf" else 1
    coefficients = jnp.full((len(leaves.names), max(columns, 1)), finite("init", init), jnp.float32)
    optimizer = optax.adam(finite("learning_rate", learning_rate))
    arrays = [
        (jnp.asarray(leaf.base), tuple(jnp.asarray(delta) for delta in leaf.deltas))
        for leaf in parts
    ]

    def loss(coefficients: Any, arrays: Any, batch: Any) -> Any:
        merged = {}
        for i, (base, deltas) in enumerate(arrays):
            own = coefficients[:, i % coefficients.shape[1]]
            merged[parts[i].path] = base + sum(own[t] * delta for t, delta in enumerate(deltas))
        return _entropy(predict(leaves.rebuild(merged), batch), leaves.names)

    @jax.jit
    def step(coefficients: Any, state: Any, arrays: Any, batch: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(
            jax.grad(loss)(coefficients, arrays, batch), state, coefficients
        )
        return optax.apply_updates(coefficients, updates), state

    state = optimizer.init(coefficients)
    for batch in _endless(batches, steps):
        coefficients, state = step(coefficients, state, arrays, batch)
    found = np.asarray(coefficients)
    if not np.isfinite(found).all():
        raise SinewichError(
            "the coefficients of adamerging became NaN; lower learning_rate, or look at the logits"
        )
    return found


def _entropy(logits: Any, names: tuple[str, ...]) -> Any:
    """The mean entropy of the predictions, summed over the experts' heads."""
    import jax
    import jax.numpy as jnp

    by_name = logits if isinstance(logits, Mapping) else {names[0]: logits}
    for name in by_name:
        if name not in names:
            raise ConfigError(
                f"predict gives logits of {name!r}, which is no expert{did_you_mean(name, names)}"
            )
    total = 0.0
    for scores in by_name.values():
        log = jax.nn.log_softmax(scores.astype(jnp.float32))
        total = total - (jnp.exp(log) * log).sum(axis=-1).mean()
    return total


def _endless(batches: Iterable[Any], steps: int) -> Iterator[Any]:
    """``steps`` batches, from the start again as often as need be."""
    done = 0
    while done < steps:
        before = done
        for batch in batches:
            yield batch
            done += 1
            if done == steps:
                return
        if done == before:
            raise ConfigError(
                f"the batches ended after {done} of {steps} steps and cannot be read again; "
                "give a list, or one that goes on"
            )

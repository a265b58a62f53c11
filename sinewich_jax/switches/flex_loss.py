"""How far a student's outputs are from its teacher's: losses of distillation, without labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sinewich_jax.errors import ConfigError, did_you_mean

Array = Any
Loss = Callable[[Any, Any], Array]


def kl(student: Array, teacher: Array) -> Array:
    """``mean KL(softmax(teacher) || softmax(student))`` in nats.

    Args:
      student: logits [..., classes].
      teacher: logits of the same shape.

    Returns:
      A float32 scalar, the mean over all leading axes.
    """
    log_student = jax.nn.log_softmax(student.astype(jnp.float32))
    log_teacher = jax.nn.log_softmax(teacher.astype(jnp.float32))
    return jnp.mean(jnp.sum(jnp.exp(log_teacher) * (log_teacher - log_student), axis=-1))


def mse(student: Array, teacher: Array) -> Array:
    """``mean (student - teacher)**2`` of logits or features of any shape; a float32 scalar."""
    return jnp.mean(jnp.square(student.astype(jnp.float32) - teacher.astype(jnp.float32)))


LOSSES: dict[str, Loss] = {"kl": kl, "mse": mse}


def distillation(loss: str | Loss) -> Loss:
    """The loss of that name (or the given one), summed over the outputs where they are many.

    Args:
      loss: "kl", "mse", or a function of one student's and one teacher's output.

    Returns:
      A function of two pytrees of outputs.

    Raises:
      ConfigError: an unknown name.
    """
    if not callable(loss):
        if loss not in LOSSES:
            raise ConfigError(f"there is no distillation loss {loss!r}{did_you_mean(loss, LOSSES)}")
        loss = LOSSES[loss]

    def total(student: Any, teacher: Any) -> Array:
        return sum(jax.tree.leaves(jax.tree.map(loss, student, teacher)))

    return total

"""One model for many text tasks: an encoder, what adapts it, a clock, and a head for each task.

    logits = model.apply(variables, {"ids": ..., "mask": ..., "segments": ...})   # {task: (B, C)}

Every task has texts of its own, so that a batch holds one text of each task in every row, (B, T,
L). The encoder sees them as B * T texts of the tasks in turn; where tasks have weights of their own
(stacked adapters, the kernels of a frequency), all T are one batched product.

Parameter names: ``backbone/encoder/...`` as in :mod:`~sinewich_jax.nn.bert`,
``backbone/adapters_...`` and ``backbone/fusion_...`` as in :mod:`~sinewich_jax.nn.fusion`,
``clock/...`` and ``heads/{task}/{kernel, bias}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from sinewich_jax.nn.bert import Bert, folded_keys, mean_pool
from sinewich_jax.nn.clock import Clock, ClockSpec
from sinewich_jax.nn.fusion import AdaptedBert, Composition, Encoded, Fuse, InTurn, Plain
from sinewich_jax.nn.layers import Dense, dropout
from sinewich_jax.nn.task_kernel import switching_report

Array = jax.Array
Batch = Mapping[str, Array]
"""``ids`` int32, ``mask`` bool and ``segments`` int32, (B, T, L) each."""

# Which parameters are trained, by path; the first rule that matches the whole path wins.
ENCODER = "backbone/encoder/"
ADAPTERS = (
    ENCODER + r".*/lora_(up|down)",
    ENCODER + r".*/task/.*",
    r"clock/.*",
    r"heads/.*",
)
TRAINABLE_GROUPS: dict[str, tuple[str, ...]] = {
    "norms": (ENCODER + r".*norm/(scale|bias)",),
    "all": (ENCODER + r".*",),
}
# What one task owns, its head apart: a row for each task.
OWN_ROWS = (r"backbone/adapters_.*", r"backbone/fusion_.*", r"clock/(tokens|omega_\w+)")


def path_rules(trainable: tuple[str, ...] = (), fused: bool = False) -> tuple[tuple[str, str], ...]:
    """Rules that put every parameter into the ``trainable`` or the ``frozen`` tree.

    Args:
      trainable: names in :data:`TRAINABLE_GROUPS` that are trained too.
      fused: stage two of AdapterFusion: adapters are frozen, their fusion and the heads trained.

    Returns:
      (pattern, label) pairs for :func:`sinewich_jax.core.trees.split_tree`.
    """
    own = (r"backbone/fusion_.*",) if fused else (r"backbone/adapters_.*",)
    patterns = [*ADAPTERS, *own, *(p for group in trainable for p in TRAINABLE_GROUPS[group])]
    return (*((p, "trainable") for p in patterns), (r"backbone/.*", "frozen"))


class Heads(nn.Module):
    """A linear map from a text's vector to each task's outputs.

    Attributes:
      width: d of the encoder.
      heads: (task, outputs).
    """

    width: int
    heads: tuple[tuple[str, int], ...]

    @nn.compact
    def __call__(self, x: Array) -> dict[str, Array]:
        """Maps (B, T, d), a vector of each task, to ``{task: (B, outputs)}`` float32."""
        return {
            task: Dense(self.width, outputs, name=task)(x[:, number])
            for number, (task, outputs) in enumerate(self.heads)
        }


class TextModel(nn.Module):
    """An encoder whose weights depend on the task, and the heads of the tasks.

    Attributes:
      bert: the encoder, with the updates of its linear maps.
      heads: (task, outputs) in task order.
      clock: where frequencies come from.
      names: of the stacked adapters; () for none. Without fusion one for each task, in task order.
      hidden: m of the adapters.
      placement: one of :data:`~sinewich_jax.nn.fusion.PLACEMENTS`.
      fused: whether adapters are composed by attention; there is one task then.
      dropped: layers without adapters.
    """

    bert: Bert
    heads: tuple[tuple[str, int], ...]
    clock: ClockSpec
    names: tuple[str, ...] = ()
    hidden: int = 48
    placement: str = "pfeiffer"
    fused: bool = False
    dropped: tuple[int, ...] = ()

    def setup(self) -> None:
        """Declares clock and heads beside the adapted encoder, as far as they are read."""
        self.backbone = AdaptedBert(
            self.bert,
            self.names,
            self.hidden,
            self.placement,
            self.fused,
            self.dropped,
            name="backbone",
        )
        self.task_heads = Heads(self.bert.width, self.heads, name="heads")
        if self.switching:
            self.clock_net = Clock(self.clock, layers=self.switching, name="clock")

    @property
    def switching(self) -> tuple[str, ...]:
        """The linear maps that read frequencies."""
        return self.bert.task_layers

    @property
    def default(self) -> Composition:
        """What the adapters do unless told otherwise."""
        if not self.names:
            return Plain()
        return Fuse() if self.fused else InTurn()

    def frequencies(self) -> dict[str, Array]:
        """The learned frequencies: ``{layer: (T,)}`` for each of :attr:`switching`."""
        return self.clock_net() if self.switching else {}

    def encode(
        self,
        text: Batch,
        omega: Array | Mapping[str, Array] | None = None,
        *,
        how: Composition | None = None,
        keys: Array | None = None,
    ) -> Encoded:
        """The tokens of every text, and the attention over adapters where they are fused.

        Args:
          text: of a batch.
          omega: (T,) for every layer, or ``{layer: (T,)}``; None reads the clock.
          how: which adapters act; None for :attr:`default`.
          keys: a PRNG key a row of the batch (B,) for dropout; None switches it off.

        Returns:
          ``hidden`` (B, T, L, d) and ``attention`` place -> (N, B, T, L).

        Raises:
          AssertionError: at trace time, arrays that are not (B, T, L).
        """
        tasks = len(self.heads)
        chex.assert_shape(list(text.values()), (None, tasks, None))
        if omega is None:
            omega = self.frequencies()
        elif not isinstance(omega, Mapping):
            omega = dict.fromkeys(self.switching, omega)
        rows, _, length = text["ids"].shape
        flat = {name: array.reshape(rows * tasks, length) for name, array in text.items()}
        if keys is not None:
            keys = jax.vmap(lambda n: folded_keys(keys, n), out_axes=1)(jnp.arange(tasks))
            keys = keys.reshape(-1)
        found = self.backbone(
            flat["ids"],
            flat["mask"],
            flat["segments"],
            keys,
            self.default if how is None else how,
            omega,
        )
        return Encoded(
            found.hidden.reshape(rows, tasks, length, -1),
            {place: p.reshape(-1, rows, tasks, length) for place, p in found.attention.items()},
        )

    def features(
        self, text: Batch, omega: Array | Mapping[str, Array] | None = None, **options: Any
    ) -> Array:
        """What the heads read, (B, T, d): the mean over the tokens of each text."""
        hidden = self.encode(text, omega, **options).hidden
        rows, tasks, length, width = hidden.shape
        flat = hidden.reshape(-1, length, width)
        return mean_pool(flat, text["mask"].reshape(-1, length)).reshape(rows, tasks, width)

    def __call__(
        self,
        text: Batch,
        omega: Array | Mapping[str, Array] | None = None,
        *,
        how: Composition | None = None,
        train: bool = False,
        keys: Array | None = None,
    ) -> dict[str, Array]:
        """Predictions of all tasks.

        Args:
          text: of a batch: ``ids``, ``mask`` and ``segments``, (B, T, L) each.
          omega: (T,) for every layer, or ``{layer: (T,)}``; None reads the clock.
          how: which adapters act; None for :attr:`default`.
          train: dropout on.
          keys: a PRNG key a row (B,) for dropout; only read when ``train``.

        Returns:
          ``{task: (B, outputs)}`` float32 logits or values.
        """
        keys = keys if train else None
        x = self.features(text, omega, how=how, keys=keys)
        if keys is not None:
            x = dropout(x, self.bert.dropout, folded_keys(keys, len(self.heads)))
        return self.task_heads(x)

    def diagnostics(self) -> dict[str, dict[str, Array]]:
        """What tells whether switching happens, see :func:`switching_report`."""
        omega = self.frequencies()
        return switching_report(omega, self.backbone.diagnostics(omega))

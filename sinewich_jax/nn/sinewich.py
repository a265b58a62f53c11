"""One multi-task model: a frozen backbone, adapters, a clock, and one decoder for all tasks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from sinewich_jax.nn.clock import Clock, ClockSpec
from sinewich_jax.nn.decoder import Decoder, DecoderSpec
from sinewich_jax.nn.resize import resize_bilinear
from sinewich_jax.nn.task_kernel import switching_report
from sinewich_jax.nn.tokens import TaskTokens

Array = jax.Array

# Which parameters are trained, by path; the first rule that matches the whole path wins. The task
# called "normals" is the reason why norm layers are matched by their exact names.
BACKBONE_ADAPTERS = (
    r"backbone/.*/lora_(up|down)",
    r"backbone/.*/task/.*",
    r"backbone/.*/token_norm/(scale|bias)",
    r"backbone/(adapters|fusion)_.*",
)
ADAPTERS = (
    *BACKBONE_ADAPTERS,
    r"clock/.*",
    r"tokens/.*",
    r"decoder/.*",
)
TRAINABLE_GROUPS: dict[str, tuple[str, ...]] = {
    "norms": (r"backbone/.*/?(norm1|norm2|norm|patch_embed_norm)/(scale|bias)",),
    "patch_embed": (r"backbone/patch_embed_proj/(kernel|bias)",),
    "bias_table": (r"backbone/.*/bias_table",),
    "merging": (r"backbone/merge\d+/reduction/kernel",),
    "all": (r"backbone/.*",),
}


def is_adapter(path: str) -> bool:
    """Whether the parameter ``backbone/...`` is one that a plain backbone does not have."""
    return any(re.fullmatch(pattern, path) for pattern in BACKBONE_ADAPTERS)


def is_sine_factor(path: str) -> bool:
    """Whether kernels are the sine of the parameter ``backbone/...`` at each task's frequency."""
    return re.fullmatch(r"backbone/.*/task/.*", path) is not None


def path_rules(trainable: tuple[str, ...] = ()) -> tuple[tuple[str, str], ...]:
    """Rules that put every parameter into the ``trainable`` or the ``frozen`` tree.

    Args:
      trainable: names in :data:`TRAINABLE_GROUPS` that are trained beside adapters and decoder.

    Returns:
      (pattern, label) pairs for :func:`sinewich_jax.core.trees.split_tree`.
    """
    patterns = [*ADAPTERS, *(p for group in trainable for p in TRAINABLE_GROUPS[group])]
    return (*((p, "trainable") for p in patterns), (r"backbone/.*", "frozen"))


class MultiTaskModel(nn.Module):
    """A backbone whose last blocks split into task streams, and the heads of the tasks.

    The weights of a task are a pure function of its frequency and the shared factors: pass
    ``omega`` to turn the dial by hand, leave it out to use the learned clock.

    Attributes:
      backbone: :class:`~sinewich_jax.nn.swin.Swin` or anything with its interface (``channels``,
        ``task_layers``, ``prompts``, ``__call__(image, omega, keys)`` and ``diagnostics(omega)``).
      heads: (task, output channels) in task order.
      clock: where frequencies come from.
      decoder: widths and kind of the heads.
      dtype: compute dtype of the decoder.
    """

    backbone: nn.Module
    heads: tuple[tuple[str, int], ...]
    clock: ClockSpec
    decoder: DecoderSpec
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Declares clock, tokens and decoder beside the backbone, as far as they are read."""
        if self.switching:
            self.clock_net = Clock(self.clock, layers=self.switching, name="clock")
        if self.prompts:
            self.task_tokens = TaskTokens(len(self.heads), self.backbone.widths, name="tokens")
        self.decoder_net = Decoder(
            self.backbone.channels, self.heads, self.decoder, dtype=self.dtype, name="decoder"
        )

    @property
    def switching(self) -> tuple[str, ...]:
        """The layers that read frequencies: those of the backbone, and ``"decoder"``."""
        own = ("decoder",) if self.decoder.base == "sine" else ()
        return (*self.backbone.task_layers, *own)

    @property
    def prompts(self) -> bool:
        """Whether the tasks' tokens take part in the backbone's attention."""
        return self.backbone.prompts

    def frequencies(self) -> dict[str, Array]:
        """The learned frequencies: ``{layer: (T,)}`` for each of :attr:`switching`."""
        if not self.switching:
            return {}
        return self.clock_net(self.task_tokens.lifted() if self.prompts else None)

    def _spread(self, omega: Array | Mapping[str, Array] | None) -> Mapping[str, Array]:
        if omega is None:
            return self.frequencies()
        if isinstance(omega, Mapping):
            return omega
        return dict.fromkeys(self.switching, omega)

    def __call__(
        self,
        image: Array,
        omega: Array | Mapping[str, Array] | None = None,
        *,
        train: bool = False,
        keys: Array | None = None,
    ) -> dict[str, Array]:
        """Predictions of all tasks at the size of the image.

        Args:
          image: (B, H, W, 3) float, normalised as the backbone expects.
          omega: (T,) for every layer, or ``{layer: (T,)}``; None reads the clock.
          train: batch statistics and drop path on.
          keys: a PRNG key an example (B,) for drop path; only read when ``train``.

        Returns:
          ``{task: (B, H, W, channels)}`` float32 logits (classes, binary) or values.

        Raises:
          AssertionError: at trace time, an image that is not (B, H, W, 3) or frequencies that are
            not (T,).
        """
        chex.assert_shape(image, (None, None, None, 3))
        omega = self._spread(omega)
        if omega:
            chex.assert_shape(list(omega.values()), (len(self.heads),))
        features = self.features(image, omega, keys=keys if train else None)
        outputs = self.decoder_net(features, omega.get("decoder"), train=train)
        stride = self.backbone.stride
        height, width = image.shape[1:3]
        full = (-(-height // stride) * stride, -(-width // stride) * stride)
        return {
            task: resize_bilinear(output, *full)[:, :height, :width]
            for task, output in outputs.items()
        }

    def features(
        self,
        image: Array,
        omega: Array | Mapping[str, Array] | None = None,
        *,
        keys: Array | None = None,
    ) -> list[Array]:
        """The four features (S, B, h, w, C) that the decoder reads, finest first."""
        omega = self._spread(omega)
        if not self.prompts:
            return self.backbone(image, omega, keys)
        return self.backbone(image, omega, keys, self.task_tokens())

    def diagnostics(self) -> dict[str, dict[str, Array]]:
        """What tells whether switching happens, see :func:`switching_report`."""
        omega = self.frequencies()
        return switching_report(omega, self.backbone.diagnostics(omega))

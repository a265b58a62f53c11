"""What makes one task's weights differ from another's: one module, one registered rule a method.

Every rule turns a few shared parameters (and, for the sine rules, a frequency a task) into the
kernels ``delta_t`` that are added to a frozen linear map. All rules but ``split`` hold exactly the
two factors of a LoRA of the same rank, so that methods compare at equal parameters.
"""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from sinewich_jax.core import sine
from sinewich_jax.errors import ConfigError, did_you_mean
from sinewich_jax.nn.streams import repeat

Array = jax.Array

KINDS = ("sine", "lora", "gain", "split")
STARTS = ("anchored", "zero")


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """How the tasks' kernels are made.

    Attributes:
      num_tasks: T.
      kind: ``sine`` (frequency switching), ``lora`` (one kernel for all tasks), ``gain`` (that
        kernel times a learned scalar a task), ``split`` (a LoRA of rank r / T for each task).
      rank: r, the rank of the factors.
      scale: plain multiplier of the update; with ``sine`` it is divided by ``sqrt(in)``.
      start: ``anchored`` (the sine of a random kernel minus the sine of its frozen copy) or
        ``zero`` (up factor zero, the published form). Only read by ``sine``.
      modulation: modulation index ``mu = omega * std(M_0)`` at omega = 1, for ``anchored``.
      lowpass: None or (size, sigma) of the Gaussian over the channel plane.
    """

    num_tasks: int
    kind: str = "sine"
    rank: int = 12
    scale: float = 4.0
    start: str = "anchored"
    modulation: float = 2.0
    lowpass: tuple[int, float] | None = None

    def __post_init__(self) -> None:
        """Rejects words and ranks that no rule knows."""
        if self.kind not in KINDS:
            raise ConfigError(
                f"unknown kind of task kernel {self.kind!r}{did_you_mean(self.kind, KINDS)}"
            )
        if self.start not in STARTS:
            raise ConfigError(f"unknown start {self.start!r}{did_you_mean(self.start, STARTS)}")
        if self.kind == "split" and self.rank % self.num_tasks:
            raise ConfigError(
                f"method lora_split gives each task rank / T, but rank={self.rank} does not divide "
                f"by {self.num_tasks} tasks; set rank to a multiple of {self.num_tasks}"
            )

    @property
    def streams(self) -> int:
        """Number of different kernels: T, or 1 when all tasks share one."""
        return 1 if self.kind == "lora" else self.num_tasks


class TaskKernel(nn.Module):
    """The factors of one layer, and the kernels that they make.

    Attributes:
      in_features: width of the input of the linear map.
      features: width of its output.
      spec: the rule.
    """

    in_features: int
    features: int
    spec: TaskSpec

    def setup(self) -> None:
        """Declares the two factors; the anchored start also keeps a frozen copy as a constant."""
        spec = self.spec
        shape = (self.features, self.in_features, spec.rank)
        if spec.kind == "sine" and spec.start == "anchored":
            # A collection of its own: never trained, and kept with the frozen backbone rather than
            # in each checkpoint. The same seed makes the same numbers again.
            anchor = self.variable("anchor", "factors", self._anchor_factors)
            self.anchor = anchor.value
            self.up = self.param("up", lambda key: self.anchor["up"])
            self.down = self.param("down", lambda key: self.anchor["down"])
            return
        out, in_, rank = shape
        if spec.kind == "split":
            rank = rank // spec.num_tasks
            stack = (spec.num_tasks,)
        else:
            stack = ()
        self.up = self.param("up", nn.initializers.zeros, (*stack, out, rank))
        bound = 1.0 / math.sqrt(in_)
        self.down = self.param(
            "down",
            lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound),
            (*stack, in_, rank),
        )
        if spec.kind == "gain":
            self.gain = self.param("gain", nn.initializers.ones, (spec.num_tasks,))

    def _anchor_factors(self) -> dict[str, Array]:
        up, down = sine.anchor_factors(
            self.make_rng("anchor"),
            self.features,
            self.in_features,
            self.spec.rank,
            self.spec.modulation,
        )
        return {"up": up, "down": down}

    def base(self) -> Array:
        """The shared kernel ``M = A B^T`` in (1, 1, in, out); only for the sine rule."""
        return sine.awb_kernel(self.up, None, self.down)

    def __call__(self, omega: Array | None) -> Array:
        """The updates ``delta_t`` of all tasks.

        Args:
          omega: (T,) frequencies; read by the sine rule only.

        Returns:
          (S, in, out) float32, S = T, or 1 for ``lora``.
        """
        return getattr(self, f"_{self.spec.kind}")(omega)

    def _sine(self, omega: Array) -> Array:
        spec, gain = self.spec, math.sqrt(self.in_features)
        kernels = repeat(self.base(), spec.num_tasks)
        if spec.start == "anchored":
            frozen = sine.awb_kernel(self.anchor["up"], None, self.anchor["down"])

            def update(kernel: Array, w: Array) -> Array:
                return sine.anchored(kernel, frozen, w, gain=gain, lowpass=spec.lowpass)
        else:

            def update(kernel: Array, w: Array) -> Array:
                return sine.modulate(kernel, w, gain=gain, lowpass=spec.lowpass)

        return spec.scale * jax.vmap(update)(kernels, omega)[:, 0, 0]

    def _lora(self, omega: Array | None) -> Array:
        return (self.spec.scale * self.down @ self.up.T)[None]

    def _gain(self, omega: Array | None) -> Array:
        return self.gain[:, None, None] * self._lora(None)

    def _split(self, omega: Array | None) -> Array:
        return self.spec.scale * jnp.einsum("tir,tor->tio", self.down, self.up)

    def diagnostics(self, omega: Array | None) -> dict[str, Array]:
        """What tells whether this layer's tasks differ.

        Args:
          omega: (T,) frequencies; read by the sine rule only.

        Returns:
          With more than one task ``pairwise_cosine`` (T, T) between the tasks' updates and
          ``update_cosine`` (), its mean over pairs (1 where all tasks share one update); for the
          sine rule ``modulation_index`` (T,).
        """
        report = {}
        if self.spec.kind == "sine":
            report["modulation_index"] = sine.modulation_index(self.base(), omega)
        if self.spec.num_tasks == 1:
            return report
        updates = jnp.broadcast_to(
            self(omega), (self.spec.num_tasks, self.in_features, self.features)
        )
        return report | {
            "pairwise_cosine": sine.kernel_cosine(updates),
            "update_cosine": sine.mean_pairwise_cosine(updates),
        }

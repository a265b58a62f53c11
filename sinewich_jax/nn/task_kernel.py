"""What makes one task's weights differ from another's: one module, one registered rule a method.

Every rule turns a few shared parameters (and, for the sine rules, a frequency a task) into the
kernels ``delta_t`` that are added to a frozen linear map. The rules ``sine``, ``lora`` and ``gain``
hold exactly the two factors of a LoRA of the same rank and ``split`` as many numbers, so that
methods compare at equal parameters; ``task`` and ``independent`` hold T times as many.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from sinewich_jax.core import sine
from sinewich_jax.errors import ConfigError, did_you_mean
from sinewich_jax.nn.streams import repeat

Array = jax.Array

KINDS = ("sine", "independent", "sine_lora", "lora", "gain", "split", "task")
STARTS = ("anchored", "zero")
CONV_MODES = ("depthwise", "full")


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """How the tasks' kernels are made.

    Attributes:
      num_tasks: T.
      kind: ``sine`` (frequency switching), ``independent`` (the sine of a kernel of its own for
        each task), ``sine_lora`` (one kernel for all tasks, its sine at a fixed frequency: Ji et
        al. 2024, arXiv 2403.19243), ``lora`` (one kernel for all tasks), ``gain`` (that kernel
        times a learned scalar a task), ``split`` (a LoRA of rank r / T for each task), ``task``
        (one of rank r for each).
      rank: r, the rank of the factors.
      scale: plain multiplier of the update; with a sine it is divided by ``sqrt(k * k * in)``.
      start: ``anchored`` (the sine of a random kernel minus the sine of its frozen copy) or
        ``zero`` (up factor zero, the published form). Only read where frequencies are.
      modulation: modulation index ``mu = omega * std(M_0)`` at omega = 1, for ``anchored``.
      lowpass: None or (size, sigma) of the Gaussian over the channel plane.
      kernel_size: k; above 1 the update is a k x k convolution.
      conv_mode: W between the factors is ``depthwise`` (k, k, r) or ``full`` (k, k, r, r); without
        a W for k = 1.
      frequency: the fixed frequency of ``sine_lora``.
    """

    num_tasks: int
    kind: str = "sine"
    rank: int = 12
    scale: float = 4.0
    start: str = "anchored"
    modulation: float = 2.0
    lowpass: tuple[int, float] | None = None
    kernel_size: int = 1
    conv_mode: str = "depthwise"
    frequency: float = 100.0

    def __post_init__(self) -> None:
        """Rejects words, sizes and ranks that no rule knows."""
        for name, word, known in (
            ("kind of task kernel", self.kind, KINDS),
            ("start", self.start, STARTS),
            ("conv_mode", self.conv_mode, CONV_MODES),
        ):
            if word not in known:
                raise ConfigError(f"unknown {name} {word!r}{did_you_mean(word, known)}")
        if self.kernel_size not in sine.KERNEL_SIZES:
            raise ConfigError(
                f"kernel_size is {self.kernel_size}; expected one of {sine.KERNEL_SIZES}"
            )
        if self.kind == "split" and self.rank % self.num_tasks:
            raise ConfigError(
                f"method lora_split gives each task rank / T, but rank={self.rank} does not divide "
                f"by {self.num_tasks} tasks; set rank to a multiple of {self.num_tasks}"
            )

    @property
    def streams(self) -> int:
        """Number of different kernels: T, or 1 when all tasks share one."""
        return 1 if self.kind in ("lora", "sine_lora") else self.num_tasks

    @property
    def reads_frequencies(self) -> bool:
        """Whether the rule turns the tasks' frequencies into kernels."""
        return self.kind in ("sine", "independent")

    @property
    def is_anchored(self) -> bool:
        """Whether a frozen copy of the start is kept."""
        return self.reads_frequencies and self.start == "anchored"

    @property
    def copies(self) -> int | None:
        """Number of sets of factors, or None for a single one without an axis."""
        return self.num_tasks if self.kind in ("independent", "split", "task") else None


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
        """Declares the factors; the anchored start also keeps a frozen copy as a constant."""
        spec = self.spec
        rank = spec.rank // spec.num_tasks if spec.kind == "split" else spec.rank
        stack = () if spec.copies is None else (spec.copies,)
        if spec.is_anchored:
            # A collection of its own: never trained, and kept with the frozen backbone rather than
            # in each checkpoint. The same seed makes the same numbers again.
            anchor = self.variable("anchor", "factors", self._anchor_factors)
            self.anchor = anchor.value
            self.up = self.param("up", lambda key: self.anchor["up"])
            self.down = self.param("down", lambda key: self.anchor["down"])
        else:
            bound = 1.0 / math.sqrt(self.in_features)
            self.up = self.param("up", nn.initializers.zeros, (*stack, self.features, rank))
            self.down = self.param(
                "down",
                lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound),
                (*stack, self.in_features, rank),
            )
        self.conv = None
        if spec.kernel_size > 1:
            tap = sine.centre_tap(spec.kernel_size, rank, full=spec.conv_mode == "full")
            self.conv = self.param("conv", lambda _: jnp.broadcast_to(tap, (*stack, *tap.shape)))
        if spec.kind == "gain":
            self.gain = self.param("gain", nn.initializers.ones, (spec.num_tasks,))

    def _anchor_factors(self) -> dict[str, Array]:
        spec = self.spec

        def factors(key: Array) -> tuple[Array, Array]:
            return sine.anchor_factors(
                key, self.features, self.in_features, spec.rank, spec.modulation
            )

        key = self.make_rng("anchor")
        if spec.copies is None:
            up, down = factors(key)
        else:
            up, down = jax.vmap(factors)(jax.random.split(key, spec.copies))
        return {"up": up, "down": down}

    def base(self) -> Array:
        """The fused factors ``M = A W B^T``: (k, k, in, out), or (T, ...) of a rule with copies."""
        return self._fused(self.up, self.conv, self.down)

    def _fused(self, up: Array, conv: Array | None, down: Array) -> Array:
        if self.spec.copies is None:
            return sine.awb_kernel(up, conv, down)
        return jax.vmap(sine.awb_kernel)(up, conv, down)

    def __call__(self, omega: Array | None) -> Array:
        """The updates ``delta_t`` of all tasks.

        Args:
          omega: (T,) frequencies; read by the rules of a task's own sine only.

        Returns:
          (S, k, k, in, out) float32, S = T, or 1 where all tasks share one.
        """
        return self.spec.scale * getattr(self, f"_{self.spec.kind}")(omega)

    def _sine(self, omega: Array) -> Array:
        kernels = self.base()
        if self.spec.copies is None:
            kernels = repeat(kernels, self.spec.num_tasks)
        if not self.spec.is_anchored:
            return jax.vmap(self._modulated)(kernels, omega)
        tap = None
        if self.spec.kernel_size > 1:
            full = self.spec.conv_mode == "full"
            tap = sine.centre_tap(self.spec.kernel_size, self.spec.rank, full=full)
            if self.spec.copies is not None:
                tap = repeat(tap, self.spec.copies)
        frozen = self._fused(self.anchor["up"], tap, self.anchor["down"])

        def update(kernel: Array, frozen: Array, w: Array) -> Array:
            return sine.anchored(kernel, frozen, w, self._amplitude, self.spec.lowpass)

        own = None if self.spec.copies is None else 0
        return jax.vmap(update, (0, own, 0))(kernels, frozen, omega)

    _independent = _sine

    def _modulated(self, kernel: Array, omega: Array | float) -> Array:
        return sine.modulate(kernel, omega, self._amplitude, self.spec.lowpass)

    @property
    def _amplitude(self) -> float:
        """What the sine is divided by, ``sqrt(k * k * in)``."""
        return self.spec.kernel_size * math.sqrt(self.in_features)

    def _sine_lora(self, omega: Array | None) -> Array:
        return self._modulated(self.base(), self.spec.frequency)[None]

    def _lora(self, omega: Array | None) -> Array:
        return self._smooth(self.base())[None]

    def _gain(self, omega: Array | None) -> Array:
        return self.gain[:, None, None, None, None] * self._lora(None)

    def _task(self, omega: Array | None) -> Array:
        return self._smooth(self.base())

    _split = _task

    def _smooth(self, kernel: Array) -> Array:
        lowpass = self.spec.lowpass
        return kernel if lowpass is None else sine.gaussian_lowpass(kernel, *lowpass)

    def diagnostics(self, omega: Array | None) -> dict[str, Array]:
        """What tells whether this layer's tasks differ.

        Args:
          omega: (T,) frequencies; read by the rules of a task's own sine only.

        Returns:
          With more than one task ``pairwise_cosine`` (T, T) between the tasks' updates and
          ``update_cosine`` (), its mean over pairs (1 where all tasks share one update); for the
          rules of a task's own sine ``modulation_index`` (T,).
        """
        report, spec = {}, self.spec
        if spec.reads_frequencies:
            axis = None if spec.copies is None else 0
            report["modulation_index"] = jax.vmap(sine.modulation_index, (axis, 0))(
                self.base(), omega
            )
        if spec.num_tasks == 1:
            return report
        updates = self(omega)
        updates = jnp.broadcast_to(updates, (spec.num_tasks, *updates.shape[1:]))
        return report | {
            "pairwise_cosine": sine.kernel_cosine(updates),
            "update_cosine": sine.mean_pairwise_cosine(updates),
        }


def switching_report(
    omega: Mapping[str, Array], layers: Mapping[str, Mapping[str, Array]]
) -> dict[str, dict[str, Array]]:
    """What tells whether switching happens in a model.

    Args:
      omega: frequencies (T,) by layer.
      layers: by layer, what :meth:`TaskKernel.diagnostics` returns.

    Returns:
      ``omega`` {layer: (T,)}, and of the layers with task kernels ``modulation_index``
      {layer: (T,)} (sine rules only), ``pairwise_cosine`` {layer: (T, T)} between the tasks'
      updates, and ``update_cosine`` {layer: ()}, its mean over pairs.
    """
    kinds = ("modulation_index", "pairwise_cosine", "update_cosine")
    return {
        "omega": dict(omega),
        **{
            kind: {name: values[kind] for name, values in layers.items() if kind in values}
            for kind in kinds
        },
    }

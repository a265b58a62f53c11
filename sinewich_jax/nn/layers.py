"""Building blocks: a linear map that can carry adapters, layer norm, and drop path.

The modules here only declare parameters and call :mod:`sinewich_jax.core`. Names of parameters are
what the path rules of the freezing and sharding tables match, so they are part of the interface:
``kernel``, ``bias`` (the frozen map), ``lora_down``, ``lora_up`` (the shared low-rank update) and
everything under ``task`` (what makes tasks differ).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sinewich_jax.core import sine
from sinewich_jax.core.products import rows_product
from sinewich_jax.nn.convolutions import conv_same
from sinewich_jax.nn.task_kernel import TaskKernel, TaskSpec

Array = jax.Array
Dtype = Any

trunc_normal = nn.initializers.truncated_normal(stddev=0.02)


def kaiming_uniform(key: Array, shape: tuple[int, int], dtype: Dtype = jnp.float32) -> Array:
    """Uniform in ``+-1/sqrt(in)`` for a factor of shape (in, r): LoRA's start of the down factor.

    It is He's uniform distribution with a = sqrt(5), which is what the reference code of LoRA uses.
    """
    bound = 1.0 / math.sqrt(shape[0])
    return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)


class Dense(nn.Module):
    """A linear map on the last axis, with an optional shared LoRA and an optional task part.

    ``y = x W + b + (lora_scale * x D) U^T`` with ``D`` (in, r) and ``U`` (out, r). The task part
    does not act in :meth:`__call__`; :meth:`task_kernels` returns the merged kernel of each task.

    Attributes:
      in_features: width of the input.
      features: width of the output.
      use_bias: whether there is a bias.
      lora_rank: rank of the shared update; 0 means none.
      lora_scale: its plain multiplier (not alpha / r).
      lora_frequency: None, or the fixed frequency of Sine-LoRA (Ji et al. 2024, arXiv 2403.19243):
        the update is then ``lora_scale * x sin(frequency * D U^T) / sqrt(in)``.
      lora_dropout: rate at which entries of the update's input are dropped in training; the frozen
        map always sees all of them.
      task: description of the task-specific part, or None.
      dtype: compute dtype; parameters are always float32.
    """

    in_features: int
    features: int
    use_bias: bool = True
    lora_rank: int = 0
    lora_scale: float = 4.0
    lora_frequency: float | None = None
    lora_dropout: float = 0.0
    task: TaskSpec | None = None
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Declares the frozen map and whatever adapters are asked for."""
        shape = (self.in_features, self.features)
        self.kernel = self.param("kernel", trunc_normal, shape)
        self.bias = (
            self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        )
        if self.lora_rank:
            self.lora_down = self.param(
                "lora_down", kaiming_uniform, (self.in_features, self.lora_rank)
            )
            self.lora_up = self.param(
                "lora_up", nn.initializers.zeros, (self.features, self.lora_rank)
            )
        if self.task is not None:
            self.task_kernel = TaskKernel(
                self.in_features, self.features, spec=self.task, name="task"
            )

    def __call__(self, x: Array, keys: Array | None = None) -> Array:
        """Maps (..., in) to (..., out) along the path that all tasks share.

        Args:
          x: (..., in); with keys (B, ..., in).
          keys: a PRNG key an example (B,) for the dropout; None switches it off.
        """
        y = self.frozen(x)
        return y + self.low_rank(self.thin(x, keys)) if self.lora_rank else y

    def frozen(self, x: Array) -> Array:
        """``x W + b`` alone."""
        y = x.astype(self.dtype) @ self.kernel.astype(self.dtype)
        return y if self.bias is None else y + self.bias.astype(self.dtype)

    def thin(self, x: Array, keys: Array | None) -> Array:
        """What the update reads of its input (B, ..., in) in training."""
        return x if keys is None else dropout(x, self.lora_dropout, keys)

    def low_rank(self, x: Array) -> Array:
        """The shared update alone, ``lora_scale * (x D) U^T`` or its sine."""
        x = x.astype(self.dtype)
        if self.lora_frequency is not None:
            kernel = sine.awb_kernel(self.lora_up, None, self.lora_down)
            gain = math.sqrt(self.in_features)
            update = sine.modulate(kernel, self.lora_frequency, gain)[0, 0]
            return self.lora_scale * (x @ update.astype(self.dtype))
        # The few columns of the inner product are scaled, not the many of the outer one.
        low = self.lora_scale * (x @ self.lora_down.astype(self.dtype))
        return low @ self.lora_up.astype(self.dtype).T

    def task_kernels(self, omega: Array | None) -> Array:
        """The merged kernels ``W + delta_t`` of all tasks, S = T or 1.

        Merging is exact (spec: T-merge), and one product instead of two is computed; the frozen map
        is the centre tap of a larger kernel.

        Returns:
          (S, in, out) for k = 1, else (S, k, k, in, out), for :func:`apply_kernel`.
        """
        merged = jax.vmap(sine.fold, (None, 0))(self.kernel, self.task_kernel(omega))
        return merged.astype(self.dtype)

    def task_bias(self) -> Array:
        """The bias in compute dtype; zeros when there is none."""
        if self.bias is None:
            return jnp.zeros((self.features,), self.dtype)
        return self.bias.astype(self.dtype)


def apply_kernel(x: Array, kernel: Array, bias: Array) -> Array:
    """A linear map of each pixel, or a convolution.

    Args:
      x: (B, H, W, in).
      kernel: (in, out), or (k, k, in, out).
      bias: (out,).

    Returns:
      (B, H, W, out).
    """
    return (rows_product(x, kernel) if kernel.ndim == 2 else conv_same(x, kernel)) + bias


class LayerNorm(nn.Module):
    """Layer norm over the last axis in float32.

    Attributes:
      features: width of the axis.
      epsilon: added to the variance; 1e-5 as in Swin.
      dtype: of the result.
    """

    features: int
    epsilon: float = 1e-5
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalises (..., features)."""
        scale = self.param("scale", nn.initializers.ones, (self.features,))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = x.astype(jnp.float32)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.epsilon) * scale + bias
        return y.astype(self.dtype)


class Drop(NamedTuple):
    """The randomness of one residual block: its stochastic depth (Huang et al. 2016), and keys.

    Attributes:
      rate: probability that an example's branch is dropped; what stays is scaled by 1 / (1 - rate).
      keys: one PRNG key an example, (B,), made from the example's global index, so that sharding
        cannot change the numbers.
    """

    rate: Array | float
    keys: Array

    def fold(self, salt: Array | int) -> Drop:
        """The same rate with an independent stream of random numbers."""
        return self._replace(keys=jax.vmap(lambda key: jax.random.fold_in(key, salt))(self.keys))


def drop_path(branch: Array, drop: Drop | None) -> Array:
    """Drops whole examples of a residual branch (B, ...); None keeps everything."""
    if drop is None:
        return branch
    keep = 1.0 - drop.rate
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, keep))(drop.keys)
    kept = kept.reshape(kept.shape + (1,) * (branch.ndim - 1))
    return jnp.where(kept, branch / jnp.asarray(keep, branch.dtype), jnp.zeros_like(branch))


def dropout(x: Array, rate: float, keys: Array) -> Array:
    """Drops single entries and scales what stays by 1 / (1 - rate).

    Args:
      x: (B, ...).
      rate: probability that an entry is dropped.
      keys: a PRNG key an example, (B,).
    """
    if not rate:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros_like(x))

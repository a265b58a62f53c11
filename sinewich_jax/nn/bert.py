"""The encoder of BERT and its kin (RoBERTa, MiniLM): from the ids of tokens to a vector a token.

    x = LN(words[id] + positions[p] + types[t])
    x = LN(attention(x) + x)                       in each layer, then
    x = LN(narrow(gelu(wide(x))) + x)

Norms stand behind the residuals (Devlin et al., arXiv 1810.04805). How a sub-layer ends is one
function of its output x, its input and its norm, ``norm(x + residual)`` by default; adapters take
its place (the placements of :mod:`sinewich_jax.core.adapters`).

Parameter names: ``embeddings/{words, positions, types, norm}`` and
``layer{n}/{query, key, value, out, attention_norm, wide, narrow, output_norm}``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sinewich_jax.core.products import rows_product
from sinewich_jax.errors import ConfigError, DataError, did_you_mean
from sinewich_jax.nn.layers import Dense, LayerNorm, dropout
from sinewich_jax.nn.task_kernel import TaskSpec

Array = jax.Array
Dtype = Any
Norm = Callable[[Array], Array]
End = Callable[[int, str, Array, Array, Norm], Array]
"""``end(layer, place, x, residual, norm)`` to what the sub-layer gives; place is a key of
:data:`PLACES`."""

PLACES = ("attention", "output")
"""The two sub-layers of a layer: self-attention and feed-forward."""

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}
"""By the names of Hugging Face configurations."""

Frequencies = Mapping[str, Array]
"""Frequencies (T,) by the name of a linear map, ``layer{n}/{name}``."""

TASK_TARGETS = ("wide", "narrow")
"""The linear maps that own a task kernel: those of the feed-forward sub-layers."""

# What a layer folds into the keys of its dropouts.
_SALTS = {"embeddings": 0, "probabilities": 1, "attention": 2, "output": 3}
_SALTS |= {"query": 4, "key": 5, "value": 6, "out": 7, "wide": 8, "narrow": 9}
_normal = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class LinearUpdate:
    """What the linear maps of a layer carry beside their frozen kernels.

    Attributes:
      task: how the kernels of :data:`TASK_TARGETS` differ between tasks; None for no difference.
      rank: of the LoRA that all tasks share, on the other linear maps; 0 for none.
      scale: its multiplier.
      frequency: None, or the fixed frequency of Sine-LoRA.
      dropout: rate on what it reads.
    """

    task: TaskSpec | None = None
    rank: int = 0
    scale: float = 4.0
    frequency: float | None = None
    dropout: float = 0.0

    def of(self, name: str) -> dict[str, Any]:
        """The arguments of :class:`~sinewich_jax.nn.layers.Dense` for one linear map."""
        if self.task is not None and name in TASK_TARGETS:
            return {"task": self.task}
        return {
            "lora_rank": self.rank,
            "lora_scale": self.scale,
            "lora_frequency": self.frequency,
            "lora_dropout": self.dropout,
        }


def plain_end(layer: int, place: str, x: Array, residual: Array, norm: Norm) -> Array:
    """``norm(x + residual)``: a sub-layer without adapters."""
    del layer, place
    return norm(x + residual)


class Embeddings(nn.Module):
    """The sum of what a token, its place and its segment are, normalised.

    Attributes:
      vocabulary: number of tokens.
      width: d.
      positions: rows of the table of places.
      types: segments.
      epsilon: of the norm.
      dtype: compute dtype.
    """

    vocabulary: int
    width: int
    positions: int
    types: int
    epsilon: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, ids: Array, places: Array, segments: Array) -> Array:
        """Maps three int arrays (B, L) to (B, L, d)."""
        sizes = {"words": self.vocabulary, "positions": self.positions, "types": self.types}
        tables = {name: self.param(name, _normal, (n, self.width)) for name, n in sizes.items()}
        x = tables["words"][ids] + tables["types"][segments] + tables["positions"][places]
        return LayerNorm(self.width, self.epsilon, self.dtype, name="norm")(x)


class BertLayer(nn.Module):
    """Self-attention and a feed-forward map, each with a residual and a norm behind it.

    Attributes:
      number: of the layer, from 0.
      width: d.
      heads: attention heads.
      hidden: width of the feed-forward map.
      activation: one of :data:`ACTIVATIONS`.
      epsilon: of the norms.
      dropout: rate on what both sub-layers give.
      attention_dropout: rate on attention's probabilities.
      update: what the linear maps carry.
      dtype: compute dtype.
    """

    number: int
    width: int
    heads: int
    hidden: int
    activation: str
    epsilon: float
    dropout: float
    attention_dropout: float
    update: LinearUpdate = LinearUpdate()
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Declares six linear maps and two norms."""
        if self.activation not in ACTIVATIONS:
            hint = did_you_mean(str(self.activation), ACTIVATIONS)
            raise ConfigError(f"the activation is {self.activation!r}{hint}")
        self.query, self.key, self.value, self.out = (
            self._dense(name, self.width, self.width) for name in ("query", "key", "value", "out")
        )
        self.wide = self._dense("wide", self.width, self.hidden)
        self.narrow = self._dense("narrow", self.hidden, self.width)
        self.attention_norm, self.output_norm = (
            LayerNorm(self.width, self.epsilon, self.dtype, name=f"{place}_norm")
            for place in PLACES
        )

    def _dense(self, name: str, into: int, out: int) -> Dense:
        return Dense(into, out, **self.update.of(name), dtype=self.dtype, name=name)

    def __call__(
        self, x: Array, mask: Array, keys: Array | None, end: End, omega: Frequencies
    ) -> Array:
        """Maps (B, L, d) to (B, L, d).

        Args:
          x: the tokens.
          mask: bool (B, L), false where there is only padding.
          keys: a PRNG key an example (B,) for dropout; None switches it off.
          end: how a sub-layer ends.
          omega: of :data:`TASK_TARGETS` in this layer, where they read frequencies.
        """

        def drop(name: str, rate: float, y: Array) -> Array:
            return y if keys is None else dropout(y, rate, folded_keys(keys, _SALTS[name]))

        def close(place: str, y: Array, residual: Array) -> Array:
            norm = getattr(self, f"{place}_norm")
            return end(self.number, place, drop(place, self.dropout, y), residual, norm)

        def linear(name: str, y: Array) -> Array:
            dense = getattr(self, name)
            if dense.task is not None:
                kernels = dense.task_kernels(omega.get(f"layer{self.number}/{name}"))
                return in_turn(y.astype(self.dtype), kernels) + dense.task_bias()
            return dense(y, None if keys is None else folded_keys(keys, _SALTS[name]))

        def split(name: str) -> Array:
            y = linear(name, x)
            return y.reshape(*y.shape[:2], self.heads, self.width // self.heads)

        query, key, value = map(split, ("query", "key", "value"))
        scores = jnp.einsum("bqhc,bkhc->bhqk", query, key, preferred_element_type=jnp.float32)
        scores = scores / math.sqrt(self.width // self.heads)
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
        shares = jax.nn.softmax(scores).astype(self.dtype)
        shares = drop("probabilities", self.attention_dropout, shares)
        mixed = jnp.einsum("bhqk,bkhc->bqhc", shares, value).reshape(x.shape)
        x = close("attention", linear("out", mixed), x)
        wide = ACTIVATIONS[self.activation](linear("wide", x))
        return close("output", linear("narrow", wide), x)

    def task_diagnostics(self, omega: Frequencies) -> dict[str, Any]:
        """Diagnostics of the task kernels, ``layer{n}/{name}``."""
        names = {name: f"layer{self.number}/{name}" for name in TASK_TARGETS}
        return {
            place: getattr(self, name).task_kernel.diagnostics(omega.get(place))
            for name, place in names.items()
        }


class Bert(nn.Module):
    """An encoder.

    Attributes:
      vocabulary: number of tokens.
      width: d.
      depth: layers.
      heads: attention heads; a divisor of the width.
      hidden: width of the feed-forward maps.
      positions: rows of the table of places.
      types: segments.
      activation: one of :data:`ACTIVATIONS`.
      epsilon: of the norms.
      padding: None; or the id of the padding token where places are counted as in RoBERTa: from
        ``padding + 1`` on, over what is no padding, which itself has the place ``padding``.
      dropout: rate on embeddings and on what sub-layers give.
      attention_dropout: rate on attention's probabilities.
      update: what the linear maps of the layers carry.
      dtype: compute dtype; parameters are always float32.
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    hidden: int
    positions: int
    types: int = 2
    activation: str = "gelu"
    epsilon: float = 1e-12
    padding: int | None = None
    dropout: float = 0.1
    attention_dropout: float = 0.1
    update: LinearUpdate = LinearUpdate()
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Declares the tables and the layers."""
        sizes = (self.vocabulary, self.width, self.positions, self.types)
        self.embeddings = Embeddings(*sizes, self.epsilon, self.dtype, name="embeddings")
        self.layers = [
            BertLayer(
                number,
                self.width,
                self.heads,
                self.hidden,
                self.activation,
                self.epsilon,
                self.dropout,
                self.attention_dropout,
                self.update,
                self.dtype,
                name=f"layer{number}",
            )
            for number in range(self.depth)
        ]

    @property
    def task_layers(self) -> tuple[str, ...]:
        """Names of the linear maps whose kernels read frequencies, in order."""
        task = self.update.task
        if task is None or not task.reads_frequencies:
            return ()
        return tuple(f"layer{n}/{name}" for n in range(self.depth) for name in TASK_TARGETS)

    @property
    def longest(self) -> int:
        """How many tokens a text can have."""
        return self.positions - (0 if self.padding is None else self.padding + 1)

    def __call__(
        self,
        ids: Array,
        mask: Array,
        segments: Array | None = None,
        keys: Array | None = None,
        end: End = plain_end,
        omega: Frequencies | None = None,
    ) -> Array:
        """Encodes a batch of texts.

        Args:
          ids: int (B, L), at most :attr:`longest` wide.
          mask: bool or int (B, L), 0 where there is only padding.
          segments: int (B, L), which text of a pair; None for zeros.
          keys: a PRNG key an example (B,) for dropout in training; None switches it off.
          end: how sub-layers end; adapters are put here.
          omega: frequencies (T,) for each of :attr:`task_layers`.

        Returns:
          (B, L, d); rows of padding mean nothing. With task kernels of T tasks B is a multiple of
          T, and the texts are those of the tasks in turn.

        Raises:
          DataError: more tokens than there are places.
        """
        if ids.shape[1] > self.longest:
            raise DataError(
                f"texts are {ids.shape[1]} tokens long, expected at most {self.longest}, the "
                "places of this encoder; cut them"
            )
        mask = mask.astype(bool)
        segments = jnp.zeros_like(ids) if segments is None else segments
        places = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        if self.padding is not None:
            counted = ids != self.padding
            places = jnp.cumsum(counted, axis=1) * counted + self.padding
        x = self.embeddings(ids, places, segments)
        if keys is not None:
            x = dropout(x, self.dropout, folded_keys(keys, _SALTS["embeddings"]))
        for number, layer in enumerate(self.layers):
            own = None if keys is None else folded_keys(keys, 16 + number)
            x = layer(x, mask, own, end, omega or {})
        return x

    def diagnostics(self, omega: Frequencies) -> dict[str, Any]:
        """Diagnostics of every task kernel, ``layer{n}/{name}``."""
        if self.update.task is None:
            return {}
        return {
            name: values
            for layer in self.layers
            for name, values in layer.task_diagnostics(omega).items()
        }


def in_turn(x: Array, kernels: Array) -> Array:
    """Texts of S tasks in turn, each under the kernel of its task, in one batched product.

    Args:
      x: (B, L, in), of which text b belongs to task ``b % S``.
      kernels: (S, in, out).

    Returns:
      (B, L, out).
    """
    if len(kernels) == 1:
        return x @ kernels[0]
    grouped = x.reshape(-1, len(kernels), *x.shape[1:])
    return jax.vmap(rows_product, (1, 0), 1)(grouped, kernels).reshape(*x.shape[:-1], -1)


def mean_pool(x: Array, mask: Array) -> Array:
    """The mean over the tokens (B, L, d) that are no padding, (B, d) float32 at least."""
    kept = mask.astype(jnp.promote_types(x.dtype, jnp.float32))[..., None]
    return (x * kept).sum(axis=1) / jnp.maximum(kept.sum(axis=1), 1)


def folded_keys(keys: Array, salt: int) -> Array:
    """Independent keys (B,) out of keys (B,)."""
    return jax.vmap(lambda key: jax.random.fold_in(key, salt))(keys)

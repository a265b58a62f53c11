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

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sinewich_jax.errors import DataError
from sinewich_jax.nn.layers import Dense, LayerNorm, dropout

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

# What a layer folds into the keys of its dropouts.
_SALTS = {"embeddings": 0, "probabilities": 1, "attention": 2, "output": 3}
_normal = nn.initializers.normal(0.02)


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
        """Maps three int arrays (B, T) to (B, T, d)."""
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
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array, keys: Array | None, end: End) -> Array:
        """Maps (B, T, d) to (B, T, d).

        Args:
          x: the tokens.
          mask: bool (B, T), false where there is only padding.
          keys: a PRNG key an example (B,) for dropout; None switches it off.
          end: how a sub-layer ends.
        """

        def drop(name: str, rate: float, y: Array) -> Array:
            return y if keys is None else dropout(y, rate, _folded(keys, _SALTS[name]))

        def close(place: str, y: Array, residual: Array) -> Array:
            norm = LayerNorm(self.width, self.epsilon, self.dtype, name=f"{place}_norm")
            return end(self.number, place, drop(place, self.dropout, y), residual, norm)

        def dense(name: str, into: int, out: int) -> Dense:
            return Dense(into, out, dtype=self.dtype, name=name)

        def split(name: str) -> Array:
            y = dense(name, self.width, self.width)(x)
            return y.reshape(*y.shape[:2], self.heads, self.width // self.heads)

        query, key, value = map(split, ("query", "key", "value"))
        scores = jnp.einsum("bqhc,bkhc->bhqk", query, key, preferred_element_type=jnp.float32)
        scores = scores / math.sqrt(self.width // self.heads)
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
        shares = jax.nn.softmax(scores).astype(self.dtype)
        shares = drop("probabilities", self.attention_dropout, shares)
        mixed = jnp.einsum("bhqk,bkhc->bqhc", shares, value).reshape(x.shape)
        x = close("attention", dense("out", self.width, self.width)(mixed), x)
        wide = ACTIVATIONS[self.activation](dense("wide", self.width, self.hidden)(x))
        return close("output", dense("narrow", self.hidden, self.width)(wide), x)


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
    dtype: Dtype = jnp.float32

    @property
    def longest(self) -> int:
        """How many tokens a text can have."""
        return self.positions - (0 if self.padding is None else self.padding + 1)

    @nn.compact
    def __call__(
        self,
        ids: Array,
        mask: Array,
        segments: Array | None = None,
        keys: Array | None = None,
        end: End = plain_end,
    ) -> Array:
        """Encodes a batch of texts.

        Args:
          ids: int (B, T), at most :attr:`longest` wide.
          mask: bool or int (B, T), 0 where there is only padding.
          segments: int (B, T), which text of a pair; None for zeros.
          keys: a PRNG key an example (B,) for dropout in training; None switches it off.
          end: how sub-layers end; adapters are put here.

        Returns:
          (B, T, d); rows of padding mean nothing.

        Raises:
          DataError: more tokens than there are places.
        """
        if ids.shape[1] > self.longest:
            raise DataError(
                f"texts are {ids.shape[1]} tokens long, expected at most {self.longest}, the places "
                "of this encoder; cut them"
            )
        mask = mask.astype(bool)
        segments = jnp.zeros_like(ids) if segments is None else segments
        places = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        if self.padding is not None:
            counted = ids != self.padding
            places = jnp.cumsum(counted, axis=1) * counted + self.padding
        sizes = (self.vocabulary, self.width, self.positions, self.types)
        x = Embeddings(*sizes, self.epsilon, self.dtype, name="embeddings")(ids, places, segments)
        if keys is not None:
            x = dropout(x, self.dropout, _folded(keys, _SALTS["embeddings"]))
        for number in range(self.depth):
            layer = BertLayer(
                number,
                self.width,
                self.heads,
                self.hidden,
                self.activation,
                self.epsilon,
                self.dropout,
                self.attention_dropout,
                self.dtype,
                name=f"layer{number}",
            )
            x = layer(x, mask, None if keys is None else _folded(keys, 16 + number), end)
        return x


def mean_pool(x: Array, mask: Array) -> Array:
    """The mean over the tokens (B, T, d) that are no padding, (B, d) float32 at least."""
    kept = mask.astype(jnp.promote_types(x.dtype, jnp.float32))[..., None]
    return (x * kept).sum(axis=1) / jnp.maximum(kept.sum(axis=1), 1)


def _folded(keys: Array, salt: int) -> Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, salt))(keys)

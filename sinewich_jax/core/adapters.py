"""Adapters and AdapterFusion: small modules beside a frozen network, composed by attention.

    a = f(x D + d)                     the bottleneck, m wide
    z = s (a U + u)                    what an adapter adds to its input, before any residual
    p_n = softmax_n(q . k_n),   q = h Q + b_Q,   k_n = z_n K + b_K
    o = sum_n p_n z_n V                the fusion of N adapters for the query h

There is no ``1/sqrt(d)`` in the scores, and V has no bias and starts at the identity, so that at
first fusion is close to an average. A dot product with a key is a dot product with what the key
is made of, and V is linear. The sums can therefore be folded, exactly:

    u   = q K^T                        one vector a token, not one a token and adapter
    p_n = softmax_n(u . z_n)           q . b_K is the same for all n and cancels
    o   = (sum_n p_n z_n) V

and once more into the bottlenecks, so that no z_n is ever built:

    u . z_n         = s (a_n . (U_n u) + u . u_n)
    sum_n p_n z_n   = s (sum_n (p_n a_n) U_n + sum_n p_n u_n)

Two products with (d, d) kernels a token remain for any number of adapters, in place of 1 + 2 N.

N adapters are one :class:`Bottleneck` whose arrays have a leading axis N; they are computed in one
batched product. Kernels are (in, out). Sources: Houlsby et al. (arXiv 1902.00751) and Pfeiffer et
al. (arXiv 2005.00247) for the modules, the latter for fusion; folding is ours.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sinewich_jax.core.products import rows_product
from sinewich_jax.core.spectrum import at_least_float32
from sinewich_jax.errors import ConfigError, did_you_mean

Activation = Callable[[jax.Array], jax.Array]
Norm = Callable[[jax.Array], jax.Array]
Update = Callable[[jax.Array], jax.Array]

FORMS = ("folded", "reference")
VALUE_NOISE = 1e-6
"""What stands off the diagonal of V at the start."""


# --- bottlenecks ----------------------------------------------------------------------------------


class Bottleneck(NamedTuple):
    """One adapter, or N of them with a leading axis.

    Attributes:
      down_kernel: D (d, m), or (N, d, m).
      down_bias: (m,), or (N, m).
      up_kernel: U (m, d), or (N, m, d).
      up_bias: (d,), or (N, d).
    """

    down_kernel: jax.Array
    down_bias: jax.Array
    up_kernel: jax.Array
    up_bias: jax.Array


class Adapted(NamedTuple):
    """What adapters make of an input.

    Attributes:
      up: z (..., d), or (N, ..., d): to be added to the input; no residual is in it.
      hidden: a (..., m), or (N, ..., m), after the activation.
    """

    up: jax.Array
    hidden: jax.Array


def bottleneck(
    x: jax.Array, adapter: Bottleneck, activation: Activation = jax.nn.relu, scale: float = 1.0
) -> Adapted:
    """``z = s (f(x D + d) U + u)`` by one adapter.

    Args:
      x: (..., d).
      adapter: without an axis of adapters.
      activation: f, element by element.
      scale: s; 1 for Pfeiffer and Houlsby adapters, 4 for parallel ones.

    Returns:
      ``up`` (..., d) and ``hidden`` (..., m).
    """
    hidden = activation(rows_product(x, adapter.down_kernel) + adapter.down_bias)
    return Adapted(scale * (rows_product(hidden, adapter.up_kernel) + adapter.up_bias), hidden)


def bottlenecks(
    x: jax.Array, adapters: Bottleneck, activation: Activation = jax.nn.relu, scale: float = 1.0
) -> Adapted:
    """N adapters on one input, in two batched products.

    Args:
      x: (..., d), the same for all.
      adapters: N of them.
      activation: as in :func:`bottleneck`.
      scale: as in :func:`bottleneck`.

    Returns:
      ``up`` (N, ..., d) and ``hidden`` (N, ..., m).
    """
    hidden = hiddens(x, adapters, activation)
    bias = _along(adapters.up_bias, hidden.ndim)
    return Adapted(
        scale * (jnp.einsum("n...m,nmd->n...d", hidden, adapters.up_kernel) + bias), hidden
    )


def hiddens(x: jax.Array, adapters: Bottleneck, activation: Activation = jax.nn.relu) -> jax.Array:
    """``a_n = f(x D_n + d_n)``, (N, ..., m): all that :func:`fuse_bottlenecks` asks for."""
    product = jnp.einsum("...d,ndm->n...m", x, adapters.down_kernel)
    return activation(product + _along(adapters.down_bias, product.ndim))


def bottleneck_by_task(
    x: jax.Array,
    adapters: Bottleneck,
    task_ids: jax.Array,
    activation: Activation = jax.nn.relu,
    scale: float = 1.0,
) -> Adapted:
    """Every sample of a batch through the adapter of its own task.

    Args:
      x: (B, ..., d).
      adapters: N of them.
      task_ids: int (B,), from 0 to N - 1.
      activation: as in :func:`bottleneck`.
      scale: as in :func:`bottleneck`.

    Returns:
      ``up`` (B, ..., d) and ``hidden`` (B, ..., m).
    """
    chosen = jax.tree.map(lambda leaf: leaf[task_ids], adapters)
    return jax.vmap(lambda one, own: bottleneck(one, own, activation, scale))(x, chosen)


def bottleneck_by_part(
    x: jax.Array,
    adapters: Bottleneck,
    lengths: Sequence[int],
    activation: Activation = jax.nn.relu,
    scale: float = 1.0,
) -> Adapted:
    """Consecutive tokens of a text through an adapter each: the first ``lengths[0]`` by the first.

    Args:
      x: (..., T, d).
      adapters: N of them.
      lengths: N lengths that sum to T.
      activation: as in :func:`bottleneck`.
      scale: as in :func:`bottleneck`.

    Returns:
      ``up`` (..., T, d) and ``hidden`` (..., T, m).

    Raises:
      ConfigError: lengths that are not one an adapter, or sum to something else.
    """
    count = len(adapters.down_bias)
    if len(lengths) != count or sum(lengths) != x.shape[-2] or min(lengths) < 0:
        raise ConfigError(
            f"the lengths of parts are {list(lengths)}, expected {count}, one an adapter, that sum "
            f"to the {x.shape[-2]} tokens"
        )
    ends = [sum(lengths[: n + 1]) for n in range(count - 1)]
    parts = [
        bottleneck(part, jax.tree.map(lambda leaf, n=n: leaf[n], adapters), activation, scale)
        for n, part in enumerate(jnp.split(x, ends, axis=-2))
    ]
    return Adapted(*(jnp.concatenate(leaves, axis=-2) for leaves in zip(*parts, strict=True)))


# --- where they stand in a layer ------------------------------------------------------------------


def after_norm(x: jax.Array, residual: jax.Array, norm: Norm, *updates: Update) -> jax.Array:
    """The Pfeiffer placement: ``LN(x' + i)`` with ``x' = x + update(LN(x + i))``.

    The update reads what the frozen layer would have given, and the layer's own norm is used twice.
    Several updates are a stack: each reads what the frozen layer would make of those before it.

    Args:
      x: (..., d), the output of the sub-layer.
      residual: i (..., d), its input.
      norm: the frozen layer norm behind the sub-layer.
      *updates: from (..., d) to (..., d): an adapter, a mixture of several, or their fusion, which
        takes its argument for the query. None leaves the layer as it is.
    """
    for update in updates:
        x = x + update(norm(x + residual))
    return norm(x + residual)


def before_norm(x: jax.Array, residual: jax.Array, norm: Norm, *updates: Update) -> jax.Array:
    """The Houlsby placement: ``LN(x' + i)`` with ``x' = x + update(x)``.

    It stands behind attention and behind the feed-forward map. Arguments are those of
    :func:`after_norm`.
    """
    for update in updates:
        x = x + update(x)
    return norm(x + residual)


def in_parallel(x: jax.Array, residual: jax.Array, norm: Norm, *updates: Update) -> jax.Array:
    """The parallel placement: ``LN(x' + i)`` with ``x' = x + update(i)``, beside the sub-layer.

    Arguments are those of :func:`after_norm`; several updates all read i, and are added.
    """
    for update in updates:
        x = x + update(residual)
    return norm(x + residual)


# --- fusion ---------------------------------------------------------------------------------------


class FusionKernels(NamedTuple):
    """The parameters of a fusion layer.

    Attributes:
      query_kernel: Q (d, d).
      query_bias: (d,).
      key_kernel: K (d, d).
      key_bias: (d,); its gradient is zero, as it cancels in the softmax.
      value_kernel: V (d, d), or None for the identity ("static" fusion).
    """

    query_kernel: jax.Array
    query_bias: jax.Array
    key_kernel: jax.Array
    key_bias: jax.Array
    value_kernel: jax.Array | None = None


class Fused(NamedTuple):
    """The outcome of a fusion.

    Attributes:
      context: o (..., d), before any residual.
      attention: p (N, ...), float32 at least; sums to 1 over N.
    """

    context: jax.Array
    attention: jax.Array


def fuse(
    query: jax.Array,
    adapters: jax.Array,
    kernels: FusionKernels,
    *,
    form: str = "folded",
    temperature: float = 1.0,
    score_mask: jax.Array | None = None,
) -> Fused:
    """``o = sum_n softmax_n(q . k_n) z_n V``, the attention of a token over N adapters.

    Args:
      query: h (..., d), the output of the frozen sub-layer. Axes of length 1 are repeated, its own
        and those of the adapters.
      adapters: z (N, ..., d), ``up`` of each adapter.
      kernels: Q, K and V.
      form: ``"folded"``, or ``"reference"`` as the paper writes it; equal but for rounding.
      temperature: divides the scores; finite and above 0, which of an array is not looked at.
      score_mask: (N, ...) factors of the scores, for dropout on them; None for none.

    Returns:
      The context and the attention.

    Raises:
      ConfigError: another form, another temperature, or adapters that do not fit the query.
    """
    if form not in FORMS:
        raise ConfigError(f"the form of fusion is {form!r}{did_you_mean(form, FORMS)}")
    _check_shapes("adapters", query, adapters, query.shape[-1])
    _check_temperature(temperature)
    asked = query @ kernels.query_kernel + kernels.query_bias
    if form == "reference":
        keys = adapters @ kernels.key_kernel + kernels.key_bias
        attention = _attend(_dot("...d,n...d->n...", asked, keys), temperature, score_mask)
        context = jnp.einsum("n...,n...d->...d", attention, _valued(adapters, kernels))
        return Fused(context.astype(query.dtype), attention)
    folded = asked @ kernels.key_kernel.T
    scores = _against_each(folded, adapters)
    if score_mask is not None:  # then the part that all scores share no longer cancels
        scores += asked @ kernels.key_bias
    attention = _attend(scores, temperature, score_mask)
    mixed = _mix(attention, adapters).astype(query.dtype)
    return Fused(_valued(mixed, kernels), attention)


def fuse_bottlenecks(
    query: jax.Array,
    hidden: jax.Array,
    adapters: Bottleneck,
    kernels: FusionKernels,
    *,
    scale: float = 1.0,
    temperature: float = 1.0,
    score_mask: jax.Array | None = None,
) -> Fused:
    """:func:`fuse` of N bottlenecks from their hidden layers; (N, ..., d) is never built.

    Args:
      query: h (..., d), as in :func:`fuse`.
      hidden: a (N, ..., m), see :func:`hiddens`.
      adapters: N of them, of which ``up_kernel`` and ``up_bias`` are read.
      kernels: Q, K and V.
      scale: s of the adapters.
      temperature: as in :func:`fuse`.
      score_mask: as in :func:`fuse`.

    Returns:
      The context and the attention, equal to those of :func:`fuse` but for rounding.

    Raises:
      ConfigError: another temperature, or hidden layers that do not fit the query.
    """
    _check_shapes("hidden layers", query, hidden, adapters.up_kernel.shape[-2])
    _check_temperature(temperature)
    asked = query @ kernels.query_kernel + kernels.query_bias
    folded = asked @ kernels.key_kernel.T
    narrow = jnp.einsum("...d,nmd->...nm", folded, adapters.up_kernel)
    scores = _dot("...nm,n...m->n...", narrow, hidden)
    scores += jnp.einsum("...d,nd->n...", folded, adapters.up_bias)
    scores *= scale
    if score_mask is not None:
        scores += asked @ kernels.key_bias
    attention = _attend(scores, temperature, score_mask)
    weighted = jnp.einsum("n...,n...m->...nm", attention, hidden).astype(query.dtype)
    mixed = jnp.einsum("...nm,nmd->...d", weighted, adapters.up_kernel)
    mixed += jnp.einsum("n...,nd->...d", attention, adapters.up_bias)
    return Fused(_valued(scale * mixed.astype(query.dtype), kernels), attention)


def value_start(width: int, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """V (d, d) at the start: 1 on the diagonal, :data:`VALUE_NOISE` elsewhere."""
    return jnp.full((width, width), VALUE_NOISE, dtype).at[jnp.diag_indices(width)].set(1)


def value_penalty(value_kernel: jax.Array, weight: float = 0.01) -> jax.Array:
    """``weight * |I - V|_F^2``: what keeps V near the identity; a term of the loss.

    V belongs in no weight decay, which would pull it to zero.

    Args:
      value_kernel: V (d, d), or (L, d, d) of L layers, whose penalties are summed.
      weight: 0.01 in the paper.

    Returns:
      A scalar, float32 at least.

    Raises:
      ConfigError: a kernel of another shape.
    """
    shape = value_kernel.shape
    if len(shape) not in (2, 3) or shape[-1] != shape[-2]:
        raise ConfigError(
            f"the value kernel has shape {shape}, expected (d, d), or (L, d, d) of L layers"
        )
    value_kernel = value_kernel.astype(at_least_float32(value_kernel))
    return weight * jnp.sum(jnp.square(value_kernel - jnp.eye(value_kernel.shape[-1])))


def average(outputs: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """``sum_n w_n z_n`` of N outputs (N, ..., d); without weights (N,) their mean."""
    if weights is None:
        return outputs.mean(axis=0)
    return jnp.tensordot(jnp.asarray(weights, outputs.dtype), outputs, axes=1)


def most_attended(attention: jax.Array, keep: int, weights: jax.Array | None = None) -> jax.Array:
    """The numbers of the adapters with the highest mean attention, for pruning the others.

    Args:
      attention: p (N, ...).
      keep: how many, from 1 to N.
      weights: (...), of the tokens: 0 for padding; None counts all alike.

    Returns:
      int (keep,), rising; among equals the first stay.

    Raises:
      ConfigError: another number to keep.
    """
    count = len(attention)
    if not 1 <= keep <= count:
        raise ConfigError(f"keep is {keep}, expected from 1 to the {count} adapters")
    shares = attention if weights is None else attention * weights
    order = jnp.argsort(-shares.reshape(count, -1).sum(axis=1), stable=True)
    return jnp.sort(order[:keep])


def _dot(rule: str, *operands: jax.Array) -> jax.Array:
    """Scores, accumulated in float32 at least."""
    return jnp.einsum(rule, *operands, preferred_element_type=at_least_float32(*operands))


# The two sums over z (N, ..., d). To batch them over tokens XLA on CPU copies all of z, which takes
# longer than the sums; written out, each reads z once. Both are linear in either argument, and what
# autodiff makes of them as they stand takes the gradient three to five times as long. Their
# derivatives are therefore given, each in the words whose transpose is fast: with respect to u it
# is again a sum over n written out, with respect to p a sum by halves, with respect to z a product.


@jax.custom_jvp
def _against_each(query: jax.Array, adapters: jax.Array) -> jax.Array:
    """``u . z_n``, (N, ...), for u (..., d) and z (N, ..., d), in float32 at least."""
    product = query.astype(at_least_float32(query, adapters)) * adapters
    while product.shape[-1] > 64 and product.shape[-1] % 2 == 0:
        half = product.shape[-1] // 2
        product = product[..., :half] + product[..., half:]
    return product.sum(axis=-1)


@jax.custom_jvp
def _mix(weights: jax.Array, adapters: jax.Array) -> jax.Array:
    """``sum_n p_n z_n``, (..., d), for p (N, ...) and z (N, ..., d)."""
    return sum(p[..., None] * z for p, z in zip(_each(weights), _each(adapters), strict=True))


def _each(x: jax.Array) -> list[jax.Array]:
    """``x[0]``, ``x[1]`` and so on; the transpose is one concatenation."""
    return [jnp.squeeze(one, axis=0) for one in jax.lax.split(x, (1,) * len(x))]


def _spread(p: jax.Array, width: int) -> jax.Array:
    """p (...) as (..., width), by doublings; the transpose is a sum by halves."""
    if width > 64 and width % 2 == 0:
        half = _spread(p, width // 2)
        return jnp.concatenate([half, half], axis=-1)
    return jnp.broadcast_to(p[..., None], (*p.shape, width))


def _by_query(d_query: jax.Array, scores: jax.Array, _: jax.Array, z: jax.Array) -> jax.Array:
    d_query = d_query.astype(scores.dtype)
    return jnp.stack([(d_query * one).sum(axis=-1) for one in _each(z)])


def _by_weights(d_weights: jax.Array, _: jax.Array, __: jax.Array, z: jax.Array) -> jax.Array:
    pairs = zip(_each(d_weights), _each(z), strict=True)
    return sum(_spread(p, z.shape[-1]) * one for p, one in pairs)


_against_each.defjvps(
    _by_query, lambda dz, scores, query, _: (query.astype(scores.dtype) * dz).sum(axis=-1)
)
_mix.defjvps(_by_weights, lambda dz, _, weights, __: (weights[..., None] * dz).sum(axis=0))


def _check_shapes(name: str, query: jax.Array, made: jax.Array, width: int) -> None:
    """Refuses what is made (N, ..., width) by adapters where it does not go with the query."""
    lead, own = query.shape[:-1], made.shape[1:-1]
    pairs = zip(lead, own, strict=False)
    if (
        made.ndim != query.ndim + 1
        or made.shape[-1] != width
        or any(a != b and 1 not in (a, b) for a, b in pairs)
    ):
        expected = ", ".join(("N", *map(str, lead), str(width)))
        raise ConfigError(
            f"the {name} have shape {made.shape}, expected ({expected}) beside a query of shape "
            f"{query.shape}"
        )


def _check_temperature(temperature: float) -> None:
    """Refuses a number that is none to divide by; arrays, which may be traced, pass."""
    if isinstance(temperature, jax.Array | np.ndarray):
        return
    number = isinstance(temperature, numbers.Real) and not isinstance(temperature, bool)
    if not number or not (math.isfinite(temperature) and temperature > 0):
        raise ConfigError(
            f"the temperature of fusion is {temperature!r}, expected a finite number above 0"
        )


def _attend(scores: jax.Array, temperature: float, mask: jax.Array | None) -> jax.Array:
    if mask is not None:
        scores = scores * mask
    return jax.nn.softmax(scores / temperature, axis=0)


def _valued(x: jax.Array, kernels: FusionKernels) -> jax.Array:
    return x if kernels.value_kernel is None else x @ kernels.value_kernel


def _along(bias: jax.Array, ndim: int) -> jax.Array:
    """A bias (N, c) against (N, ..., c)."""
    return bias.reshape(bias.shape[0], *(1,) * (ndim - 2), bias.shape[1])

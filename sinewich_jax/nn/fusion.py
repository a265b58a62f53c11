"""Adapters on a frozen encoder, N stacked on one axis, and how they are composed.

    model = AdaptedBert(bert, names=("sst2", "mrpc", "rte"), hidden=48)
    model.apply(variables, ids, mask, how=Only("rte"))            # one adapter
    model.apply(variables, ids, mask, how=ByTask(task_ids))       # each text its own
    model.apply(variables, ids, mask, how=InTurn())               # texts of the tasks in turn
    model.apply(variables, ids, mask, how=Stack(Only("sst2"), Only("rte")))
    model.apply(variables, ids, mask, how=Fuse())                 # attention over all of them

A composition is a value: it says which of the stacked adapters act on which sample or token, and
:mod:`sinewich_jax.core.adapters` does it. ``Fuse`` is stage two of AdapterFusion (arXiv
2005.00247): its kernels are trained, and nothing else.

Parameter names: ``encoder/...`` as in :mod:`~sinewich_jax.nn.bert`;
``adapters_layer{n}_{place}/{down_kernel, down_bias, up_kernel, up_bias}`` with a leading axis N;
``fusion_layer{n}_{place}/{query_kernel, query_bias, key_kernel, key_bias, value_kernel}``.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sinewich_jax.core import adapters as core
from sinewich_jax.core.adapters import Bottleneck, FusionKernels
from sinewich_jax.errors import ConfigError, did_you_mean
from sinewich_jax.nn.bert import ACTIVATIONS, PLACES, Bert, Frequencies, Norm, plain_end

Array = jax.Array
Dtype = Any


class Placement(NamedTuple):
    """Where adapters stand.

    Attributes:
      end: one of the placements of :mod:`sinewich_jax.core.adapters`.
      places: the sub-layers that have one.
      scale: multiplier of what they add.
      activation: one of :data:`~sinewich_jax.nn.bert.ACTIVATIONS`.
      start: one of :data:`STARTS`.
    """

    end: Callable[..., Array]
    places: tuple[str, ...]
    scale: float
    activation: str
    start: str


PLACEMENTS = {
    "pfeiffer": Placement(core.after_norm, ("output",), 1.0, "relu", "bert"),
    "houlsby": Placement(core.before_norm, PLACES, 1.0, "swish", "bert"),
    "parallel": Placement(core.in_parallel, ("output",), 4.0, "relu", "zero"),
}
"""As the adapters library has them (``seq_bn``, ``double_seq_bn``, ``par_bn``)."""

FORMS = ("bottleneck", *core.FORMS)
"""Ways to compute a fusion, equal but for rounding."""

_normal = nn.initializers.normal(0.02)
_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", batch_axis=(0,))
_small = nn.initializers.truncated_normal(0.01, lower=-2.0, upper=2.0)
STARTS = {
    "bert": (_normal, _normal),
    "zero": (_uniform, nn.initializers.zeros),
    "houlsby": (_small, _small),
}
"""Start of the down and of the up kernel. Biases start at zero. ``"zero"`` leaves the network as it
is; the others all but do (``mam_adapter`` and ``houlsby`` of the adapters library)."""


class Adapters(nn.Module):
    """The N adapters of one place.

    Attributes:
      count: N.
      width: d of the encoder.
      hidden: m of the bottleneck.
      start: one of :data:`STARTS`.
    """

    count: int
    width: int
    hidden: int
    start: str = "bert"

    @nn.compact
    def __call__(self) -> Bottleneck:
        """Their parameters, float32."""
        down, up = STARTS[self.start]
        zeros, n, d, m = nn.initializers.zeros, self.count, self.width, self.hidden
        return Bottleneck(
            self.param("down_kernel", down, (n, d, m)),
            self.param("down_bias", zeros, (n, m)),
            self.param("up_kernel", up, (n, m, d)),
            self.param("up_bias", zeros, (n, d)),
        )


class Fusion(nn.Module):
    """The attention of one place over its adapters.

    Attributes:
      width: d of the encoder.
    """

    width: int

    @nn.compact
    def __call__(self) -> FusionKernels:
        """Its parameters, float32; V starts next to the identity."""
        zeros, d = nn.initializers.zeros, self.width
        return FusionKernels(
            self.param("query_kernel", _normal, (d, d)),
            self.param("query_bias", zeros, (d,)),
            self.param("key_kernel", _normal, (d, d)),
            self.param("key_bias", zeros, (d,)),
            self.param("value_kernel", lambda key: core.value_start(d)),
        )


# --- compositions ---------------------------------------------------------------------------------


class Site(NamedTuple):
    """What a composition has to work with at one place.

    Attributes:
      names: of the N adapters.
      many: their parameters, in the compute dtype.
      kernels: of the fusion there, or None.
      activation: of the bottlenecks.
      scale: of the bottlenecks.
      attend: is given attention (N, ...) where there is some, by every fusion of a stack.
    """

    names: tuple[str, ...]
    many: Bottleneck
    kernels: FusionKernels | None
    activation: Callable[[Array], Array]
    scale: float
    attend: Callable[[Array], None]

    def chosen(self, names: Sequence[str] | None) -> Bottleneck:
        """Some of the adapters, in the order asked for; None for all."""
        if names is None:
            return self.many
        if isinstance(names, str) or not names:
            raise ConfigError(
                f"the adapters are {names!r}, expected a tuple of names, at least one"
            )
        for name in names:
            if name not in self.names:
                raise ConfigError(f"there is no adapter {name!r}{did_you_mean(name, self.names)}")
        rows = jnp.array([self.names.index(name) for name in names])
        return jax.tree.map(lambda leaf: leaf[rows], self.many)


class Composition(Protocol):
    """Which adapters act, and how."""

    def updates(self, site: Site) -> tuple[core.Update, ...]:
        """What is added at a place; several one after the other."""


@dataclasses.dataclass(frozen=True)
class Plain:
    """No adapter: the encoder as it is."""

    def updates(self, site: Site) -> tuple[core.Update, ...]:
        """Nothing."""
        del site
        return ()


@dataclasses.dataclass(frozen=True)
class Only:
    """One adapter for all samples.

    Attributes:
      name: of the adapter.
    """

    name: str

    def updates(self, site: Site) -> tuple[core.Update, ...]:
        """Its ``up``."""
        one = jax.tree.map(lambda leaf: leaf[0], site.chosen([self.name]))
        return (lambda h: core.bottleneck(h, one, site.activation, site.scale).up,)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ByTask:
    """Every sample its own adapter.

    It is a pytree with one leaf, so that it can be an argument of a compiled function:

        step = jax.jit(lambda variables, how: model.apply(variables, ids, mask, how=how))
        step(variables, ByTask(task_ids))

    Attributes:
      task_ids: int (B,), numbers of adapters in the order of their names. One that no adapter has
        is refused, except among numbers that are an argument of a compiled function.
    """

    task_ids: Array

    def updates(self, site: Site) -> tuple[core.Update, ...]:
        """The ``up`` of each sample's adapter."""
        run = functools.partial(core.bottleneck_by_task, activation=site.activation)
        ids, count = jnp.asarray(self.task_ids), len(site.names)
        if ids.ndim != 1 or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ConfigError(f"task_ids are {ids.dtype} of shape {ids.shape}, expected int (B,)")
        # Numbers that are only known on the device cannot be looked at.
        leaves = jax.tree.leaves(self.task_ids)
        if ids.size and not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            known = np.asarray(self.task_ids)
            if not 0 <= known.min() <= known.max() < count:
                raise ConfigError(
                    f"task_ids go from {known.min()} to {known.max()}, expected from 0 to "
                    f"{count - 1}, the numbers of the {count} adapters"
                )

        def update(h: Array) -> Array:
            if len(ids) != len(h):
                raise ConfigError(
                    f"there are {len(ids)} task_ids for {len(h)} texts, expected one each"
                )
            return run(h, site.many, ids, scale=site.scale).up

        return (update,)


@dataclasses.dataclass(frozen=True)
class InTurn:
    """Samples of the N tasks in turn, each through the adapter of its task: one batched product.

    Sample b has the adapter ``b % N``.
    """

    def updates(self, site: Site) -> tuple[core.Update, ...]:
        """The ``up`` of each sample's adapter."""
        run = functools.partial(core.bottleneck, activation=site.activation, scale=site.scale)

        def update(h: Array) -> Array:
            if len(h) % len(site.names):
                raise ConfigError(
                    f"{len(h)} texts are in turn those of {len(site.names)} adapters, expected a "
                    "multiple of them"
                )
            grouped = h.reshape(-1, len(site.names), *h.shape[1:])
            made = jax.vmap(lambda one, x: run(x, one).up, (0, 1), 1)(site.many, grouped)
            return made.reshape(h.shape)

        return (update,)


@dataclasses.dataclass(frozen=True)
class Average:
    """The mean of what several adapters add.

    Attributes:
      names: of the adapters; None for all.
      weights: of each; None for equal ones.
    """

    names: tuple[str, ...] | None = None
    weights: tuple[float, ...] | None = None

    def updates(self, site: Site) -> tuple[core.Update, ...]:
        """The weighted sum of their ``up``."""
        many = site.chosen(self.names)
        if self.weights is not None and len(self.weights) != len(many.up_bias):
            raise ConfigError(
                f"there are {len(self.weights)} weights for {len(many.up_bias)} adapters; expected "
                "one each"
            )
        weights = None if self.weights is None else jnp.array(self.weights)

        def update(h: Array) -> Array:
            made = core.bottlenecks(h, many, site.activation, site.scale)
            return core.average(made.up, weights)

        return (update,)


@dataclasses.dataclass(frozen=True)
class Split:
    """Consecutive tokens of every text to an adapter each.

    Attributes:
      names: of the adapters.
      lengths: tokens of each, which sum to the length of the texts.
    """

    names: tuple[str, ...]
    lengths: tuple[int, ...]

    def updates(self, site: Site) -> tuple[core.Update, ...]:
        """The ``up`` of each token's adapter."""
        run = functools.partial(core.bottleneck_by_part, activation=site.activation)
        many = site.chosen(self.names)
        return (lambda h: run(h, many, self.lengths, scale=site.scale).up,)


@dataclasses.dataclass(frozen=True)
class Fuse:
    """The attention of each token over adapters.

    Attributes:
      form: ``"bottleneck"``, ``"folded"`` or ``"reference"``, equal but for rounding.
      temperature: divides the scores; finite and above 0.
      names: of the adapters, to leave some out after training; None for all.
    """

    form: str = "bottleneck"
    temperature: float = 1.0
    names: tuple[str, ...] | None = None

    def updates(self, site: Site) -> tuple[core.Update, ...]:
        """The context of the attention."""
        if site.kernels is None:
            raise ConfigError("there is no fusion in this network; make it with fused=True")
        if self.form not in FORMS:
            raise ConfigError(
                f"the form of fusion is {self.form!r}{did_you_mean(self.form, FORMS)}"
            )
        kernels, many = site.kernels, site.chosen(self.names)

        def update(h: Array) -> Array:
            if self.form == "bottleneck":
                hidden = core.hiddens(h, many, site.activation)
                found = core.fuse_bottlenecks(
                    h, hidden, many, kernels, scale=site.scale, temperature=self.temperature
                )
            else:
                made = core.bottlenecks(h, many, site.activation, site.scale)
                found = core.fuse(h, made.up, kernels, form=self.form, temperature=self.temperature)
            site.attend(found.attention)
            return found.context

        return (update,)


@dataclasses.dataclass(frozen=True, init=False)
class Stack:
    """Compositions one after the other: each reads what those before it have made.

    All fusions in a stack have the same kernels, those of the place.

    Attributes:
      parts: the compositions, the first at the bottom.
    """

    parts: tuple[Composition, ...]

    def __init__(self, *parts: Composition) -> None:
        """Takes the compositions, the first at the bottom."""
        object.__setattr__(self, "parts", parts)

    def updates(self, site: Site) -> tuple[core.Update, ...]:
        """Theirs, in order."""
        return tuple(update for part in self.parts for update in part.updates(site))


# --- on an encoder --------------------------------------------------------------------------------


class Encoded(NamedTuple):
    """What an adapted encoder gives.

    Attributes:
      hidden: (B, T, d).
      attention: place (``"layer0_output"``) -> (N, B, T), where adapters were fused. In a stack of
        several fusions that is the first; those after it are ``"layer0_output_2"`` and so on.
    """

    hidden: Array
    attention: dict[str, Array]


class AdaptedBert(nn.Module):
    """An encoder with adapters.

    Attributes:
      bert: the encoder.
      names: of the adapters; () for none.
      hidden: m, width of their bottlenecks.
      placement: one of :data:`PLACEMENTS`.
      fused: whether there is a fusion at every place.
      dropped: layers without adapters (AdapterDrop, arXiv 2010.11918).
    """

    bert: Bert
    names: tuple[str, ...]
    hidden: int = 48
    placement: str = "pfeiffer"
    fused: bool = False
    dropped: tuple[int, ...] = ()

    def setup(self) -> None:
        """Declares the encoder, and adapters and fusions by place."""
        if self.placement not in PLACEMENTS:
            raise ConfigError(
                f"placement is {self.placement!r}{did_you_mean(self.placement, PLACEMENTS)}"
            )
        if isinstance(self.names, str):
            raise ConfigError(f"the adapters are {self.names!r}, expected a tuple of names")
        if len(set(self.names)) < len(self.names) or (self.fused and not self.names):
            raise ConfigError(f"the adapters are {self.names}; expected names, each once")
        if beyond := [n for n in self.dropped if not 0 <= n < self.bert.depth]:
            raise ConfigError(
                f"dropped names layer {beyond[0]}, expected from 0 to {self.bert.depth - 1}"
            )
        if self.names and not self.sites:
            raise ConfigError(
                f"dropped is {self.dropped}, all {self.bert.depth} layers, expected one left for "
                f"the adapters {self.names}"
            )
        self.encoder = self.bert.clone(parent=None, name="encoder")
        width, kept = self.bert.width, PLACEMENTS[self.placement]
        self.sets = {
            place: Adapters(
                len(self.names), width, self.hidden, kept.start, name=f"adapters_{place}"
            )
            for place in self.sites
        }
        self.fusions = {
            place: Fusion(width, name=f"fusion_{place}")
            for place in (self.sites if self.fused else ())
        }

    @property
    def sites(self) -> tuple[str, ...]:
        """The places that have adapters, ``"layer0_output"`` and so on."""
        if not self.names:
            return ()
        layers = (n for n in range(self.bert.depth) if n not in self.dropped)
        places = PLACEMENTS[self.placement].places
        return tuple(f"layer{n}_{place}" for n in layers for place in places)

    def __call__(
        self,
        ids: Array,
        mask: Array,
        segments: Array | None = None,
        keys: Array | None = None,
        how: Composition | None = None,
        omega: Frequencies | None = None,
    ) -> Encoded:
        """Encodes a batch of texts.

        Args:
          ids: as of :class:`~sinewich_jax.nn.bert.Bert`.
          mask: as there.
          segments: as there.
          keys: as there.
          how: the composition; None fuses where there is fusion, else averages.
          omega: as there.

        Raises:
          ConfigError: an adapter that is not there, or a fusion.
        """
        how = (Fuse() if self.fused else Average()) if how is None else how
        kept, attention = PLACEMENTS[self.placement], collections.defaultdict(list)
        cast = functools.partial(jax.tree.map, lambda leaf: leaf.astype(self.bert.dtype))
        many = {place: cast(found()) for place, found in self.sets.items()}
        kernels = {place: cast(found()) for place, found in self.fusions.items()}

        def end(layer: int, place: str, x: Array, residual: Array, norm: Norm) -> Array:
            name = f"layer{layer}_{place}"
            if name not in many:
                return plain_end(layer, place, x, residual, norm)
            site = Site(
                self.names,
                many[name],
                kernels.get(name),
                ACTIVATIONS[kept.activation],
                kept.scale,
                attention[name].append,
            )
            return kept.end(x, residual, norm, *how.updates(site))

        hidden = self.encoder(ids, mask, segments, keys, end, omega)
        named = {
            place if n == 1 else f"{place}_{n}": one
            for place, found in attention.items()
            for n, one in enumerate(found, 1)
        }
        return Encoded(hidden, named)

    def diagnostics(self, omega: Frequencies) -> dict[str, Any]:
        """Diagnostics of every task kernel of the encoder, ``layer{n}/{name}``."""
        return self.encoder.diagnostics(omega)

"""Loss weightings: how the losses of T tasks become one step.

    step = sum_t a_t g_t,        (a, state) = weigh(state, signals)

A weighting is a pair of pure functions and says what it has to see: losses alone, the Gram matrix
of the tasks' gradients (``core.surgery``), or the losses once more after the step. Its state is a
dict of arrays, kept in the checkpoint. Coefficients apply to the shared parameters; what belongs to
one task alone learns from its own loss.

    rule = make("dwa", tasks=3, steps_per_epoch=100)
    state = rule.init()
    coefficients, state = rule.weigh(state, Signals(losses, gram, key))

Formulas as in LibMTL (Lin and Zhang 2023), whose defaults these are unless a docstring says
otherwise. Written from the papers named below.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sinewich_jax.core import surgery
from sinewich_jax.errors import ConfigError, did_you_mean

Array = jax.Array
State = dict[str, Array]


class Signals(NamedTuple):
    """What a weighting may look at in one step.

    Attributes:
      losses: (T,) float32, of this batch.
      gram: (T, T) float32, :func:`surgery.gram` of the shared parameters' gradients; None for a
        weighting that does not ask for it.
      key: a typed random key of this step.
    """

    losses: Array
    gram: Array | None
    key: Array


@dataclasses.dataclass(frozen=True)
class Weighting:
    """A loss weighting of a known number of tasks.

    Attributes:
      init: ``() -> state``.
      weigh: ``(state, signals) -> ((T,) coefficients, state)``, traceable.
      needs_gram: it looks at ``signals.gram``.
      changes: the coefficients are not the same in every step.
      observe: ``(state, losses before the step, losses after it on the same batch) -> state``, or
        None; costs one more forward pass.
    """

    init: Callable[[], State]
    weigh: Callable[[State, Signals], tuple[Array, State]]
    needs_gram: bool = False
    changes: bool = True
    observe: Callable[[State, Array, Array], State] | None = None


Maker = Callable[..., Weighting]

_MAKERS: dict[str, Maker] = {}


def register(name: str) -> Callable[[Maker], Maker]:
    """Adds ``maker(tasks, **options) -> Weighting`` under ``name``, for :func:`make`.

    A new option that commands shall set, too, is one more of ``config.WEIGHTING_OPTIONS``.
    """

    def add(maker: Maker) -> Maker:
        if name in _MAKERS:
            raise ConfigError(f"loss weighting {name!r} is registered twice")
        _MAKERS[name] = maker
        return maker

    return add


def names() -> tuple[str, ...]:
    """The registered weightings, sorted."""
    return tuple(sorted(_MAKERS))


def options() -> tuple[str, ...]:
    """The names of all options that some weighting has, sorted."""
    return tuple(sorted({option for maker in _MAKERS.values() for option in _options(maker)}))


def _options(maker: Maker) -> list[str]:
    """The parameters after the number of tasks."""
    return list(inspect.signature(maker).parameters)[1:]


def make(name: str, tasks: int, **options: float | Sequence[float]) -> Weighting:
    """The weighting ``name`` for a number of tasks.

    Args:
      name: one of :func:`names`.
      tasks: T.
      **options: of that weighting, ``c=0.4`` for instance.

    Raises:
      ConfigError: on an unknown name or option, or no task at all.
    """
    if name not in _MAKERS:
        raise ConfigError(f"no loss weighting is called {name!r}{did_you_mean(name, _MAKERS)}")
    if tasks < 1:
        raise ConfigError(f"a loss weighting needs at least one task, found {tasks}")
    known = _options(_MAKERS[name])
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known) or " (it has none)"
            raise ConfigError(f"loss weighting {name!r} has no option {option!r}{hint}")
    return _MAKERS[name](tasks, **options)


# Losses alone -----------------------------------------------------------------------------------


@register("fixed")
def fixed(tasks: int, weights: Sequence[float] = ()) -> Weighting:
    """``sum_t w_t L_t`` with constants ``w_t`` (one each when none are given)."""
    weights = tuple(weights) or (1.0,) * tasks
    if len(weights) != tasks:
        raise ConfigError(f"{tasks} tasks need as many loss weights, found {len(weights)}")

    def weigh(state: State, signals: Signals) -> tuple[Array, State]:
        return jnp.asarray(weights, signals.losses.dtype), state

    return Weighting(dict, weigh, changes=False)


@register("equal")
def equal(tasks: int) -> Weighting:
    """``sum_t L_t``."""
    return fixed(tasks)


@register("random")
def random(tasks: int) -> Weighting:
    """A new softmax of T normal numbers each step, times T (Lin et al. 2022, arXiv 2111.10603).

    The factor T, which is not in the paper, keeps the mean weight at one.
    """
    return _stateless(
        lambda signals: tasks * jax.nn.softmax(jax.random.normal(signals.key, (tasks,)))
    )


@register("uncertainty")
def uncertainty(tasks: int, start: float = -0.5, learning_rate: float = 1e-3) -> Weighting:
    """``sum_t L_t / (2 exp(s_t)) + s_t / 2`` with learned ``s_t`` (Kendall et al. 2018).

    ``s_t``, the logarithm of a task's noise variance, tends to ``log L_t``. arXiv 1705.07115.

    Args:
      tasks: T.
      start: first value of all ``s_t``.
      learning_rate: of Adam on ``s``.
    """

    def weigh(state: State, signals: Signals) -> tuple[Array, State]:
        weights = 0.5 * jnp.exp(-state["log_variance"])
        slope = 0.5 - weights * signals.losses
        return weights, _adam(state, "log_variance", slope, learning_rate)

    return Weighting(lambda: _adam_state("log_variance", jnp.full(tasks, start)), weigh)


@register("dwa")
def dwa(tasks: int, temperature: float = 2.0, steps_per_epoch: int = 100) -> Weighting:
    """Dynamic weight averaging: tasks whose loss falls slowly weigh more (Liu et al. 2019).

        w = T softmax(r / temperature),        r_t = L_t(e - 1) / L_t(e - 2)

    with the mean losses of the last two epochs; ones during the first two. arXiv 1803.10704, eq. 7.

    Args:
      tasks: T.
      temperature: large values weigh all tasks alike.
      steps_per_epoch: steps whose losses are averaged.
    """

    _check_epoch(steps_per_epoch)

    def init() -> State:
        zeros = jnp.zeros(tasks)
        return {"step": jnp.zeros((), jnp.int32), "sum": zeros, "last": zeros, "before": zeros}

    def weigh(state: State, signals: Signals) -> tuple[Array, State]:
        begins = (state["step"] % steps_per_epoch == 0) & (state["step"] > 0)
        last = jnp.where(begins, state["sum"] / steps_per_epoch, state["last"])
        before = jnp.where(begins, state["last"], state["before"])
        total = jnp.where(begins, 0.0, state["sum"]) + signals.losses
        known = state["step"] >= 2 * steps_per_epoch
        ratio = jnp.where(known, last / jnp.maximum(before, surgery.TINY), 1.0)
        weights = tasks * jax.nn.softmax(ratio / temperature)
        step = state["step"] + 1
        return weights, {"step": step, "sum": total, "last": last, "before": before}

    return Weighting(init, weigh)


@register("famo")
def famo(
    tasks: int, learning_rate: float = 0.025, weight_decay: float = 1e-3, floor: float = 0.0
) -> Weighting:
    """Fast adaptive multitask optimisation: all log-losses fall at one rate (Liu et al. 2023).

        z = softmax(w),        a_t = (z_t / (L_t - floor)) / sum_s z_s / (L_s - floor)
        w moves along  (d z / d w)^T (log L before - log L after),  by Adam, after the step

    One more forward pass in place of T backward passes. arXiv 2306.03792, algorithm 1.

    Args:
      tasks: T.
      learning_rate: of Adam on ``w``.
      weight_decay: added to its slope.
      floor: a lower bound of the losses.
    """

    def above(losses: Array) -> Array:
        return jnp.maximum(losses - floor, 1e-8)

    def weigh(state: State, signals: Signals) -> tuple[Array, State]:
        share = jax.nn.softmax(state["logits"]) / above(signals.losses)
        return share / share.sum(), state

    def observe(state: State, before: Array, after: Array) -> State:
        change = jnp.log(above(before)) - jnp.log(above(after))
        _, pull = jax.vjp(jax.nn.softmax, state["logits"])
        slope = pull(change)[0] + weight_decay * state["logits"]
        return _adam(state, "logits", slope, learning_rate)

    return Weighting(lambda: _adam_state("logits", jnp.zeros(tasks)), weigh, observe=observe)


# Gradients too ----------------------------------------------------------------------------------


@register("gradnorm")
def gradnorm(
    tasks: int, alpha: float = 1.5, learning_rate: float = 1e-3, steps_per_epoch: int = 100
) -> Weighting:
    """Gradient norms follow the tasks' relative speed of training (Chen et al. 2018).

        w = T softmax(s),    s minimises  sum_t | w_t |g_t| - mean_s(w_s |g_s|) r_t^alpha |
        r_t = (L_t / L_t(first epoch)) / mean

    Ones during the first epoch, whose mean loss is the reference. arXiv 1711.02257, eq. 2.

    Args:
      tasks: T.
      alpha: how strongly slow tasks are helped.
      learning_rate: of Adam on ``s``.
      steps_per_epoch: length of the first epoch.
    """
    _check_epoch(steps_per_epoch)

    def init() -> State:
        return {
            "step": jnp.zeros((), jnp.int32),
            "first": jnp.zeros(tasks),
            **_adam_state("logits", jnp.zeros(tasks)),
        }

    def weigh(state: State, signals: Signals) -> tuple[Array, State]:
        norms = jnp.sqrt(jnp.maximum(jnp.diag(signals.gram), 0.0))
        step, first = state["step"], state["first"]
        progress = signals.losses / jnp.maximum(first, surgery.TINY)
        speed = (progress / jnp.maximum(progress.mean(), surgery.TINY)) ** alpha

        def objective(logits: Array) -> Array:
            lengths = tasks * jax.nn.softmax(logits) * norms
            return jnp.abs(lengths - jax.lax.stop_gradient(lengths.mean() * speed)).sum()

        begun = step >= steps_per_epoch
        learned = _adam(state, "logits", jax.grad(objective)(state["logits"]), learning_rate)
        state = {key: jnp.where(begun, learned[key], state[key]) for key in state}
        first = jnp.where(begun, first, first + signals.losses / steps_per_epoch)
        weights = tasks * jax.nn.softmax(state["logits"])
        return weights, {**state, "step": step + 1, "first": first}

    return Weighting(init, weigh, needs_gram=True)


@register("pcgrad")
def pcgrad(tasks: int) -> Weighting:
    """:func:`surgery.pcgrad`, in an order drawn anew each step."""
    del tasks
    return _stateless(lambda signals: surgery.pcgrad(signals.gram, signals.key), needs_gram=True)


@register("cagrad")
def cagrad(tasks: int, c: float = 0.5) -> Weighting:
    """:func:`surgery.cagrad`."""
    del tasks
    return _stateless(lambda signals: surgery.cagrad(signals.gram, c), needs_gram=True)


def _of_gram(method: Callable[[Array], Array]) -> Maker:
    def maker(tasks: int) -> Weighting:
        del tasks
        return _stateless(lambda signals: method(signals.gram), needs_gram=True)

    return maker


for _method in (surgery.aligned, surgery.imtl_g, surgery.mgda, surgery.nash):
    register(_method.__name__)(_of_gram(_method))


def _check_epoch(steps: int) -> None:
    if steps < 1:
        raise ConfigError(f"steps_per_epoch is {steps}; expected at least 1")


def _stateless(weigh: Callable[[Signals], Array], needs_gram: bool = False) -> Weighting:
    return Weighting(dict, lambda state, signals: (weigh(signals), state), needs_gram)


def _adam_state(name: str, start: Array) -> State:
    return {
        name: start,
        f"{name}_mean": jnp.zeros_like(start),
        f"{name}_square": jnp.zeros_like(start),
        f"{name}_steps": jnp.zeros((), jnp.int32),
    }


def _adam(state: State, name: str, slope: Array, learning_rate: float) -> State:
    """One Adam step (decays .9 and .999) of the entry ``name`` of a state."""
    steps = state[f"{name}_steps"] + 1
    mean = 0.9 * state[f"{name}_mean"] + 0.1 * slope
    square = 0.999 * state[f"{name}_square"] + 0.001 * slope * slope
    move = (mean / (1 - 0.9**steps)) / (jnp.sqrt(square / (1 - 0.999**steps)) + 1e-8)
    return {
        **state,
        name: state[name] - learning_rate * move,
        f"{name}_mean": mean,
        f"{name}_square": square,
        f"{name}_steps": steps,
    }

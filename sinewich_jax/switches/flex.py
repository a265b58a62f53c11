"""Switches whose threshold, scale and bit width are learned leaf by leaf, on unlabelled examples.

FlexSwitch-style: arXiv 2604.28109 describes a learnable magnitude gate and scale (LGS) and a
learned bit width (BAS) for each weight tensor, distilled from the expert on about a hundred
examples of its task. Its equations were not available to us, so these are our own. For a leaf u
with task vector tau, what is learned is a threshold t, a scale c and a logit z_b for each width b:

    gate     g   = 1[|tau| > t],                   backwards sigmoid((|tau| - t) / (T rms(tau)))
    value    q_b = k_b sign(tau) level_b(|tau|),   k_b by least squares over what is kept
    width    pi  = one-hot(argmax z),              backwards softmax(z / T)
    change   tau' = c g sum_b pi_b q_b
    bits     H(rho_b) + rho_b b, mixed by pi,      rho_b = mean(g 1[level_b > 0])

    loss = KL(expert(x) || student(x)) + eta sum_u bits_u / sum_u n_u

with student = base + tau', and a temperature T that falls geometrically. The forward pass is thus
at every step exactly the switch that would be exported. What comes out is an ordinary
:class:`~sinewich_jax.switches.leaf.Switch`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sinewich_jax.core import quantise
from sinewich_jax.core.arrays import content, widen
from sinewich_jax.core.trees import flatten_paths, map_paths
from sinewich_jax.errors import ConfigError, DataError, SinewichError, TrainingError, did_you_mean
from sinewich_jax.switches.fits import check_whole
from sinewich_jax.switches.flex_loss import Loss, distillation
from sinewich_jax.switches.flex_units import Known, Units, changes, export, know, start
from sinewich_jax.switches.leaf import DenseLeaf, Switch

Array = Any
Progress = Callable[[int, float, float], None]

TEMPERATURES = (1.0, 0.02)
_LOOK = 25  # steps between two looks at the loss: often enough to stop, seldom enough not to wait


class Trace(NamedTuple):
    """What happened while a switch was learned.

    Attributes:
      loss: float32 (steps,), the distillation loss of the batch before each step, without the bits.
      bits: float32 (steps,), bits a parameter before each step (the entropy bound of hard gates;
        knobs and dense leaves are not in it).
      widths: path -> the exported bits of an active entry.
      densities: path -> the exported share of active entries.
    """

    loss: np.ndarray
    bits: np.ndarray
    widths: dict[str, int]
    densities: dict[str, float]


def compress(
    base: Any,
    delta: Any,
    apply_fn: Callable[[Any, Any], Any],
    inputs: Any,
    *,
    steps: int = 500,
    learning_rate: float = 1e-2,
    bytes_weight: float = 1e-2,
    loss: str | Loss = "kl",
    widths: Sequence[int] = (1, 2, 4, 8),
    batch_size: int = 32,
    seed: int = 0,
    init_density: float = 0.4,
    progress: Progress | None = None,
) -> tuple[Switch, Trace]:
    """Learns the switch of one task by distilling its expert ``base + delta``.

    Runs with the same ``apply_fn``, ``loss``, ``widths`` and shapes share one compilation: sweep
    ``bytes_weight`` for the front of accuracy against bytes, or compress one task after another.

    Args:
      base: parameter tree of real (and integer) leaves, NumPy or JAX.
      delta: the task vector: a tree of the same paths and shapes, or of some of them (the others
        do not change). Leaves without axes are kept as they are; integer leaves must be 0.
      apply_fn: ``apply_fn(params, inputs) -> outputs``, logits [..., classes] or features, or a
        pytree of them; traced by JAX. ``params`` has the containers and dtypes of ``base``.
      inputs: unlabelled examples, an array [N, ...] or a pytree of such; about a hundred suffice.
      steps: of Adam.
      learning_rate: of Adam; ``learning_rate * steps`` bounds how far a threshold can travel, in
        root mean squares of its leaf, and so how few bits can be reached.
      bytes_weight: eta, the price of one bit a parameter in units of the loss.
      loss: "kl" (nats), "mse", or a function of one student's and one teacher's output.
      widths: the bit widths to choose from, 1 to 8 bits an active entry with its sign.
      batch_size: examples a step, drawn without replacement; all of them where there are fewer.
      seed: batches are a function of (seed, step).
      init_density: share of entries above the threshold at the start.
      progress: called as ``progress(step, loss, bits)`` every 25 steps and after the last.

    Returns:
      The switch, of NumPy arrays, and the trace. Equal arguments give equal results.

    Raises:
      ConfigError: a setting that cannot be used.
      DataError: no examples, inputs that differ in their number, or outputs without a row for each.
      SinewichError: a delta that does not fit the base, or is not finite.
      TrainingError: a loss that is not finite; the step is named.
    """
    widths = _check_settings(steps, learning_rate, widths, batch_size, init_density)
    distillation(loss)  # knows the name, or says so
    examples = _count(inputs)
    plan = _Plan(_hashable(apply_fn), loss, widths, min(batch_size, examples))
    inputs = jax.tree.map(jnp.asarray, inputs)
    base = jax.tree.map(jnp.asarray, base)
    tau = _task_vector(base, delta)
    known = {path: know(leaf, widths) for path, leaf in tau.items() if leaf.ndim and leaf.size}
    dense = {path: leaf for path, leaf in tau.items() if path not in known}
    teacher = _outputs(plan, base, tau, inputs)
    data = jax.tree.map(jnp.asarray, _Data(base, known, dense, inputs, teacher))
    dials = _Dials(jax.random.key(seed), learning_rate, bytes_weight)

    units = start(list(known.values()), init_density, len(widths))
    state, seen = optax.scale_by_adam().init(units), []
    first, last = TEMPERATURES
    for step in range(steps):
        temperature = first * (last / first) ** (step / max(1, steps - 1))
        units, state, now = _advance(plan, units, state, step, temperature, data, dials)
        seen.append(now)
        if (step + 1) % _LOOK == 0 or step + 1 == steps:
            _look(seen, step, progress)

    packed = export(jax.device_get(units), known, widths)
    leaves = {path: packed.get(path) or DenseLeaf(leaf) for path, leaf in tau.items()}
    active = {path: int(np.bitwise_count(leaf.mask).sum()) for path, leaf in packed.items()}
    losses, bits = np.array(seen, np.float32).T
    return Switch(leaves), Trace(
        losses,
        bits,
        widths={path: leaf.bits for path, leaf in packed.items()},
        densities={path: active[path] / leaf.size for path, leaf in packed.items()},
    )


class _Plan(NamedTuple):
    """What a step is compiled for: runs that agree in it (and in shapes) compile once."""

    apply_fn: Callable[[Any, Any], Any]
    loss: str | Loss
    widths: tuple[int, ...]
    batch_size: int


class _Data(NamedTuple):
    """The arrays that a step reads."""

    base: Any
    known: dict[str, Known]
    dense: dict[str, Array]
    inputs: Any
    teacher: Any


class _Dials(NamedTuple):
    """The numbers that a step reads."""

    key: Array
    learning_rate: float
    bytes_weight: float


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _advance(
    plan: _Plan,
    units: Units,
    state: Any,
    step: Array,
    temperature: Array,
    data: _Data,
    dials: _Dials,
) -> tuple[Units, Any, tuple[Array, Array]]:
    """One step of Adam; also the distillation loss and the bits a parameter before it."""
    examples = jax.tree.leaves(data.inputs)[0].shape[0]
    chosen = jax.random.permutation(jax.random.fold_in(dials.key, step), examples)
    chosen = chosen[: plan.batch_size]
    batch, expected = jax.tree.map(lambda x: x[chosen], (data.inputs, data.teacher))

    def objective(units: Units) -> tuple[Array, tuple[Array, Array]]:
        moved, bits = changes(units, data.known, plan.widths, temperature)
        student = plan.apply_fn(_moved(data.base, data.dense | moved), batch)
        error = distillation(plan.loss)(student, expected)
        return error + dials.bytes_weight * bits, (error, bits)

    gradients, seen = jax.grad(objective, has_aux=True)(units)
    updates, state = optax.scale_by_adam().update(gradients, state)
    units = jax.tree.map(lambda x, update: x - dials.learning_rate * update, units, updates)
    return units, state, seen


def _hashable(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, or a wrapper where it belongs to an object that cannot be hashed."""
    try:
        hash(function)
    except TypeError:
        return functools.partial(function)
    return function


def _moved(base: Any, tau: dict[str, Array]) -> Any:
    """``base + tau`` in the containers and dtypes of the base."""

    def add(path: str, leaf: Array) -> Array:
        if path not in tau:
            return leaf
        return (widen(leaf, jnp) + tau[path]).astype(leaf.dtype)

    return map_paths(add, base)


@functools.partial(jax.jit, static_argnums=0)
def _expert(plan: _Plan, base: Any, tau: dict[str, Array], inputs: Any, rows: Array) -> Any:
    return plan.apply_fn(_moved(base, tau), jax.tree.map(lambda x: x[rows], inputs))


def _outputs(plan: _Plan, base: Any, tau: dict[str, Array], inputs: Any) -> Any:
    """The expert's outputs for all examples, computed in batches of one size.

    Raises:
      DataError: outputs that have not one row an example.
    """
    examples = _count(inputs)
    parts = [
        _expert(plan, base, tau, inputs, (first + np.arange(plan.batch_size)) % examples)
        for first in range(0, examples, plan.batch_size)
    ]
    for path, leaf in flatten_paths(parts[0]).items():
        if np.shape(leaf)[:1] != (plan.batch_size,):
            raise DataError(
                f"the output {path!r} of apply_fn has the shape {np.shape(leaf)} for a batch of "
                f"{plan.batch_size} examples; expected one row an example"
            )
    return jax.tree.map(lambda *outputs: jnp.concatenate(outputs)[:examples], *parts)


def _task_vector(base: Any, delta: Any) -> dict[str, np.ndarray]:
    """The leaves that may change, by path, in float32 and on the host.

    Raises:
      SinewichError: a leaf of the task vector that does not fit the base, or is not finite.
    """
    known, tau = flatten_paths(base), {}
    for path, leaf in flatten_paths(delta).items():
        if path not in known:
            raise SinewichError(
                f"the task vector has a leaf {path!r} and the base has none"
                f"{did_you_mean(path, known)}; they have to come from one model"
            )
        if np.shape(leaf) != known[path].shape:
            raise SinewichError(
                f"the task vector's leaf {path!r} has the shape {np.shape(leaf)}, that of the base "
                f"{known[path].shape}; they have to come from one model"
            )
        if content(known[path]) == "real":
            tau[path] = np.asarray(leaf).astype(np.float32)
            if not np.all(np.isfinite(tau[path])):
                raise SinewichError(
                    f"the task vector's leaf {path!r} has values that are not finite; look at the "
                    "expert that it came from"
                )
        elif np.any(np.asarray(leaf) != 0):
            raise SinewichError(
                f"the task vector changes {path!r}, which holds {known[path].dtype}; only real "
                "numbers can be compressed, so that such leaves have to agree with the base"
            )
    if not any(leaf.ndim and leaf.size for leaf in tau.values()):
        raise SinewichError(
            "the task vector has no leaf with axes and entries, so that nothing can be learned"
        )
    return tau


def _count(inputs: Any) -> int:
    """The number of examples.

    Raises:
      DataError: none, or a different number in different arrays.
    """
    counts = {path: (np.shape(leaf) or (0,))[0] for path, leaf in flatten_paths(inputs).items()}
    if not counts or 0 in counts.values():
        raise DataError(
            "there are no examples to distil the expert on; give an array [N, ...] of inputs, a "
            "hundred without labels suffice"
        )
    if len(set(counts.values())) > 1:
        raise DataError(
            f"the inputs have different numbers of examples, {counts}; each array needs one row "
            "for each example"
        )
    return next(iter(counts.values()))


def _check_settings(
    steps: int, rate: float, widths: Sequence[int], batch_size: int, init_density: float
) -> tuple[int, ...]:
    check_whole("steps", steps)
    check_whole("batch_size", batch_size)
    if not rate > 0:
        raise ConfigError(f"learning_rate is {rate}; expected a positive number")
    if not 0 < init_density <= 1:
        raise ConfigError(
            f"init_density is {init_density}, the share of entries kept at the start; expected a "
            "number above 0 and at most 1"
        )
    if not isinstance(widths, Sequence):
        raise ConfigError(f"widths is {widths!r}; expected a list of widths in bits, as (1, 2, 4)")
    if not widths or len(set(widths)) < len(widths):
        raise ConfigError(f"widths is {tuple(widths)}; expected different widths, at least one")
    for bits in widths:
        quantise.top_level(bits)
    return tuple(widths)


def _look(seen: list[tuple[Array, Array]], step: int, progress: Progress | None) -> None:
    """Reads the last steps' losses.

    Raises:
      TrainingError: one that is not finite.
    """
    first = step - step % _LOOK
    for i in range(first, step + 1):
        seen[i] = tuple(float(value) for value in seen[i])
        if not np.isfinite(seen[i][0]):
            raise TrainingError(
                f"the distillation loss is {seen[i][0]} at step {i}; lower the learning rate, or "
                "look at the expert's outputs if this is step 0"
            )
    if progress is not None:
        progress(step, *seen[step])

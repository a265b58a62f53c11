"""Task kernels: exact starts, equal parameter counts, and updates that really point apart."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinewich_jax.core import sine
from sinewich_jax.core.trees import count
from sinewich_jax.errors import ConfigError
from sinewich_jax.nn.layers import Dense, apply_kernel
from sinewich_jax.nn.streams import each_task
from sinewich_jax.nn.task_kernel import KINDS, TaskKernel, TaskSpec

TASKS, IN, OUT, RANK = 6, 20, 14, 12
SPECS = {
    "anchored": TaskSpec(TASKS, rank=RANK),
    "anchored, low-pass": TaskSpec(TASKS, rank=RANK, lowpass=(7, 1.0)),
    "zero": TaskSpec(TASKS, rank=RANK, start="zero"),
    "lora": TaskSpec(TASKS, kind="lora", rank=RANK),
    "gain": TaskSpec(TASKS, kind="gain", rank=RANK),
    "split": TaskSpec(TASKS, kind="split", rank=RANK),
    "task": TaskSpec(TASKS, kind="task", rank=RANK),
    "independent": TaskSpec(TASKS, kind="independent", rank=RANK),
    "sine_lora": TaskSpec(TASKS, kind="sine_lora", rank=RANK, frequency=2.0),
    "3 x 3": TaskSpec(TASKS, rank=RANK, start="zero", kernel_size=3, lowpass=(7, 1.0)),
    "3 x 3, full, anchored": TaskSpec(TASKS, rank=RANK, kernel_size=3, conv_mode="full"),
    "3 x 3, independent": TaskSpec(
        TASKS, kind="independent", rank=RANK, start="zero", kernel_size=3
    ),
    "3 x 3, lora": TaskSpec(TASKS, kind="lora", rank=RANK, kernel_size=3, lowpass=(7, 1.0)),
}
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def module(spec: TaskSpec, in_: int = IN, out: int = OUT) -> TaskKernel:
    return TaskKernel(in_, out, spec=spec)


def started(spec: TaskSpec, in_: int = IN, out: int = OUT, seed: int = 0) -> dict:
    keys = {"params": jax.random.key(seed), "anchor": jax.random.key(seed + 1)}
    omega = jnp.ones(spec.num_tasks)
    return jax.jit(lambda: module(spec, in_, out).init(keys, omega))()


def moved(variables: dict, size: float = 0.1, seed: int = 9) -> dict:
    leaves, tree = jax.tree.flatten(variables["params"])
    rng = np.random.default_rng(seed)
    noise = [np.float32(size * np.std(leaf) * rng.standard_normal(leaf.shape)) for leaf in leaves]
    # zero leaves have no size of their own
    noise = [n if n.any() else np.float32(size * rng.standard_normal(n.shape)) for n in noise]
    leaves = [leaf + n for leaf, n in zip(leaves, noise, strict=True)]
    return {**variables, "params": jax.tree.unflatten(tree, leaves)}


def spread(low: float = 0.6, high: float = 1.4, tasks: int = TASKS) -> jax.Array:
    return jnp.linspace(low, high, tasks)


@each_spec
def test_updates_are_exactly_zero_at_the_start(spec):
    variables = started(spec)
    update = jax.jit(module(spec).apply)
    for omega in (spread(), spread(0.01, 300.0), spread(-5.0, 5.0)):
        for delta in (update(variables, omega), module(spec).apply(variables, omega)):
            assert delta.shape == (spec.streams, *2 * [spec.kernel_size], IN, OUT)
            assert not np.any(delta)


@each_spec
def test_gradient_at_the_start_is_not_zero(spec):
    """It reaches the up factor of each rule: the start is no dead point."""
    variables = started(spec)
    shape = (spec.streams, spec.kernel_size, spec.kernel_size, IN, OUT)
    direction = jax.random.normal(jax.random.key(5), shape)

    @jax.jit
    @jax.grad
    def gradient(params):
        return jnp.vdot(direction, module(spec).apply({**variables, "params": params}, spread()))

    assert float(jnp.abs(gradient(variables["params"])["up"]).max()) > 0


def test_parameter_counts_at_equal_rank():
    counts = {name: count(started(spec)["params"]) for name, spec in SPECS.items()}
    assert {spec.kind for spec in SPECS.values()} == set(KINDS)
    factors = RANK * (IN + OUT)
    assert counts.pop("gain") == factors + TASKS
    assert counts.pop("3 x 3") == counts.pop("3 x 3, lora") == factors + 9 * RANK
    assert counts.pop("3 x 3, full, anchored") == factors + 9 * RANK**2
    assert counts.pop("3 x 3, independent") == TASKS * (factors + 9 * RANK)
    assert {counts.pop(name) for name in ("independent", "task")} == {TASKS * factors}
    assert set(counts.values()) == {factors}
    shapes = jax.tree.map(jnp.shape, started(SPECS["split"])["params"])
    assert shapes == {"up": (TASKS, OUT, RANK // TASKS), "down": (TASKS, IN, RANK // TASKS)}


def reference(spec: TaskSpec, variables: dict, omega: np.ndarray) -> np.ndarray:
    """The updates by their equations, task by task, in float64."""
    params = {name: np.asarray(leaf, np.float64) for name, leaf in variables["params"].items()}

    def fused(leaves: dict, task: int) -> np.ndarray:
        own = {k: v[task] if spec.copies else v for k, v in leaves.items() if k != "gain"}
        if "conv" not in own:
            return np.einsum("ir,or->io", own["down"], own["up"])[None, None]
        rule = "uvr,ir,or->uvio" if own["conv"].ndim == 3 else "uvba,ib,oa->uvio"
        return np.einsum(rule, own["conv"], own["down"], own["up"])

    made = []
    for task in range(spec.streams):
        kernel = fused(params, task)
        if spec.reads_frequencies or spec.kind == "sine_lora":
            w = omega[task] if spec.reads_frequencies else spec.frequency
            kernel = np.sin(w * kernel)
            if spec.is_anchored:
                frozen = {k: np.asarray(v) for k, v in variables["anchor"]["factors"].items()}
                if "conv" in params:
                    full = spec.conv_mode == "full"
                    tap = np.asarray(sine.centre_tap(spec.kernel_size, spec.rank, full=full))
                    frozen["conv"] = np.broadcast_to(tap, params["conv"].shape)
                kernel = kernel - np.sin(w * fused(frozen, task))
            kernel = kernel / (spec.kernel_size * np.sqrt(IN))
        if spec.kind == "gain":
            kernel = params["gain"][task] * kernel
        if spec.lowpass is not None:
            kernel = np.asarray(sine.gaussian_lowpass(jnp.asarray(kernel), *spec.lowpass))
        made.append(spec.scale * kernel)
    return np.stack(made)


@each_spec
def test_every_rule_follows_its_equation(spec):
    variables, omega = moved(started(spec)), spread()
    got = module(spec).apply(variables, omega)
    expected = reference(spec, variables, np.asarray(omega, np.float64))
    np.testing.assert_allclose(got, expected, atol=1e-5 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("start", ["anchored", "zero"])
def test_sine_follows_its_equation(start):
    spec = TaskSpec(TASKS, rank=RANK, start=start, scale=3.0)
    variables, omega = moved(started(spec)), np.asarray(spread(), np.float64)
    up, down = (np.asarray(variables["params"][k], np.float64) for k in ("up", "down"))
    expected = np.sin(omega[:, None, None] * (down @ up.T))
    if start == "anchored":
        frozen = variables["anchor"]["factors"]
        up, down = (np.asarray(frozen[k], np.float64) for k in ("up", "down"))
        expected -= np.sin(omega[:, None, None] * (down @ up.T))
    got = module(spec).apply(variables, spread())
    np.testing.assert_allclose(got[:, 0, 0], 3.0 / np.sqrt(IN) * expected, atol=1e-5)
    # bounded whatever training does: one sine, or the difference of two
    assert float(jnp.abs(got).max()) <= (2 if start == "anchored" else 1) * 3.0 / np.sqrt(IN)


@pytest.mark.parametrize("mu", [0.5, 2.0])
def test_anchored_start_has_the_modulation_index_that_was_asked_for(mu):
    spec = TaskSpec(TASKS, rank=RANK, modulation=mu)
    report = module(spec).apply(started(spec), spread(), method="diagnostics")
    np.testing.assert_allclose(report["modulation_index"], mu * spread(), rtol=1e-4)


# Specification of Free Sinewich, 3.5: four frequencies over 0.6 .. 1.4.
SPECIFIED = {0.5: 0.99, 1.0: 0.88, 2.0: 0.66, 3.0: 0.47, 4.0: 0.32}


def law(mu: float, tasks: int) -> float:
    """Mean over pairs of the cosine between ``omega cos(omega M_0) dM``, M_0 Gaussian, std mu."""
    pairs = itertools.combinations(np.asarray(spread(tasks=tasks)), 2)
    return float(np.mean([sine.gaussian_update_cosine_law(mu, a, b) for a, b in pairs]))


@pytest.mark.parametrize(("mu", "specified"), SPECIFIED.items())
def test_closed_form_of_the_update_cosine(mu, specified):
    assert law(mu, 4) == pytest.approx(specified, abs=0.01)


@pytest.mark.parametrize("mu", SPECIFIED)
def test_anchored_updates_point_apart_by_the_law(mu):
    """First step away from the anchor. A kernel of rank 48 is nearly Gaussian."""
    spec = TaskSpec(TASKS, rank=48, modulation=mu)
    variables = moved(started(spec, 128, 128), size=1e-3)
    report = module(spec, 128, 128).apply(variables, spread(), method="diagnostics")
    assert float(report["update_cosine"]) == pytest.approx(law(mu, TASKS), abs=0.03)


def test_zero_start_is_a_scalar_gain():
    """The published start: to first order every task has the same direction."""
    spec = SPECS["zero"]
    variables = moved(started(spec), size=1e-3)
    report = module(spec).apply(variables, spread(), method="diagnostics")
    assert float(report["update_cosine"]) > 0.9999
    assert float(report["modulation_index"].max()) < 0.01


def test_cosine_of_the_other_kinds():
    cosine = {
        kind: float(
            module(SPECS[kind]).apply(moved(started(SPECS[kind])), None, method="diagnostics")[
                "update_cosine"
            ]
        )
        for kind in ("gain", "split")
    }
    assert cosine["gain"] == pytest.approx(1.0, abs=1e-5)
    assert abs(cosine["split"]) < 0.3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(kind="sin"), "did you mean 'sine'"),
        (dict(start="anchor"), "did you mean 'anchored'"),
        (dict(conv_mode="ful"), "did you mean 'full'"),
        (dict(kernel_size=4), "kernel_size is 4; expected one of"),
        (dict(kind="split", rank=8), "multiple of 6"),
    ],
)
def test_bad_specs_say_what_to_write(fields, message):
    with pytest.raises(ConfigError, match=message):
        TaskSpec(TASKS, **fields)


# --- in a linear map, and over the task axis ----------------------------------------------------


def test_dense_merges_the_update_into_its_kernel():
    layer = Dense(IN, OUT, lora_rank=2, task=SPECS["anchored"])
    x = jax.random.normal(jax.random.key(0), (5, IN))
    keys = {"params": jax.random.key(1), "anchor": jax.random.key(2)}
    variables = moved(layer.init(keys, spread(), method="task_kernels"))
    kernels = layer.apply(variables, spread(), method="task_kernels")
    params = variables["params"]
    deltas = module(SPECS["anchored"]).apply(
        {"params": params["task"], "anchor": variables["anchor"]["task"]}, spread()
    )
    deltas = deltas[:, 0, 0]
    np.testing.assert_allclose(x @ kernels, x @ params["kernel"] + x @ deltas, rtol=1e-4, atol=1e-5)
    # the shared path has the shared LoRA and no task part
    shared = x @ params["kernel"] + params["bias"]
    shared += 4.0 * (x @ params["lora_down"]) @ params["lora_up"].T
    np.testing.assert_allclose(layer.apply(variables, x), shared, rtol=1e-4, atol=1e-5)


def test_a_larger_kernel_is_a_convolution_with_the_frozen_map_in_its_centre():
    spec = SPECS["3 x 3, full, anchored"]
    layer = Dense(IN, OUT, task=spec)
    x = jax.random.normal(jax.random.key(0), (2, 5, 7, IN))
    keys = {"params": jax.random.key(1), "anchor": jax.random.key(2)}
    variables = moved(layer.init(keys, spread(), method="task_kernels"))
    kernels = layer.apply(variables, spread(), method="task_kernels")
    params = variables["params"]
    own = {"params": params["task"], "anchor": variables["anchor"]["task"]}
    deltas = module(spec).apply(own, spread())
    frozen = x @ params["kernel"] + params["bias"]
    for kernel, delta in zip(kernels, deltas, strict=True):
        convolved = jax.lax.conv_general_dilated(
            x, delta, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        got = apply_kernel(x, kernel, params["bias"])
        np.testing.assert_allclose(got, frozen + convolved, rtol=1e-4, atol=1e-4)


def test_the_sine_of_a_shared_lora_has_one_frequency():
    layer = Dense(IN, OUT, lora_rank=2, lora_frequency=50.0)
    x = jax.random.normal(jax.random.key(0), (5, IN))
    start = layer.init(jax.random.key(1), x)
    plain = x @ start["params"]["kernel"] + start["params"]["bias"]
    np.testing.assert_array_equal(jax.jit(layer.apply)(start, x), jax.jit(lambda: plain)())
    params = moved(start)["params"]
    update = np.sin(50.0 * params["lora_down"] @ params["lora_up"].T) / np.sqrt(IN)
    expected = x @ (params["kernel"] + 4.0 * update) + params["bias"]
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("axis", ["vmap", "map"])
@pytest.mark.parametrize("rows", [6, 7, 48, 513])
@pytest.mark.parametrize("width", [24, 192])
def test_each_task_equals_a_loop_bit_for_bit(axis, rows, width):
    """Both shapes of product that a block has: a shared input, then an input of the task."""
    x = jax.random.normal(jax.random.key(0), (rows, width))
    first = jax.random.normal(jax.random.key(1), (TASKS, width, 4 * width))
    second = jax.random.normal(jax.random.key(2), (TASKS, 4 * width, width))

    def stream(x, kernels):
        return jnp.tanh(x @ kernels[0]) @ kernels[1]

    together = jax.jit(lambda x, kernels: each_task(stream, x, kernels, axis))(x, (first, second))
    alone = jax.jit(stream)
    for task in range(TASKS):
        np.testing.assert_array_equal(together[task], alone(x, (first[task], second[task])))


def test_each_task_axes_have_equal_gradients():
    x = jax.random.normal(jax.random.key(0), (5, 8))
    kernels = jax.random.normal(jax.random.key(1), (TASKS, 8, 8))

    def gradient(axis):
        def loss(x, kernels):
            return jnp.sum(jnp.sin(each_task(lambda x, k: x @ k, x, kernels, axis)))

        return jax.jit(jax.grad(loss, (0, 1)))(x, kernels)

    for a, b in zip(gradient("vmap"), gradient("map"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)

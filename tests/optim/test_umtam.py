"""UMTAM: the identities of its momentum, its unfactored limits, its size, and what it refuses."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sinewich_jax import optim
from sinewich_jax.core import curvature as curvatures
from sinewich_jax.core.curvature import Diagonal, Factored
from sinewich_jax.core.trees import tree_bytes
from sinewich_jax.errors import ConfigError
from sinewich_jax.optim import lowrank_momentum as low
from sinewich_jax.optim.lowrank_momentum import LowRank
from tests.optim.helpers import difference, normal, over, take

M, N = 48, 80
PARAMS = {"w": jnp.asarray(normal(M, N)), "b": jnp.asarray(normal(N))}
GRADS = {"w": jnp.asarray(normal(60, M, N, seed=1)), "b": jnp.asarray(normal(60, N, seed=2))}


def dense_average(grads, b1=0.9):
    weights = (1 - b1) * b1 ** np.arange(len(grads) - 1, -1, -1.0)
    return np.tensordot(weights, np.asarray(grads, np.float64), 1)


def unfactored(b1=0.9, b2=0.999, eps=1e-8):
    """The method without its factors: dense momentum over the margins of the second moment."""

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return jnp.zeros((), jnp.int32), zeros, zeros

    def update(grads, state, params=None):
        del params
        count, mean, square = state[0] + 1, *state[1:]
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, mean, grads)
        square = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, square, grads)

        def direction(m, v):
            v = curvatures.dense(curvatures.of_squares(v, factored=v.ndim == 2), v.shape)
            return m / (1 - b1**count) / (jnp.sqrt(v / (1 - b2**count)) + eps)

        return jax.tree.map(direction, mean, square), (count, mean, square)

    return optax.chain(optax.GradientTransformation(init, update), optax.scale(-1e-2))


@functools.cache
def faithful(gamma):
    """The state after sixty steps."""
    return over(optim.scale_by_umtam(6, mode="faithful", gamma=gamma), PARAMS, GRADS)[1]


@pytest.mark.parametrize(("gamma", "least", "most"), [(None, 0.0, 2e-6), (0.5, 0.1, 1.0)])
def test_with_gamma_equal_to_b1_nothing_of_the_dense_average_is_lost(gamma, least, most):
    state = faithful(gamma)
    found = low.product(state.momentum["w"]) + state.residual["w"]
    assert least <= difference(found, dense_average(GRADS["w"])) <= most


def test_the_residual_is_the_tail():
    state = faithful(None)
    values = np.linalg.svd(dense_average(GRADS["w"]), compute_uv=False)
    lost = np.square(state.residual["w"]).sum()
    assert abs(lost - (values[6:] ** 2).sum()) / (values**2).sum() <= 1e-6
    np.testing.assert_allclose(state.momentum["w"].s, values[:6], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "kind"),
    [({"rank": M, "mode": "faithful"}, LowRank), ({"rank": M}, jax.Array)],
    ids=["faithful", "lean"],
)
def test_at_full_rank_it_is_the_unfactored_method(options, kind):
    target = jnp.asarray(normal(M, N, seed=5))
    x = jnp.asarray(normal(M, M, seed=6)) / np.sqrt(M)

    def run(tx):
        params = {"w": jnp.zeros((M, N)), "b": jnp.zeros(N)}

        def loss(p):
            return jnp.square(x @ p["w"] + p["b"] - target).mean()

        @jax.jit
        def loop(carry):
            def step(carry, _):
                params, state = carry
                value, grads = jax.value_and_grad(loss)(params)
                updates, state = tx.update(grads, state, params)
                return (optax.apply_updates(params, updates), state), value

            return jax.lax.scan(step, carry, None, length=50)

        (params, state), losses = loop((params, tx.init(params)))
        return params, state, losses

    expected, _, losses = run(unfactored())
    found, state, own = run(optax.chain(optim.scale_by_umtam(**options), optax.scale(-1e-2)))
    assert isinstance(state[0].momentum["w"], kind)
    assert difference(found, expected) <= 1e-4
    assert abs(own[-1] - losses[-1]) <= 1e-3 and own[-1] < 0.9 * own[0]


def test_vectors_and_small_matrices_are_adams():
    params = {"b": PARAMS["b"], "thin": jnp.asarray(normal(20, 6)), "s": jnp.ones(())}
    grads = jax.tree.map(lambda p: jnp.stack([p, -2 * p, 0.3 * p]), params)
    mine = over(optim.umtam(1e-2, weight_decay=0.1), params, grads)
    assert difference(mine[0], over(optax.adamw(1e-2, weight_decay=0.1), params, grads)[0]) < 1e-6
    assert all(isinstance(x, Diagonal) for x in optim.export_stats(mine[1]).values())


@pytest.mark.parametrize("mode", ["lean", "faithful"])
def test_its_curvature_is_exported_like_the_trackers(mode):
    options = {"mode": mode, "min_dim_to_factor": 8, "rows": lambda path, leaf: 1}
    params = {"q": jnp.zeros((40, 4, 12)), "b": jnp.zeros(12)}
    grads = {"q": jnp.asarray(normal(5, 40, 4, 12)), "b": jnp.asarray(normal(5, 12))}
    _, state, updates = over(optim.umtam(1e-3, rank=4, b2=0.9, **options), params, grads)
    del options["mode"]
    tx = optim.with_merge_stats(optax.sgd(0.1), decay=0.9, **options)
    _, reference, _ = over(tx, params, grads)
    stats = optim.export_stats(state)
    assert isinstance(stats["q"], Factored) and stats["q"].row.shape == (40,)
    assert difference(stats, optim.export_stats(reference)) < 1e-6
    assert state[0].momentum["q"].v.shape == (48, 4) and updates["q"].shape == (5, 40, 4, 12)


def test_equation_nine():
    """Saliency of the weights after each step, seen one step late."""
    steps, alpha = 6, 0.99
    grads = take(GRADS, slice(steps))
    tx = optax.chain(optim.scale_by_umtam(6, mode="faithful", paper_exact=True), optax.scale(-0.01))
    _, state, updates = over(tx, PARAMS, grads)
    clipped = [g / max(1.0, np.linalg.norm(g)) for g in np.asarray(grads["w"], np.float64)]
    updates = jax.tree.map(np.asarray, updates)
    row, col, moved, total = 0.0, 0.0, 0.0, 0.0
    for step in range(steps - 1):
        row = 0.999 * row + 0.001 * (clipped[step] ** 2).sum(axis=1)
        col = 0.999 * col + 0.001 * (clipped[step] ** 2).sum(axis=0)
        moved = moved + np.asarray(updates["w"][step])
        total = alpha * total + (1 - alpha) * moved**2 * np.sqrt(np.outer(row, col))
    np.testing.assert_allclose(optim.export_saliency(state)["w"], total, rtol=1e-3, atol=1e-9)
    assert "b" not in optim.export_saliency(state)
    free = optax.chain(optim.scale_by_umtam(6, mode="faithful"), optax.scale(-0.01))
    _, state, updates = over(free, PARAMS, take(GRADS, slice(2)))
    squares = curvatures.of_squares(np.asarray(GRADS["w"][0]) ** 2, factored=True)
    expected = curvatures.saliency(np.asarray(updates["w"][0]), squares)
    np.testing.assert_allclose(optim.export_saliency(state)["w"], expected, rtol=1e-3, atol=1e-9)


def test_to_the_letter_of_the_paper():
    """One step from zero: clipped gradient, no bias correction, eps inside of the root."""
    tx = optim.scale_by_umtam(M, mode="faithful", paper_exact=True, eps=1e-4)
    first = take(GRADS, 0)

    @jax.jit
    def step(params):
        return tx.update(first, tx.init(params), params)[0]

    updates = step(PARAMS)
    norm = np.linalg.norm(first["w"])
    clipped = np.asarray(first["w"] / norm, np.float64)
    row, col = 0.001 * (clipped**2).sum(axis=1), 0.001 * (clipped**2).sum(axis=0)
    eps = 1e-4 * max(1, norm / np.linalg.norm(PARAMS["w"]))
    expected = 0.1 * clipped / np.sqrt(np.outer(row, col) / row.sum() + eps)
    np.testing.assert_allclose(updates["w"], expected, rtol=1e-3, atol=1e-6)
    vector = np.asarray(first["b"] / np.linalg.norm(first["b"]))
    np.testing.assert_allclose(updates["b"], vector / (np.abs(vector) + 1e-4), rtol=1e-4)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)  # |W| = 0 must not stop W for ever
    assert np.abs(step(zeros)["w"]).max() > 0.01


def test_an_upper_bound_of_ten_on_the_preconditioner_would_make_it_constant():
    """Why there is none: gradients of norm one leave next to no entry below it."""
    gradient = normal(768, 768)
    gradient /= np.linalg.norm(gradient)
    second = curvatures.dense(curvatures.of_squares(gradient**2, factored=True), gradient.shape)
    floor = 1e-4  # of the row and column sums
    clamped = np.sqrt(1 / (second + floor / 768)) >= 10
    assert clamped.mean() > 0.99


@pytest.mark.parametrize("mode", ["lean", "faithful"])
def test_where_no_gradient_ever_was_nothing_moves(mode):
    grads = GRADS["w"].at[:, 7].set(0).at[:, :, 5].set(0)
    _, _, updates = over(optim.scale_by_umtam(6, mode=mode), PARAMS, {**GRADS, "w": grads})
    assert not updates["w"][:, 7].any() and not updates["w"][:, :, 5].any()
    assert np.isfinite(updates["w"]).all() and np.abs(updates["w"]).max() < 100


def test_lean_in_half_precision():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (PARAMS, GRADS))
    _, state, updates = over(optim.scale_by_umtam(6, momentum_dtype=jnp.bfloat16), *half)
    assert state.momentum["w"].u.dtype == state.momentum["b"].dtype == jnp.bfloat16
    assert updates["w"].dtype == updates["b"].dtype == jnp.bfloat16
    assert state.curv["w"].row.dtype == jnp.float32
    _, _, reference = over(optim.scale_by_umtam(6), PARAMS, GRADS)
    assert difference(updates["w"][-1].astype(jnp.float32), reference["w"][-1]) < 0.1


def size_of_state(tx, params):
    return tree_bytes(jax.eval_shape(tx.init, params)) / tree_bytes(params)


def test_bytes_of_the_state():
    params = {"w": jax.ShapeDtypeStruct((256, 512), jnp.float32)}
    m, n, r = 256, 512, 16
    floats = {"lean": r * (m + n + 1) + m + n, "faithful": r * (m + n + 1) + m + n + 3 * m * n}
    for mode, count in floats.items():
        found = jax.eval_shape(optim.scale_by_umtam(r, mode=mode).init, params)
        assert tree_bytes(found) == 4 * count + 8
    tracker = optim.with_merge_stats(optax.identity())
    assert tree_bytes(jax.eval_shape(tracker.init, params)) == 4 * (m + n) + 8


def test_bytes_of_the_state_of_a_swin_t():
    from sinewich_jax.nn.swin import swin

    model = swin("swin_t")
    picture = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), picture)["params"]
    assert size_of_state(optim.scale_by_umtam(32), params) <= 0.10
    assert 3.0 <= size_of_state(optim.scale_by_umtam(32, mode="faithful"), params) <= 3.15
    assert size_of_state(optim.with_merge_stats(optax.adamw(1e-3)), params) <= 2.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "leen"}, r"mode is 'leen' \(did you mean 'lean'\?\)"),
        ({"mode": "faithful", "eps_mode": "root"}, "eps_mode is 'root'"),
        ({"mode": "faithful", "gamma": 1.0}, "gamma is 1.0; expected at least 0 and below 1"),
        ({"gamma": 0.5}, "gamma belongs to mode='faithful'"),
        ({"paper_exact": True}, "paper_exact belongs to mode='faithful'"),
        ({"rank": 0}, "rank is 0; expected at least 1"),
        ({"rank": 2.5}, "rank is 2.5; expected an integer"),
        ({"probes": -1}, "probes is -1"),
        ({"b1": 1.0}, "b1 is 1.0"),
        ({"svd_every": 10}, "gradients between two SVDs would never enter"),
    ],
    ids=str,
)
def test_bad_arguments(options, message):
    with pytest.raises(ConfigError, match=message):
        optim.umtam(1e-3, **options)


def test_bad_trees():
    with pytest.raises(ConfigError, match="'step' is int32; umtam takes real floats"):
        optim.umtam(1e-3).init({"step": jnp.zeros((), jnp.int32)})
    tx = optim.scale_by_umtam(6, mode="faithful")
    state = tx.init(PARAMS)
    with pytest.raises(ConfigError, match="needs update"):
        tx.update(PARAMS, state)
    with pytest.raises(ConfigError, match="no step"):
        optim.export_stats(state)
    with pytest.raises(ConfigError, match="rank decides shapes and cannot be traced"):
        jax.jit(lambda rank: optim.scale_by_umtam(rank).init(PARAMS))(3)


def classes(seed=0):
    """Ten overlapping classes of 64 numbers."""
    rng = np.random.default_rng(seed)
    centres, labels = rng.normal(size=(10, 64)), rng.integers(10, size=2000)
    points = centres[labels] + 1.6 * rng.normal(size=(2000, 64))
    return jnp.asarray(points, jnp.float32), jnp.asarray(labels)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lean", "faithful"])
@pytest.mark.parametrize("axes", [("model",), (None, "model")], ids=["rows", "columns"])
def test_shards_make_no_difference(mode, axes):
    mesh = jax.make_mesh((4,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = {"w": PartitionSpec(*axes), "b": PartitionSpec()}
    shardings = jax.tree.map(lambda s: NamedSharding(mesh, s), spec)
    tx = optim.scale_by_umtam(6, mode=mode)

    @jax.jit
    def two_steps(params, first, second):
        _, state = tx.update(first, tx.init(params), params)
        updates, state = tx.update(second, state, params)
        return updates, optim.export_stats(state)

    arguments = PARAMS, take(GRADS, 0), take(GRADS, 1)
    expected = two_steps(*arguments)
    found = two_steps(*(jax.device_put(tree, shardings) for tree in arguments))
    assert difference(found[1], expected[1]) < 1e-6
    assert difference(found[0], expected[0]) < 1e-4


@pytest.mark.slow
def test_rank_matters_below_that_of_the_gradients_and_not_above():
    x, y = classes()
    sizes = [(64, 128), (128, 64), (64, 10)]
    start = [(normal(m, n, seed=k) / np.sqrt(m), np.zeros(n)) for k, (m, n) in enumerate(sizes)]

    def loss(params, x, y):
        for w, b in params[:-1]:
            x = jax.nn.relu(x @ w + b)
        logits = x @ params[-1][0] + params[-1][1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def final(tx):
        params = jax.tree.map(jnp.float32, start)

        @jax.jit
        def loop(params):
            def step(carry, key):
                params, state = carry
                take = jax.random.randint(key, (64,), 0, len(y))
                grads = jax.grad(loss)(params, x[take], y[take])
                updates, state = tx.update(grads, state, params)
                return (optax.apply_updates(params, updates), state), None

            keys = jax.random.split(jax.random.key(1), 400)
            (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), keys)
            return loss(params, x, y)

        return float(loop(params))

    dense = final(optax.chain(unfactored(), optax.scale(0.03)))  # 3e-4 in all
    full = final(optim.umtam(3e-4, rank=30, min_dim_to_factor=16))
    small = final(optim.umtam(3e-4, rank=2, min_dim_to_factor=16))
    assert abs(full - dense) <= 0.005  # 0.0024; nearly all of it is gone at rank 16
    assert small > full + 0.2  # 0.315: fewer directions than classes

"""What single rules promise beside the common algebra."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinewich_jax import merging
from sinewich_jax.core import curvature as curvatures
from sinewich_jax.core.curvature import Diagonal, Factored
from sinewich_jax.errors import SinewichError
from sinewich_jax.merging.leaf import Leaf
from sinewich_jax.merging.methods import dare
from tests.merging.families import assert_close, family, merged, statistics


def vectors(*experts: list[float]) -> tuple[dict, dict]:
    """A base of zeros and experts that are their own task vectors."""
    arrays = [np.array(expert, np.float32) for expert in experts]
    return {"w": np.zeros_like(arrays[0])}, dict(
        zip("abcd", ({"w": a} for a in arrays), strict=False)
    )


def diagonals(*rows: list[float]) -> dict:
    trees = ({"w": Diagonal(np.array(row, np.float32))} for row in rows)
    return dict(zip("abcd", trees, strict=False))


# --- average, task arithmetic -------------------------------------------------------------------


def test_weights_of_an_average_are_shares():
    base, experts = vectors([1, 2], [3, 6], [100, 100])
    for weights in ([1, 3, 0], {"c": 0, "b": 6, "a": 2}, np.array([0.5, 1.5, 0.0])):
        found = merging.merge("average", base, experts, weights=weights)["w"]
        np.testing.assert_allclose(found, [2.5, 5.0])
    found = merging.merge("average", base, experts, weights=[0, 1, 0])["w"]
    np.testing.assert_array_equal(found, experts["b"]["w"])


def test_weights_can_be_traced():
    base, experts = jax.tree.map(jnp.asarray, vectors([1, 2], [3, 6]))
    for rule in ("average", "task_arithmetic"):
        loss = jax.jit(
            lambda w, rule=rule: merging.merge(rule, base, experts, weights=[w, 1.0])["w"].sum()
        )
        assert np.isfinite(jax.grad(loss)(0.5)) and jax.grad(loss)(0.5) != 0


def test_task_arithmetic_weighs_and_normalizes():
    base, experts = vectors([1, 2], [3, 6])
    plain = merging.merge("task_arithmetic", base, experts, weights=[2, -1], scale=0.5)["w"]
    np.testing.assert_allclose(plain, [-0.5, -1.0])
    mean = merging.merge(
        "task_arithmetic", base, experts, weights=[3, 1], scale=1.0, normalize=True
    )["w"]
    np.testing.assert_allclose(mean, [1.5, 3.0])


# --- TIES ---------------------------------------------------------------------------------------


def test_ties_by_hand():
    base, experts = vectors([4, -3, 0.1, 2, 0], [2, 3, 0.2, -1, 0], [-1, -3, 0.1, 0.5, 0])
    found = merging.merge("ties", base, experts, density=0.6, on_tie="zero")["w"]
    # Kept are 4 -3 . 2 . | 2 3 . -1 . | -1 -3 . .5 .; the elected signs are + - 0 + 0.
    np.testing.assert_allclose(found, [3, -3, 0, 1.25, 0])
    summed = merging.merge("ties", base, experts, density=0.6, aggregate="sum", scale=0.5)["w"]
    np.testing.assert_allclose(summed, [3, -3, 0, 1.25, 0])
    largest = merging.merge("ties", base, experts, density=0.6, aggregate="max")["w"]
    np.testing.assert_allclose(largest, [4, -3, 0, 2, 0])


@pytest.mark.parametrize(
    ("on_tie", "expected"), [("zero", [0, -2]), ("positive", [2, -2]), ("majority", [-2, -2])]
)
def test_votes_that_cancel(on_tie, expected):
    base, experts = vectors([2, -1], [-2, -3])
    found = merging.merge("ties", base, experts, density=1.0, on_tie=on_tie)["w"]
    np.testing.assert_array_equal(found, expected)


def test_a_majority_is_counted_over_the_scope():
    tie, down = np.array([1.0], np.float32), np.full(3, -1, np.float32)
    base = {"tied": 0 * tie, "down": 0 * down}
    experts = {"a": {"tied": tie, "down": down}, "b": {"tied": -tie, "down": down}}
    options = {"density": 1.0, "on_tie": "majority"}
    assert merging.merge("ties", base, experts, scope="leaf", **options)["tied"] == 0
    assert merging.merge("ties", base, experts, scope="global", **options)["tied"] == -1


def test_frequency_counts_heads_and_sum_counts_sizes():
    base, experts = vectors([5.0], [-1.0], [-2.0])
    assert merging.merge("ties", base, experts, density=1.0)["w"] == 5
    assert merging.merge("ties", base, experts, density=1.0, sign="frequency")["w"] == -1.5


def test_weights_are_heard_in_the_vote_or_only_after_it():
    base, experts = vectors([3.0], [-2.0], [-2.0])
    options = {"density": 1.0, "weights": [2.0, 1.0, 0.5]}
    assert merging.merge("ties", base, experts, **options)["w"] == 3
    after = merging.merge("ties", base, experts, weighted_vote=False, **options)["w"]
    assert after == -2
    counted = merging.merge("ties", base, experts, weighted_vote=False, divisor="count", **options)[
        "w"
    ]
    assert counted == -1.5


@pytest.mark.parametrize("scope", ["leaf", "global"])
@pytest.mark.parametrize(("trim", "kept"), [("exact", 3), ("floor", 2), ("inclusive", 3)])
def test_how_many_are_kept(scope, trim, kept):
    delta = {"w": np.arange(1, 11, dtype=np.float32)}  # 0.27 of 10
    pruned = merging.prune(delta, density=0.27, scope=scope, trim=trim)["w"]
    np.testing.assert_array_equal(pruned, np.where(delta["w"] > 10 - kept, delta["w"], 0))


@settings(max_examples=25)
@given(st.lists(st.integers(0, 3), min_size=12, max_size=12), st.floats(0.01, 1))
def test_a_global_cut_keeps_exactly_as_many_even_among_equals(values, density):
    flat = np.array(values, np.float32)
    delta = {"a": flat[:5], "b": flat[5:6], "c": -flat[6:].reshape(2, 3)}
    pruned = merging.prune(delta, density=density)
    kept = np.concatenate([np.ravel(leaf) for leaf in pruned.values()])
    assert (kept != 0).sum() == min(max(1, round(12 * density)), (flat != 0).sum())
    if (kept != 0).any():
        dropped = np.abs(np.concatenate([np.ravel(v) for v in delta.values()])[kept == 0])
        assert np.abs(kept[kept != 0]).min() >= dropped.max(initial=0)


# --- DARE ---------------------------------------------------------------------------------------


def leaf_of(path: str, size: int = 4096) -> Leaf:
    return Leaf(path, np.zeros(size, np.float32), (), (), np)


def test_coins_belong_to_the_seed_the_leaf_and_the_expert():
    mask = dare.coins(leaf_of("a/b"), "x", 0.3, 0)
    np.testing.assert_array_equal(mask, dare.coins(leaf_of("a/b"), "x", 0.3, 0))
    assert abs(mask.mean() - 0.3) < 4 * (0.21 / 4096) ** 0.5
    for other in (("a/c", "x", 0), ("a/b", "y", 0), ("a/b", "x", 1)):
        path, name, seed = other
        agree = (mask == dare.coins(leaf_of(path), name, 0.3, seed)).mean()
        assert abs(agree - 0.58) < 0.04, other


def test_over_many_seeds_dare_is_task_arithmetic():
    base, experts = family(2, seed=4)
    target = merging.merge("task_arithmetic", base, experts, scale=0.5)
    runs = [
        merging.merge("dare", base, experts, density=0.4, scale=0.5, seed=seed)
        for seed in range(200)
    ]
    for part in ("kernel", "conv"):
        drawn = np.stack([run["block"][part] for run in runs])
        error = np.abs(drawn.mean(axis=0) - target["block"][part])
        # Two experts, each a coin of variance p (1 - p) / p^2 = 1.5.
        deltas = [e["block"][part] - base["block"][part] for e in experts.values()]
        deviation = 0.5 * np.sqrt(1.5 * sum(d**2 for d in deltas) / 200)
        assert (error <= 4 * deviation + 1e-6).mean() > 0.99
        assert error.max() < 6 * deviation.max()


def test_dare_rescales_what_it_keeps():
    base, experts = vectors([1.0] * 64)
    found = merging.merge("dare", base, experts, density=0.25, scale=1.0)["w"]
    assert set(found.tolist()) == {0.0, 4.0}
    ties = merging.merge("dare_ties", base, experts, density=0.25)["w"]
    np.testing.assert_array_equal(ties, found)


def test_coins_do_not_depend_on_devices():
    base, experts = vectors([1.0] * 16, [2.0] * 16)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    spread = jax.device_put((base, experts), rows)
    found = jax.jit(lambda b, e: merging.merge("dare", b, e, density=0.5))(*spread)
    assert_close(found, merging.merge("dare", base, experts, density=0.5))


# --- breadcrumbs, magnitude ---------------------------------------------------------------------


def test_breadcrumbs_mask_both_tails():
    base, experts = vectors([1, -2, 3, -4, 5, -6, 7, -8, 9, -10])
    found = merging.merge("breadcrumbs", base, experts, beta=0.4, gamma=0.2, scale=1.0)["w"]
    np.testing.assert_array_equal(found, [0, 0, 0, 0, 5, -6, 7, -8, 0, 0])


def test_magnitude_weighted_by_hand():
    base, experts = vectors([3.0, 0.0, 1.0], [-1.0, 0.0, 0.0])
    found = merging.merge("magnitude_weighted", base, experts)["w"]
    np.testing.assert_allclose(found, [8 / 4, 0, 1])


# --- curvature ----------------------------------------------------------------------------------


def test_the_curvature_average_is_the_minimum_of_the_bowls():
    base, experts = family(3)
    stats = statistics(("curvature",), base, experts)
    (found,) = merged("curvature_average", base, experts, stats).values()
    dense = [curvatures.dense(s["block"]["conv"], (2, 2, 3, 4)) for s in stats.values()]
    slope = sum(
        v * (found["block"]["conv"] - e["block"]["conv"])
        for v, e in zip(dense, experts.values(), strict=True)
    )
    assert np.abs(slope).max() < 1e-5


def test_without_curvature_an_entry_is_averaged():
    base, experts = vectors([1.0, 1.0, 4.0], [3.0, 3.0, 8.0])
    stats = diagonals([0.0, 1.0, 1.0], [0.0, 0.0, 3.0])
    for rule in ("curvature_average", "fisher"):
        found = merging.merge(rule, base, experts, stats=stats)["w"]
        np.testing.assert_allclose(found, [2.0, 1.0, 7.0])
    for rule in ("umtam", "ota"):  # where entries have to be claimed, nobody does
        found = merging.merge(rule, base, experts, stats=stats, density=1.0)["w"]
        np.testing.assert_allclose(found[[0, 1]], [0.0, 1.0])


def test_curvature_that_is_small_on_its_leaf_still_decides():
    base, experts = vectors([1.0, 1.0], [3.0, 3.0])
    stats = diagonals([1.0, 1e-20], [1.0, 3e-20])
    for rule in ("curvature_average", "fisher"):
        found = merging.merge(rule, base, experts, stats=stats)["w"]
        np.testing.assert_allclose(found, [2.0, 2.5], rtol=1e-6)


def test_power_and_weights_of_the_curvature_average():
    base, experts = vectors([0.0], [1.0])
    stats = diagonals([1.0], [9.0])

    def found(**options: object) -> float:
        return float(
            merging.merge("curvature_average", base, experts, stats=stats, **options)["w"][0]
        )

    assert found() == pytest.approx(0.9)
    assert found(power=0.5) == pytest.approx(0.75)
    assert found(power=0) == pytest.approx(0.5)
    assert found(weights=[9, 1]) == pytest.approx(0.5)
    assert found(scale=0.5) == pytest.approx(0.45)


def test_batch_sizes_are_made_up_for():
    """Noise of examples averages out in a batch: its squares have to be multiplied by the size."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((3000, 64, 6))
    small, large = (np.square(noise[:, :size].mean(axis=1)).mean(axis=0) for size in (4, 64))
    scaled = [merging.fisher_scale(v, size) for v, size in ((small, 4), (large, 64))]
    np.testing.assert_allclose(scaled[0], scaled[1], rtol=0.15)
    tree = {"w": Factored(np.ones(2, np.float32), np.ones(3, np.float32)), "b": np.ones(2)}
    found = merging.fisher_scale(tree, 16)
    assert isinstance(found["w"], Factored)
    np.testing.assert_array_equal(curvatures.dense(found["w"], (2, 3)), np.full((2, 3), 16))


@pytest.mark.parametrize("library", [np, jnp])
def test_curvature_is_normalized(library):
    tree = {
        "w": Factored(np.array([1.0, 3.0], np.float32), np.array([2.0, 1.0, 3.0], np.float32)),
        "b": Diagonal(np.array([8.0, 0.0], np.float32)),
        "raw": np.array([4.0, 4.0], np.float32),
        "dead": np.zeros(2, np.float32),
    }
    tree = jax.tree.map(library.asarray, tree)

    def dense(stats: dict) -> dict:
        return {
            "w": curvatures.dense(stats["w"], (2, 3)),
            "b": stats["b"].diag,
            "raw": stats["raw"],
            "dead": stats["dead"],
        }

    for how, measure in (("leaf_mean", np.mean), ("leaf_max", np.max)):
        found = dense(merging.normalize_curvature(tree, how))
        assert [measure(found[k]) for k in ("w", "b", "raw", "dead")] == pytest.approx([1, 1, 1, 0])
    found = dense(merging.normalize_curvature(tree))
    assert np.concatenate([np.ravel(v) for v in found.values()]).mean() == pytest.approx(1)
    ratio = np.ravel(found["w"]) / np.ravel(dense(tree)["w"])
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
    assert merging.normalize_curvature(tree, "none") is tree


def test_fisher_takes_curvature_or_arrays():
    base, experts = vectors([0.0, 4.0], [1.0, 0.0])
    stats = {"a": {"w": Diagonal(np.array([1.0, 3.0]))}, "b": {"w": np.array([3.0, 1.0])}}
    found = merging.merge("fisher", base, experts, stats=stats)["w"]
    np.testing.assert_allclose(found, [0.75, 3.0])


def test_normalized_fisher_does_not_see_how_loud_a_loss_is():
    base, experts = family(3)
    stats = statistics(("fisher",), base, experts)
    (plain,) = merged("fisher", base, experts, stats, normalize="global").values()
    loud = dict(stats, b=jax.tree.map(lambda v: v * np.float32(1e-25), stats["b"]))
    (found,) = merged("fisher", base, experts, loud, normalize="global").values()
    assert_close(found, plain, rtol=1e-5, atol=1e-6)


# --- UMTAM, OTA ---------------------------------------------------------------------------------


def test_umtam_with_uniform_curvature_is_ties():
    base, experts = family(3)
    stats = {n: jax.tree.map(lambda w: np.full_like(w, 0.3), base) for n in experts}
    for density in (0.2, 0.5, 1.0):
        (found,) = merged("umtam", base, experts, stats, density=density, vote="magnitude").values()
        ties = merging.merge("ties", base, experts, density=density, on_tie="zero")
        assert_close(found, ties, atol=1e-6)


def test_umtam_without_trimming_election_and_curvature_is_the_average():
    base, experts = family(3)
    options = {"density": 1.0, "sign_election": False, "aggregate": "uniform"}
    experts["a"]["bias"] = base["bias"]  # changes of zero count in a plain mean, untrimmed
    (found,) = merged("umtam", base, experts, **options).values()
    assert_close(found, merging.merge("average", base, experts), atol=1e-6)


def test_umtam_votes_by_hand():
    base, experts = vectors([2.0], [-1.0], [-1.5])
    stats = diagonals([1.0], [2.0], [3.0])

    def found(**options: object) -> float:
        return float(
            merging.merge("umtam", base, experts, stats=stats, density=1.0, **options)["w"][0]
        )

    negative = -(2 * 1.0 + 3 * 1.5) / 5
    assert found() == pytest.approx(negative)  # saliencies 4 against 2 + 6.75
    assert found(vote="curvature") == pytest.approx(negative)  # 1 against 5
    assert found(vote="magnitude") == pytest.approx(negative)  # 2 against 2.5
    assert found(aggregate="uniform") == pytest.approx(-1.25)
    assert found(sign_election=False) == pytest.approx((2 - 2 - 4.5) / 6)
    assert found(weights=[4.0, 1.0, 1.0]) == pytest.approx(2.0)
    roots = [2**0.5, 3**0.5]
    expected = -(roots[0] * 1.0 + roots[1] * 1.5) / sum(roots)
    assert found(curvature="sqrt_rc") == pytest.approx(expected)


def test_the_paper_s_square_root_favours_large_matrices():
    """sqrt(R C^T) of sums carries a factor sqrt(m n), which a mask over the model sees."""
    one, many = np.ones((1, 1), np.float32), np.ones((8, 8), np.float32)
    base = {"one": 0 * one, "many": 0 * many}
    experts = {"a": {"one": 1.2 * one, "many": many}}
    stats = {"a": {k: Factored(*(np.ones(len(v), np.float32),) * 2) for k, v in base.items()}}
    options = {"scope": "global", "density": 1 / 65, "stats": stats}
    fair = merging.merge("umtam", base, experts, **options)
    assert fair["one"] > 0 and not fair["many"].any()
    paper = merging.merge("umtam", base, experts, curvature="sqrt_rc", **options)
    assert paper["one"] == 0 and paper["many"].sum() == 1


def test_the_paper_s_formula_entry_by_entry():
    """Algorithm 2 with sums of squares over rows and columns, in double precision."""
    base, experts = family(3)
    stats = statistics(("curvature",), base, experts)
    stats["b"] = jax.tree.map(lambda v: v * np.float32(9), stats["b"])
    shape, name = (6, 4), "kernel"
    taus, curv, masks = [], [], []
    for expert, stat in zip(experts.values(), stats.values(), strict=True):
        taus.append((expert["block"][name] - base["block"][name]).astype(float))
        row, col = (part.astype(float) for part in stat["block"][name])
        curv.append(np.sqrt(np.outer(4 * row, 6 * col)))
        saliency = taus[-1] ** 2 * curv[-1]
        masks.append(saliency >= np.sort(saliency, axis=None)[-round(0.4 * 24)])
    votes = [m * np.sign(t) * t**2 * c for m, t, c in zip(masks, taus, curv, strict=True)]
    side = np.sign(sum(votes))
    weights = [m * (np.sign(t) == side) * c for m, t, c in zip(masks, taus, curv, strict=True)]
    total = sum(weights)
    merged_delta = sum(w * t for w, t in zip(weights, taus, strict=True)) / np.where(
        total, total, 1
    )
    found = merging.merge("umtam", base, experts, stats=stats, density=0.4, curvature="sqrt_rc")
    difference = found["block"][name] - base["block"][name]
    assert difference.shape == shape and (merged_delta != 0).sum() > 10
    np.testing.assert_allclose(difference, merged_delta, atol=1e-6)


def test_ota_by_hand():
    base, experts = vectors([1.0, 2.0, 0.1, 1.0], [3.0, -1.0, 0.1, 0.0])
    stats = diagonals([1.0, 4.0, 1.0, 0.0], [4.0, 1.0, 1.0, 9.0])
    # Scores are 1 16 .01 0 and 36 1 .01 0.
    kept = merging.merge("ota", base, experts, stats=stats, threshold=1.0)["w"]
    np.testing.assert_allclose(kept, [(1 + 2 * 3) / 3, (2 * 2 - 1) / 3, 0, 0], rtol=1e-6)
    half = merging.merge("ota", base, experts, stats=stats, density=0.25, power=1.0)["w"]
    np.testing.assert_allclose(half, [3, 2, 0, 0])
    default = merging.merge("ota", base, experts, stats=stats)["w"]  # a fifth of four is one
    np.testing.assert_allclose(default, [3, 2, 0, 0])


# --- RegMean ------------------------------------------------------------------------------------


def test_regmean_is_the_least_squares_solution():
    rng = np.random.default_rng(2)
    inputs = [rng.standard_normal((30, 6)).astype(np.float32) for _ in range(3)]
    kernels = [rng.standard_normal((6, 2, 2)).astype(np.float32) for _ in range(3)]
    experts = {n: {"w": k, "b": k[0, 0]} for n, k in zip("abc", kernels, strict=True)}
    stats = {n: {"w": x.T @ x} for n, x in zip("abc", inputs, strict=True)}
    base = jax.tree.map(np.zeros_like, experts["a"])
    found = merging.merge("regmean", base, experts, stats=stats, ratio=1.0)
    outputs = [x @ k.reshape(6, 4) for x, k in zip(inputs, kernels, strict=True)]
    solution = np.linalg.lstsq(np.concatenate(inputs), np.concatenate(outputs), rcond=None)[0]
    np.testing.assert_allclose(found["w"].reshape(6, 4), solution, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["b"], np.mean(kernels, axis=0)[0, 0], rtol=1e-5, atol=1e-6)


def test_regmean_averages_directions_that_no_input_has():
    rng = np.random.default_rng(3)
    inputs = rng.standard_normal((2, 20, 4)).astype(np.float32)
    inputs[:, :, 3] = 0
    kernels = rng.standard_normal((2, 4, 3)).astype(np.float32)
    experts = {n: {"w": k} for n, k in zip("ab", kernels, strict=True)}
    stats = {n: {"w": x.T @ x} for n, x in zip("ab", inputs, strict=True)}
    base = {"w": np.zeros((4, 3), np.float32)}
    found = merging.merge("regmean", base, experts, stats=stats)["w"]
    np.testing.assert_allclose(found[3], kernels.mean(axis=0)[3], rtol=1e-5)
    with pytest.raises(SinewichError, match=r"Gram matrices of 'w' are singular.*loading=1e-6"):
        merging.merge("regmean", base, experts, stats=stats, loading=0.0)


# --- EMR, TALL, Consensus -----------------------------------------------------------------------


def test_emr_of_experts_on_one_side():
    """All changes positive: the unified vector is the largest, and nothing is masked."""
    base, experts = vectors([1.0, 2.0, 3.0], [3.0, 1.0, 2.0])
    found = merging.merge("emr", base, experts)
    np.testing.assert_array_equal(found.leaves["w"].shared, [3, 2, 3])
    assert all(mask.all() for mask in found.leaves["w"].masks)
    np.testing.assert_allclose(found.leaves["w"].scales, [6 / 8, 6 / 8])
    np.testing.assert_allclose(found.select("a")["w"], 0.75 * np.array([3, 2, 3]))


def test_emr_gives_an_expert_that_lost_every_vote_nothing():
    base, experts = vectors([1.0, 1.0], [-3.0, -3.0])
    found = merging.merge("emr", base, experts)
    np.testing.assert_array_equal(found.select("a")["w"], [0, 0])
    np.testing.assert_array_equal(found.select("b")["w"], [-3, -3])


def test_emr_elects_the_negative_where_changes_cancel():
    base, experts = vectors([2.0], [-2.0])
    assert merging.merge("emr", base, experts).leaves["w"].shared == -2


@pytest.mark.parametrize("lam", [0.0, 0.2, 0.6, 1.0])
def test_tall_against_its_definition(lam):
    base, experts = family(3)
    found = merging.merge("tall", base, experts, lam=lam)
    for path, leaf in (("bias", base["bias"]), ("logit_scale", base["logit_scale"])):
        deltas = [expert[path] - leaf for expert in experts.values()]
        for mask, delta in zip(found.leaves[path].masks, deltas, strict=True):
            expected = np.abs(delta) > lam * np.abs(sum(deltas) - delta)
            np.testing.assert_array_equal(mask, expected)
            if lam == 0:
                assert mask.all()


def test_consensus_counts_tasks():
    base, experts = family(3)
    tall = merging.merge("tall", base, experts, lam=0.5)
    counts = sum(mask.astype(int) for mask in tall.leaves["block/kernel"].masks)
    whole = tall.leaves["block/kernel"].shared
    assert len(set(counts.ravel())) > 2
    for k in range(5):
        found = merging.merge("consensus", base, experts, k=k, lam=0.5, scale=1.0)
        np.testing.assert_allclose(
            found["block"]["kernel"] - base["block"]["kernel"],
            np.where(counts >= k, whole, 0),
            atol=1e-6,
        )
    nothing = merging.merge("consensus", base, {"a": experts["a"]}, k=2)
    assert_close(nothing, base)


# --- pruning ------------------------------------------------------------------------------------


def test_pruning_costs_the_least_loss_of_all_masks():
    rng = np.random.default_rng(7)
    delta, squares = rng.standard_normal(12), rng.gamma(0.5, size=12)
    tree = {"a": delta[:7].astype(np.float32), "b": delta[7:].astype(np.float32)}
    curvature = {"a": squares[:7].astype(np.float32), "b": Diagonal(squares[7:].astype(np.float32))}
    pruned = merging.prune(tree, curvature, density=5 / 12)
    kept = np.concatenate([pruned["a"], pruned["b"]]) != 0
    cost = delta**2 * squares
    best = min(itertools.combinations(range(12), 7), key=lambda gone: cost[list(gone)].sum())
    assert set(np.flatnonzero(~kept)) == set(best)


def test_pruning_without_curvature_goes_by_magnitude_and_leaves_integers_alone():
    delta = {"w": np.array([3.0, -4.0, 1.0]), "n": np.int32(0), "h": np.ones(1, np.float16)}
    found = merging.prune(delta, density=0.5)
    np.testing.assert_array_equal(found["w"], [3, -4, 0])
    assert found["n"] == 0 and found["h"].dtype == np.float16 and found["h"] == 0


def test_pruning_is_a_pure_function_of_jax_too():
    base, experts = family(1)
    delta = merging.task_vector(experts["a"], base)
    stats = statistics(("curvature",), base, "a")["a"]
    for scope in ("leaf", "global"):
        plain = merging.prune(delta, stats, density=0.3, scope=scope)
        run = jax.jit(lambda d, s, scope=scope: merging.prune(d, s, density=0.3, scope=scope))
        traced = run(*jax.tree.map(jnp.asarray, (delta, stats)))
        jax.tree.map(np.testing.assert_array_equal, traced, plain)
    sizes = [leaf.size for leaf in jax.tree.leaves(delta)][:-1]  # without the counter
    assert sum((leaf != 0).sum() for leaf in jax.tree.leaves(plain)) == round(0.3 * sum(sizes))

"""Making switches: counts as Python has them, every setting, both libraries, and refusals."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import NamedSharding, PartitionSpec

from sinewich_jax.errors import ConfigError, SinewichError
from sinewich_jax.switches.apply import stack_switches, unpack
from sinewich_jax.switches.leaf import DenseLeaf
from sinewich_jax.switches.make import METHODS, _kept_of_density, make_switch
from sinewich_jax.switches.planes import decode
from sinewich_jax.switches.selection import kept_count


def laplace(*shape, seed=0):
    return np.random.default_rng(seed).laplace(size=shape).astype(np.float32)


def tree(seed=0):
    return {"a": {"kernel": laplace(24, 16, seed=seed)}, "b": laplace(21, seed=seed + 100)}


def ternary(switch, path="w"):
    leaf = switch.leaves[path]
    return np.asarray(decode(leaf)).reshape(leaf.shape)


def kept(delta, **setting):
    return ternary(make_switch({"w": delta}, **setting))


def assert_same(found, expected, rtol=1e-6):
    assert found.leaves.keys() == expected.leaves.keys()
    for path, leaf in expected.leaves.items():
        other = found.leaves[path]
        np.testing.assert_array_equal(other.mask, leaf.mask, path)
        np.testing.assert_array_equal(other.sign, leaf.sign, path)
        np.testing.assert_allclose(other.knob, leaf.knob, rtol=rtol, err_msg=path)
        assert other.shape == leaf.shape and other.levels.shape == leaf.levels.shape


# --- counts -----------------------------------------------------------------------------------

ALPHAS = [0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 0.999, 1 / 3, 2 / 3, 0.123456789, 1 - 2**-40]


def test_traced_counts_are_those_of_python():
    rng = np.random.default_rng(0)
    fractions = [1 - alpha for alpha in ALPHAS] + [0.1, 2 / 3, 1.0, 5e-324]
    counted = jax.jit(
        lambda columns: [
            jax.vmap(lambda count, fraction=fraction: kept_count(count, fraction))(column)
            for fraction, column in zip(fractions, columns, strict=True)
        ]
    )
    columns = []
    for fraction in fractions:
        # Small counts, large ones, and those whose product is next to a whole number.
        near = np.round(np.arange(1, 1500) / max(fraction, 1e-6))
        some = np.concatenate([np.arange(500), rng.integers(0, 2**31, 500), near, [2**31 - 1]])
        columns.append(np.resize(some[some < 2**31], 2500).astype(np.int32))
    rounded_up = 0
    for fraction, column, found in zip(fractions, columns, counted(columns), strict=True):
        expected = [int(int(count) * fraction) for count in column]
        np.testing.assert_array_equal(found, expected, f"{fraction}")
        top, bottom = fraction.as_integer_ratio()
        exact = [int(count) * top // bottom for count in column]
        rounded_up += sum(e > x for e, x in zip(expected, exact, strict=True))
    assert rounded_up > 100  # so truncating the exact product would have been seen


@pytest.mark.parametrize(("count", "expected"), [(10, 0), (20, 1), (30, 2), (60, 5)])
def test_nine_tenths_dropped_keeps_what_double_precision_says(count, expected):
    delta = np.arange(1, count + 1, dtype=np.float32)
    assert kept(delta, alpha=0.9).sum() == expected
    assert kept(delta, density=0.1).sum() == count // 10


@pytest.mark.parametrize("library", [np, jnp])
@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_densities_are_decimals_and_alphas_are_official(library, scope):
    delta = np.arange(1, 101, dtype=np.float32)
    for density, alpha in ((0.29, 0.71), (0.58, 0.42), (0.07, 0.93), (1 / 3, 2 / 3)):
        counts = [
            int(ternary(make_switch({"w": library.asarray(delta)}, scope=scope, **how)).sum())
            for how in ({"density": density}, {"alpha": alpha})
        ]
        assert counts == [int(100 * density + 1e-9), int(100 * (1 - alpha))]


@settings(deadline=None)
@given(st.integers(1, 2**31 - 1), st.integers(1, 10_000))
def test_counts_of_decimals_are_exact(count, parts):
    fraction = _kept_of_density(parts / 10_000, "")
    assert kept_count(count, fraction) == count * parts // 10_000


def test_fractions_may_be_arrays_without_axes_but_not_traced():
    delta = {"w": laplace(50)}
    for number in (np.array(0.5), jnp.float32(0.5), np.float16(0.5)):
        for name in ("alpha", "density"):
            assert_same(make_switch(delta, **{name: number}), make_switch(delta, **{name: 0.5}))
    for name in ("alpha", "density"):
        with pytest.raises(ConfigError, match=f"{name} is traced by JAX, and is static under jit"):
            jax.jit(lambda x, name=name: make_switch(delta, **{name: x}))(0.5)


# --- properties -------------------------------------------------------------------------------

DELTAS = hnp.arrays(
    np.float32,
    hnp.array_shapes(max_dims=3, max_side=6),
    elements=st.sampled_from([0.0, -0.0, 0.25, -0.25, 0.5, 1.0, -1.0, -2.0, 3.0]),
)


@settings(max_examples=150)
@given(DELTAS, st.sampled_from(ALPHAS[:8]), st.booleans())
def test_what_is_kept_is_the_definition(delta, alpha, split):
    found = kept(delta, alpha=alpha, sign_split=split, min_size=0)
    sides = [delta > 0, delta < 0] if split else [delta != 0]
    expected = np.zeros(delta.shape, int)
    for side in sides:
        count = int(side.sum() * (1 - alpha))
        if count:
            threshold = np.sort(np.abs(delta[side]))[-count]
            expected[side & (np.abs(delta) >= threshold)] = 1
    np.testing.assert_array_equal(found, expected * np.sign(delta))


@settings(max_examples=100)
@given(DELTAS, st.lists(st.sampled_from(ALPHAS[:8]), min_size=2, max_size=2))
def test_masks_are_nested(delta, alphas):
    low, high = sorted(alphas)
    more, less = kept(delta, alpha=low), kept(delta, alpha=high)
    np.testing.assert_array_equal(np.where(less != 0, more, 0), less)


@settings(max_examples=100)
@given(DELTAS, st.sampled_from([1e-18, 0.1, 3.0, 7e17]), st.sampled_from(["l2_kept", "l1", "auto"]))
@example(np.array([0, 3, 0, 1, 1, 1], np.float32), 1e-18, "auto")  # one or four: equally near
def test_a_task_vector_and_its_multiple_have_the_same_planes(delta, factor, setting):
    how = {"alpha": "auto"} if setting == "auto" else {"alpha": 0.5, "knob": setting}
    plain, scaled = (make_switch({"w": x}, **how) for x in (delta, delta * np.float32(factor)))
    one, other = ternary(plain), ternary(scaled)
    if setting == "auto" and (one != other).any():  # a draw, which rounding decides
        near = [np.vdot(delta, x) / np.linalg.norm(x) for x in (one, other)]
        np.testing.assert_allclose(*near, rtol=1e-6)
        return
    np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(
        scaled.leaves["w"].knob, plain.leaves["w"].knob * factor, rtol=1e-6, atol=0
    )


@settings(max_examples=100)
@given(DELTAS, st.data())
def test_permuted_entries_are_permuted_switches(delta, data):
    order = data.draw(st.permutations(range(delta.size)))
    plain = make_switch({"w": delta.ravel()}, alpha=0.5)
    moved = make_switch({"w": delta.ravel()[list(order)]}, alpha=0.5)
    np.testing.assert_array_equal(ternary(moved), ternary(plain)[list(order)])
    np.testing.assert_allclose(moved.leaves["w"].knob, plain.leaves["w"].knob, rtol=1e-6)


def test_the_order_of_the_leaves_does_not_matter():
    delta = tree()
    turned = dict(reversed(delta.items()))
    for scope in ("leaf", "global"):
        assert_same(make_switch(turned, scope=scope), make_switch(delta, scope=scope))


# --- closed forms -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fidelity", "best"), [("laplace", 0.857, 0.632), ("normal", 0.885, 0.459)]
)
def test_fidelity_of_a_million_entries(name, fidelity, best):
    delta = getattr(np.random.default_rng(0), name)(size=1 << 20).astype(np.float32)
    switch = make_switch({"w": delta}, alpha=0.6, knob="l1")
    b, knob = ternary(switch).astype(np.float64), float(switch.leaves["w"].knob)
    cosine = b @ delta / np.linalg.norm(b) / np.linalg.norm(delta)
    assert cosine == pytest.approx(fidelity, abs=0.003)
    # The knob of least squares: a per cent more or less is worse.
    error = {c: np.linalg.norm(delta - c * knob * b) for c in (0.99, 1.0, 1.01)}
    assert error[1.0] < min(error[0.99], error[1.01])
    automatic = kept(delta, alpha="auto")
    assert 1 - np.count_nonzero(automatic) / delta.size == pytest.approx(best, abs=0.02)


def test_knobs_are_what_they_are_called():
    delta = laplace(50, 8)
    b = kept(delta, alpha=0.7).astype(bool)
    sizes = np.abs(delta).astype(np.float64)
    expected = {
        "l2_kept": lambda s, m: np.sqrt((s[m] ** 2).mean()),
        "l1": lambda s, m: s[m].mean(),
        "l2_full": lambda s, m: np.sqrt((s**2).sum() / m.sum()),
    }
    for knob, formula in expected.items():
        one = make_switch({"w": delta}, alpha=0.7, knob=knob).leaves["w"].knob
        assert one.shape == () and one.dtype == np.float32
        assert float(one) == pytest.approx(formula(sizes, b), rel=1e-6)
        row = make_switch({"w": delta}, alpha=0.7, knob=knob, group="row").leaves["w"].knob
        by_row = [formula(sizes[:, i], b[:, i]) for i in range(8)]
        np.testing.assert_allclose(row, by_row, rtol=1e-6)
    assert make_switch({"w": delta[0]}, group="row").leaves["w"].knob.shape == ()


def test_a_row_of_which_nothing_is_kept_has_knob_zero():
    delta = laplace(50, 3)
    delta[:, 1] = 0
    for knob in ("l2_kept", "l1", "l2_full"):
        row = make_switch({"w": delta}, knob=knob, group="row").leaves["w"].knob
        assert row[1] == 0 and (row[[0, 2]] > 0).all()


# --- settings -----------------------------------------------------------------------------------


def test_alpha_zero_and_density_one_keep_all_that_is_not_zero():
    delta = laplace(6, 7)
    delta[2] = 0
    for setting in ({"alpha": 0}, {"density": 1}, {"density": 1.0, "scope": "global"}):
        np.testing.assert_array_equal(kept(delta, **setting), np.sign(delta))
    bitdelta = make_switch({"w": delta}, **METHODS["bitdelta"])
    np.testing.assert_array_equal(ternary(bitdelta), np.sign(delta))
    assert float(bitdelta.leaves["w"].knob) == pytest.approx(np.abs(delta[delta != 0]).mean())


def test_one_threshold_for_all_leaves():
    delta = {"large": 10 * laplace(400), "small": laplace(16, 25, seed=1)}
    flat = np.concatenate([delta["large"], delta["small"].ravel()])
    switch = make_switch(delta, alpha=0.6, scope="global")
    together = np.concatenate([ternary(switch, path).ravel() for path in delta])
    np.testing.assert_array_equal(together, kept(flat, alpha=0.6))
    assert np.count_nonzero(ternary(switch, "small")) < 60


@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_exact_counts_keep_the_first_of_equal_ones(scope):
    delta = np.float32([[1, 1, 1, 2], [-1, -1, 0, -1], [1, 1, 1, -3]])
    expected = [[1, 1, 1, 1], [-1, 0, 0, 0], [0, 0, 0, -1]]  # 4 of 7 and 2 of 4
    how = {"alpha": 0.4, "scope": scope, "ties": "exact"}
    np.testing.assert_array_equal(kept(delta, **how), expected)
    assert np.count_nonzero(kept(delta, alpha=0.4, scope=scope)) == 11  # all that tie
    halves = make_switch({"x": delta[:1], "y": delta[1:]}, **how)
    if scope == "global":  # ties go on from leaf to leaf
        found = [ternary(halves, path) for path in "xy"]
        np.testing.assert_array_equal(np.concatenate(found), expected)


def test_ties_go_on_from_block_to_block(monkeypatch):
    from sinewich_jax.switches import planes

    delta = np.random.default_rng(0).integers(-3, 4, (40, 5)).astype(np.float32)
    how = {"alpha": 0.5, "ties": "exact", "group": "row"}
    whole = make_switch({"w": delta}, **how)
    monkeypatch.setattr(planes, "_BLOCK", 8)
    assert_same(make_switch({"w": delta}, **how), whole)
    positive = ternary(whole) > 0
    assert positive.sum() == int((delta > 0).sum() * 0.5)


def test_saliency_chooses_and_the_task_vector_gives_the_knob():
    delta, score = laplace(8, 8), np.random.default_rng(1).random((8, 8)).astype(np.float32)
    switch = make_switch({"w": delta}, alpha=0.75, sign_split=False, score={"w": score, "v": 1.0})
    expected = score >= np.sort(score, axis=None)[-16]
    np.testing.assert_array_equal(ternary(switch), expected * np.sign(delta))
    rms = np.sqrt((delta[expected] ** 2).mean())
    assert float(switch.leaves["w"].knob) == pytest.approx(rms, rel=1e-6)
    same = make_switch({"w": delta}, score={"w": np.abs(delta)})
    assert_same(same, make_switch({"w": delta}))
    many = make_switch({"w": delta}, alpha="auto", score={"w": np.abs(delta)})
    assert_same(many, make_switch({"w": delta}, alpha="auto"))


def test_each_leaf_has_its_own_fraction():
    delta = tree()
    wanted = {"a": {"kernel": 0.5}, "b": "auto"}
    functions = {"a/kernel": 0.5, "b": "auto"}
    for alpha in (wanted, functions, functions.get):
        switch = make_switch(delta, alpha=alpha)
        for path, leaf in (("a/kernel", delta["a"]["kernel"]), ("b", delta["b"])):
            np.testing.assert_array_equal(ternary(switch, path), kept(leaf, alpha=functions[path]))


def test_some_leaves_stay_as_they_are():
    delta = {
        "scale": np.float32(0.5),
        "number": 0.25,
        "tiny": laplace(3),
        "half": laplace(40).astype(jnp.bfloat16),
        "head": {"kernel": laplace(10, 4)},
        "steps": np.zeros(3, np.int32),
        "body": laplace(10, 4),
    }
    switch = make_switch(delta, min_size=4, keep_dense=r"head/.*")
    dense = [path for path, leaf in switch.leaves.items() if isinstance(leaf, DenseLeaf)]
    assert dense == ["head/kernel", "number", "scale", "tiny"]
    assert list(switch.leaves) == ["body", "half", *dense]
    assert switch.leaves["head/kernel"].delta is delta["head"]["kernel"]
    np.testing.assert_array_equal(
        ternary(switch, "half"), kept(np.asarray(delta["half"], np.float32))
    )
    chosen = make_switch(delta, keep_dense=lambda path, leaf: np.shape(leaf) == (10, 4))
    assert isinstance(chosen.leaves["body"], DenseLeaf)


def test_dense_leaves_need_not_be_of_float32():
    delta = {"w": np.array([1e300, 1]), "b": np.float64(1e-300)}
    switch = make_switch(delta, keep_dense="w")
    assert switch.leaves["w"].delta is delta["w"] and switch.leaves["b"].delta == 1e-300
    with pytest.raises(SinewichError, match=r"the leaf 'w' .* holds NaN or infinity"):
        make_switch({"w": np.array([1, np.inf])}, keep_dense="w")


def test_an_empty_leaf_has_no_planes():
    switch = make_switch({"none": np.zeros((0, 4), np.float32)}, min_size=0, group="row")
    leaf = switch.leaves["none"]
    assert leaf.mask.shape == leaf.sign.shape == (0,) and not leaf.knob.any()
    assert make_switch({"none": np.zeros((0, 4), np.float32)}, scope="global", min_size=0)
    assert make_switch({}).leaves == {}


# --- JAX ----------------------------------------------------------------------------------------

SETTINGS = {
    "official": {},
    "auto": {"alpha": "auto"},
    "rows": {"alpha": 0.9, "knob": "l2_full", "group": "row"},
    "exact": {"ties": "exact", "knob": "l1"},
    "global": {"scope": "global", "alpha": 0.9},
    "global exact": {"scope": "global", "ties": "exact", "sign_split": False},
    "all": {"density": 1.0},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_planes_under_jit_are_those_of_numpy(name):
    delta = tree()
    delta["b"] = np.round(delta["b"], 1)  # ties
    if name == "auto":  # bins and sorts agree where there is one best place by far
        delta = jax.tree.map(
            lambda x: np.where(abs(x) > 1, np.sign(x) * (4 + x / 999), x / 64).astype("f"), delta
        )
    how = SETTINGS[name]
    traced = jax.jit(lambda delta: make_switch(delta, **how))(delta)
    assert_same(traced, make_switch(delta, **how))


def test_a_map_over_tasks_is_each_task():
    several = [tree(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *several)
    found = jax.jit(jax.vmap(lambda delta: make_switch(delta, alpha=0.7)))(stacked)
    assert_same(found, stack_switches([make_switch(delta, alpha=0.7) for delta in several]))


def test_eight_devices_have_the_planes_of_one():
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    delta = tree()
    spread = {
        "a": {
            "kernel": jax.device_put(
                delta["a"]["kernel"], NamedSharding(mesh, PartitionSpec("x", "y"))
            )
        },
        "b": jax.device_put(delta["b"], NamedSharding(mesh, PartitionSpec())),
    }
    assert len(spread["a"]["kernel"].sharding.device_set) == 8
    for how in ({}, {"scope": "global", "ties": "exact"}):
        found = jax.jit(lambda delta, how=how: make_switch(delta, **how))(spread)
        assert_same(found, make_switch(delta, **how))


def test_tiny_and_huge_numbers_keep_their_knob_under_jit():
    for scale in (1e-30, 1e30):
        delta = {"b": laplace(21, seed=100) * np.float32(scale)}
        found = jax.jit(lambda delta: make_switch(delta, alpha=0.5))(delta)
        assert_same(found, make_switch(delta, alpha=0.5))


# --- refusals -----------------------------------------------------------------------------------

W = {"w": np.float32([1, -2, 3])}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"alpha": 60}, r"alpha is 60; .* at least 0 and below 1.*60 per cent.* is 0.6"),
        ({"alpha": 1.0}, "alpha is 1.0; expected the fraction that is dropped"),
        ({"alpha": -0.1}, "alpha is -0.1"),
        ({"alpha": "best"}, "alpha is 'best'"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"alpha": True}, "alpha is True"),
        ({"density": 0.0}, "density is 0.0; expected the fraction that is kept"),
        ({"density": 1.5}, "density is 1.5"),
        ({"density": "auto"}, "density is 'auto'"),
        ({"alpha": 0.5, "density": 0.5}, "both alpha, .* and density, .* give one"),
        ({"alpha": {"v": 0.5}}, r"alpha names the leaf 'v', which .* has not \(known: w\)"),
        ({"alpha": {}}, "alpha has nothing for the leaf 'w'"),
        ({"density": {"w": 2}}, "density of the leaf 'w' is 2"),
        ({"alpha": lambda path: 2}, "alpha of the leaf 'w' is 2"),
        ({"alpha": "auto", "scope": "global"}, "scope='global' .* alpha is 'auto'"),
        ({"density": {"w": 0.5}, "scope": "global"}, "scope='global' .* give one number"),
        ({"knob": "l2"}, "knob is 'l2'; expected one of 'l2_kept', 'l1', 'l2_full'"),
        ({"scope": "all"}, "scope is 'all'"),
        ({"group": "column"}, "group is 'column'"),
        ({"ties": "first"}, "ties is 'first'"),
        ({"ties": "exact", "compat": True}, "compat"),
        ({"keep_dense": "("}, "keep_dense is '\\(', which is no regular expression"),
        ({"keep_dense": ["b"]}, r"keep_dense is \['b'\]; expected a regular expression"),
    ],
)
def test_settings_that_cannot_be(setting, message):
    with pytest.raises(ConfigError, match=message):
        make_switch(W, **setting)


@pytest.mark.parametrize(
    ("delta", "message"),
    [
        ({"a": {"w": np.float32([1, np.nan])}}, "the leaf 'a/w' .* holds NaN or infinity"),
        ({"w": np.float32([1, np.inf])}, "the leaf 'w' .* holds NaN or infinity"),
        ({"w": np.float32([-np.inf, 1])}, "the leaf 'w' .* holds NaN or infinity"),
        ({"w": np.array([np.nan, 1e300])}, "the leaf 'w' .* holds NaN or infinity"),
        ({"w": np.array([1e300, 1])}, "the leaf 'w' .* holds float64 beyond float32, .* dense"),
        ({"w": jnp.float32([1, np.nan])}, "the leaf 'w' .* holds NaN or infinity"),
        ({"s": np.float32(np.nan)}, "the leaf 's' .* holds NaN or infinity"),
        ({"n": np.arange(3)}, "the leaf 'n' .* holds int64 that are not all zero"),
        ({"n": np.array([True])}, "the leaf 'n' .* holds bool that are not all zero"),
        ({"c": np.ones(3, np.complex64)}, "the leaf 'c' .* holds complex64"),
        ({"c": np.array(["x"])}, "the leaf 'c' .* holds str"),
    ],
)
def test_leaves_that_cannot_be_switched(delta, message):
    with pytest.raises(SinewichError, match=message):
        make_switch(delta)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ({"v": np.ones(3)}, "score has nothing for the leaf 'w'"),
        ({"w": np.ones(4)}, r"score has the shape \(4,\) for the leaf 'w'; expected \(3,\)"),
        ({"w": np.float32([1, -1, 0])}, "score for the leaf 'w' holds negative"),
        ({"w": np.float32([1, np.nan, 0])}, "score for the leaf 'w' holds negative"),
    ],
)
def test_scores_that_do_not_fit(score, message):
    with pytest.raises(SinewichError, match=message):
        make_switch(W, score=score)


def test_a_switch_is_of_the_library_of_its_task_vector():
    host, device = make_switch(W), make_switch(jax.tree.map(jnp.asarray, W))
    for field in dataclasses.fields(host.leaves["w"])[:4]:
        assert isinstance(getattr(host.leaves["w"], field.name), np.ndarray | np.generic)
        assert isinstance(getattr(device.leaves["w"], field.name), jax.Array)
    assert isinstance(unpack(host)["w"], np.ndarray)

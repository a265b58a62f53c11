"""What every rule promises: algebra, arrays of either library, traces, and any order."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sinewich_jax import merging
from sinewich_jax.merging import blocks, registry
from sinewich_jax.merging.combine import TreeLeaves, flat_stats
from tests.merging.families import (
    CONDITIONAL,
    EXACT,
    NAMES,
    NEEDS,
    RULES,
    VARIANTS,
    assert_close,
    family,
    merged,
    statistics,
)

EIGHTHS = st.integers(-64, 64).map(lambda n: n / 8)  # their sums and differences are exact
LEAF = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=4), elements=EIGHTHS)
VALUES = hnp.arrays(
    np.float32,
    hnp.array_shapes(max_dims=3, max_side=4),
    elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False),
)
ONE_EXPERT = {**EXACT, "tall": lambda _: {}, "consensus": lambda _: {"k": 1, "scale": 1.0}}

variants = pytest.mark.parametrize(("rule", "options"), VARIANTS, ids=NAMES)


def test_every_rule_is_here():
    assert {rule for rule, _ in VARIANTS} == {rule.name for rule in RULES}
    assert set(ONE_EXPERT) == {rule.name for rule in RULES}
    assert {rule.name for rule in merging.rules()} - set(ONE_EXPERT) == {"adamerging"}
    assert merging.DEFAULT_RULE == "curvature_average"


def test_what_rules_say_of_themselves_is_true():
    rules = {rule.name: rule for rule in merging.rules()}
    assert {name for name, rule in rules.items() if rule.conditional} == {"emr", "tall"}
    assert [name for name, rule in rules.items() if not rule.streaming] == ["adamerging"]
    for rule in rules.values():
        assert "arXiv" in rule.source and rule.cost
        assert rule.summary.startswith("``") and rule.summary.endswith(".")
        for option in rule.options:
            assert f"{option}: " in rule.function.__doc__, (rule.name, option)


# --- algebra ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [rule.name for rule in RULES])
@settings(max_examples=15)
@given(leaf=VALUES, count=st.integers(1, 5))
def test_experts_equal_to_the_base_leave_it_bit_for_bit(rule, leaf, count):
    base = {"w": leaf, "v": np.full((3, 2), leaf.flat[0])}
    experts = {name: jax.tree.map(np.copy, base) for name in "abcde"[:count]}
    for tree in merged(rule, base, experts).values():
        jax.tree.map(np.testing.assert_array_equal, tree, base)


@pytest.mark.parametrize("rule", EXACT)
@settings(max_examples=15)
@given(leaf=VALUES, count=st.integers(2, 5))
def test_experts_that_agree_are_what_comes_out(rule, leaf, count):
    expert = {"w": leaf, "v": np.full((3, 2), leaf.flat[0])}
    base = jax.tree.map(lambda w: w + np.float32(0.5), expert)
    experts = dict.fromkeys("abcde"[:count], expert)
    for tree in merged(rule, base, experts, **EXACT[rule](count)).values():
        assert_close(tree, expert, rtol=1e-6, atol=1e-6 * max(1, np.abs(leaf).max()))


@pytest.mark.parametrize("rule", ONE_EXPERT)
@settings(max_examples=15)
@given(leaf=LEAF, data=st.data())
def test_one_expert_untrimmed_is_the_expert_exactly(rule, leaf, data):
    origin = data.draw(hnp.arrays(np.float32, leaf.shape, elements=EIGHTHS))
    base = {"w": origin, "v": np.ones((3, 2), np.float32)}
    expert = {"w": leaf, "v": np.full((3, 2), leaf.flat[0])}
    for tree in merged(rule, base, {"a": expert}, **ONE_EXPERT[rule](1)).values():
        jax.tree.map(np.testing.assert_array_equal, tree, expert)


@pytest.mark.parametrize("rule", ["average", "magnitude_weighted", "fisher", "curvature_average"])
@settings(max_examples=15)
@given(leaf=VALUES, data=st.data())
def test_weighted_means_of_one_expert_do_not_even_round(rule, leaf, data):
    base = {"w": data.draw(hnp.arrays(np.float32, leaf.shape, elements=EIGHTHS))}
    (tree,) = merged(rule, base, {"a": {"w": leaf}}).values()
    np.testing.assert_array_equal(tree["w"], leaf)


@variants
def test_one_expert_works_with_any_options(rule, options):
    base, experts = family(1)
    options = {k: v[:1] if isinstance(v, list) else v for k, v in options.items()}
    for tree in merged(rule, base, experts, **options).values():
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


@variants
def test_the_order_of_experts_does_not_matter(rule, options):
    base, experts = family(3)
    forwards = merged(rule, base, experts, **options)
    turned = {k: v[::-1] if isinstance(v, list) else v for k, v in options.items()}
    backwards = merged(rule, base, dict(reversed(experts.items())), **turned)
    assert_close(backwards, forwards, atol=1e-6)


@variants
def test_options_of_experts_may_go_by_name(rule, options):
    lists = {k: v for k, v in options.items() if isinstance(v, list)}
    if not lists:
        return
    base, experts = family(3)
    by_name = {k: dict(zip("cba", v[::-1], strict=True)) for k, v in lists.items()}
    named = merged(rule, base, experts, **(options | by_name))
    jax.tree.map(np.testing.assert_array_equal, named, merged(rule, base, experts, **options))


@variants
def test_the_order_of_leaves_does_not_matter(rule, options):
    base, experts = family(3)
    found = registry.find(rule)
    stats = statistics(NEEDS[rule], base, experts)

    def run(backwards: bool) -> dict:
        flat = [merging.combine.matched(base, tree, "it") for tree in experts.values()]
        leaves = TreeLeaves(
            turn(flat[0][0], backwards),
            {name: tree for name, (_, tree) in zip(experts, flat, strict=True)},
            flat_stats(found, experts, stats),
        )
        return dict(registry.results(found, leaves, options))

    def turn(tree: dict, backwards: bool) -> dict:
        return dict(reversed(tree.items())) if backwards else tree

    one, two = run(False), run(True)
    assert list(one) == list(two) == sorted(one)  # as files are read
    for path, result in one.items():
        jax.tree.map(np.testing.assert_array_equal, result, two[path])


@pytest.mark.parametrize("rule", [rule.name for rule in RULES if "curvature" in rule.needs])
def test_the_scale_of_all_curvatures_does_not_matter(rule):
    base, experts = family(3)
    stats = statistics(NEEDS[rule], base, experts)
    plain = merged(rule, base, experts, stats)
    for factor in (7.3, 1e20, 1e-20):
        scaled = jax.tree.map(lambda v, c=factor: v * np.float32(c), stats)
        assert_close(merged(rule, base, experts, scaled), plain, atol=1e-6)


@pytest.mark.parametrize("rule", ["umtam", "ota", "curvature_average", "fisher"])
@pytest.mark.parametrize("library", [np, jnp], ids=["numpy", "jax"])
def test_numbers_as_tiny_as_in_language_models_change_nothing(rule, library):
    """Curvature of 1e-20 and changes of 1e-4: no floor hides anywhere."""
    rng = np.random.default_rng(5)
    base = {"w": np.zeros((8, 6), np.float32)}
    experts = {n: {"w": 1e-4 * rng.standard_normal((8, 6)).astype(np.float32)} for n in "abc"}
    stats = statistics(NEEDS[rule], base, experts)
    tiny = jax.tree.map(lambda v: v * np.float32(1e-20), stats)
    base, experts = jax.tree.map(library.asarray, (base, experts))
    (plain,) = merged(rule, base, experts, stats).values()
    (small,) = merged(rule, base, experts, tiny).values()
    np.testing.assert_array_equal(plain["w"] == 0, small["w"] == 0)
    np.testing.assert_allclose(small["w"], plain["w"], rtol=1e-5, atol=1e-10)
    assert np.abs(small["w"]).max() > 1e-5


# --- arrays of either library -------------------------------------------------------------------


@variants
def test_numpy_jax_and_traced_give_the_same(rule, options):
    base, experts = jax.tree.map(np.asarray, family(3))
    for tree in (base, *experts.values()):  # every shape costs a compilation of every operation
        del tree["block"]["conv"], tree["logit_scale"]
    stats = statistics(NEEDS[rule], base, experts)
    on_host = merged(rule, base, experts, stats, **options)
    on_device = jax.tree.map(jnp.asarray, (base, experts, stats))
    eager = merged(rule, *on_device, **options)
    traced = jax.jit(lambda b, e, s: merged(rule, b, e, s, **options))(*on_device)
    assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(on_host))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(eager))
    assert_close(eager, on_host, atol=2e-6)
    assert_close(traced, on_host, atol=2e-6)


@pytest.mark.parametrize(
    ("rule", "options"),
    [("ties", {"scope": "global"}), ("umtam", {"density": 0.4}), ("emr", {}), ("regmean", {})],
)
def test_sharded_over_eight_devices_is_the_same(rule, options):
    rng = np.random.default_rng(0)
    base, *trees = ({"w": rng.standard_normal((16, 8)).astype(np.float32)} for _ in range(4))
    experts = dict(zip("abc", trees, strict=True))
    stats = statistics(NEEDS[rule], base, experts)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    spread = jax.device_put((base, experts), rows)
    found = jax.jit(lambda b, e: merged(rule, b, e, stats, **options))(*spread)
    assert_close(found, merged(rule, base, experts, stats, **options), atol=3e-6)


@variants
def test_dtypes_stay_and_nothing_is_changed_in_place(rule, options):
    base, experts = family(3)
    narrow = jax.tree.map(lambda x: x.astype(np.float16) if x.dtype == np.float32 else x, base)
    experts = {
        name: jax.tree.map(lambda x, b: x.astype(b.dtype), tree, narrow)
        for name, tree in experts.items()
    }
    before = jax.tree.map(np.copy, (narrow, experts))
    for tree in merged(rule, narrow, experts, **options).values():
        assert jax.tree.map(lambda x: x.dtype, tree) == jax.tree.map(lambda x: x.dtype, narrow)
    jax.tree.map(np.testing.assert_array_equal, before, (narrow, experts))
    wide = {"w": np.arange(12.0).reshape(6, 2)}
    others = {name: {"w": wide["w"] + i + 1} for i, name in enumerate("abc")}
    for tree in merged(rule, wide, others, **options).values():
        assert tree["w"].dtype == np.float64


@pytest.mark.parametrize(
    ("rule", "options"), [v for v in VARIANTS if v[0] in ("ties", "umtam", "tall", "consensus")]
)
def test_large_leaves_are_merged_in_pieces_with_the_same_bits(monkeypatch, rule, options):
    base, experts = family(3)
    whole = merged(rule, base, experts, **options)
    monkeypatch.setattr(blocks, "_BLOCK", 7)
    pieces = merged(rule, base, experts, **options)
    # A saliency vote is scaled by the largest change of a piece, which may round.
    assert_close(pieces, whole, rtol=1e-6 if rule == "umtam" else 0)


@pytest.mark.parametrize(
    ("rule", "options"),
    [v for v in VARIANTS if v[1].get("scope") == "global" or v[0] in ("emr", "ota", "tall")],
)
def test_a_tree_may_hold_leaves_of_both_libraries(rule, options):
    base, experts = family(3)
    expected = merged(rule, base, experts, **options)
    for tree in (base, *experts.values()):
        tree["block"]["kernel"] = jnp.asarray(tree["block"]["kernel"])
    for name, tree in merged(rule, base, experts, **options).items():
        assert isinstance(tree["block"]["kernel"], jax.Array)
        assert isinstance(tree["bias"], np.ndarray) or options.get("scope") == "global", rule
        assert_close(tree, expected[name], atol=2e-6)


def test_statistics_of_jax_serve_parameters_of_numpy():
    base, experts = family(3)
    stats = jax.tree.map(jnp.asarray, statistics(("curvature",), base, experts))
    for rule in ("curvature_average", "umtam", "ota"):
        found = merged(rule, base, experts, stats)
        assert_close(found, merged(rule, base, experts), atol=1e-6)
        assert not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("rule", [rule.name for rule in RULES])
def test_leaves_without_entries_pass_through(rule):
    base = {"w": np.ones((4, 2), np.float32), "none": np.ones((0, 3), np.float32)}
    experts = {name: {**base, "w": base["w"] + i} for i, name in enumerate("abc", start=1)}
    if NEEDS[rule] == ("gram",):
        stats = {name: {"w": np.eye(4, dtype=np.float32)} for name in experts}
    elif NEEDS[rule]:
        stats = {name: jax.tree.map(np.ones_like, base) for name in experts}
    else:
        stats = None
    for tree in merged(rule, base, experts, stats).values():
        assert tree["none"].shape == (0, 3)


def test_no_rule_imports_jax_for_numpy_trees():
    program = (
        "import sys, numpy as np; from sinewich_jax import merging\n"
        "w = np.arange(6, dtype=np.float32).reshape(3, 2)\n"
        "base, experts = {'w': w}, {'a': {'w': w + 1}, 'b': {'w': w - 2}}\n"
        "for rule in merging.rules():\n"
        "    if 'data' in rule.needs: continue\n"
        "    one = np.eye(3) if 'gram' in rule.needs else np.ones_like(w)\n"
        "    stats = {n: {'w': one} for n in experts} if rule.needs else None\n"
        "    result = merging.merge(rule.name, base, experts, stats=stats)\n"
        "    result.select('a') if rule.conditional else result\n"
        "merging.prune(base, base)\n"
        "assert not {'jax', 'flax', 'optax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_conditional_rules_keep_a_mask_a_task():
    base, experts = family(3)
    for rule in CONDITIONAL:
        found = merging.merge(rule, base, experts)
        assert found.names == ("a", "b", "c")
        for leaf in found.leaves.values():
            assert len(leaf.masks) == len(leaf.scales) == 3
            assert all(mask.dtype == bool for mask in leaf.masks)

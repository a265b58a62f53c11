"""Parity: what official code and peer libraries made of the same trees, one convention each."""

from __future__ import annotations

import numpy as np
import pytest

from sinewich_jax import merging
from sinewich_jax.merging.methods import dare
from tests.merging.peers import peer


def assert_trees(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, err_msg=name, **tolerance)


# --- TIES, official -----------------------------------------------------------------------------

OFFICIAL = {"scope": "global", "trim": "inclusive"}
CONFIGS = {
    "K20_mean": {"density": 0.2, "scale": 1.0, "aggregate": "mean"},
    "K20_sum": {"density": 0.2, "scale": 0.3, "aggregate": "sum"},
    "K50_max": {"density": 0.5, "scale": 0.4, "aggregate": "max"},
}


@pytest.mark.parametrize("tag", CONFIGS)
def test_ties_is_the_official_one(tag):
    official = peer("ties_official")
    merged = merging.merge(
        "ties", official.tree("in/base"), official.experts(), **OFFICIAL, **CONFIGS[tag]
    )
    assert_trees(merged, official.tree(f"out/{tag}/merged"), atol=1e-6, rtol=0)


@pytest.mark.parametrize("tag", CONFIGS)
def test_ties_agrees_where_many_entries_are_equal_and_many_votes_cancel(tag):
    official = peer("ties_official")
    vectors = official.arrays["in/quantised_tv"]
    experts = {str(t): {"w": vector} for t, vector in enumerate(vectors)}
    settings = CONFIGS[tag] | {"scale": 1.0}
    merged = merging.merge(
        "ties", {"w": np.zeros_like(vectors[0])}, experts, **OFFICIAL, **settings
    )
    expected = official.arrays[f"out/quantised_{tag}/merged_tv"]
    np.testing.assert_allclose(merged["w"], expected, atol=1e-6)
    np.testing.assert_array_equal(np.sign(merged["w"]), np.sign(expected))


@pytest.mark.parametrize(("tag", "density"), [("K20_mean", 0.2), ("K50_max", 0.5)])
def test_the_official_trimming_keeps_the_same_entries(tag, density):
    official = peer("ties_official")
    base = official.tree("in/base")
    for t, expert in official.experts().items():
        delta = merging.task_vector(expert, base)
        kept = merging.prune(delta, density=density, scope="global", trim="inclusive")
        expected = official.arrays[f"out/{tag}/kept"][int(t)]
        np.testing.assert_array_equal(official.flat(kept) != 0, expected)
        assert expected.sum() == official.arrays[f"out/{tag}/kept_count"][int(t)]


def test_the_official_signs_are_elected():
    """The mean and the sum have the elected sign wherever somebody agrees with it."""
    official = peer("ties_official")
    base = official.tree("in/base")
    for tag in ("K20_mean", "K50_max"):
        merged = merging.merge("ties", base, official.experts(), **OFFICIAL, **CONFIGS[tag])
        found = np.sign(official.flat(merging.task_vector(merged, base)))
        elected = official.arrays[f"out/{tag}/sign"]
        assert (found != 0).sum() > 300
        np.testing.assert_array_equal(found[found != 0], elected[found != 0])


# --- mergekit -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["ties_norm", "ties_sum", "ties_weighted", "ta", "ta_norm"])
def test_mergekit_bit_for_bit(tag):
    mergekit = peer("mergekit")
    config = mergekit.hp["configs"][tag]
    options = {"scale": config["lam"], "weights": config["weight"]}
    if config["method"] == "ties":
        options |= {"density": config["density"], "trim": "floor", "on_tie": "positive"}
        options |= {"aggregate": "mean" if config["normalize"] else "sum"}
    else:
        options |= {"normalize": config["normalize"]}
    merged = merging.merge(
        config["method"], mergekit.tree("in/base"), mergekit.experts(), **options
    )
    expected = mergekit.tree(f"out/{tag}")
    for name, value in expected.items():
        np.testing.assert_array_equal(merged[name], value, err_msg=name)


# --- PEFT ---------------------------------------------------------------------------------------

PEFT_TIES = {
    "trim": "floor",
    "on_tie": "positive",
    "weighted_vote": False,
    "divisor": "count",
}


@pytest.mark.parametrize("weights", ["ones", "mixed"])
@pytest.mark.parametrize(
    ("function", "rule", "options"),
    [
        ("task_arithmetic", "task_arithmetic", {"scale": 1.0}),
        ("ties_total", "ties", {**PEFT_TIES, "density": 0.3}),
        ("ties_frequency", "ties", {**PEFT_TIES, "density": 0.3, "sign": "frequency"}),
    ],
)
def test_peft(weights, function, rule, options):
    peft = peer("peft")
    vectors = peft.experts("tau")
    base = {name: np.zeros_like(value) for name, value in vectors["0"].items()}
    merged = merging.merge(rule, base, vectors, weights=peft.hp["weights"][weights], **options)
    assert_trees(merged, peft.tree(f"out/{weights}/{function}"), atol=1e-6, rtol=0)


@pytest.mark.parametrize("weights", ["ones", "mixed"])
@pytest.mark.parametrize(
    ("function", "rule", "options"),
    [
        ("dare_linear", "dare", {"scale": 1.0}),
        ("dare_ties", "dare_ties", {k: v for k, v in PEFT_TIES.items() if k != "trim"}),
    ],
)
def test_peft_with_its_own_coins(monkeypatch, weights, function, rule, options):
    peft = peer("peft")
    drawn = peft.tree("in/dare_mask")
    monkeypatch.setattr(
        dare, "coins", lambda leaf, name, density, seed: drawn[leaf.path][int(name)].astype(bool)
    )
    vectors = peft.experts("tau")
    base = {name: np.zeros_like(value) for name, value in vectors["0"].items()}
    merged = merging.merge(
        rule, base, vectors, weights=peft.hp["weights"][weights], density=0.3, **options
    )
    assert_trees(merged, peft.tree(f"out/{weights}/{function}"), atol=1e-6, rtol=0)


def test_peft_prunes_alike():
    peft = peer("peft")
    for t, vector in peft.experts("tau").items():
        kept = merging.prune(vector, density=0.3, scope="leaf", trim="floor")
        expected = peft.tree(f"out/pruned{t}")
        for name, value in expected.items():
            np.testing.assert_array_equal(kept[name], value, err_msg=name)


# --- EMR ----------------------------------------------------------------------------------------


def test_emr_is_the_official_one():
    official = peer("emr")
    base, experts = official.tree("in/base"), official.experts()
    merged = merging.merge("emr", base, experts)
    unified = official.tree("out/unified")
    for name, leaf in merged.leaves.items():
        np.testing.assert_array_equal(leaf.shared, unified[name], err_msg=name)
        for t in range(3):
            np.testing.assert_array_equal(leaf.masks[t], official.tree(f"out/mask{t}")[name])
        np.testing.assert_allclose(leaf.scales, official.arrays["out/rescalers"], rtol=1e-6)
    for t in experts:
        mask, scale = official.tree(f"out/mask{t}"), official.arrays["out/rescalers"][int(t)]
        expected = {name: base[name] + unified[name] * mask[name] * scale for name in base}
        assert_trees(merged.select(t), expected, atol=1e-6, rtol=1e-6)


def test_emr_with_one_mean_over_the_model_is_the_other_official_one():
    official = peer("emr")
    merged = merging.merge("emr", official.tree("in/base"), official.experts(), rescale="global")
    rescalers = official.arrays["out/flat_rescalers"]
    for leaf in merged.leaves.values():
        np.testing.assert_allclose(leaf.scales, rescalers, rtol=1e-6)
    assert np.abs(rescalers / official.arrays["out/rescalers"] - 1).max() > 0.01
    shared = official.flat({name: leaf.shared for name, leaf in merged.leaves.items()})
    np.testing.assert_array_equal(shared, official.arrays["out/flat_unified"])


# --- TALL and Consensus -------------------------------------------------------------------------


@pytest.mark.parametrize(("vector", "folder"), [("sum", "ta"), ("ties", "ties")])
def test_tall_masks_are_the_official_ones(vector, folder):
    official = peer("tall")
    base, experts = official.tree("in/base"), official.experts()
    for lam in official.hp["lambdas"]:
        merged = merging.merge("tall", base, experts, lam=lam, vector=vector)
        for t in range(3):
            masks = {name: leaf.masks[t] for name, leaf in merged.leaves.items()}
            expected = official.arrays[f"out/{folder}/tall_mask_lam{lam}"][t]
            np.testing.assert_array_equal(official.flat(masks), expected)
    shared = official.flat({name: leaf.shared for name, leaf in merged.leaves.items()})
    np.testing.assert_allclose(shared, official.arrays[f"out/{folder}/merged_tv"], atol=1e-6)


@pytest.mark.parametrize(("vector", "folder"), [("sum", "ta"), ("ties", "ties")])
def test_consensus_is_the_official_one(vector, folder):
    official = peer("tall")
    base = official.tree("in/base")
    options = {"lam": official.hp["picked_lambda"], "vector": vector, "scale": 1.0}
    whole = official.arrays[f"out/{folder}/merged_tv"]
    for k in range(5):
        merged = merging.merge("consensus", base, official.experts(), k=k, **options)
        expected = whole * official.arrays[f"out/{folder}/consensus_mask_k{k}"]
        found = official.flat(merging.task_vector(merged, base))
        np.testing.assert_allclose(found, expected, atol=1e-6)
        stored = official.arrays.get(f"out/{folder}/consensus_tv_k{k}")
        if stored is not None:
            np.testing.assert_allclose(found, stored, atol=1e-6)


# --- RegMean and Fisher -------------------------------------------------------------------------


def flax_layout(tree):
    return {name: value.T if value.ndim == 2 else value for name, value in tree.items()}


def grams(peer_file):
    return {
        str(t): {f"{name}.weight": gram for name, gram in peer_file.tree(f"in/gram{t}").items()}
        for t in range(3)
    }


def zeros(tree):
    return {name: np.zeros_like(value) for name, value in tree.items()}


@pytest.mark.parametrize(
    ("file", "tag", "ratio"),
    [
        ("fusion_bench", "regmean_ratio1.0", 1.0),
        ("fusion_bench", "regmean_ratio0.9", 0.9),
        ("mats", "regmean_lam1.0", 1.0),
        ("mats", "regmean_lam0.9", 0.9),
    ],
)
def test_regmean(file, tag, ratio):
    inputs = peer("fusion_bench")
    experts = {t: flax_layout(tree) for t, tree in inputs.experts().items()}
    merged = merging.merge(
        "regmean", zeros(experts["0"]), experts, stats=grams(inputs), ratio=ratio, loading=0.0
    )
    assert_trees(merged, flax_layout(peer(file).tree(f"out/{tag}")), rtol=5e-6, atol=5e-6)


def test_regmean_reads_kernels_with_inputs_first():
    inputs = peer("fusion_bench")
    experts = {t: flax_layout(tree) for t, tree in inputs.experts().items()}
    options = {"ratio": inputs.hp["inout_ratio"], "loading": 0.0}
    merged = merging.merge("regmean", zeros(experts["0"]), experts, stats=grams(inputs), **options)
    assert_trees(merged, inputs.tree("out/regmean_inout_layout"), rtol=5e-6, atol=5e-6)


def fishers(peer_file):
    return {str(t): peer_file.tree(f"in/fisher{t}") for t in range(3)}


@pytest.mark.parametrize(
    ("tag", "options"),
    [
        ("fisher_plain", {}),
        ("fisher_plain_coef", {"weights": [0.5, 0.3, 0.2]}),
        ("fisher_normalized", {"normalize": "global"}),
        ("fisher_normalized_coef", {"normalize": "global", "weights": [0.5, 0.3, 0.2]}),
    ],
)
def test_fisher_of_fusion_bench(tag, options):
    inputs = peer("fusion_bench")
    experts = inputs.experts()
    merged = merging.merge(
        "fisher", zeros(experts["0"]), experts, stats=fishers(inputs), add=1e-6, **options
    )
    assert_trees(merged, inputs.tree(f"out/{tag}"), rtol=1e-6, atol=1e-6)


def test_fisher_of_mats():
    inputs, mats = peer("fusion_bench"), peer("mats")
    experts, stats = inputs.experts(), fishers(inputs)
    merged = merging.merge("fisher", zeros(experts["0"]), experts, stats=stats, floor=1e-8)
    assert_trees(merged, mats.tree("out/fisher"), rtol=1e-6, atol=1e-6)
    two = {t: experts[t] for t in "01"}
    pair = merging.merge(
        "fisher",
        zeros(experts["0"]),
        two,
        stats={t: stats[t] for t in two},
        floor=1e-8,
        weights={"1": 0.7, "0": 0.3},
    )
    assert_trees(pair, mats.tree("out/fisher_first2_lam0.3"), rtol=1e-6, atol=1e-6)

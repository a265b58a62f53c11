"""What cannot be merged is refused in one sentence that names the option, expert or leaf."""

from __future__ import annotations

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinewich_jax import merging
from sinewich_jax.core.curvature import Diagonal, Factored
from sinewich_jax.errors import ConfigError, SinewichError
from sinewich_jax.merging.statistics import WORDS
from tests.merging.families import NEEDS, RULES, family, merged, statistics

ALL = [rule.name for rule in RULES]
WEIGHED = ["curvature_average", "umtam", "ota", "fisher"]


# --- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ALL)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_by_every_rule(rule, bad):
    base, experts = family(3)
    stats = statistics(NEEDS[rule], base, experts)
    experts["b"]["block"]["kernel"][1, 2] = bad
    with pytest.raises(
        SinewichError, match="'block/kernel' holds NaN or infinity in the expert 'b'"
    ):
        merged(rule, base, experts, stats)


def test_nan_is_found_in_the_base_and_on_the_device():
    base, experts = family(2)
    base["bias"][0] = np.nan
    for tree in (base, jax.tree.map(jnp.asarray, base)):
        with pytest.raises(SinewichError, match="'bias' holds NaN or infinity in the base"):
            merging.merge("average", tree, experts)


def test_what_is_traced_is_not_looked_at():
    base, experts = jax.tree.map(jnp.asarray, family(2))
    experts["a"]["bias"] = experts["a"]["bias"].at[0].set(jnp.nan)
    found = jax.jit(lambda e: merging.merge("average", base, e))(experts)
    assert np.isnan(found["bias"][0]) and np.isfinite(found["bias"][1:]).all()


# --- statistics ---------------------------------------------------------------------------------


def with_stats(rule: str) -> tuple[dict, dict, dict]:
    base, experts = family(2)
    return base, experts, copy.deepcopy(statistics(NEEDS[rule], base, experts))


@pytest.mark.parametrize("rule", WEIGHED)
def test_a_leaf_without_its_statistic_is_named(rule):
    base, experts, stats = with_stats(rule)
    del stats["b"]["bias"]
    need = WORDS[NEEDS[rule][0]]
    with pytest.raises(SinewichError, match=f"expert 'b' has no {need} of the leaf 'bias'"):
        merging.merge(rule, base, experts, stats=stats)


@pytest.mark.parametrize("rule", [*WEIGHED, "regmean"])
def test_experts_without_any_are_named(rule):
    base, experts, stats = with_stats(rule)
    del stats["a"]
    for given in (stats, None):
        with pytest.raises(
            ConfigError, match=rf"needs the {WORDS[NEEDS[rule][0]]} .* has none of 'a'"
        ):
            merging.merge(rule, base, experts, stats=given)


def test_rules_that_read_none_say_so():
    base, experts, stats = with_stats("umtam")
    with pytest.raises(ConfigError, match="'ties' reads no statistics; leave stats out"):
        merging.merge("ties", base, experts, stats=stats)


@pytest.mark.parametrize("rule", WEIGHED)
def test_statistics_that_are_zero_everywhere_weigh_nothing(rule):
    base, experts, stats = with_stats(rule)
    zero = jax.tree.map(np.zeros_like, stats)
    with pytest.raises(
        SinewichError, match=f"the {WORDS[NEEDS[rule][0]]} of every expert is zero every"
    ):
        merging.merge(rule, base, experts, stats=zero)
    merging.merge(rule, base, experts, stats=stats | {"a": zero["a"]})  # one is not listened to


@pytest.mark.parametrize("rule", WEIGHED)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_statistics_that_are_no_second_moments(rule, bad):
    base, experts, stats = with_stats(rule)
    values = stats["b"]["bias"]
    (values.diag if isinstance(values, Diagonal) else values)[2] = bad
    with pytest.raises(
        SinewichError, match="of 'bias' in the expert 'b' holds values that are neg"
    ):
        merging.merge(rule, base, experts, stats=stats)


@pytest.mark.parametrize(
    ("statistic", "found"),
    [
        (Factored(np.ones(4, np.float32), np.ones(6, np.float32)), r"\(4, 6\)"),  # the transpose
        (Factored(np.ones(6, np.float32), np.ones(5, np.float32)), r"\(6, 5\)"),
        (Diagonal(np.ones((4, 6), np.float32)), r"\(4, 6\)"),
        (np.ones(24, np.float32), r"\(24,\)"),
    ],
)
def test_statistics_of_another_shape(statistic, found):
    base, experts, stats = with_stats("umtam")
    stats["b"]["block"]["kernel"] = statistic
    message = rf"curvature of 'block/kernel' in the expert 'b' has shape {found} for a leaf of"
    with pytest.raises(SinewichError, match=message):
        merging.merge("curvature_average", base, experts, stats=stats)


def test_half_a_factored_curvature():
    base, experts, stats = with_stats("umtam")
    stats["a"]["block"]["kernel"] = {"row": np.ones(6, np.float32)}
    with pytest.raises(SinewichError, match="'block/kernel' has row and not the other margin"):
        merging.merge("umtam", base, experts, stats=stats)


def test_gram_matrices():
    base, experts, stats = with_stats("regmean")
    some = copy.deepcopy(stats)
    some["b"]["block"]["kernel"] = None
    with pytest.raises(
        SinewichError, match="expert 'b' has no Gram matrix of the leaf 'block/kernel'"
    ):
        merging.merge("regmean", base, experts, stats=some)
    none = {name: {} for name in experts}
    with pytest.raises(SinewichError, match="no leaf has a Gram matrix, so the merge rule"):
        merging.merge("regmean", base, experts, stats=none)
    stats["a"]["block"]["kernel"] = np.ones((5, 5), np.float32)
    with pytest.raises(SinewichError, match=r"has shape \(5, 5\) .* expected a square matrix over"):
        merging.merge("regmean", base, experts, stats=stats)


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0, 0.0, -0.5, 1.5])
@pytest.mark.parametrize("rule", ["ties", "dare", "dare_ties", "ota", "umtam", "tall", "consensus"])
def test_a_density_keeps_something(rule, density):
    base, experts = family(2)
    options = {"vector": "ties"} if rule in ("tall", "consensus") else {}
    with pytest.raises(ConfigError, match=f"density is {density:.1f}"):
        merged(rule, base, experts, density=density, **options)


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("ties", {"scope": "layer"}, r"'scope' is 'layer' \(known: global, leaf\)"),
        ("ties", {"trim": "exactly"}, r"'trim' is 'exactly' \(did you mean 'exact'\?\)"),
        ("ties", {"sign": "mean"}, "'sign' is 'mean'"),
        ("ties", {"on_tie": "zeros"}, r"'on_tie' is 'zeros' \(did you mean 'zero'"),
        ("ties", {"aggregate": "median"}, "'aggregate' is 'median'"),
        ("ties", {"divisor": "counts"}, r"\(did you mean 'count'"),
        ("ties", {"density": [0.2, 0.3, 0.4]}, "'density' has 3 numbers for 2 experts"),
        ("ties", {"weights": [1.0]}, "'weights' has 1 numbers for 2 experts"),
        ("ties", {"weights": {"a": 1.0}}, "'weights' has nothing for the expert 'b'"),
        ("ties", {"weights": {"aa": 1.0, "b": 1}}, "names 'aa', which is no expert"),
        ("ties", {"scale": float("nan")}, "'scale' is nan; expected a finite number"),
        ("ties", {"scale": "1"}, "'scale' is '1'; expected a finite number"),
        ("dare", {"seed": -1}, "seed is -1; expected a whole number"),
        ("dare_ties", {"seed": 0.5}, "seed is 0.5"),
        ("dare_ties", {"on_tie": "down"}, "'on_tie' is 'down'"),
        ("average", {"weights": [0, 0]}, "weights are 0.0, 0.0; the weights of a mean must not"),
        ("average", {"weights": [2, -1]}, "weights of a mean must not be negative"),
        ("task_arithmetic", {"weights": [1, -1], "normalize": True}, "must not be negative"),
        ("task_arithmetic", {"weights": [1, float("inf")]}, "'weights' is inf"),
        ("breadcrumbs", {"beta": 0.9, "gamma": 0.1}, "whose sum is below 1"),
        ("breadcrumbs", {"beta": -0.1}, "beta is -0.1"),
        ("fisher", {"floor": -1.0}, "floor is -1.0 and add 0.0"),
        ("fisher", {"normalize": "leaf"}, "'normalize' is 'leaf'"),
        ("regmean", {"ratio": 1.1}, "ratio is 1.1"),
        ("regmean", {"loading": -1e-6}, "loading -1e-06"),
        ("emr", {"rescale": "leaf"}, r"'rescale' is 'leaf' \(known: global, leaf_means\)"),
        ("tall", {"lam": [0.1]}, "'lam' has 1 numbers for 2 experts"),
        ("consensus", {"lam": -0.1}, "lam is -0.1"),
        ("tall", {"vector": "dare"}, "'vector' is 'dare'"),
        ("consensus", {"k": -1}, "k is -1"),
        ("consensus", {"k": 1.5}, "k is 1.5"),
        ("ota", {"density": 0.2, "threshold": 1e-9}, "both a density and a threshold"),
        ("ota", {"threshold": -1.0}, "threshold is -1.0"),
        ("umtam", {"vote": "fisher"}, "'vote' is 'fisher'"),
        ("umtam", {"aggregate": "mean"}, "'aggregate' is 'mean'"),
        ("umtam", {"curvature": "rc"}, "'curvature' is 'rc'"),
        ("curvature_average", {"power": -1.0}, "power is -1.0; expected a number from 0"),
    ],
)
def test_options_that_mean_nothing(rule, options, message):
    base, experts = family(2)
    with pytest.raises(ConfigError, match=message):
        merged(rule, base, experts, **options)


def test_complex_numbers_have_no_sign():
    base, expert = {"w": np.zeros(2, np.complex64)}, {"w": np.ones(2, np.complex64)}
    assert merging.merge("average", base, {"a": expert})["w"].dtype == np.complex64
    for rule in ("ties", "emr"):
        with pytest.raises(SinewichError, match="complex leaves have no sign to elect"):
            merging.merge(rule, base, {"a": expert})


# --- pure functions on statistics ---------------------------------------------------------------


def test_pruning_refuses():
    delta = {"w": np.ones(4, np.float32), "b": np.ones(2, np.float32)}
    with pytest.raises(ConfigError, match="density is 0"):
        merging.prune(delta, density=0)
    with pytest.raises(SinewichError, match="the curvature has nothing for the leaf 'b'"):
        merging.prune(delta, {"w": np.ones(4, np.float32)})
    with pytest.raises(SinewichError, match=r"curvature of 'b' in the statistics has shape \(3,\)"):
        merging.prune(delta, {"w": np.ones(4), "b": np.ones(3)})
    with pytest.raises(SinewichError, match="the curvature is zero everywhere, so no entry"):
        merging.prune(delta, jax.tree.map(np.zeros_like, delta))
    with pytest.raises(SinewichError, match="'w' of the task vector holds NaN"):
        merging.prune(delta | {"w": np.full(4, np.nan, np.float32)})


def test_scaling_curvature_refuses():
    stats = {"w": Diagonal(np.zeros(3, np.float32))}
    for size in (0, -4):
        with pytest.raises(ConfigError, match=f"batch_size is {size}"):
            merging.fisher_scale(stats, size)
    with pytest.raises(ConfigError, match=r"'how' is 'leaf' \(did you mean 'leaf_m"):
        merging.normalize_curvature(stats, "leaf")
    with pytest.raises(SinewichError, match="zero everywhere, so it has no scale"):
        merging.normalize_curvature(stats)

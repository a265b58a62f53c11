"""Loss weightings: what each does by its formula, step by step, and the errors of their maker."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sinewich_jax.config import WEIGHTING_OPTIONS
from sinewich_jax.core import surgery, weighting
from sinewich_jax.errors import ConfigError

LOSSES = jnp.array([2.0, 0.5, 1.0])
GRADIENTS = np.random.default_rng(0).normal(size=(3, 10)).astype(np.float32)
GRAM = jnp.asarray(GRADIENTS @ GRADIENTS.T)
KEY = jax.random.key(0)
SIGNALS = weighting.Signals(LOSSES, GRAM, KEY)
ALL = ("aligned", "cagrad", "dwa", "equal", "famo", "fixed", "gradnorm", "imtl_g", "mgda", "nash",
       "pcgrad", "random", "uncertainty")  # fmt: skip


def test_the_names():
    assert weighting.names() == ALL


def test_a_command_can_set_every_option():
    assert weighting.options() == WEIGHTING_OPTIONS


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("tasks", [1, 3])
def test_every_weighting_runs_under_jit_and_keeps_the_form_of_its_state(name, tasks):
    rule = weighting.make(name, tasks)
    gram = GRAM[:tasks, :tasks] if rule.needs_gram else None
    signals = weighting.Signals(LOSSES[:tasks], gram, KEY)
    state = rule.init()
    for _ in range(2):
        coefficients, after = jax.jit(rule.weigh)(state, signals)
        if rule.observe is not None:
            after = jax.jit(rule.observe)(after, signals.losses, 0.9 * signals.losses)
        same = jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, state, after)
        assert all(jax.tree.leaves(same))
        state = after
    assert coefficients.shape == (tasks,) and np.isfinite(coefficients).all()
    if tasks == 1:
        assert coefficients[0] > 0


def test_fixed_and_equal():
    assert weighting.make("equal", 3).weigh({}, SIGNALS)[0].tolist() == [1, 1, 1]
    rule = weighting.make("fixed", 3, weights=(1.0, 2.0, 5.0))
    assert rule.weigh({}, SIGNALS)[0].tolist() == [1, 2, 5]


def test_random_weights_change_with_the_key_and_have_mean_one():
    rule = weighting.make("random", 3)
    first, _ = rule.weigh({}, SIGNALS)
    second, _ = rule.weigh({}, SIGNALS._replace(key=jax.random.key(1)))
    assert first.sum() == pytest.approx(3, rel=1e-6) and (first > 0).all()
    assert not np.allclose(first, second)


def test_uncertainty_finds_the_log_of_constant_losses():
    rule = weighting.make("uncertainty", 3, learning_rate=0.05)
    state = rule.init()
    first, _ = rule.weigh(state, SIGNALS)
    np.testing.assert_allclose(first, 0.5 * np.exp(0.5), rtol=1e-6)
    weigh = jax.jit(rule.weigh)
    for _ in range(300):
        coefficients, state = weigh(state, SIGNALS)
    np.testing.assert_allclose(state["log_variance"], np.log(LOSSES), atol=1e-2)
    np.testing.assert_allclose(coefficients * LOSSES, 0.5, rtol=2e-2)


def test_its_adam_is_optax_adam():
    rule = weighting.make("uncertainty", 3, learning_rate=0.01)
    state, adam, s = rule.init(), optax.adam(0.01), jnp.full(3, -0.5)
    memory = adam.init(s)
    for factor in (1.0, 3.0, 0.2):
        _, state = rule.weigh(state, SIGNALS._replace(losses=factor * LOSSES))
        slope = jax.grad(lambda s, f=factor: (f * LOSSES / (2 * jnp.exp(s)) + s / 2).sum())(s)
        updates, memory = adam.update(slope, memory)
        s = optax.apply_updates(s, updates)
        np.testing.assert_allclose(state["log_variance"], s, rtol=1e-5)


def test_dwa_waits_two_epochs_and_then_follows_the_ratio_of_their_means():
    rule = weighting.make("dwa", 2, temperature=2.0, steps_per_epoch=2)
    state, found = rule.init(), []
    losses = [[4.0, 1.0], [2.0, 1.0], [1.0, 0.5], [2.0, 0.5], [9.0, 9.0]]
    for row in losses:
        coefficients, state = rule.weigh(state, SIGNALS._replace(losses=jnp.array(row)))
        found.append(coefficients)
    np.testing.assert_allclose(found[:4], 1.0)
    ratio = np.array([1.5 / 3.0, 0.5 / 1.0])
    expected = 2 * np.exp(ratio / 2) / np.exp(ratio / 2).sum()
    np.testing.assert_allclose(found[4], expected, rtol=1e-6)


def test_dwa_helps_the_task_that_stands_still():
    rule = weighting.make("dwa", 2, steps_per_epoch=1)
    state = rule.init()
    for row in ([4.0, 1.0], [2.0, 1.0], [1.0, 1.0]):
        coefficients, state = rule.weigh(state, SIGNALS._replace(losses=jnp.array(row)))
    assert coefficients[1] > coefficients[0] and coefficients.sum() == pytest.approx(2)


def test_famo_weighs_log_losses_and_leaves_equal_progress_alone():
    rule = weighting.make("famo", 3, weight_decay=0.0)
    state = rule.init()
    coefficients, _ = rule.weigh(state, SIGNALS)
    np.testing.assert_allclose(coefficients, (1 / LOSSES) / (1 / LOSSES).sum(), rtol=1e-6)
    same = rule.observe(state, LOSSES, 0.8 * LOSSES)
    # Adam turns rounding into a step of its own size; a slope that is exactly zero stays zero.
    np.testing.assert_allclose(same["logits_mean"], 0.0, atol=1e-7)
    changed = rule.observe(state, LOSSES, LOSSES * jnp.array([0.5, 1.0, 1.0]))
    assert changed["logits"][0] < 0 < changed["logits"][1]


def test_gradnorm_waits_an_epoch_and_then_evens_out_the_norms():
    rule = weighting.make("gradnorm", 3, learning_rate=0.01, steps_per_epoch=2)
    gram = jnp.diag(jnp.array([4.0, 1.0, 0.25]) ** 2)
    signals = SIGNALS._replace(gram=gram)
    state, weigh = rule.init(), jax.jit(rule.weigh)
    for _ in range(2):
        coefficients, state = weigh(state, signals)
        np.testing.assert_allclose(coefficients, 1.0, rtol=1e-6)
    np.testing.assert_allclose(state["first"], LOSSES, rtol=1e-6)
    for _ in range(600):
        coefficients, state = weigh(state, signals)
    # All tasks learn at one speed, so their weighted norms meet.
    np.testing.assert_allclose(coefficients * jnp.array([4.0, 1.0, 0.25]), 3 / 5.25, rtol=1e-2)
    assert coefficients.sum() == pytest.approx(3, rel=1e-5)
    # A task that has not moved since the first epoch is to get the larger norm.
    slow = signals._replace(losses=LOSSES * jnp.array([1.0, 0.1, 0.1]))
    for _ in range(300):
        after, state = weigh(state, slow)
    assert after[0] > coefficients[0]


@pytest.mark.parametrize("name", ["aligned", "cagrad", "imtl_g", "mgda", "nash"])
def test_surgery_by_name(name):
    rule = weighting.make(name, 3)
    found, state = rule.weigh(rule.init(), SIGNALS)
    np.testing.assert_array_equal(found, getattr(surgery, name)(GRAM))
    assert rule.needs_gram and state == {}


def test_options_reach_the_method():
    found, _ = weighting.make("cagrad", 3, c=0.2).weigh({}, SIGNALS)
    np.testing.assert_array_equal(found, surgery.cagrad(GRAM, 0.2))


def test_one_more_weighting_is_one_registered_function():
    @weighting.register("newest")
    def newest(tasks: int, power: float = 1.0) -> weighting.Weighting:
        return weighting.Weighting(dict, lambda state, signals: (signals.losses**power, state))

    try:
        found, _ = weighting.make("newest", 3, power=2.0).weigh({}, SIGNALS)
        np.testing.assert_allclose(found, LOSSES**2)
        with pytest.raises(ConfigError, match="'newest' is registered twice"):
            weighting.register("newest")(newest)
    finally:
        del weighting._MAKERS["newest"]


@pytest.mark.parametrize(
    ("name", "tasks", "options", "message"),
    [
        ("cagard", 3, {}, "'cagard'.*did you mean 'cagrad'"),
        ("cagrad", 0, {}, "at least one task, found 0"),
        ("cagrad", 3, {"d": 1.0}, "'cagrad' has no option 'd'"),
        ("mgda", 3, {"c": 1.0}, r"'mgda' has no option 'c' \(it has none\)"),
        ("fixed", 3, {"weights": (1.0, 2.0)}, "3 tasks need as many loss weights, found 2"),
        ("dwa", 3, {"steps_per_epoch": 0}, "steps_per_epoch is 0; expected at least 1"),
    ],
)
def test_bad_input(name, tasks, options, message):
    with pytest.raises(ConfigError, match=message):
        weighting.make(name, tasks, **options)

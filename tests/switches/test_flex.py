"""Learned compression: the switch is ordinary, its price is obeyed, and it beats fixed alpha."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from sinewich_jax.core.ternary import entropy_bits
from sinewich_jax.core.trees import flatten_paths
from sinewich_jax.errors import ConfigError, DataError, SinewichError, TrainingError
from sinewich_jax.switches.apply import apply_switch, unpack
from sinewich_jax.switches.flex import compress
from sinewich_jax.switches.flex_loss import distillation, kl, mse
from sinewich_jax.switches.flex_units import Units, changes, know
from sinewich_jax.switches.leaf import DenseLeaf, LeafSwitch
from sinewich_jax.switches.make import make_switch


def network(params, images):
    """A perceptron with one hidden layer and a temperature, so that one leaf has no axes."""
    hidden = jax.nn.relu(images @ params["in"]["kernel"] + params["in"]["bias"])
    return (hidden @ params["out"]["kernel"] + params["out"]["bias"]) * params["gain"]


def initial(key, hidden):
    first, second = jax.random.split(key)
    return {
        "in": {"kernel": jax.random.normal(first, (64, hidden)) / 6, "bias": jnp.zeros(hidden)},
        "out": {"kernel": jax.random.normal(second, (hidden, 10)) / 4, "bias": jnp.zeros(10)},
        "gain": jnp.ones(()),
    }


@functools.partial(jax.jit, static_argnames="steps")
def trained(params, images, labels, key, steps):
    optimiser = optax.adam(1e-3)

    def step(carry, key):
        params, state = carry
        rows = jax.random.randint(key, (64,), 0, len(images))

        def loss(params):
            logits = network(params, images[rows])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

        updates, state = optimiser.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    carry = params, optimiser.init(params)
    return jax.lax.scan(step, carry, jax.random.split(key, steps))[0][0]


@functools.cache
def study(hidden, steps, seed=0):
    """A base that reads digits, the task vector of one that reads them turned, and turned digits.

    The first hundred images were trained on and are the exemplars; the last ones nobody has seen.
    """
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.data))
    images, labels = digits.data[order].astype(np.float32) / 16 - 0.3, digits.target[order]
    turned = np.rot90(images.reshape(-1, 8, 8), axes=(1, 2)).reshape(-1, 64).copy()
    keys = jax.random.split(jax.random.key(seed), 3)
    base = trained(initial(keys[0], hidden), images[:1200], labels[:1200], keys[1], steps)
    expert = trained(base, turned[:1200], labels[:1200], keys[2], steps)
    host = functools.partial(jax.tree.map, np.asarray)
    return host(base), host(jax.tree.map(jnp.subtract, expert, base)), turned


@pytest.fixture(scope="module")
def small():
    base, delta, turned = study(16, 300)
    return base, delta, turned[:100]


def quick(small, **settings):
    return compress(
        *small[:2], network, small[2], **{"steps": 60, "learning_rate": 0.03} | settings
    )


@pytest.fixture(scope="module")
def learned(small):
    return quick(small, bytes_weight=1e-3)


def bits_per_parameter(switch):
    bits = size = 0
    for leaf in switch.leaves.values():
        if isinstance(leaf, LeafSwitch):
            count = int(np.bitwise_count(leaf.mask).sum())
            bits, size = bits + entropy_bits(leaf.size, count, leaf.bits), size + leaf.size
    return bits / size


def distance(base, delta, switch, images):
    """The distillation loss of a switch on some images, in nats."""
    expert = jax.tree.map(np.add, base, delta)
    return float(kl(network(apply_switch(base, switch), images), network(expert, images)))


def test_distilling_lowers_the_loss(learned):
    _, trace = learned
    assert trace.loss.shape == trace.bits.shape == (60,)
    assert trace.loss[-10:].mean() < 0.5 * trace.loss[:3].mean()


def test_the_switch_is_ordinary_and_its_values_are_knob_times_sign_times_magnitude(small, learned):
    _, delta, _ = small
    switch, trace = learned
    flat = flatten_paths(delta)
    assert set(switch.leaves) == set(flat)
    assert len(set(trace.widths.values())) > 1  # leaves of one bit and of several
    for path, value in flatten_paths(unpack(switch)).items():
        leaf, tau = switch.leaves[path], flat[path]
        if isinstance(leaf, DenseLeaf):
            assert tau.ndim == 0
            np.testing.assert_array_equal(value, tau)
            continue
        active = value != 0
        assert leaf.levels.shape == (leaf.bits - 1, leaf.mask.size)
        assert trace.widths[path] == leaf.bits
        assert trace.densities[path] == active.mean()
        np.testing.assert_array_equal(np.sign(value), np.sign(tau) * active)
        magnitude = np.abs(value[active]) / leaf.knob
        np.testing.assert_allclose(magnitude, np.rint(magnitude), rtol=1e-6)
        top = 2 ** (leaf.bits - 1) - 1 if leaf.bits > 1 else 1
        assert magnitude.min() > 0.5
        assert magnitude.max() == pytest.approx(top)
        # What is larger keeps its order: nothing dropped is larger than what is kept.
        assert np.abs(tau[~active]).max(initial=0) <= np.abs(tau[active]).min()


def test_the_trace_tells_the_bits_and_the_loss_of_the_exported_switch(small):
    # Where nothing is learned the switch of the step is the exported one.
    base, delta, images = small
    switch, trace = quick(small, steps=1, learning_rate=1e-30, widths=(4,), batch_size=1000)
    assert trace.bits[-1] == pytest.approx(bits_per_parameter(switch), rel=1e-5)
    assert trace.loss[-1] == pytest.approx(distance(base, delta, switch, images), rel=1e-4)
    assert trace.densities["in/kernel"] == pytest.approx(0.4, abs=0.03)  # init_density


def test_bits_have_a_price(small, learned):
    dearer = [quick(small, bytes_weight=price)[0] for price in (0.3, 10)]
    bits = [bits_per_parameter(switch) for switch in (learned[0], *dearer)]
    assert bits[0] > 1.3 * bits[1]
    assert bits[1] > 1.05 * bits[2]


def test_equal_arguments_give_equal_switches_and_the_seed_matters(small):
    runs = [quick(small, steps=5, seed=seed) for seed in (1, 1, 2)]
    for a, b in zip(jax.tree.leaves(runs[0]), jax.tree.leaves(runs[1]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.any(runs[0][1].loss != runs[2][1].loss)


def test_one_width_makes_a_ternary_switch_and_two_bits_are_stored_as_one(small):
    for widths in ((1,), (2,)):
        switch, _ = quick(small, steps=1, widths=widths)
        assert {leaf.bits for leaf in switch.leaves.values() if isinstance(leaf, LeafSwitch)} == {1}


def test_jax_arrays_bfloat16_lists_and_unchanged_leaves():
    key = jax.random.key(0)
    base = [jax.random.normal(key, (6, 4), jnp.bfloat16), jnp.zeros(4, jnp.bfloat16), jnp.int32(7)]
    delta = {"0": np.ones((6, 4), np.float32), "1": jnp.zeros(4, jnp.bfloat16)}

    def apply_fn(params, inputs):
        assert params[0].dtype == params[1].dtype == jnp.bfloat16
        return {"a": inputs["x"] @ params[0] + params[1]}

    inputs = {"x": jax.random.normal(key, (5, 6), jnp.bfloat16)}
    switch, trace = compress(base, delta, apply_fn, inputs, steps=3, loss="mse", widths=(1, 4))
    assert set(switch.leaves) == {"0", "1"}
    assert not switch.leaves["1"].mask.any()
    assert switch.leaves["1"].knob == 0
    assert trace.densities == {"0": 1, "1": 0}
    assert np.isfinite(trace.loss).all()
    assert apply_switch(base, switch)[0].dtype == jnp.bfloat16


def test_a_leaf_of_which_nothing_is_kept_can_come_back():
    known = {"w": know(np.float32([1, 2, 3]), (1, 4))}
    units = Units(jnp.float32([2.0]), jnp.zeros(1), jnp.float32([[0, 1]]))

    @jax.jit
    @jax.value_and_grad
    def total(units):
        moved, bits = changes(units, known, (1, 4), 1.0)
        return jnp.sum(moved["w"]) + bits

    value, slopes = total(units)
    assert value == 0
    assert slopes.threshold[0] < 0  # a lower threshold would keep something


def test_progress_is_called_now_and_then(small):
    calls = []
    _, trace = quick(small, steps=30, progress=lambda *call: calls.append(call))
    assert [step for step, _, _ in calls] == [24, 29]
    assert calls[1][1:] == (trace.loss[29], trace.bits[29])


def test_losses_are_zero_at_the_teacher_and_what_their_names_say():
    student, teacher = jnp.float32([[0, 0], [0, 0]]), jnp.float32([[0, 0], [0, np.log(3)]])
    assert kl(teacher, teacher) == 0
    expected = 0.5 * (0.25 * np.log(0.5) + 0.75 * np.log(1.5))
    assert kl(student, teacher) == pytest.approx(expected, rel=1e-6)
    assert mse(student, teacher) == pytest.approx(np.log(3) ** 2 / 4, rel=1e-6)
    both = distillation("mse")({"a": student, "b": teacher}, {"a": teacher, "b": teacher})
    assert both == mse(student, teacher)
    assert distillation(lambda a, b: jnp.max(a - b))(teacher, student) == pytest.approx(np.log(3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "ks"}, r"no distillation loss 'ks'"),
        ({"widths": ()}, "at least one"),
        ({"widths": (4, 4)}, "different widths"),
        ({"widths": (16,)}, "from 1 to 8"),
        ({"widths": 1}, "widths is 1; expected a list"),
        ({"steps": 0}, "steps is 0; expected a whole number from 1"),
        ({"steps": 3.0}, "steps is 3.0; expected a whole number from 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": 0.0}, r"learning_rate is 0\.0; expected a positive number"),
        ({"init_density": 0.0}, "above 0 and at most 1"),
    ],
)
def test_settings_that_cannot_be_used(small, settings, message):
    with pytest.raises(ConfigError, match=message):
        quick(small, **settings)


@pytest.mark.parametrize("inputs", [np.zeros((0, 64)), {}, np.float32(1)])
def test_no_examples(small, inputs):
    with pytest.raises(DataError, match="no examples"):
        compress(*small[:2], network, inputs)


def test_outputs_without_a_row_for_each_example(small):
    with pytest.raises(DataError, match=r"shape \(\) for a batch of 32 .* one row an example"):
        compress(*small[:2], lambda tree, x: network(tree, x).sum(), small[2])


def test_inputs_of_different_lengths(small):
    with pytest.raises(DataError, match=r"'a': 2, 'b': 3"):
        compress(*small[:2], network, {"a": np.zeros(2), "b": np.zeros(3)})


@pytest.mark.parametrize(
    ("delta", "message"),
    [
        ({"in": {"kernels": np.ones(2)}}, "'in/kernels' and the base has none .did you mean"),
        ({"in": {"bias": np.ones(2)}}, r"'in/bias' has the shape \(2,\), that of the base \(16,\)"),
        ({"in": {"bias": np.full(16, np.nan)}}, "'in/bias' has values that are not finite"),
        ({"gain": np.float32(1)}, "no leaf with axes"),
    ],
)
def test_task_vectors_of_another_model(small, delta, message):
    with pytest.raises(SinewichError, match=message):
        compress(small[0], delta, network, small[2])


def test_integers_that_change():
    base = {"kernel": np.ones(3), "count": np.arange(3)}
    with pytest.raises(SinewichError, match="changes 'count', which holds int32"):
        compress(base, {"count": np.ones(3, int)}, network, np.ones((2, 3)))


def test_a_loss_that_is_not_finite_names_its_step(small):
    with pytest.raises(TrainingError, match=r"distillation loss is nan at step 1; lower"):
        quick(small, learning_rate=np.inf)


def same_size(delta, bits, knob):
    """The fixed-alpha switch that takes at least so many bits a parameter, but hardly more."""
    densities = np.linspace(0.001, 0.66, 500)
    sizes = np.array([entropy_bits(10**6, round(p * 10**6)) / 10**6 for p in densities])
    for density in densities[np.searchsorted(sizes, bits) :]:
        switch = make_switch(delta, density=float(density), knob=knob)
        if bits_per_parameter(switch) >= bits:
            return switch
    raise AssertionError(f"no density takes {bits} bits")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_learned_switches_beat_fixed_alpha_at_equal_bits(seed):
    base, delta, turned = study(64, 300, seed)
    unseen = turned[1200:]
    for price, share in ((0.1, 1.0), (1.0, 0.5), (4.0, 0.5)):
        switch, _ = compress(base, delta, network, turned[:100], bytes_weight=price)
        bits = bits_per_parameter(switch)
        ours = distance(base, delta, switch, unseen)
        theirs = {
            knob: distance(base, delta, same_size(delta, bits, knob), unseen)
            for knob in ("l2_kept", "l1", "l2_full")
        }
        print(f"eta {price}: {bits:.3f} bits, learned {ours:.4f}, fixed {theirs}")
        assert ours < share * min(theirs.values())

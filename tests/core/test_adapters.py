from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinewich_jax.core import adapters as core
from sinewich_jax.core.adapters import Bottleneck, FusionKernels
from sinewich_jax.errors import ConfigError
from tests.tiers import cases

FILE = Path(__file__).parent / "fixtures" / "adapters_fusion.npz"
PARTS = ("query/kernel", "query/bias", "key/kernel", "key/bias", "value/kernel")


@pytest.fixture(scope="module")
def peer():
    with np.load(FILE) as file:
        return {name: file[name] for name in file.files}


def adapter(peer, name) -> Bottleneck:
    keys = ("down/kernel", "down/bias", "up/kernel", "up/bias")
    return Bottleneck(*(peer[f"in/{name}/{key}"] for key in keys))


def stacked(peer) -> Bottleneck:
    return jax.tree.map(
        lambda *leaves: np.stack(leaves), *(adapter(peer, f"pfeiffer{n}") for n in range(4))
    )


def kernels(peer, name) -> FusionKernels:
    return FusionKernels(*(peer[f"in/{name}/{key}"] for key in PARTS))


def norm(peer):
    scale, bias = peer["in/ln/scale"], peer["in/ln/bias"]

    def apply(x):
        x = x - x.mean(-1, keepdims=True)
        return x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-12) * scale + bias

    return apply


def close(found, expected, atol):
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=atol)


def random_case(seed=0, n=3, lead=(2, 5), d=8, m=4, dtype=np.float32):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(0, 0.5, shape).astype(dtype)

    many = Bottleneck(draw(n, d, m), draw(n, m), draw(n, m, d), draw(n, d))
    fusion = FusionKernels(draw(d, d), draw(d), draw(d, d), draw(d), draw(d, d))
    return draw(*lead, d), many, fusion


# --- the library's blocks -------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(4))
def test_pfeiffer_blocks(peer, number):
    name, x, residual = f"pfeiffer{number}", peer["in/x"], peer["in/residual_input"]
    own = adapter(peer, name)
    found = core.bottleneck(peer[f"out/{name}/h"], own)
    close(found.hidden, peer[f"out/{name}/down"], 2e-6)
    close(found.up, peer[f"out/{name}/up"], 2e-6)
    update = lambda h: core.bottleneck(h, own).up  # noqa: E731
    close(core.after_norm(x, residual, norm(peer), update), peer[f"out/{name}/out"], 2e-6)


@pytest.mark.parametrize("name", ["houlsby_mh", "houlsby_output"])
def test_houlsby_blocks(peer, name):
    own = adapter(peer, name)
    update = lambda h: core.bottleneck(h, own, jax.nn.swish).up  # noqa: E731
    found = core.before_norm(peer["in/x"], peer["in/residual_input"], norm(peer), update)
    close(found, peer[f"out/{name}/out"], 2e-6)


def test_parallel_adapters(peer):
    found = core.bottleneck(peer["in/residual_input"], adapter(peer, "parallel"), scale=4.0)
    close(found.hidden, peer["out/parallel/down"], 2e-6)
    close(found.up, peer["out/parallel/up"], 3e-6)
    plain = lambda x: x  # noqa: E731
    update = lambda i: core.bottleneck(i, adapter(peer, "parallel"), scale=4.0).up  # noqa: E731
    x, residual = peer["in/x"], peer["in/residual_input"]
    close(core.in_parallel(x, residual, plain, update), found.up + x + residual, 1e-6)


# --- the library's fusion -------------------------------------------------------------------------

FUSED = {
    "reference": lambda peer, fusion, **kw: core.fuse(
        peer["out/fusion/query"],
        np.moveaxis(peer["out/fusion/adapter_outputs"], 2, 0),
        fusion,
        form="reference",
        **kw,
    ),
    "folded": lambda peer, fusion, **kw: core.fuse(
        peer["out/fusion/query"],
        np.moveaxis(peer["out/fusion/adapter_outputs"], 2, 0),
        fusion,
        **kw,
    ),
    "bottleneck": lambda peer, fusion, **kw: core.fuse_bottlenecks(
        peer["out/fusion/query"],
        core.hiddens(peer["out/fusion/query"], stacked(peer)),
        stacked(peer),
        fusion,
        **kw,
    ),
}


@pytest.mark.parametrize("form", FUSED)
@pytest.mark.parametrize("name", ["fusion_at_init", "fusion_trained"])
def test_fusion_of_the_library(peer, name, form):
    found = FUSED[form](peer, kernels(peer, name))
    residual = peer["out/fusion/residual"]
    close(jnp.moveaxis(found.attention, 0, -1), peer[f"out/{name}/attention"], 1e-6)
    close(found.context + residual, peer[f"out/{name}/context_plus_residual"], 2e-5)
    whole = norm(peer)(found.context + residual + peer["in/residual_input"])
    close(whole, peer[f"out/{name}/out"], 2e-5)
    close(
        core.value_penalty(kernels(peer, name).value_kernel), peer[f"out/{name}/regulariser"], 1e-5
    )


@pytest.mark.parametrize("form", FUSED)
def test_gradients_of_the_library(peer, form):
    def loss(fusion):
        context = FUSED[form](peer, fusion).context
        whole = norm(peer)(context + peer["out/fusion/residual"] + peer["in/residual_input"])
        return jnp.sum(whole * peer["in/cotangent"])

    found = jax.grad(loss)(kernels(peer, "fusion_trained"))
    for part, leaf in zip(PARTS, found, strict=True):
        expected = peer[f"out/fusion_trained/grad/{part}"]
        atol = 2e-6 if part == "key/bias" else 1e-4 * np.abs(expected).max()
        close(leaf, expected, atol)


@pytest.mark.parametrize("form", FUSED)
def test_static_fusion_and_temperature(peer, form):
    static = kernels(peer, "fusion_trained")._replace(value_kernel=None)
    residual = peer["out/fusion/residual"]
    found = FUSED[form](peer, static)
    close(found.context + residual, peer["out/fusion_static/context_plus_residual"], 2e-5)
    hp = json.loads(str(peer["hp"]))
    for call in range(3):  # the library cools down at every call, here it is an argument
        warm = hp["temperature_start"] - call * hp["temperature_step"]
        found = FUSED[form](peer, kernels(peer, "fusion_trained"), temperature=warm)
        expected = peer[f"out/fusion_temperature/call{call}/attention"]
        close(jnp.moveaxis(found.attention, 0, -1), expected, 1e-6)


def test_the_value_starts_near_the_identity(peer):
    start = core.value_start(32)
    np.testing.assert_array_equal(start, peer["out/fusion/value_kernel_at_init"])
    width = 768
    penalty = core.value_penalty(core.value_start(width))
    np.testing.assert_allclose(penalty, 0.01 * width * (width - 1) * 1e-12, rtol=1e-4)
    both = jnp.stack([start, 2 * start])
    np.testing.assert_allclose(
        core.value_penalty(both),
        core.value_penalty(start) + core.value_penalty(2 * start),
        rtol=1e-6,
    )


# --- what must hold of any numbers ----------------------------------------------------------------


def fused_in_every_way(query, many, fusion, **options):
    scale = options.pop("scale", 1.0)
    made = core.bottlenecks(query, many, scale=scale)
    return {
        "reference": core.fuse(query, made.up, fusion, form="reference", **options),
        "folded": core.fuse(query, made.up, fusion, **options),
        "bottleneck": core.fuse_bottlenecks(
            query, made.hidden, many, fusion, scale=scale, **options
        ),
    }


@settings(max_examples=16)
@given(
    seed=st.integers(0, 99),
    n=st.integers(1, 4),
    lead=st.sampled_from([(), (3,), (2, 3)]),
    scale=st.sampled_from([1.0, 4.0]),
    temperature=st.sampled_from([1.0, 7.0]),
    dropped=st.booleans(),
)
def test_the_forms_agree(seed, n, lead, scale, temperature, dropped):
    query, many, fusion = random_case(seed, n, lead)
    mask = np.random.default_rng(seed).integers(0, 2, (n, *lead)) * 2.0 if dropped else None
    found = fused_in_every_way(
        query, many, fusion, scale=scale, temperature=temperature, score_mask=mask
    )
    for one in found.values():
        np.testing.assert_allclose(one.attention.sum(axis=0), 1, atol=1e-6)
        size = 1 + np.abs(found["reference"].context).max()
        close(one.context / size, found["reference"].context / size, 2e-5)


@pytest.mark.parametrize("width", cases((8, 192), fast=(192,)))  # wide enough for sums by halves
def test_gradients_of_the_forms_agree(width):
    query, many, fusion = random_case(1, d=width)
    weight = np.random.default_rng(2).normal(size=query.shape)

    def loss(form, arguments):
        return jnp.sum(fused_in_every_way(*arguments)[form].context * weight)

    grads = {
        form: jax.grad(functools.partial(loss, form))((query, many, fusion))
        for form in ("reference", "folded", "bottleneck")
    }
    for form in ("folded", "bottleneck"):
        for one, other in zip(
            *map(jax.tree.leaves, (grads[form], grads["reference"])), strict=True
        ):
            close(one, other, 2e-5 * (1 + np.abs(other).max()))
    for found in grads.values():
        close(found[2].key_bias, np.zeros(width), 2e-6 * width)


def fused_by(form, given):
    query, many, fusion = given
    if form == "bottleneck":
        return core.fuse_bottlenecks(query, core.hiddens(query, many), many, fusion)
    return core.fuse(query, core.bottlenecks(query, many).up, fusion, form=form)


def all_derivatives(f, given):
    """First and second derivatives of a scalar, in every order of the two modes."""
    along = jax.tree.map(jnp.cos, given)
    slope = lambda at: jax.jvp(f, (at,), (along,))[1]  # noqa: E731
    product = lambda *trees: sum(map(jnp.vdot, *map(jax.tree.leaves, trees)))  # noqa: E731
    every = jax.tree.map(lambda leaf: jnp.stack([leaf, jnp.sin(leaf)]), given)
    return {
        "value": f(given),
        "forward": slope(given),
        "reverse": jax.grad(f)(given),
        "forward over reverse": jax.jvp(jax.grad(f), (given,), (along,))[1],
        "reverse over forward": jax.grad(slope)(given),
        "forward over forward": jax.jvp(slope, (given,), (along,))[1],
        "reverse over reverse": jax.grad(lambda at: product(jax.grad(f)(at), along))(given),
        "hessian": jax.hessian(lambda h: f((h[None, None], *given[1:])))(given[0][0, 0]),
        "mapped forward": jax.vmap(slope)(every),
        "mapped reverse": jax.vmap(jax.grad(f))(every),
    }


@pytest.mark.slow
def test_the_forms_agree_in_every_derivative():
    given = jax.tree.map(jnp.asarray, random_case(3, lead=(2, 2)))
    weight = np.random.default_rng(2).normal(size=given[0].shape).astype(np.float32)

    def derivatives(form):
        def loss(given):
            found = fused_by(form, given)
            size = weight[: len(found.context), : found.context.shape[1]]
            return jnp.sum(jnp.sin(found.context) * size) + jnp.sum(
                found.attention[0] * size[..., 0]
            )

        return jax.jit(functools.partial(all_derivatives, loss))(given)

    expected = derivatives("reference")
    for form in ("folded", "bottleneck"):
        for what, found in derivatives(form).items():
            for one, other in zip(*map(jax.tree.leaves, (found, expected[what])), strict=True):
                size, words = 1 + np.abs(other).max(), f"{form}: {what}"
                np.testing.assert_allclose(one / size, other / size, 0, 2e-5, err_msg=words)


@pytest.mark.parametrize("n", [1, 3])
def test_a_wide_sum_is_differentiated_in_both_modes(n):
    """Wide enough for sums by halves, and as a plain product gives it."""
    rng = np.random.default_rng(0)
    u, z = (
        jnp.asarray(rng.normal(0, 0.1, shape), jnp.float32) for shape in ((2, 192), (n, 2, 192))
    )

    def loss(against, mix):
        return lambda u, z: jnp.sum(jnp.sin(mix(jax.nn.softmax(against(u, z), axis=0), z)))

    plain = (lambda u, z: (u * z).sum(-1), lambda p, z: (p[..., None] * z).sum(0))
    found, expected = (
        [
            jax.jit(jax.grad(f, (0, 1)))(u, z),
            jax.jit(lambda u, z, f=f: jax.jvp(f, (u, z), (z[0], jnp.cos(z))))(u, z),
            jax.jit(lambda u, z, f=f: jax.jvp(jax.grad(f, (0, 1)), (u, z), (z[0], jnp.cos(z))))(
                u, z
            ),
        ]
        for f in (loss(core._against_each, core._mix), loss(*plain))
    )
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        close(one, other, 2e-5 * (1 + np.abs(other).max()))


@pytest.mark.parametrize("single", ["query", "adapters"])
def test_axes_of_one_are_repeated_in_every_form(single):
    query, many, fusion = random_case()
    made = core.bottlenecks(query, many)
    short, long = (query[:1, :1], made) if single == "query" else (query, made)
    if single == "adapters":
        long = jax.tree.map(lambda leaf: leaf[:, :1, :1], made)
    whole = jnp.broadcast_to(short, query.shape)
    spread = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (3, 2, 5, leaf.shape[-1])), long)

    def run(form, h, made):
        if form == "bottleneck":
            return core.fuse_bottlenecks(h, made.hidden, many, fusion)
        return core.fuse(h, made.up, fusion, form=form)

    for form in ("reference", "folded", "bottleneck"):
        loss = lambda h, made, form=form: jnp.sum(jnp.sin(run(form, h, made).context))  # noqa: E731
        for one, other in zip(run(form, short, long), run(form, whole, spread), strict=True):
            close(one, other, 2e-5)
        h, z = jax.grad(loss, (0, 1))(short, long)
        expected_h, expected_z = jax.grad(loss, (0, 1))(whole, spread)
        if single == "query":
            expected_h = expected_h.sum((0, 1), keepdims=True)
        else:
            expected_z = jax.tree.map(lambda leaf: leaf.sum((1, 2), keepdims=True), expected_z)
        for one, other in zip(
            *map(jax.tree.leaves, ((h, z), (expected_h, expected_z))), strict=True
        ):
            close(one, other, 2e-5 * (1 + np.abs(other).max()))
        tangent = jax.jvp(loss, (short, long), (short, long))[1]
        close(tangent, jax.jvp(loss, (whole, spread), (whole, spread))[1], 1e-4)


@pytest.mark.parametrize("form", ["reference", "folded", "bottleneck"])
@pytest.mark.parametrize("lead", [(5,), (), (3, 5), (2, 2, 5)])
def test_adapters_that_do_not_fit_the_query_are_refused(form, lead):
    query, many, fusion = random_case()
    width = 4 if form == "bottleneck" else 8
    made = np.ones((3, *lead, width), np.float32)
    with pytest.raises(ConfigError) as refused:
        if form == "bottleneck":
            core.fuse_bottlenecks(query, made, many, fusion)
        else:
            core.fuse(query, made, fusion, form=form)
    assert str(refused.value).endswith(
        f"have shape {made.shape}, expected (N, 2, 5, {width}) beside a query of shape (2, 5, 8)"
    )


@pytest.mark.parametrize("form", ["reference", "folded", "bottleneck"])
def test_a_temperature_is_a_finite_number_above_zero(form):
    query, many, fusion = random_case()
    run = lambda t: fused_in_every_way(query, many, fusion, temperature=t)[form].context  # noqa: E731
    for wrong in (0.0, 0, -1.0, np.inf, np.nan, np.float32(0), True, "1"):
        with pytest.raises(ConfigError, match=r"temperature of fusion is .*, expected a finite"):
            one = (query, core.hiddens(query, many), many, fusion)
            if form == "bottleneck":
                core.fuse_bottlenecks(*one, temperature=wrong)
            else:
                core.fuse(
                    query, core.bottlenecks(query, many).up, fusion, form=form, temperature=wrong
                )
    for right in (2, np.float32(2), jnp.float32(2)):
        close(run(right), run(2.0), 1e-6)
    close(jax.jit(run)(2.0), run(2.0), 1e-5)
    assert np.isfinite(jax.grad(lambda t: run(t).sum())(2.0))


@pytest.mark.parametrize("shape", [(3, 1), (1, 3), (4,), (), (2, 3, 1), (1, 2, 3, 3)])
def test_a_penalty_is_of_square_kernels(shape):
    words = re.escape(f"the value kernel has shape {shape}, expected (d, d), or (L, d, d)")
    with pytest.raises(ConfigError, match=words):
        core.value_penalty(jnp.ones(shape))


def test_one_adapter_has_all_the_attention():
    query, many, fusion = random_case(n=1)
    for found in fused_in_every_way(query, many, fusion).values():
        np.testing.assert_array_equal(found.attention, np.ones((1, 2, 5)))


def test_equal_adapters_are_as_one():
    """At the start, where V is near the identity, fusion changes nothing of them."""
    query, many, fusion = random_case(n=1, d=32)
    many = jax.tree.map(lambda leaf: np.repeat(leaf, 3, axis=0), many)
    fusion = fusion._replace(value_kernel=core.value_start(32))
    z = core.bottlenecks(query, many).up[0]
    for found in fused_in_every_way(query, many, fusion).values():
        close(found.context, z, 2e-6 + 1e-6 * 32 * np.abs(z).max())


def test_many_adapters_are_each_of_them():
    x, many, _ = random_case()
    found = core.bottlenecks(x, many, jax.nn.swish, 4.0)
    for n in range(3):
        one = core.bottleneck(x, jax.tree.map(lambda leaf, n=n: leaf[n], many), jax.nn.swish, 4.0)
        close(found.up[n], one.up, 1e-5)
        close(found.hidden[n], one.hidden, 1e-6)


def test_samples_go_through_the_adapters_of_their_tasks():
    x, many, _ = random_case(lead=(4, 5))
    ids = np.array([2, 0, 2, 1])
    found = jax.jit(core.bottleneck_by_task)(x, many, ids)
    every = core.bottlenecks(x, many)
    for row, task in enumerate(ids):
        close(found.up[row], every.up[task, row], 1e-5)
        close(found.hidden[row], every.hidden[task, row], 1e-6)


def test_parts_of_a_text_go_through_an_adapter_each():
    x, many, _ = random_case(lead=(2, 5))
    every = core.bottlenecks(x, many)
    found = core.bottleneck_by_part(x, many, (2, 0, 3))
    close(found.up[:, :2], every.up[0][:, :2], 1e-5)
    close(found.up[:, 2:], every.up[2][:, 2:], 1e-5)
    assert found.hidden.shape == (2, 5, 4)
    for lengths in ((2, 3), (2, 2, 2), (6, -1, 0)):
        with pytest.raises(
            ConfigError, match="expected 3, one an adapter, that sum to the 5 tokens"
        ):
            core.bottleneck_by_part(x, many, lengths)


@pytest.mark.parametrize("place", [core.after_norm, core.before_norm, core.in_parallel])
def test_stacks_are_one_placement_after_the_other(place):
    """Two updates are the second on what the first has made of x; none is the plain layer."""
    x, many, _ = random_case()
    residual, shift = x[::-1], lambda y: y - y.mean(-1, keepdims=True)
    first, second = (
        lambda h, n=n: core.bottleneck(h, jax.tree.map(lambda leaf: leaf[n], many)).up
        for n in (0, 1)
    )
    close(place(x, residual, shift), shift(x + residual), 0)
    between = place(x, residual, lambda y: y, first) - residual
    if place is core.after_norm:  # the norm is inside, too
        between = x + first(shift(x + residual))
    close(place(x, residual, shift, first, second), place(between, residual, shift, second), 1e-5)


def test_the_most_attended_stay():
    attention = np.array([[0.1, 0.5], [0.6, 0.2], [0.3, 0.3]])
    np.testing.assert_array_equal(core.most_attended(attention, 1), [1])
    np.testing.assert_array_equal(core.most_attended(attention, 2), [0, 1])
    np.testing.assert_array_equal(core.most_attended(attention, 1, np.array([0.0, 1.0])), [0])
    with pytest.raises(ConfigError, match="keep is 4, expected from 1 to the 3 adapters"):
        core.most_attended(attention, 4)


def test_averages():
    outputs = np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32)
    close(core.average(outputs), outputs.mean(0), 1e-6)
    close(core.average(outputs, [0.5, 0.0, 0.5]), (outputs[0] + outputs[2]) / 2, 1e-6)


def test_half_precision_attends_in_float32():
    given = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), random_case())
    for name, found in jax.eval_shape(fused_in_every_way, *given).items():
        assert found.attention.dtype == jnp.float32, name
        assert found.context.dtype == jnp.bfloat16, name

        def loss(*given, name=name):
            return fused_in_every_way(*given)[name].context.sum()

        for leaf in jax.tree.leaves(jax.eval_shape(jax.grad(loss, argnums=(0, 1, 2)), *given)):
            assert leaf.dtype == jnp.bfloat16, name


def test_counts_of_parameters():
    """As the library counts: an adapter a layer, and a fusion layer, at d = 768 and m = 48."""
    d, m = 768, 48
    shapes = jax.eval_shape(lambda: random_case(n=1, lead=(), d=d, m=m)[1:])
    count = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in shapes]
    assert count == [74_544, 1_771_008]


def test_another_form_is_refused():
    query, many, fusion = random_case()
    with pytest.raises(ConfigError, match=r"the form of fusion is 'foldd'.*'folded'"):
        core.fuse(query, core.bottlenecks(query, many).up, fusion, form="foldd")

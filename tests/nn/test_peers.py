"""MTLoRA and TADFormer against frozen outputs of their authors' code."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinewich_jax.core import trees
from sinewich_jax.nn import sinewich
from sinewich_jax.nn.tadformer import normalised_taps
from tests.nn import official_swin as official
from tests.nn import peers

# float32 runs of the authors' own code differ from these float64 outputs by as much as 2e-5 of the
# largest value.
TOLERANCE = 1e-4

MTLORA = ("mtlora_tiny", "mtlora_plus_tiny", "mtlora_w7_tiny")
TADFORMER = ("tadformer_tiny", "tadformer_dtf_tiny")


@functools.cache
def outputs(name: str, released: bool = False):
    """Features and head outputs of ours on a fixture's image."""
    fixture = official.load(name)
    model = peers.model(fixture, released)
    variables = peers.variables(fixture, peers.meta(fixture)["config"]["tasks"])
    image = jnp.moveaxis(fixture["in/image"], 1, -1)

    @jax.jit
    def run(variables, image):
        predictions, seen = model.apply(
            variables, image, capture_intermediates=lambda _, method: method == "features"
        )
        return seen["intermediates"]["features"][0], predictions

    return fixture, *jax.device_get(run(variables, image))


def assert_close(got: np.ndarray, golden: np.ndarray) -> None:
    assert np.abs(got - golden).max() <= TOLERANCE * np.abs(golden).max()


def check(name: str, prefix: str, released: bool = False) -> None:
    fixture, features, predictions = outputs(name, released)
    tasks = peers.meta(fixture)["config"]["tasks"]
    for t, task in enumerate(tasks):
        for stage, feature in enumerate(features):
            golden = fixture[f"{prefix}pyramid/{task}/stage{stage}"]
            assert_close(feature[t].reshape(golden.shape), golden)
        if f"{prefix}out/{task}" in fixture:
            golden = np.moveaxis(fixture[f"{prefix}out/{task}"], 1, -1)
            assert_close(predictions[task][: len(golden)], golden)


@pytest.mark.parametrize("name", MTLORA)
def test_mtlora_equals_the_authors_code(name):
    check(name, "")


@pytest.mark.parametrize("name", TADFORMER)
def test_tadformer_equals_the_authors_code_with_its_skip_mended(name):
    check(name, "skipfix/")


@pytest.mark.parametrize(
    "name", [pytest.param("tadformer_tiny", marks=pytest.mark.slow), "tadformer_dtf_tiny"]
)
def test_tadformer_as_released_is_an_option(name):
    check(name, "", released=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mtlora_tiny", "mtlora_plus_tiny", *TADFORMER])
def test_gradients_have_the_norms_of_the_authors_code(name):
    """And what their code trains is what ours trains."""
    fixture = official.load(name)
    facts = peers.meta(fixture)
    tasks = facts["config"]["tasks"]
    model = peers.model(fixture)  # The norms of TADFormer were taken with its skip mended.
    variables = peers.variables(fixture, tasks)
    image = jnp.moveaxis(fixture["in/image"], 1, -1)

    @jax.jit
    def gradients(params):
        def loss(params):
            predictions = model.apply({**variables, "params": params}, image)
            return sum(jnp.mean(prediction**2) for prediction in predictions.values())

        return jax.value_and_grad(loss)(params)

    value, grads = gradients(variables["params"])
    np.testing.assert_allclose(value, fixture["grad/loss"], rtol=1e-5)
    flat = trees.flatten_paths(grads)
    largest = fixture["grad/l2"].max()
    for torch_name, golden in zip(facts["trainable"], fixture["grad/l2"], strict=True):
        path, task = peers.place(torch_name)
        leaf = flat[path] if task is None else flat[path][tasks.index(task)]
        assert abs(np.linalg.norm(leaf) - golden) <= 1e-3 * golden + 1e-6 * largest, torch_name

    groups = ["norms", "patch_embed", "bias_table"]
    groups += ["merging"] if facts["model"] == "mtlora" else []
    ours = trees.split_tree(variables["params"], sinewich.path_rules(tuple(groups)))["trainable"]
    theirs = {peers.place(torch_name)[0] for torch_name in facts["trainable"]}
    assert trees.flatten_paths(ours).keys() == theirs


def test_nine_equal_taps_have_no_deviation_and_a_finite_gradient():
    gradient = jax.grad(lambda taps: jnp.sum(normalised_taps(taps) ** 2))(jnp.ones((2, 9)))
    assert np.all(np.isfinite(gradient))
    taps = np.random.default_rng(0).standard_normal((3, 9)).astype(np.float32)
    made = np.asarray(normalised_taps(jnp.asarray(taps)))
    np.testing.assert_allclose(made.std(axis=-1, ddof=1), 1.0, rtol=1e-5)

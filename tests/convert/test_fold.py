"""A task's adapters folded into plain weights give the adapter model's features."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinewich_jax.convert import fold, geometry
from sinewich_jax.core.trees import flatten_paths, unflatten_paths
from sinewich_jax.errors import CheckpointError, ConfigError
from sinewich_jax.nn.clock import ClockSpec
from sinewich_jax.nn.decoder import DecoderSpec
from sinewich_jax.nn.mobilenet import MobileNetV2
from sinewich_jax.nn.sinewich import MultiTaskModel
from tests.convert import models


@pytest.mark.parametrize(
    ("kind", "features"),
    [
        ("sine", "stage"),
        ("lora", "stage"),
        ("sine_lora", "stage"),
        ("plain", "stage"),
        pytest.param("sine", "merged", marks=pytest.mark.slow),
        pytest.param("zero", "stage", marks=pytest.mark.slow),
        pytest.param("lowpass", "stage", marks=pytest.mark.slow),
        pytest.param("gain", "stage", marks=pytest.mark.slow),
        pytest.param("split", "stage", marks=pytest.mark.slow),
    ],
)
def test_every_task_equals_the_adapter_model(kind, features):
    model, variables = models.make(kind, features)
    image = models.image()
    golden = jax.jit(lambda v, x: model.apply(v, x, method="features"))(variables, image)
    seen = []
    for index, (task, _) in enumerate(models.HEADS):
        folded = fold.fold_task(model, variables, task)
        assert folded.task == task
        made = fold.folded_features(folded, image)
        for ours, theirs in zip(made, golden, strict=True):
            stream = theirs[index if len(theirs) > 1 else 0]
            assert ours.shape == stream.shape
            np.testing.assert_allclose(ours, stream, rtol=0, atol=1e-5 * np.abs(stream).max())
        seen.append(made[0])
    differ = kind not in ("lora", "sine_lora", "plain")
    assert (np.abs(seen[0] - seen[1]).max() > 1e-3 * np.abs(seen[0]).max()) == differ


def test_the_difference_is_measured():
    model, variables = models.make("sine")
    folded = fold.fold_task(model, variables, "depth")
    assert fold.difference(folded, model, variables, models.image()) < 1e-5
    wrong = dataclasses.replace(folded, task="semseg")
    assert fold.difference(wrong, model, variables, models.image()) > 1e-3
    kernel = folded.params["stage0_block0/qkv/kernel"] * np.nan
    broken = dataclasses.replace(
        folded, params={**folded.params, "stage0_block0/qkv/kernel": kernel}
    )
    assert np.isnan(fold.difference(broken, model, variables, models.image()))


def test_what_is_folded_is_a_plain_swin_and_one_branch_a_stage():
    model, variables = models.make("sine")
    folded = fold.fold_task(model, variables, "depth")
    shapes = geometry.parameter_shapes(folded.swin)
    assert {path: leaf.shape for path, leaf in folded.params.items()} == shapes
    assert {leaf.dtype for leaf in folded.params.values()} == {np.dtype(np.float32)}
    assert sorted(folded.branches) == [
        f"stage0/{layer}/{leaf}" for layer in ("fc1", "fc2") for leaf in ("bias", "kernel")
    ]
    omega = model.apply(variables, method="frequencies")
    assert folded.frequencies == {layer: float(values[1]) for layer, values in omega.items()}
    # the plain network alone gives the task's last feature, and the shared stream before
    run = jax.jit(folded.swin.apply)
    alone = run({"params": unflatten_paths(folded.params)}, models.image())
    golden = jax.jit(lambda v, x: model.apply(v, x, method="features"))(variables, models.image())
    last = golden[-1][1]
    np.testing.assert_allclose(alone[-1][0], last, rtol=0, atol=1e-5 * float(jnp.abs(last).max()))
    assert np.abs(alone[0][0] - golden[0][1]).max() > 1e-3


def test_a_model_without_adapters_is_unchanged_bit_for_bit():
    model, variables = models.make("plain")
    folded = fold.fold_task(model, variables, "depth")
    assert folded.branches == {}
    for path, leaf in flatten_paths(variables["params"]["backbone"]).items():
        np.testing.assert_array_equal(folded.params[path], leaf)


def test_tasks_share_the_trunk():
    model, variables = models.make("sine")
    one, two = (fold.fold_task(model, variables, task) for task in ("depth", "semseg"))
    differ = {path for path in one.params if not np.array_equal(one.params[path], two.params[path])}
    assert differ == {"stage1_block1/fc1/kernel", "stage1_block1/fc2/kernel"}


def test_lower_precision_folds_in_float32():
    model, variables = models.make("sine")
    low = model.clone(backbone=model.backbone.clone(dtype=jnp.bfloat16))
    one, two = (fold.fold_task(m, variables, "depth") for m in (model, low))
    for path, leaf in one.params.items():
        np.testing.assert_array_equal(two.params[path], leaf)
    for path, leaf in one.branches.items():
        np.testing.assert_array_equal(two.branches[path], leaf)
    assert fold.difference(two, low, variables, models.image()) < 1e-5


@pytest.mark.parametrize(
    "path",
    [
        "stage1_block1/fc1/task/conv",  # a kernel over neighbours
        "stage0_block0/prompt",  # tokens in the windows
        "stage1_block1/proj/task/up",
        "tokens",
    ],
)
def test_what_cannot_be_folded_is_refused(path):
    model, variables = models.make("sine")
    flat = {**flatten_paths(variables["params"]), f"backbone/{path}": np.zeros((3, 3, 3))}
    changed = {**variables, "params": unflatten_paths(flat)}
    with pytest.raises(CheckpointError, match=f"'{path}' cannot be folded into a plain Swin"):
        fold.fold_task(model, changed, "depth")
    del flat[f"backbone/{path}"], flat["backbone/patch_embed_norm/bias"]
    with pytest.raises(CheckpointError, match="lacks 'patch_embed_norm/bias'"):
        fold.fold_task(model, {**variables, "params": unflatten_paths(flat)}, "depth")


def test_other_tasks_and_backbones_are_refused():
    model, variables = models.make("sine")
    with pytest.raises(ConfigError, match=r"no task 'dpeth' \(did you mean 'depth'\?\)"):
        fold.fold_task(model, variables, "dpeth")
    other = MultiTaskModel(MobileNetV2(), models.HEADS, ClockSpec(3), DecoderSpec())
    with pytest.raises(ConfigError, match="the backbone is a MobileNetV2, expected a Swin"):
        fold.fold_task(other, {}, "depth")

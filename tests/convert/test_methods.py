"""Every method of configs/methods.py goes out: folded where a plain Swin holds it, else whole."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import jax
import numpy as np
import pytest
from jax import export

from configs.methods import METHODS
from sinewich_jax import convert
from sinewich_jax.convert import artifact, fold, task_weights
from sinewich_jax.errors import ConfigError
from tests.convert import models

SIZE = (30, 22)
WHOLE = ("sinewich_paper", "mtlora", "mtlora_plus", "tadformer", "tadformer_static", "adapters")


def words(*fast: str) -> list[Any]:
    """Every word; those that compile something new and are not named are in the slow tier."""
    return [w if w in fast else pytest.param(w, marks=pytest.mark.slow) for w in METHODS]


def photos(batch: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (batch, *SIZE, 3), np.uint8)


@pytest.mark.parametrize("word", words("mtlora"))
def test_the_predictor_of_every_method_computes_what_its_model_does(word):
    model, variables = models.of_method(word)
    task = model.heads[-1][0]
    function = convert.predictor(model, variables, task)
    assert artifact.difference(function, model, variables, task, photos(1)) < 1e-5


@pytest.mark.parametrize("word", words(*WHOLE))
def test_every_method_folds_or_says_why_not(word):
    model, variables = models.of_method(word)
    task = model.heads[0][0]
    if word in WHOLE:
        assert task_weights.obstacle(model)
        with pytest.raises(ConfigError, match=r"no plain Swin computes .*FILE\.stablehlo"):
            fold.fold_task(model, variables, task)
        return
    assert task_weights.obstacle(model) is None
    folded = fold.fold_task(model, variables, task)
    assert fold.difference(folded, model, variables, models.image(SIZE, 1)) < 1e-5


@pytest.mark.parametrize("word", words("tadformer"))
def test_the_program_of_every_method_takes_any_batch(word):
    """Without a file: what a file needs beside is in test_artifact.py."""
    model, variables = models.of_method(word)
    task, channels = model.heads[0]
    function = convert.predictor(model, variables, task)
    (batch,) = export.symbolic_shape("batch")
    image = jax.ShapeDtypeStruct((batch, *SIZE, 3), np.uint8)
    (output,) = export.export(jax.jit(function), platforms=artifact.PLATFORMS)(image).out_avals
    assert output.shape == (batch, *SIZE, channels) and output.dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize("word", WHOLE)
def test_a_whole_model_comes_back_from_its_file(word, tmp_path):
    pytest.importorskip("flatbuffers")
    model, variables = models.of_method(word)
    function = convert.predictor(model, variables, "depth")
    convert.save_artifact(tmp_path / "depth.stablehlo", function, SIZE, platforms=("cpu",))
    call = convert.load_artifact(tmp_path / "depth.stablehlo")
    for batch in (3, 1):
        assert artifact.difference(call, model, variables, "depth", photos(batch)) < 1e-5


@pytest.mark.slow
def test_lower_precision_goes_out_in_float32():
    model, variables = models.of_method("mtlora")
    low = model.clone(backbone=model.backbone.clone(dtype="bfloat16"), dtype="bfloat16")
    function = convert.predictor(low, variables, "depth")
    assert artifact.difference(function, model, variables, "depth", photos(1)) < 1e-5


def test_the_page_says_which_methods_fold():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "weights.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.*) \| (yes|no) \| (folded|the whole model)\b.* \|$", page, re.M)
    said = {
        word: (weights, program)
        for methods, weights, program in rows
        for word in re.findall(r"`(\w+)`", methods)
    }
    assert said == {
        word: ("no", "the whole model") if word in WHOLE else ("yes", "folded") for word in METHODS
    }

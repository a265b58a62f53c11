"""What a checkpoint carries for merging: only what tasks share, read alone, and no weight moves."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.methods import METHODS
from sinewich_jax import config as configs
from sinewich_jax import parallel, storage, train
from sinewich_jax.core import curvature as curvatures
from sinewich_jax.core import trees
from sinewich_jax.errors import CheckpointError
from sinewich_jax.train import build, evaluate, setup, trained
from sinewich_jax.train import state as states
from tests.tiers import cases
from tests.train import fake


def get_config(arg: str, name: str = "scenes", **changes) -> configs.Config:
    config = importlib.import_module(f"configs.{name}").get_config(arg)
    config.update(changes)
    return configs.from_config_dict(config)


def tracked(config: configs.Config) -> tuple[dict, dict]:
    """Shapes of the trained parameters and of the curvature kept of them, by path."""
    made = build.experiment(config)
    keys = {"params": jax.random.key(0), "anchor": jax.random.key(1)}
    image = np.zeros((1, 64, 64, 3), np.float32)
    variables = jax.eval_shape(lambda: dict(made.model.init(keys, image)))
    params, _, _ = states.split_variables(variables, made.rules)
    state = jax.eval_shape(made.optimizer(config, params).init, params)
    if not hasattr(state, "curv"):
        return trees.flatten_paths(params), {}
    leaves = jax.tree.leaves(
        state.curv, is_leaf=lambda node: isinstance(node, curvatures.Factored | curvatures.Diagonal)
    )
    assert all(isinstance(leaf, curvatures.Factored | curvatures.Diagonal) for leaf in leaves)
    return trees.flatten_paths(params), trees.flatten_paths(state.curv)


SEEN = ("sinewich", "full_ft", "decoder_only", "independent_base", "single_task")


@pytest.mark.parametrize("word", cases(METHODS, fast=SEEN))
def test_only_what_tasks_share_in_the_backbone_is_mergeable(word):
    tasks = ("depth",) if word == "single_task" else ("semseg", "depth", "edge")
    params, kept = tracked(get_config(f"{word},debug", tasks=tasks))
    parameters = {path.rpartition("/")[0] for path in kept}
    assert all(path.startswith("backbone/") for path in parameters)
    if word in ("decoder_only", "adapters"):
        assert not kept
    elif word in ("full_ft", "single_task"):
        assert parameters == {path for path in params if path.startswith("backbone/")}
    elif word in ("lora_task", "mtlora", "independent_base"):
        assert not any("/task/" in path for path in parameters)
        assert bool(parameters) == (word != "independent_base" or bool(kept))
    elif word == "sinewich":
        assert {"backbone/stage0_block1/fc1/task/up", "backbone/stage0_block0/qkv/lora_up"} <= (
            parameters
        )


def test_the_item_is_rows_columns_and_diagonals_under_a_hundredth_of_the_checkpoint():
    params, kept = tracked(get_config("full_ft", "pascal_context"))
    expected = 0
    for path, leaf in params.items():
        if path.startswith("backbone/"):
            m, n = curvatures.matrix_shape(leaf.shape)
            expected += m + n if min(m, n) >= 32 else m * n
    assert sum(leaf.size for leaf in kept.values()) == expected
    assert expected < 0.01 * sum(leaf.size for leaf in params.values())
    assert all(leaf.dtype == np.float32 for leaf in kept.values())


def everything(**changes):
    return fake.make_experiment(rules=((".*", "trainable"),), **changes)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The work directory of a run with the ``merge_stats_every`` that it is called with."""

    @functools.cache
    def run(every: int) -> Path:
        config = fake.make_config(merge_stats_every=every, steps=6, checkpoint_every=0)
        folder = tmp_path_factory.mktemp(f"every{every}")
        train.train(config, folder, everything(), devices=jax.devices()[:1])
        return folder

    return run


@pytest.mark.slow  # without optimisation XLA rounds the two programs in different ways
def test_weights_do_not_depend_on_what_is_kept(runs):
    plain, *others = (
        trees.flatten_paths(trained.read_trained(runs(every), everything()).variables)
        for every in (0, 1, 5)
    )
    for other in others:
        for path, leaf in plain.items():
            np.testing.assert_array_equal(other[path], leaf, err_msg=path)


def test_the_item_is_read_alone(runs):
    with storage.open_leaves(runs(5), item="merge") as source:
        assert source.names == ("backbone/bias/diag", "backbone/kernel/diag")
        kept = {name: source.read(name) for name in source.names}
    assert all(np.all(leaf >= 0) and leaf.max() > 0 for leaf in kept.values())
    assert kept["backbone/kernel/diag"].shape == (1, 1, 3, fake.WIDTH)
    with pytest.raises(CheckpointError, match="has no item 'merge'"):
        storage.open_leaves(runs(0), item="merge")


def test_the_facts_beside_it_name_the_base(runs):
    with storage.CheckpointStore(runs(5) / "checkpoints") as store:
        facts = store.read_meta(store.latest())["merge"]
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    same, other = (
        setup.set_up(fake.make_config(learning_rate=0.02), mesh, everything(seed=seed)).merge_base
        for seed in (0, 1)
    )
    assert facts["base"] == same != other
    assert (facts["batch_size"], facts["stats_every"], facts["format_version"]) == (8, 5, 1)
    assert facts["tasks"] == list(fake.TASKS) and facts["loss_reduction"] == "mean"
    assert "out_depth/kernel" in facts["per_task"] and "backbone/kernel" not in facts["per_task"]
    assert len(facts["frequencies"]["global"]) == len(fake.TASKS)


@pytest.mark.slow
def test_a_run_of_an_earlier_version_goes_on_and_is_scored_without_curvature(tmp_path):
    """Its config has no such key and its optimizer no such state."""
    config = fake.make_config(merge_stats_every=0, steps=6, checkpoint_every=2)
    one = {"experiment": everything(), "devices": jax.devices()[:1]}
    train.train(config, tmp_path, **one)
    whole = trees.flatten_paths(trained.read_trained(tmp_path, everything()).variables)
    recorded = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert recorded.pop("merge_stats_every") == 0
    (tmp_path / "config.json").write_text(json.dumps(recorded), encoding="utf-8")
    assert evaluate.evaluate_workdir(tmp_path, **one)["steps"] == 6

    shutil.rmtree(tmp_path / "checkpoints" / "6")
    (tmp_path / "results.json").unlink()
    outcome = train.train(dataclasses.replace(config, merge_stats_every=10), tmp_path, **one)
    assert (outcome.status, outcome.step) == ("finished", 6)
    again = trees.flatten_paths(trained.read_trained(tmp_path, everything()).variables)
    for path, leaf in whole.items():
        np.testing.assert_array_equal(again[path], leaf, err_msg=path)

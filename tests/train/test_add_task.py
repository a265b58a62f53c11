"""A new task on a trained run: the old ones do not move, and both are one run afterwards."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinewich_jax.config import Config
from sinewich_jax.core import trees
from sinewich_jax.errors import ConfigError
from sinewich_jax.train import add_task, build, trained
from tests.test_configs import train
from tests.train.runs import CONFIG, save_run

IMAGE = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
METHODS = [
    "sinewich",
    *(pytest.param(m, marks=pytest.mark.slow) for m in ("lora_gain", "lora_task", "mtlora")),
]


def asks(folder, **overrides) -> Config:
    return dataclasses.replace(
        CONFIG, tasks=("edge",), add_task="edge", base_run=str(folder), steps=9, **overrides
    )


@pytest.fixture(scope="module", params=METHODS)
def runs(request, tmp_path_factory):
    """A run of two tasks, the run of a third that was added to it, and the run of all."""
    root = tmp_path_factory.mktemp("runs")
    config = dataclasses.replace(CONFIG, method=request.param)
    save_run(root / "two", config)
    base = trained.read_trained(root / "two")
    own = add_task.task_config(base, asks(root / "two"))
    experiment = build.experiment(own)
    experiment = dataclasses.replace(experiment, start=add_task.shared_variables(base, experiment))
    save_run(root / "edge", own, experiment)
    new = trained.read_trained(root / "edge")
    add_task.join(base, new, root / "joined")
    return base, new, trained.read_trained(root / "joined")


def outputs(run: trained.Trained) -> dict[str, np.ndarray]:
    apply = jax.jit(run.experiment.model.apply)
    return jax.device_get(apply(run.variables, jnp.asarray(IMAGE)))


def test_all_that_is_shared_is_taken_over_bit_for_bit(runs):
    base, new, _ = runs
    rules = dict(new.experiment.rules)
    assert rules[".*"] == "frozen"
    parts = trees.split_tree(new.variables["params"], new.experiment.rules)
    old = trees.flatten_paths(base.variables["params"])
    frozen = trees.flatten_paths(parts["frozen"])
    assert any("lora_up" in path for path in frozen)
    for path, leaf in frozen.items():
        np.testing.assert_array_equal(leaf, old[path], err_msg=path)
    # The head, the rows before it, and the frequency; with a LoRA a task, that as well.
    trainable = trees.count(parts["trainable"])
    assert trainable < trees.count(base.variables["params"]) / 10


def test_joined_tasks_say_what_they_said_before(runs):
    base, _, joined = runs
    assert joined.config.tasks == ("semseg", "depth", "edge")
    before, added, after = map(outputs, runs)
    for task, golden in {**before, **added}.items():
        np.testing.assert_allclose(after[task], golden, rtol=1e-4, atol=1e-4)
    kept = trees.flatten_paths(base.variables)
    for path, leaf in trees.flatten_paths(joined.variables).items():
        if path in kept:
            np.testing.assert_array_equal(
                leaf[: len(kept[path])] if leaf.ndim else leaf, kept[path]
            )


def test_the_new_frequency_starts_where_none_is(runs):
    base, _, joined = runs
    if base.config.method != "sinewich":
        pytest.skip("no frequencies in the backbone")
    model = joined.experiment.model
    omega = np.asarray(model.apply(joined.variables, method="frequencies")["decoder"])
    old = np.asarray(base.experiment.model.apply(base.variables, method="frequencies")["decoder"])
    np.testing.assert_allclose(omega[:2], old, rtol=1e-6)
    assert np.abs(omega[2] - old).min() > 0.1


def test_what_cannot_be_added_to_is_refused(tmp_path):
    save_run(tmp_path / "run", CONFIG)
    base = trained.read_trained(tmp_path / "run")
    with pytest.raises(ConfigError, match="has task 'depth' already"):
        add_task.task_config(base, dataclasses.replace(asks(tmp_path / "run"), add_task="depth"))
    split = base._replace(config=dataclasses.replace(base.config, method="lora_split"))
    with pytest.raises(ConfigError, match="lora_split"):
        add_task.task_config(split, asks(tmp_path / "run"))
    with pytest.raises(ConfigError, match="'base_run' is not"):
        dataclasses.replace(CONFIG, add_task="edge")


@pytest.mark.slow
def test_from_the_front_door(tmp_path):
    two, words = tmp_path / "two", "configs/scenes.py:debug"
    done = train(words, two, "--config.tasks=('semseg','depth')")
    assert done.returncode == 0, done.stderr
    added = (f"--config.base_run={two}", "--config.add_task=edge")
    done = train(words, tmp_path / "edge", *added)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "edge" / "results.json").read_text(encoding="utf-8"))
    assert set(results["tasks"]) == {"edge"}
    joined = trained.read_trained(tmp_path / "edge" / "joined")
    assert joined.config.tasks == ("semseg", "depth", "edge")

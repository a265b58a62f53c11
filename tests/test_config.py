from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinewich_jax import config as configs
from sinewich_jax.config import Config, from_dict, to_dict
from sinewich_jax.errors import ConfigError


def test_defaults_survive_json():
    config = Config()
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


@given(
    rank=st.integers(1, 512),
    rate=st.floats(0, 1, allow_nan=False),
    crop=st.none() | st.tuples(st.integers(1, 999), st.integers(1, 999)),
    weights=st.dictionaries(st.sampled_from(Config().tasks), st.floats(0, 100)),
    mesh=st.integers(1, 64),
)
def test_any_config_survives_json(rank, rate, crop, weights, mesh):
    config = from_dict(
        {
            "rank": rank,
            "learning_rate": rate,
            "augment": {"crop": crop},
            "loss_weights": weights,
            "mesh": {"model": mesh},
        }
    )
    assert config.rank == rank and config.augment.crop == crop
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert configs.differences(config, from_dict(to_dict(config))) == {}


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"rnak": 4}, ["'rnak'", "did you mean 'rank'"]),
        ({"mesh": {"dta": 4}}, ["'mesh.dta'", "did you mean 'data'"]),
        ({"augment": {"flipp": True}}, ["'augment.flipp'", "did you mean 'flip'"]),
        ({"method": "loar"}, ["'method'", "'loar'", "did you mean 'lora'"]),
        ({"dtype": 7}, ["'dtype'", "7", "'float32', 'bfloat16'"]),
        ({"trainable": ["norm"]}, ["'trainable'", "did you mean 'norms'"]),
        ({"rank": 4.5}, ["'rank'", "4.5", "whole number"]),
        ({"rank": True}, ["'rank'", "True", "whole number"]),
        ({"scale": "big"}, ["'scale'", "'big'", "a number"]),
        ({"data": None}, ["'data'", "None", "text"]),
        ({"image_size": (1, 2, 3)}, ["'image_size'", "tuple of 2"]),
        ({"image_size": 64}, ["'image_size'", "tuple of 2"]),
        ({"tasks": "semseg"}, ["'tasks'", "tuple"]),
        ({"mesh": 4}, ["'mesh'", "mapping of data, task, model"]),
        ({"mesh": {"task": 2}}, ["'mesh.task' is 2", "expected 1"]),
        ({"mesh": {"model": 0}}, ["'mesh.model'", "positive"]),
        ({"rank": 0}, ["'rank'", "at least 1"]),
        ({"drop_path": 1.0}, ["'drop_path'", "from 0 to 0.999"]),
        ({"learning_rate": float("nan")}, ["'learning_rate'", "nan"]),
        ({"tasks": ()}, ["'tasks'", "empty"]),
        ({"tasks": ("depth", "depth")}, ["'tasks'", "twice"]),
        ({"loss_weights": {"semsge": 1.0}}, ["'semsge'", "did you mean 'semseg'"]),
        ({"loss_weights": {"depth": -1}}, ["'loss_weights.depth'", "at least 0"]),
        ({"loss_weights": {"depth": "x"}}, ["'loss_weights'", "'x'"]),
        ({"augment": {"scale": (2, 1)}}, ["'augment.scale'", "smaller factor first"]),
    ],
)
def test_bad_values_are_named(mapping, words):
    with pytest.raises(ConfigError) as error:
        from_dict(mapping)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_values_are_brought_to_their_types():
    config = from_dict({"scale": 4, "image_size": [32, 48], "augment": {"scale": [1, 2]}})
    assert isinstance(config.scale, float)
    assert config.image_size == (32, 48)
    assert config.augment.scale == (1.0, 2.0)
    assert hash(config) == hash(from_dict(to_dict(config)))


def test_replace_checks_bounds_too():
    with pytest.raises(ConfigError, match="'steps'"):
        dataclasses.replace(Config(), steps=0)


def test_loss_weight_falls_back_to_the_task_default():
    config = from_dict({"loss_weights": {"depth": 3}})
    assert config.loss_weight("depth", 1.0) == 3.0
    assert config.loss_weight("edge", 50.0) == 50.0
    assert from_dict({"loss_weights": {"depth": None, "edge": 2.0}}).loss_weights == (
        ("edge", 2.0),
    )


def test_loss_kinds_reach_the_tasks():
    from sinewich_jax.train import build

    kinds = {"loss_kinds": {"depth": "l2"}}
    made = {task.name: task for task in build.experiment(from_dict(kinds)).tasks}
    assert made["depth"].loss_kind == "l2" and made["normals"].loss_kind == "l1"
    for task, word in (("edge", "one kind only"), ("depth", "expected 'l1' or 'l2'")):
        with pytest.raises(ConfigError, match=word):
            build.experiment(from_dict({"loss_kinds": {task: "l3"}}))


def test_config_dict_of_ml_collections_is_accepted():
    ml_collections = pytest.importorskip("ml_collections")
    config_dict = ml_collections.ConfigDict({"rank": 16, "mesh": {"model": 2}, "tasks": ("depth",)})
    config = configs.from_config_dict(config_dict)
    assert (config.rank, config.mesh.model, config.tasks) == (16, 2, ("depth",))
    assert configs.from_config_dict({"rank": 3}).rank == 3


def test_a_command_may_choose_fewer_tasks_than_its_config_file():
    file = {"loss_weights": {"depth": 4.0, "edge": None}, "channels": {"semseg": 8}}
    config = configs.from_config_dict({**file, "tasks": ("depth",)})
    assert config.loss_weights == (("depth", 4.0),) and config.channels == ()
    with pytest.raises(ConfigError, match="names 'semseg', which is not in 'tasks'"):
        from_dict({**file, "tasks": ("depth",)})


def test_differences_ignore_what_does_not_change_the_numbers():
    old = from_dict({"rank": 4})
    assert configs.differences(old, dataclasses.replace(old, workers=7, data_dir="there")) == {}
    new = from_dict({"rank": 8, "augment": {"flip": True}, "mesh": {"model": 2}})
    assert configs.differences(old, new) == {"rank": (4, 8), "augment.flip": (False, True)}


def test_every_key_is_documented():
    for cls in (configs.Config, configs.MeshConfig, configs.AugmentConfig):
        for field in dataclasses.fields(cls):
            assert f"\n  {field.name}: " in inspect.getdoc(cls)


def test_bounds_name_real_keys():
    flat = configs.flatten(to_dict(Config()))
    assert set(configs._BOUNDS) <= set(flat)
    assert set(configs.EXECUTION_KEYS) <= {field.name for field in dataclasses.fields(Config)}


def test_importing_config_loads_neither_jax_nor_absl():
    code = (
        "import sys, sinewich_jax.config;"
        "print([m for m in ('jax', 'absl', 'ml_collections', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"

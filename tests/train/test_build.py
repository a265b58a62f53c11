"""The real model in the loop: every config builds, meshes agree, wrong words are named."""

from __future__ import annotations

import dataclasses
import functools
import importlib

import jax
import numpy as np
import pytest
from PIL import Image

from sinewich_jax import config as configs
from sinewich_jax import data, parallel
from sinewich_jax.core import trees
from sinewich_jax.data import pipeline, scenes
from sinewich_jax.errors import CheckpointError, ConfigError, DataError
from sinewich_jax.nn.bottleneck import PLACES
from sinewich_jax.storage import arrays
from sinewich_jax.train import build, experiment, networks, setup, step
from tests.tiers import cases

STEPS = 20
METHODS = (
    *("sinewich", "zero", "decoder_only", "lora", "lora_gain", "lora_split", "adapters"),
    "full_ft",
)


def get_config(arg: str, name: str = "scenes") -> configs.Config:
    module = importlib.import_module(f"configs.{name}")
    return configs.from_config_dict(module.get_config(arg))


@functools.cache
def small_scenes() -> data.DataSource:
    rendered = scenes.render_many(range(16), 32, 32)
    return data.from_arrays(
        {"image": rendered["image"], **rendered["labels"]}, channels={"semseg": 8}
    )


def batches(config: configs.Config, count: int) -> list[dict]:
    stream = pipeline.batches(small_scenes(), config.tasks, config.batch_size, config.seed)
    return [stream.batch_at(number) for number in range(count)]


def make(config: configs.Config, devices: int, **mesh: int):
    grid = parallel.make_mesh(**mesh, devices=jax.devices()[:devices])
    made = setup.set_up(config, grid, build.experiment(config))
    return made, step.make_train_step(made.experiment, made.tx, made.placed, grid, config.seed)


@functools.cache
def losses(devices: int, data: int = 1, model: int = 1) -> np.ndarray:
    # The schedule is the main job's: its first steps are warm-up. Rounding differs between meshes,
    # and Adam at full rate makes 1e-3 of 1e-7 within ten steps on a network of random weights; so
    # every parameter learns at the base rate here (2e-7 and 5e-7 after twenty steps; with the main
    # job's factors on it 4e-5 and 3e-4).
    main = get_config("")
    config = dataclasses.replace(
        get_config("debug"),
        steps=main.steps,
        warmup_steps=main.warmup_steps,
        task_lr_mult=1.0,
        decoder_lr_mult=1.0,
        batch_size=8,
    )
    made, run = make(config, devices, data=data, model=model)
    state, values = made.placed.state, []
    for batch in batches(config, STEPS):
        state, metrics = run(state, made.placed.constants, parallel.put_batch(batch, made.mesh))
        values.append(metrics["loss"])
    return np.asarray(jax.device_get(values))


@pytest.mark.slow
@pytest.mark.parametrize(("across", "model"), [(8, 1), (4, 2)])
def test_first_losses_on_eight_devices_equal_those_of_one(across, model):
    alone = losses(1)
    assert np.isfinite(alone).all() and alone[-1] < alone[0]
    np.testing.assert_allclose(losses(8, across, model), alone, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("across", "model", "every", "expected"),
    [
        (8, 1, 10, {"all-reduce": 3}),
        (4, 2, 0, {"all-reduce": 20, "all-gather": 65}),
        # Margins of sharded factors, vectors all of them, are gathered at each tenth step.
        (4, 2, 10, {"all-reduce": 21, "all-gather": 84}),
    ],
)
def test_collectives_of_the_real_step_are_pinned(across, model, every, expected):
    config = dataclasses.replace(get_config("debug"), batch_size=8, merge_stats_every=every)
    made, run = make(config, 8, data=across, model=model)
    batch = parallel.put_batch(batches(config, 1)[0], made.mesh)
    compiled = run.lower(made.placed.state, made.placed.constants, batch).compile()
    counts = parallel.count_collectives(compiled)
    assert {kind: n for kind, n in counts.items() if n} == expected


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_a_step(method):
    config = get_config(f"{method},debug")
    made, run = make(config, 1)
    batch = parallel.put_batch(batches(config, 1)[0], made.mesh)
    _, metrics = run(made.placed.state, made.placed.constants, batch)
    assert all(np.isfinite(float(value)) for value in metrics.values())
    assert {f"loss/{task}" for task in config.tasks} <= metrics.keys()


@pytest.mark.parametrize("name", cases(("scenes", "ccp", "kitchen"), fast=("scenes",)))
def test_methods_of_a_config_have_equal_parameters(name):
    counts = {}
    for method in ("sinewich", "zero", "lora", "lora_gain", "lora_split"):
        variant = "" if name != "scenes" and method == "sinewich" else method
        config = dataclasses.replace(get_config(variant, name), backbone_weights="random")
        counts[method] = setup.parameter_counts(build.experiment(config))["trainable"]
    gains = counts.pop("lora_gain")
    assert len(set(counts.values())) == 1, counts
    # One scalar a task for every linear map that has a task kernel: eight of them in Swin.
    assert 0 < gains - counts["lora"] <= 48


def test_weights_of_another_backbone_are_refused(tmp_path):
    config = get_config("debug")
    made = build.experiment(config)
    flat = {
        path.removeprefix("backbone/"): np.zeros(leaf.shape, np.float32)
        for path, leaf in trees.flatten_paths(jax.eval_shape(made.init)["params"]).items()
        if path.startswith("backbone/") and "lora_" not in path and "/task/" not in path
    }
    path = tmp_path / "weights.safetensors"

    def init(leaves):
        arrays.save_safetensors(path, leaves)
        changed = dataclasses.replace(config, backbone_weights=str(path))
        return jax.eval_shape(build.experiment(changed).init)

    init(flat)
    name, leaf = next(iter(flat.items()))
    with pytest.raises(CheckpointError, match="lack 1 parameters"):
        init({key: value for key, value in flat.items() if key != name})
    with pytest.raises(CheckpointError, match=r"'backbone/extra'"):
        init({**flat, "extra": leaf})
    with pytest.raises(CheckpointError, match="of shape"):
        init({**flat, name: np.zeros((*leaf.shape, 2), np.float32)})
    theirs = tmp_path / "swin.pth"
    theirs.touch()
    with pytest.raises(CheckpointError, match=r"a torch file, .* 'sinewich import-backbone .*pth"):
        networks.backbone_weights(dataclasses.replace(config, backbone_weights=str(theirs)))
    with pytest.raises(CheckpointError, match="is no file"):
        networks.backbone_weights(dataclasses.replace(config, backbone_weights="nowhere"))
    with pytest.raises(ConfigError, match="no weights are shipped for backbone 'swin_t'"):
        networks.backbone_weights(
            dataclasses.replace(config, backbone="swin_t", backbone_weights="shipped")
        )


def test_words_and_widths_that_do_not_fit_are_named():
    config = get_config("debug")
    with pytest.raises(ConfigError, match=r"'swint' \(did you mean 'swin_t'\?\)"):
        build.experiment(dataclasses.replace(config, backbone="swint"))
    with pytest.raises(ConfigError, match="rank=8 does not divide by 6 tasks"):
        build.experiment(dataclasses.replace(config, method="lora_split", rank=8))


def test_keys_that_a_backbone_does_not_read_are_refused():
    config = get_config("debug", "ccp")
    with pytest.raises(ConfigError, match=r"'trainable' is 'norms'.*mobilenet_v2"):
        build.experiment(dataclasses.replace(config, trainable=("all", "norms")))
    for key in ("drop_path", "adapter_dropout"):
        with pytest.raises(ConfigError, match=rf"{key!r} is 0\.1.*mobilenet_v2"):
            build.experiment(dataclasses.replace(config, **{key: 0.1}))
    build.experiment(dataclasses.replace(config, trainable=("all",)))


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({"text": {"max_tokens": 32}}, "'text.max_tokens' is 32"),
        ({"text": {"dropout": 0.0}}, "'text.dropout' is 0.0"),
        ({"adapters": {"dropped": (0,)}}, "'adapters.dropped' is [0]"),
        ({"adapters": {"sources": ("run",)}}, "'adapters.sources' is ['run']"),
        ({"adapters": {"value_penalty": 0.1}}, "'adapters.value_penalty' is 0.1"),
        ({"method": "fusion"}, "'method' is 'fusion'"),
    ],
)
@pytest.mark.parametrize("name", ["scenes", "ccp"])
def test_what_only_texts_have_is_refused_on_images(name, keys, found):
    config = configs.from_dict({**configs.to_dict(get_config("debug", name)), **keys})
    with pytest.raises(ConfigError) as refusal:
        build.experiment(config)
    assert str(refusal.value).startswith(f"config key {found}, which ")
    assert "the task 'semseg', which reads images" in str(refusal.value)


@pytest.mark.parametrize("placement", ["pfeiffer", "houlsby", "parallel"])
def test_placement_and_width_of_adapters_come_from_the_config(placement):
    own = {"placement": placement, "hidden": 5}
    config = configs.from_dict({**configs.to_dict(get_config("debug,adapters")), "adapters": own})
    made = build.experiment(config)
    spec = made.model.backbone.task
    assert (spec.num_tasks, spec.hidden, spec.placement) == (6, 5, placement)
    flat = trees.flatten_paths(jax.eval_shape(made.init)["params"])
    rows = {path: leaf for path, leaf in flat.items() if "/task/" in path}
    assert {path.split("/")[3] for path in rows} == set(PLACES[placement])
    trained = trees.flatten_paths(trees.split_tree(flat, made.rules)["trainable"])
    assert rows.keys() == {path for path in trained if path.startswith("backbone/")}
    assert all(leaf.shape[0] == 6 for leaf in rows.values())
    assert not any(made.mergeable(path) for path in trained)


def test_a_head_of_another_width_than_the_data_needs_is_refused(monkeypatch):
    config = dataclasses.replace(get_config("debug"), channels=(("semseg", 5),))
    monkeypatch.setattr(experiment, "open_source", lambda config, part, size: small_scenes())
    with pytest.raises(ConfigError, match=r"channels\.semseg=8"):
        _ = build.experiment(config).train_source


def test_given_sources_are_used_instead_of_the_named_data_set(monkeypatch):
    config = dataclasses.replace(get_config("debug"), data="four_arrays", image_size=(32, 32))
    rng = np.random.default_rng(0)
    depth = np.full((4, 40, 32), 3.0, np.float32)
    labels = {"depth": depth, "saliency": rng.integers(0, 2, (4, 40, 32), dtype=np.uint8)}
    image = rng.integers(0, 256, (4, 40, 32, 3), dtype=np.uint8)
    own = data.from_arrays({"image": image, **labels})
    config = dataclasses.replace(config, tasks=("depth",), channels=())
    made = build.experiment(config, own, own)
    assert made.train_source.tasks == made.eval_source.tasks == ("depth",)
    assert made.eval_source[0]["image"].shape == (32, 32, 3)
    # The heads start at the mean of these labels, not of any other; no matter where the rest does.
    shapes = jax.eval_shape(made.init)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    monkeypatch.setattr(build.Experiment, "init", lambda self: zeros)
    run = setup.set_up(config, parallel.make_mesh(devices=jax.devices()[:1]), made)
    bias = run.placed.state.params["decoder"]["output_depth_bias"]
    task = made.tasks[0]
    np.testing.assert_allclose(bias, task.best_constant(np.full((32, 32), 3.0)), rtol=1e-4)
    with pytest.raises(DataError, match="normals"):
        wanted = dataclasses.replace(config, tasks=("normals",), loss_kinds=(), loss_weights=())
        _ = build.experiment(wanted, own).train_source


def test_options_reach_the_data_set_that_has_them_and_no_other(monkeypatch):
    data.names()  # so that the built-in sets are in the copy
    for table in ("_OPENERS", "_EVAL_SPLITS"):
        monkeypatch.setattr(data.registry, table, dict(getattr(data.registry, table)))
    asked = {}

    @data.register("asked", eval_split="train")
    def open_asked(split, data_dir=None, depth_unit=None, allow_missing=False, target=None):
        asked.update(depth_unit=depth_unit, allow_missing=allow_missing, target=target)
        return small_scenes()

    plain = dataclasses.replace(get_config("debug"), data="asked", train_size=None)
    build.open_source(plain, "train", None)
    assert asked == {"depth_unit": None, "allow_missing": False, "target": None}
    said = {"depth_unit": "mm", "allow_missing": True, "depth_target": "depth_m"}
    build.open_source(dataclasses.replace(plain, **said), "eval", None)
    assert asked == {"depth_unit": "mm", "allow_missing": True, "target": "depth_m"}
    for key, value in said.items():
        with pytest.raises(ConfigError, match="'scenes' has no option"):
            build.open_source(
                dataclasses.replace(get_config("debug"), **{key: value}), "train", None
            )


def test_a_source_of_other_classes_than_the_head_is_refused():
    config = dataclasses.replace(get_config("debug"), channels=(("semseg", 5),))
    with pytest.raises(ConfigError, match=r"the train source .* channels\.semseg=8"):
        _ = build.experiment(config, small_scenes()).train_source


def test_a_folder_takes_its_class_counts_from_the_config(tmp_path):
    for name in ("images", "semseg"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "images" / "a.png")
    Image.fromarray(np.full((6, 8), 2, np.uint8)).save(tmp_path / "semseg" / "a.png")
    config = configs.from_dict(
        {"data": "folder", "data_dir": str(tmp_path), "tasks": ("semseg",), "eval_split": "all"}
    )
    chosen = dataclasses.replace(config, channels=(("semseg", 3),))
    source = build.experiment(chosen).eval_source
    assert source.channels == {"semseg": 3} and source[0]["labels"]["semseg"].max() == 2
    few = build.experiment(dataclasses.replace(config, channels=(("semseg", 2),))).eval_source
    with pytest.raises(DataError, match=r"a\.png"):
        few[0]
    with pytest.raises(DataError, match=r"config key channels\.semseg"):
        _ = build.experiment(config).eval_source


def test_rendered_originals_are_rendered_at_the_size_of_training(monkeypatch):
    """Scenes come in whatever size is asked for, so nothing is there to be resized from."""
    sizes = []

    def open_source(config, part, size):
        sizes.append(size)
        return small_scenes()

    monkeypatch.setattr(experiment, "open_source", open_source)
    monkeypatch.setattr(data, "is_rendered", lambda name: name == "scenes")
    config = dataclasses.replace(get_config("debug"), image_size=(32, 32))
    original = build.experiment(config).original_source
    assert (original.frame, original.size, sizes) == ((32, 32), (32, 32), [(32, 32)])
    monkeypatch.setattr(data, "is_rendered", lambda name: False)
    _ = build.experiment(config).original_source
    assert sizes[1:] == [None]


def test_rates_and_decay_follow_the_kind_of_parameter():
    config = dataclasses.replace(
        get_config("debug"),
        learning_rate=1.0,
        warmup_steps=0,
        adapter_lr_mult=2.0,
        task_lr_mult=5.0,
        decoder_lr_mult=3.0,
    )
    made = build.experiment(config)
    square = np.ones((2, 2), np.float32)
    params = {
        "backbone": {"b": {"fc1": {"lora_up": square, "task": {"up": square}}}},
        "clock": {"tokens": square},
        "decoder": {"base": square, "norm": {"scale": np.ones(2, np.float32)}},
    }
    zero = jax.tree.map(np.zeros_like, params)
    tx = made.optimizer(config, params)
    updates, _ = tx.update(zero, tx.init(params), params)
    flat = {path: -float(np.max(leaf)) for path, leaf in trees.flatten_paths(updates).items()}
    decay = config.weight_decay
    assert flat == pytest.approx(
        {
            "backbone/b/fc1/lora_up": 2 * decay,
            "backbone/b/fc1/task/up": 0.0,
            "clock/tokens": 0.0,
            "decoder/base": 3 * decay,
            "decoder/norm/scale": 0.0,
        }
    )
    ones = jax.tree.map(np.ones_like, params)
    updates, _ = made.optimizer(dataclasses.replace(config, weight_decay=0.0), params).update(
        ones, tx.init(params), params
    )
    flat = {path: -float(np.max(leaf)) for path, leaf in trees.flatten_paths(updates).items()}
    assert flat["backbone/b/fc1/lora_up"] == pytest.approx(2.0, rel=1e-3)
    assert flat["backbone/b/fc1/task/up"] == pytest.approx(5.0, rel=1e-3)
    assert flat["decoder/base"] == pytest.approx(3.0, rel=1e-3)
    assert flat["clock/tokens"] == pytest.approx(1.0, rel=1e-3)


def test_absent_data_is_told_before_anything_is_compiled(tmp_path, monkeypatch):
    config = dataclasses.replace(get_config("debug", "ccp"), data_dir=str(tmp_path))
    monkeypatch.setattr(build.Experiment, "init", lambda self: pytest.fail("init was traced"))
    grid = parallel.make_mesh(devices=jax.devices()[:1])
    with pytest.raises(DataError, match="data set 'ccp' needs the folder"):
        setup.set_up(config, grid)

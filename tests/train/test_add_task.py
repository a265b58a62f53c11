"""A new task on a trained run: the old ones do not move, and both are one run afterwards."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinewich_jax.config import Config
from sinewich_jax.core import clock, trees
from sinewich_jax.errors import CheckpointError, ConfigError
from sinewich_jax.train import add_task, build, loop, setup, trained
from tests.test_configs import train
from tests.train.runs import CONFIG, save_run

IMAGE = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
METHODS = [
    "sinewich",
    *(
        pytest.param(m, marks=pytest.mark.slow)
        for m in ("lora_gain", "lora_task", "mtlora", "adapters", "single_task")
    ),
]


def asks(folder, **overrides) -> Config:
    return dataclasses.replace(
        CONFIG, tasks=("edge",), add_task="edge", base_run=str(folder), steps=9, **overrides
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The work directory of a run of two tasks."""
    folder = tmp_path_factory.mktemp("runs") / "two"
    save_run(folder, CONFIG)
    return folder


@pytest.fixture(scope="module", params=METHODS)
def runs(request, two, tmp_path_factory):
    """A run of two tasks, the run of a third that was added to it, and the run of all."""
    root = tmp_path_factory.mktemp("runs")
    config = dataclasses.replace(CONFIG, method=request.param)
    if config.method == "single_task":
        config = dataclasses.replace(config, tasks=("depth",), decoder_base="independent")
    folder = two
    if config != CONFIG:
        folder = root / "old"
        save_run(folder, config)
    base, experiment = add_task.plan(asks(folder))
    save_run(root / "edge", experiment.config, experiment)
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
    without = base.config.method in ("single_task", "adapters")
    kind = "fc1/kernel" if without else "lora_up"
    assert any(kind in path for path in frozen)
    for path, leaf in frozen.items():
        np.testing.assert_array_equal(leaf, old[path], err_msg=path)
    # The head, the rows before it, and the frequency; with a LoRA a task, that as well.
    trainable = trees.count(parts["trainable"])
    assert trainable < trees.count(base.variables["params"]) / 10


def test_joined_tasks_say_what_they_said_before(runs):
    base, _, joined = runs
    assert joined.config.tasks == (*base.config.tasks, "edge")
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


def learned_clock(config: Config) -> trained.Trained:
    """A run of which the clock alone is there, far from where it began, each table in its way."""
    experiment = build.experiment(config)
    rng = np.random.default_rng(1)
    far = jax.tree.map(
        lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape).astype(np.float32),
        experiment.model.init(jax.random.key(0), method="frequencies"),
    )
    return trained.Trained(experiment, {"params": {}, **far}, 7, config, [])


def frequency_tables(base, own) -> tuple[np.ndarray, np.ndarray]:
    """``omega / s - c`` in each table: of the old tasks (K, T), and of the new one (K,)."""
    experiment = build.experiment(own)
    model, start = experiment.model, add_task.shared_variables(base, experiment)
    fresh = model.init(jax.random.key(0), method="frequencies")
    start = {path: leaf for path, leaf in start.items() if path.startswith("params/clock/")}
    variables = trees.unflatten_paths({**trees.flatten_paths(fresh), **start})
    new = model.apply(variables, method="frequencies")
    old = base.experiment.model.apply(base.variables, method="frequencies")
    names = clock.assign_clocks(own.frequency_scope, {layer: layer.split("/")[0] for layer in old})
    found = {}
    for layer, name in names.items():
        scale, shift = base.experiment.model.clock.scale, base.experiment.model.clock.shift
        if own.clock == "net":
            leaves, key = base.variables["params"]["clock"], name.replace("/", "_")
            scale = clock.positive(leaves[f"scale_{key}"])
            shift = clock.above_one(leaves[f"shift_{key}"])
            begun = base.experiment.model.clock
            assert abs(scale - begun.scale) + abs(shift - begun.shift) > 0.05
        found[name] = [np.asarray(omega[layer] / scale - shift) for omega in (old, new)]
    return np.stack([t for t, _ in found.values()]), np.stack([n for _, n in found.values()])[:, 0]


def centres(taken: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The centres of the gaps between -1, the frequencies of one table and 1, and their widths."""
    edges = np.sort([-1, *taken.clip(-1, 1), 1])
    return (edges[1:] + edges[:-1]) / 2, np.diff(edges)


FIVE = ("semseg", "normals", "depth", "saliency", "human_parts")


@pytest.mark.parametrize(
    "keys",
    [{"tasks": FIVE}, {"clock_hidden": 4, "tasks": FIVE}, {"clock": "free"}, {"start": "zero"}],
    ids=("net", "hidden", "free", "zero"),
)
def test_the_new_frequency_starts_at_the_centre_of_the_widest_gap(keys):
    base = learned_clock(dataclasses.replace(CONFIG, **keys))
    own = add_task.task_config(base, asks("base"))
    (taken,), (new,) = frequency_tables(base, own)
    middle, width = centres(taken)
    np.testing.assert_allclose(new, middle[width.argmax()], atol=1e-4)


@pytest.mark.parametrize("scope", ["stage", "layer"])
def test_with_several_tables_it_starts_far_from_the_old_ones_on_average(scope):
    base = learned_clock(dataclasses.replace(CONFIG, frequency_scope=scope, tasks=FIVE))
    own = add_task.task_config(base, asks("base"))
    taken, new = frequency_tables(base, own)
    assert len(taken) > 2
    off = [abs(centres(t)[0] - n).min() for t, n in zip(taken, new, strict=True)]
    assert min(off) < 1e-4

    def room(start):  # (K, ...)
        edges = np.pad(taken, ((0, 0), (1, 1)), constant_values=((0, 0), (-1, 1)))
        return np.mean(
            [abs(s[..., None] - e).min(-1) for s, e in zip(start, edges, strict=True)], axis=0
        )

    (offset,) = own.clock_offsets
    others = np.arctanh(new)[:, None] - offset + np.linspace(-4, 4, 2001)
    assert room(new) > room(np.tanh(others)).max() - 0.01


def test_a_clock_that_learns_nothing_and_no_clock_have_their_gaps():
    base = learned_clock(dataclasses.replace(CONFIG, clock="fixed", tasks=("depth",)))
    (offset,) = add_task.task_config(base, asks("base")).clock_offsets
    np.testing.assert_allclose(np.tanh(offset), -0.5, atol=1e-4)
    config = dataclasses.replace(CONFIG, method="lora", decoder_base="shared")
    none = trained.Trained(build.experiment(config), {"params": {}}, 7, config, [])
    assert add_task.task_config(none, asks("base")).clock_offsets == (0.0,)


def single_run() -> trained.Trained:
    """A run of one task, all of its weights zero."""
    config = dataclasses.replace(
        CONFIG, method="single_task", tasks=("depth",), decoder_base="independent"
    )
    experiment = build.experiment(config)
    zeros = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(experiment.init)
    )
    return trained.Trained(experiment, zeros, 7, config, [])


def test_a_run_of_one_task_becomes_one_of_full_ft(monkeypatch):
    monkeypatch.setattr(trained, "read_trained", lambda _: single_run())
    base, experiment = add_task.plan(asks("base", method="single_task"))
    assert experiment.config.method == "full_ft"  # not the reference of Delta m that it is not
    joined = add_task.joined_config(base, experiment.config)
    assert (joined.method, joined.tasks) == ("full_ft", ("depth", "edge"))


def test_nothing_is_trained_that_cannot_be_joined(monkeypatch, tmp_path):
    monkeypatch.setattr(loop, "train", lambda *_, **__: pytest.fail("it was trained"))
    base = single_run()
    wider = trees.flatten_paths(base.variables)
    kernel = next(path for path in wider if path.endswith("fc1/kernel"))
    wider[kernel] = np.zeros((3, 5), np.float32)
    unjoinable = {
        "no loss weighting is called 'none'": base._replace(
            config=dataclasses.replace(base.config, weighting="none")
        ),
        f"'{kernel}' would be": base._replace(variables=trees.unflatten_paths(wider)),
    }
    for words, run in unjoinable.items():
        monkeypatch.setattr(trained, "read_trained", lambda _, run=run: run)
        with pytest.raises(ConfigError, match=words):
            add_task.train(asks("base"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_dry_run_counts_what_the_new_task_trains(two, tmp_path):
    words = ("configs/scenes.py:debug,lora", tmp_path / "new", "--dry_run")
    done = train(*words, "--config.add_task=edge", f"--config.base_run={two}")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found.pop("method"), found.pop("tasks")) == ("sinewich", ["edge"])
    own = add_task.task_config(trained.read_trained(two), asks(two))
    assert found == setup.parameter_counts(build.experiment(own))
    assert found["trainable"] < found["total"] / 10
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_added_to_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"none has no config\.json"):
        add_task.plan(asks(tmp_path / "none"))
    base = learned_clock(CONFIG)
    with pytest.raises(ConfigError, match="has task 'depth' already"):
        add_task.task_config(base, dataclasses.replace(asks("base"), add_task="depth"))
    split = base._replace(config=dataclasses.replace(base.config, method="lora_split"))
    with pytest.raises(ConfigError, match="lora_split"):
        add_task.task_config(split, asks("base"))
    with pytest.raises(ConfigError, match="'base_run' is not"):
        dataclasses.replace(CONFIG, add_task="edge")


@pytest.mark.slow
def test_from_the_front_door(tmp_path):
    two, words = tmp_path / "two", "configs/scenes.py:debug"
    added = (f"--config.base_run={two}", "--config.add_task=edge")
    done = train(words, tmp_path / "edge", *added, "--dry_run")
    assert done.returncode == 2 and "two has no config.json" in done.stderr
    done = train(words, two, "--config.tasks=('semseg','depth')")
    assert done.returncode == 0, done.stderr
    done = train(words, tmp_path / "edge", *added)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "edge" / "results.json").read_text(encoding="utf-8"))
    assert set(results["tasks"]) == {"edge"}
    joined = trained.read_trained(tmp_path / "edge" / "joined")
    assert joined.config.tasks == ("semseg", "depth", "edge")
    # What they share has gone through the new task's training, and the old rows through the join.
    base, edge = trained.read_trained(two), trained.read_trained(tmp_path / "edge")
    old, new, all_of_them = (trees.flatten_paths(run.variables) for run in (base, edge, joined))
    shared = add_task.shared_variables(base, edge.experiment).keys() - {"params/clock/tokens"}
    assert len(shared) > 50
    for path in shared:
        np.testing.assert_array_equal(new[path], old[path], err_msg=path)
        np.testing.assert_array_equal(all_of_them[path], old[path], err_msg=path)
    for path in old.keys() - shared:
        rows = all_of_them[path]
        rows = rows if rows.shape == old[path].shape else rows[:2]
        np.testing.assert_array_equal(rows, old[path], err_msg=path)
    after = outputs(joined)
    for task, golden in outputs(base).items():
        np.testing.assert_array_equal(after[task], golden, err_msg=task)
    # One task's products and those of three are not summed in the same order.
    np.testing.assert_allclose(after["edge"], outputs(edge)["edge"], rtol=1e-5, atol=1e-5)
    # A join that was interrupted before its config was written is made anew.
    (tmp_path / "edge" / "joined" / "config.json").unlink()
    done = train(words, tmp_path / "edge", *added)
    assert done.returncode == 0, done.stderr
    again = trees.flatten_paths(trained.read_trained(tmp_path / "edge" / "joined").variables)
    for path, leaf in all_of_them.items():
        np.testing.assert_array_equal(again[path], leaf, err_msg=path)

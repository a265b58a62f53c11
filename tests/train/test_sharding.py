"""Eight devices compute what one does, and talk no more than they have to."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from sinewich_jax import parallel
from sinewich_jax.data import pipeline
from sinewich_jax.train import checkpointing, setup, state, step
from tests.train import fake

STEPS = 20


def make(devices: int, **mesh: int):
    config = fake.make_config(mesh=mesh, steps=STEPS)
    grid = parallel.make_mesh(**dataclasses.asdict(config.mesh), devices=jax.devices()[:devices])
    made = setup.set_up(config, grid, fake.make_experiment())
    return made, step.make_train_step(made.experiment, made.tx, made.placed, grid, config.seed)


def batches():
    experiment = fake.make_experiment()
    stream = pipeline.batches(experiment.train_source, fake.TASKS, 8, 0, experiment.augment)
    return [stream.batch_at(number) for number in range(STEPS)]


def losses(devices: int, **mesh: int) -> np.ndarray:
    made, run = make(devices, **mesh)
    current, values = made.placed.state, []
    for batch in batches():
        current, metrics = run(current, made.placed.constants, parallel.put_batch(batch, made.mesh))
        values.append([metrics[key] for key in sorted(metrics)])
    return np.asarray(jax.device_get(values))


@pytest.fixture(scope="module")
def alone():
    return losses(1)


@pytest.mark.parametrize("mesh", [{"data": 8}, {"data": 4, "model": 2}])
def test_first_losses_equal_those_of_one_device(alone, mesh):
    spread = losses(8, **mesh)
    assert np.isfinite(alone).all() and alone.shape == (STEPS, 5)
    np.testing.assert_allclose(spread, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("mesh", "devices", "expected"),
    [
        ({"data": 1}, 1, {}),
        # One for batch statistics and pixel counts, one for losses and gradients.
        ({"data": 8}, 8, {"all-reduce": 2}),
        ({"data": 4, "model": 2}, 8, {"all-reduce": 6, "all-gather": 22}),
    ],
)
def test_collectives_of_a_step_are_pinned(mesh, devices, expected):
    made, run = make(devices, **mesh)
    batch = parallel.put_batch(batches()[0], made.mesh)
    compiled = run.lower(made.placed.state, made.placed.constants, batch).compile()
    counts = parallel.count_collectives(compiled)
    assert {kind: n for kind, n in counts.items() if n} == expected


def test_every_leaf_has_a_place_before_and_after_a_step():
    made, run = make(8, data=4, model=2)
    batch = parallel.put_batch(batches()[0], made.mesh)
    after, metrics = run(made.placed.state, made.placed.constants, batch)
    wanted = jax.tree.leaves(made.placed.shardings)
    for leaf, sharding in zip(jax.tree.leaves(after), wanted, strict=True):
        assert isinstance(sharding, NamedSharding) and leaf.sharding == sharding
    specs = [
        leaf.sharding.spec
        for path, leaf in jax.tree.leaves_with_path(after.opt_state)
        if "'up'" in jax.tree_util.keystr(path) and "kernel" in jax.tree_util.keystr(path)
    ]
    # Both moments of Adam lie where their parameter lies.
    assert len(specs) == 2 and all("model" in spec for spec in specs)
    assert all(value.sharding.is_fully_replicated for value in metrics.values())


def test_a_run_may_go_on_with_another_mesh(tmp_path):
    config = fake.make_config()
    made, run = make(1)
    current = made.placed.state
    for batch in batches()[:2]:
        current, _ = run(current, made.placed.constants, parallel.put_batch(batch, made.mesh))
    base = checkpointing.save_base(tmp_path, made.placed.constants)
    meta = checkpointing.describe(config, made.counts, base, {})
    with checkpointing.open_store(tmp_path, config) as store:
        checkpointing.save(store, 2, current, meta)
        store.wait()
        other, run = make(8, data=4, model=2)
        resumed = checkpointing.resume(store, tmp_path, other.placed)
    for old, new in zip(jax.tree.leaves(current), jax.tree.leaves(resumed.state), strict=True):
        np.testing.assert_array_equal(np.asarray(old), np.asarray(new))
    assert int(resumed.state.step) == 2
    assert resumed.meta["tasks"] == list(fake.TASKS) and resumed.meta["base"] == base
    batch = parallel.put_batch(batches()[2], other.mesh)
    run(resumed.state, resumed.constants, batch)


def test_the_step_is_compiled_once():
    made, run = make(1)
    traced = []

    class Counting(type(made.experiment)):
        def normalise(self, image):
            traced.append(image.shape)
            return super().normalise(image)

    fields = {
        field.name: getattr(made.experiment, field.name)
        for field in dataclasses.fields(made.experiment)
    }
    run = step.make_train_step(Counting(**fields), made.tx, made.placed, made.mesh, 0)
    current = made.placed.state
    for batch in batches()[:3]:
        current, _ = run(current, made.placed.constants, parallel.put_batch(batch, made.mesh))
    assert len(traced) == 1


def test_variables_split_and_join_without_loss():
    experiment = fake.make_experiment()
    variables = jax.jit(experiment.init)()
    parts = state.split_variables(variables, experiment.rules)
    params, model_state, constants = parts
    assert set(model_state) == {"batch_stats"} and set(constants) == {"params", "anchor"}
    assert set(constants["params"]) == {"backbone"} and "backbone" not in params
    joined = state.join_variables(*parts)
    assert jax.tree.structure(joined) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, joined, variables)
    with pytest.raises(ValueError, match="'forzen'"):
        state.split_variables(variables, ((".*", "forzen"),))
    with pytest.raises(ValueError, match="omega"):
        state.split_variables(variables, (("(?!omega).*", "frozen"),))

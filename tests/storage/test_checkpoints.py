from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from sinewich_jax.errors import CheckpointError
from sinewich_jax.parallel import (
    abstract_with_shardings,
    make_mesh,
    sharding_tree,
    state_shardings,
)
from sinewich_jax.storage import CheckpointStore

RULES = [("(.*/)?kernel", P(None, "model")), (".*", P())]
TX = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.partition(
        {
            "adam": optax.adamw(1e-3),
            "factored": optax.adafactor(1e-3),
            "still": optax.set_to_zero(),
        },
        {"a": {"kernel": "factored"}, "b": "adam", "c": "still"},
    ),
)


def make_params():
    rng = np.random.default_rng(0)
    return {
        "a": {"kernel": jnp.asarray(rng.standard_normal((256, 128)), jnp.float32)},
        "b": jnp.asarray(rng.standard_normal(7), jnp.bfloat16),
        "c": jnp.arange(5, dtype=jnp.uint8),
    }


def on_mesh(mesh):
    """Parameters and optimizer state on ``mesh``, and the targets that restore them there."""
    params = make_params()
    shardings = sharding_tree(params, mesh, RULES)
    params = jax.device_put(params, shardings)
    target = abstract_with_shardings(params, shardings)
    abstract = jax.eval_shape(TX.init, params)
    state_target = abstract_with_shardings(abstract, state_shardings(abstract, target, mesh))
    state = jax.jit(TX.init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, state_target))(
        params
    )
    state = jax.tree.map(lambda leaf: leaf + 1, state)
    return {"params": params, "opt_state": state}, {"params": target, "opt_state": state_target}


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def small(value=1.0):
    return {"params": {"w": jnp.full((3,), value, jnp.float32)}}


def small_target(shape=(3,), dtype=jnp.float32, name="w"):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {"params": {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One step, saved from eight devices."""
    directory = tmp_path_factory.mktemp("saved")
    items, _ = on_mesh(make_mesh(data=4, model=2))
    with CheckpointStore(directory) as store:
        store.save(7, {**items, "merge": {}, "meta": {"tasks": ["depth"], "step": 7}})
    return directory, items


@pytest.mark.parametrize(
    ("devices", "model"), [(8, 2), (8, 8), (2, 2), (2, 1), (1, 1)], ids=lambda value: str(value)
)
def test_restores_bit_equal_on_any_mesh(saved, devices, model):
    directory, items = saved
    mesh = make_mesh(model=model, devices=jax.devices()[:devices])
    _, targets = on_mesh(mesh)
    restored = CheckpointStore(directory).restore_latest({**targets, "merge": {}})
    assert (restored.step, restored.skipped) == (7, [])
    assert restored.meta == {"tasks": ["depth"], "step": 7}
    assert restored.items["merge"] == {}
    for name in ("params", "opt_state"):
        assert_same(restored.items[name], items[name])
        for leaf, target in zip(
            jax.tree.leaves(restored.items[name]), jax.tree.leaves(targets[name]), strict=True
        ):
            assert leaf.sharding == target.sharding


def test_items_are_read_one_by_one(saved):
    directory, items = saved
    _, targets = on_mesh(make_mesh(devices=jax.devices()[:1]))
    found = CheckpointStore(directory).restore(7, {"params": targets["params"]})
    assert list(found) == ["params"]
    assert_same(found["params"], items["params"])


def test_meta_is_read_alone(saved):
    assert CheckpointStore(saved[0]).read_meta(7) == {"tasks": ["depth"], "step": 7}


def test_an_empty_directory_has_nothing_to_restore(tmp_path):
    store = CheckpointStore(tmp_path / "absent")
    assert (store.steps(), store.latest()) == ([], None)
    assert store.restore_latest(small_target()) is None
    assert not (tmp_path / "absent").exists()  # looking makes no folders
    with pytest.raises(CheckpointError, match=r"there is no step 3 in .*absent; found none"):
        store.restore(3, small_target())


def test_old_steps_are_removed(tmp_path):
    with CheckpointStore(tmp_path, max_to_keep=2) as store:
        for step in (5, 10, 100):
            store.save(step, {**small(step), "meta": {"step": step}})
    assert (store.steps(), store.latest()) == ([10, 100], 100)
    # A second store, of a resumed run, goes on counting.
    with CheckpointStore(tmp_path, max_to_keep=2) as store:
        store.save(101, small(101))
    assert store.steps() == [100, 101]
    assert float(store.restore(100, small_target())["params"]["w"][0]) == 100
    assert store.read_meta(101) == {}


def test_training_may_go_on_while_the_save_runs(tmp_path):
    """Donated buffers are overwritten by the next step; the save must have copied them before."""
    values = jax.jit(lambda: jnp.arange(1 << 20, dtype=jnp.float32))()
    expected = np.array(values)
    step = jax.jit(lambda x: x * -1 - 1, donate_argnums=0)
    with CheckpointStore(tmp_path) as store:
        for number in range(3):
            store.save(number, {"params": {"w": values}})
            for _ in range(4):
                values = step(values)
            values.block_until_ready()
            store.wait()
            found = store.restore(number, small_target((1 << 20,)))["params"]["w"]
            np.testing.assert_array_equal(found, expected)
            expected = np.array(values)


def test_containers_without_leaves_keep_their_type(tmp_path):
    state = optax.sgd(0.1).init(make_params())
    assert jax.tree.leaves(state) == []
    with CheckpointStore(tmp_path) as store:
        store.save(1, {**small(), "opt_state": state})
    found = store.restore_latest({**small_target(), "opt_state": state}).items["opt_state"]
    assert jax.tree.structure(found) == jax.tree.structure(state)


def test_typed_keys_and_numpy_leaves(tmp_path):
    state = {"key": jax.random.key(3), "count": np.arange(3, dtype=np.int32), "x": np.float32(2)}
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state
    )
    with CheckpointStore(tmp_path) as store:
        store.save(1, {"state": state})
    found = store.restore(1, {"state": target})["state"]
    np.testing.assert_array_equal(found["count"], state["count"])
    assert float(found["x"]) == 2
    assert jax.random.bits(found["key"]) == jax.random.bits(state["key"])


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (small_target((4,)), r"leaf 'w' of item 'params' in .*1 is float32\[3\], expected float32"),
        (small_target(dtype=jnp.bfloat16), r"is float32\[3\], expected bfloat16\[3\]"),
        (small_target(name="v"), "has no leaf 'v' in item 'params'"),
        ({"params": {}}, "1 leaves that were not asked for, the first being 'w'"),
        ({"parms": small_target()["params"]}, "no item 'parms' .did you mean 'params'"),
        ({"params": {"w": jax.ShapeDtypeStruct((3,), jnp.float32)}}, "'w'.* has no sharding"),
    ],
)
def test_a_target_that_does_not_fit_is_named_and_nothing_is_skipped(tmp_path, target, words):
    with CheckpointStore(tmp_path) as store:
        store.save(1, small())
    for restore in (lambda: store.restore(1, target), lambda: store.restore_latest(target)):
        with pytest.raises(CheckpointError, match=words):
            restore()


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ({"params": {"a": {"b": 3}}}, "leaf 'a/b' of item 'params' is a int"),
        ({"params": {"a": jnp.zeros((0, 2))}}, r"leaf 'a' of item 'params' has shape \(0, 2\)"),
        ({"meta": {"x": float("inf")}}, "'meta' cannot be written as JSON"),
        ({"meta": {"x": np.float32(1)}}, "'meta' cannot be written as JSON"),
        ({"meta": [1]}, "'meta' is a list; expected a dict"),
    ],
)
def test_what_cannot_be_saved(tmp_path, items, words):
    store = CheckpointStore(tmp_path / "run")
    with pytest.raises(CheckpointError, match=words):
        store.save(1, items)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("step", [3, 5])
def test_a_whole_step_is_never_overwritten(tmp_path, step):
    with CheckpointStore(tmp_path) as store:
        store.save(5, small(5))
        with pytest.raises(CheckpointError, match=f"step {step} cannot be saved.*step 5 is alread"):
            store.save(step, small())
    assert float(store.restore(5, small_target())["params"]["w"][0]) == 5


def test_wrong_arguments(tmp_path):
    with pytest.raises(CheckpointError, match="max_to_keep is 0"):
        CheckpointStore(tmp_path, max_to_keep=0)
    with pytest.raises(CheckpointError, match="gs://bucket/run is a remote address"):
        CheckpointStore("gs://bucket/run")

"""A damaged step is passed over and named, whatever file the damage is in."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinewich_jax.errors import CheckpointError
from sinewich_jax.storage import CheckpointStore
from sinewich_jax.storage.manifest import MANIFEST, verify, write_manifest

TREE = {"w": jnp.arange(2000.0), "b": jnp.ones(3)}
# Orbax writes these two after the manifest, and nothing of the state is in them: a flipped digit
# of a time stamp is no damage.
FREE_TEXT = {"commit_success.txt", "_CHECKPOINT_METADATA"}


def target():
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {
        "params": jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), TREE
        )
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Steps 1 and 2; the values of step n are multiplied by n."""
    directory = tmp_path_factory.mktemp("whole")
    with CheckpointStore(directory) as store:
        for step in (1, 2):
            scaled = jax.tree.map(lambda leaf, by=step: leaf * by, TREE)
            store.save(step, {"params": scaled, "meta": {"step": step}})
    return directory


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def files(directory):
    return sorted(
        path.relative_to(directory / "2").as_posix()
        for path in (directory / "2").rglob("*")
        if path.is_file()
    )


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(path):
    path.unlink()


def check_fallback(directory, name):
    before = sorted(path for path in directory.rglob("*"))
    restored = CheckpointStore(directory).restore_latest(target())
    assert restored.step == 1
    assert restored.meta == {"step": 1}
    np.testing.assert_array_equal(restored.items["params"]["w"], TREE["w"])
    ((step, reason),) = restored.skipped
    assert step == 2
    assert "step 2 is damaged" in reason
    assert str(directory / "2" / name) in reason
    assert sorted(path for path in directory.rglob("*")) == before


@pytest.mark.parametrize("damage", [flip, cut, remove])
def test_any_damaged_file_is_found_and_named(copy, whole, damage):
    names = [name for name in files(copy) if name not in FREE_TEXT]
    assert len(names) > 8  # Orbax's data, its metadata, the JSON item, our manifest
    for name in names:
        path = copy / "2" / name
        damage(path)
        check_fallback(copy, name)
        shutil.copyfile(whole / "2" / name, path)
    assert CheckpointStore(copy).restore_latest(target()).step == 2


def test_harmless_changes_are_no_damage(copy):
    """The commit note holds the old path, so that a moved directory differs there already."""
    (copy / "2" / "commit_success.txt").unlink(missing_ok=True)
    path = copy / "2" / "_CHECKPOINT_METADATA"
    body = json.loads(path.read_bytes())
    body["commit_timestamp_nsecs"] += 1
    path.write_text(json.dumps(body))
    (copy / "2" / ".nfs0001").write_text("a stray file")
    restored = CheckpointStore(copy).restore_latest(target())
    assert (restored.step, restored.skipped) == (2, [])
    np.testing.assert_array_equal(restored.items["params"]["w"], 2 * TREE["w"])


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"sha256": 1}', '{"format": 1}'])
def test_damaged_manifests(copy, content):
    (copy / "2" / MANIFEST).write_text(content)
    check_fallback(copy, MANIFEST)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_damaged_step_metadata(copy, content):
    path = copy / "2" / "_CHECKPOINT_METADATA"
    path.write_text(content)
    check_fallback(copy, path.name)
    path.unlink()
    check_fallback(copy, "_CHECKPOINT_METADATA")


def test_an_explicit_restore_raises(copy):
    flip(copy / "2" / "params" / "manifest.ocdbt")
    store = CheckpointStore(copy)
    with pytest.raises(CheckpointError, match=r"step 2 is damaged: .*manifest\.ocdbt differs"):
        store.restore(2, target())
    assert store.read_meta(2) == {"step": 2}  # meta itself is whole
    cut(copy / "2" / "meta" / "metadata")
    with pytest.raises(CheckpointError, match=r"meta/metadata has .* bytes, expected"):
        store.read_meta(2)


def test_nothing_whole_is_an_error_not_a_fresh_start(copy):
    for step in (1, 2):
        cut(copy / str(step) / "params" / "manifest.ocdbt")
    with pytest.raises(CheckpointError, match="no whole checkpoint is left") as error:
        CheckpointStore(copy).restore_latest(target())
    assert "step 1 is damaged" in str(error.value)
    assert "step 2 is damaged" in str(error.value)


def test_a_damaged_step_is_saved_anew_and_kept_aside(copy):
    for time in range(2):
        flip(copy / "2" / "params" / "manifest.ocdbt")
        with CheckpointStore(copy) as store:
            assert store.restore_latest(target()).step == 1
            store.save(2, {"params": jax.tree.map(lambda leaf: leaf * 3, TREE)})
        restored = CheckpointStore(copy).restore_latest(target())
        assert (restored.step, restored.skipped) == (2, [])
        np.testing.assert_array_equal(restored.items["params"]["w"], 3 * TREE["w"])
        assert (copy / ("2.damaged" if time == 0 else "2.damaged-2")).is_dir()


def test_damage_while_the_writer_is_open(copy):
    """The same store that keeps saving finds out, falls back and goes on."""
    with CheckpointStore(copy) as store:
        store.save(3, {"params": TREE})
        store.wait()
        flip(copy / "3" / "params" / "manifest.ocdbt")
        assert store.restore_latest(target()).step == 2
        store.save(3, {"params": TREE})
        store.wait()
        assert store.restore_latest(target()).step == 3
    assert store.steps() == [1, 2, 3]


def test_a_manifest_sealed_before_orbax_named_its_handlers(tmp_path):
    """Orbax fills ``item_handlers`` in while the step is being committed, sometimes after us."""
    metadata = tmp_path / "_CHECKPOINT_METADATA"
    (tmp_path / "data").write_bytes(b"leaf")
    metadata.write_text(json.dumps({"item_handlers": None}), encoding="utf-8")
    write_manifest(tmp_path, 1, {"params": {"w": "float32[1]"}})
    metadata.write_text(json.dumps({"item_handlers": {"params": "x"}}), encoding="utf-8")
    assert verify(tmp_path).step == 1
    metadata.write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="_CHECKPOINT_METADATA cannot be read"):
        verify(tmp_path)

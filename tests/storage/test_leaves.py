"""Reading leaf by leaf: every format gives the same leaves, and damage is told, by name."""

from __future__ import annotations

import os
import pickle
import zipfile

import numpy as np
import pytest

from sinewich_jax.errors import CheckpointError
from sinewich_jax.storage import LeafSpec, load_safetensors, open_leaves, save_safetensors
from sinewich_jax.storage.leaf_writer import write_leaves
from tests.merging import files

FLAT, _ = files.family()


@pytest.mark.parametrize("kind", files.FORMATS)
def test_every_format_gives_the_same_leaves(kind, tmp_path):
    flat, _ = files.family(narrow=kind != "npz")
    with open_leaves(files.write(tmp_path, "model", flat, kind)) as source:
        assert source.names == tuple(sorted(flat))
        assert source.nbytes == sum(leaf.nbytes for leaf in flat.values())
        for name, leaf in flat.items():
            assert source.spec(name) == LeafSpec(leaf.shape, leaf.dtype)
        files.same({name: source.read(name) for name in reversed(source.names)}, flat)


@pytest.mark.parametrize("flat", [{}, {"empty": np.zeros((0, 3), np.float32)}])
def test_files_without_numbers(flat, tmp_path):
    for kind in ("safetensors", "npz"):
        with open_leaves(files.write(tmp_path, "model", flat, kind)) as source:
            files.same({name: source.read(name) for name in source.names}, flat)


def test_metadata_and_a_folder_with_one_file(tmp_path):
    save_safetensors(tmp_path / "x.safetensors", FLAT, {"step": "3"})
    with open_leaves(tmp_path) as source:
        assert source.metadata == {"step": "3"}
    with pytest.raises(CheckpointError, match=r"no leaf 'block/bia' \(did you mean 'block/bias'"):
        source.spec("block/bia")


def test_leaves_outlive_the_file(tmp_path):
    path = files.write(tmp_path, "x", FLAT)
    with open_leaves(path) as source:
        leaf = source.read("stem/kernel")
    path.unlink()
    np.testing.assert_array_equal(leaf, FLAT["stem/kernel"])


# --- what is refused ----------------------------------------------------------------------------


def test_pickles_are_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    (tmp_path / "a.pt").write_bytes(pickle.dumps(Trap()))
    (tmp_path / "b").write_bytes(pickle.dumps(Trap()))
    with zipfile.ZipFile(tmp_path / "c.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Trap()))
    np.savez(tmp_path / "d.npz", x=np.array([Trap()]))
    for name in ("a.pt", "b", "c.bin"):
        with pytest.raises(CheckpointError, match=r"a pickle or .* 'sinewich import-backbone .*"):
            open_leaves(tmp_path / name)
    with pytest.raises(CheckpointError, match="holds pickled objects in 'x'"):
        open_leaves(tmp_path / "d.npz")
    assert not (tmp_path / "sprung").exists()


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"expected weights at .*none, found nothing"):
        open_leaves(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"expected weights in the folder .*found none of"):
        open_leaves(tmp_path)
    (tmp_path / "text").write_text("some words about it")
    with pytest.raises(CheckpointError, match=r"starts with b'some wor', which is neither"):
        open_leaves(tmp_path / "text")
    for name in "ab":
        files.write(tmp_path, name, FLAT)
    with pytest.raises(CheckpointError, match=r"found a\.safetensors, b\.safetensors"):
        open_leaves(tmp_path)


def cut(path):
    os.truncate(path, path.stat().st_size - 1)


def grown(path):
    with path.open("ab") as file:
        file.write(b"\0")


def announce(path):
    content = path.read_bytes()
    path.write_bytes((1 << 40).to_bytes(8, "little") + content[8:])


def garble(path):
    content = path.read_bytes()
    path.write_bytes(content[:9] + b"\xff" + content[10:])


def drained(path):
    path.write_bytes(b"1234{")


@pytest.mark.parametrize("damage", [cut, grown, announce, garble, drained])
def test_damaged_safetensors_are_told_when_they_are_opened(damage, tmp_path):
    path = files.write(tmp_path, "x", FLAT)
    damage(path)
    with pytest.raises(CheckpointError, match=r"x\.safetensors is not a whole safetensors file"):
        open_leaves(path)


@pytest.mark.parametrize(
    "change",
    [
        {"data_offsets": [0, 40]},  # over another leaf
        {"data_offsets": [144, 180]},  # too short
        {"data_offsets": [-4, 140]},
        {"data_offsets": [0]},
        {"shape": [9, 5]},
        {"shape": [9, True]},
        {"shape": [1 << 40, 1 << 40]},
        {"dtype": None},
        {"dtype": "F6"},
    ],
)
def test_headers_that_lie(change, tmp_path):
    path = files.write_raw(tmp_path / "x.safetensors", FLAT, **{"stem/kernel": change})
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        open_leaves(path)


def test_a_name_that_occurs_twice(tmp_path):
    text = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8"}}'
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0")
    with pytest.raises(CheckpointError, match="a name occurs twice"):
        open_leaves(path)


@pytest.mark.parametrize("seed", range(3))
def test_flipped_bytes_never_crash(seed, tmp_path):
    rng = np.random.default_rng(seed)
    content = files.write(tmp_path, "x", FLAT).read_bytes()
    for _ in range(60):
        damaged = bytearray(content)
        damaged[rng.integers(600)] = rng.integers(256)
        (tmp_path / "y.safetensors").write_bytes(damaged)
        try:
            with open_leaves(tmp_path / "y.safetensors") as source:
                for name in source.names:
                    source.read(name)
        except CheckpointError:
            pass


def test_indices_that_lie(tmp_path):
    folder = files.write(tmp_path, "x", FLAT, "shards")
    index = folder / "model.safetensors.index.json"
    good = index.read_text()
    for text, message in (
        ("[]", "cannot be read as an index"),
        ('{"weight_map": {"a": 3}}', "names 3; expected files of its own"),
        ('{"weight_map": {"a": "../x"}}', r"names '\.\./x'; expected files of its own"),
        (good.replace("stem/kernel", "stem/other"), "has no leaf 'stem/other'"),
    ):
        index.write_text(text)
        with pytest.raises(CheckpointError, match=message):
            open_leaves(folder)
    index.write_text(good)
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"00001-of-00002.safetensors cannot be read"):
        open_leaves(folder)


# --- writing ------------------------------------------------------------------------------------

SPECS = {name: LeafSpec(leaf.shape, leaf.dtype) for name, leaf in FLAT.items()}


def test_leaves_are_written_in_any_order_and_read_by_the_library(tmp_path):
    for order in (sorted(FLAT), sorted(FLAT, reverse=True)):
        with write_leaves(tmp_path / "x.safetensors", SPECS, {"rule": "ties"}) as writer:
            for name in order:
                writer.write(name, FLAT[name])
        found, metadata = load_safetensors(tmp_path / "x.safetensors")
        files.same(found, FLAT)
        assert metadata == {"rule": "ties"}


def test_leaves_that_were_not_announced(tmp_path):
    wrong = [
        ("stem/other", FLAT["stem/kernel"], "expected nothing more"),
        ("stem/kernel", FLAT["stem/kernel"].T, r"is float32\(4, 9\); expected float32\(9, 4\)"),
        ("stem/kernel", FLAT["stem/kernel"].astype(float), "is float64.*expected float32"),
    ]
    for name, leaf, message in wrong:
        with (
            pytest.raises(CheckpointError, match=message),
            write_leaves(tmp_path / "x.safetensors", SPECS) as writer,
        ):
            writer.write(name, leaf)
    with (
        pytest.raises(CheckpointError, match=r"5 leaves .* not written, the first being 'block/k"),
        write_leaves(tmp_path / "x.safetensors", SPECS) as writer,
    ):
        writer.write("block/bias", FLAT["block/bias"])
    with (
        pytest.raises(CheckpointError, match=r"dtype complex128, which .* cannot hold"),
        write_leaves(tmp_path / "x.safetensors", {"a": LeafSpec((1,), np.dtype(complex))}),
    ):
        pass
    assert not list(tmp_path.iterdir())


# --- checkpoints --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """The work directory of a run: two steps, and frozen parameters beside them."""
    import jax.numpy as jnp

    from sinewich_jax import storage

    workdir = tmp_path_factory.mktemp("run")
    mark = storage.save_base(workdir / "base", {"params": {"stem": {"w": np.arange(3.0)}}, "x": {}})
    with storage.CheckpointStore(workdir / "checkpoints") as store:
        for step in (1, 2):
            params = {"head": [jnp.full((2, 3), step), jnp.ones(4, jnp.bfloat16)], "a.b": step}
            params["a.b"] = jnp.int32(step)
            merge = {"head": {"row": jnp.ones(2), "col": jnp.ones(3)}}
            store.save(step, {"params": params, "merge": merge, "meta": {"base": mark}})
            store.wait()
    return workdir


def test_a_run_gives_its_parameters_and_the_frozen_ones(run_folder):
    with open_leaves(run_folder) as source:
        assert source.names == ("a.b", "head/0", "head/1", "stem/w")
        assert source.metadata["step"] == "2" and source.metadata["base"].startswith("sha256:")
        assert source.spec("head/1").dtype.name == "bfloat16"
        assert source.read("head/0").tolist() == [[2, 2, 2], [2, 2, 2]]
        assert source.read("stem/w").tolist() == [0, 1, 2]
        assert source.read("a.b") == 2 and source.notes == ()
    with open_leaves(run_folder / "checkpoints" / "1") as source:
        assert source.read("head/0").tolist() == [[1, 1, 1], [1, 1, 1]]
    with open_leaves(run_folder / "checkpoints" / "1" / "params") as source:
        assert source.names == ("a.b", "head/0", "head/1")
    with open_leaves(run_folder, item="merge") as source:
        assert source.names == ("head/col", "head/row")
    with pytest.raises(CheckpointError, match=r"has no item 'merg' \(did you mean 'merge'"):
        open_leaves(run_folder, item="merg")


def test_damaged_runs_are_told(run_folder, tmp_path):
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(run_folder, copy)
    (data,) = (copy / "checkpoints" / "2" / "params" / "d").iterdir()
    data.write_bytes(data.read_bytes()[:-1])
    with open_leaves(copy) as source:
        assert source.metadata["step"] == "1"
        assert "step passed over" in source.notes[0]
    with pytest.raises(CheckpointError, match="step 2 is damaged"):
        open_leaves(copy / "checkpoints" / "2")
    (base,) = (copy / "base").iterdir()
    content = bytearray(base.read_bytes())
    content[-1] ^= 1
    base.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"base-\w+\.safetensors is damaged or was changed"):
        open_leaves(copy)
    base.unlink()
    with pytest.raises(CheckpointError, match=r"the base sha256:.* of the run is not in"):
        open_leaves(copy)
    shutil.rmtree(copy / "checkpoints")
    (copy / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no whole checkpoint \(none was saved\)"):
        open_leaves(copy)

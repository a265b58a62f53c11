from __future__ import annotations

import hashlib
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from sinewich_jax.core.trees import flatten_paths
from sinewich_jax.errors import CheckpointError
from sinewich_jax.storage import open_leaves, save_safetensors
from sinewich_jax.storage.fingerprint import fingerprint
from sinewich_jax.switches.bank import Base, SwitchBank, SwitchBankError
from sinewich_jax.switches.leaf import DenseLeaf, LeafSwitch, Switch
from sinewich_jax.switches.queries import QuerySet
from sinewich_jax.switches.router import Router
from sinewich_jax.switches.tree_files import load_switch, save_switch
from tests.switches.samples import BASE, arrays, assert_same, leaf, packed, task


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tasks.swb"


@pytest.fixture
def bank(path):
    with SwitchBank.create(path, BASE) as bank:
        yield bank


def make_router():
    rng = np.random.default_rng(0)
    queries = QuerySet(
        rng.standard_normal((12, 5)).astype(np.float32),
        np.arange(12, dtype=np.int32) % 2,
        ("a", "b"),
    )
    projection = rng.standard_normal((5, 3)).astype(np.float32)
    return Router.fit(queries, k=3, metric="cosine", projection=projection, extractor="pooled")


def replaced(switch, path, **fields):
    one = switch.leaves[path]
    old = {name: getattr(one, name) for name in ("mask", "sign", "knob", "levels", "shape")}
    return Switch(switch.leaves | {path: LeafSwitch(**old | fields)})


# ---- tasks


@pytest.mark.parametrize("codec", ["auto", "plane", "deflate", "rice"])
def test_tasks_come_back_bit_for_bit(path, codec):
    with SwitchBank.create(path, BASE) as bank:
        for seed in range(3):
            bank.add(f"task {seed}", task(seed), {"alpha": 0.6, "seed": seed}, codec=codec)
            assert_same(bank.get(f"task {seed}"), task(seed))  # while it is open for adding
    with SwitchBank.open(path, base=BASE) as bank:
        assert bank.names == ("task 0", "task 1", "task 2")
        assert len(bank) == 3 and "task 1" in bank and "other" not in bank
        for seed in range(3):
            assert_same(bank.get(f"task {seed}"), task(seed))
            assert bank.meta(f"task {seed}") == {"alpha": 0.6, "seed": seed}
        bank.verify()
        found = bank.get("task 0")
    assert_same(found, task(0))  # after it was closed
    if codec == "plane":
        assert all(part.codec == "plane" for part in _masks(path))


def _masks(path):
    with SwitchBank.open(path) as bank:
        return [
            entry.mask
            for name in bank.names
            for entry in bank.entries(name)
            if entry.kind == "switch" and entry.size
        ]


def test_auto_is_never_larger(tmp_path):
    sizes = {}
    for codec in ("auto", "plane", "deflate", "rice"):
        with SwitchBank.create(tmp_path / codec) as bank:
            bank.add("a", task(0, 0.05), codec=codec)
            sizes[codec] = sum(row.mask for row in bank.report().leaves["a"])
    assert sizes["auto"] <= min(sizes.values())


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16, np.int32])
def test_dense_leaves_of_any_dtype(path, dtype):
    delta = np.arange(6).reshape(2, 3).astype(dtype)
    with SwitchBank.create(path) as bank:
        bank.add("a", Switch({"w": DenseLeaf(delta), "none": DenseLeaf(delta[:0])}))
    with SwitchBank.open(path) as bank:
        assert_same(bank.get("a"), Switch({"w": DenseLeaf(delta), "none": DenseLeaf(delta[:0])}))


def test_jax_arrays_are_taken(bank):
    bank.add("a", jax.tree.map(jnp.asarray, task(1)))
    assert_same(bank.get("a"), task(1))
    assert all(type(array) is np.ndarray for array in arrays(bank.get("a")).values())


def test_planes_are_mapped_and_read_only(bank):
    bank.add("a", task(0), codec="plane")
    found = bank.get("a")
    mask = found.leaves["block/kernel"].mask
    assert mask.ctypes.data % 64 == 0 and not mask.flags.owndata
    for array in arrays(found).values():
        assert not array.flags.writeable


def test_one_leaf_alone(bank):
    bank.add("a", task(0))
    bank.add("b", Switch({"scale": task(0).leaves["scale"]}))
    np.testing.assert_array_equal(
        bank.leaf("a", "block/bias").levels, task(0).leaves["block/bias"].levels
    )
    assert bank.leaf("b", "block/bias") is None
    assert float(bank.leaf("b", "scale").delta) == float(task(0).leaves["scale"].delta)


def test_an_empty_task_and_an_empty_bank(bank, path):
    with SwitchBank.open(path) as reader:
        assert reader.names == () and len(reader.report().tasks) == 0
        reader.report().table()
        reader.verify()
    bank.add("nothing", Switch({}))
    assert bank.get("nothing") == Switch({})


def test_the_same_calls_write_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        with SwitchBank.create(tmp_path / name, BASE) as bank:
            bank.add("x", task(0), {"b": 1, "a": [1, None]})
            bank.set_router(make_router())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_adding_to_a_bank_that_was_closed(path):
    SwitchBank.create(path, BASE).close()
    for seed in range(3):
        with SwitchBank.open(path, "a") as bank:
            bank.add(str(seed), task(seed))
    with SwitchBank.open(path) as bank:
        assert bank.names == ("0", "1", "2")
        assert_same(bank.get("2"), task(2))


# ---- replace, remove, compact


def test_replace_remove_and_compact(path, tmp_path):
    with SwitchBank.create(path, BASE, frequencies="f") as bank:
        bank.add("a", task(0))
        bank.add("b", task(1))
        with pytest.raises(SwitchBankError, match="has a task 'a' already; pass replace=True"):
            bank.add("a", task(2))
        bank.add("a", task(2), replace=True)
        bank.add("c", task(3), replace=True)
        bank.set_router(make_router())
        bank.set_router(make_router())
        bank.remove("b")
        before = bank.get("a")
        with pytest.raises(SwitchBankError, match=r"no task 'b' .*known: a, c"):
            bank.remove("b")
        assert bank.names == ("a", "c")
        removed = bank.report().removed
        assert bank.compact() == removed > 0
        assert bank.report().removed == 0
        assert_same(before, task(2))  # mapped from the file that is gone
        bank.add("d", task(0))
        bank.verify()
    with SwitchBank.create(tmp_path / "fresh.swb", BASE, frequencies="f") as fresh:
        fresh.add("a", task(2))
        fresh.add("c", task(3))
        fresh.set_router(make_router())
        fresh.add("d", task(0))
    assert path.read_bytes() == (tmp_path / "fresh.swb").read_bytes()
    assert sorted(tmp_path.iterdir()) == [tmp_path / "fresh.swb", path]


def test_a_compacted_bank_is_still_locked(bank, path):
    bank.compact()
    with pytest.raises(SwitchBankError, match="being written by"):
        SwitchBank.open(path, "a")


def test_readers_see_what_was_there(bank, path):
    bank.add("a", task(0))
    with SwitchBank.open(path) as reader:
        bank.add("b", task(1))
        bank.remove("a")
        bank.compact()
        assert reader.names == ("a",)
        assert_same(reader.get("a"), task(0))


# ---- create and open


def test_create_does_not_overwrite(path):
    with SwitchBank.create(path) as bank:
        bank.add("a", task(0))
        with pytest.raises(SwitchBankError, match="being written by"):
            SwitchBank.create(path, overwrite=True)
    with pytest.raises(SwitchBankError, match="is there already; open it with mode='a'"):
        SwitchBank.create(path)
    with SwitchBank.create(path, overwrite=True) as bank:
        assert bank.names == ()
    path.write_text("something else")
    SwitchBank.create(path, overwrite=True).close()
    with SwitchBank.open(path) as bank:
        assert bank.base is None and bank.base_leaves == {} and bank.frequencies is None


def test_where_no_file_can_be(tmp_path):
    with pytest.raises(SwitchBankError, match="cannot be made: its frequencies are no string"):
        SwitchBank.create(tmp_path / "tasks.swb", frequencies=3)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(SwitchBankError, match="could not be written"):
        SwitchBank.create(tmp_path / "file" / "tasks.swb")


def test_reading_changes_nothing(bank, path):
    bank.add("a", task(0))
    before = path.read_bytes()
    with SwitchBank.open(path) as reader:
        for change in (
            lambda: reader.add("b", task(0)),
            lambda: reader.remove("a"),
            lambda: reader.set_router(None),
            reader.compact,
        ):
            with pytest.raises(SwitchBankError, match="open it with mode='a'"):
                change()
    assert path.read_bytes() == before
    with pytest.raises(SwitchBankError, match="the mode is 'w', expected 'r' or 'a'"):
        SwitchBank.open(path, "w")


def test_the_base_is_known_by_its_fingerprint(path, tmp_path):
    flat = {name: np.asarray(value) for name, value in flatten_paths(BASE).items()}
    save_safetensors(tmp_path / "base.safetensors", flat)
    with open_leaves(tmp_path / "base.safetensors") as source:
        SwitchBank.create(path, source, frequencies="sha256:12").close()
        with SwitchBank.open(path, base=source) as bank:
            assert bank.base == fingerprint(BASE)
            assert bank.frequencies == "sha256:12"
            assert bank.base_leaves["block/kernel"] == ((40, 50), "float32")
    SwitchBank.open(path, base=BASE).close()
    SwitchBank.open(path, base=Base.of(BASE)).close()
    with pytest.raises(SwitchBankError, match=r"another base.*not the same numbers"):
        SwitchBank.open(path, base=BASE | {"scale": np.float32(3)})
    with pytest.raises(SwitchBankError, match=r"'scale' is float32\(1,\), expected float32\(\)"):
        SwitchBank.open(path, base=BASE | {"scale": np.ones(1, np.float32)})
    with pytest.raises(SwitchBankError, match=r"'more' is float32\(1,\), expected not there"):
        SwitchBank.open(path, base=BASE | {"more": np.ones(1, np.float32)})
    SwitchBank.create(tmp_path / "bare.swb").close()
    with pytest.raises(SwitchBankError, match="was made without a base"):
        SwitchBank.open(tmp_path / "bare.swb", base=BASE)


# ---- what cannot be added


def broken():
    good, rng = task(0), np.random.default_rng(1)
    bias = good.leaves["block/bias"]
    outside = packed(np.r_[np.zeros(48), 0, 0, 1, 1, 1, 1, 1, 1])
    all_set, none = packed(np.ones(50)), np.zeros(7, np.uint8)
    return {
        "'block/bais': the base has no such leaf .did you mean 'block/bias'": Switch(
            {"block/bais": bias}
        ),
        r"'block/bias': its shape is \(49,\), expected \(50,\) as in the base": Switch(
            {"block/bias": leaf(rng, (49,), 0.5)}
        ),
        "its sign is set where its mask is not": replaced(good, "block/bias", sign=all_set),
        "its levels are set where": replaced(good, "block/bias", levels=np.stack([all_set] * 2)),
        "active entry of it has the level 0": replaced(
            good, "block/bias", levels=np.stack([none] * 2)
        ),
        "its mask is set behind the last entry": replaced(
            good, "block/bias", mask=bias.mask | outside
        ),
        r"its mask is uint8\(6,\), expected uint8\(7,\)": replaced(
            good, "block/bias", mask=bias.mask[:6]
        ),
        r"its mask is uint8\(2, 7\).*one by one": replaced(
            good, "block/bias", mask=np.stack([bias.mask] * 2)
        ),
        r"its sign is bool\(7,\)": replaced(good, "block/bias", sign=bias.sign.astype(bool)),
        "its knob is not finite": replaced(good, "block/bias", knob=np.float32("nan")),
        r"its knob is float64\(\)": replaced(good, "block/bias", knob=np.float64(1)),
        r"its knob is float32\(3,\)": replaced(good, "block/bias", knob=np.ones(3, np.float32)),
        "it is a float32, expected a LeafSwitch": Switch({"scale": np.float32(1)}),
        "has the dtype complex128": Switch({"scale": DenseLeaf(np.complex128(1))}),
        "its path is 5, expected a string": Switch({5: DenseLeaf(np.float32(1))}),
        "its shape is .* at most 32 whole numbers": Switch({"w": leaf(rng, (1,) * 33, 1)}),
        "it is a dict, expected a Switch": {"scale": DenseLeaf(np.float32(1))},
    }


@pytest.mark.parametrize("message", broken())
def test_what_cannot_be_added_is_named_and_nothing_is_written(bank, path, message):
    before = path.read_bytes()
    with pytest.raises(SwitchBankError, match=message) as error:
        bank.add("eurosat", broken()[message])
    assert "'eurosat'" in str(error.value) and str(path) in str(error.value)
    assert isinstance(error.value, CheckpointError)
    assert path.read_bytes() == before and bank.names == ()
    bank.add("eurosat", task(0))


def test_names_meta_and_codecs_that_cannot_be_added(bank):
    for name in ("", ["a"], "a\nb", "x" * 201, None, "\ud800"):
        with pytest.raises(SwitchBankError, match="1 to 200 printable characters"):
            bank.add(name, task(0))
        deep = []
    for _ in range(100_000):
        deep = [deep]
    nan, twice = {"x": float("nan")}, {1: "a", "1": "b"}
    for meta in ({"x": np.float32(1)}, nan, {"x": object()}, twice, {"x": deep}):
        with pytest.raises(SwitchBankError, match="JSON"):
            bank.add("a", task(0), meta)
    with pytest.raises(SwitchBankError, match="unknown mask codec 'zip'"):
        bank.add("a", task(0), codec="zip")
    with pytest.raises(SwitchBankError, match="has no task 'b'"):
        bank.get("b")
    bank.add("Größe ☃", task(0), {"ü": "ß"})
    assert bank.meta("Größe ☃") == {"ü": "ß"}


# ---- the router


def test_the_router_comes_back(bank, path):
    assert bank.router() is None
    router = make_router()
    bank.set_router(router)
    bank.add("a", task(0))
    with SwitchBank.open(path) as reader:
        found = reader.router()
        for name, value in router.to_fields().items():
            np.testing.assert_array_equal(found.to_fields()[name], value)
        features = np.ones((4, 5), np.float32)
        np.testing.assert_array_equal(found(features).weights, router(features).weights)
    small = bank.report().router
    bank.set_router(router, dtype="float16")
    assert bank.report().router <= small
    half = bank.router().queries.features
    np.testing.assert_array_equal(
        half, router.queries.features.astype(np.float16).astype(np.float32)
    )
    bank.set_router(None)
    assert bank.router() is None
    with SwitchBank.open(path) as reader:
        assert reader.router() is None
    loud = router._replace(queries=router.queries._replace(features=np.full((12, 3), 1e6, "f4")))
    with pytest.raises(SwitchBankError, match="not finite as float16"):
        bank.set_router(loud, dtype="float16")


# ---- other processes


def digest(switch):
    total = hashlib.sha256()
    for name, array in arrays(switch).items():
        total.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return total.hexdigest()


def run(script, *arguments):
    here = pathlib.Path(__file__).parent
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parents[1]), str(here)])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_fresh_process_reads_it_without_jax(bank, path):
    bank.add("a", task(1))
    bank.set_router(make_router())
    script = """
import sys, numpy as np
import sinewich_jax.switches
from sinewich_jax.switches.bank import SwitchBank
from tests.switches.samples import arrays, task
import hashlib
with SwitchBank.open(sys.argv[1]) as bank:
    bank.report().table(leaves=True)
    total = hashlib.sha256()
    for name, array in arrays(bank.get("a")).items():
        total.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    bank.verify()
with SwitchBank.create(sys.argv[1] + ".new") as other:
    other.add("a", task(0))
heavy = {"jax", "orbax", "orbax.checkpoint", "pickle5", "safetensors"} & set(sys.modules)
assert not heavy, heavy
print(total.hexdigest())
"""
    done = run(script, path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest(task(1))


# ---- Orbax


def test_a_switch_as_an_orbax_checkpoint(tmp_path):
    save_switch(tmp_path / "one", task(1), {"alpha": 0.6})
    found, meta = load_switch(tmp_path / "one")
    assert_same(found, task(1))
    assert meta == {"alpha": 0.6}
    with open_leaves(tmp_path / "one" / "0", "switch") as source:  # as any checkpoint
        assert "block/kernel/mask" in source.names and "scale/delta" in source.names
    with pytest.raises(CheckpointError, match="already there"):
        save_switch(tmp_path / "one", task(1))
    with pytest.raises(CheckpointError, match="no step 0"):
        load_switch(tmp_path / "absent")


@pytest.mark.parametrize("paths", [[""], ["head/none"], []])
def test_orbax_switches_of_one_leaf_of_no_entries_and_of_none(tmp_path, paths):
    rng = np.random.default_rng(0)
    switch = Switch({path: leaf(rng, (0,) if path else (9,), 0.5) for path in paths})
    save_switch(tmp_path / "one", jax.tree.map(jnp.asarray, switch))
    assert_same(load_switch(tmp_path / "one")[0], switch)


def test_a_damaged_or_foreign_checkpoint(tmp_path):
    from sinewich_jax.storage import CheckpointStore

    save_switch(tmp_path / "one", task(0))
    data = next(p for p in (tmp_path / "one/0/switch").rglob("*") if p.parent.name == "d")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(CheckpointError, match="step 0 is damaged"):
        load_switch(tmp_path / "one")
    with CheckpointStore(tmp_path / "other") as store:
        store.save(0, {"params": {"w": jnp.ones(3)}})
    with pytest.raises(SwitchBankError, match="holds no switch of format 1"):
        load_switch(tmp_path / "other")


@pytest.mark.slow
def test_orbax_in_a_fresh_process(tmp_path):
    save_switch(tmp_path / "one", task(1), {"alpha": 0.6})
    script = """
import sys
from sinewich_jax.switches.tree_files import load_switch
from tests.switches.samples import assert_same, task
found, meta = load_switch(sys.argv[1])
assert_same(found, task(1))
assert meta == {"alpha": 0.6}
"""
    done = run(script, tmp_path / "one")
    assert done.returncode == 0, done.stderr

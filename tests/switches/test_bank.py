from __future__ import annotations

import hashlib
import os
import pathlib
import subprocess
import sys
import threading

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
from sinewich_jax.switches.swb import index
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


def test_planes_are_mapped_and_read_only(path):
    large = leaf(np.random.default_rng(0), (200, 200), 0.5)
    switch = Switch(task(0).leaves | {"large": large, "own": DenseLeaf(np.arange(3.0))})
    with SwitchBank.create(path) as bank:
        bank.add("a", switch, codec="plane")
        found = bank.get("a")
    for plane in (found.leaves["large"].mask, found.leaves["large"].sign):
        assert plane.ctypes.data % 64 == 0 and not plane.flags.owndata
    for array in arrays(found).values():
        assert not array.flags.writeable
    assert found.leaves["own"].delta.flags.aligned


def test_small_leaves_take_little_beside_their_numbers(path):
    rng = np.random.default_rng(0)
    knobs = np.concatenate([rng.random(200), 10.0 ** rng.uniform(-44, 38, 800)])
    knobs = np.r_[0, knobs, np.finfo(np.float32).max].astype(np.float32)
    with SwitchBank.create(path) as bank:
        one = Switch({"w": leaf(rng, (9,), 0.5)})
        bank.add("a", replaced(one, "w", knob=np.float32(0.1)))
        assert bank.entries("a")[0].knob == 0.1
        turned = {str(i): replaced(one, "w", knob=knob).leaves["w"] for i, knob in enumerate(knobs)}
        bank.add("b", Switch(turned))
        assert_same(bank.get("b"), Switch(turned))
        bank.add("c", Switch({str(i): DenseLeaf(np.ones(3, np.float32)) for i in range(10)}))
        places = [place for entry in bank.entries("c") for place in entry.blobs]
        assert places[-1].offset == 9 * 16


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
    path.write_text("")
    SwitchBank.create(path, overwrite=True).close()
    with SwitchBank.open(path) as bank:
        assert bank.base is None and bank.base_leaves == {} and bank.frequencies is None


def test_create_replaces_nothing_but_banks(path):
    path.write_text("my thesis")
    with pytest.raises(SwitchBankError, match=r"starts with b'my thesi'.* is not replaced"):
        SwitchBank.create(path, overwrite=True)
    assert path.read_text() == "my thesis"


def test_links_and_permissions_stay(path, tmp_path):
    link = tmp_path / "link.swb"
    link.symlink_to(path)
    SwitchBank.create(link).close()
    path.chmod(0o640)
    SwitchBank.create(link, overwrite=True).close()
    with SwitchBank.open(link, "a") as bank:
        bank.add("a", task(0))
        bank.remove("a")
        bank.compact()
        bank.add("b", task(0))
        assert bank.path == link
    assert link.is_symlink() and path.stat().st_mode & 0o777 == 0o640
    with SwitchBank.open(path) as bank:
        assert list(bank) == ["b"]


def test_a_bank_stays_where_it_is_when_the_program_goes_elsewhere(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with SwitchBank.create(path.name) as bank:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir("elsewhere")
        bank.compact()
    assert not list((tmp_path / "elsewhere").iterdir())


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


def test_what_is_closed_says_so(bank):
    bank.add("a", task(0))
    bank.close()
    bank.close()
    for use in (
        lambda: bank.get("a"),
        lambda: bank.add("b", task(0)),
        lambda: bank.remove("a"),
        lambda: bank.set_router(None),
        bank.compact,
        bank.verify,
    ):
        with pytest.raises(SwitchBankError, match="is closed; open it again"):
            use()


@pytest.mark.parametrize("mode", ["r", "a"])
def test_what_is_no_file_is_no_bank(tmp_path, mode):
    with pytest.raises(SwitchBankError, match=r"expected a switch bank at .*, found a folder"):
        SwitchBank.open(tmp_path, mode)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SwitchBankError, match="found no file"):
        SwitchBank.open(tmp_path / "pipe", mode)
    for call in (SwitchBank.open, SwitchBank.create):
        with pytest.raises(SwitchBankError, match="path of a switch bank is empty, expected"):
            call("")


@pytest.mark.parametrize("base", ["base.safetensors", pathlib.Path("run"), "sha256:12"])
def test_a_path_is_no_base(path, base):
    with pytest.raises(SwitchBankError, match=r"open it with storage\.open_leaves"):
        SwitchBank.create(path, base=base)
    assert not path.exists()


def test_a_base_is_made_of_numbers(path):
    for odd in (np.array(["a"]), np.array(["2020"], "M8[D]"), "text"):
        with pytest.raises(SwitchBankError, match=r"leaf 'w' of the base holds .* numbers"):
            SwitchBank.create(path, base={"w": odd})


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
        "'scale': it holds NaN or infinity": Switch({"scale": DenseLeaf(np.float32("nan"))}),
        "'own': it holds NaN or infinity": Switch({"own": DenseLeaf(np.full(3, np.inf))}),
        "'scale': it holds bool, expected real": Switch({"scale": DenseLeaf(np.bool_(True))}),
        "'scale': it holds int32, expected real": Switch({"scale": DenseLeaf(np.int32(1))}),
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
    for name in ("", ["a"], "a\nb", "x" * 201, None, "\ud800", *" -=@/.", "..", "-a", "a ", " a"):
        with pytest.raises(SwitchBankError, match="1 to 200 printable characters"):
            bank.add(name, task(0))
    for name in ("a=b", "a@b", "a/b", "a\tb", "a\u00a0b", "e\u0301"):
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
    for name in (".a", "a.b", "a-b", "\u00e9", "a b", "x" * 200):
        assert index.check_name(name) == name
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


def test_a_router_that_nobody_could_read_is_not_stored(bank, path):
    good = make_router()
    bank.set_router(good)
    before = path.read_bytes()
    numbered = good._replace(queries=good.queries._replace(names=(1, 2)))
    for message, router, dtype in (
        ("it is a int, expected a Router or None", 3, "float32"),
        ("dtype is 'int8', expected 'float16' or 'float32'", good, "int8"),
        ("dtype is 'f32', expected", good, "f32"),
        ("its names cannot be that of a router, expected strings", numbered, "float32"),
        ("something that no router has", good._replace(queries=3), "float32"),
        ("something that no router has", good._replace(extractor=object()), "float32"),
        ("k is 0", good._replace(k=0), "float32"),
        ("JSON", good._replace(threshold=float("inf")), "float32"),
        (
            "no example of the task 'c'",
            good._replace(queries=good.queries._replace(names=("a", "b", "c"))),
            "float32",
        ),
    ):
        with pytest.raises(SwitchBankError, match=message):
            bank.set_router(router, dtype=dtype)
    assert path.read_bytes() == before
    bank.verify()


# ---- threads and other processes


def test_threads_take_turns(bank, path):
    wrong = []

    def work(number):
        for step in range(10):
            try:
                bank.add(f"{number}-{step}", task(step % 4))
                assert_same(bank.get(f"{number}-{step}"), task(step % 4))
                if step % 3 == 2:
                    bank.remove(f"{number}-{step - 1}")
                    bank.compact()
            except Exception as error:  # for the thread that can tell
                wrong.append(error)
                raise

    threads = [threading.Thread(target=work, args=[number]) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    with SwitchBank.open(path) as reader:
        assert reader.names == bank.names and len(reader) == 21
        reader.verify()


def test_of_threads_that_add_one_name_one_wins(bank, path):
    refused = []

    def work():
        try:
            bank.add("a", task(0))
        except SwitchBankError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 3 and all("pass replace=True" in one for one in refused)
    with SwitchBank.open(path) as reader:
        assert_same(reader.get("a"), task(0))


def test_a_fork_reads_and_does_not_write(path):
    script = """
import os, sys, time
from sinewich_jax.switches.bank import SwitchBank, SwitchBankError
from tests.switches.samples import assert_same, task
bank = SwitchBank.create(sys.argv[1])
bank.add("a", task(0))
bank._lock.acquire()  # as a thread that is not in the fork
asked, answers = os.pipe()
child = os.fork()
if not child:
    assert_same(bank.get("a"), task(0))
    for change in (lambda: bank.add("b", task(1)), lambda: bank.remove("a"), bank.compact):
        try:
            change()
        except SwitchBankError as error:
            os.write(answers, f"{error}\\n".encode())
    time.sleep(60)
said = b""
while said.count(b"\\n") < 3:
    said += os.read(asked, 9999)
bank._lock.release()
bank.add("c", task(1))
bank.close()
SwitchBank.open(sys.argv[1], "a").close()  # though the fork lives on
os.kill(child, 9)
os.waitpid(child, 0)
print(said.decode())
"""
    done = run(script, path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("of which this one is a fork; change it there") == 3
    with SwitchBank.open(path) as bank:
        assert list(bank) == ["a", "c"]
        bank.verify()


def test_a_bank_that_is_left_open_says_nothing_at_the_end(path):
    script = """
import sys, threading
from sinewich_jax.switches.bank import SwitchBank
threading.keep = SwitchBank.create(sys.argv[1])  # to be found when os is gone
"""
    done = run(script, path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


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


def test_leaves_inside_of_leaves_are_no_tree(tmp_path):
    one = leaf(np.random.default_rng(0), (9,), 0.5)
    with pytest.raises(SwitchBankError, match=r"no place in .* as a tree .*'a/mask'.*SwitchBank"):
        save_switch(tmp_path / "one", Switch({"a": one, "a/mask": one}))
    assert not (tmp_path / "one").exists()


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

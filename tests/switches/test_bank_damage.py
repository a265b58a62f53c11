"""A bank that was damaged, cut, forged or killed: an error of its own, or what was committed."""

from __future__ import annotations

import copy
import dataclasses
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
import tracemalloc
import zlib

import ml_dtypes  # noqa: F401  (imported while memory is counted, it would be counted)
import numpy as np
import pytest

from sinewich_jax.switches.bank import SwitchBank, SwitchBankError
from sinewich_jax.switches.leaf import DenseLeaf, LeafSwitch, Switch
from sinewich_jax.switches.queries import QuerySet
from sinewich_jax.switches.router import Router
from sinewich_jax.switches.swb import entries, fields, index, text
from sinewich_jax.switches.swb.log import COMMIT, Record, aligned, crc_of, preamble
from sinewich_jax.switches.swb.log_file import LogFile
from tests.switches.samples import BASE, arrays, assert_same, leaf, packed, task


def router():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((8, 6)).astype(np.float32)
    return Router.fit(QuerySet(features, np.arange(8, dtype=np.int32) % 2, ("a", "b")), k=3)


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """The bytes of a bank, and what it held after each change by where that ended."""
    path = tmp_path_factory.mktemp("bank") / "tasks.swb"
    states = {}
    with SwitchBank.create(path, BASE) as bank:

        def note():
            states[bank.nbytes] = {name: digest(bank.get(name)) for name in bank.names} | {
                "router": bank.router() is not None
            }

        note()
        bank.add("first", task(0), {"alpha": 0.6}, codec="deflate")
        note()
        bank.add("second", task(1), codec="rice")
        note()
        bank.set_router(router())
        note()
        bank.add("first", task(2), codec="plane", replace=True)
        note()
        bank.remove("second")
        note()
        bank.add("second", task(3, 0.02), codec="grouped_coo")
        note()
    return path.read_bytes(), states


def digest(switch):
    return crc_of(
        [f"{name}{a.shape}{a.dtype}".encode() + a.tobytes() for name, a in arrays(switch).items()]
    )


def use(path):
    """Reads all that can be read, as users and the commands do."""
    with SwitchBank.open(path) as bank:
        bank.report().table(leaves=True)
        state = {name: digest(bank.get(name)) for name in bank.names}
        state["router"] = bank.router() is not None
        bank.verify()
        return state


# ---- cut and killed


def test_cut_at_every_byte_of_the_last_task(history, tmp_path):
    data, states = history
    path = tmp_path / "cut.swb"
    *_, before, end = sorted(states)
    path.write_bytes(data)
    for size in range(end, before - 1, -1):
        os.truncate(path, size)
        with SwitchBank.open(path) as bank:
            assert bank.names == (("first", "second") if size == end else ("first",))
            assert bank.tail == (0 if size == end else size - before)
    assert use(path) == states[before]


def test_cut_anywhere_it_is_as_after_the_last_change_that_was_whole(history, tmp_path):
    data, states = history
    path = tmp_path / "cut.swb"
    for size in [*range(0, len(data), 97), *(end + d for end in states for d in (-1, 0, 1))]:
        path.write_bytes(data[:size])
        whole = [end for end in states if end <= size]
        if whole:
            assert use(path) == states[max(whole)]
        else:
            with pytest.raises(SwitchBankError, match=r"cut short|starts with"):
                use(path)


def test_adding_goes_on_after_a_cut(history, tmp_path):
    data, states = history
    path = tmp_path / "cut.swb"
    *_, before, _ = sorted(states)
    middle = (before + len(data)) // 2
    for size in (before, before + 1, before + 64, middle, len(data) - 64, len(data) - 1):
        path.write_bytes(data[:size])
        with SwitchBank.open(path, "a") as bank:
            bank.add("second", task(3, 0.02), codec="grouped_coo")
        assert path.read_bytes() == data


WRITER = """
import sys
from tests.switches.samples import BASE, task
from sinewich_jax.switches.bank import SwitchBank
with SwitchBank.open(sys.argv[1], "a", base=BASE) as bank:
    for number in range(len(bank), 100_000):
        bank.add(f"task {number}", task(number % 5), codec=("auto", "plane")[number % 2])
        print(number, flush=True)
"""


@pytest.mark.slow
def test_a_killed_writer_loses_nothing_that_was_committed(tmp_path):
    path, chance = tmp_path / "tasks.swb", random.Random(0)
    SwitchBank.create(path, BASE).close()
    here = pathlib.Path(__file__).parents[2]
    for _ in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, path],
            env=os.environ | {"PYTHONPATH": str(here)},
            stdout=subprocess.PIPE,
            text=True,
        )
        with writer.stdout:
            writer.stdout.readline()  # it is writing
            time.sleep(chance.uniform(0, 0.3))
            writer.send_signal(signal.SIGKILL)
            told = writer.stdout.read().splitlines()
        assert writer.wait() == -signal.SIGKILL
        with SwitchBank.open(path) as bank:
            # Those that it told of, and perhaps one more that it could not tell of any more.
            assert bank.names == tuple(f"task {number}" for number in range(len(bank)))
            assert not told or int(told[-1]) + 1 <= len(bank) <= int(told[-1]) + 2
            for number, name in enumerate(bank.names):
                assert_same(bank.get(name), task(number % 5))
            bank.verify()
    assert len(bank.names) > 8


# ---- mutations


class Forge:
    """Mutates a bank: its bytes, or its JSON with every checksum made to fit again."""

    def __init__(self, data, seed):
        self.data, self.chance = data, random.Random(seed)
        log_changes = _changes(data)
        self.changes = log_changes

    def __call__(self):
        kinds = (self.flip, self.overwrite, self.cut, self.insert, self.repeat, self.zero)
        lies = (self.lie, self.lie, self.lie, self.shuffle, self.squeeze)
        return self.chance.choice((*kinds, *lies))()

    def _span(self, longest):
        at = self.chance.randrange(len(self.data))
        return at, at + self.chance.randrange(1, longest)

    def flip(self):
        new = bytearray(self.data)
        for _ in range(self.chance.choice((1, 1, 2, 8))):
            new[self.chance.randrange(len(new))] ^= 1 << self.chance.randrange(8)
        return bytes(new)

    def overwrite(self):
        new = bytearray(self.data)
        at, end = self._span(self.chance.choice((2, 9, 300)))
        new[at:end] = self.chance.randbytes(len(new[at:end]))
        return bytes(new)

    def zero(self):
        at, end = self._span(self.chance.choice((9, 300, len(self.data))))
        return self.data[:at] + bytes(len(self.data[at:end])) + self.data[end:]

    def cut(self):
        at, end = self._span(500)
        return self.data[: self.chance.choice((at, end))] + self.chance.choice(
            (b"", self.data[end:])
        )

    def insert(self):
        at = self.chance.randrange(len(self.data) + 1)
        more = self.chance.randbytes(self.chance.choice((1, 8, 64, 640)))
        return self.data[:at] + more + self.data[at:]

    def repeat(self):
        at, end = self._span(2000)
        if self.chance.random() < 0.5:
            at, end = at // 64 * 64, aligned(end)
        to = self.chance.choice((end, self.chance.randrange(len(self.data))))
        return self.data[:to] + self.data[at:end] + self.data[to:]

    def shuffle(self):
        """Whole changes in another order, twice, or missing, all of it sealed again."""
        changes = list(self.changes)
        at = self.chance.randrange(len(changes))
        if self.chance.random() < 0.5:
            changes.insert(self.chance.randrange(len(changes)), changes[at])
        elif self.chance.random() < 0.5:
            del changes[at]
        else:
            changes[at] = self.chance.sample(changes[at], len(changes[at]))
            kind, payload = changes[at][0]
            changes[at][0] = (self.chance.choice((kind, 1, 2, 3, 4, 5, 6, 7, 2**32 - 1)), payload)
        return sealed(changes)

    def squeeze(self):
        """A stream that is none, cut, longer, or more than it should be, sealed again."""
        change = self.chance.randrange(len(self.changes))
        number = len(self.changes[change]) - 1

        def spoil(stream):
            at, new = self.chance.randrange(len(stream)), bytearray(stream)
            new[at] ^= 1 << self.chance.randrange(8)
            more = stream + self.chance.randbytes(9)
            return self.chance.choice((bytes(new), stream[:at], more, bomb(1 << 22), b""))

        return sealed(self.changes, {(change, number): spoil})

    def lie(self):
        changes = [list(change) for change in self.changes]
        change = self.chance.choice(changes)
        number = self.chance.choice([i for i, one in enumerate(change) if one[0] != index.BLOBS])
        kind, payload = change[number]
        content = text.load(payload)
        blobs = change[number - 1][1] if number else b""
        for _ in range(self.chance.choice((1, 1, 1, 2, 4))):
            content = self._lied(content)
        if self.chance.random() < 0.5:
            _fit_checksums(content, blobs)
        change[number] = (kind, self._text(content))
        return sealed(changes)

    def _text(self, content):
        try:
            data = text.dump(content)
        except (ValueError, TypeError):
            import json

            data = json.dumps(content, default=str).encode("ascii", "replace")
        odd = (data[:-1], data + b"}", b"[" * 50_000, b"\xff" + data, b"9" * 5_000, b"null", b"")
        return self.chance.choice(odd) if self.chance.random() < 0.04 else data

    def _lied(self, content):
        """The JSON with one node of it, anywhere, made something else."""
        nodes = list(_nodes(content))
        if not nodes:
            return self._value(content)
        content = copy.deepcopy(content)
        container, key = self.chance.choice(list(_nodes(content)))
        what = self.chance.random()
        if what < 0.1:
            del container[key]
        elif what < 0.2 and isinstance(container, list):
            container.insert(key, container[key])
        elif what < 0.3 and isinstance(container, dict):
            container[self.chance.choice(("more", "", "kind", "count"))] = container[key]
        elif what < 0.4:
            other, where = self.chance.choice(nodes)
            container[key] = copy.deepcopy(other[where])
        else:
            container[key] = self._value(container[key])
        return content

    def _value(self, old):
        near = [old + d for d in (-1, 1, 7, 64)] if type(old) is int else []
        large = [2**31, 2**32, 2**40, 2**62, 2**63, 2**64, 10**30, -1, 0, 1]
        strings = ["", "plane", "rice", "deflate", "empty", "packed", "dense", "switch", "\ud800"]
        strings += ["float64", "bfloat16", "object", "block/kernel", "x" * 300]
        other = [
            None,
            True,
            [],
            {},
            [[]],
            [0, 0, 0],
            1e308,
            -0.5,
            1e-50,
            float("inf"),
            float("nan"),
        ]
        return self.chance.choice((*near, *near, *near, *large, *strings, *other))


def _changes(data):
    """What a whole bank holds, its JSON inflated, read by no code of the reader but the heads."""
    from sinewich_jax.switches.swb.log import scan

    found = scan(lambda at, count: data[at : at + count], len(data), pathlib.Path("bank"))
    words, changes = b"", []
    for change in found.changes:
        payloads = [(r.kind, data[r.payload : r.payload + r.length]) for r in change]
        changes.append(
            [(k, p if k == index.BLOBS else _inflated(p, words + text._WORDS)) for k, p in payloads]
        )
        words = changes[0][0][1]
    return changes


def _inflated(stream, words):
    return zlib.decompressobj(-15, zdict=words).decompress(stream)


def sealed(changes, spoil=None):
    """A file of these changes with their JSON deflated and all checksums right.

    ``spoil`` maps (change, record) to a function of the deflated bytes.
    """
    parts, spoil = [preamble()], spoil or {}
    seal, position, words = crc_of(parts), len(parts[0]), b""
    for at, change in enumerate(changes):
        packed = [(k, p if k == index.BLOBS else text.deflate(p, words)) for k, p in change]
        packed = [(k, spoil.get((at, i), bytes)(p)) for i, (k, p) in enumerate(packed)]
        words = words if at else changes[0][0][1]
        for kind, payload in (*packed, (COMMIT, b"")):
            record = Record(kind, position, len(payload), crc_of([payload]), seal)
            parts += [record.head, payload, bytes(record.end - record.payload - len(payload))]
            position, seal = record.end, record.seal
    return b"".join(parts)


def _nodes(content):
    if not isinstance(content, dict | list):
        return
    for key, child in list(content.items() if isinstance(content, dict) else enumerate(content)):
        yield content, key
        if isinstance(child, dict | list):
            yield from _nodes(child)


def _fit_checksums(content, blobs):
    """Makes the checksum of every leaf or array that has one that of its blobs."""
    cursor = entries.Cursor()

    def crc(places):
        return crc_of([blobs[place.offset : place.offset + place.length] for place in places])

    try:
        if "leaves" in content:
            for row in content["leaves"]:
                found = crc(entries.from_json(row, cursor).blobs)
                if "crc" in row:
                    row["crc"] = found
                else:
                    row["numbers"][2] = found
        elif "arrays" in content:
            for _, one in sorted(content["arrays"].items()):
                one["crc"] = crc(fields._entry(one, cursor)[2])
    except (ValueError, TypeError, AttributeError):
        return  # one of the lies


def fuzz(history, tmp_path, count, seed):
    """Uses mutants; returns how many could be read."""
    data, states = history
    path = tmp_path / "mutant.swb"
    forge = Forge(data, seed)
    allowed = 0  # what the bank takes that was not damaged, after any of its changes
    for end in states:
        path.write_bytes(data[:end])
        use(path)
        tracemalloc.start()
        use(path)
        allowed = max(allowed, tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    tracemalloc.start()
    try:
        survivors = 0
        for number in range(count):
            mutant = forge()
            path.write_bytes(mutant)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            try:
                state = use(path)
            except SwitchBankError as error:
                assert str(error)
            else:
                survivors += 1
                if mutant in (data[:at] for at in range(len(data) + 1)):
                    assert state in states.values()
            peak = tracemalloc.get_traced_memory()[1] - before
            # JSON that was inflated, and grown in steps for it.
            most = allowed + 2 * text.limit(len(mutant))
            assert peak <= most, (seed, number, peak, allowed, len(mutant))
        return survivors
    finally:
        tracemalloc.stop()


def test_mutants(history, tmp_path):
    fuzz(history, tmp_path, 120, seed=1)


@pytest.mark.slow
def test_two_thousand_mutants(history, tmp_path):
    survivors = fuzz(history, tmp_path, 2_000, seed=0)
    assert 0 < survivors < 1_000  # neither all the same nor mostly harmless


def test_changed_bytes_are_never_taken_for_content(history, tmp_path):
    """Without new checksums a mutant is an error, or one of the states that were committed."""
    data, states = history
    path, forge = tmp_path / "mutant.swb", Forge(data, 5)
    for number in range(120):
        mutant = (forge.flip, forge.overwrite, forge.zero, forge.cut, forge.insert, forge.repeat)[
            number % 6
        ]()
        path.write_bytes(mutant)
        try:
            state = use(path)
        except SwitchBankError:
            continue
        assert state in states.values()
        end = max(end for end, one in states.items() if one == state)
        # All that is left is what was there, and behind it nothing that could be read.
        assert mutant[:end] == data[:end] or mutant == data


def test_every_flipped_bit_of_a_file_is_found(history, tmp_path):
    data, _ = history
    path = tmp_path / "flipped.swb"
    for at in range(0, len(data), 61):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        with pytest.raises(SwitchBankError, match=r"tasks|damaged|flipped"):
            use(path)


# ---- lies


def forged(path, change):
    """Rewrites a bank of one task after ``change(header, task)`` altered its JSON."""
    changes = _changes(path.read_bytes())
    header, content = text.load(changes[0][0][1]), text.load(changes[1][1][1])
    change(header, content)
    changes[0][0] = (index.HEADER, text.dump(header))
    changes[1][1] = (index.INDEX, text.dump(content))
    path.write_bytes(sealed(changes))


def leaf_named(content, path):
    return next(one for one in content["leaves"] if one["path"] == path)


def number(t, path, at, value):
    leaf_named(t, path)["numbers"][at] = value


LIES = {
    "its blobs would take .* bytes, expected": lambda h, t: number(t, "block/kernel", 1, 1),
    r"blobs would take 1099511\d* bytes": lambda h, t: number(t, "block/kernel", 1, 2**40),
    "blobs would take 4611686018": lambda h, t: number(t, "block/kernel", 1, 2**62),
    "its mask has -1, expected a whole": lambda h, t: number(t, "block/kernel", 1, -1),
    "checksum differs from the content": lambda h, t: leaf_named(t, "scale").update(crc=1),
    "checksum differs from the content at": lambda h, t: number(t, "block/kernel", 2, 1),
    "checksum differs from the content;?": lambda h, t: number(t, "block/frozen", 2, 1),
    "its crc has 4294967296": lambda h, t: number(t, "block/kernel", 2, 2**32),
    r"codec 'zip'; known: .*plane": lambda h, t: leaf_named(t, "block/bias")["codecs"].__setitem__(
        0, "zip"
    ),
    r"codecs are \['deflate', 'rice'\], expected": lambda h, t: leaf_named(
        t, "block/kernel"
    ).update(codecs=["deflate", "rice"]),
    r"codecs are \['plane'\], expected": lambda h, t: leaf_named(t, "block/kernel").update(
        codecs=["plane"]
    ),
    r"codecs are \['empty', 'plane'\], expected": lambda h, t: leaf_named(t, "block/frozen").update(
        codecs=["empty", "plane"]
    ),
    r"numbers are \[1, 2, 3\], expected count": lambda h, t: leaf_named(t, "block/kernel").update(
        numbers=[1, 2, 3]
    ),
    r"its shape is \(41, 50\), expected \(40, 50\)": lambda h, t: leaf_named(
        t, "block/kernel"
    ).update(shape=[41, 50]),
    "the base has no such leaf": lambda h, t: leaf_named(t, "block/bias").update(path="bias"),
    "it occurs twice": lambda h, t: t["leaves"].append(t["leaves"][0]),
    "its count has 51, expected a whole number from 0 to 50": lambda h, t: number(
        t, "block/bias", 0, 51
    ),
    r"its blobs would take \d+ bytes, expected \d": lambda h, t: leaf_named(t, "block/bias").update(
        bits=4
    ),
    "its bits has 17": lambda h, t: leaf_named(t, "block/bias").update(bits=17),
    "its kind is 'trinary'": lambda h, t: t["leaves"][0].update(kind="trinary"),
    "says 'more', which is not known": lambda h, t: t["leaves"][0].update(more=1),
    "its dtype is 'object'": lambda h, t: leaf_named(t, "scale").update(dtype="object"),
    "its knob is None": lambda h, t: number(t, "block/bias", 3, None),
    "its knob is .* expected a float32 number": lambda h, t: number(t, "block/bias", 3, 1e39),
}


@pytest.mark.parametrize("message", LIES)
def test_lies_with_right_checksums_are_named(tmp_path, message):
    path = tmp_path / "bank.swb"
    with SwitchBank.create(path, BASE) as bank:
        bank.add("eurosat", task(0))
    forged(path, LIES[message])
    with pytest.raises(SwitchBankError, match=message) as error:
        use(path)
    assert "'eurosat'" in str(error.value) and str(path) in str(error.value)
    assert "leaf" in str(error.value) or "blob" in str(error.value)


PLANES = {
    "its sign is set where its mask is not": ("sign", b"\xff"),
    "active entry of it has the level 0": ("levels", bytes(14)),
    "its levels are set where its mask is not": ("levels", b"\xff"),
    "active ones; expected": ("mask", b"\xff"),
    "ones behind its last entry": ("mask", b"\xff" * 7),
    "its knob is not finite": ("knob", b"\0\0\xc0\x7f"),
}


@pytest.mark.parametrize("message", PLANES)
def test_planes_that_contradict_each_other_with_right_checksums(tmp_path, message):
    """What :meth:`SwitchBank.add` would refuse is refused by the reader too."""
    path, (field, lie) = tmp_path / "bank.swb", PLANES[message]
    one = leaf(np.random.default_rng(1), (50,), 0.4, bits=3)
    knob = np.ones(50, np.float32)
    with SwitchBank.create(path) as bank:
        bank.add("eurosat", Switch({"w": dataclasses.replace(one, knob=knob)}), codec="plane")
    changes = _changes(path.read_bytes())
    content, blobs = text.load(changes[1][1][1]), bytearray(changes[1][0][1])
    place = getattr(entries.from_json(content["leaves"][0], entries.Cursor()), field)
    place = getattr(place, "place", place)
    blobs[place.offset : place.offset + len(lie)] = lie
    _fit_checksums(content, bytes(blobs))
    changes[1] = [(index.BLOBS, bytes(blobs)), (index.INDEX, text.dump(content))]
    path.write_bytes(sealed(changes))
    with SwitchBank.open(path) as bank, pytest.raises(SwitchBankError, match=message) as error:
        bank.get("eurosat")
    assert "the leaf 'w' of the task 'eurosat'" in str(error.value)


HEADERS = {
    "has the format 2": lambda h, t: h.update(format=2),
    "no object of format, base": lambda h, t: h.update(more=1),
    "not 'sha256:' and 64": lambda h, t: h["base"].update(fingerprint="sha256:12"),
    "of its base occurs twice": lambda h, t: h["base"]["leaves"].append(h["base"]["leaves"][0]),
    "its frequencies are no string": lambda h, t: h.update(frequencies=3),
    "no object of name, meta": lambda h, t: t.pop("meta"),
    "printable characters": lambda h, t: t.update(name="\n"),
    "its leaves are no list": lambda h, t: t.update(leaves={}),
}


@pytest.mark.parametrize("message", HEADERS)
def test_headers_and_tasks_that_are_none(tmp_path, message):
    path = tmp_path / "bank.swb"
    with SwitchBank.create(path, BASE) as bank:
        bank.add("eurosat", task(0))
    forged(path, HEADERS[message])
    with pytest.raises(SwitchBankError, match=rf"bank\.swb cannot be read at byte.*{message}"):
        SwitchBank.open(path)


def bomb(size, letter=b" "):
    """A few bytes that inflate to at least ``size``: one block again and again, and the end."""
    made = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = made.compress(letter * (1 << 20)) + made.flush(zlib.Z_FULL_FLUSH)
    return block * -(-size >> 20) + made.flush()


STREAMS = {
    r"inflates to more than \d+": lambda data: bomb(4 << 30, b"["),
    r"JSON of \d+ bytes inflates to more": lambda data: bomb(1 << 20),
    "deflated JSON ends too early": lambda data: data[:-1],
    "deflated JSON has bytes behind its end": lambda data: data + b"\0",
    "cannot be inflated": lambda data: b"\xff" + data,
    "its deflated JSON ends": lambda data: b"",
}


@pytest.mark.parametrize("message", STREAMS)
@pytest.mark.parametrize("where", [(0, 0), (1, 1), (2, 1), (3, 0)])
def test_streams_that_cannot_be_inflated(tmp_path, where, message):
    """Header, index, router and removal; one that inflates to 4 GiB takes no memory."""
    path = tmp_path / "bank.swb"
    with SwitchBank.create(path, BASE) as bank:
        bank.add("eurosat", task(0))
        bank.set_router(router())
        bank.remove("eurosat")
    path.write_bytes(sealed(_changes(path.read_bytes()), {where: STREAMS[message]}))
    size = path.stat().st_size
    tracemalloc.start()
    try:
        with pytest.raises(SwitchBankError, match=rf"bank\.swb cannot be read at byte.*{message}"):
            SwitchBank.open(path)
        # The text may have been grown in steps; all of it is in proportion to the file.
        assert tracemalloc.get_traced_memory()[1] < 2 * text.limit(size) + 4 * size + 200_000
    finally:
        tracemalloc.stop()


def test_what_is_very_regular_is_stored_so_that_it_can_be_read(tmp_path):
    meta = {"note": "a" * 1_000_000}
    with SwitchBank.create(tmp_path / "bank.swb", BASE) as bank:
        bank.add("eurosat", task(0), meta)
    with SwitchBank.open(tmp_path / "bank.swb") as bank:
        assert bank.meta("eurosat") == meta
        bank.verify()


@pytest.mark.parametrize("shape", [[2**40], [2**31, 2**31], [2**62] * 8, [0, 2**62]])
@pytest.mark.parametrize("count", [0, 1])
def test_shapes_that_nobody_vouches_for_take_no_memory(tmp_path, shape, count):
    """A bank without a base, or with a base as absurd: a few bytes may not ask for terabytes."""
    path = tmp_path / "bank.swb"
    empty = leaf(np.random.default_rng(0), (64,), 0.0)
    one = LeafSwitch(packed(np.arange(64) == 5), empty.sign, empty.knob, empty.levels, (64,))
    for base in (None, {"w": np.zeros(64, np.float32)}):
        with SwitchBank.create(path, base, overwrite=True) as bank:
            bank.add("a", Switch({"w": one if count else empty}), codec="rice" if count else "auto")

        def change(header, content, base=base):
            content["leaves"][0]["shape"] = shape
            if base is not None:
                header["base"]["leaves"][0]["shape"] = shape

        forged(path, change)
        tracemalloc.start()
        try:
            with SwitchBank.open(path) as bank:
                if 0 in shape and not count:
                    bank.get("a")
                    continue
                match = r"would take \d+ bytes of memory|its count has"
                for get in (lambda: bank.get("a"), lambda: bank.leaf("a", "w")):
                    with pytest.raises(SwitchBankError, match=match):
                        get()
            assert tracemalloc.get_traced_memory()[1] < 200_000
        finally:
            tracemalloc.stop()


def test_with_its_base_a_bank_may_be_as_sparse_as_it_likes(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "_ALWAYS", 0)
    monkeypatch.setattr(index, "_EXPANSION", 1)
    base = {"w": np.zeros(1 << 17, np.float32), "v": np.zeros(1 << 17, np.float32)}
    none = leaf(np.random.default_rng(0), (1 << 17,), 0.0)
    mask = packed(np.arange(1 << 17) == 77)
    first = LeafSwitch(mask, none.sign, none.knob, none.levels, none.shape)
    one = Switch({"w": first, "v": none})
    with SwitchBank.create(tmp_path / "bank.swb", base) as bank:
        bank.add("a", one)
        assert_same(bank.get("a"), one)
    unchecked = SwitchBank.open(tmp_path / "bank.swb")
    with unchecked, pytest.raises(SwitchBankError, match="pass the base when opening"):
        unchecked.get("a")
    with SwitchBank.open(tmp_path / "bank.swb", base=base) as bank:
        assert_same(bank.get("a"), one)


def test_leaves_that_do_not_change_share_one_plane(tmp_path):
    empty = leaf(np.random.default_rng(0), (1 << 16,), 0.0)
    with SwitchBank.create(tmp_path / "bank.swb") as bank:
        bank.add("a", Switch({str(number): empty for number in range(50)}))
        bank.get("a")
        tracemalloc.start()
        found = bank.get("a")
        assert tracemalloc.get_traced_memory()[1] < 4 * (1 << 13) + 100_000
        tracemalloc.stop()
        assert_same(found, Switch({str(number): empty for number in range(50)}))


def test_a_file_that_is_cut_while_it_is_open(tmp_path):
    path = tmp_path / "bank.swb"
    with SwitchBank.create(path) as bank:
        bank.add("a", Switch({"w": DenseLeaf(np.arange(9.0))}))
    log = LogFile.open(path)
    os.truncate(path, 100)
    with pytest.raises(SwitchBankError, match="cut short while open"):
        log.payload(log.changes[1][0])
    log.close()

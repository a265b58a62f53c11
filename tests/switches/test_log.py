from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sinewich_jax.switches.swb import log as log_format
from sinewich_jax.switches.swb.log import (
    ALIGNMENT,
    COMMIT,
    Record,
    SwitchBankError,
    crc_of,
    preamble,
    scan,
)
from sinewich_jax.switches.swb.log_file import Draft, LogFile, locked, written

BLOB, TEXT = 2, 3
CHANGES = [
    [(TEXT, b"first")],
    [(BLOB, b"x" * 64), (TEXT, b"")],
    [(BLOB, bytes(100)), (TEXT, b"y" * 63)],
]


def drafts(change):
    # In two pieces: a payload may come in any number.
    return [Draft(kind, [data[:7], data[7:]]) for kind, data in change]


@pytest.fixture
def path(tmp_path):
    written(tmp_path / "log", [drafts(change) for change in CHANGES]).close()
    return tmp_path / "log"


def contents(log):
    return [[(r.kind, bytes(log.checked(r))) for r in change] for change in log.changes]


def read(path):
    log = LogFile.open(path)
    try:
        return contents(log)
    finally:
        log.close()


def held(data):
    """As :func:`read`, of bytes that are in no file."""

    def part(position, count):
        return data[position : position + count]

    found = scan(part, len(data), Path("log"))
    changes = [[(r.kind, part(r.payload, r.length), r.crc) for r in c] for c in found.changes]
    if any(crc_of([payload]) != crc for change in changes for _, payload, crc in change):
        raise SwitchBankError("damaged: a checksum differs")
    return found, [[one[:2] for one in change] for change in changes]


def commit_ends(data):
    """Where each change ends, found without the reader."""
    ends, position = [], ALIGNMENT
    for change in CHANGES:
        for _, payload in change:
            position += ALIGNMENT + -(-len(payload) // ALIGNMENT) * ALIGNMENT
        position += ALIGNMENT
        ends.append(position)
    assert ends[-1] == len(data)
    return ends


def test_what_is_written_comes_back(path):
    assert read(path) == CHANGES
    log = LogFile.open(path, writable=True)
    records = log.append(drafts([(BLOB, b"more")]))
    assert [r.kind for r in records] == [BLOB]
    assert contents(log) == [*CHANGES, [(BLOB, b"more")]]
    log.close()
    assert read(path) == [*CHANGES, [(BLOB, b"more")]]


def test_the_layout_is_the_documented_one(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89SWBANK\n"
    assert int.from_bytes(data[8:12], "little") == 1
    assert data[64:68] == b"SWBR"
    assert int.from_bytes(data[68:72], "little") == TEXT
    assert int.from_bytes(data[72:80], "little") == 64  # where it begins
    assert int.from_bytes(data[80:88], "little") == 5
    assert data[128:192] == b"first".ljust(64, b"\0")
    assert int.from_bytes(data[196:200], "little") == COMMIT


def test_the_same_changes_are_the_same_bytes(path, tmp_path):
    log = written(tmp_path / "other", [drafts(CHANGES[0])])
    for change in CHANGES[1:]:
        log.append(drafts(change))
    log.close()
    assert (tmp_path / "other").read_bytes() == path.read_bytes()


def test_payloads_lie_at_multiples_of_64_and_stay_after_closing(path):
    log = LogFile.open(path)
    records = [record for change in log.changes for record in change]
    assert all(record.payload % ALIGNMENT == 0 for record in records)
    view = log.checked(records[1])
    log.close()
    assert bytes(view) == b"x" * 64
    with pytest.raises(SwitchBankError, match="is closed"):
        log.payload(records[1])


def test_cut_at_any_byte_it_holds_what_was_committed(path):
    data = path.read_bytes()
    ends = commit_ends(data)
    for size in range(len(data) + 1):
        whole = sum(end <= size for end in ends)
        if not whole:
            with pytest.raises(SwitchBankError, match=r"cut short|starts with"):
                held(data[:size])
            continue
        found, changes = held(data[:size])
        assert (found.end, changes) == (ends[whole - 1], CHANGES[:whole]), size
    for size in range(ends[0], len(data), 41):
        path.write_bytes(data[:size])
        log = LogFile.open(path)
        whole = sum(end <= size for end in ends)
        assert contents(log) == CHANGES[:whole]
        assert (log.end, log.tail) == (ends[whole - 1], size - ends[whole - 1])
        log.close()


@pytest.mark.parametrize("cut", [1, 63, 64, 65, 130, 200])
def test_a_writer_goes_on_where_one_was_killed(path, cut):
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    log = LogFile.open(path, writable=True)
    assert log.tail == 0 and path.stat().st_size == log.end
    log.append(drafts(CHANGES[2]))
    log.close()
    assert path.read_bytes() == data


@pytest.mark.parametrize("zeros", [1, 63, 64, 1000, 3 << 20])
def test_zeros_behind_the_end_are_no_damage(path, zeros):
    path.write_bytes(path.read_bytes() + bytes(zeros))
    log = LogFile.open(path)
    assert (contents(log), log.tail) == (CHANGES, zeros)
    log.close()
    LogFile.open(path, writable=True).close()
    assert len(path.read_bytes()) == commit_ends(path.read_bytes())[-1]


def test_any_flipped_bit_is_found(path):
    data = path.read_bytes()
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        with pytest.raises(SwitchBankError, match=r"damaged|starts with"):
            held(bytes(changed))
        if at % 29 == 0:
            path.write_bytes(changed)
            with pytest.raises(SwitchBankError, match=r"damaged|starts with"):
                read(path)


@pytest.mark.parametrize("width", [1, 63, 64, 128, 192])
def test_bytes_that_came_or_went_are_found(path, width):
    data = path.read_bytes()
    for at in range(ALIGNMENT, len(data) - ALIGNMENT, 7):
        for changed in (
            data[:at] + b"\x07" * width + data[at:],
            data[:at] + data[at : at + width] + data[at:],
            data[:at] + data[at + width :],
        ):
            try:
                _, found = held(changed)
            except SwitchBankError:
                continue
            # What is left is whole: the last record went, or its padding did.
            assert len(changed) < len(data)
            assert found == CHANGES[: len(found)]
            assert changed.startswith(data[: commit_ends(data)[len(found) - 1]])


def test_zeros_before_a_commit_mark_are_damage(path):
    data = path.read_bytes()
    start = commit_ends(data)[0]
    path.write_bytes(data[:start] + bytes(64) + data[start + 64 :])
    with pytest.raises(
        SwitchBankError, match=rf"damaged at byte {start}.*commit mark follows"
    ) as e:
        LogFile.open(path)
    assert f"cut it to {start} bytes to keep" in str(e.value)


def test_a_mark_far_behind_is_found_at_any_byte(path, monkeypatch):
    monkeypatch.setattr(log_format, "_AT_ONCE", 128)
    data = path.read_bytes()
    mark = data[-64:]
    for gap in range(64, 400, 7):
        path.write_bytes(data + bytes(gap) + mark)
        with pytest.raises(
            SwitchBankError, match=f"a commit mark follows at byte {len(data) + gap}"
        ):
            LogFile.open(path)


def test_garbage_behind_the_end_is_damage_and_can_be_cut(path):
    data = path.read_bytes()
    path.write_bytes(data + b"\x01" * 64)
    with pytest.raises(SwitchBankError, match=f"cut it to {len(data)} bytes"):
        LogFile.open(path)


def test_records_in_the_wrong_place_are_damage(path):
    data = path.read_bytes()
    first = Record(TEXT, 999936, 0, 0, 0)
    path.write_bytes(data + first.head)
    with pytest.raises(SwitchBankError, match="belongs elsewhere"):
        LogFile.open(path)


def test_a_record_of_another_history_is_damage(path):
    """In the right place, and right in itself: but the record before it is not the one it knew."""
    data = bytearray(path.read_bytes())
    log = LogFile.open(path)
    record = log.changes[1][0]
    log.close()
    data[record.start : record.payload] = record._replace(before=record.before ^ 1).head
    path.write_bytes(data)
    with pytest.raises(SwitchBankError, match="belongs elsewhere"):
        LogFile.open(path)


def test_other_files_and_versions(tmp_path, path):
    with pytest.raises(SwitchBankError, match="found nothing"):
        LogFile.open(tmp_path / "absent")
    with pytest.raises(SwitchBankError, match="found a folder"):
        LogFile.open(tmp_path)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(SwitchBankError, match=r"starts with b'hello'.* no switch bank"):
        LogFile.open(tmp_path / "text")
    path.write_bytes(preamble(2) + path.read_bytes()[64:])
    with pytest.raises(SwitchBankError, match="version 2, expected 1"):
        LogFile.open(path)
    with pytest.raises(SwitchBankError, match="there already"):
        LogFile.create(path)


def test_one_writer_and_any_readers(path):
    log = LogFile.open(path, writable=True)
    with pytest.raises(SwitchBankError, match="being written by another process"):
        LogFile.open(path, writable=True)
    with pytest.raises(SwitchBankError, match="being written"), locked(path):
        pass
    reader = LogFile.open(path)
    log.append(drafts([(TEXT, b"later")]))
    assert contents(reader) == CHANGES  # what was there when it was opened
    with pytest.raises(SwitchBankError, match="open for reading"):
        reader.append(drafts([(TEXT, b"no")]))
    assert read(path)[-1] == [(TEXT, b"later")]
    log.close()
    reader.close()
    LogFile.open(path, writable=True).close()


def test_only_logs_and_empty_files_are_locked_to_be_replaced(path, tmp_path):
    for content in (path.read_bytes(), path.read_bytes()[:8] + b"damaged", b""):
        path.write_bytes(content)
        with locked(path):
            pass
    path.write_bytes(b"\x89PNG")
    with pytest.raises(SwitchBankError, match="no switch bank and is not replaced"), locked(path):
        pass


def test_a_closed_log_says_so(path):
    log = LogFile.open(path, writable=True)
    log.close()
    with pytest.raises(SwitchBankError, match="is closed; open it again"):
        log.append(drafts([(TEXT, b"no")]))


def test_a_file_that_was_replaced_while_it_was_locked(path, monkeypatch):
    import fcntl

    def replace(*_):
        os.replace(other, path)

    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    monkeypatch.setattr(fcntl, "flock", replace)
    with pytest.raises(SwitchBankError, match="was replaced while"):
        LogFile.open(path, writable=True)


def test_a_file_system_without_locks(path, monkeypatch):
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(SwitchBankError, match="cannot be locked"):
        LogFile.open(path, writable=True)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_write_that_fails_leaves_nothing_behind(path, monkeypatch, code):
    """At whatever write or wait it fails, the next change goes where it should have gone."""
    data, real = path.read_bytes(), {"pwrite": os.pwrite, "fsync": os.fsync}
    log = LogFile.open(path, writable=True)
    for name, calls in (("pwrite", 9), ("fsync", 2)):
        for number in range(calls):
            left = [number]

            def fail(*args, name=name, left=left):
                left[0] -= 1
                if left[0] == -1:
                    raise OSError(code, os.strerror(code))
                return real[name](*args)

            monkeypatch.setattr(os, name, fail)
            with pytest.raises(SwitchBankError, match=r"no space left|could not be written"):
                log.append(drafts(CHANGES[2]))
            monkeypatch.setattr(os, name, real[name])
            assert path.read_bytes() == data
    log.append(drafts(CHANGES[2]))
    log.close()
    assert read(path) == [*CHANGES, CHANGES[2]]


def test_a_new_file_is_whole_or_not_there(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(SwitchBankError, match="could not be written"):
        written(tmp_path / "log", [drafts(CHANGES[0])])
    assert list(tmp_path.iterdir()) == []

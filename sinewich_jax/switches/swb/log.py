"""A file of records to which records are appended, and in which nothing committed is ever lost.

    preamble    64 bytes: magic, version (u32), CRC-32 of both (u32), zeros
    record      64 bytes of head, the payload, zeros up to a multiple of 64
    record      ...

    head        marker "SWBR", kind (u32), position in the file (u64), length of the payload (u64),
                CRC-32 of the payload (u32), CRC-32 of the head before (u32), zeros, CRC-32 of these
                60 bytes (u32); all little-endian

A commit mark is a record without payload. As every head holds the CRC of the one before, it vouches
for all records before it, their order and their places. A writer writes the records of one change,
waits for the disk, writes the mark, and waits again.

What a killed writer leaves behind the last mark is part of a record, whole records, or zeros (a
file that was lengthened but not written before the power went): that is passed over. Anything else
there, or a mark behind a place that cannot be read, is damage and said to be damage. Only a file
that was cut off, or whose end was set to zero, looks like a writer that was killed.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from sinewich_jax.errors import CheckpointError

MAGIC = b"\x89SWBANK\n"
VERSION = 1
ALIGNMENT = 64
COMMIT = 1  # kinds above it are those of whoever uses the log

_MARKER = b"SWBR"
_PREAMBLE = struct.Struct("<8sI")
_HEAD = struct.Struct("<4sIQQII28x")
_CRC = struct.Struct("<I")
_AT_ONCE = 1 << 20

Read = Callable[[int, int], bytes]
"""``(position, count)`` to the bytes that are there: fewer where the file ends."""


class SwitchBankError(CheckpointError):
    """A switch bank that cannot be read or written; the message names file, task and leaf."""


class Record(NamedTuple):
    """A record as its head tells it.

    Attributes:
      kind: what it is.
      start: where its head begins; a multiple of 64.
      length: bytes of the payload.
      crc: CRC-32 of the payload.
      before: CRC-32 of the head before it, or of the preamble.
    """

    kind: int
    start: int
    length: int
    crc: int
    before: int

    @property
    def payload(self) -> int:
        """Where the payload begins."""
        return self.start + ALIGNMENT

    @property
    def end(self) -> int:
        """Where the next record begins."""
        return aligned(self.payload + self.length)

    @property
    def head(self) -> bytes:
        """Its first 64 bytes."""
        front = _HEAD.pack(_MARKER, self.kind, self.start, self.length, self.crc, self.before)
        return front + _CRC.pack(zlib.crc32(front))

    @property
    def seal(self) -> int:
        """What the head behind it says of it."""
        return zlib.crc32(self.head)


class Scan(NamedTuple):
    """What a file holds.

    Attributes:
      changes: the records of each change that was committed, without its commit mark.
      end: where the last commit mark ends, and all that is committed.
      seal: CRC-32 of the last head.
    """

    changes: tuple[tuple[Record, ...], ...]
    end: int
    seal: int


def aligned(position: int) -> int:
    """The next multiple of 64."""
    return -(-position // ALIGNMENT) * ALIGNMENT


def preamble(version: int = VERSION) -> bytes:
    """The first 64 bytes of a file."""
    front = _PREAMBLE.pack(MAGIC, version)
    return (front + _CRC.pack(zlib.crc32(front))).ljust(ALIGNMENT, b"\0")


def crc_of(chunks: Sequence[bytes | memoryview]) -> int:
    """The CRC-32 of bytes that follow each other."""
    crc = 0
    for chunk in chunks:
        crc = zlib.crc32(chunk, crc)
    return crc


def scan(read: Read, size: int, path: Path) -> Scan:
    """Goes from head to head; no payload is read.

    Args:
      read: gives bytes of the file.
      size: of the file.
      path: of the file, for messages.

    Returns:
      All that was committed.

    Raises:
      SwitchBankError: no bank, one of another version, one cut short in its first change, or one
        that was damaged.
    """
    seal = _check_preamble(read(0, ALIGNMENT), path)
    changes: list[tuple[Record, ...]] = []
    pending: list[Record] = []
    position = committed = ALIGNMENT
    committed_seal = seal
    while position < size:
        head = read(position, ALIGNMENT)
        record = _parse(head)
        if record is None and len(head) == ALIGNMENT and any(head):
            raise damaged(path, position, committed, "no record begins there")
        if record is None:
            break
        if (record.start, record.before) != (position, seal):
            raise damaged(path, position, committed, "a record is there that belongs elsewhere")
        if record.end > size:
            break
        if any(read(record.payload + record.length, record.end - record.payload - record.length)):
            raise damaged(path, position, committed, "its padding is not zero")
        position, seal = record.end, record.seal
        if record.kind == COMMIT:
            changes.append(tuple(pending))
            committed, committed_seal, pending = position, seal, []
        else:
            pending.append(record)
    if position < size and (mark := _find_commit(read, position, size)) is not None:
        what = f"no whole record begins there, but a commit mark follows at byte {mark}"
        raise damaged(path, position, committed, what)
    if not changes:
        raise SwitchBankError(
            f"{path} holds no whole first record: it was cut short, at {size} bytes; copy it again"
        )
    return Scan(tuple(changes), committed, committed_seal)


def damaged(path: Path, position: int, committed: int, what: str) -> SwitchBankError:
    """The error for something that no writer leaves behind."""
    keep = ""
    if committed > ALIGNMENT:
        keep = f", or cut it to {committed} bytes to keep what was committed before"
    return SwitchBankError(
        f"{path} is damaged at byte {position}: {what}; restore it from a copy{keep}"
    )


def _parse(head: bytes) -> Record | None:
    if len(head) < ALIGNMENT or not head.startswith(_MARKER):
        return None
    record = Record(*_HEAD.unpack(head[: _HEAD.size])[1:])
    return record if record.head == head else None


def _check_preamble(found: bytes, path: Path) -> int:
    if not found.startswith(MAGIC):
        raise SwitchBankError(
            f"{path} starts with {found[:8]!r}, expected {MAGIC!r}; it is no switch bank"
        )
    if len(found) < ALIGNMENT:
        raise SwitchBankError(f"{path} was cut short, at {len(found)} bytes; copy it again")
    version = _PREAMBLE.unpack_from(found)[1]
    if found != preamble(version):
        raise SwitchBankError(
            f"{path} is damaged in its first {ALIGNMENT} bytes; restore it from a copy"
        )
    if version != VERSION:
        raise SwitchBankError(
            f"{path} is a switch bank of version {version}, expected {VERSION}; read it with the "
            "version of the library that wrote it"
        )
    return zlib.crc32(found)


def _find_commit(read: Read, start: int, size: int) -> int | None:
    """Where behind ``start`` a commit mark is, at whatever byte: bytes may have come or gone."""
    pattern = _MARKER + COMMIT.to_bytes(4, "little")
    while start < size:
        # No more than is there: a read takes the memory that it is told, whatever it finds.
        block = read(start, min(_AT_ONCE + ALIGNMENT, size - start))
        at = block.find(pattern)
        while at >= 0:
            if _parse(block[at : at + ALIGNMENT]) is not None:
                return start + at
            at = block.find(pattern, at + 1)
        start += _AT_ONCE
    return None

"""The log on the disk: one writer at a time, any number of readers, payloads mapped into memory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sinewich_jax.errors import CheckpointError
from sinewich_jax.storage.atomic import atomic_write, is_full_disk, no_space
from sinewich_jax.switches.log import (
    ALIGNMENT,
    COMMIT,
    Record,
    Scan,
    SwitchBankError,
    crc_of,
    damaged,
    preamble,
    scan,
)

_BUSY = {errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK}


class Draft(NamedTuple):
    """A record that is to be written.

    Attributes:
      kind: what it is.
      chunks: the payload, in pieces.
    """

    kind: int
    chunks: Sequence[bytes | memoryview]


class LogFile:
    """An open log.

    Attributes:
      path: of the file.
      writable: whether records can be appended; then no other process can.
      changes: the records of each change that was committed.
      end: where the last commit mark ends.
      tail: bytes behind it that a killed writer left, or that another process is writing.
    """

    def __init__(self, path: Path, descriptor: int, writable: bool) -> None:
        """Called by :meth:`open` and :meth:`create`; takes the descriptor over."""
        self.path, self.writable = path, writable
        self.changes: list[tuple[Record, ...]] = []
        self.end, self._seal, self.tail = 0, 0, 0
        self._descriptor = descriptor
        self._map: mmap.mmap | None = None

    @classmethod
    def open(cls, path: Path, writable: bool = False) -> LogFile:
        """Opens a log; to write is to lock it and to cut off what a killed writer left.

        Raises:
          SwitchBankError: it cannot be opened, is being written, is no log, or is damaged.
        """
        descriptor = _open(path, os.O_RDWR if writable else os.O_RDONLY)
        log = cls(path, descriptor, writable)
        try:
            if writable:
                _lock(descriptor, path)
            size = os.fstat(log._descriptor).st_size
            found = scan(log._read, size, path)
            log._take(found, size)
            if writable and log.tail:
                log._cut()
        except BaseException:
            log.close()
            raise
        return log

    @classmethod
    def create(cls, path: Path) -> LogFile:
        """A new log of no record, locked; there must be no file.

        Raises:
          SwitchBankError: the file cannot be made.
        """
        log = cls(path, _open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL), writable=True)
        try:
            _lock(log._descriptor, path)
            log._write(0, preamble())
        except BaseException:
            log.close()
            raise
        log.end, log._seal = ALIGNMENT, crc_of([preamble()])
        return log

    def append(self, drafts: Sequence[Draft]) -> tuple[Record, ...]:
        """Adds the records of one change: all of them or, whatever happens, none.

        Returns:
          The records as written.

        Raises:
          SwitchBankError: the file is open for reading only, or the disk is full.
        """
        if not self.writable:
            raise SwitchBankError(
                f"{self.path} is open for reading; open it with mode='a' to change it"
            )
        position, seal = self.end, self._seal
        records = []
        with self._all_or_nothing(sum(len(part) for draft in drafts for part in draft.chunks)):
            for draft in drafts:
                length = sum(map(len, draft.chunks))
                record = Record(draft.kind, position, length, crc_of(draft.chunks), seal)
                for chunk in (record.head, *draft.chunks):
                    position = self._write(position, chunk)
                position = self._write(position, bytes(record.end - position))
                seal = record.seal
                records.append(record)
            os.fsync(self._descriptor)
            mark = Record(COMMIT, position, 0, 0, seal)
            self._write(position, mark.head)
            os.fsync(self._descriptor)
        self.changes.append(tuple(records))
        self.end, self._seal, self._map = mark.end, mark.seal, None
        return tuple(records)

    def payload(self, record: Record) -> memoryview:
        """The payload of a record, mapped; its checksum is not looked at."""
        if self._descriptor < 0:
            raise SwitchBankError(f"{self.path} is closed; open it again")
        if self._map is None:
            # What is not committed is left out: the next writer cuts it off.
            try:
                self._map = mmap.mmap(self._descriptor, self.end, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise SwitchBankError(
                    f"{self.path} cannot be mapped into memory ({error}); was it cut short while "
                    "open?"
                ) from error
        return memoryview(self._map)[record.payload : record.payload + record.length]

    def checked(self, record: Record) -> memoryview:
        """The payload of a record, whose checksum holds.

        Raises:
          SwitchBankError: it does not.
        """
        payload = self.payload(record)
        if crc_of([payload]) != record.crc:
            raise damaged(self.path, record.payload, 0, "a checksum differs from the content")
        return payload

    def close(self) -> None:
        """Closes the file and unlocks it; what was mapped stays until nobody uses it."""
        descriptor, self._descriptor = self._descriptor, -1
        self._map, self.writable = None, False
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        """Closes a log that was forgotten."""
        self.close()

    # ---- inside

    def _take(self, found: Scan, size: int) -> None:
        self.changes, self.end, self._seal = list(found.changes), found.end, found.seal
        self.tail = size - found.end

    def _cut(self) -> None:
        os.ftruncate(self._descriptor, self.end)
        os.fsync(self._descriptor)
        self.tail = 0

    @contextlib.contextmanager
    def _all_or_nothing(self, needed: int) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            try:
                self._cut()
            except OSError:
                self.writable = False  # the next writer cuts it
            if is_full_disk(error):
                raise SwitchBankError(str(no_space(self.path, needed))) from error
            if isinstance(error, OSError):
                raise SwitchBankError(
                    f"{self.path} could not be written ({error.strerror}); it is as it was before"
                ) from error
            raise

    def _read(self, position: int, count: int) -> bytes:
        try:
            return os.pread(self._descriptor, count, position)
        except OSError as error:
            raise SwitchBankError(
                f"{self.path} cannot be read at byte {position} ({error.strerror}); copy it again"
            ) from error

    def _write(self, position: int, data: bytes | memoryview) -> int:
        view = memoryview(data)
        while len(view):
            done = os.pwrite(self._descriptor, view, position)
            position, view = position + done, view[done:]
        return position


def written(path: Path, changes: Sequence[Sequence[Draft]]) -> LogFile:
    """A log with these changes, wholly or not at all; open and locked before anybody sees it.

    Raises:
      SwitchBankError: it cannot be written.
    """
    log = None
    try:
        with atomic_write(path) as temporary:
            log = LogFile.create(temporary)
            for drafts in changes:
                log.append(drafts)
        log.path = path
        return log
    except BaseException as error:
        if log is not None:
            log.close()
        if isinstance(error, OSError | CheckpointError) and not isinstance(error, SwitchBankError):
            raise SwitchBankError(f"{path} could not be written ({error})") from error
        raise


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps all writers from a file, whatever it holds.

    Raises:
      SwitchBankError: one is there already.
    """
    descriptor = _open(path, os.O_RDWR)
    try:
        _lock(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            raise SwitchBankError(
                f"{path} is being written by another process or another open bank; wait until it "
                "is closed, or open it with mode='r'"
            ) from error
        raise SwitchBankError(
            f"{path} cannot be locked ({error.strerror}); write it on a file system with locks"
        ) from error
    # Who held the lock may have put another file there meanwhile.
    if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):
        raise SwitchBankError(f"{path} was replaced while it was opened; open it again")


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags, 0o666)
    except FileNotFoundError as error:
        raise SwitchBankError(f"expected a switch bank at {path}, found nothing") from error
    except FileExistsError as error:
        raise SwitchBankError(f"{path} is there already; choose another name") from error
    except OSError as error:
        raise SwitchBankError(f"{path} cannot be opened ({error.strerror})") from error

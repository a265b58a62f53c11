"""The log on the disk: one writer at a time, any number of readers, payloads mapped into memory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sinewich_jax.errors import CheckpointError
from sinewich_jax.storage.atomic import atomic_write, is_full_disk, no_space
from sinewich_jax.switches.swb.log import (
    ALIGNMENT,
    COMMIT,
    MAGIC,
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
        self._descriptor, self._real, self._process = descriptor, _resolved(path), os.getpid()
        # Not __del__: when the interpreter ends, that may find no module os any more.
        self._release = weakref.finalize(self, os.close, descriptor)
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
          SwitchBankError: it cannot be changed from here, or the disk is full.
        """
        self.check_writable()
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

    def rewrite(self, changes: Sequence[Sequence[Draft]]) -> LogFile:
        """Puts a new log in the place of this one, wherever the program is by now, and closes it.

        Raises:
          SwitchBankError: as :func:`written`; this log is then as before.
        """
        log = written(self._real, changes)
        log.path = self.path
        self.close()
        return log

    def check_open(self) -> None:
        """Asked before anything is read.

        Raises:
          SwitchBankError: it was closed.
        """
        if self._descriptor < 0:
            raise SwitchBankError(f"{self.path} is closed; open it again")

    def check_writable(self) -> None:
        """Asked before anything is changed.

        Raises:
          SwitchBankError: it was closed, is open for reading only, or belongs to the process that
            this one is a fork of, which knows nothing of what this one would write.
        """
        self.check_open()
        if not self.writable:
            raise SwitchBankError(
                f"{self.path} is open for reading; open it with mode='a' to change it"
            )
        if os.getpid() != self._process:
            raise SwitchBankError(
                f"{self.path} was opened by the process {self._process}, of which this one is a "
                "fork; change it there, or open it here when it is closed there"
            )

    def payload(self, record: Record) -> memoryview:
        """The payload of a record, mapped; its checksum is not looked at."""
        self.check_open()
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
        if self.writable and os.getpid() == self._process:
            with contextlib.suppress(OSError):  # a fork that lives on would keep the lock
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self._descriptor, self._map, self.writable = -1, None, False
        self._release()

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

    Of a file that is there the permissions stay, and of a link to it the link.

    Raises:
      SwitchBankError: it cannot be written.
    """
    log, real = None, _resolved(path)
    try:
        with atomic_write(real) as temporary:
            log = LogFile.create(temporary)
            if real.exists():
                os.fchmod(log._descriptor, stat.S_IMODE(real.stat().st_mode))
            for drafts in changes:
                log.append(drafts)
        log.path, log._real = path, real
        return log
    except BaseException as error:
        if log is not None:
            log.close()
        if isinstance(error, OSError | CheckpointError) and not isinstance(error, SwitchBankError):
            raise SwitchBankError(f"{path} could not be written ({error})") from error
        raise


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps all writers from a log that is to be replaced, damaged as it may be.

    Raises:
      SwitchBankError: one is there already, or the file is neither a log nor empty.
    """
    descriptor = _open(path, os.O_RDWR)
    try:
        _lock(descriptor, path)
        found = os.pread(descriptor, len(MAGIC), 0)
        if found not in (b"", MAGIC):
            raise SwitchBankError(
                f"{path} starts with {found!r}, expected {MAGIC!r}: it is no switch bank and is "
                "not replaced by one; choose another name, or delete it first"
            )
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


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _open(path: Path, flags: int) -> int:
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would wait for its writer
        what = "a folder" if os.path.isdir(path) else "no file"
        raise SwitchBankError(f"expected a switch bank at {path}, found {what}")
    try:
        return os.open(path, flags, 0o666)
    except FileNotFoundError as error:
        raise SwitchBankError(f"expected a switch bank at {path}, found nothing") from error
    except FileExistsError as error:
        raise SwitchBankError(f"{path} is there already; choose another name") from error
    except OSError as error:
        raise SwitchBankError(f"{path} cannot be opened ({error.strerror})") from error

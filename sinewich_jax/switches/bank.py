"""Task switches in one file that is appended to: a few bytes for every task beside one base.

    with SwitchBank.create("tasks.swb", base=params) as bank:
        bank.add("eurosat", switch)
    with SwitchBank.open("tasks.swb") as bank:
        bank.names, bank.get("eurosat")

The file is a log (:mod:`sinewich_jax.switches.swb.log`) and is mapped into memory. No code in it is
ever run, and the same calls write the same bytes: no clock is asked.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import numpy as np

from sinewich_jax.errors import did_you_mean
from sinewich_jax.switches.leaf import DenseLeaf, LeafSwitch, Switch
from sinewich_jax.switches.swb import entries, header, index, log_file, records, stored_router, text
from sinewich_jax.switches.swb.entries import LeafEntry
from sinewich_jax.switches.swb.header import Base, BaseLeaf
from sinewich_jax.switches.swb.log import Record, SwitchBankError
from sinewich_jax.switches.swb.log_file import Draft, LogFile

__all__ = ["Base", "SwitchBank", "SwitchBankError"]

_P, _T = ParamSpec("_P"), TypeVar("_T")


def _alone(
    method: Callable[Concatenate[SwitchBank, _P], _T],
) -> Callable[Concatenate[SwitchBank, _P], _T]:
    """One thread at a time: what is in memory is what is in the file."""

    @functools.wraps(method)
    def locked(self: SwitchBank, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        if self._process != os.getpid():  # a fork: whoever held the lock is not in it
            self._process, self._lock = os.getpid(), threading.RLock()
        with self._lock:
            return method(self, *args, **kwargs)

    return locked


class SwitchBank:
    """The tasks in one file.

    Made by :meth:`create` or :meth:`open`. One process at a time can change a bank (its threads
    take turns, its forks can only read); what it adds is on the disk when the call returns, and a
    bank whose writer was killed holds every task that was added before. Others may read meanwhile;
    they see what was there when they opened it.
    """

    def __init__(self, log: LogFile, trusted: bool) -> None:
        """Called by :meth:`create` and :meth:`open`; takes the log over."""
        self._log, self._trusted = log, trusted
        self._contents = index.read(log)
        self._entries: dict[str, tuple[LeafEntry, ...]] = {}
        self._process, self._lock = os.getpid(), threading.RLock()

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        base: Any = None,
        *,
        frequencies: str | None = None,
        overwrite: bool = False,
    ) -> SwitchBank:
        """A new bank, open for adding.

        Args:
          path: of the file, by custom ``.swb``.
          base: the model that the tasks change: a tree of arrays, an open
            :class:`~sinewich_jax.storage.leaves.LeafSource`, or a :class:`Base`. Its fingerprint
            and shapes are kept, and tasks have to fit them. None checks nothing.
          frequencies: a string that stands for the frequencies at which shared factors are read,
            if the leaves are such factors: switches of other frequencies do not fit.
          overwrite: replaces a bank or an empty file that is there; no other file is replaced.

        Raises:
          SwitchBankError: a file is there, it cannot be written, or ``base`` is a path or holds
            something else than numbers.
        """
        path = _path(path)
        if path.exists() and not overwrite:
            raise SwitchBankError(
                f"{path} is there already; open it with mode='a' to add to it, or pass "
                "overwrite=True to replace it"
            )
        content = header.to_json(None if base is None else Base.of(base), frequencies)
        try:
            header.from_json(content)
        except ValueError as error:
            raise SwitchBankError(f"{path} cannot be made: {error}") from error
        draft = Draft(index.HEADER, [text.deflate(text.dump(content))])
        # Whoever is writing the old file must not be left with one that is nowhere.
        with log_file.locked(path) if path.exists() else contextlib.nullcontext():
            return cls(log_file.written(path, [[draft]]), trusted=True)

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], mode: Literal["r", "a"] = "r", base: Any = None
    ) -> SwitchBank:
        """Opens a bank; blobs are not read yet.

        Args:
          path: of the file.
          mode: ``"r"`` to read; ``"a"`` to add and remove too, which locks the file and cuts off
            what a killed writer left behind.
          base: as for :meth:`create`; it has to be the one that the bank was made for.

        Raises:
          SwitchBankError: no bank, another version, a damaged one, one that is being written, or
            one of another base.
        """
        if mode not in ("r", "a"):
            raise SwitchBankError(f"the mode is {mode!r}, expected 'r' or 'a'")
        log = LogFile.open(_path(path), writable=mode == "a")
        try:
            bank = cls(log, trusted=False)
            if base is not None:
                header.check(log.path, bank._contents.base, Base.of(base))
                bank._trusted = True
        except BaseException:
            log.close()
            raise
        return bank

    # ---- what is there

    @property
    def path(self) -> Path:
        """Of the file."""
        return self._log.path

    @property
    def base(self) -> str | None:
        """The fingerprint of the base, if the bank was made with one."""
        return None if self._contents.base is None else self._contents.base.fingerprint

    @property
    def base_leaves(self) -> dict[str, BaseLeaf]:
        """Shape and dtype of the base's leaves by path; none if the bank was made without it."""
        return {} if self._contents.base is None else dict(self._contents.base.leaves)

    @property
    def frequencies(self) -> str | None:
        """What :meth:`create` was told."""
        return self._contents.frequencies

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks in the order in which they were added."""
        return tuple(self._contents.tasks)

    @property
    def nbytes(self) -> int:
        """Bytes of all that was committed."""
        return self._log.end

    @property
    def tail(self) -> int:
        """Bytes behind it that were passed over: a writer was killed, or is writing now."""
        return self._log.tail

    def meta(self, name: str) -> dict[str, Any]:
        """What :meth:`add` was told of a task."""
        return copy.deepcopy(self._task(name).content["meta"])

    @_alone
    def entries(self, name: str) -> tuple[LeafEntry, ...]:
        """What the index says of a task's leaves; no blob is read.

        Raises:
          SwitchBankError: no such task, or it contradicts itself, the base or the file.
        """
        task = self._task(name)
        if name not in self._entries:
            with self._naming(f"the task {name!r}"):
                self._entries[name] = tuple(index.leaves(task, self._contents.base))
        return self._entries[name]

    @_alone
    def get(self, name: str) -> Switch:
        """A task, of read-only NumPy arrays; those written with ``codec="plane"`` are mapped.

        Raises:
          SwitchBankError: no such task, it is damaged, or the bank is closed.
        """
        self._log.check_open()
        found = self.entries(name)
        zeros = self._zeros(name)
        return Switch({entry.path: self._unpack(name, entry, zeros) for entry in found})

    @_alone
    def leaf(self, name: str, path: str) -> LeafSwitch | DenseLeaf | None:
        """One leaf of a task, None if the task does not change it."""
        for entry in self.entries(name):
            if entry.path == path:
                return self._unpack(name, entry, self._zeros(name))
        return None

    @_alone
    def router(self) -> Any:
        """The stored :class:`~sinewich_jax.switches.router.Router`, or None."""
        stored = self._contents.router
        if stored is None:
            return None
        with self._naming("the router"):
            return stored_router.unpack(stored.content, self._log.payload(stored.blobs))

    @_alone
    def verify(self) -> None:
        """Reads everything: all checksums, and every task and the router as if they were used.

        Raises:
          SwitchBankError: naming what is damaged.
        """
        for change in self._log.changes:
            for record in change:
                self._log.checked(record)
        for name in self.names:
            self.get(name)
        self.router()

    @_alone
    def sizes(self) -> index.Sizes:
        """Bytes on the disk of the header, the router and each task."""
        return index.sizes(self._contents, self._log)

    @_alone
    def report(self) -> Any:
        """Bytes on the disk beside the entropy bound; see :class:`.report.Report`."""
        from sinewich_jax.switches.report import Report

        return Report.of(self)

    # ---- changes

    @_alone
    def add(
        self,
        name: str,
        switch: Switch,
        meta: Mapping[str, Any] | None = None,
        codec: str = "auto",
        replace: bool = False,
    ) -> None:
        """Appends a task; when this returns, it is on the disk.

        Args:
          name: of the task; see :func:`.index.check_name`.
          switch: of NumPy or JAX arrays, of one task (no stack).
          meta: anything that JSON has a form for: how the switch was made, when, from what.
          codec: of the masks: ``"auto"`` takes the smallest for each leaf; ``"plane"`` is larger
            and needs no decoding.
          replace: a task of this name is removed in the same moment.

        Raises:
          SwitchBankError: the name is taken or none, a leaf does not fit the base, its planes
            contradict each other, its numbers are not finite, or the disk is full. The bank is then
            as before.
        """
        self._log.check_writable()
        blobs, cursor, rows = records.Blobs(), entries.Cursor(), []
        with self._naming(f"the new task {name!r}", "added"):
            if index.check_name(name) in self._contents.tasks and not replace:
                raise SwitchBankError(
                    f"{self.path} has a task {name!r} already; pass replace=True to replace it"
                )
            if not isinstance(switch, Switch):
                raise ValueError(f"it is a {type(switch).__name__}, expected a Switch")
            for path, leaf in switch.leaves.items():
                try:
                    entry = records.pack(path, leaf, blobs, codec)
                    rows.append(entries.to_json(entry))
                    entries.from_json(rows[-1], cursor)  # nothing is written that could not be read
                    index.check_leaf(entry, self._contents.base)
                except ValueError as error:
                    raise ValueError(f"leaf {path!r}: {error}") from error
            try:
                data = text.dump({"name": name, "meta": dict(meta or {}), "leaves": rows})
                text.load(data)
            except (TypeError, ValueError) as error:
                raise ValueError(f"its meta has no form in JSON ({error})") from error
        drafts = [Draft(index.BLOBS, blobs.chunks), self._json(index.INDEX, data)]
        if name in self._contents.tasks:
            drafts.insert(0, self._removal(name))
        self._append(drafts)

    @_alone
    def remove(self, name: str) -> None:
        """Removes a task; its bytes stay in the file until :meth:`compact`.

        Raises:
          SwitchBankError: no such task.
        """
        self._log.check_writable()
        self._task(name)
        self._append([self._removal(name)])

    @_alone
    def set_router(self, router: Any, dtype: str = "float32") -> None:
        """Stores a router in the place of any other; None removes it.

        Args:
          router: a :class:`~sinewich_jax.switches.router.Router`.
          dtype: of its features on the disk: ``"float32"``, or ``"float16"`` for half of the bytes.

        Raises:
          SwitchBankError: it is no router, or has something that cannot be stored and read again.
        """
        self._log.check_writable()
        blobs, data = records.Blobs(), text.dump(None)
        if router is not None:
            with self._naming("the new router", "stored"):
                data = stored_router.pack(router, dtype, blobs)
        self._append([Draft(index.BLOBS, blobs.chunks), self._json(index.ROUTER, data)])

    @_alone
    def compact(self) -> int:
        """Writes the file anew without what was removed or replaced.

        Returns:
          The bytes that this freed.

        Raises:
          SwitchBankError: something is damaged, or the disk is full; the bank is then as before.
        """
        self._log.check_writable()
        kept = [*self._contents.tasks.values(), *filter(None, [self._contents.router])]
        first = self._log.changes[0][0]
        changes = [[self._copy(first)]]
        changes += [[self._copy(one.blobs), self._copy(one.index)] for one in kept]
        before = self._log.end
        self._log = self._log.rewrite(changes)
        self._contents, self._entries = index.read(self._log), {}
        return before - self._log.end

    @_alone
    def close(self) -> None:
        """Closes the file and unlocks it; switches that were read stay."""
        self._log.close()

    def __enter__(self) -> SwitchBank:
        """The bank itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        self.close()

    def __contains__(self, name: object) -> bool:
        """Whether there is a task of that name."""
        return name in self._contents.tasks

    def __iter__(self) -> Iterator[str]:
        """Over the names."""
        return iter(self.names)

    def __len__(self) -> int:
        """The number of tasks."""
        return len(self._contents.tasks)

    # ---- inside

    def _task(self, name: str) -> index.Stored:
        if name not in self._contents.tasks:
            raise SwitchBankError(
                f"{self.path} has no task {name!r}{did_you_mean(str(name), self.names)}"
            )
        return self._contents.tasks[name]

    def _zeros(self, name: str) -> np.ndarray:
        """One plane for all leaves that do not change, if the task fits into memory."""
        with self._naming(f"the task {name!r}"):
            limit = None if self._trusted else index.memory_limit(self._log.end)
            return np.zeros(index.check_memory(self.entries(name), limit), np.uint8)

    def _unpack(self, name: str, entry: LeafEntry, zeros: np.ndarray) -> LeafSwitch | DenseLeaf:
        payload = self._log.payload(self._task(name).blobs)
        with self._naming(f"the leaf {entry.path!r} of the task {name!r}"):
            return records.unpack(entry, payload, zeros)

    def _json(self, kind: int, data: bytes) -> Draft:
        return Draft(kind, [text.deflate(data, self._contents.dictionary)])

    def _removal(self, name: str) -> Draft:
        return self._json(index.REMOVE, text.dump({"name": name}))

    def _copy(self, record: Record) -> Draft:
        return Draft(record.kind, [self._log.checked(record)])

    def _append(self, drafts: list[Draft]) -> None:
        index.apply(self._contents, self._log, self._log.append(drafts))
        self._entries = {}

    @contextlib.contextmanager
    def _naming(self, what: str, verb: str = "read") -> Iterator[None]:
        try:
            yield
        except SwitchBankError:
            raise
        except ValueError as error:
            raise SwitchBankError(f"{what} of {self.path} cannot be {verb}: {error}") from error


def _path(path: str | os.PathLike[str]) -> Path:
    if not os.fspath(path):
        raise SwitchBankError("the path of a switch bank is empty, expected that of a file")
    return Path(path)

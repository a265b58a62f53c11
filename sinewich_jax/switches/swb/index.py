"""The tasks of a bank as its log tells them: what was added, replaced, removed."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from sinewich_jax.errors import did_you_mean
from sinewich_jax.switches.leaf import plane_bytes
from sinewich_jax.switches.swb import entries, header, text
from sinewich_jax.switches.swb.entries import LeafEntry
from sinewich_jax.switches.swb.log import ALIGNMENT, Record, SwitchBankError
from sinewich_jax.switches.swb.log_file import LogFile
from sinewich_jax.switches.swb.records import is_bare

HEADER, BLOBS, INDEX, REMOVE, ROUTER = range(2, 7)
_LONGEST_NAME = 200
_T = TypeVar("_T")
# What deflate can make of a byte, and the plane of a leaf of half a billion entries.
_EXPANSION, _ALWAYS = 1024, 64 << 20


class Stored(NamedTuple):
    """Blobs and the JSON that says what they are.

    Attributes:
      blobs: the record of the blobs.
      index: the record of the JSON.
      content: the JSON.
      size: its bytes before it was deflated.
    """

    blobs: Record
    index: Record
    content: Any
    size: int

    @property
    def nbytes(self) -> int:
        """Bytes on the disk, with heads, padding and commit mark."""
        return self.index.end - self.blobs.start + ALIGNMENT


@dataclasses.dataclass
class Contents:
    """All that is in a bank, without its blobs.

    Attributes:
      dictionary: JSON of the header, with which all that follows is deflated.
      base: what the header says of it, or None.
      frequencies: what the header says of them, or None.
      tasks: name -> task, in the order in which they were added.
      router: what is stored of it, or None.
    """

    dictionary: bytes
    base: header.Base | None
    frequencies: str | None
    tasks: dict[str, Stored] = dataclasses.field(default_factory=dict)
    router: Stored | None = None


def read(log: LogFile) -> Contents:
    """Reads all changes of a log.

    Raises:
      SwitchBankError: a checksum differs, or records that no bank holds.
    """
    if len(log.changes[0]) != 1 or log.changes[0][0].kind != HEADER:
        raise SwitchBankError(f"{log.path} does not begin with the header of a switch bank")
    contents = _parsed(log, log.changes[0][0], b"", _contents)
    for change in log.changes[1:]:
        apply(contents, log, change)
    return contents


def apply(contents: Contents, log: LogFile, change: tuple[Record, ...]) -> None:
    """Takes in one change.

    Raises:
      SwitchBankError: a checksum differs, or it is none that banks have.
    """
    blobs, words = None, contents.dictionary
    for record in change:
        if record.kind == BLOBS and blobs is None:
            blobs = record
        elif record.kind == INDEX and blobs is not None:
            content, name, size = _parsed(log, record, words, _task)
            if name in contents.tasks:
                raise SwitchBankError(f"{log.path} adds the task {name!r} twice")
            contents.tasks[name], blobs = Stored(blobs, record, content, size), None
        elif record.kind == REMOVE and blobs is None:
            name = _parsed(log, record, words, _removed)
            if contents.tasks.pop(name, None) is None:
                raise SwitchBankError(f"{log.path} removes the task {name!r}, which is not there")
        elif record.kind == ROUTER and blobs is not None:
            content, size = _parsed(log, record, words, lambda data: (text.load(data), len(data)))
            contents.router = None if content is None else Stored(blobs, record, content, size)
            blobs = None
        else:
            raise SwitchBankError(
                f"{log.path} has a record of kind {record.kind} at byte {record.start}, where no "
                "bank of this version has one"
            )
    if blobs is not None:
        raise SwitchBankError(f"{log.path} has blobs at byte {blobs.start} that nothing names")


class Sizes(NamedTuple):
    """Bytes on the disk, with heads, padding and commit marks.

    Attributes:
      header: of the beginning of the file.
      router: of the router.
      tasks: of each task.
      deflated: of each task, how many of them a byte of the JSON of its index takes.
    """

    header: int
    router: int
    tasks: dict[str, int]
    deflated: dict[str, float]


def sizes(contents: Contents, log: LogFile) -> Sizes:
    """What takes how much; the rest was removed."""
    router = 0 if contents.router is None else contents.router.nbytes
    tasks = {name: task.nbytes for name, task in contents.tasks.items()}
    deflated = {name: task.index.length / task.size for name, task in contents.tasks.items()}
    return Sizes(log.changes[0][0].end + ALIGNMENT, router, tasks, deflated)


def leaves(stored: Stored, base: header.Base | None) -> Iterator[LeafEntry]:
    """What the index of a task says of its leaves, checked against the base and the blobs.

    Raises:
      ValueError: one of them cannot be; the leaf is named.
    """
    seen: set[str] = set()
    cursor = entries.Cursor()
    for number, content in enumerate(stored.content["leaves"]):
        name = content.get("path") if isinstance(content, dict) else None
        try:
            entry = entries.from_json(content, cursor)
            if entry.path in seen:
                raise ValueError("it occurs twice")
            check_leaf(entry, base)
        except ValueError as error:
            raise ValueError(f"leaf {str(name)[:80]!r} (number {number}): {error}") from error
        seen.add(entry.path)
        yield entry
    cursor.check(stored.blobs.length)


def check_leaf(entry: LeafEntry, base: header.Base | None) -> None:
    """Compares a leaf with the base; one kept in full may be the task's own, such as its head.

    Raises:
      ValueError: the base has none of that path, or of another shape, or it is no change.
    """
    if base is None:
        return
    real = entry.dtype is None or entry.dtype.startswith(("float", "bfloat"))
    if entry.path in base.leaves and not real:
        raise ValueError(f"it holds {entry.dtype}, expected real numbers to add to the base's")
    if entry.path not in base.leaves:
        if entry.kind == "dense":
            return
        # Hostile files: looking for the nearest of many long names would take its time.
        near = len(entry.path) < 200 and len(base.leaves) < 5_000
        hint = did_you_mean(entry.path, base.leaves)[:400] if near else ""
        raise ValueError(f"the base has no such leaf{hint}")
    shape = base.leaves[entry.path].shape
    if shape != entry.shape:
        raise ValueError(f"its shape is {entry.shape}, expected {shape} as in the base")


def memory_limit(file_bytes: int) -> int:
    """How many bytes of planes a file may ask for whose shapes nobody vouches for."""
    return _EXPANSION * file_bytes + _ALWAYS


def check_memory(found: Iterable[LeafEntry], limit: int | None) -> int:
    """A few bytes may say that they are the mask of a very large leaf: that has a limit.

    Returns:
      The bytes of the largest plane of a leaf that does not change.

    Raises:
      ValueError: the planes would take more than the limit.
    """
    empty = planes = 0
    for entry in found:
        if is_bare(entry):
            empty = max(empty, plane_bytes(entry.size))
        elif entry.kind == "switch":
            planes += (entry.bits + 1) * plane_bytes(entry.size)
    if limit is not None and empty + planes > limit:
        raise ValueError(
            f"its planes would take {empty + planes} bytes of memory, and a file of this size may "
            f"ask for {limit}; if its shapes are right, pass the base when opening it"
        )
    return empty


def check_name(name: Any) -> str:
    """The one rule for the name of a task, for banks and for all who name tasks before.

    A name is 1 to 200 printable characters in Unicode's composed form (NFC), so that no two look
    alike. It can be written on a command line (``NAME=PATH``, ``PATH@NAME``, never an option) and
    can be the name of a file: without ``=``, ``@`` and ``/``, no blank at either end, no ``-`` at
    the beginning, and neither ``.`` nor ``..``.

    Args:
      name: whatever was given as one.

    Returns:
      The name, as it is.

    Raises:
      ValueError: it is none; the message says what a name is.
    """
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= _LONGEST_NAME
        or not name.isprintable()
        or name in (".", "..")
        or name[0] in "- "
        or name[-1] == " "
        or set(name) & set("=@/")
        or not unicodedata.is_normalized("NFC", name)
    ):
        shown = repr(name)
        raise ValueError(
            f"the name of a task is {shown if len(shown) < 80 else shown[:77] + '...'}, expected 1 "
            f"to {_LONGEST_NAME} printable characters (NFC) without '=', '@' and '/', no blank at "
            "either end, no '-' first, and neither '.' nor '..'"
        )
    return name


def _contents(data: bytes) -> Contents:
    return Contents(data, *header.from_json(text.load(data)))


def _task(data: bytes) -> tuple[dict[str, Any], str, int]:
    content = text.load(data)
    if not isinstance(content, dict) or set(content) != {"name", "meta", "leaves"}:
        raise ValueError("a task is no object of name, meta and leaves")
    if not isinstance(content["meta"], dict) or not isinstance(content["leaves"], list):
        raise ValueError("the meta of a task is no object, or its leaves are no list")
    return content, check_name(content["name"]), len(data)


def _removed(data: bytes) -> str:
    content = text.load(data)
    if not isinstance(content, dict) or set(content) != {"name"}:
        raise ValueError("a removal is no object of a name")
    return check_name(content["name"])


def _parsed(log: LogFile, record: Record, dictionary: bytes, parse: Callable[[bytes], _T]) -> _T:
    """What the JSON of a record says."""
    data = log.checked(record)
    try:
        return parse(text.inflate(data, dictionary))
    except ValueError as error:
        raise SwitchBankError(
            f"{log.path} cannot be read at byte {record.start}: {error}; restore it from a copy"
        ) from error

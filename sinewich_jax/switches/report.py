"""Bytes on the disk beside the entropy bound, for each leaf, each task and the whole file.

All numbers come from the indexes: no blob is read. The bound of a leaf is what no code goes below
that knows how many entries are active and takes them for independent: ``H(p) n + bits p n`` bits,
and for a leaf kept in full its own bytes.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

from sinewich_jax.core.ternary import entropy_bits
from sinewich_jax.switches.columns import aligned
from sinewich_jax.switches.swb import entries, text
from sinewich_jax.switches.swb.entries import LeafEntry, Place

if TYPE_CHECKING:
    from sinewich_jax.switches.bank import SwitchBank


class Row(NamedTuple):
    """A leaf, a task, or all tasks.

    Attributes:
      name: path of the leaf, or name of the task.
      size: entries.
      active: how many of them change.
      bits: of an active entry; 0 where leaves differ.
      codec: of the mask; ``"dense"`` for a leaf kept in full, ``"mixed"`` where leaves differ.
      mask: bytes on the disk.
      sign: bytes of signs and levels.
      knob: bytes of knobs beside the index.
      dense: bytes of leaves kept in full.
      overhead: bytes of the index, of padding and of checksums; of a leaf its share of the index,
        which is deflated as one.
      bound: bytes by the entropy bound; a fraction, for it is a mean.
    """

    name: str
    size: int
    active: int
    bits: int
    codec: str
    mask: int
    sign: int
    knob: int
    dense: int
    overhead: int
    bound: float

    @property
    def density(self) -> float:
        """The active part of the entries; 0 if there are none."""
        return self.active / self.size if self.size else 0.0

    @property
    def disk(self) -> int:
        """Bytes on the disk, all told."""
        return self.mask + self.sign + self.knob + self.dense + self.overhead

    @property
    def ratio(self) -> float | None:
        """Bytes on the disk over those of the bound; None if that is 0."""
        return self.disk / self.bound if self.bound else None

    @property
    def bits_per_parameter(self) -> float:
        """On the disk; 0 if there are no entries."""
        return 8 * self.disk / self.size if self.size else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        computed = ("density", "disk", "ratio", "bits_per_parameter")
        return self._asdict() | {name: getattr(self, name) for name in computed}


@dataclasses.dataclass(frozen=True)
class Report:
    """What a bank takes.

    Attributes:
      path: of the file.
      base: fingerprint of the base, or None.
      tasks: a row for each task.
      leaves: task -> a row for each leaf. What tasks have beside their leaves (name and meta,
        heads, padding) is only in the row of the task.
      meta: task -> what was stored with it.
      nbytes: of all that was committed.
      header: bytes of it that describe the base.
      router: bytes of it that are the router.
      removed: bytes of it that nobody reads any more; ``compact`` frees them.
      tail: bytes behind it that were passed over.
    """

    path: str
    base: str | None
    tasks: tuple[Row, ...]
    leaves: dict[str, tuple[Row, ...]]
    meta: dict[str, dict[str, Any]]
    nbytes: int
    header: int
    router: int
    removed: int
    tail: int

    @classmethod
    def of(cls, bank: SwitchBank) -> Report:
        """Made by :meth:`SwitchBank.report`.

        Raises:
          SwitchBankError: an index contradicts itself.
        """
        sizes = bank.sizes()
        leaves = {
            name: tuple(_leaf(entry, sizes.deflated[name]) for entry in bank.entries(name))
            for name in bank.names
        }
        tasks = tuple(_total(name, leaves[name], sizes.tasks[name]) for name in bank.names)
        return cls(
            path=str(bank.path),
            base=bank.base,
            tasks=tasks,
            leaves=leaves,
            meta={name: bank.meta(name) for name in bank.names},
            nbytes=bank.nbytes,
            header=sizes.header,
            router=sizes.router,
            removed=bank.nbytes - sizes.header - sizes.router - sum(row.disk for row in tasks),
            tail=bank.tail,
        )

    @property
    def total(self) -> Row:
        """All tasks together."""
        return _total("all tasks", self.tasks, sum(row.disk for row in self.tasks))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self) | {
            "tasks": [row.as_dict() for row in self.tasks],
            "leaves": {name: [r.as_dict() for r in rows] for name, rows in self.leaves.items()},
            "total": self.total.as_dict(),
        }

    def table(self, leaves: bool = False) -> str:
        """As text.

        Args:
          leaves: with a line for each leaf of each task.
        """
        rows: list[tuple[str, Row]] = []
        for task in self.tasks:
            rows.append((task.name, task))
            rows += [(f"  {leaf.name}", leaf) for leaf in self.leaves[task.name] if leaves]
        if len(self.tasks) != 1:
            rows.append(("all tasks", self.total))
        head = ("task", "entries", "active", "density", "codec", "mask", "sign", "knob", "dense")
        head += ("other", "on disk", "entropy", "ratio", "bits/param")
        lines = aligned([head, *(_cells(label, row) for label, row in rows)], left=(0, 4))
        base = "no base" if self.base is None else f"base {self.base[:19]}"
        notes = [f"{self.path}: {self.nbytes:,} bytes, {base}; columns from mask on are bytes"]
        beside = {"header": self.header, "router": self.router, "removed": self.removed}
        beside |= {"passed over behind the last commit": self.tail}
        notes += [f"{name}: {size:,} bytes" for name, size in beside.items() if size]
        return "\n".join([notes[0], *lines, *notes[1:]])


def _leaf(entry: LeafEntry, deflated: float) -> Row:
    # By the JSON of its row: what a row takes alone cannot be said.
    overhead = int(deflated * len(text.dump(entries.to_json(entry))))
    if entry.kind == "dense":
        dense = 0 if entry.delta is None else entry.delta.length
        sizes = (0, 0, 0, dense, overhead, float(dense))
        return Row(entry.path, entry.size, entry.count, entry.bits, "dense", *sizes)
    sign = sum(part.length for part in (entry.sign, entry.levels) if part is not None)
    knob = entry.knob.length if isinstance(entry.knob, Place) else 0
    bound = entropy_bits(entry.size, entry.count, entry.bits) / 8
    sizes = (entry.mask.length, sign, knob, 0, overhead, bound)
    return Row(entry.path, entry.size, entry.count, entry.bits, entry.mask.codec, *sizes)


def _total(name: str, rows: tuple[Row, ...], disk: int) -> Row:
    def one(values: set[Any], otherwise: Any) -> Any:
        return values.pop() if len(values) == 1 else otherwise

    added = {
        field: sum(getattr(row, field) for row in rows)
        for field in ("size", "active", "mask", "sign", "knob", "dense", "bound")
    }
    blobs = added["mask"] + added["sign"] + added["knob"] + added["dense"]
    return Row(
        name=name,
        bits=one({row.bits for row in rows}, 0),
        codec=one(
            {row.codec for row in rows if row.codec != "empty"}, "mixed" if rows else "empty"
        ),
        overhead=disk - blobs,
        **added,
    )


def _cells(label: str, row: Row) -> tuple[str, ...]:
    sizes = (row.mask, row.sign, row.knob, row.dense, row.overhead, row.disk, round(row.bound))
    ratio = "-" if row.ratio is None else f"{row.ratio:.3f}"
    numbers = (f"{row.size:,}", f"{row.active:,}", f"{row.density:.4f}", row.codec)
    return (label, *numbers, *(f"{s:,}" for s in sizes), ratio, f"{row.bits_per_parameter:.4f}")

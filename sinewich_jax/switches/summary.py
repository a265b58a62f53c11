"""What a switch keeps of each leaf, what that costs at least, and how near it comes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from sinewich_jax.core.ternary import entropy_bits
from sinewich_jax.core.trees import flatten_paths
from sinewich_jax.errors import SinewichError, did_you_mean
from sinewich_jax.switches.columns import aligned
from sinewich_jax.switches.fits import check_single
from sinewich_jax.switches.leaf import DenseLeaf, LeafSwitch, Switch
from sinewich_jax.switches.planes import decode, pieces


class Row(NamedTuple):
    """A leaf, or all of them.

    Attributes:
      path: of the leaf; ``"total"`` for all of them.
      kind: ``"switch"``, ``"dense"``, or ``""`` for the total.
      n: number of entries.
      active: how many of them change.
      density: ``active / n``.
      knob: the mean of the leaf's knobs; NaN where there is none.
      entropy_bits: the order-0 bound on mask, signs and levels
        (:func:`sinewich_jax.core.ternary.entropy_bits`) and 32 bits a knob; for a dense leaf its
        size in memory, as no bound is known.
      plane_bits: the bits of the planes and knobs in memory.
      cosine: between the switch's change and the task vector; None if that was not given.
      rel_err: ``||delta - change|| / ||delta||``; None if the task vector was not given.
    """

    path: str
    kind: str
    n: int
    active: int
    density: float
    knob: float
    entropy_bits: float
    plane_bits: int
    cosine: float | None
    rel_err: float | None


class Summary(NamedTuple):
    """Rows of :func:`summarize`.

    Attributes:
      rows: one a leaf, in the order of the switch.
      total: their sums, and the cosine and the error of all leaves as one vector.
    """

    rows: tuple[Row, ...]
    total: Row

    def table(self) -> str:
        """The rows as aligned text, bits given per entry."""
        head = ["leaf", "kind", "entries", "density", "knob", "bits/entry", "planes"]
        known = self.total.cosine is not None
        cells = [head + ["cosine", "error"] * known]
        for row in (*self.rows, self.total):
            n = max(row.n, 1)
            knob = "" if math.isnan(row.knob) else f"{row.knob:.3g}"
            bits = [f"{row.entropy_bits / n:.3f}", f"{row.plane_bits / n:.3f}"]
            line = [row.path, row.kind, f"{row.n:,}", f"{row.density:.4f}", knob, *bits]
            cells.append(line + ([f"{row.cosine:.4f}", f"{row.rel_err:.4f}"] if known else []))
        return "\n".join(aligned(cells, left=(0, 1)))


class _Sums(NamedTuple):
    """Inner products of a change c and a task vector d, which add up over leaves."""

    both: float = 0.0
    change: float = 0.0
    delta: float = 0.0
    rest: float = 0.0

    @property
    def cosine(self) -> float:
        """1 where both are zero, so equal; 0 where one of them is."""
        if self.change == 0 or self.delta == 0:
            return float(self.change == self.delta)
        return self.both / math.sqrt(self.change) / math.sqrt(self.delta)

    @property
    def error(self) -> float:
        """0 where nothing is missing; infinite for a change of what did not move."""
        if self.rest == 0:
            return 0.0
        return math.sqrt(self.rest / self.delta) if self.delta else math.inf


def summarize(switch: Switch, delta: Any = None) -> Summary:
    """Density, knob, bits and (with the task vector) fidelity of every leaf and of all of them.

    Args:
      switch: of one task; arrays of JAX are fetched.
      delta: the task vector it was made from; leaves of it that the switch leaves out must be zero.

    Raises:
      SinewichError: a leaf of the switch that the task vector has not, or has in another shape, or
        a leaf of the task vector that is not zero and not in the switch.
    """
    flat = None if delta is None else flatten_paths(delta)
    if flat is not None:
        for path, leaf in flat.items():
            if path not in switch.leaves and np.any(np.asarray(leaf) != 0):
                raise SinewichError(
                    f"the task vector has the leaf {path!r}, which the switch has not"
                    f"{did_you_mean(path, switch.leaves)}; give the one it was made from"
                )
    rows, parts = [], []
    for path, leaf in switch.leaves.items():
        sums = None if flat is None else _compared(path, leaf, flat)
        parts.append(sums or _Sums())
        rows.append(_row(path, leaf, sums))
    whole = _Sums(*(math.fsum(column) for column in zip(*parts, strict=True))) if parts else _Sums()
    n, active = sum(row.n for row in rows), sum(row.active for row in rows)
    total = Row(
        path="total",
        kind="",
        n=n,
        active=active,
        density=active / max(n, 1),
        knob=math.nan,
        entropy_bits=math.fsum(row.entropy_bits for row in rows),
        plane_bits=sum(row.plane_bits for row in rows),
        cosine=None if flat is None else whole.cosine,
        rel_err=None if flat is None else whole.error,
    )
    return Summary(tuple(rows), total)


def _row(path: str, leaf: LeafSwitch | DenseLeaf, sums: _Sums | None) -> Row:
    cosine, error = (None, None) if sums is None else (sums.cosine, sums.error)
    if isinstance(leaf, DenseLeaf):
        array = np.asarray(leaf.delta)
        active, bits, knob = int(np.count_nonzero(array)), 8 * array.nbytes, math.nan
        n, kind, bound = array.size, "dense", float(bits)
    else:
        check_single(path, leaf, "the switch")
        active = int(np.bitwise_count(np.asarray(leaf.mask)).sum())
        knobs = np.asarray(leaf.knob)
        n, kind, knob = leaf.size, "switch", float(knobs.mean())
        bits = 8 * leaf.mask.size * (1 + leaf.bits) + 32 * knobs.size
        bound = entropy_bits(n, active, leaf.bits) + 32 * knobs.size
    return Row(path, kind, n, active, active / max(n, 1), knob, bound, bits, cosine, error)


def _compared(path: str, leaf: LeafSwitch | DenseLeaf, flat: dict[str, Any]) -> _Sums:
    if path not in flat:
        raise SinewichError(
            f"the switch has the leaf {path!r}, which the task vector has not"
            f"{did_you_mean(path, flat)}; give the one it was made from"
        )
    delta = np.asarray(flat[path])
    if delta.shape != tuple(leaf.shape):
        raise SinewichError(
            f"the switch has the leaf {path!r} of shape {tuple(leaf.shape)}, but its shape in the "
            f"task vector is {delta.shape}; give the one it was made from"
        )
    delta = delta.reshape(-1)
    if isinstance(leaf, DenseLeaf):
        dense, rows = np.asarray(leaf.delta).reshape(-1), 1
    else:
        check_single(path, leaf, "the switch")
        arrays = (np.asarray(a) for a in (leaf.mask, leaf.sign, leaf.knob, leaf.levels))
        leaf, dense = LeafSwitch(*arrays, leaf.shape), None
        rows = max(leaf.knob.size, 1)
    sums = np.zeros(4)
    for part in pieces(delta.size, rows):
        moved = delta[part].astype(np.float64)
        if dense is not None:
            change = dense[part].astype(np.float64)
        else:
            change = (decode(leaf, part).reshape(-1, rows) * leaf.knob.astype(np.float64)).ravel()
        sums += [
            np.sum(change * moved),
            np.sum(np.square(change)),
            np.sum(np.square(moved)),
            np.sum(np.square(moved - change)),
        ]
    return _Sums(*sums.tolist())

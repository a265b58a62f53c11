"""What is in an archive: counts, missing and damaged files, units, and what the labels look like.

Nothing is prepared and nothing written; the examples looked at are read straight from the archive.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from sinewich_jax.data.archives.reader import Reader, Sample
from sinewich_jax.data.labels import kind_of
from sinewich_jax.errors import DataError

BINS = 10
_PER_IMAGE = 2000  # Values of an image that its histogram takes.


@dataclasses.dataclass
class SplitReport:
    """One list.

    Attributes:
      images: how many of those it names are there.
      fault: why not all are, or why it cannot be read.
      missing: per task that lacks labels, ``{"count": files, "first": name}``.
    """

    images: int = 0
    fault: str | None = None
    missing: dict[str, dict[str, int | str]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class TaskReport:
    """The labels of one task in the examples looked at.

    Attributes:
      labels: examples that have one.
      valid: share of their pixels that is labelled.
      kind: as in ``data.labels``.
      shares: for classes and yes or no, the share of each value among labelled pixels.
      edges: for depth, ``BINS + 1`` bounds of a histogram; else empty.
      histogram: for depth, the share of labelled pixels between them.
      lowest: for depth, the least value, and ``highest`` the greatest.
      median: for depth, about.
      towards_viewer: for normals, the share with z < 0, as the library has them.
      resized: labels that were not of their image's size.
    """

    labels: int
    valid: float
    kind: str
    shares: list[float] = dataclasses.field(default_factory=list)
    edges: list[float] = dataclasses.field(default_factory=list)
    histogram: list[float] = dataclasses.field(default_factory=list)
    lowest: float = 0.0
    highest: float = 0.0
    median: float = 0.0
    towards_viewer: float = 0.0
    resized: int = 0


@dataclasses.dataclass
class Report:
    """What `examine` found.

    Attributes:
      name: of the data set.
      root: where it is.
      layout: which release.
      notes: what was decided on reading, for example the unit of depth.
      splits: a report each.
      looked_at: examples that were read.
      sizes: (height, width) of the smallest and of the largest image among them.
      tasks: a report each.
      faults: one sentence for each damaged file, list or undecided unit, without repetition.
      samples: a few of the examples, spread over all.
    """

    name: str
    root: str
    layout: str
    notes: dict[str, str] = dataclasses.field(default_factory=dict)
    splits: dict[str, SplitReport] = dataclasses.field(default_factory=dict)
    looked_at: int = 0
    sizes: tuple[tuple[int, int], tuple[int, int]] | None = None
    tasks: dict[str, TaskReport] = dataclasses.field(default_factory=dict)
    faults: list[str] = dataclasses.field(default_factory=list)
    samples: list[Sample] = dataclasses.field(default_factory=list)


def examine(reader: Reader, examples: int = 64, samples: int = 8) -> Report:
    """Looks through an archive without stopping at the first fault.

    Args:
      reader: of the archive.
      examples: so many are read, spread evenly over all splits; 0 reads all.
      samples: so many of them are kept in the report.

    Returns:
      The report.
    """
    report = Report(reader.name, reader.tree.where(""), reader.layout)
    try:
        report.notes = reader.notes
    except DataError as error:
        report.faults.append(str(error))
    ids: list[str] = []
    for split in reader.splits:
        found = report.splits[split] = SplitReport()
        try:
            listed = reader.ids(split)
        except DataError as error:
            found.fault = str(error)
            report.faults.append(found.fault)
            listed = _readable(reader, split)
        found.images, found.missing = len(listed), reader.absent(listed)
        ids += listed
    if not reader.splits:
        report.faults.append(f"{report.root} has no split, expected at least one list or folder")
    chosen = [ids[i] for i in spread(len(ids), examples or len(ids))]
    keep = {chosen[i] for i in spread(len(chosen), samples)}
    tallies = {task: _Tally(task, reader) for task in reader.tasks}
    sizes: list[tuple[int, int]] = []
    for id in chosen:
        sample = _read(reader, id, report.faults)
        if sample is None:
            continue
        sizes.append((sample.image.shape[0], sample.image.shape[1]))
        for task in sample.available:
            tallies[task].add(sample)
        if id in keep:
            report.samples.append(sample)
    report.looked_at = len(sizes)
    if sizes:
        by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
        report.sizes = by_area[0], by_area[-1]
    report.tasks = {task: tally.report() for task, tally in tallies.items()}
    report.faults = list(dict.fromkeys(report.faults))
    return report


def spread(total: int, count: int) -> list[int]:
    """At most ``count`` of ``total`` positions, from the first, at equal distances."""
    if count >= total:
        return list(range(total))
    return [i * total // count for i in range(count)]


def _readable(reader: Reader, split: str) -> list[str]:
    """The ids of a faulty list that have an image."""
    try:
        return reader.ids(split, strict=False)
    except DataError:
        return []


def _read(reader: Reader, id: str, faults: list[str]) -> Sample | None:
    """The sample, without the tasks whose files are at fault; None without an image."""
    try:
        return reader.read(id)
    except DataError:
        good = []
        for task in reader.tasks:
            try:
                reader.read(id, (task,))
                good.append(task)
            except DataError as error:
                faults.append(str(error))
    try:
        return reader.read(id, good)
    except DataError as error:
        faults.append(str(error))
        return None


class _Tally:
    """Sums over the labels of one task."""

    def __init__(self, task: str, reader: Reader):
        self.task, self.kind = task, kind_of(task)
        classes = reader.channels[task] if self.kind == "class" else 2
        self.counts = np.zeros(classes, np.int64)
        self.labels = self.pixels = self.valid = self.resized = self.facing = 0
        self.values: list[np.ndarray] = []
        self.range: list[float] = []

    def add(self, sample: Sample) -> None:
        label, valid = sample.labels[self.task], sample.valid[self.task]
        held = label[valid]
        self.labels += 1
        self.pixels += valid.size
        self.valid += len(held)
        self.resized += self.task in sample.resized
        if self.kind in ("class", "binary"):
            self.counts += np.bincount(held, minlength=len(self.counts))
        elif self.kind == "normals":
            self.facing += int((held[:, 2] < 0).sum())
        elif len(held):
            self.range += [float(held.min()), float(held.max())]
            self.values.append(held[:: -(-len(held) // _PER_IMAGE)])

    def report(self) -> TaskReport:
        found = TaskReport(self.labels, self.valid / max(self.pixels, 1), self.kind)
        found.resized = self.resized
        if self.kind in ("class", "binary"):
            found.shares = _shares(self.counts)
        elif self.kind == "normals":
            found.towards_viewer = self.facing / max(self.valid, 1)
        elif self.values:
            values = np.concatenate(self.values)
            found.lowest, found.highest = min(self.range), max(self.range)
            found.median = float(np.median(values))
            # The last bin ends where almost all values do, so that one far pixel hides nothing.
            counts, edges = np.histogram(
                np.minimum(values, top := float(np.percentile(values, 99))), BINS, (0, top)
            )
            found.edges, found.histogram = [float(e) for e in edges], _shares(counts)
        return found


def _shares(counts: Iterable[int]) -> list[float]:
    counts = np.asarray(counts, np.float64)
    return [float(share) for share in counts / max(counts.sum(), 1.0)]

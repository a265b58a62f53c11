"""Batches addressed by (seed, step): nothing to remember, so nothing to lose at a restart.

The training stream is one endless sequence of positions 0, 1, 2, ...; step ``s`` of batch size B
takes positions ``s * B`` to ``s * B + B - 1``. Position ``p`` falls into epoch ``p // N``; every
epoch is a new permutation of the N examples (Grain's index shuffle, a pure function of the seed
and the position), and the augmentation of position ``p`` has its own Philox stream keyed by (seed,
p). Hence:

* ``batch_at(7)`` of a new pipeline is the seventh batch of any other with the same seed, and
  resuming is starting the iterator at another step;
* a process of many reads only its ``local`` slice of the same global batch, whatever their number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from sinewich_jax.data.source import DataSource, Example
from sinewich_jax.data.views import SelectTasks
from sinewich_jax.errors import ConfigError, DataError

Batch = dict[str, Any]
AugmentFn = Callable[[Example, np.random.Generator], Example]

_AUGMENT_STREAM = 0x5157_4348  # tells augmentation draws from any other use of the same seed
_INDEX_MASK = 2**31 - 1
# What of an example goes into a batch; ``grows`` is for augmentation alone.
_FIELDS = ("image", "text", "labels", "valid", "size")


def example_rng(seed: int, position: int) -> np.random.Generator:
    """The generator of one position of the stream: Philox, key (seed, domain), own counter block.

    Args:
      seed: the run's seed.
      position: position in the stream.

    Returns:
      A generator that no other position shares.
    """
    bits = np.random.Philox(key=[seed, _AUGMENT_STREAM], counter=[0, position, 0, 0])
    return np.random.Generator(bits)


class Pipeline:
    """Batches of a source by step number; made by :func:`batches` and :func:`eval_batches`.

    Attributes:
      steps: number of batches, or None when the stream is endless.
      batch_size: examples of the global batch.
      local: the slice of the global batch that this process reads.
    """

    def __init__(
        self,
        source: DataSource,
        batch_size: int,
        seed: int,
        augment: AugmentFn | None,
        shuffle: bool,
        endless: bool,
        local: slice | None,
    ):
        """See :func:`batches` and :func:`eval_batches`."""
        if not len(source):
            raise DataError("the data set holds no example")
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}, expected at least 1")
        if not 0 <= seed < 2**32:
            raise ConfigError(f"seed is {seed}, expected a whole number from 0 to 2**32 - 1")
        self.batch_size, self.seed = batch_size, seed
        self.local = range(batch_size)[local or slice(None)]
        self.steps = None if endless else -(-len(source) // batch_size)
        self._source, self._augment, self._shuffle = source, augment, shuffle

    @functools.cached_property
    def _order(self) -> Sequence[int]:
        """Source index of every position of the endless stream (Grain, imported on first use)."""
        import grain

        return grain.MapDataset.range(len(self._source)).shuffle(seed=self.seed).repeat()

    def source_index(self, position: int) -> int | None:
        """Which example of the source stands at a position; None for padding after the last."""
        total = len(self._source)
        if self.steps is not None:
            return position if position < total else None
        return int(self._order[position]) if self._shuffle else position % total

    def _example(self, position: int) -> Example:
        index = self.source_index(position)
        if index is None:
            return _padding(self._source[len(self._source) - 1])
        example = self._source[index]
        if self._augment is not None:
            example = self._augment(example, example_rng(self.seed, position))
        return example

    def batch_at(self, step: int) -> Batch:
        """The batch of one step, a pure function of (seed, step).

        Args:
          step: step number from 0.

        Returns:
          ``{"image": uint8 [b, H, W, 3], "labels": {task: [b, H, W(, 3)]},
          "valid": {task: bool [b, H, W]}, "index": int32 [b]}``, NumPy, b = ``len(local)``; of
          texts ``"text"`` in place of ``"image"``, and a label each. ``index`` is the position in
          the stream (modulo 2**31). Labels of their original size
          (:class:`~sinewich_jax.data.views.OriginalLabels`) come with ``"size"``, int32 [b, 2].
        """
        if step < 0 or (self.steps is not None and step >= self.steps):
            last = "" if self.steps is None else f" to {self.steps - 1}"
            raise DataError(f"there is no batch {step}, expected a step from 0{last}")
        positions = [step * self.batch_size + i for i in self.local]
        batch = _stack([self._example(position) for position in positions])
        batch["index"] = (np.array(positions, np.int64) & _INDEX_MASK).astype(np.int32)
        return batch

    def iterate(
        self,
        start_step: int = 0,
        stop_step: int | None = None,
        threads: int = 0,
        prefetch: int = 4,
    ) -> Iterator[Batch]:
        """Batches in order; the same ones whatever the number of threads.

        Args:
          start_step: first step.
          stop_step: step after the last; None for the end of the data (never, when endless).
          threads: threads that prepare batches ahead; 0 prepares each when it is asked for.
          prefetch: batches kept ready (with threads).

        Yields:
          What :meth:`batch_at` returns.
        """
        ends = [end for end in (self.steps, stop_step) if end is not None]
        stop = min(ends) if ends else _INDEX_MASK
        if threads < 1:
            yield from map(self.batch_at, range(start_step, stop))
            return
        import grain

        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, 1))
        ahead = grain.MapDataset.range(start_step, stop).map(self.batch_at)
        yield from ahead.to_iter_dataset(options)

    def __iter__(self) -> Iterator[Batch]:
        """All batches from step 0, prepared one by one."""
        return self.iterate()


def batches(
    source: DataSource,
    tasks: Sequence[str] | None = None,
    batch_size: int = 8,
    seed: int = 0,
    augment: AugmentFn | None = None,
    shuffle: bool = True,
    local: slice | None = None,
) -> Pipeline:
    """The endless training stream of a source.

    Args:
      source: where examples come from.
      tasks: tasks wanted, in order; None takes all of the source.
      batch_size: examples of the global batch, over all processes.
      seed: of the shuffling and the augmentation.
      augment: changes an example given its own generator, e.g.
        :class:`~sinewich_jax.data.augment.Augment`.
      shuffle: a new permutation each epoch; otherwise the source's order, again and again.
      local: the slice of the global batch that this process feeds to its devices.

    Returns:
      The pipeline.

    Raises:
      DataError: a task without labels in the source.
    """
    chosen = source if tasks is None else SelectTasks(source, tasks)
    return Pipeline(chosen, batch_size, seed, augment, shuffle, endless=True, local=local)


def eval_batches(
    source: DataSource,
    batch_size: int,
    tasks: Sequence[str] | None = None,
    local: slice | None = None,
) -> Pipeline:
    """Every example once, in order; the last batch is filled up with examples that count nowhere.

    Args:
      source: where examples come from.
      batch_size: examples of the global batch, over all processes.
      tasks: tasks wanted, in order; None takes all of the source.
      local: the slice of the global batch that this process feeds to its devices.

    Returns:
      A pipeline of ``ceil(len(source) / batch_size)`` steps. Filling examples are zero, their
      masks False.
    """
    chosen = source if tasks is None else SelectTasks(source, tasks)
    return Pipeline(chosen, batch_size, 0, None, shuffle=False, endless=False, local=local)


def _padding(like: Example) -> Example:
    blank = _map(lambda leaves: np.zeros_like(leaves[0]), like)
    # The frame of an image without labels is as good as any other.
    return blank | {key: like[key] for key in ("size",) if key in like}


def _stack(examples: Sequence[Example]) -> Batch:
    sizes = {example["image"].shape[:2] for example in examples if "image" in example}
    if len(sizes) > 1:
        shown = ", ".join(f"{h} x {w}" for h, w in sorted(sizes)[:3])
        raise DataError(
            f"a batch mixes images of different sizes ({shown}, height x width); give the data "
            "set one size (image_size, or resize=) or crop to one (augment.crop)"
        )
    told = [{key: example[key] for key in _FIELDS if key in example} for example in examples]
    return _map(np.stack, *told)


def _map(function: Callable[[Sequence[np.ndarray]], np.ndarray], *trees: Any) -> Any:
    """``function`` of the arrays at each place of nested dicts; data knows no JAX."""
    if isinstance(trees[0], dict):
        return {key: _map(function, *(tree[key] for tree in trees)) for key in trees[0]}
    return function(trees)

"""The few examples of every task that a router asks: their features and whose they are.

The published code takes 100 training images a task in the training loader's order, with its random
crops, and their features from the pretrained encoder (arXiv 2412.00054, ``merge_vit``). Here the
caller decides both: hand over examples as they are prepared for evaluation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sinewich_jax.core.trees import flatten_paths, map_paths
from sinewich_jax.errors import ConfigError, DataError
from sinewich_jax.switches.fits import check_whole

Array = Any


class QuerySet(NamedTuple):
    """Features of known tasks.

    Attributes:
      features: float32 (M, e), from the model that all switches change.
      tasks: int32 (M,), indices into ``names``.
      names: of the T tasks.
    """

    features: Array
    tasks: Array
    names: tuple[str, ...]

    @classmethod
    def checked(cls, features: Array, tasks: Array, names: Sequence[str]) -> QuerySet:
        """A query set of arrays from anywhere, as NumPy.

        Raises:
          DataError: features that are no finite matrix, tasks that do not index ``names``, or a
            task without an example.
          ConfigError: a name that occurs twice, or none at all.
        """
        names = tuple(names)
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"the tasks are {list(names)}; expected at least one, each once")
        features, tasks = np.asarray(features, np.float32), np.asarray(tasks)
        if features.ndim != 2 or not features.shape[1] or tasks.shape != features.shape[:1]:
            raise DataError(
                f"the query set has features of shape {features.shape} and tasks of shape "
                f"{tasks.shape}; expected (M, e) and (M,)"
            )
        if tasks.dtype.kind not in "iu" or np.any((tasks < 0) | (tasks >= len(names))):
            raise DataError(
                f"the query set numbers its tasks {sorted(set(tasks.tolist()))}; expected whole "
                f"numbers from 0 to {len(names) - 1}, one for each of {list(names)}"
            )
        counts = np.bincount(tasks, minlength=len(names))
        for name, count in zip(names, counts, strict=True):
            if not count:
                raise DataError(f"the query set has no example of the task {name!r}; add some")
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            row = int(np.argmin(finite))
            raise DataError(
                f"features of {np.count_nonzero(~finite)} examples of the query set are not "
                f"finite, the first of the task {names[tasks[row]]!r}; look at the feature function"
            )
        return cls(features, tasks.astype(np.int32), names)

    def project(self, projection: Array) -> QuerySet:
        """The query set in the space of a projection (e, r), such as that of ``fit_metric``."""
        return self._replace(features=np.asarray(self.features) @ np.asarray(projection))


def build_query_set(
    feature_fn: Callable[[Any], Array],
    batches: Mapping[str, Iterable[Any]],
    n: int = 100,
    *,
    balanced: bool = False,
) -> QuerySet:
    """The features of ``n`` examples of every task.

    Votes count examples, so a task with fewer than ``n`` is heard less than the others.

    Args:
      feature_fn: from a batch of inputs to features (b, e), NumPy or JAX.
      batches: for every task an iterable of batches of inputs (arrays, or trees of them, with a
        leading axis), prepared as for evaluation. Only as many are read as are needed.
      n: examples a task; all of a task that has fewer.
      balanced: the iterables give pairs of inputs and labels (b,), are read to their end, and the
        labels of a task take turns until ``n`` examples are chosen. At most ``n`` of each label
        are held until then.

    Raises:
      ConfigError: no task, or an ``n`` below 1.
      DataError: a task without examples, features that are not finite or of another width.
    """
    check_whole("n", n)
    features: list[np.ndarray] = []
    tasks: list[int] = []
    for task, (name, stream) in enumerate(batches.items()):
        for inputs in _balanced(name, stream, n) if balanced else _first(name, stream, n):
            rows = np.asarray(feature_fn(inputs), np.float32)
            expected = (_length(name, inputs), *(features[0].shape[1:] if features else ("e",)))
            if rows.ndim != 2 or len(rows) != expected[0] or expected[1] not in ("e", *rows.shape):
                raise DataError(
                    f"features of the task {name!r} have shape {rows.shape}; expected "
                    f"({expected[0]}, {expected[1]}), one row an example and one width for all"
                )
            features.append(rows)
            tasks += [task] * len(rows)
    if not features:
        raise ConfigError("there are no batches of any task; name at least one with its examples")
    return QuerySet.checked(np.concatenate(features), np.asarray(tasks), tuple(batches))


def _first(name: str, stream: Iterable[Any], n: int) -> Iterator[Any]:
    """Batches as they come, the last cut, until there are ``n`` examples."""
    left = n
    for inputs in stream:
        rows = _length(name, inputs)
        if rows:
            keep = slice(0, left)
            yield map_paths(lambda _, leaf, keep=keep: leaf[keep], inputs)
        left -= rows
        if left <= 0:
            return
    if left == n:
        raise DataError(f"the task {name!r} has no example; give its iterable at least one")


def _balanced(name: str, stream: Iterable[Any], n: int) -> Iterator[Any]:
    """One batch of ``n`` examples whose labels take turns, in the order in which they appeared."""
    by_label: dict[Any, list[Any]] = {}
    for pair in stream:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise DataError(
                f"a batch of the task {name!r} is no pair of inputs and labels, which balanced "
                "examples need"
            )
        inputs = map_paths(lambda _, leaf: np.asarray(leaf), pair[0])
        labels = np.asarray(pair[1])
        if labels.shape != (_length(name, inputs),):
            raise DataError(
                f"a batch of the task {name!r} has {_length(name, inputs)} inputs and labels of "
                f"shape {labels.shape}; expected one label an input"
            )
        for row, label in enumerate(labels.tolist()):
            held = by_label.setdefault(label, [])
            if len(held) < n:
                held.append(map_paths(lambda _, leaf, row=row: leaf[row], inputs))
    turns = (held[i] for i in range(n) for held in by_label.values() if i < len(held))
    chosen = list(itertools.islice(turns, n))
    if not chosen:
        raise DataError(f"the task {name!r} has no example; give its iterable at least one")
    leaves = [flatten_paths(example) for example in chosen]
    yield map_paths(lambda path, _: np.stack([flat[path] for flat in leaves]), chosen[0])


def _length(name: str, inputs: Any) -> int:
    """The number of examples of a batch, on which all leaves have to agree."""
    lengths = {np.shape(leaf)[:1] for leaf in flatten_paths(inputs).values()}
    if len(lengths) != 1 or lengths == {()}:
        raise DataError(
            f"a batch of inputs of the task {name!r} has leading axes {sorted(lengths)}; expected "
            "arrays with one example a row, as many in each"
        )
    return lengths.pop()[0]

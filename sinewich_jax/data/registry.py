"""Data sets by name; each is one module in ``sinewich_jax/data/sets`` that registers itself.

Your own set is one function::

    from sinewich_jax import data

    @data.register("meadow")
    def meadow(split, data_dir=None, image_size=None):
        return data.from_folder(data.find_root(data_dir, "meadow", "meadow"), split)

A set of texts says so, ``register("letters", texts=True)``, opens a split as
`sinewich_jax.data.Texts`, and is opened by :func:`load_texts`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sinewich_jax.data.source import ArraySource, DataSource
from sinewich_jax.data.text.texts import Texts
from sinewich_jax.data.views import Cached, Resized, SelectTasks, parse_split, part
from sinewich_jax.errors import ConfigError, DataError, did_you_mean

Opener = Callable[..., DataSource] | Callable[..., Texts]

ENVIRONMENT = "SINEWICH_DATA"
"""The environment variable that names the folder of the data sets when ``data_dir`` is not set."""

_OPENERS: dict[str, Opener] = {}
_EVAL_SPLITS: dict[str, str] = {}
_RENDERED: set[str] = set()
_TEXTS: set[str] = set()


def register(
    name: str, *, eval_split: str = "val", rendered: bool = False, texts: bool = False
) -> Callable[[Opener], Opener]:
    """Registers a data set.

    The function is called as ``open(split, data_dir=..., **options)`` with a plain split name. When
    it takes ``tasks``, ``image_size``, ``channels`` or ``size`` these are passed on to it; in any
    case :func:`load` then brings tasks, image size and number of examples to what was asked.

    Args:
      name: what :func:`load` will know it by.
      eval_split: the split that is scored when a run does not name one.
      rendered: examples are made at any ``image_size`` and have no size of their own.
      texts: the function returns `sinewich_jax.data.Texts`, and :func:`load_texts` opens the set;
        of the options above it is passed ``tasks``.
    """

    def enter(opener: Opener) -> Opener:
        if name in _OPENERS:
            raise ConfigError(f"a data set named {name!r} is registered already")
        _OPENERS[name] = opener
        _EVAL_SPLITS[name] = eval_split
        if rendered:
            _RENDERED.add(name)
        if texts:
            _TEXTS.add(name)
        return opener

    return enter


def default_eval_split(name: str) -> str:
    """The split of a data set that is scored when a run does not name one.

    Raises:
      ConfigError: an unknown data set (the nearest is offered).
    """
    _opener(name)
    return _EVAL_SPLITS[name]


def is_rendered(name: str) -> bool:
    """Whether a data set is made at the size that is asked for; False for an unknown name."""
    _import_sets()
    return name in _RENDERED


def is_text(name: str) -> bool:
    """Whether a data set holds texts, for :func:`load_texts`; False for an unknown name."""
    _import_sets()
    return name in _TEXTS


def _opener(name: str) -> Opener:
    _import_sets()
    if name not in _OPENERS:
        near = did_you_mean(name, _OPENERS)
        raise ConfigError(
            f"there is no data set {name!r}{near}; examples of your own are given in Python, as an "
            "experiment"
        )
    return _OPENERS[name]


@functools.cache
def _import_sets() -> None:
    from sinewich_jax.data import sets

    for module in pkgutil.iter_modules(sets.__path__):
        importlib.import_module(f"{sets.__name__}.{module.name}")


def names() -> tuple[str, ...]:
    """Names of the registered data sets, sorted."""
    _import_sets()
    return tuple(sorted(_OPENERS))


def load(
    name: str,
    split: str = "train",
    data_dir: str | os.PathLike[str] | None = None,
    tasks: Sequence[str] | None = None,
    image_size: tuple[int, int] | None = None,
    channels: Mapping[str, int] | None = None,
    size: int | None = None,
    cache_mb: int = 1024,
    **options: Any,
) -> DataSource:
    """Opens a split of a data set.

    Args:
      name: one of :func:`names`.
      split: a split of the set, or a part of one: ``"train[:100]"``, ``"train[80%:]"``.
      data_dir: folder of the data; None lets the set look where it looks by default.
      tasks: tasks wanted, in order; None takes all of the set.
      image_size: (height, width); None keeps the set's own.
      channels: class counts by task, for a set whose files do not say them; a set that knows its
        classes keeps its own.
      size: only the first ``size`` examples of the split; None takes all. A set that makes its
        examples makes so many.
      cache_mb: megabytes of decoded examples kept in memory after their first reading.
      **options: what the set's own opener takes besides.

    Returns:
      The data source.

    Raises:
      ConfigError: an unknown data set or option (the nearest is offered), or a set of texts.
      DataError: the data is absent or not what it should be.
    """
    opener = _opener(name)
    if name in _TEXTS:
        raise ConfigError(f"data set {name!r} holds texts, open it with load_texts")
    accepted = inspect.signature(opener).parameters
    for key in options:
        if key not in accepted:
            near = did_you_mean(key, [p for p in accepted if p != "split"])
            raise ConfigError(f"data set {name!r} has no option {key!r}{near}")
    base, start, stop = parse_split(split)
    asked = {"tasks": tasks, "image_size": image_size, "channels": channels}
    if start is None and stop is None:  # The size of a part is not that of its split.
        asked["size"] = size
    options |= {key: value for key, value in asked.items() if key in accepted}
    source = part(opener(base, data_dir=data_dir, **options), start, stop)
    if size is not None and len(source) != size:
        if size > len(source):
            raise DataError(
                f"split {split!r} of {name!r} has {len(source)} examples, {size} were asked for; "
                "lower the size (config key train_size or eval_size) or leave it out"
            )
        source = part(source, None, str(size))
    source = fit(source, tasks, image_size)
    return source if isinstance(source, ArraySource) else Cached(source, cache_mb * 1_000_000)


def load_texts(
    name: str,
    split: str = "train",
    data_dir: str | os.PathLike[str] | None = None,
    tasks: Sequence[str] | None = None,
) -> Texts:
    """Opens a split of a data set of texts.

    Args:
      name: one of :func:`names` that :func:`is_text`.
      split: a split of the set; `Texts.first` and `Texts.sample` take parts of it.
      data_dir: folder of the data; None lets the set look where it looks by default.
      tasks: tasks wanted, in order; None takes all that are there.

    Returns:
      The texts.

    Raises:
      ConfigError: an unknown data set (the nearest is offered), or a set of images.
      DataError: the data is absent or not what it should be.
    """
    opener = _opener(name)
    if name not in _TEXTS:
        raise ConfigError(f"data set {name!r} holds images, open it with load")
    base, start, stop = parse_split(split)
    if start is not None or stop is not None:
        raise DataError(
            f"split {split!r} is a part, which sets of texts do not have; open {base!r} and take "
            "first(size) or sample(size, seed) of it"
        )
    takes_tasks = tasks is not None and "tasks" in inspect.signature(opener).parameters
    options = {"tasks": tuple(tasks or ())} if takes_tasks else {}
    texts = opener(base, data_dir=data_dir, **options)
    return texts if tasks is None else texts.select(tasks)


def fit(
    source: DataSource,
    tasks: Sequence[str] | None = None,
    image_size: tuple[int, int] | None = None,
) -> DataSource:
    """A source with the tasks wanted, in order, at the size wanted; None keeps what it has.

    Raises:
      DataError: the source lacks one of the tasks.
    """
    if tasks is not None and tuple(tasks) != tuple(source.tasks):
        source = SelectTasks(source, tasks)
    if image_size is not None and source.size != tuple(image_size):
        source = Resized(source, image_size)
    return source


def find_root(data_dir: str | os.PathLike[str] | None, name: str, needed: str) -> Path:
    """The path of ``needed`` under ``data_dir``, or under the folder the environment names.

    Args:
      data_dir: the configured folder, or None.
      name: the data set, for the message.
      needed: path below that folder which must exist.

    Returns:
      The existing path.

    Raises:
      DataError: one sentence that names both ways to say where the data is.
    """
    root = data_dir if data_dir is not None else os.environ.get(ENVIRONMENT)
    if root and (Path(root) / needed).exists():
        return Path(root) / needed
    found = f"there is no {Path(root) / needed}" if root else "neither is set"
    raise DataError(
        f"data set {name!r} needs the folder that holds {needed}, named by the config key data_dir "
        f"or the environment variable {ENVIRONMENT}, but {found}"
    )

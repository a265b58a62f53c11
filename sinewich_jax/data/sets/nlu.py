"""nlu: text tasks in files of JSON lines, ``nlu/<task>.{train,val,test}.jsonl.gz``.

A line is one example, ``{"a": text, "b": second text of a pair, "y": label}``; tasks may share a
file (``sick_relatedness`` is the field ``r`` of sick's). Where a ``MANIFEST.json`` beside the
folder lists ``{"nlu": {task: {"labels": [...]}}}``, these are the names of the classes.

Texts of different tasks may overlap: sst2 and mr are made of the same reviews, never train on one
and score the other.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sinewich_jax.data.registry import find_root, register
from sinewich_jax.data.text.lines import as_object, field, read_objects
from sinewich_jax.data.text.texts import Text, Texts, task_of
from sinewich_jax.errors import DataError

SPLITS = ("train", "val", "test")

_FIELDS = {"sick_relatedness": ("sick", "r")}
"""Tasks that are another field of another task's file."""


@register("nlu", texts=True)
def nlu(
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    tasks: Sequence[str] | None = None,
) -> Texts:
    """Opens a split, ``"train"``, ``"val"`` or ``"test"``.

    Args:
      split: which one.
      data_dir: folder that holds ``nlu/``.
      tasks: those wanted, any registered text task whose file is there; None takes all of them.
    """
    if split not in SPLITS:
        raise DataError(f"nlu has no split {split!r}, expected one of {', '.join(SPLITS)}")
    folder = find_root(data_dir, "nlu", "nlu")
    wanted = _held(folder, split) if tasks is None else tuple(tasks)
    paths = {}
    for task in wanted:
        task_of(task)
        paths[task] = folder / f"{_FIELDS.get(task, (task, ''))[0]}.{split}.jsonl.gz"
        if not paths[task].is_file():
            held = ", ".join(_held(folder, split)) or "none"
            raise DataError(
                f"task {task!r} needs the file {paths[task]}, which is not there (found: {held})"
            )
    return Texts(
        {task: _read(path, _FIELDS.get(task, (task, "y"))[1]) for task, path in paths.items()},
        class_names=_class_names(folder.parent / "MANIFEST.json", wanted),
        where=lambda task, index: f"line {index + 1} of {paths[task]}",
    )


def _held(folder: Path, split: str) -> tuple[str, ...]:
    """Tasks with a file for a split, and those that are another field of one."""
    ending = f".{split}.jsonl.gz"
    stems = {path.name.removesuffix(ending) for path in folder.glob(f"*{ending}")}
    return tuple(sorted(stems | {task for task, (stem, _) in _FIELDS.items() if stem in stems}))


def _read(path: Path, label: str) -> list[Text]:
    return [
        Text(field(one, "a", where), one.get("b"), field(one, label, where))
        for number, one in enumerate(read_objects(path), 1)
        for where in [f"line {number} of {path}"]
    ]


def _class_names(path: Path, tasks: Sequence[str]) -> dict[str, Sequence[str]]:
    if not path.is_file():
        return {}
    about = as_object(path.read_text("utf-8"), str(path)).get("nlu", {})
    listed = {task: about.get(task, {}).get("labels") for task in tasks}
    return {task: names for task, names in listed.items() if names}

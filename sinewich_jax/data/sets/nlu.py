"""nlu: text tasks in files of JSON lines, ``nlu/<task>.{train,val,test}.jsonl.gz``.

A line is one example, ``{"a": text, "b": second text of a pair, "y": label}``; tasks may share a
file (``sick_relatedness`` is the field ``r`` of sick's). Where a ``MANIFEST.json`` beside the
folder lists ``{"nlu": {task: {"labels": [...]}}}``, these are the names of the classes.

Texts of different tasks may overlap: sst2 and mr are made of the same reviews, never train on one
and score the other.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sinewich_jax.data.registry import find_root, register
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
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [_text(line, label, f"line {n} of {path}") for n, line in enumerate(file, 1)]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}), expected gzip of lines in UTF-8; fetch it again"
        ) from None


def _text(line: str, label: str, where: str) -> Text:
    entry = _object(line, where)
    for field in ("a", label):
        if field not in entry:
            found = ", ".join(entry) or "none"
            raise DataError(f"{where} lacks the field {field!r} (found: {found})")
    return Text(entry["a"], entry.get("b"), entry[label])


def _class_names(path: Path, tasks: Sequence[str]) -> dict[str, Sequence[str]]:
    if not path.is_file():
        return {}
    about = _object(path.read_text("utf-8"), str(path)).get("nlu", {})
    listed = {task: about.get(task, {}).get("labels") for task in tasks}
    return {task: names for task, names in listed.items() if names}


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        entry = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error})") from None
    if not isinstance(entry, dict):
        raise DataError(f"{where} holds a {type(entry).__name__}, expected an object")
    return entry

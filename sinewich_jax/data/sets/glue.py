"""glue: the nine tasks of GLUE as TensorFlow Datasets prepares them, read without TensorFlow.

Prepare a task once, as array_record files, and name the folder as the data folder::

    tfds.builder("glue/cola", data_dir=FOLDER, file_format="array_record").download_and_prepare()

TFDS needs TensorFlow for that, anywhere; reading what it made does not.
The test split of GLUE was published without labels, so ``"val"`` (theirs: validation) is the one to
score. Labels are brought to this library's class ids by the names of the classes: theirs of RTE
begin with "entailment", ours with "not_entailment".
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sinewich_jax.data.registry import find_root, register
from sinewich_jax.data.text.texts import Text, Texts, task_of
from sinewich_jax.errors import DataError, did_you_mean

_SENTENCES = ("sentence1", "sentence2")
FIELDS = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": _SENTENCES,
    "stsb": _SENTENCES,
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": _SENTENCES,
    "wnli": _SENTENCES,
}
"""The tasks, each with the features that hold its texts."""

SPLITS = {"train": "train", "val": "validation"}
"""Our names of splits, and theirs."""

_MNLI_SPLITS = {
    "train": "train",
    "val": "validation_matched",
    "val_mismatched": "validation_mismatched",
}
_OURS = {"not_equivalent": "not_paraphrase", "equivalent": "paraphrase"}
"""Names of classes that are others there."""


@register("glue", texts=True)
def glue(
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    tasks: Sequence[str] | None = None,
) -> Texts:
    """Opens a split, ``"train"`` or ``"val"``; of mnli alone also ``"val_mismatched"``.

    Args:
      split: which one.
      data_dir: folder that holds ``glue/``.
      tasks: those wanted, keys of :data:`FIELDS`; None takes all that are prepared.
    """
    root = find_root(data_dir, "glue", "glue")
    held = tuple(task for task in FIELDS if _prepared(root, task) is not None)
    wanted = held if tasks is None else tuple(tasks)
    for task in wanted:
        if task not in FIELDS:
            raise DataError(f"glue has no task {task!r}{did_you_mean(task, FIELDS)}")
    if not wanted:
        raise DataError(f"{root} holds no task; {_advice(root, 'cola')}")
    return Texts(
        {task: _read(root, task, split) for task in wanted},
        where=lambda task, index: f"example {index} of glue/{task} {split}",
    )


def _prepared(root: Path, task: str) -> Path | None:
    """The newest version of a task on disk."""
    found = (root / task).glob("*/dataset_info.json")
    versions = [path.parent for path in found if path.parent.name.replace(".", "").isdigit()]
    return max(versions, key=lambda path: [*map(int, path.name.split("."))], default=None)


def _advice(root: Path, task: str) -> str:
    return (
        f"prepare it with tfds.builder('glue/{task}', data_dir={os.fspath(root.parent)!r}, "
        "file_format='array_record').download_and_prepare()"
    )


def _read(root: Path, task: str, split: str) -> list[Text]:
    splits = _MNLI_SPLITS if task == "mnli" else SPLITS
    if split == "test":
        raise DataError("the test split of glue was published without labels; score 'val' instead")
    if split not in splits:
        raise DataError(f"glue/{task} has no split {split!r}{did_you_mean(split, splits)}")
    path = _prepared(root, task)
    if path is None:
        raise DataError(f"glue/{task} is not prepared in {root}; {_advice(root, task)}")
    _check_format(path, root, task)
    # On first use: TFDS takes a second, and most runs read no GLUE.
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(path)
        names = getattr(builder.info.features["label"], "names", None)
        records = list(builder.as_data_source(splits[split]))
    except (KeyError, OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); {_advice(root, task)}") from None
    ids = _ids(names, task, path)
    return [_text(record, task, ids, f"{task} of {path}") for record in records]


def _check_format(path: Path, root: Path, task: str) -> None:
    try:
        found = json.loads((path / "dataset_info.json").read_text("utf-8"))["fileFormat"]
    except (KeyError, OSError, TypeError, ValueError):
        raise DataError(f"{path} is damaged; remove it and {_advice(root, task)}") from None
    if found != "array_record":
        raise DataError(
            f"{path} holds {found} files, expected array_record; remove it and "
            f"{_advice(root, task)}"
        )


def _ids(names: Sequence[str] | None, task: str, path: Path) -> dict[int, int] | None:
    """Their class ids to ours, None for a task over scores."""
    ours = task_of(task).class_names
    if ours is None:
        return None
    theirs = [_OURS.get(name, name) for name in names or ()]
    if sorted(theirs) != sorted(ours):
        raise DataError(
            f"{path} has the classes {', '.join(theirs) or 'without names'}, expected "
            f"{', '.join(ours)}"
        )
    return {index: ours.index(name) for index, name in enumerate(theirs)}


def _text(record: Mapping[str, Any], task: str, ids: Mapping[int, int] | None, where: str) -> Text:
    fields = FIELDS[task]
    for field in (*fields, "label"):
        if field not in record:
            raise DataError(f"{where} lacks {field!r} (found: {', '.join(record)})")
    first, *rest = [record[field].decode() for field in fields]
    label = record["label"]
    return Text(first, rest[0] if rest else None, float(label) if ids is None else ids[int(label)])

"""What a run on texts remembers of the texts and the tokenizer that it began with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sinewich_jax import parallel, storage
from sinewich_jax.errors import CheckpointError
from sinewich_jax.train import workdir as workdirs

FILE = "texts.json"


class TextRecord(NamedTuple):
    """What a model alone does not say.

    Attributes:
      class_names: by task, the names of its classes by id, where they have names.
      tokenizer: mark of the tokenizer, see :attr:`sinewich_jax.data.Tokenizer.mark`.
    """

    class_names: Mapping[str, tuple[str, ...]]
    tokenizer: str


def write(workdir: Path, record: TextRecord) -> None:
    """Writes :data:`FILE` into a work directory."""
    if parallel.is_main_process():
        storage.write_json(workdir / FILE, record._asdict())


def read(workdir: Path | None) -> TextRecord | None:
    """What :func:`write` wrote; None where no run has begun, or an earlier version began it.

    Raises:
      CheckpointError: the file holds something else.
    """
    if workdir is None or not (workdir / FILE).is_file():
        return None
    content = workdirs.read_json(workdir / FILE)
    if not _is_record(content):
        raise CheckpointError(
            f"{workdir / FILE} holds no record of texts, expected class_names by task and the "
            "mark of a tokenizer; remove it to go without"
        )
    names = {task: tuple(given) for task, given in content["class_names"].items()}
    return TextRecord(names, content["tokenizer"])


def _is_record(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and content.keys() == set(TextRecord._fields)
        and isinstance(content["tokenizer"], str)
        and isinstance(content["class_names"], dict)
        and all(
            isinstance(names, list) and all(isinstance(name, str) for name in names)
            for names in content["class_names"].values()
        )
    )

"""Files of texts: JSON lines ``{"a": text, "b": second text of a pair, ...}``, or a text a line."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from pathlib import Path
from typing import Any

from sinewich_jax.errors import DataError

ENDINGS = (".jsonl", ".jsonl.gz", ".txt")
"""What the name of a file of texts may end in."""


def read_objects(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines.

    Args:
      path: UTF-8, compressed by gzip where its name ends in ``.gz``.

    Raises:
      DataError: a file that cannot be read, or a line that is no object; names it.
    """
    lines = enumerate(_lines(Path(path)), 1)
    return [as_object(line, f"line {number} of {path}") for number, line in lines]


def read_texts(path: str | os.PathLike[str]) -> list[tuple[str, str | None]]:
    """The texts of a file, without labels.

    Args:
      path: its name ends in one of :data:`ENDINGS`. Of JSON lines the fields ``a`` and, for pairs,
        ``b`` are read; a line of ``.txt`` is a text.

    Returns:
      ``(text, second text or None)`` for every line.

    Raises:
      DataError: another ending, an empty file, a file that cannot be read, or a line without
        ``a``.
    """
    path = Path(path)
    if not path.name.lower().endswith(ENDINGS):
        raise DataError(f"{path} is no file of texts, expected a name in {', '.join(ENDINGS)}")
    found: list[tuple[str, str | None]]
    if path.suffix.lower() == ".txt":
        found = [(line.rstrip("\r\n"), None) for line in _lines(path)]
    else:
        entries = enumerate(read_objects(path), 1)
        found = [(field(one, "a", f"line {n} of {path}"), one.get("b")) for n, one in entries]
    if not found:
        raise DataError(f"{path} is empty, expected a text a line")
    return found


def field(entry: dict[str, Any], name: str, where: str) -> Any:
    """A field that must be there.

    Raises:
      DataError: it is not; names ``where``.
    """
    if name not in entry:
        raise DataError(f"{where} lacks the field {name!r} (found: {', '.join(entry) or 'none'})")
    return entry[name]


def as_object(text: str, where: str) -> dict[str, Any]:
    """An object out of JSON.

    Raises:
      DataError: it is none; names ``where``.
    """
    try:
        entry = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error})") from None
    if not isinstance(entry, dict):
        raise DataError(f"{where} holds a {type(entry).__name__}, expected an object")
    return entry


def _lines(path: Path) -> list[str]:
    zipped = path.suffix.lower() == ".gz"
    try:
        with (gzip.open if zipped else open)(path, "rt", encoding="utf-8-sig") as file:
            return list(file)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        form = "gzip of lines" if zipped else "lines"
        raise DataError(f"{path} cannot be read ({error}), expected {form} in UTF-8") from None

"""What a whole checkpoint step consists of: every file with its checksum, every leaf with its type.

The manifest is written into the step's temporary folder as the last file before the commit, so it
appears with the step or not at all. It tells a damaged step (a checksum differs) from one that was
saved for another model (the leaves differ), which Orbax alone cannot.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinewich_jax.errors import CheckpointError
from sinewich_jax.storage.atomic import write_json

MANIFEST = "sinewich_manifest.json"
_FORMAT = 1
# Orbax stamps the time of the commit into the first and adds the second after the manifest.
_STEP_METADATA = "_CHECKPOINT_METADATA"
_AFTER_MANIFEST = {_STEP_METADATA, "commit_success.txt", MANIFEST}

Leaves = Mapping[str, str]
"""Path of a leaf -> its type as in ``"float32[3,4]"``."""


@dataclass(frozen=True)
class Manifest:
    """The verified description of one step.

    Attributes:
      step: the training step.
      items: item name -> its leaves; an item without leaves has no files.
    """

    step: int
    items: Mapping[str, Leaves]


def write_manifest(folder: Path, step: int, items: Mapping[str, Leaves]) -> None:
    """Records all files that lie in ``folder`` now.

    Args:
      folder: the folder of one step, with everything but the final commit written.
      step: the training step.
      items: item name -> leaves, path -> type.
    """
    files = {
        path.relative_to(folder).as_posix(): _measure(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() not in _AFTER_MANIFEST
    }
    body = {
        "format": _FORMAT,
        "step": step,
        "items": {name: dict(leaves) for name, leaves in items.items()},
        "files": files,
        "handlers": _handlers(folder / _STEP_METADATA),
    }
    write_json(folder / MANIFEST, body | {"sha256": _digest(body)})


def verify(folder: Path, under: str = "") -> Manifest:
    """Checks that a step is whole.

    Args:
      folder: the folder of one step.
      under: check only files whose path begins with this (``"meta/"``), for a cheap look.

    Returns:
      The manifest.

    Raises:
      CheckpointError: names the first file that is missing or differs, and how.
    """
    body = _read(folder)
    for name, expected in body["files"].items():
        if not name.startswith(under):
            continue
        path = folder / name
        if not path.is_file():
            raise _damaged(folder, name, "is missing")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise _damaged(folder, name, f"has {size} bytes, expected {expected['bytes']}")
        if _measure(path) != expected:
            raise _damaged(folder, name, "differs from its checksum")
    # Orbax may name its handlers after the manifest was sealed: then there is nothing to compare.
    handlers = _handlers(folder / _STEP_METADATA)
    if body["handlers"] is not None and handlers != body["handlers"]:
        raise _damaged(folder, _STEP_METADATA, "differs from what was saved")
    return Manifest(step=body["step"], items=body["items"])


def _read(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise _damaged(folder, MANIFEST, "is missing, so the save never finished")
    try:
        body = json.loads(path.read_bytes())
        expected = body.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _damaged(folder, MANIFEST, f"cannot be read ({error})") from error
    if _digest(body) != expected:
        raise _damaged(folder, MANIFEST, "differs from its checksum")
    if body["format"] != _FORMAT:
        raise _damaged(folder, MANIFEST, f"has format {body['format']}, expected {_FORMAT}")
    return body


def _handlers(path: Path) -> Any:
    """The part of Orbax's step metadata that does not change at the commit."""
    if not path.is_file():
        raise _damaged(path.parent, path.name, "is missing")
    try:
        return json.loads(path.read_bytes())["item_handlers"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path.parent, path.name, f"cannot be read ({error})") from error


def _measure(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _damaged(folder: Path, name: str, what: str) -> CheckpointError:
    return CheckpointError(f"step {folder.name} is damaged: {folder / name} {what}")

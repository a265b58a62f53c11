"""Opening weights for reading leaf by leaf, whatever the format.

    with open_leaves("model.safetensors") as source:
        for name in source.names:
            source.spec(name)          # shape and dtype, from the header alone
            source.read(name)          # this leaf, and nothing else

The format is told by what the file or folder looks like. Nothing here runs code from a file.
"""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

from sinewich_jax.errors import CheckpointError
from sinewich_jax.storage.leaves import CHECKPOINTS, LeafSource, Shards
from sinewich_jax.storage.manifest import MANIFEST
from sinewich_jax.storage.npz_leaves import NpzLeaves
from sinewich_jax.storage.safetensors_leaves import SafetensorsLeaves

_INDEX = ".safetensors.index.json"
_PICKLES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}


def open_leaves(path: str | os.PathLike[str], item: str = "params") -> LeafSource:
    """Opens weights for reading leaf by leaf.

    Args:
      path: a safetensors file; a folder (or its ``*.safetensors.index.json``) with a model in
        shards; an ``.npz`` file; the work directory of a run or one of its steps; a folder that
        Orbax wrote; a folder with exactly one safetensors file, such as a merge leaves behind.
      item: which tree of a run's checkpoint. ``"params"`` are all parameters of the model: the
        trained ones, and the frozen ones out of the base that the run keeps. ``"start"`` are those
        that tasks share as they were before the first step, ``"merge"`` their curvature,
        ``"frozen"`` whatever is never trained, as ``COLLECTION/PATH``.

    Returns:
      The open source. Only runs and Orbax folders need JAX.

    Raises:
      CheckpointError: nothing is there, or nothing that can be read without running code from it.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path, item)
    if not path.is_file():
        raise CheckpointError(f"expected weights at {path}, found nothing; check the path")
    if path.name.endswith(_INDEX):
        return _open_shards(path)
    with path.open("rb") as file:
        head = file.read(16)
    # Before the others: the length that it begins with may look like anything.
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return SafetensorsLeaves(path)
    if head[:2] == b"PK" and path.suffix not in _PICKLES and _is_npz(path):
        return NpzLeaves(path)
    if head[:2] == b"PK" or head[:1] == b"\x80" or path.suffix in _PICKLES:
        raise _pickled(path)
    raise CheckpointError(
        f"{path} starts with {head[:8]!r}, which is neither a safetensors nor an .npz file; "
        "expected one of these, a folder of shards, or a run's work directory"
    )


def _open_folder(path: Path, item: str) -> LeafSource:
    indices = sorted(path.glob(f"*{_INDEX}"))
    if len(indices) == 1:
        return _open_shards(indices[0])
    if (path / MANIFEST).is_file():
        from sinewich_jax.storage.orbax_leaves import open_step

        return open_step(path, item)
    if (path / CHECKPOINTS).is_dir():
        from sinewich_jax.storage.orbax_leaves import open_run

        return open_run(path, item)
    if (path / "_METADATA").is_file():
        from sinewich_jax.storage.orbax_leaves import OrbaxLeaves

        return OrbaxLeaves(path)
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return open_leaves(files[0])
    found = [file.name for file in (*indices, *files)]
    raise CheckpointError(
        f"expected weights in the folder {path}: a run's work directory or step, shards with an "
        f"index, or one safetensors file; found {', '.join(found) or 'none of them'}"
    )


def _open_shards(index: Path) -> LeafSource:
    try:
        content = json.loads(index.read_bytes())
        places = content["weight_map"]
        files = sorted(set(places.values()))
        plain = all(isinstance(file, str) and Path(file).name == file for file in files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} cannot be read as an index of shards ({type(error).__name__}: {error}); "
            "expected a weight_map from leaves to files"
        ) from error
    if not plain:
        raise CheckpointError(f"{index} names {files[0]!r}; expected files of its own folder")
    shards: dict[str, LeafSource] = {}
    try:
        for file in files:
            shards[file] = SafetensorsLeaves(index.parent / file)
        homes = {name: (shards[file], name) for name, file in places.items()}
        return Shards(index.parent, homes)
    except BaseException:
        for shard in shards.values():
            shard.close()
        raise


def _is_npz(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return all(name.endswith(".npy") for name in archive.namelist())
    except zipfile.BadZipFile:
        return True  # cut short: its reader says so


def _pickled(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is a pickle or an archive of pickles, which could run code when it is loaded and "
        "was not read; turn it into safetensors where you trust it, for a Swin with "
        f"'sinewich import-backbone {path} --out DIR'"
    )

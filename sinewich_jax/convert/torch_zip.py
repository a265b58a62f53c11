"""Weights in a torch file (``.pth``, ``.pt``, ``.bin``), read without torch and without its code.

Since torch 1.6 such a file is a zip archive: ``NAME/data.pkl`` describes the objects, and the
numbers of each storage are an uncompressed entry ``NAME/data/KEY``. The description is read by
:mod:`sinewich_jax.convert.torch_pickle`; the numbers are looked up here, each view checked against
the size of its storage, and each storage against the entry that holds it.
"""

from __future__ import annotations

import math
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from sinewich_jax.convert.torch_pickle import Storage, Tensor, parse
from sinewich_jax.errors import CheckpointError

WRAPPERS = ("model", "state_dict", "model_state_dict", "module")
"""Keys under which training scripts put the state dict, in the order in which they are tried."""

_ADVICE = "fetch the file again"
_DEPTH = 4
# What zipfile raises for directories and headers that make no sense.
_DAMAGE = (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError, ValueError)
_DAMAGE += (OverflowError, struct.error)


def read_torch(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The tensors of the state dict in a torch file.

    Args:
      path: a zip archive as ``torch.save`` writes it. The state dict may be the whole of it, or lie
        under one of :data:`WRAPPERS`; what lies beside it (an optimizer, say) is not read.

    Returns:
      ``(name -> array in host memory, names of entries that are no tensors)``.

    Raises:
      CheckpointError: a file that is cut short or damaged, that would have to run code, or that
        holds no state dict.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, path)
    except CheckpointError:
        raise
    except _DAMAGE as error:
        raise CheckpointError(
            f"{path} is not a whole zip archive ({error}); it was cut short or damaged, so "
            f"{_ADVICE}"
        ) from error


def _read(archive: zipfile.ZipFile, path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    names = [info.filename for info in archive.infolist()]
    pickles = [name for name in names if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise CheckpointError(
            f"{path} is a zip archive with {len(pickles)} entries NAME/data.pkl, expected the one "
            "that torch.save writes"
        )
    folder = pickles[0].removesuffix("/data.pkl")
    if f"{folder}/constants.pkl" in names:
        raise CheckpointError(
            f"{path} is a TorchScript program, expected weights alone; save its state_dict"
        )
    if f"{folder}/byteorder" in names:
        order = _entry(archive, f"{folder}/byteorder", path)
        if order != b"little":
            raise CheckpointError(
                f"{path} was written with byte order {order[:16]!r}, expected b'little'; save it "
                "again on a little-endian machine"
            )
    root = parse(_entry(archive, pickles[0], path), str(path))
    state = _state_dict(root, path)
    storages: dict[str, bytes] = {}

    def array(name: str, tensor: Tensor) -> np.ndarray:
        storage = tensor.storage
        if storage.key not in storages:
            storages[storage.key] = _numbers(archive, folder, storage, path)
        return _view(name, tensor, storages[storage.key], path)

    tensors = {name: array(name, leaf) for name, leaf in state.items() if type(leaf) is Tensor}
    others = tuple(str(name) for name, leaf in state.items() if type(leaf) is not Tensor)
    return tensors, others


def _entry(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    """One entry; a compressed one is refused, so that none is larger than the file itself."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise CheckpointError(
            f"{path} has a compressed or encrypted entry {name!r}, expected a plain one as "
            "torch.save writes it; save the weights again"
        )
    return archive.read(info)


def _numbers(archive: zipfile.ZipFile, folder: str, storage: Storage, path: Path) -> bytes:
    name = f"{folder}/data/{storage.key}"
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise CheckpointError(
            f"{path} lacks the entry {name!r} with the numbers of a tensor; {_ADVICE}"
        ) from None
    expected = storage.count * (storage.dtype.itemsize if storage.dtype is not None else 1)
    if info.file_size != expected:
        raise CheckpointError(
            f"the entry {name!r} of {path} has {info.file_size} bytes, expected {expected}; "
            f"{_ADVICE}"
        )
    return _entry(archive, name, path)


def _view(name: str, tensor: Tensor, raw: bytes, path: Path) -> np.ndarray:
    size, count = tensor.dtype.itemsize, math.prod(tensor.shape)
    there = len(raw) // size
    steps = zip(tensor.shape, tensor.strides, strict=True)
    last = tensor.offset + sum((side - 1) * stride for side, stride in steps)
    # A view may not repeat numbers: one of stride zero could be larger than any memory.
    if count and (last >= there or count > there):
        raise CheckpointError(
            f"the tensor {name!r} of {path} has shape {tensor.shape}, strides {tensor.strides} and "
            f"offset {tensor.offset}, which leave its storage of {there} numbers; {_ADVICE}"
        )
    if not count:
        return np.zeros(tensor.shape, tensor.dtype)
    flat = np.frombuffer(raw, tensor.dtype, there)[tensor.offset :]
    strides = tuple(stride * size for stride in tensor.strides)
    view = np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)
    return np.array(view, order="C")


def _state_dict(root: Any, path: Path) -> dict[str, Any]:
    """The first dict with tensors in it on the way down through the usual wrappers."""
    node, way = root, ""
    for _ in range(_DEPTH):  # a dict that a stranger wrote may hold itself
        if not isinstance(node, dict):
            break
        if any(type(leaf) is Tensor for leaf in node.values()):
            return {str(name): leaf for name, leaf in node.items()}
        key = next((key for key in WRAPPERS if isinstance(node.get(key), dict)), None)
        if key is None:
            found = ", ".join(repr(name) for name in list(node)[:5]) or "nothing"
            raise CheckpointError(
                f"{path} holds no state dict{way}: found {found}, expected tensors by name, or a "
                f"dict of them under one of {', '.join(map(repr, WRAPPERS))}"
            )
        node, way = node[key], f"{way or ' at'} [{key!r}]"
    raise CheckpointError(
        f"{path} holds a {type(node).__name__}, expected a dict of tensors; save the state_dict"
    )

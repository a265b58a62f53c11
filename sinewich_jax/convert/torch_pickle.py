"""The pickle inside a torch file, read as data: nothing in it can name or call code.

A pickle is a program for a small stack machine. Two of its instructions fetch and call arbitrary
Python objects, which is why loading a stranger's pickle runs the stranger's code. The machine here
knows the few instructions that a state dict of tensors is written with, and a dozen names, each of
which stands for a record of this module. Every other name or instruction ends it with a sentence.

Instructions and names: the pickle protocol as documented by Python's ``pickletools``, and what
``torch.save`` of torch 1.6 to 2.13 writes.
"""

from __future__ import annotations

import dataclasses
import pickletools
import warnings
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from sinewich_jax.errors import CheckpointError


class Storage(NamedTuple):
    """A flat run of numbers in a file of its own inside the archive.

    Attributes:
      dtype: of its elements; None where only bytes are counted (the tensor says the type).
      key: name of the file, below ``data/``.
      count: elements, or bytes where there is no dtype.
    """

    dtype: np.dtype | None
    key: str
    count: int


class Tensor(NamedTuple):
    """A view of a storage, not read yet; offset and strides count elements.

    Attributes:
      storage: where its numbers lie.
      dtype: of its elements.
      offset: first element.
      shape: its shape.
      strides: elements from one index to the next, a number for each axis.
    """

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Name:
    """What a name of the pickle stands for: a kind, and the number type where it has one."""

    kind: str
    dtype: np.dtype | None = None


_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_DTYPES = {
    "float64": ("Double", np.dtype("<f8")),
    "float32": ("Float", np.dtype("<f4")),
    "float16": ("Half", np.dtype("<f2")),
    "bfloat16": ("BFloat16", _BFLOAT16),
    "int64": ("Long", np.dtype("<i8")),
    "int32": ("Int", np.dtype("<i4")),
    "int16": ("Short", np.dtype("<i2")),
    "int8": ("Char", np.dtype("i1")),
    "uint8": ("Byte", np.dtype("u1")),
    "bool": ("Bool", np.dtype("?")),
}
_NAMES = {
    "collections.OrderedDict": _Name("dict"),
    "torch.Size": _Name("size"),
    "torch._utils._rebuild_tensor_v2": _Name("tensor"),
    "torch._utils._rebuild_tensor_v3": _Name("typed tensor"),
    "torch._utils._rebuild_parameter": _Name("parameter"),
    "torch.storage.UntypedStorage": _Name("storage"),
    **{f"torch.{name}": _Name("dtype", dtype) for name, (_, dtype) in _DTYPES.items()},
    **{f"torch.{word}Storage": _Name("storage", dtype) for word, dtype in _DTYPES.values()},
    # Types that no weight of ours has, but that a state dict may hold beside them.
    "torch.uint16": _Name("dtype", np.dtype("<u2")),
    "torch.uint32": _Name("dtype", np.dtype("<u4")),
    "torch.uint64": _Name("dtype", np.dtype("<u8")),
}
_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"}
_STRINGS = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def parse(data: bytes, where: str) -> Any:
    """What a pickle of dicts, lists, numbers, strings and tensors describes.

    Args:
      data: the pickle.
      where: names it in messages.

    Returns:
      Nested dicts, lists and tuples with plain values and :class:`Tensor` records.

    Raises:
      CheckpointError: a name or an instruction that a state dict does not need, or a damaged
        pickle. Nothing has been imported or called by then.
    """
    try:
        return _Machine(where).run(data)
    except CheckpointError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{where} is damaged: its pickle makes no sense ({error}); fetch the file again"
        ) from error


class _Machine:
    def __init__(self, where: str) -> None:
        self.where = where
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        with warnings.catch_warnings():
            # Python warns of odd escapes in a text; whether the text fits is judged below.
            warnings.simplefilter("ignore", DeprecationWarning)
            instructions = list(pickletools.genops(data))
        for code, argument, _ in instructions:
            if code.name == "STOP":
                (result,) = self.stack
                return result
            self._step(code.name, argument)
        raise ValueError("it has no end")

    def _step(self, code: str, argument: Any) -> None:
        stack = self.stack
        if code in ("PROTO", "FRAME"):
            return
        if code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in _NUMBERS or code in _STRINGS:
            stack.append(argument)
        elif code == "MARK":
            stack.append(_MARK)
        elif code in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if code == "EMPTY_DICT" else [])
        elif code in _TUPLES:
            stack.append(tuple(self._take(_TUPLES[code])))
        elif code == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif code in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if code == "MEMOIZE" else argument] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif code in ("APPEND", "APPENDS"):
            items = self._take(1) if code == "APPEND" else self._since_mark()
            self._top(list).extend(items)
        elif code in ("SETITEM", "SETITEMS"):
            items = self._take(2) if code == "SETITEM" else self._since_mark()
            self._top(dict).update(_pairs(items[::2], items[1::2]))
        elif code == "GLOBAL":
            stack.append(self._named(*argument.split(" ", 1)))
        elif code == "STACK_GLOBAL":
            stack.append(self._named(*self._take(2)))
        elif code == "BINPERSID":
            stack.append(_storage(*self._take(1)))
        elif code == "REDUCE":
            name, arguments = self._take(2)
            stack.append(_make(name, arguments))
        elif code == "BUILD":
            # Only a state dict has attributes (the versions of its modules), which nobody needs.
            self._take(1)
            self._top(dict)
        elif code in ("INST", "NEWOBJ", "NEWOBJ_EX", "OBJ"):
            named = str(argument).replace(" ", ".") if code == "INST" else "a class"
            raise self._refusal(named)
        else:
            raise self._refusal(f"the instruction {code}")

    def _take(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError("it takes more values than it has")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        if any(item is _MARK for item in items):
            raise ValueError("a value is missing")
        return items

    def _since_mark(self) -> list[Any]:
        last = len(self.stack) - 1
        while self.stack[last] is not _MARK:
            last -= 1
            if last < 0:
                raise ValueError("a mark is missing")
        items = self.stack[last + 1 :]
        del self.stack[last:]
        return items

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"a {kind.__name__} was expected")
        return self.stack[-1]

    def _named(self, module: Any, name: Any) -> _Name:
        full = f"{module}.{name}"
        if full not in _NAMES:
            raise self._refusal(repr(full))
        return _NAMES[full]

    def _refusal(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.where} asks for {what} and was not read, because loading it could run code; "
            "expected nothing but tensors, so save the model's state_dict alone, or as safetensors"
        )


def _pairs(keys: list[Any], values: list[Any]) -> list[tuple[Any, Any]]:
    for key in keys:
        if not isinstance(key, str | int | float | tuple):
            raise ValueError(f"a {type(key).__name__} cannot be a key")
    return list(zip(keys, values, strict=True))


def _storage(name: Any) -> Storage:
    word, kind, key, _, count, *_ = name
    if word != "storage" or not isinstance(kind, _Name) or kind.kind != "storage":
        raise ValueError("a storage was expected")
    if not isinstance(key, str):
        raise ValueError("a storage without a name")
    return Storage(kind.dtype, key, _natural(count))


def _make(name: Any, arguments: Any) -> Any:
    """The value that calling one of the known names stands for."""
    if not isinstance(name, _Name) or not isinstance(arguments, tuple):
        raise ValueError("a call of something that has no meaning here")
    if name.kind == "dict":
        rows = arguments[0] if arguments else []
        return dict(_pairs([key for key, _ in rows], [value for _, value in rows]))
    if name.kind == "size":
        return tuple(arguments[0])
    if name.kind == "parameter":
        if not isinstance(arguments[0], Tensor):
            raise ValueError("a parameter without a tensor")
        return arguments[0]
    if name.kind in ("tensor", "typed tensor"):
        storage, offset, shape, strides = arguments[:4]
        dtype = arguments[6].dtype if name.kind == "typed tensor" else storage.dtype
        if not isinstance(storage, Storage) or not isinstance(dtype, np.dtype):
            raise ValueError("a tensor without a storage or a type")
        shape, strides = tuple(map(_natural, shape)), tuple(map(_natural, strides))
        if len(shape) != len(strides):
            raise ValueError("a tensor needs one stride an axis")
        return Tensor(storage, dtype, _natural(offset), shape, strides)
    raise ValueError(f"a {name.kind} cannot be called")


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{value!r} is no size")
    return value

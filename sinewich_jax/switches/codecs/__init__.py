"""Masks and bit planes as bytes: the codecs of switches, the smallest chosen for each mask.

A mask is written by :func:`encode_mask` in one of the codecs of :data:`CODECS`; what else there is
of an active entry (its sign, its levels) as one bit each by :func:`gather`, in the mask's order.
Together they come to about ``H(p) n + p n`` bits, the least for an i.i.d. mask of density p.
All of it is NumPy and zlib; every codec is one module of this folder and found by itself.
"""

from __future__ import annotations

import importlib
import pkgutil

import numpy as np

from sinewich_jax.errors import did_you_mean
from sinewich_jax.switches.codecs.payload import gather, scatter
from sinewich_jax.switches.codecs.registry import CODECS, Codec, CodecError, ones, register
from sinewich_jax.switches.codecs.stream import from_official_stream, official_stream

__all__ = [
    "CODECS",
    "Codec",
    "CodecError",
    "decode_mask",
    "encode_mask",
    "from_official_stream",
    "gather",
    "official_stream",
    "register",
    "scatter",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def encode_mask(mask: np.ndarray, n: int, codec: str = "auto") -> tuple[str, bytes]:
    """A mask as bytes.

    Args:
      mask: uint8 (ceil(n / 8),), bit ``i & 7`` of byte ``i >> 3`` is entry i; pad bits 0.
      n: entries.
      codec: a name of :data:`CODECS`; ``"auto"`` takes whichever needs the fewest bytes.

    Returns:
      The name of the codec and the bytes. To read them takes n and the count of ones too.

    Raises:
      CodecError: the plane is not one of n entries, or the codec is unknown or cannot tell it.
    """
    mask = np.ascontiguousarray(mask)
    if mask.dtype != np.uint8:
        raise CodecError(f"a mask is packed as uint8; found {mask.dtype}")
    count = ones(mask, n)
    if codec != "auto":
        return codec, _named(codec).encode(mask, n, count)
    # Branch and bound: cheapest bound first, and nobody is run whose bound the best has reached.
    bounds = sorted((one.least(mask, n, count), name) for name, one in CODECS.items())
    chosen, best = "", b""
    for bound, name in bounds:
        if chosen and bound >= len(best):
            break
        blob = CODECS[name].encode(mask, n, count)
        if not chosen or len(blob) < len(best):
            chosen, best = name, blob
    return chosen, best


def decode_mask(
    name: str, blob: bytes | bytearray | memoryview | np.ndarray, n: int, count: int
) -> np.ndarray:
    """The mask that :func:`encode_mask` wrote.

    Args:
      name: of the codec.
      blob: the bytes, and none besides.
      n: entries.
      count: how many are active.

    Returns:
      uint8 (ceil(n / 8),). Of the codec ``"plane"`` it is a view of the blob; do not write to it.

    Raises:
      CodecError: the bytes do not hold exactly n entries of which ``count`` are active.
    """
    codec = _named(name)
    if n < 0 or not 0 <= count <= n:
        raise CodecError(f"{count} active entries of {n} cannot be; the file is damaged")
    mask = codec.decode(memoryview(blob).cast("B"), n, count)
    found = ones(mask, n)
    if found != count:
        raise CodecError(
            f"the {name} mask of {n} entries has {found} active ones; expected {count}; "
            "the file is damaged"
        )
    return mask


def _named(name: str) -> Codec:
    if name not in CODECS:
        raise CodecError(f"unknown mask codec {name!r}{did_you_mean(name, CODECS)}")
    return CODECS[name]

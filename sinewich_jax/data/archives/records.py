"""What a prepared example is: TFDS features, and the way there and back.

Raw sizes are kept. Images are the archive's own bytes; class and binary maps are lossless PNG,
depth is float32 metres, 8-bit normals (PASCAL) are 8-bit again and others float16, masks are packed
bool beside their label, 0 standing where a label is invalid.
This module imports TFDS; the package does not import this module.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from sinewich_jax.data.archives import decode
from sinewich_jax.data.archives.reader import Reader, Sample
from sinewich_jax.data.files import read_pixels
from sinewich_jax.data.labels import kind_of, to_label, unit_normals


def features(reader: type[Reader], tasks: Sequence[str]) -> tfds.features.FeaturesDict:
    """The features of a data set that holds ``tasks``."""
    found: dict[str, Any] = {
        "id": tfds.features.Text(),
        "image": tfds.features.Image(shape=(None, None, 3)),
        "height": tfds.features.Scalar(dtype=np.int32),
        "width": tfds.features.Scalar(dtype=np.int32),
        "available_tasks": tfds.features.Sequence(tfds.features.Text()),
    }
    for task in tasks:
        found[task] = _feature(task, reader)
        found[f"{task}_valid"] = tfds.features.Tensor(
            shape=(None, None), dtype=np.bool_, encoding=tfds.features.Encoding.ZLIB
        )
    return tfds.features.FeaturesDict(found)


def _feature(task: str, reader: type[Reader]) -> Any:
    kind = kind_of(task)
    if kind == "normals" and reader.eight_bit_normals:
        return tfds.features.Image(shape=(None, None, 3))
    if kind in ("normals", "depth"):
        shape, dtype = (((None, None, 3), np.float16), ((None, None), np.float32))[kind == "depth"]
        # Not lists of floats, which take long to write and read; floats of a sensor hardly shrink.
        packed = kind == "depth" and reader.packed_depth
        encoding = tfds.features.Encoding.ZLIB if packed else tfds.features.Encoding.BYTES
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=encoding)
    return tfds.features.Image(shape=(None, None, 1), encoding_format="png")


def encode(sample: Sample, eight_bit_normals: bool) -> dict[str, Any]:
    """A sample in the form of the builder's features."""
    height, width = sample.image.shape[:2]
    features: dict[str, Any] = {
        "id": sample.id,
        "image": sample.encoded.get("image") or png(sample.image),
        "height": height,
        "width": width,
        "available_tasks": list(sample.available),
    }
    for task, label in sample.labels.items():
        kind = kind_of(task)
        if kind == "normals" and eight_bit_normals:
            # The archive's own file, unless the map is missing or was resized.
            rounded = np.rint((label + 1) * np.float32(127.5)).astype(np.uint8)
            label = sample.encoded.get("normals") or png(rounded)
        elif kind == "normals":
            label = label.astype(np.float16)
        elif kind != "depth":
            label = png(label)
        features[task], features[f"{task}_valid"] = label, sample.valid[task]
    return features


def png(pixels: np.ndarray) -> bytes:
    """A lossless image file of uint8 [H, W] or [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def label(task: str, stored: Any, mask: np.ndarray) -> np.ndarray:
    """A label as the library has it, from what `encode` made of it and the mask of it."""
    kind = kind_of(task)
    if kind == "depth":
        return stored
    if kind != "normals":
        return read_pixels(stored, f"a {task} label")
    if isinstance(stored, bytes):
        unit, _ = to_label(task, decode.vectors(stored, "a normals label"), "a normals label")
    else:
        unit, _ = unit_normals(stored)
    return np.where(mask[..., None], unit, np.float32(0))

"""nyuv2_mtan: NYUv2 as MTAN, LibMTL and Auto-Lambda pass it on, small and in NumPy files.

::

    train|val/image/<i>.npy      [H, W, 3] in [0, 1]
    train|val/label/<i>.npy      [H, W], 13 classes, -1 is no label
    train|val/depth/<i>.npy      [H, W, 1] metres, 0 is no depth
    train|val/normal/<i>.npy     [H, W, 3], the zero vector is no normal

795 + 654 examples of 288 x 384. Other loaders drop the normals whose three components sum to 0,
valid ones among them; here the length decides. Images are rounded to 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sinewich_jax.data.archives import decode
from sinewich_jax.data.archives.lists import no_split
from sinewich_jax.data.archives.reader import Reader
from sinewich_jax.data.archives.tree import Tree
from sinewich_jax.data.labels import IGNORE
from sinewich_jax.data.source import make_tasks
from sinewich_jax.errors import DataError

# fmt: off
SEMSEG_NAMES = (
    "bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa",
    "table", "tv", "wall", "window",
)
# fmt: on
"""The 13 classes of Couprie et al. (2013), in the order of the published mapping."""

SPLITS = ("train", "val", "test")
_FOLDER = {"semseg": "label", "depth": "depth", "normals": "normal"}


class NyuMtanReader(Reader):
    """Reads the small NYUv2."""

    name = "nyuv2_mtan"
    all_tasks = ("semseg", "normals", "depth")
    names = ("nyuv2", "nyuv2_mtan")

    @classmethod
    def fits(cls, tree: Tree) -> bool:
        """Splits with images in NumPy files are there."""
        return bool(numpy_splits(tree))

    @classmethod
    def told(cls, tree: Tree) -> bool:
        """Normals tell it from Cityscapes in the same form."""
        return any(tree.has_folder(f"{split}/normal") for split in numpy_splits(tree))

    @classmethod
    def folders(cls, tree: Tree) -> tuple[str, ...]:
        """Folders whose files are read."""
        kinds = ("image", *_FOLDER.values())
        return tuple(f"{split}/{kind}" for split in numpy_splits(tree) for kind in kinds)

    @property
    def layout(self) -> str:
        """The one layout there is."""
        return "NYUv2 in NumPy files (MTAN, LibMTL)"

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that have images."""
        return numpy_splits(self.tree)

    def ids(self, split: str, strict: bool = True) -> list[str]:
        """``split/i`` for every image, by number."""
        return numbered_ids(self, split, ".npy")

    def image_file(self, id: str) -> str:
        """Name of the image."""
        return in_folder(id, "image", ".npy")

    def label_files(self, task: str, id: str) -> tuple[str, ...]:
        """Name of the file of a label."""
        return (in_folder(id, _FOLDER[task], ".npy"),)

    def _has_task(self, task: str) -> bool:
        return any(self.tree.files(f"{split}/{_FOLDER[task]}") for split in self.splits)

    def _make(self, tasks: Sequence[str]) -> dict[str, object]:
        return make_tasks(
            tasks, class_names={"semseg": SEMSEG_NAMES} if "semseg" in tasks else None
        )

    def _image(self, id: str) -> tuple[np.ndarray, dict[str, bytes]]:
        return float_image(*self._bytes(self.image_file(id))), {}

    def _raw(
        self, task: str, id: str, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        data, where = self._bytes(self.label_files(task, id)[0])
        if task == "semseg":
            return signed_classes(data, where), None
        raw = decode.npy(data, where, (3,) if task == "normals" else (2, 3))
        return raw.astype(np.float32), None


def numpy_splits(tree: Tree) -> tuple[str, ...]:
    """Splits of a tree whose images are NumPy files."""
    return tuple(
        split
        for split in SPLITS
        if any(name.endswith(".npy") for name in tree.files(f"{split}/image"))
    )


def numbered_ids(reader: Reader, split: str, ending: str) -> list[str]:
    """``split/name`` for every image of a split, in the order of their numbers."""
    if split not in reader.splits:
        raise no_split(reader, split)
    files = reader.tree.files(f"{split}/image")
    names = [name.removesuffix(ending) for name in files if name.endswith(ending)]
    order = sorted(names, key=lambda n: (not n.isdecimal(), int(n) if n.isdecimal() else 0, n))
    return [f"{split}/{name}" for name in order]


def in_folder(id: str, folder: str, ending: str) -> str:
    """``train/7`` in a folder: ``train/label/7.npy``."""
    split, _, name = id.partition("/")
    return f"{split}/{folder}/{name}{ending}"


def float_image(data: bytes, where: str) -> np.ndarray:
    """A photograph kept as floats in [0, 1] (or as 8 bits), uint8 [H, W, 3]."""
    raw = decode.npy(data, where, (3,))
    if raw.shape[-1] != 3:
        raise DataError(f"{where} has shape {list(raw.shape)}, expected [H, W, 3]")
    if raw.dtype == np.uint8:
        return raw
    # Interpolation may have left values a little outside.
    if not (raw.size and raw.min() >= -0.05 and raw.max() <= 1.05):
        raise DataError(
            f"{where} has values from {raw.min():.4g} to {raw.max():.4g}, expected [0, 1]"
        )
    return np.clip(np.rint(raw * 255.0), 0, 255).astype(np.uint8)


def signed_classes(data: bytes, where: str) -> np.ndarray:
    """Class numbers where -1 is no label, as ``to_label`` takes them."""
    raw = decode.npy(data, where, (2, 3))
    raw = decode.whole(raw, where)
    return np.where(raw == -1, IGNORE, raw)

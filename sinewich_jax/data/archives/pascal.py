"""pascal_mt: PASCAL-Context for five tasks, as ``PASCAL_MT`` or ``PASCALContext``.

::

    JPEGImages/<id>.jpg
    ImageSets/Context/{train,val}.txt     one id per line
    pascal-context/trainval/<id>.mat      'LabelMap', 459 classes: edges, where normals hold
    semseg/VOC12/<id>.png                 0 to 20, 255 is no label; the first choice
    semseg/pascal-context/<id>.png        the same, where VOC12 has none
    human_parts/<id>.mat                  PASCAL-Part 'anno'
    normals_distill/<id>.png              8-bit RGB, 2 v / 255 - 1 (made by a network)
    sal_distill/<id>.png                  8-bit grey, salient above one half (made by a network)

Any label folder may be absent. ``ImageSets/Parts`` is a cache that other loaders write; it is not
read. The normals are used as they are; `data check` tells how many of them face the viewer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sinewich_jax.data.archives import decode, parts
from sinewich_jax.data.archives.edges import edges
from sinewich_jax.data.archives.lists import list_splits, listed_ids
from sinewich_jax.data.archives.reader import Reader
from sinewich_jax.data.archives.tree import Tree
from sinewich_jax.data.source import make_tasks

# fmt: off
SEMSEG_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat",
    "chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant",
    "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on
"""The 21 classes."""

# fmt: off
NORMALS_HOLD = (
    3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49,
    50, 51, 53, 55, 56, 59, 61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101,
    104, 105, 107, 111, 113, 115, 122, 124, 135, 141, 142, 143, 146, 150, 154, 157, 158, 159,
    165, 172, 174, 181, 183, 184, 191, 193, 195, 197, 199, 202, 213, 215, 216, 219, 220, 223,
    225, 228, 230, 232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261, 263, 269,
    272, 273, 275, 281, 283, 284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309,
    310, 314, 315, 319, 323, 329, 330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357, 368,
    370, 371, 374, 379, 380, 383, 384, 397, 401, 403, 405, 407, 408, 411, 412, 413, 414, 417,
    419, 421, 423, 427, 429, 430, 432, 440, 441, 442, 443, 444, 446, 454, 457,
)
# fmt: on
"""Context classes on which the normals count: those that are also classes of NYU-Depth (whose
normals the labelling network learned), and tvmonitor."""

SALIENT_FROM = 128
"""The first grey value with v / 255 > 0.5."""

_LISTS = "ImageSets/Context"
_CONTEXT = "pascal-context/trainval"
_SEMSEG = ("semseg/VOC12", "semseg/pascal-context")


class PascalReader(Reader):
    """Reads PASCAL_MT."""

    name = "pascal_mt"
    all_tasks = ("semseg", "human_parts", "saliency", "normals", "edge")
    names = ("PASCAL_MT", "PASCALContext")
    eight_bit_normals = True

    @classmethod
    def fits(cls, tree: Tree) -> bool:
        """Images and lists of PASCAL-Context are there."""
        return tree.has_folder("JPEGImages") and tree.has_folder(_LISTS)

    @classmethod
    def folders(cls, tree: Tree) -> tuple[str, ...]:
        """Folders whose files are read."""
        labels = ("human_parts", "normals_distill", "sal_distill")
        return ("JPEGImages", _LISTS, _CONTEXT, *_SEMSEG, *labels)

    @property
    def layout(self) -> str:
        """The one layout there is."""
        return "PASCAL-Context for five tasks (PASCAL_MT)"

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the lists."""
        return list_splits(self.tree, _LISTS)

    def ids(self, split: str, strict: bool = True) -> list[str]:
        """The ids of a split."""
        return listed_ids(self, _LISTS, split, strict)

    def image_file(self, id: str) -> str:
        """Name of the image."""
        return f"JPEGImages/{id}.jpg"

    def label_files(self, task: str, id: str) -> tuple[str, ...]:
        """Names of the files of a label."""
        context = f"{_CONTEXT}/{id}.mat"
        if task == "semseg":
            both = [f"{folder}/{id}.png" for folder in _SEMSEG]
            return (next(filter(self.tree.has, both), both[0]),)
        return {
            "human_parts": (f"human_parts/{id}.mat",),
            "saliency": (f"sal_distill/{id}.png",),
            "normals": (f"normals_distill/{id}.png", context),
            "edge": (context,),
        }[task]

    def _has_task(self, task: str) -> bool:
        context = bool(self.tree.files(_CONTEXT))
        return {
            "semseg": any(self.tree.files(folder) for folder in _SEMSEG),
            "human_parts": bool(self.tree.files("human_parts")),
            "saliency": bool(self.tree.files("sal_distill")),
            "normals": bool(self.tree.files("normals_distill")) and context,
            "edge": context,
        }[task]

    def _make(self, tasks: Sequence[str]) -> dict[str, object]:
        names = {"semseg": SEMSEG_NAMES, "human_parts": parts.PART_NAMES}
        return make_tasks(tasks, class_names={t: n for t, n in names.items() if t in tasks})

    def _raw(
        self, task: str, id: str, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        data, where = self._bytes(self.label_files(task, id)[0])
        if task == "semseg":
            return decode.class_map(data, where), None
        if task == "human_parts":
            painted, someone = parts.paint(decode.mat(data, where, "anno"), size, where)
            return painted, np.full(painted.shape, someone)
        if task == "saliency":
            return (decode.grey(data, where) >= SALIENT_FROM).astype(np.uint8), None
        if task == "normals":
            return decode.vectors(data, where), np.isin(self._context(id), NORMALS_HOLD)
        return edges(self._context(id)), None

    def _context(self, id: str) -> np.ndarray:
        """The map of 459 classes, int64 [H, W]."""
        data, where = self._bytes(f"{_CONTEXT}/{id}.mat")
        return decode.whole(decode.mat_map(data, where, "LabelMap"), where)

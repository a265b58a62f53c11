"""nyud_mt: NYU-Depth v2 for four tasks, in the three releases there are.

::

    gt_sets/{train,val}.txt     one id per line, like 0001
    images/<id>                 .jpg | .png
    segmentation/<id>           .png | .mat 'segmentation'; 0 is no label, k is class k - 1
    depth/<id>                  .npy | .mat 'depth'; 0 is no depth
    normals/<id>                .npy in [-1, 1] | 8-bit .png or .jpg, 2 v / 255 - 1
    edge/<id>                   .npy 0 or 1 | .png 0 or 255

| release | images | segmentation | depth | normals | edge |
|---|---|---|---|---|---|
| MTI-Net, MTLoRA (``NYUD_MT``) | jpg | png | npy | npy | npy |
| ATRC, InvPT (``NYUDv2``) | png | png | npy | png | png |
| ASTMT (``NYUD_MT`` as well) | jpg | mat | mat | jpg | png |

Two releases share a name, so each folder is known by the ending of its files. A vector shorter than
0.1 is no normal; the 8-bit releases cannot store an exact zero.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from sinewich_jax.data.archives import decode, units
from sinewich_jax.data.archives.lists import list_splits, listed_ids, suffixes
from sinewich_jax.data.archives.reader import Reader
from sinewich_jax.data.archives.tree import Tree
from sinewich_jax.data.labels import IGNORE
from sinewich_jax.data.source import make_tasks
from sinewich_jax.errors import DataError

# fmt: off
SEMSEG_NAMES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf",
    "picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror",
    "floor mat", "clothes", "ceiling", "books", "refridgerator", "television", "paper", "towel",
    "shower curtain", "box", "whiteboard", "person", "night stand", "toilet", "sink", "lamp",
    "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop",
)
# fmt: on
"""The 40 classes, as the data set spells them."""

_FOLDER = {"semseg": "segmentation", "depth": "depth", "normals": "normals", "edge": "edge"}
_ENDINGS = {
    "images": (".jpg", ".png"),
    "segmentation": (".png", ".mat"),
    "depth": (".npy", ".mat"),
    "normals": (".npy", ".png", ".jpg"),
    "edge": (".npy", ".png"),
}
_RELEASES = {
    "MTI-Net / MTLoRA": (".jpg", ".png", ".npy", ".npy", ".npy"),
    "ATRC / InvPT": (".png", ".png", ".npy", ".png", ".png"),
    "ASTMT": (".jpg", ".mat", ".mat", ".jpg", ".png"),
}


class NyudReader(Reader):
    """Reads NYUD_MT or NYUDv2."""

    name = "nyud_mt"
    all_tasks = ("semseg", "normals", "depth", "edge")
    names = ("NYUD_MT", "NYUDv2")

    def __init__(self, tree: Tree, depth_unit: str = "auto"):
        """Takes the tree and the unit of its depth: ``"m"``, ``"mm"``, or ``"auto"`` to tell it."""
        self._asked_unit = units.check_unit(depth_unit)
        self._ending = {folder: _ending(tree, folder) for folder in _ENDINGS}
        super().__init__(tree)

    @classmethod
    def fits(cls, tree: Tree) -> bool:
        """Images and lists are there."""
        return tree.has_folder("images") and tree.has_folder("gt_sets")

    @classmethod
    def folders(cls, tree: Tree) -> tuple[str, ...]:
        """Folders whose files are read."""
        return ("gt_sets", *_ENDINGS)

    @property
    def layout(self) -> str:
        """The release, told by the endings."""
        found = tuple(self._ending[folder] for folder in _ENDINGS)
        for release, endings in _RELEASES.items():
            if all(a is None or a == b for a, b in zip(found, endings, strict=True)):
                return f"NYU-Depth v2 for four tasks, release of {release}"
        text = ", ".join(f"{f} {e}" for f, e in self._ending.items() if e)
        return f"NYU-Depth v2 for four tasks, a mixture of releases ({text})"

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the lists."""
        return list_splits(self.tree, "gt_sets")

    @functools.cached_property
    def depth_unit(self) -> str:
        """``"m"`` or ``"mm"``, from the first 16 files unless it was said."""
        if self._asked_unit != "auto":
            return self._asked_unit
        ending = self._ending["depth"]
        names = [name for name in self.tree.files("depth") if name.lower().endswith(ending)]
        maps = (self._depth(f"depth/{name}") for name in names[: units.FILES])
        return units.decide(maps, self.tree.where("depth"))

    @property
    def notes(self) -> dict[str, str]:
        """The unit of the depth files."""
        return {"depth unit of the files": self.depth_unit} if "depth" in self.tasks else {}

    def ids(self, split: str, strict: bool = True) -> list[str]:
        """The ids of a split."""
        return listed_ids(self, "gt_sets", split, strict)

    def image_file(self, id: str) -> str:
        """Name of the image."""
        return f"images/{id}{self._ending['images'] or '.jpg'}"

    def label_files(self, task: str, id: str) -> tuple[str, ...]:
        """Name of the file of a label."""
        folder = _FOLDER[task]
        return (f"{folder}/{id}{self._ending[folder] or _ENDINGS[folder][0]}",)

    def _has_task(self, task: str) -> bool:
        return self._ending[_FOLDER[task]] is not None

    def _make(self, tasks: Sequence[str]) -> dict[str, object]:
        return make_tasks(
            tasks, class_names={"semseg": SEMSEG_NAMES} if "semseg" in tasks else None
        )

    def _raw(
        self, task: str, id: str, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        (name,) = self.label_files(task, id)
        if task == "depth":
            return units.to_metres(self._depth(name), self.depth_unit), None
        data, where = self._bytes(name)
        if task == "semseg":
            return self._semseg(data, where), None
        if task == "normals":
            if name.endswith(".npy"):
                return decode.npy(data, where, (3,)).astype(np.float32), None
            return decode.vectors(data, where), None
        return self._edge(data, where), None

    def _semseg(self, data: bytes, where: str) -> np.ndarray:
        if where.endswith(".mat"):
            raw = decode.whole(decode.mat_map(data, where, "segmentation"), where)
        else:
            raw = decode.class_map(data, where).astype(np.int64)
        wrong = (raw < 0) | (raw > len(SEMSEG_NAMES))
        if wrong.any():
            raise DataError(
                f"{where} contains {raw[wrong][0]}, expected 0 for no label or 1 to "
                f"{len(SEMSEG_NAMES)}"
            )
        return np.where(raw == 0, IGNORE, raw - 1)

    def _edge(self, data: bytes, where: str) -> np.ndarray:
        if not where.endswith(".npy"):
            return (decode.grey(data, where) >= 128).astype(np.uint8)
        raw = decode.npy(data, where, (2, 3))
        if raw.size and not (raw.min() >= 0 and raw.max() <= 1):
            raise DataError(f"{where} has values up to {raw.max()}, expected 0 and 1")
        return (raw >= 0.5).astype(np.uint8)

    def _depth(self, name: str) -> np.ndarray:
        data, where = self._bytes(name)
        if name.endswith(".mat"):
            return decode.mat_map(data, where, "depth")
        return decode.npy(data, where, (2, 3))


def _ending(tree: Tree, folder: str) -> str | None:
    """The ending of the files in a folder, None when it has none that is known."""
    counts = suffixes(tree, folder)
    found = [ending for ending in _ENDINGS[folder] if ending in counts]
    if len(found) > 1:
        text = " and ".join(f"{counts[ending]} {ending}" for ending in found)
        raise DataError(
            f"{tree.where(folder)} holds {text} files, expected one kind; move the others elsewhere"
        )
    return found[0] if found else None

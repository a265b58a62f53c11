"""cityscapes_mt: semantic classes and depth from Cityscapes, in three layouts.

::

    leftImg8bit/<split>/<city>/<id>_leftImg8bit.png       the official folders (TaskPrompter too)
    gtFine/<split>/<city>/<id>_gtFine_labelIds.png
    disparity/<split>/<city>/<id>_disparity.png           16 bits: 0 is none, else (p - 1) / 256 px
    camera/<split>/<city>/<id>_camera.json

    train|val/{image,seg,depth}/<i>.png or .tif           Auto-Lambda: smaller, the same numbers

    train|val/{image,label,depth}/<i>.npy                 MTAN, LibMTL: image in [0, 1]; 2, 7 or 19
                                                          classes, -1 is none; disparity 0 to 0.49

What users call depth is not one thing, so it is said by ``target``:

| target | label | from |
|---|---|---|
| ``disparity_px`` | pixels of disparity at 2048 columns, whatever the files' size | all |
| ``disparity_norm`` | the same / 256, about 0 to 0.49, the scale of MTAN's files | all |
| ``depth_m`` | metres, baseline * fx / disparity | official folders with ``camera`` |

That MTAN's files are disparity / 256 is inferred from their range. A disparity of 0 is no label in
any of the three, so most of the sky has none; TaskPrompter sets the sky to 0 and scores it. The
label has the task name ``depth`` in each case; a zoom divides metres and multiplies disparity.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from sinewich_jax.data.archives import decode, mtan
from sinewich_jax.data.archives.lists import no_split, suffixes
from sinewich_jax.data.archives.reader import Reader
from sinewich_jax.data.archives.tree import Tree
from sinewich_jax.data.files import read_pixels
from sinewich_jax.data.labels import IGNORE
from sinewich_jax.data.source import make_tasks
from sinewich_jax.errors import DataError, did_you_mean

TARGETS = ("disparity_px", "disparity_norm", "depth_m")
"""What the label may mean."""

# fmt: off
SEMSEG_NAMES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
    "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train",
    "motorcycle", "bicycle",
)
_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# fmt: on
NUMPY_CLASSES = (2, 7, 19)
"""Class counts of the files in NumPy form, which do not say which it is."""

_IMAGE = "_leftImg8bit.png"
_OFFICIAL = {"image": "leftImg8bit", "semseg": "gtFine", "depth": "disparity", "camera": "camera"}
_OFFICIAL_ENDINGS = {
    "image": _IMAGE,
    "semseg": "_gtFine_labelIds.png",
    "depth": "_disparity.png",
    "camera": "_camera.json",
}
_SMALL = {"image": "image", "semseg": "seg", "depth": "depth"}
_NUMPY = {"image": "image", "semseg": "label", "depth": "depth"}
_PICTURES = (".png", ".tif", ".tiff")


class CityscapesReader(Reader):
    """Reads Cityscapes in any of the three layouts."""

    name = "cityscapes_mt"
    all_tasks = ("semseg", "depth")
    names = ("cityscapes", "cityscapes_mt")
    packed_depth = True

    def __init__(self, tree: Tree, target: str = "disparity_px", classes: int | None = None):
        """Takes the tree and what its files do not say.

        Args:
          tree: what is read.
          target: one of `TARGETS`.
          classes: number of classes, for the layout in NumPy files.
        """
        if target not in TARGETS:
            raise DataError(f"target is {target!r}{did_you_mean(str(target), TARGETS)}")
        self.target = target
        self._form = _form(tree)
        self._split_names = _splits(tree, self._form)
        self._kinds = {"official": _OFFICIAL, "small": _SMALL, "numpy": _NUMPY}[self._form]
        if self._form == "small":
            self._ending = {
                folder: _one_ending(tree, self._split_names, folder) for folder in _SMALL.values()
            }
        super().__init__(tree)
        if target == "depth_m" and "depth" in self.tasks and self._form != "official":
            raise DataError(
                f"target 'depth_m' needs the camera's baseline and focal length, which "
                f"{tree.where('')} does not hold; use 'disparity_px' or 'disparity_norm', or the "
                "official folders with camera/"
            )
        self._classes = self._class_count(classes) if "semseg" in self.tasks else 0

    def _class_count(self, classes: int | None) -> int:
        if self._form != "numpy":
            if classes not in (None, len(SEMSEG_NAMES)):
                raise DataError(
                    f"{self.tree.where('')} has {len(SEMSEG_NAMES)} classes, but channels.semseg "
                    f"is {classes}; leave it out"
                )
            return len(SEMSEG_NAMES)
        if classes not in NUMPY_CLASSES:
            found = "not given" if classes is None else classes
            raise DataError(
                f"the files in {self.tree.where('')} do not say how many classes they have; set "
                f"channels.semseg (--classes on the command line) to 2, 7 or 19, it is {found}"
            )
        return classes

    @classmethod
    def fits(cls, tree: Tree) -> bool:
        """One of the three layouts is there."""
        return _form(tree) is not None

    @classmethod
    def told(cls, tree: Tree) -> bool:
        """The same, and no normals, which tell NYUv2 from it."""
        return cls.fits(tree) and not any(tree.has_folder(f"{s}/normal") for s in mtan.SPLITS)

    @classmethod
    def folders(cls, tree: Tree) -> tuple[str, ...]:
        """Folders whose files are read."""
        form = _form(tree)
        if form == "official":
            cities = [f"{s}/{c}" for s in _splits(tree, form) for c in _cities(tree, s)]
            return tuple(f"{top}/{city}" for top in _OFFICIAL.values() for city in cities)
        kinds = (_NUMPY if form == "numpy" else _SMALL).values()
        return tuple(f"{split}/{kind}" for split in _splits(tree, form) for kind in kinds)

    @property
    def layout(self) -> str:
        """Which of the three layouts."""
        return {
            "official": "Cityscapes, official folders",
            "small": "Cityscapes as Auto-Lambda keeps it",
            "numpy": "Cityscapes in NumPy files (MTAN, LibMTL)",
        }[self._form]

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that have images."""
        return self._split_names

    @property
    def grows(self) -> tuple[str, ...]:
        """Disparity is what a zoom multiplies."""
        return () if self.target == "depth_m" else ("depth",)

    @property
    def notes(self) -> dict[str, str]:
        """What depth means."""
        return {"depth means": self.target} if "depth" in self.tasks else {}

    def ids(self, split: str, strict: bool = True) -> list[str]:
        """``split/city/id`` in the official folders, ``split/i`` in the others."""
        if split not in self.splits:
            raise no_split(self, split)
        if self._form != "official":
            return mtan.numbered_ids(self, split, self._ending_of("image"))
        return [
            f"{split}/{city}/{name.removesuffix(_IMAGE)}"
            for city in _cities(self.tree, split)
            for name in self.tree.files(f"leftImg8bit/{split}/{city}")
            if name.endswith(_IMAGE)
        ]

    def image_file(self, id: str) -> str:
        """Name of the image."""
        return self._file("image", id)

    def label_files(self, task: str, id: str) -> tuple[str, ...]:
        """Names of the files of a label; metres need the camera too."""
        if task == "depth" and self.target == "depth_m":
            return self._file("depth", id), self._file("camera", id)
        return (self._file(task, id),)

    def _ending_of(self, kind: str) -> str:
        return ".npy" if self._form == "numpy" else self._ending[_SMALL[kind]] or ".png"

    def _file(self, kind: str, id: str) -> str:
        if self._form == "official":
            return f"{_OFFICIAL[kind]}/{id}{_OFFICIAL_ENDINGS[kind]}"
        return mtan.in_folder(id, self._kinds[kind], self._ending_of(kind))

    def _has_task(self, task: str) -> bool:
        folders = [f for f in self.folders(self.tree) if self._kinds[task] in f.split("/")]
        return any(self.tree.files(folder) for folder in folders)

    def _make(self, tasks: Sequence[str]) -> dict[str, object]:
        if "semseg" not in tasks:
            return make_tasks(tasks)
        if self._classes == len(SEMSEG_NAMES):
            return make_tasks(tasks, class_names={"semseg": SEMSEG_NAMES})
        return make_tasks(tasks, channels={"semseg": self._classes})

    def _image(self, id: str) -> tuple[np.ndarray, dict[str, bytes]]:
        if self._form != "numpy":
            return super()._image(id)
        return mtan.float_image(*self._bytes(self.image_file(id))), {}

    def _raw(
        self, task: str, id: str, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        data, where = self._bytes(self.label_files(task, id)[0])
        if task == "depth":
            return self._target(self._disparity(data, where), id).astype(np.float32), None
        if self._form == "numpy":
            return mtan.signed_classes(data, where), None
        return train_ids(decode.class_map(data, where), where), None

    def _disparity(self, data: bytes, where: str) -> np.ndarray:
        """Pixels of disparity at 2048 columns, float64 [H, W]; 0 where there is none."""
        if self._form == "numpy":
            return decode.npy(data, where, (2, 3)).astype(np.float64) * 256
        raw = read_pixels(data, where)
        if raw.ndim != 2 or raw.dtype.kind not in "iu" or raw.dtype.itemsize < 2:
            raise DataError(
                f"{where} holds {raw.dtype} pixels of shape {list(raw.shape)}, expected 16 bits "
                "in one channel"
            )
        return np.where(raw > 0, (raw.astype(np.float64) - 1) / 256, 0)

    def _target(self, disparity: np.ndarray, id: str) -> np.ndarray:
        if self.target == "disparity_px":
            return disparity
        if self.target == "disparity_norm":
            return disparity / 256
        data, where = self._bytes(self._file("camera", id))
        strength = _baseline_times_fx(data, where)
        return np.divide(strength, disparity, where=disparity > 0, out=np.zeros_like(disparity))


def train_ids(label_ids: np.ndarray, where: str) -> np.ndarray:
    """The 19 classes from the official 34 label ids; the others are no label."""
    if label_ids.size and label_ids.max() > 33:
        raise DataError(f"{where} contains {label_ids.max()}, expected label ids from 0 to 33")
    table = np.full(34, IGNORE, np.int64)
    table[list(_LABEL_IDS)] = np.arange(len(_LABEL_IDS))
    return table[label_ids]


def _baseline_times_fx(data: bytes, where: str) -> float:
    try:
        camera = json.loads(data)
        baseline, fx = camera["extrinsic"]["baseline"], camera["intrinsic"]["fx"]
        strength = float(baseline) * float(fx)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{where} does not say the camera ({error!r}), expected extrinsic.baseline in metres "
            "and intrinsic.fx in pixels"
        ) from None
    if not 0 < strength < float("inf"):
        raise DataError(f"{where} has baseline {baseline} and fx {fx}, expected both above 0")
    return strength


def _form(tree: Tree) -> str | None:
    if tree.has_folder("leftImg8bit"):
        return "official"
    if mtan.numpy_splits(tree):
        return "numpy"
    return "small" if any(tree.has_folder(f"{s}/seg") for s in mtan.SPLITS) else None


def _splits(tree: Tree, form: str) -> tuple[str, ...]:
    if form == "numpy":
        return mtan.numpy_splits(tree)
    if form == "small":
        return tuple(split for split in mtan.SPLITS if tree.files(f"{split}/image"))
    found = [split for split in tree.folders("leftImg8bit") if _cities(tree, split)]
    return tuple(sorted(found, key=lambda s: (s not in mtan.SPLITS, s != "train", s != "val", s)))


def _cities(tree: Tree, split: str) -> list[str]:
    return tree.folders(f"leftImg8bit/{split}")


def _one_ending(tree: Tree, splits: Sequence[str], folder: str) -> str | None:
    """The ending of the pictures in a folder, over the splits."""
    found = {e for s in splits for e in suffixes(tree, f"{s}/{folder}") if e in _PICTURES}
    if len(found) > 1:
        raise DataError(
            f"{tree.where('')} holds {' and '.join(sorted(found))} files in {folder}, expected one "
            "kind; move the others elsewhere"
        )
    return found.pop() if found else None

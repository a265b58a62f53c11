"""Writes tiny archives in the published layouts, and packs them as a tar."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from PIL import Image

PASCAL_IDS = ("2008_000002", "2008_000003", "2008_000008")
PASCAL_SIZES = ((40, 50), (50, 38), (36, 36))
NYUD_IDS = ("0001", "0002", "0003")
SALIENT, FAINT = 128, 127  # v / 255 just above and just below one half
PERSON, CHAIR, OTHER = 284, 72, 431  # context classes; normals hold on the first two
RELEASES = ("mtinet", "atrc", "astmt")


def save(path: Path, array: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".mat":
        scipy.io.savemat(path, {options["key"]: array})
    else:
        if path.suffix == ".jpg":
            options = {"quality": 100, "subsampling": 0, **options}
        Image.fromarray(array).save(path, **options)


def save_palette(path: Path, numbers: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = numbers.shape
    image = Image.frombytes("P", (width, height), numbers.tobytes())
    image.putpalette([value for k in range(256) for value in (255 - k, k, k // 2)])
    image.save(path)


def write_list(path: Path, ids: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{id}\n" for id in ids))


def smooth_normals(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors that vary slowly, so that JPEG keeps them; they face the viewer (z < 0)."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    a, b, c, d = rng.uniform(-0.6, 0.6, 4)
    field = np.stack([a + b * x, c + d * y, np.full((height, width), -1.0)], axis=-1)
    return (field / np.linalg.norm(field, axis=-1, keepdims=True)).astype(np.float32)


def to_bytes(vectors: np.ndarray) -> np.ndarray:
    return np.rint((vectors + 1) * 127.5).astype(np.uint8)


def structs(fields: Sequence[str], rows: Sequence[Sequence[Any]]) -> np.ndarray:
    """A row of MATLAB structs."""
    row = np.empty((1, len(rows)), dtype=[(name, object) for name in fields])
    for index, values in enumerate(rows):
        row[0, index] = tuple(values)
    return row


EMPTY = np.zeros((0, 0))


def anno(objects: Sequence[Sequence[Any]], name: str = "x") -> np.ndarray:
    """A PASCAL-Part annotation; an object is (class, class_ind, mask, [(part, mask), ...])."""
    rows = [
        (kind, number, mask, structs(("part_name", "mask"), parts) if parts else EMPTY)
        for kind, number, mask, parts in objects
    ]
    inner = structs(("class", "class_ind", "mask", "parts"), rows) if rows else EMPTY
    return structs(("imname", "objects"), [(name, inner)])


def box(size: tuple[int, int], rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[rows, columns] = 1
    return mask


def pascal(root: Path, seed: int = 0) -> Path:
    """PASCAL_MT: two training images, the second without a person, and one to validate on."""
    rng = np.random.default_rng(seed)
    for number, (id, size) in enumerate(zip(PASCAL_IDS, PASCAL_SIZES, strict=True)):
        height, width = size
        save(root / f"JPEGImages/{id}.jpg", rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        context = np.full(size, OTHER, np.uint16)
        context[:, width // 2 :] = PERSON
        context[height // 2 :, : width // 4] = CHAIR
        path = root / f"pascal-context/trainval/{id}.mat"
        save(path, context, key="LabelMap")
        semseg = box(size, slice(5, 15), slice(5, 15)) * np.uint8(15)
        semseg[0] = 255
        folder = ("VOC12", "pascal-context")[number % 2]
        save_palette(root / f"semseg/{folder}/{id}.png", semseg)
        save(root / f"human_parts/{id}.mat", people(size, person=number != 1), key="anno")
        save(root / f"normals_distill/{id}.png", to_bytes(smooth_normals(*size, rng)))
        salient = box(size, slice(5, 15), slice(5, 15)) * np.uint8(SALIENT)
        salient[20:22] = FAINT
        save(root / f"sal_distill/{id}.png", salient)
    write_list(root / "ImageSets/Context/train.txt", PASCAL_IDS[:2])
    write_list(root / "ImageSets/Context/val.txt", PASCAL_IDS[2:])
    return root


def people(size: tuple[int, int], person: bool) -> np.ndarray:
    across = slice(5, 15)
    whole = box(size, slice(5, 15), across)
    parts = [
        ("head", box(size, slice(5, 8), across)),
        ("torso", box(size, slice(8, 12), across)),
        ("llleg", box(size, slice(12, 15), across)),
    ]
    first = ("person", 15, whole, parts) if person else ("dog", 12, whole, [])
    return anno([first, ("chair", 9, 1 - whole, [])])


def nyud_truth(id: str, size: tuple[int, int] = (48, 64)) -> dict[str, np.ndarray]:
    """What one example of every release holds; semseg as in the files, 0 to 40."""
    rng = np.random.default_rng(int(id))
    normals = smooth_normals(*size, rng)
    depth = rng.uniform(0.7, 9.9, size).astype(np.float32)
    depth[-4:] = 0
    grey = rng.integers(0, 256, size, dtype=np.uint8)
    return {
        "image": np.repeat(grey[..., None], 3, axis=-1),
        "semseg": rng.integers(0, 41, size, dtype=np.uint8),
        "normals": normals,
        "depth": depth,
        "edge": (rng.random(size) < 0.05).astype(np.uint8),
    }


def nyud(root: Path, release: str = "mtinet", scale: float = 1.0) -> Path:
    """NYUD_MT in one of three releases; depth is multiplied by ``scale``."""
    assert release in RELEASES
    for id in NYUD_IDS:
        truth = nyud_truth(id)
        depth = truth["depth"] * np.float32(scale)
        save(root / f"images/{id}{'.png' if release == 'atrc' else '.jpg'}", truth["image"])
        if release == "astmt":
            save(root / f"segmentation/{id}.mat", truth["semseg"], key="segmentation")
            save(root / f"depth/{id}.mat", depth, key="depth")
            save(root / f"normals/{id}.jpg", to_bytes(truth["normals"]))
        else:
            save(root / f"segmentation/{id}.png", truth["semseg"])
            save(root / f"depth/{id}.npy", depth)
            if release == "atrc":
                save(root / f"normals/{id}.png", to_bytes(truth["normals"]))
            else:
                save(root / f"normals/{id}.npy", truth["normals"])
        if release == "mtinet":
            save(root / f"edge/{id}.npy", truth["edge"])
        else:
            save(root / f"edge/{id}.png", truth["edge"] * np.uint8(255))
    write_list(root / "gt_sets/train.txt", NYUD_IDS[:2])
    write_list(root / "gt_sets/val.txt", NYUD_IDS[2:])
    return root


def mtan_truth(number: int, size: tuple[int, int] = (24, 32)) -> dict[str, np.ndarray]:
    """One example of the small NYUv2; the normal at (3, 4) is valid and sums to 0."""
    rng = np.random.default_rng(number)
    normal = smooth_normals(*size, rng)
    normal[:2] = 0
    normal[3, 4] = np.array([1, 0, -1]) / np.sqrt(2)
    label = rng.integers(-1, 13, size)
    depth = rng.uniform(0.5, 9, (*size, 1)).astype(np.float32)
    depth[-2:] = 0
    return {
        "image": rng.integers(0, 256, (*size, 3), dtype=np.uint8),
        "label": label,
        "depth": depth,
        "normal": normal,
    }


def nyuv2(root: Path) -> Path:
    """The small NYUv2: eleven training examples (so that 10 follows 9, not 1) and two more."""
    for split, count in (("train", 11), ("val", 2)):
        for number in range(count):
            truth = mtan_truth(number)
            save(root / f"{split}/image/{number}.npy", truth["image"] / 255.0)
            save(root / f"{split}/label/{number}.npy", truth["label"].astype(np.float32))
            save(root / f"{split}/depth/{number}.npy", truth["depth"])
            save(root / f"{split}/normal/{number}.npy", truth["normal"])
    return root


CITY_SIZE = (16, 32)
BASELINE, FX = 0.209313, 2262.52


def city_truth(number: int) -> dict[str, np.ndarray]:
    """Label ids, and disparity as its file has it: 0 none, else 256 d + 1."""
    rng = np.random.default_rng(100 + number)
    packed = rng.integers(2, 30000, CITY_SIZE, dtype=np.uint16)
    packed[:3] = 0
    packed[5, 5] = 1  # a disparity of 0: infinitely far
    return {
        "image": rng.integers(0, 256, (*CITY_SIZE, 3), dtype=np.uint8),
        "ids": rng.integers(0, 34, CITY_SIZE, dtype=np.uint8),
        "packed": packed,
    }


def cityscapes(root: Path, form: str = "official", classes: int = 19) -> Path:
    """Cityscapes with two training images and one to validate on: official, small or numpy."""
    places = (("train", "aachen"), ("train", "bochum"), ("val", "lindau"))
    for number, (split, city) in enumerate(places):
        truth = city_truth(number)
        if form == "official":
            id = f"{split}/{city}/{city}_00000{number}_000019"
            save(root / f"leftImg8bit/{id}_leftImg8bit.png", truth["image"])
            save(root / f"gtFine/{id}_gtFine_labelIds.png", truth["ids"])
            save(root / f"disparity/{id}_disparity.png", truth["packed"])
            camera = root / f"camera/{id}_camera.json"
            camera.parent.mkdir(parents=True, exist_ok=True)
            values = {"extrinsic": {"baseline": BASELINE}, "intrinsic": {"fx": FX}}
            camera.write_text(json.dumps(values))
        elif form == "small":
            save(root / f"{split}/image/{number}.png", truth["image"])
            save(root / f"{split}/seg/{number}.png", truth["ids"])
            save(root / f"{split}/depth/{number}.tif", truth["packed"])
        else:
            norm = np.maximum(truth["packed"].astype(np.float64) - 1, 0) / 256 / 256
            label = truth["ids"].astype(int) % (classes + 1) - 1
            save(root / f"{split}/image/{number}.npy", (truth["image"] / 255).astype(np.float32))
            save(root / f"{split}/label/{number}.npy", label)
            save(root / f"{split}/depth/{number}.npy", norm[..., None])
    return root


def pack(root: Path, target: Path, mode: str = "w", prefix: str | None = None) -> Path:
    """Packs a folder as a tar; ``prefix`` is the name of its top folder there ("" for none)."""
    with tarfile.open(target, mode) as tar:
        tar.add(root, arcname=root.name if prefix is None else prefix or ".")
    return target


def add_member(target: Path, name: str, content: bytes = b"x", **fields: Any) -> None:
    """Adds a member to a tar with whatever name and type."""
    member = tarfile.TarInfo(name)
    member.size = len(content) if fields.get("type", tarfile.REGTYPE) == tarfile.REGTYPE else 0
    for key, value in fields.items():
        setattr(member, key, value)
    with tarfile.open(target, "a") as tar:
        tar.addfile(member, io.BytesIO(content) if member.size else None)


def state(root: Path) -> dict[str, tuple[int, int, int]]:
    """Every path below a folder with its mode, size and time of change."""
    found = {}
    for path in [root, *root.rglob("*")]:
        info = path.stat()
        found[str(path)] = (info.st_mode, info.st_size, info.st_mtime_ns)
    return found


def make_read_only(root: Path) -> None:
    for path in sorted([root, *root.rglob("*")], reverse=True):
        os.chmod(path, 0o555 if path.is_dir() else 0o444)


def make_writable(root: Path) -> None:
    for path in [root, *root.rglob("*")]:
        os.chmod(path, 0o755 if path.is_dir() else 0o644)

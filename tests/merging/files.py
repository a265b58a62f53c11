"""Models in files of every format, for the tests of merging them."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np

from sinewich_jax import merging
from sinewich_jax.core.curvature import Diagonal, Factored
from sinewich_jax.core.trees import flatten_paths, unflatten_paths
from sinewich_jax.storage import save_safetensors

FORMATS = ("safetensors", "shards", "npz")
NAMES = ("a", "b", "c")

Flat = dict[str, np.ndarray]


def family(seed: int = 0, narrow: bool = True) -> tuple[Flat, dict[str, Flat]]:
    """A base and three experts around it: kernels, a bias, narrow and wide floats, a counter."""
    rng = np.random.default_rng(seed)
    shapes = {"stem/kernel": (9, 4), "block/kernel": (12, 10), "block/bias": (10,)}
    dtypes = {"low/kernel": ml_dtypes.bfloat16 if narrow else np.float16, "high/scale": np.float64}
    base = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    base |= {name: rng.standard_normal((6, 5)).astype(dtype) for name, dtype in dtypes.items()}
    base["steps"] = np.array(7, np.int32)
    return base, {name: around(base, rng) for name in NAMES}


def around(base: Flat, rng: np.random.Generator) -> Flat:
    """The base after a little training."""
    return {
        name: leaf
        if leaf.dtype == np.int32
        else (leaf.astype(np.float64) + rng.laplace(0, 0.05, leaf.shape)).astype(leaf.dtype)
        for name, leaf in base.items()
    }


def statistics(rule: merging.Rule, base: Flat, seed: int = 1) -> dict[str, Flat] | None:
    """What the rule needs of each expert, as the leaves of a file."""
    need = next((need for need in rule.needs if need != "data"), None)
    if need is None:
        return None
    rng = np.random.default_rng(seed)
    found: dict[str, Flat] = {}
    for name in NAMES:
        found[name] = flat = {}
        for path, leaf in base.items():
            if leaf.dtype == np.int32:
                continue
            if need == "curvature" and leaf.ndim == 2:
                flat[f"{path}/row"] = rng.random(leaf.shape[0]).astype(np.float32)
                flat[f"{path}/col"] = rng.random(leaf.shape[1]).astype(np.float32)
            elif need == "curvature":
                flat[f"{path}/diag"] = rng.random(leaf.shape).astype(np.float32)
            elif need == "gram" and leaf.ndim == 2:
                inputs = rng.standard_normal((30, leaf.shape[0])).astype(np.float32)
                flat[path] = inputs.T @ inputs
            elif need == "fisher":
                flat[path] = rng.random(leaf.shape).astype(np.float32)
    return found


def in_memory(
    rule: merging.Rule,
    base: Flat,
    experts: dict[str, Flat],
    stats: dict[str, Flat] | None,
    **options: object,
) -> dict[str, Flat]:
    """What merging the trees gives, by the file that it would be in."""
    trees = None if stats is None else {name: _tree(flat) for name, flat in stats.items()}
    nested = {name: unflatten_paths(flat) for name, flat in experts.items()}
    merged = merging.merge(rule.name, unflatten_paths(base), nested, stats=trees, **options)
    if rule.conditional:
        return {name: flatten_paths(merged.select(name)) for name in experts}
    return {"merged": flatten_paths(merged)}


def _tree(flat: Flat) -> Flat:
    found: dict[str, object] = {}
    for name, leaf in flat.items():
        parent, _, field = name.rpartition("/")
        if field == "row":
            found[parent] = Factored(leaf, flat[f"{parent}/col"])
        elif field == "diag":
            found[parent] = Diagonal(leaf)
        elif field != "col":
            found[name] = leaf
    return unflatten_paths(found)


def write(folder: Path, name: str, flat: Flat, kind: str = "safetensors") -> Path:
    """A model in a file, or in a folder of shards."""
    if kind == "npz":
        np.savez(folder / f"{name}.npz", **flat)
        return folder / f"{name}.npz"
    if kind == "safetensors":
        save_safetensors(folder / f"{name}.safetensors", flat)
        return folder / f"{name}.safetensors"
    places = {}
    for number, leaf in enumerate(sorted(flat, reverse=True)):
        places[leaf] = f"model-{number % 2 + 1:05}-of-00002.safetensors"
    for file in sorted(set(places.values())):
        part = {leaf: flat[leaf] for leaf, place in places.items() if place == file}
        save_safetensors(folder / name / file, part)
    index = folder / name / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder / name


def write_raw(path: Path, flat: Flat, **changes: object) -> Path:
    """A safetensors file with its leaves in the order given, its header changed at will."""
    names = {"bfloat16": "BF16", "float32": "F32", "float64": "F64", "int32": "I32"}
    header, end = {}, 0
    for name, leaf in flat.items():
        header[name] = {
            "dtype": names[leaf.dtype.name],
            "shape": list(leaf.shape),
            "data_offsets": [end, end := end + leaf.nbytes],
        }
    for name, change in changes.items():
        header[name] = header[name] | change
    text = json.dumps(header).encode()
    data = b"".join(leaf.tobytes() for leaf in flat.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def same(found: Flat, expected: Flat) -> None:
    """Asserts equal names, dtypes and bits."""
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        assert found[name].dtype == np.asarray(leaf).dtype, name
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)

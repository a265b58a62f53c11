"""Frozen results of other implementations, read as trees; see fixtures/README.md."""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

import numpy as np

FOLDER = pathlib.Path(__file__).parent / "fixtures"


class Peer:
    """One file of fixtures."""

    def __init__(self, name: str) -> None:
        with np.load(FOLDER / f"{name}.npz") as file:
            self.arrays = {key: file[key] for key in file.files}
        self.hp = json.loads(str(self.arrays["hp"]))

    def tree(self, prefix: str) -> dict[str, np.ndarray]:
        """The leaves under ``prefix/``."""
        start = f"{prefix}/"
        return {key[len(start) :]: v for key, v in self.arrays.items() if key.startswith(start)}

    def experts(self, prefix: str = "expert") -> dict[str, dict[str, np.ndarray]]:
        return {str(t): self.tree(f"in/{prefix}{t}") for t in range(self.hp["tasks"])}

    def flat(self, tree: dict[str, Any]) -> np.ndarray:
        """One vector in the peer's order of leaves."""
        return np.concatenate([np.ravel(tree[name]) for name in self.hp["flat_order"]])


@functools.cache
def peer(name: str) -> Peer:
    return Peer(name)

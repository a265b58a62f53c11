"""Where this library keeps the data that it makes itself: rendered scenes, prepared archives."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_ENVIRONMENT = "SINEWICH_CACHE"
"""The environment variable that names the folder for what this library makes."""


def cache_dir() -> Path:
    """The folder that the environment names, else the user's cache; it need not exist yet."""
    root = os.environ.get(CACHE_ENVIRONMENT)
    if root:
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sinewich_jax"

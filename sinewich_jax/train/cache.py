"""JAX's persistent compilation cache: the second start of a job does not compile again."""

from __future__ import annotations

import os
from pathlib import Path

import jax

_VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def enable_compilation_cache() -> str:
    """Turns the cache on, in the user's cache folder; returns the folder.

    ``JAX_COMPILATION_CACHE_DIR`` wins when it is set (set but empty, it turns the cache off).
    """
    if _VARIABLE in os.environ:
        return os.environ[_VARIABLE]
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = str(Path(root) / "sinewich_jax" / "xla")
    jax.config.update("jax_compilation_cache_dir", folder)
    return folder

"""Training: state, step, loop, checkpoints, writers, evaluation.

:func:`train` runs a config in a work directory, :func:`evaluate_workdir` scores what is in one.
Names are looked up on first use.
"""

from __future__ import annotations

import importlib

_MODULES = (
    "build",
    "checkpointing",
    "evaluate",
    "loop",
    "monitor",
    "setup",
    "signals",
    "state",
    "step",
    "timing",
    "workdir",
    "writers",
)
_HOMES = {
    "Outcome": "loop",
    "TrainState": "state",
    "evaluate_workdir": "evaluate",
    "train": "loop",
}

__all__ = sorted([*_HOMES, *_MODULES])


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)

"""Training: state, step, loop, checkpoints, writers, evaluation.

:func:`train` runs a config in a work directory, :func:`evaluate_workdir` scores what is in one,
:func:`open_task` opens one of its tasks for merging.
Names are looked up on first use.
"""

from __future__ import annotations

from sinewich_jax import lazy

_MODULES = (
    "build",
    "checkpointing",
    "evaluate",
    "loop",
    "merge_tasks",
    "monitor",
    "networks",
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
    "open_task": "merge_tasks",
    "train": "loop",
}

__getattr__, __dir__, __all__ = lazy.attach(__name__, _MODULES, _HOMES)

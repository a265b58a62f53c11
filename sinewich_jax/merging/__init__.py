"""Merging: pytrees in, pytrees out, whatever framework they come from.

    delta  = merging.task_vector(params, base)
    merged = merging.merge("task_arithmetic", base, {"a": params_a, "b": params_b}, scale=0.3)
    merged = merging.merge(merging.DEFAULT_RULE, base, experts, stats=curvature_by_name)
    pruned = merging.prune(delta, curvature, density=0.1)
    merging.merge_files("ties", "base.safetensors", {"a": "a.safetensors", ...}, "out")
    merging.rules()                              # what there is, what it needs, its source

Nothing here imports JAX: leaves that are NumPy arrays stay with NumPy, leaves that are JAX arrays
(of a program that has imported it) are merged by ``jax.numpy``. A rule is one file in
``merging/methods``; adding one touches no other file.
"""

from __future__ import annotations

from sinewich_jax.merging.combine import merge
from sinewich_jax.merging.conditional import TaskConditional
from sinewich_jax.merging.leaf import Conditional, Leaf, Leaves
from sinewich_jax.merging.pruning import prune
from sinewich_jax.merging.registry import Rule, register, rules
from sinewich_jax.merging.statistics import fisher_scale, normalize_curvature
from sinewich_jax.merging.stream import merge_files, plan_files
from sinewich_jax.merging.vectors import apply_task_vector, task_vector

DEFAULT_RULE = "curvature_average"
"""The rule to begin with, where experts bring their curvature: it has nothing to tune."""

__all__ = [
    "DEFAULT_RULE",
    "Conditional",
    "Leaf",
    "Leaves",
    "Rule",
    "TaskConditional",
    "apply_task_vector",
    "fisher_scale",
    "merge",
    "merge_files",
    "normalize_curvature",
    "plan_files",
    "prune",
    "register",
    "rules",
    "task_vector",
]

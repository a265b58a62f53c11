"""Merging: pytrees in, pytrees out, whatever framework they come from.

    delta  = merging.task_vector(params, base)
    merged = merging.merge("task_arithmetic", base, {"a": params_a, "b": params_b}, scale=0.3)
    merging.rules()                              # what there is, what it needs, its source

Nothing here imports JAX: leaves that are NumPy arrays stay with NumPy, leaves that are JAX arrays
(of a program that has imported it) are merged by ``jax.numpy``. A rule is one file in
``merging/methods``; adding one touches no other file.
"""

from __future__ import annotations

from sinewich_jax.merging.combine import merge
from sinewich_jax.merging.registry import Leaf, Rule, register, rules
from sinewich_jax.merging.vectors import apply_task_vector, task_vector

__all__ = ["Leaf", "Rule", "apply_task_vector", "merge", "register", "rules", "task_vector"]

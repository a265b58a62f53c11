"""Optimizers that leave behind what merging needs: optax transformations and pure functions.

    tx = optim.with_merge_stats(optax.adamw(3e-4))     # updates bitwise those of the inner one
    tx = optim.umtam(3e-4, rank=32)                    # low-rank momentum, factored second moment
    stats = optim.export_stats(opt_state)              # curvature by parameter path, from both

They know pytrees and no model. Names are looked up on first use; importing this room imports
neither JAX nor optax.
"""

from __future__ import annotations

from sinewich_jax import lazy

# The module of umtam has a longer name: importing a submodule binds its name in the package.
_MODULES = ("lowrank_momentum", "merge_stats", "squares", "statistics", "trajectory")
_MODULES += ("umtam_optimizer",)
_HOMES = {
    "MergeStatsState": "merge_stats",
    "UmtamState": "umtam_optimizer",
    "debiased": "statistics",
    "export_saliency": "merge_stats",
    "export_stats": "merge_stats",
    "init_curvature": "statistics",
    "micro_batch_squares": "squares",
    "per_example_squares": "squares",
    "scale_by_umtam": "umtam_optimizer",
    "umtam": "umtam_optimizer",
    "update_curvature": "statistics",
    "with_merge_stats": "merge_stats",
}

__getattr__, __dir__, __all__ = lazy.attach(__name__, _MODULES, _HOMES)

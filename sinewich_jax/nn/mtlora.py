"""MTLoRA's last block of a stage: low-rank updates of a task beside the frozen path of all.

    pre     = W x + b                              x, the stream that all tasks share
    shared  = pre + s (x D) U^T
    task t  = pre + s (x_t D_t) U_t^T              x_t, the task's own stream

in ``proj``, ``fc1`` and ``fc2``; streams part at ``proj``. The frozen product always reads the
shared stream, and a task's output lacks the shared update. Dropout thins the ``x`` of the shared
updates, so in ``proj``, where a task has no stream yet, what its own update reads too. Residuals
and norms are the block's own. Source: Agiza et al. 2024 (arXiv 2403.20320), equations as in the
authors' release. The shared update of ``fc2`` in the very last block never gets a gradient there:
nothing reads its output.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sinewich_jax.core.products import rows_product
from sinewich_jax.nn.blocks import Maps, SwinBlock
from sinewich_jax.nn.layers import Dense, Drop, drop_path
from sinewich_jax.nn.task_kernel import TaskSpec

Array = jax.Array

TARGETS = ("proj", "fc1", "fc2")


@dataclasses.dataclass(frozen=True)
class MTLoRASpec:
    """How MTLoRA's tasks differ.

    Attributes:
      num_tasks: T.
      rank: of the updates of each task (the shared ones have the backbone's ``lora_rank``).
      scale: their plain multiplier.
    """

    num_tasks: int
    rank: int = 4
    scale: float = 4.0
    reads_frequencies: bool = dataclasses.field(default=False, init=False)

    @property
    def streams(self) -> int:
        """One a task."""
        return self.num_tasks


class MTLoRABlock(SwinBlock):
    """A stage's last block in MTLoRA.

    Attributes:
      task: ranks of the tasks' updates.
      task_axis: not read; the tasks' products are small.
    """

    task: MTLoRASpec | None = None
    task_axis: str = "vmap"

    def task_part(self, name: str) -> TaskSpec | None:
        """A low-rank update for each task, next to the shared one."""
        if name not in TARGETS:
            return None
        return TaskSpec(
            self.task.num_tasks, kind="task", rank=self.task.rank, scale=self.task.scale
        )

    def split(
        self, maps: Maps, omega: Mapping[str, Array | None], drop: Drop | None = None
    ) -> tuple[Array, Maps]:
        """The block for every task, and for the stream that all share.

        Args:
          maps: what came in.
          omega: not read.
          drop: stochastic depth; a dropped example is dropped for every task.

        Returns:
          (T, B, H, W, C), and what goes on to the next stage.
        """
        attended = self.attention(maps, drop)
        mixed, frame = attended.pixels, attended.frame
        first, late = drop and drop.fold(0), drop and drop.fold(1)

        def residual(x: Array, branch: Array, drop: Drop | None) -> Array:
            return x + drop_path(branch, drop)

        residuals = jax.vmap(residual, (None, 0, None)), jax.vmap(residual, (0, 0, None))
        shared, tasks = _both(self.proj, mixed, None, self.keys("proj", drop))
        x = residual(maps.pixels, frame.join(shared), first)
        streams = residuals[0](maps.pixels, jax.vmap(frame.join)(tasks), first)

        hidden, own = _both(self.fc1, self.norm2(x), self.norm2(streams), self.keys("fc1", drop))
        hidden, own = (nn.gelu(h, approximate=False) for h in (hidden, own))
        branch, branches = _both(self.fc2, hidden, own, self.keys("fc2", drop))
        return residuals[1](streams, branches, late), Maps(residual(x, branch, late))

    def task_diagnostics(self, omega: Mapping[str, Array | None]) -> dict[str, Any]:
        """Diagnostics of the tasks' updates."""
        return {name: getattr(self, name).task_kernel.diagnostics(None) for name in TARGETS}


def _both(
    dense: Dense, shared: Array, tasks: Array | None, keys: Array | None
) -> tuple[Array, Array]:
    """One linear map on the shared stream (...) and on those of the tasks (T, ...).

    Without streams of their own the tasks read what the shared update reads.
    """
    kernel = dense.task_kernel
    down, up = kernel.down.astype(dense.dtype), kernel.up.astype(dense.dtype)
    frozen, thinned = dense.frozen(shared), dense.thin(shared, keys)
    if tasks is None:
        tasks = jnp.broadcast_to(thinned, (kernel.spec.num_tasks, *thinned.shape))
    low = jax.vmap(rows_product)(tasks, down)
    update = kernel.spec.scale * jax.vmap(rows_product)(low, up.swapaxes(1, 2))
    return frozen + dense.low_rank(thinned), frozen + update

"""What a conditional rule gives: one shared vector, and for each task a mask and a number."""

from __future__ import annotations

from typing import Any, NamedTuple

from sinewich_jax.core.arrays import dtype_of
from sinewich_jax.core.trees import map_paths
from sinewich_jax.errors import ConfigError, did_you_mean
from sinewich_jax.merging.leaf import Conditional


class TaskConditional(NamedTuple):
    """A merged model that becomes that of one task when the task is known.

    Attributes:
      base: the tree that all experts started from.
      names: of the tasks.
      leaves: the conditional leaves by path.
    """

    base: Any
    names: tuple[str, ...]
    leaves: dict[str, Conditional]

    def select(self, name: str) -> Any:
        """The model of one task, in the containers and dtypes of the base.

        Raises:
          ConfigError: no such task; the nearest name is offered.
        """
        if name not in self.names:
            raise ConfigError(f"no task is called {name!r}{did_you_mean(name, self.names)}")
        task = self.names.index(name)
        return map_paths(
            lambda path, leaf: (
                self.leaves[path].select(task).astype(dtype_of(leaf))
                if path in self.leaves
                else leaf
            ),
            self.base,
        )

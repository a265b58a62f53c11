"""What belongs to a task alone: leaves that the base does not have, such as its head."""

from __future__ import annotations

from typing import Any

from sinewich_jax.core.trees import flatten_paths
from sinewich_jax.errors import SinewichError
from sinewich_jax.switches.leaf import DenseLeaf, Switch

Array = Any


def split_own(switch: Switch, base: Any) -> tuple[Switch, dict[str, Array]]:
    """Divides a switch into changes of the base and leaves that are the task's own.

    Args:
      switch: of one task, as a bank gives it.
      base: a tree, or a mapping by path such as the ``specs`` of a leaf source.

    Returns:
      The switch that :func:`~sinewich_jax.switches.apply.apply_switch` takes, and the task's own
      leaves by path; ``core.trees.unflatten_paths`` makes a tree of them.

    Raises:
      SinewichError: a leaf that the base does not have and that is packed, so that it was made on
        another base.

    Examples:
      >>> head = DenseLeaf(np.ones((64, 5), np.float32))
      >>> switch, own = split_own(Switch({"head/kernel": head}), {"trunk": np.zeros(3)})
      >>> switch.leaves, list(own)
      ({}, ['head/kernel'])
    """
    ours = flatten_paths(base)
    changes, own = {}, {}
    for path, leaf in switch.leaves.items():
        if path in ours:
            changes[path] = leaf
        elif isinstance(leaf, DenseLeaf):
            own[path] = leaf.delta
        else:
            raise SinewichError(
                f"the switch changes the leaf {path!r}, which the base does not have; use the base "
                "that it was made for"
            )
    return Switch(changes), own

"""Reading a compiled program: how often do the devices talk to each other."""

from __future__ import annotations

import re
from typing import Any

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)

# An instruction reads "%name = shape opcode(operands)"; asynchronous ones come as a pair of
# "opcode-start" and "opcode-done", of which the first is counted.
_INSTRUCTION = re.compile(rf"=\s.*?\s({'|'.join(COLLECTIVES)})(?:-start)?\(")


def count_collectives(compiled: Any) -> dict[str, int]:
    """Counts the collective instructions of a compiled program.

    Args:
      compiled: ``jax.jit(f).lower(...).compile()``, or its HLO text.

    Returns:
      ``{"all-reduce": n, "all-gather": n, ...}`` with every kind present. An instruction inside a
      loop counts once.
    """
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    counts = dict.fromkeys(COLLECTIVES, 0)
    for line in text.splitlines():
        match = _INSTRUCTION.search(line)
        if match:
            counts[match.group(1)] += 1
    return counts

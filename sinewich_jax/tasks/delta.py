"""Delta m: the one number that multi-task papers compare."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sinewich_jax.errors import SinewichError


def delta_m(
    results: Mapping[str, float],
    references: Mapping[str, float],
    higher_is_better: Mapping[str, bool],
) -> float:
    """Mean relative improvement over single-task references, in percent.

    Delta m = 100 / T * sum_t s_t (M_t - B_t) / B_t with s_t = 1 where more is better and -1 where
    less is (Maninis et al. 2019, section 4). The references are separately trained single-task
    models, not an earlier epoch of the same run.

    Args:
      results: the primary metric M_t of each task.
      references: B_t for at least those tasks.
      higher_is_better: direction for at least those tasks (``Task.higher_is_better``).

    Returns:
      Percent; positive is better.

    Raises:
      SinewichError: no task, a task without a reference or direction, or a reference that is not
        a positive finite number.

    Examples:
      >>> up = {"semseg": True, "depth": False}
      >>> delta_m({"semseg": 0.75, "depth": 0.5}, {"semseg": 0.5, "depth": 1.0}, up)
      50.0
    """
    if not results:
        raise SinewichError("Delta m needs at least one task; the results are empty")
    total = 0.0
    for task, value in results.items():
        if task not in references or task not in higher_is_better:
            raise SinewichError(
                f"Delta m has no reference (or direction) for the task {task!r}; give one or leave "
                "the task out of the results"
            )
        reference = references[task]
        if not (math.isfinite(reference) and reference > 0):
            raise SinewichError(
                f"the Delta m reference of {task!r} is {reference}; it must be a positive number"
            )
        total += (1.0 if higher_is_better[task] else -1.0) * (value - reference) / reference
    return 100.0 * total / len(results)

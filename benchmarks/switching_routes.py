"""Auto-Switch under every protocol, from the images of tasks and switches of one alpha."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks.switching import T_SWITCH, WAYS, Alpha, Setting, switches
from sinewich_jax.switches.dispatch import Dispatcher
from sinewich_jax.switches.metric import fit_metric
from sinewich_jax.switches.protocols import PROTOCOLS, Examples, evaluate_protocols
from sinewich_jax.switches.queries import build_query_set
from sinewich_jax.switches.router import Router

BATCH = 256
RANK = 32
CACHED = 64
ABSTAINING, LEARNED = ", abstaining", ", learned metric"


class Task(NamedTuple):
    """What a router sees of a task.

    Attributes:
      query: features of the few known examples.
      x: test inputs.
      features: of these.
      y: their labels.
    """

    query: np.ndarray
    x: np.ndarray
    features: np.ndarray
    y: np.ndarray


def routed(
    setting: Setting,
    apply_fn: Callable[[Any, Any], Any],
    score: Callable[[Any, np.ndarray, Any], np.ndarray],
    tasks: Mapping[str, Task],
    alpha: Alpha,
    neighbours: int,
) -> dict[str, Any]:
    """Every protocol by the distance of features and by that of a learned metric.

    Args:
      setting: base and experts.
      apply_fn: from a tree and inputs to what heads read.
      score: as of ``evaluate_protocols``; labels are pairs (task, label).
      tasks: by name.
      alpha: of the switches.
      neighbours: that vote.
    """
    made = switches(setting, WAYS[T_SWITCH], alpha)
    most = max(len(one.query) for one in tasks.values())
    queries = build_query_set(lambda x: x, {t: [one.query] for t, one in tasks.items()}, most)
    run = Dispatcher(apply_fn, setting.base, made, names=queries.names, cache=CACHED)
    examples = {
        name: Examples(one.x, one.features, np.stack([np.full_like(one.y, i), one.y], axis=1))
        for i, (name, one) in enumerate(tasks.items())
    }
    projection = fit_metric(queries, min(RANK, queries.features.shape[1]))
    plain = Router.fit(queries, neighbours)
    asked = [
        ("", plain, PROTOCOLS, False),
        (ABSTAINING, plain, ("per_sample",), True),
        (LEARNED, Router.fit(queries, neighbours, projection=projection), PROTOCOLS[1:3], False),
    ]
    rows: dict[str, Any] = {}
    for suffix, router, protocols, abstain in asked:
        result = evaluate_protocols(
            lambda x, weights: run(x, weights).outputs,
            score,
            router,
            examples,
            protocols=protocols,
            batch=BATCH,
            abstain=abstain,
        )
        for name, row in result.rows.items():
            rows[name + suffix] = {
                key: value.tolist() if isinstance(value, np.ndarray) else value
                for key, value in row._asdict().items()
            }
    return {"names": list(queries.names), "rows": rows}

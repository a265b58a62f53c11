"""Several processes that act as one: waiting for each other and taking the main one's word."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np


def barrier(name: str) -> None:
    """Waits until every process is here; returns at once when there is only one."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"sinewich_jax: {name}")


def from_main_process(value: Any) -> Any:
    """The main process's ``value`` on every process.

    Args:
      value: anything that JSON can hold; on the other processes it is ignored.
    """
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
    text = np.resize(text, length)  # a broadcast needs the same shape everywhere
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(text))))

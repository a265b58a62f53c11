"""Stopping on request: finish the step, save, leave."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import jax


class StopRequest:
    """While active, SIGTERM and Ctrl-C only raise a flag; the second one acts as it always does.

    A context manager.  Outside the main thread (a notebook's helper, a test) no handler can be set
    and the flag stays down unless :meth:`request` is called.
    """

    def __init__(self) -> None:
        self._requested = False
        self._before: dict[int, Any] = {}

    def request(self) -> None:
        """Asks for the stop, as a signal would."""
        self._requested = True

    def agreed(self, step: int, every: int) -> bool:
        """Whether any process was asked to stop; every process gets the same answer.

        Several processes talk about it at multiples of ``every`` only; one alone knows at once.

        Args:
          step: the step that has just been done, the same on all processes.
          every: steps between two agreements.
        """
        if jax.process_count() == 1:
            return self._requested
        if step % every:
            return False
        from jax.experimental import multihost_utils

        return bool(multihost_utils.process_allgather(self._requested).any())

    def __enter__(self) -> StopRequest:
        """Sets the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        """Puts the earlier handlers back."""
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

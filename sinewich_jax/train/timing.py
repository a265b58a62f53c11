"""How long training takes, over all starts of a run."""

from __future__ import annotations

import math
import time


class Timer:
    """Wall time of the run and speed of its steps.

    The speed leaves out what is not a step: the first step of each start (compilation), evaluation
    and saving.

    Args:
      wall: seconds of earlier starts, compilation and evaluation included.
      stepping: seconds of earlier starts that count for the speed.
      images: images of these.
    """

    def __init__(self, wall: float = 0.0, stepping: float = 0.0, images: float = 0.0) -> None:
        self._wall, self._stepping, self._images = wall, stepping, images
        self._begin = time.perf_counter()
        self._lap: float | None = None
        self._lap_images = 0

    def step(self, images: int) -> None:
        """Counts a step that is under way."""
        self._lap_images += images

    def lap(self) -> float:
        """Images a second since the last lap or :meth:`skip`; NaN before the first skip."""
        now = time.perf_counter()
        speed = math.nan
        if self._lap is not None and self._lap_images:
            elapsed = now - self._lap
            self._stepping += elapsed
            self._images += self._lap_images
            speed = self._lap_images / elapsed
        self.skip()
        return speed

    def skip(self) -> None:
        """What happened since the last lap does not count; the next lap begins now."""
        self._lap, self._lap_images = time.perf_counter(), 0

    @property
    def images_per_second(self) -> float:
        """Mean speed over the laps of all starts; NaN without any."""
        return self._images / self._stepping if self._stepping else math.nan

    @property
    def wall(self) -> float:
        """Seconds of all starts until now."""
        return self._wall + time.perf_counter() - self._begin

    def summary(self) -> dict[str, float]:
        """What ``results.json`` says about time."""
        return {"train_seconds": self.wall, "images_per_second": self.images_per_second}

    def record(self) -> dict[str, float]:
        """The arguments that continue this timer in another process."""
        return {"wall": self.wall, "stepping": self._stepping, "images": float(self._images)}

"""A frozen stream of random numbers: one integer seed, one sequence, for ever.

Only Philox's raw 64-bit words are used: NumPy promises that they never change, which it does not
promise for the methods of ``Generator``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_BLOCK = 128


class Draws:
    """Numbers drawn one after the other from Philox; the order of calls is the data format.

    Args:
      seed: any integer from 0 to 2**128 - 1.
    """

    def __init__(self, seed: int):
        """Starts the stream of ``seed``."""
        self._bits = np.random.Philox(key=seed)
        self._words: list[int] = []

    def word(self) -> int:
        """The next 64 random bits."""
        if not self._words:
            self._words = self._bits.random_raw(_BLOCK).tolist()[::-1]
        return self._words.pop()

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """The next number in ``[low, high)``, from the upper 53 bits of one word."""
        return low + (high - low) * ((self.word() >> 11) * 2.0**-53)

    def integer(self, low: int, high: int) -> int:
        """The next integer in ``low .. high`` inclusive."""
        return low + int(self.uniform() * (high - low + 1))

    def choice(self, options: Sequence):
        """One of ``options``, each equally likely."""
        return options[self.integer(0, len(options) - 1)]

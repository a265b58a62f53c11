"""One learned token a task, and how it grows with the channels of the backbone's stages."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax

from sinewich_jax.nn.layers import trunc_normal

Array = jax.Array


def ones_around(mean: float, std: float) -> nn.initializers.Initializer:
    """A truncated normal distribution about ``mean``."""

    def init(key: Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = float) -> Array:
        return mean + std * jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)

    return init


task_tokens = ones_around(1.0, 1.0)
"""Start of the tokens: mean and standard deviation one, as in TADFormer."""


class TaskTokens(nn.Module):
    """Tokens ``p_t`` of the first stage and the linear maps ``U_i`` that lift them to the next.

    Where pixels are merged, tokens that have passed the blocks of stage i are lifted by ``U_i``;
    the clock reads ``p^(i+1) = U_i p^(i)``, which has passed no block and so knows no image.

    Attributes:
      num_tasks: T.
      widths: channels of the stages.
    """

    num_tasks: int
    widths: Sequence[int]

    def setup(self) -> None:
        """Declares ``start`` (T, C0) and ``lift{i}`` (C_i, C_{i+1})."""
        self.start = self.param("start", task_tokens, (self.num_tasks, self.widths[0]))
        self.lifts = [
            self.param(f"lift{i}", trunc_normal, pair)
            for i, pair in enumerate(zip(self.widths, self.widths[1:], strict=False))
        ]

    def __call__(self) -> tuple[Array, list[Array]]:
        """The tokens (T, C0) and the lifting matrices."""
        return self.start, list(self.lifts)

    def lifted(self) -> list[Array]:
        """The tokens at the width of every stage, (T, C_i) each."""
        tokens = [self.start]
        for lift in self.lifts:
            tokens.append(tokens[-1] @ lift)
        return tokens

"""What saliency and edges share: one logit a pixel, balanced cross-entropy, grey pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from sinewich_jax.errors import ConfigError
from sinewich_jax.tasks import baseline, losses, pictures
from sinewich_jax.tasks.dense import DenseTask, check_batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Binary(DenseTask):
    """A yes or no for every pixel.

    Attributes:
      positive_weight: weight w of the positives in the loss; None balances every batch.
    """

    channels: int = 1
    higher_is_better: bool = True
    positive_weight: float | None = None

    def __post_init__(self) -> None:
        """Checks the head width and the weight."""
        if self.channels != 1:
            raise ConfigError(
                f"{self.name} has {self.channels} channels; a yes-or-no task takes one logit"
            )
        if self.positive_weight is not None and not 0.0 <= self.positive_weight <= 1.0:
            raise ConfigError(
                f"{self.name}: positive_weight is {self.positive_weight}, expected 0 to 1, or None "
                "to balance each batch"
            )

    def loss(self, logits: jax.Array, label: jax.Array, valid: jax.Array) -> jax.Array:
        """Balanced binary cross-entropy over the valid pixels of the batch."""
        check_batch(self, logits, label, valid)
        return losses.balanced_bce(logits[..., 0], label, valid, self.positive_weight)

    def predict(self, logits: jax.Array) -> jax.Array:
        """Probability of yes, float32 [..., H, W]."""
        return jax.nn.sigmoid(logits[..., 0].astype(jnp.float32))

    def picture(self, values: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
        """Probability as lightness: black no, white yes."""
        grey = pictures.to_uint8(np.asarray(values, np.float64))
        return pictures.hatch(np.repeat(grey[..., None], 3, axis=-1), valid)

    def error_picture(
        self, prediction: np.ndarray, label: np.ndarray, valid: np.ndarray | None = None
    ) -> np.ndarray:
        """|probability - label|: false alarms red, misses blue."""
        error = np.asarray(prediction, np.float64) - np.asarray(label, np.float64)
        picture = np.where(
            (error >= 0)[..., None], pictures.error_ramp(error), pictures.miss_ramp(-error)
        )
        return pictures.hatch(picture, valid)

    def mean_label(self, labels: Iterable[np.ndarray], valids: Iterable[np.ndarray]) -> np.ndarray:
        """Logit of how often each pixel is a yes."""
        mean = baseline.pixel_means(
            zip(labels, valids, strict=True),
            lambda label: label.astype(np.float64)[..., None],
            prior=1.0,
        )
        return baseline.logit(mean).astype(np.float32)

    def best_constant(self, mean_label: np.ndarray) -> np.ndarray:
        """The logit at which the weighted classes balance: 0 when the weights are automatic."""
        if self.positive_weight is None:
            return np.zeros(1, np.float32)
        rate = (1 / (1 + np.exp(-np.asarray(mean_label, np.float64)))).mean(axis=(0, 1))
        weight = self.positive_weight
        return np.log(weight * rate / ((1 - weight) * (1 - rate))).astype(np.float32)

    def _value_fault(self, values: np.ndarray) -> tuple[np.ndarray, str]:
        return (values != 0) & (values != 1), "0 or 1"

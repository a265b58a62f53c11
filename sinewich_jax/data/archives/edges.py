"""Edge labels from a map of classes: where the class changes, thinned to one pixel.

A boundary is where the Laplacian of the class numbers (4 neighbours, the border mirrored without
repeating its pixel) is not 0, which marks both sides of a change. Class numbers are no heights, so
a pixel between two classes at equal distance above and below it is missed; that is the published
label, and it is kept.
"""

from __future__ import annotations

import numpy as np

from sinewich_jax.core.thinning import thin


def boundaries(classes: np.ndarray) -> np.ndarray:
    """Pixels whose Laplacian ``sum of 4 neighbours - 4 * centre`` is not 0.

    Args:
      classes: integers [H, W].

    Returns:
      bool [H, W].
    """
    mode = "reflect" if min(classes.shape) > 1 else "edge"  # One pixel has no mirror image.
    c = np.pad(classes.astype(np.int64), 1, mode=mode)
    around = c[:-2, 1:-1] + c[2:, 1:-1] + c[1:-1, :-2] + c[1:-1, 2:]
    return around != 4 * c[1:-1, 1:-1]


def edges(classes: np.ndarray) -> np.ndarray:
    """The edge label of a map of classes.

    Args:
      classes: integers [H, W].

    Returns:
      uint8 {0, 1} [H, W].
    """
    return thin(boundaries(classes)).astype(np.uint8)

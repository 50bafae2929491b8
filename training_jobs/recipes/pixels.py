"""What each pixel of an answer says at several temperatures, in one pass."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vlm_core.compiled import compiled

_AT_ONCE = 512
"""Pixels whose factors, each at most 2, are multiplied before one logarithm is taken of them: below 2 ** 1024."""


def look_at_pixels(
    logits: NDArray[np.float32], target: NDArray[np.uint8], scales: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Probabilities, and how far they are from the truth.

    Args:
        logits: (h, w), without NaN.
        target: (h, w), share of each cell that is covered, 0 to 255.
        scales: (S,), what the logits are multiplied with: the inverse temperatures.

    Returns:
        Probabilities, (h, w, S), and the mean cross entropy of the pixels in nats, (S,).
    """
    probability = np.empty((logits.size, len(scales)), dtype=np.float32)
    total = np.zeros(len(scales))
    flat = np.ascontiguousarray(logits).reshape(-1)
    _look(flat, np.ascontiguousarray(target).reshape(-1), scales.astype(np.float32), probability, total)
    return probability.reshape(*logits.shape, len(scales)), total / logits.size


@compiled
def _look(
    logits: NDArray[np.float32],
    target: NDArray[np.uint8],
    scales: NDArray[np.float32],
    probability: NDArray[np.float32],
    total: NDArray[np.float64],
) -> None:
    """Fill the probabilities, (pixels, S), and sum up the cross entropies."""
    one = np.float32(1)
    for index in range(len(scales)):
        linear, product, taken = 0.0, 1.0, 0
        for pixel in range(len(logits)):
            x = logits[pixel] * scales[index]
            # Of a number that is not positive: it cannot overflow, and all that is asked for follows from it.
            tail = math.exp(-abs(x))
            probability[pixel, index] = (one if x >= 0 else tail) / (one + tail)
            # softplus(x) - t x, the softplus as max(x, 0) + log(1 + tail)
            linear += max(x, np.float32(0)) - x * (target[pixel] / 255.0)
            product *= 1.0 + tail
            taken += 1
            if taken == _AT_ONCE:
                linear += math.log(product)
                product, taken = 1.0, 0
        total[index] = linear + math.log(product)

"""How far an answer is from the truth at several temperatures, in one pass."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vlm_core.compiled import compiled

_AT_ONCE = 512
"""Pixels whose factors, each at most 2, are multiplied before one logarithm is taken of them: below 2 ** 1024."""


def cross_entropies(
    logits: NDArray[np.float32], target: NDArray[np.uint8], scales: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Mean cross entropy of the pixels, in nats, (S,).

    Args:
        logits: (h, w), without NaN.
        target: (h, w), share of each cell that is covered, 0 to 255.
        scales: (S,), what the logits are multiplied with: the inverse temperatures.
    """
    total = np.zeros(len(scales))
    _sum_up(np.ascontiguousarray(logits).reshape(-1), np.ascontiguousarray(target).reshape(-1), scales, total)
    return total / logits.size


@compiled
def _sum_up(
    logits: NDArray[np.float32],
    target: NDArray[np.uint8],
    scales: NDArray[np.float32],
    total: NDArray[np.float64],
) -> None:
    for index in range(len(scales)):
        linear, product, taken = 0.0, 1.0, 0
        for pixel in range(len(logits)):
            x = logits[pixel] * scales[index]
            # softplus(x) - t x, the softplus as max(x, 0) + log(1 + exp(-|x|)), which cannot overflow
            linear += max(x, np.float32(0)) - x * (target[pixel] / 255.0)
            product *= 1.0 + math.exp(-abs(x))
            taken += 1
            if taken == _AT_ONCE:
                linear += math.log(product)
                product, taken = 1.0, 0
        total[index] = linear + math.log(product)

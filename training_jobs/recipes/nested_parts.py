"""Connected parts of one answer cut at many levels, counted in one pass.

A part at a level holds whole parts of every higher level: going down, pixels join and parts merge, so a union-find that
takes pixels from the highest level to the lowest has met every part of every level (a component tree; Najman &
Couprie, doi:10.1109/TIP.2006.877518). Labelling each level anew costs as many passes over the picture as there are
levels.
"""

from __future__ import annotations

import math
import threading

import numpy as np
from numpy.typing import NDArray

from vlm_core.compiled import compiled

Counts = NDArray[np.int64]
_NOT_YET = -1


class _Room(threading.local):
    """What one thread's counting needs, kept between pictures.

    Megabytes that are taken and given back for each picture cost the kernel as much as the counting, and threads of one
    process wait for each other there.
    """

    def __init__(self) -> None:
        self._for = (-1, -1)

    def take(self, pixels: int, kinds: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Integers, (6, pixels), and numbers, (pixels, kinds), with whatever they hold."""
        if self._for != (pixels, kinds):
            self._integers = np.empty((6, pixels), dtype=np.int32)
            self._sums = np.empty((pixels, kinds), dtype=np.float64)
            self._for = (pixels, kinds)
        return self._integers, self._sums


_room = _Room()


def count_parts(
    logits: NDArray[np.float32],
    true: NDArray[np.bool_],
    scales: NDArray[np.float32],
    levels: NDArray[np.float32],
    least_means: NDArray[np.float32],
) -> tuple[Counts, Counts]:
    """Pixels of the parts that stay, for each way of cutting.

    Args:
        logits: (h, w), without NaN; a pixel is inside from a level on. Pixels that touch, diagonally too, are one part.
        true: (h, w), what should be inside.
        scales: (S,), what the logits are multiplied with to have probabilities: the inverse temperatures. A part stays
            where the mean of its pixels' probabilities is at least one of `least_means`.
        levels: (L,), rising.
        least_means: (M,), rising.

    Returns:
        How many pixels are in parts that stay, and how many of them are `true`, each int64 (S, L, M).
    """
    shape = (len(scales), len(levels), len(least_means))
    area, inside = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    integers, sums = _room.take(logits.size, len(scales))
    flat, flags = np.ascontiguousarray(logits).reshape(-1), np.ascontiguousarray(true).reshape(-1)
    _count(flat, flags, scales, levels, least_means, logits.shape[1], integers, sums, area, inside)
    return area, inside


@compiled
def _count(
    logits: NDArray[np.float32],
    true: NDArray[np.bool_],
    scales: NDArray[np.float32],
    cuts: NDArray[np.float32],
    least_means: NDArray[np.float32],
    width: int,
    integers: NDArray[np.int32],
    sums: NDArray[np.float64],
    area: Counts,
    inside: Counts,
) -> None:
    """Fill the counts; pictures are flat."""
    pixels, kinds, levels, means = len(logits), len(scales), len(cuts), len(least_means)
    height = pixels // width
    above, order, parent, size, right, roots = integers
    # Pixels by the level at which they join, the highest first: a counting sort. Those below all levels never do.
    first = np.zeros(levels + 2, dtype=np.int64)
    for pixel in range(pixels):
        reached = 0
        while reached < levels and logits[pixel] >= cuts[reached]:
            reached += 1
        above[pixel] = reached
        parent[pixel] = _NOT_YET
        first[levels - reached + 1] += 1
    for level in range(1, levels + 2):
        first[level] += first[level - 1]
    place = first.copy()
    for pixel in range(pixels):
        if above[pixel] > 0:
            bin_ = levels - above[pixel]
            order[place[bin_]] = pixel
            place[bin_] += 1

    known = 0
    for level in range(levels - 1, -1, -1):
        start, stop = first[levels - level - 1], first[levels - level]
        for index in range(start, stop):
            pixel = order[index]
            parent[pixel] = pixel
            size[pixel] = 1
            right[pixel] = 1 if true[pixel] else 0
            for kind in range(kinds):
                sums[pixel, kind] = 1.0 / (1.0 + math.exp(-logits[pixel] * scales[kind]))
            roots[known] = pixel
            known += 1
            row, column = pixel // width, pixel % width
            own = pixel
            for y in range(max(0, row - 1), min(height, row + 2)):
                for x in range(max(0, column - 1), min(width, column + 2)):
                    other = np.int32(y * width + x)
                    if parent[other] < 0 or other == pixel:
                        continue
                    while parent[other] != other:
                        parent[other] = parent[parent[other]]
                        other = parent[other]
                    if other == own:
                        continue
                    if size[other] > size[own]:  # the smaller joins the larger: paths stay short
                        own, other = other, own
                    parent[other] = own
                    size[own] += size[other]
                    right[own] += right[other]
                    for kind in range(kinds):
                        sums[own, kind] += sums[other, kind]
        left = 0
        for index in range(known):
            root = roots[index]
            if parent[root] != root:
                continue
            roots[left] = root
            left += 1
            for kind in range(kinds):
                mean = sums[root, kind] / size[root]
                for least in range(means):
                    if mean < least_means[least]:
                        break
                    area[kind, level, least] += size[root]
                    inside[kind, level, least] += right[root]
        known = left

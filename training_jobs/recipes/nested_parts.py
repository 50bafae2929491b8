"""Connected parts of one picture cut at many levels, counted in one pass.

A part at a level holds whole parts of every higher level: going down, pixels join and parts merge, so a union-find that
takes pixels from the highest level to the lowest has met every part of every level (a component tree; Najman &
Couprie, doi:10.1109/TIP.2006.877518). Labelling each level anew costs as many passes over the picture as there are
levels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vlm_core.compiled import compiled

Counts = NDArray[np.int64]


def count_parts(
    values: NDArray[np.float32],
    true: NDArray[np.bool_],
    weights: NDArray[np.float32],
    levels: NDArray[np.float32],
    least_means: NDArray[np.float32],
) -> tuple[Counts, Counts]:
    """Pixels of the parts that stay, for each way of cutting.

    Args:
        values: (h, w), without NaN; a pixel is inside from a level on. Pixels that touch, diagonally too, are one part.
        true: (h, w), what should be inside.
        weights: (h, w, W); a part stays where the mean of its pixels' weights is at least one of `least_means`.
        levels: (L,), rising.
        least_means: (M,), rising.

    Returns:
        How many pixels are in parts that stay, and how many of them are `true`, each int64 (W, L, M).
    """
    kinds = weights.shape[2]
    shape = (kinds, len(levels), len(least_means))
    area, inside = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    flat = np.ascontiguousarray(weights).reshape(-1, kinds)
    flags = np.ascontiguousarray(true).reshape(-1)
    _count(np.ascontiguousarray(values).reshape(-1), flags, flat, levels, least_means, values.shape[1], area, inside)
    return area, inside


@compiled
def _count(
    values: NDArray[np.float32],
    true: NDArray[np.bool_],
    weights: NDArray[np.float32],
    cuts: NDArray[np.float32],
    least_means: NDArray[np.float32],
    width: int,
    area: Counts,
    inside: Counts,
) -> None:
    """Fill the counts; pictures are flat, `weights` (pixels, W)."""
    pixels, kinds = weights.shape
    height, levels, means = pixels // width, len(cuts), len(least_means)
    # Pixels by the level at which they join, the highest first: a counting sort. Those below all levels never do.
    above = np.empty(pixels, dtype=np.int8)
    first = np.zeros(levels + 2, dtype=np.int64)
    for pixel in range(pixels):
        reached = 0
        while reached < levels and values[pixel] >= cuts[reached]:
            reached += 1
        above[pixel] = reached
        first[levels - reached + 1] += 1
    for level in range(1, levels + 2):
        first[level] += first[level - 1]
    joining = first[levels]
    order = np.empty(joining, dtype=np.int32)
    place = first.copy()
    for pixel in range(pixels):
        if above[pixel] > 0:
            bin_ = levels - above[pixel]
            order[place[bin_]] = pixel
            place[bin_] += 1

    parent = np.full(pixels, -1, dtype=np.int32)
    size, right = np.zeros(pixels, dtype=np.int64), np.zeros(pixels, dtype=np.int64)
    total = np.zeros((pixels, kinds), dtype=np.float64)
    roots = np.empty(joining, dtype=np.int32)
    known = 0
    for level in range(levels - 1, -1, -1):
        start, stop = first[levels - level - 1], first[levels - level]
        for index in range(start, stop):
            pixel = order[index]
            parent[pixel] = pixel
            size[pixel] = 1
            right[pixel] = 1 if true[pixel] else 0
            for kind in range(kinds):
                total[pixel, kind] = weights[pixel, kind]
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
                        total[own, kind] += total[other, kind]
        left = 0
        for index in range(known):
            root = roots[index]
            if parent[root] != root:
                continue
            roots[left] = root
            left += 1
            for kind in range(kinds):
                mean = total[root, kind] / size[root]
                for least in range(means):
                    if mean < least_means[least]:
                        break
                    area[kind, level, least] += size[root]
                    inside[kind, level, least] += right[root]
        known = left

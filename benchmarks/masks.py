"""Masks to measure with: what a segmentation model gives, smooth and ragged, small and large."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

GRID = 352


def fixed_logits(prompts: int, seed: int = 0) -> NDArray[np.float32]:
    """(P, 352, 352) float32: every other prompt marks 5 to 30 % of the image, half of those with ragged edges."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:GRID, 0:GRID] / GRID
    grids = np.full((prompts, GRID, GRID), -4.0, dtype=np.float32)
    grids += rng.normal(0, 0.3, grids.shape).astype(np.float32)
    for index in range(0, prompts, 2):
        share = rng.uniform(0.05, 0.30)
        aspect = rng.uniform(0.6, 1.6)
        rx, ry = np.sqrt(share / np.pi * aspect), np.sqrt(share / np.pi / aspect)
        cx, cy = rng.uniform(rx, 1 - rx), rng.uniform(ry, 1 - ry)
        inside = 1 - np.hypot((x - cx) / rx, (y - cy) / ry)
        grid = 8 * inside
        if index % 4:
            grid += 2.5 * ndimage.gaussian_filter(rng.normal(0, 1, grid.shape), 1.5) * 4
        grids[index] = np.clip(grid, -6, 6)
    return grids


def smooth_mask(size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Three discs."""
    height, width = size_hw
    y, x = np.mgrid[0:height, 0:width]
    mask = np.zeros(size_hw, dtype=np.bool_)
    for cy, cx, radius in ((0.4, 0.3, 0.25), (0.6, 0.7, 0.2), (0.2, 0.8, 0.1)):
        mask |= (x - cx * width) ** 2 + (y - cy * height) ** 2 < (radius * height) ** 2
    return mask


def ragged_mask(size_hw: tuple[int, int], seed: int = 0) -> NDArray[np.bool_]:
    """Discs whose edges and inside are frayed, some hundred thousand runs at 12 megapixels."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 1, (size_hw[0] // 2 + 1, size_hw[1] // 2 + 1)).repeat(2, 0).repeat(2, 1)
    field = ndimage.gaussian_filter(smooth_mask(size_hw).astype(np.float32), 40)
    ragged: NDArray[np.bool_] = field + 0.2 * noise[: size_hw[0], : size_hw[1]] > 0.5
    return ragged


def share_of_prompts(grids: NDArray[np.float32]) -> list[float]:
    """How much of the image each prompt marks."""
    return [float((grid >= 0).mean()) for grid in grids]

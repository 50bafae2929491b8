"""Crops around objects: random ones to learn from, and one with the object's surroundings to look at."""

from __future__ import annotations

import math

import numpy as np

from vlm_core.runs import BoolMask

_TRIES = 50
_LEAST = 0.05
_CONTEXT = 0.1
"""Of an object's longer side, shown on each of its sides; as much as CLIPSeg's visual prompts show."""


def object_crop(mask: BoolMask, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A random square as large as the picture allows, with enough of an object in it.

    The first of 50 random places where the object fills more than 5 % of the picture's area, else the one of them that
    shows most of it.

    Args:
        mask: the object, bool (H, W); may be empty.
        rng: draws the places.

    Returns:
        The square's `xyxy` box, px, the end exclusive.

    Source: Lueddecke & Ecker, CVPR 2022, arXiv:2112.10003; numbers of its released training code.
    """
    height, width = mask.shape
    side = min(height, width)
    # A square of the shorter side moves along the longer one alone.
    along = mask.sum(axis=0 if width > height else 1)
    sums = np.concatenate([[0], np.cumsum(along)])
    starts = rng.integers(0, max(height, width) - side + 1, size=_TRIES)
    shown = sums[starts + side] - sums[starts]
    enough = np.flatnonzero(shown > _LEAST * height * width)
    start = int(starts[enough[0] if enough.size else int(shown.argmax())])
    left, top = (start, 0) if width > height else (0, start)
    return left, top, left + side, top + side


def context_crop(box_xyxy_px: tuple[float, float, float, float], size_hw: tuple[int, int]) -> tuple[int, int, int, int]:
    """The square around an object with a tenth of its surroundings, as far as the image has room for one.

    A square, since models cut the middle out of what is longer than wide: of a pole they would never see the ends.
    Where the border is near, the square is moved inside; in an image that is narrower, it is as wide as that.

    Args:
        box_xyxy_px: of the object, inside the image, the end exclusive.
        size_hw: of the image, px.

    Returns:
        `xyxy`, px, the end exclusive; at least one pixel.
    """
    left, top, right, bottom = box_xyxy_px
    side = math.ceil((1 + 2 * _CONTEXT) * max(right - left, bottom - top))
    x0, x1 = _span((left + right) / 2, side, size_hw[1])
    y0, y1 = _span((top + bottom) / 2, side, size_hw[0])
    return x0, y0, x1, y1


def _span(middle: float, side: int, length: int) -> tuple[int, int]:
    """So many pixels about the middle, inside an axis of some length."""
    side = max(1, min(side, length))
    start = min(max(0, round(middle - side / 2)), length - side)
    return start, start + side

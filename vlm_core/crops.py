"""Object-aware random crops: another part of the picture each time, but one that shows the object."""

from __future__ import annotations

import numpy as np

from vlm_core.masks import BoolMask

_TRIES = 50
_LEAST = 0.05


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

"""Mask logits -> probabilities -> binary masks -> boxes. Pure functions.

Holes and connected parts are in `vlm_core.runs`, outlines in `vlm_core.polygons`, turned boxes and ellipses in
`vlm_core.shapes`.

Masks are boolean arrays (H, W), row 0 at the top. Boxes are `xyxy`, px, the end exclusive: a mask that
fills its image has the box (0, 0, W, H).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from vlm_core.errors import InputError
from vlm_core.runs import BoolMask

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def upsample_logits(logits: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Bilinearly resample logits to another size: (P, h, w) -> (P, H, W), float32.

    Logits rather than probabilities, so that the 0.5 contour is where interpolated evidence is even.
    """
    if logits.ndim != 3:
        raise InputError(f"logits need shape (P, h, w), got {tuple(logits.shape)}")
    if min(size_hw) < 1:
        raise InputError(f"a mask of {size_hw[0]} x {size_hw[1]} px has no pixels")
    if tuple(logits.shape[1:]) == tuple(size_hw):
        return logits.float()
    return torch.nn.functional.interpolate(logits.float()[None], size=size_hw, mode="bilinear", align_corners=False)[0]


def combine_alternatives(probabilities: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """Combine the phrasings of each label by the maximum of their probabilities.

    Args:
        probabilities: (P, ...), one entry a phrase.
        groups: for each of G labels the indices of its phrases, at least one.

    Returns:
        (G, ...), in the order of `groups`.
    """
    if any(not group for group in groups):
        raise InputError(f"every label needs at least one phrase, got the groups {[list(g) for g in groups]}")
    return torch.stack([probabilities[list(group)].amax(0) for group in groups])


def binarise(probability: Tensor | NDArray[np.floating], threshold: float, min_area_px: int = 0) -> BoolMask:
    """Pixels whose probability is at least `threshold`; components smaller than `min_area_px` are dropped.

    Args:
        probability: (H, W), in [0, 1].
        threshold: in [0, 1].
        min_area_px: 0 or 1 keeps everything. Components touch over edges and corners.

    Returns:
        Boolean (H, W).
    """
    values = probability.numpy() if isinstance(probability, Tensor) else probability
    if values.ndim != 2:
        raise InputError(f"a probability map needs shape (H, W), got {values.shape}")
    mask: BoolMask = values >= threshold
    if min_area_px > 1 and mask.any():
        labelled, count = ndimage.label(mask, structure=_EIGHT_NEIGHBOURS)
        areas = np.bincount(labelled.ravel(), minlength=count + 1)
        keep = areas >= min_area_px
        keep[0] = False
        mask = keep[labelled]
    return mask


def bounding_box(mask: BoolMask) -> tuple[int, int, int, int] | None:
    """The smallest `xyxy` box, px, that holds the mask; None for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

"""Masks pulled to the edges of their image: an option for things that stand out clearly from what is around them.

A model sees an image in patches, so the outline of its masks is right to half a patch or so. Inside a band along that
outline each pixel is given anew to the mask or to the background, whichever its colour fits better, with cuts where
the image changes. It helps where objects have clear edges and colours of their own (parts, documents, drawings), and
costs accuracy where they have not: measured on both kinds in docs/decisions/edge-refinement.md, and therefore off
unless asked for.

Source: Rother, Kolmogorov, Blake, "GrabCut", SIGGRAPH 2004, as OpenCV implements it.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlm_core.errors import InputError
from vlm_core.pictures import to_rgb
from vlm_core.runs import BoolMask

BAND = 0.02
"""Default half width of the band, in parts of the image's longer side: half a patch of CLIPSeg's is 0.023."""

_MOST_BAND = 0.25
_SURROUNDINGS = 4
"""How far around the band the colours of the background are learned from, in widths of the band."""
_WORK_PX = 768
"""Longer side at which the cut is made; its cost grows with the pixels, and a wider view is made smaller first."""
_ROUNDS = 1
"""More rounds change few pixels and cost as much each."""


def refine_to_edges(mask: BoolMask, image: Image.Image, *, band: float = BAND) -> BoolMask:
    """Move a mask's outline to the edges of its image, no further than the band is wide.

    Args:
        mask: bool (H, W), row 0 at the top.
        image: H x W px, any mode, EXIF rotation applied.
        band: how far the outline may move, in parts of the longer side, above 0 and at most 0.25; at least one pixel.

    Returns:
        bool (H, W). Equal to `mask` further than the band from its outline, and everywhere where the mask has no
        outline inside the image or is so thin that nothing of it lies beyond the band. The same for the same input.

    Raises:
        InputError: a mask of another shape or type than the image's, or a band out of range.
    """
    if mask.dtype != np.bool_ or mask.shape != (image.height, image.width):
        raise InputError(
            f"the mask must be bool and of its image's size, ({image.height}, {image.width}); "
            f"got {mask.dtype} {mask.shape}"
        )
    if not 0 < band <= _MOST_BAND:
        raise InputError(f"band {band} must lie above 0 and not above {_MOST_BAND}, in parts of the longer side")
    reach = max(1, round(band * max(mask.shape)))
    if not mask.any() or mask.all():
        return mask.copy()
    inside = _distance_px(mask) > reach
    near = _distance_px(~mask) <= reach
    if not inside.any():
        return mask.copy()
    view = _view(near, _SURROUNDINGS * reach)
    scale = min(1.0, _WORK_PX / max(view[1].stop - view[1].start, view[0].stop - view[0].start))
    size = (math.ceil(scale * (view[1].stop - view[1].start)), math.ceil(scale * (view[0].stop - view[0].start)))
    box = (view[1].start, view[0].start, view[1].stop, view[0].stop)
    pixels = to_rgb(image.crop(box)).resize(size, Image.Resampling.BOX)
    hints = np.where(mask[view], cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    hints[inside[view]] = cv2.GC_FGD
    hints[~near[view]] = cv2.GC_BGD
    small = np.asarray(cv2.resize(hints, size, interpolation=cv2.INTER_NEAREST), np.uint8)
    if not (small == cv2.GC_BGD).any() or not (small == cv2.GC_FGD).any():
        return mask.copy()
    cut = _cut(np.ascontiguousarray(np.asarray(pixels)[..., ::-1]), small)
    refined = mask.copy()
    whole = cv2.resize(cut, (box[2] - box[0], box[3] - box[1]), interpolation=cv2.INTER_LINEAR) >= 0.5
    band_here = near[view] & ~inside[view]
    refined[view] = np.where(band_here, whole, mask[view])
    return refined


def _distance_px(mask: BoolMask) -> NDArray[np.float32]:
    """How far each pixel of the mask is from the nearest one that is not of it; 0 for those."""
    return np.asarray(cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)


def _view(near: BoolMask, margin: int) -> tuple[slice, slice]:
    """The part of the image that the cut looks at."""
    rows, columns = (np.flatnonzero(near.any(axis=axis)) for axis in (1, 0))
    return (
        slice(max(0, int(rows[0]) - margin), min(near.shape[0], int(rows[-1]) + 1 + margin)),
        slice(max(0, int(columns[0]) - margin), min(near.shape[1], int(columns[-1]) + 1 + margin)),
    )


def _cut(pixels_bgr: NDArray[np.uint8], hints: NDArray[np.uint8]) -> NDArray[np.float32]:
    """1 where a pixel belongs to the mask, else 0; `hints` are GrabCut's four kinds of pixels."""
    cv2.setRNGSeed(0)  # colours are clustered from random starts
    kinds = hints.copy()
    colours = np.zeros((1, 65)), np.zeros((1, 65))  # of the background and of the mask: OpenCV's own working space
    cv2.grabCut(pixels_bgr, kinds, (0, 0, 0, 0), *colours, _ROUNDS, cv2.GC_INIT_WITH_MASK)
    belongs: NDArray[np.bool_] = (kinds == cv2.GC_FGD) | (kinds == cv2.GC_PR_FGD)
    return belongs.astype(np.float32)

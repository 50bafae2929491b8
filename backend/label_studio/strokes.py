"""Brush regions of drafts: the editor saves them as strokes, to be quick, and makes run-length code of them on submit.

A stroke is a line of points with a width, `add` or `eraser`, in percent of the displayed image (the width in percent
of the image's width); strokes apply in order, on top of the region's `rle` where it has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from backend.label_studio.brush import Mask, decode_mask
from backend.label_studio.shapes import MAX_PERCENT, ShapeError
from vlm_core.shapes import points_to_px

_FRACTION_BITS = 4
"""OpenCV takes coordinates in parts of a pixel as whole numbers."""
_MAX_STROKES = 10_000
_MAX_NUMBERS = 1_000_000
_FAR_PX = 1e6


def strokes_mask(value: Mapping[str, Any], size_hw: tuple[int, int]) -> Mask:
    """Draw the strokes of a brush region.

    Args:
        value: the region's `value`, with `touches`.
        size_hw: of the displayed image, px.

    Returns:
        bool, shape `size_hw`; False everywhere where all was erased.

    Raises:
        ShapeError: strokes that are none.
        BrushError: an `rle` beside them that cannot be read.
    """
    import cv2

    touches = value.get("touches")
    if not isinstance(touches, Sequence) or isinstance(touches, str) or len(touches) > _MAX_STROKES:
        raise ShapeError("its strokes are no list, or too many")
    rle = value.get("rle")
    picture = np.zeros(size_hw, dtype=np.uint8)
    if rle:
        picture[decode_mask(rle, size_hw)] = 1
    for touch in touches:
        if not isinstance(touch, Mapping):
            raise ShapeError("one of its strokes is no object")
        points = _points(touch.get("relativePoints"), size_hw)
        width = touch.get("relativeStrokeWidth")
        if isinstance(width, bool) or not isinstance(width, (int, float)) or not 0 < width <= MAX_PERCENT:
            raise ShapeError("one of its strokes has no width")
        # OpenCV draws lines of at most 32767 px; such a line covers any image that is read here.
        thickness = min(32_767, max(1, round(width / 100 * size_hw[1])))
        scaled = np.rint((points - 0.5) * (1 << _FRACTION_BITS)).astype(np.int32)
        if len(scaled) == 1:
            scaled = np.repeat(scaled, 2, axis=0)  # a dot: OpenCV draws no line from one point
        colour = 0 if touch.get("type") == "eraser" else 1
        cv2.polylines(picture, [scaled], False, colour, thickness, cv2.LINE_8, _FRACTION_BITS)
    return picture.astype(np.bool_)


def _points(flat: Any, size_hw: tuple[int, int]) -> npt.NDArray[np.float64]:
    """x, y, x, y ... in percent -> (N, 2) px, N >= 1."""
    try:
        numbers = np.asarray(flat, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.ndim != 1 or numbers.size < 2 or numbers.size % 2 or numbers.size > _MAX_NUMBERS:
        raise ShapeError("one of its strokes has no points")
    if not (np.abs(numbers) <= MAX_PERCENT).all():
        raise ShapeError("one of its strokes has a point that is not a number or far outside the image")
    return np.clip(points_to_px(numbers.reshape(-1, 2), size_hw), -_FAR_PX, _FAR_PX)

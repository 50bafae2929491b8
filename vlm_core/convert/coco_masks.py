"""COCO's segmentations -> masks: outlines, and run lengths as a list or as a packed string.

What comes out equals pycocotools, pixel for pixel. It is not used itself: it trusts its input. Run lengths that are
too short are filled with whatever is in memory, and a coordinate that is not a number makes it allocate until the
process is killed; data sets of one's own hold both.

Source of the format: T.-Y. Lin et al., arXiv:1405.0312, and the COCO API's mask functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vlm_core.convert.dataset import LeftOutError
from vlm_core.runs import BoolMask

_FINENESS = 5
"""The outline is traced on a grid that is so many times finer than the pixels."""
_FARTHEST_PX = 100_000
_MAX_TRACE = 4_000_000


def segmentation_mask(segmentation: Any, size_hw: tuple[int, int]) -> BoolMask:
    """The mask of one annotation.

    Args:
        segmentation: a list of outlines `[x, y, x, y ...]`, px, united; or `{"size": [H, W], "counts": ...}` with a
            list of run lengths or their packed string, column by column, the first run outside.
        size_hw: height and width of the image, px.

    Returns:
        bool (H, W); may be empty.

    Raises:
        LeftOutError: none of these, broken, or of another size.
    """
    if isinstance(segmentation, dict):
        return _runs_mask(segmentation, size_hw)
    if not isinstance(segmentation, list) or not segmentation:
        raise LeftOutError("the annotation has no segmentation")
    mask = np.zeros(size_hw, dtype=np.bool_)
    for outline in segmentation:
        _fill_outline(mask, outline)
    return mask


def _runs_mask(segmentation: dict[str, Any], size_hw: tuple[int, int]) -> BoolMask:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != list(size_hw):
        raise LeftOutError("the segmentation has another size than its image")
    if isinstance(counts, str):
        counts = unpack_counts(counts)
    if not isinstance(counts, list) or not all(type(count) is int for count in counts):
        raise LeftOutError("the segmentation's run lengths are not whole numbers")
    height, width = size_hw
    if any(count < 0 for count in counts) or sum(counts) != height * width:
        raise LeftOutError("the segmentation's run lengths do not fill its image")
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(width, height).T


def unpack_counts(packed: str) -> list[int]:
    """COCO's packed run lengths.

    Each number is a sequence of characters from `0` on: five bits each, the lowest first, a sixth bit that says that
    more follow; the last one's fifth bit is the sign. From the fourth number on it is the difference to the last but
    one.

    Raises:
        LeftOutError: another character, or a number that does not end.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for character in packed:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise LeftOutError("the segmentation's packed run lengths are broken")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value, shift = 0, 0
    if shift:
        raise LeftOutError("the segmentation's packed run lengths are broken")
    return counts


def _fill_outline(mask: BoolMask, outline: Any) -> None:
    """Add what is inside an outline to a mask, as COCO does.

    It is traced in steps on the finer grid. Where the trace steps over the centre of a column of pixels, the fill
    changes from the row that it is in downwards.
    """
    u, v = _trace(*_fine_points(outline))
    height, width = mask.shape
    steps = np.flatnonzero(u[1:] != u[:-1])
    column = (np.minimum(u[steps], u[steps + 1]) + 0.5) / _FINENESS - 0.5
    row = (np.minimum(v[steps], v[steps + 1]) + 0.5) / _FINENESS - 0.5
    crossed = (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
    if not crossed.any():
        return
    columns = column[crossed].astype(np.int64)
    rows = np.ceil(np.clip(row[crossed], 0, height)).astype(np.int64)
    left, right = int(columns.min()), int(columns.max()) + 1
    # Column after column, since a change below the last row is one at the next column's top.
    changes = np.zeros((right - left) * height + 1, dtype=np.uint8)
    np.bitwise_xor.at(changes, (columns - left) * height + rows, 1)
    filled = np.bitwise_xor.accumulate(changes[:-1]).reshape(right - left, height).T
    mask[:, left:right] |= filled.astype(np.bool_)


def _fine_points(outline: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The outline's corners on the finer grid, the first one again at the end."""
    try:
        values = np.asarray(outline, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        values = np.empty(0)
    if values.ndim != 1 or len(values) < 6 or len(values) % 2:
        raise LeftOutError("an outline is no list of three or more points")
    if not (np.abs(values) <= _FARTHEST_PX).all():
        raise LeftOutError("an outline has a point that is not a number or far outside the image")
    fine = (values * _FINENESS + 0.5).astype(np.int64)  # cuts towards 0, as C does
    return np.append(fine[0::2], fine[0]), np.append(fine[1::2], fine[1])


def _trace(x: npt.NDArray[np.int64], y: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """All points of the finer grid along the lines between the corners, both ends of each line included."""
    dx, dy = np.abs(np.diff(x)), np.abs(np.diff(y))
    length = np.maximum(dx, dy)
    if int(length.sum()) > _MAX_TRACE:
        raise LeftOutError("an outline is longer than any object's")
    counts = length + 1
    line = np.repeat(np.arange(len(length)), counts)
    along = np.arange(len(line)) - np.repeat(np.cumsum(counts) - counts, counts)
    flat = dx >= dy
    # A line is always drawn from its lesser end, so that both directions give the same points.
    turned = np.where(flat, x[:-1] > x[1:], y[:-1] > y[1:])
    x0, x1 = np.where(turned, x[1:], x[:-1]), np.where(turned, x[:-1], x[1:])
    y0, y1 = np.where(turned, y[1:], y[:-1]), np.where(turned, y[:-1], y[1:])
    slope = np.where(flat, y1 - y0, x1 - x0) / np.maximum(length, 1)
    step = np.where(turned[line], length[line] - along, along)
    across = np.where(flat, y0, x0)[line] + slope[line] * step + 0.5
    u = np.where(flat[line], x0[line] + step, across.astype(np.int64))
    v = np.where(flat[line], across.astype(np.int64), y0[line] + step)
    return u, v

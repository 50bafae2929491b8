"""Label Studio's shapes -> bool masks.

Coordinates and lengths are percent of the image's width and height, rotations degrees, clockwise as seen. A
pixel is inside when its centre (column + 0.5, row + 0.5) is: edges that were written from whole pixels come back
as exactly those pixels, in spite of rounding in the percent.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from backend.label_studio.brush import Mask

MAX_PERCENT = 1e6
_MAX_POINTS = 20_000


class ShapeError(ValueError):
    """A shape that cannot be drawn; the message says why."""


def rectangle_mask(
    x_pct: float, y_pct: float, width_pct: float, height_pct: float, rotation_deg: float, size_hw: tuple[int, int]
) -> Mask:
    """Fill a rectangle given by its top-left corner, about which it is turned.

    Returns:
        bool, shape `size_hw`; what leaves the image is cut off.

    Raises:
        ShapeError: a negative width or height.
    """
    height, width = size_hw
    left, top = x_pct / 100 * width, y_pct / 100 * height
    across, down = width_pct / 100 * width, height_pct / 100 * height
    if across < 0 or down < 0:
        raise ShapeError(f"a rectangle of {width_pct} % x {height_pct} %")
    mask = np.zeros(size_hw, dtype=np.bool_)
    if rotation_deg % 360 == 0:
        rows = slice(*_centres(top, top + down, height))
        mask[rows, slice(*_centres(left, left + across, width))] = True
        return mask
    angle = math.radians(rotation_deg)
    cos, sin = math.cos(angle), math.sin(angle)
    corners = [
        (left + u * cos - v * sin, top + u * sin + v * cos)
        for u, v in ((0.0, 0.0), (across, 0.0), (across, down), (0.0, down))
    ]
    window, x, y = _window(corners, size_hw)
    u = (x - left) * cos + (y - top) * sin
    v = (y - top) * cos - (x - left) * sin
    mask[window] = (u >= 0) & (u < across) & (v >= 0) & (v < down)
    return mask


def ellipse_mask(
    x_pct: float, y_pct: float, radius_x_pct: float, radius_y_pct: float, rotation_deg: float, size_hw: tuple[int, int]
) -> Mask:
    """Fill an ellipse given by its centre, about which it is turned.

    Returns:
        bool, shape `size_hw`; what leaves the image is cut off.

    Raises:
        ShapeError: a radius that is not positive.
    """
    height, width = size_hw
    centre_x, centre_y = x_pct / 100 * width, y_pct / 100 * height
    a, b = radius_x_pct / 100 * width, radius_y_pct / 100 * height
    if a <= 0 or b <= 0:
        raise ShapeError(f"an ellipse with the radii {radius_x_pct} % and {radius_y_pct} %")
    angle = math.radians(rotation_deg)
    cos, sin = math.cos(angle), math.sin(angle)
    reach = max(a, b)
    corners = [(centre_x - reach, centre_y - reach), (centre_x + reach, centre_y + reach)]
    mask = np.zeros(size_hw, dtype=np.bool_)
    window, x, y = _window(corners, size_hw)
    u = ((x - centre_x) * cos + (y - centre_y) * sin) / a
    v = ((y - centre_y) * cos - (x - centre_x) * sin) / b
    mask[window] = u * u + v * v <= 1
    return mask


def polygon_mask(points_pct: Any, size_hw: tuple[int, int]) -> Mask:
    """Fill a polygon, by the non-zero rule as the editor's canvas does.

    Args:
        points_pct: at least three [x, y] in percent; the last joins the first.
        size_hw: height and width of the image, pixels.

    Returns:
        bool, shape `size_hw`; what leaves the image is cut off.

    Raises:
        ShapeError: not such a list.
    """
    height, width = size_hw
    try:
        points = np.asarray(points_pct, dtype=np.float64)
    except (TypeError, ValueError):
        points = np.empty(0)
    if points.ndim != 2 or points.shape[1:] != (2,) or not 3 <= len(points) <= _MAX_POINTS:
        raise ShapeError("a polygon needs three or more points [x, y]")
    if not (np.abs(points) <= MAX_PERCENT).all():
        raise ShapeError("a polygon with a point that is not a number or far outside the image")
    x0, y0 = (points / 100 * (width, height)).T
    x1, y1 = np.roll(x0, -1), np.roll(y0, -1)
    mask = np.zeros(size_hw, dtype=np.bool_)
    first, last = _centres(float(y0.min()), float(y0.max()), height)
    for row in range(first, last):
        y = row + 0.5
        downward, upward = (y0 <= y) & (y < y1), (y1 <= y) & (y < y0)
        crossed = downward | upward
        crossings = x0[crossed] + (y - y0[crossed]) / (y1 - y0)[crossed] * (x1 - x0)[crossed]
        order = np.argsort(crossings, kind="stable")
        winding = np.cumsum(np.where(downward[crossed][order], 1, -1))
        edges = crossings[order]
        for start, stop in zip(edges[:-1][winding[:-1] != 0], edges[1:][winding[:-1] != 0], strict=True):
            mask[row, slice(*_centres(start, stop, width))] = True
    return mask


def bitmask_mask(data_url: Any, size_hw: tuple[int, int]) -> Mask:
    """Read a `bitmasklabels` picture: opaque where the region is, transparent elsewhere.

    Returns:
        bool, shape `size_hw`, true where alpha is at least half.

    Raises:
        ShapeError: not a PNG in a data URL, without transparency, or of another size.
    """
    prefix = "data:image/png;base64,"
    if not isinstance(data_url, str) or not data_url.startswith(prefix):
        raise ShapeError("a bitmask is a PNG in a data URL")
    try:
        data = base64.b64decode(data_url[len(prefix) :], validate=True)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if (image.height, image.width) != size_hw:
                raise ShapeError(
                    f"a bitmask of {image.width} x {image.height} for an image of {size_hw[1]} x {size_hw[0]}"
                )
            if not image.has_transparency_data:
                raise ShapeError("a bitmask without transparency: nothing says where the region is")
            alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    except (binascii.Error, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, ShapeError):
            raise
        raise ShapeError("a bitmask that is not a readable PNG") from None
    mask: Mask = alpha >= 128
    return mask


def _centres(start: float, stop: float, length: int) -> tuple[int, int]:
    """The pixels whose centres lie in [start, stop), as a half-open range within 0..length."""
    first = math.ceil(min(max(start, 0.0), length) - 0.5)
    last = math.ceil(min(max(stop, 0.0), length) - 0.5)
    return first, max(first, last)


def _window(
    corners_xy: Sequence[tuple[float, float]], size_hw: tuple[int, int]
) -> tuple[tuple[slice, slice], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The part of the image around some points: its slices and the centres' x (1, w) and y (h, 1)."""
    xs, ys = [corner[0] for corner in corners_xy], [corner[1] for corner in corners_xy]
    columns = _centres(min(xs) - 1, max(xs) + 1, size_hw[1])
    rows = _centres(min(ys) - 1, max(ys) + 1, size_hw[0])
    x = np.arange(*columns, dtype=np.float64)[None, :] + 0.5
    y = np.arange(*rows, dtype=np.float64)[:, None] + 0.5
    return (slice(*rows), slice(*columns)), x, y

"""Label Studio's shapes -> bool masks.

Coordinates and lengths are percent of the image's width and height, rotations degrees, clockwise as seen. A
pixel is inside when its centre (column + 0.5, row + 0.5) is: edges that were written from whole pixels come back
as exactly those pixels, in spite of rounding in the percent.
"""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

import numpy as np
from PIL import Image

from backend.label_studio.brush import Mask
from vlm_core.rasterise import fill_rings
from vlm_core.shapes import Ellipse, EllipsePercent, RectanglePercent, RotatedBox, points_to_px

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
    if width_pct < 0 or height_pct < 0:
        raise ShapeError(f"a rectangle of {width_pct} % x {height_pct} %")
    rectangle = RectanglePercent(x_pct, y_pct, width_pct, height_pct, rotation_deg)
    return RotatedBox.from_percent(rectangle, size_hw).to_mask(size_hw).to_array()


def ellipse_mask(
    x_pct: float, y_pct: float, radius_x_pct: float, radius_y_pct: float, rotation_deg: float, size_hw: tuple[int, int]
) -> Mask:
    """Fill an ellipse given by its centre, about which it is turned.

    Returns:
        bool, shape `size_hw`; what leaves the image is cut off.

    Raises:
        ShapeError: a radius that is not positive.
    """
    if radius_x_pct <= 0 or radius_y_pct <= 0:
        raise ShapeError(f"an ellipse with the radii {radius_x_pct} % and {radius_y_pct} %")
    ellipse = EllipsePercent(x_pct, y_pct, radius_x_pct, radius_y_pct, rotation_deg)
    return Ellipse.from_percent(ellipse, size_hw).to_mask(size_hw).to_array()


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
    try:
        points = np.asarray(points_pct, dtype=np.float64)
    except (TypeError, ValueError):
        points = np.empty(0)
    if points.ndim != 2 or points.shape[1:] != (2,) or not 3 <= len(points) <= _MAX_POINTS:
        raise ShapeError("a polygon needs three or more points [x, y]")
    if not (np.abs(points) <= MAX_PERCENT).all():
        raise ShapeError("a polygon with a point that is not a number or far outside the image")
    return fill_rings([points_to_px(points, size_hw)], size_hw).to_array()


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

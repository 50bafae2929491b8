"""Masks -> the `value` of Label Studio's shapes, without a label. What annotators drew is read in
`backend.label_studio.shapes`.

Coordinates and lengths are percent of the displayed image's width and height, rotations degrees, clockwise as seen,
0 <= rotation < 360. No value is one that Label Studio's SDK refuses: nothing beyond 100 %, no radius beyond 50 %.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from backend.label_studio.brush import encode_runs
from vlm_core.polygons import convex_hull, iou_of_runs, polygons
from vlm_core.rasterise import Points, fill_rings
from vlm_core.runs import RunMask, fill_holes
from vlm_core.shapes import Ellipse, RotatedBox, ellipse, points_to_percent, points_to_px, rotated_box

Value = dict[str, Any]

_KEY_POINT_WIDTH_PCT = 0.5
"""How large the editor draws a key point, percent of the image's width."""
_DIGITS = 5
"""Of coordinates of polygons: a hundredth of a pixel in an image of 100,000 px, and half the length in JSON."""
_TOLERANCE = 1 / 1000
"""How far a polygon's outline may lie from its pixels, in parts of the image's longer side, at least a pixel."""
_LEAST_IOU = 0.95
_MOST_POINTS = 5000
"""Of a polygon: beyond, the editor stands still. Ragged outlines are drawn coarser until they have no more."""


def brush_value(mask: RunMask) -> Value:
    """Exactly this mask, as the editor's run-length code. Raises ValueError where it is empty."""
    _refuse_empty(mask)
    return {"format": "rle", "rle": encode_runs(mask)}


def bitmask_value(mask: RunMask) -> Value:
    """Exactly this mask, as a PNG in a data URL: black on transparent. Raises ValueError where it is empty."""
    _refuse_empty(mask)
    picture = Image.fromarray(mask.to_array().view(np.uint8), "P")
    picture.putpalette(bytes(6))  # black and black
    file = io.BytesIO()
    picture.save(file, "PNG", bits=1, transparency=b"\x00\xff", compress_level=1)
    return {"imageDataURL": f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"}


def polygon_value(part: RunMask) -> Value:
    """The outline of one connected part, simplified as long as its IoU with the part is at least 0.95.

    Label Studio's polygons have no holes: those of the part are filled. An outline of too many points for the editor
    is drawn coarser, whatever its IoU; one that crosses itself at every coarser tolerance becomes its convex hull.
    """
    filled, size_hw = fill_holes(part), part.size_hw

    def in_percent(ring: Points) -> Points:
        return np.round(points_to_percent(ring, size_hw), _DIGITS)

    longest = float(max(size_hw))
    tolerance = max(1.0, _TOLERANCE * longest)
    while True:
        (polygon,) = polygons(filled, tolerance_px=tolerance, min_iou=0)
        points = in_percent(polygon.outer)
        # Of what is written: a simplified outline may pass through the middle of many pixels, and rounding decides.
        written = fill_rings([points_to_px(points, size_hw)], size_hw)
        if not polygon.tolerance_px or iou_of_runs(filled, written) >= _LEAST_IOU:
            break
        tolerance = polygon.tolerance_px / 2
    tolerance = max(1.0, polygon.tolerance_px)
    while len(points) > _MOST_POINTS and tolerance < longest:
        tolerance *= 2
        (polygon,) = polygons(filled, tolerance_px=tolerance, min_iou=0)
        points = in_percent(polygon.outer)
    if len(points) > _MOST_POINTS:
        points = in_percent(convex_hull(polygon.outer))  # its corners lie on a grid, so that it has few
    return {"points": points.tolist(), "closed": True}


def rectangle_value(box_xyxy_px: tuple[float, float, float, float], size_hw: tuple[int, int]) -> Value:
    """An upright box; right and bottom are the far edges, so that one pixel at the origin is (0, 0, 1, 1).

    Raises:
        ValueError: a box without area or beyond the image.
    """
    height, width = size_hw
    left, top, right, bottom = (float(edge) for edge in box_xyxy_px)
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(f"box {box_xyxy_px} has no area or leaves the image of {width} x {height} px")
    return {
        "x": 100.0 * left / width,
        "y": 100.0 * top / height,
        "width": 100.0 * (right - left) / width,
        "height": 100.0 * (bottom - top) / height,
        "rotation": 0,
    }


def rotated_rectangle_value(part: RunMask) -> Value:
    """The smallest box around a part, turned as it needs; its corners may leave the image.

    A turned box can be written in four ways, as each corner may come first. Where Label Studio accepts none of them (a
    box along the diagonal of a square image is wider than 100 %), it is the upright box.
    """
    box, upright = rotated_box(part), part.box_xyxy_px
    assert box is not None  # parts are not empty
    assert upright is not None
    for turns in range(4):
        size = box.size_wh_px[::-1] if turns % 2 else box.size_wh_px
        turned = RotatedBox(box.centre_xy_px, size, (box.angle_deg + 90 * turns) % 360)
        x, y, width, height, rotation = turned.to_percent(part.size_hw)
        if max(x, y, width, height) <= 100:
            return {"x": x, "y": y, "width": width, "height": height, "rotation": rotation}
    return rectangle_value(upright, part.size_hw)


def ellipse_value(part: RunMask) -> Value:
    """The ellipse of a part's centre and second moments, with at most half the image as radius.

    An ellipse can be written in two ways, as either radius may come first. Where Label Studio accepts neither (that of
    a bar from border to border is wider than the image), it is narrowed.
    """
    found = ellipse(part)
    assert found is not None  # parts are not empty
    turned = Ellipse(found.centre_xy_px, found.radii_px[::-1], found.angle_deg + 90)
    ways = [way.to_percent(part.size_hw) for way in (found, turned)]
    x, y, radius_x, radius_y, rotation = min(ways, key=lambda way: max(way.radius_x, way.radius_y, 50))
    return {"x": x, "y": y, "radiusX": min(radius_x, 50.0), "radiusY": min(radius_y, 50.0), "rotation": rotation % 360}


def key_point_value(pixel_xy: tuple[int, int], size_hw: tuple[int, int]) -> Value:
    """The middle of a pixel."""
    ((x, y),) = points_to_percent([(pixel_xy[0] + 0.5, pixel_xy[1] + 0.5)], size_hw).tolist()
    return {"x": x, "y": y, "width": _KEY_POINT_WIDTH_PCT}


def _refuse_empty(mask: RunMask) -> None:
    if not len(mask):
        raise ValueError("the mask is empty: leave the region out")

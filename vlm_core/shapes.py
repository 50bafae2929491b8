"""Masks -> rotated boxes and ellipses, and back; pixels <-> percent of the image.

Coordinates are continuous pixels: the pixel (x, y) covers [x, x + 1) x [y, y + 1). Angles are degrees, clockwise as
seen. Percent are of the image's width for x, widths and radii along the shape's own first axis, and of its height for
y, heights and the other radius, however the shape is turned: the way in which Label Studio stores shapes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vlm_core.errors import InputError
from vlm_core.rasterise import Points, fill_ellipse, fill_rings
from vlm_core.runs import RunMask


class RectanglePercent(NamedTuple):
    """A rectangle in percent, given by its top-left corner, about which it is turned by `rotation` degrees."""

    x: float
    y: float
    width: float
    height: float
    rotation: float


class EllipsePercent(NamedTuple):
    """An ellipse in percent, given by its centre, about which it is turned by `rotation` degrees."""

    x: float
    y: float
    radius_x: float
    radius_y: float
    rotation: float


@dataclass(frozen=True, slots=True)
class RotatedBox:
    """A rectangle, turned about its centre.

    Attributes:
        centre_xy_px: x and y.
        size_wh_px: along its own axes, >= 0.
        angle_deg: from the image's x axis to that of the width.
    """

    centre_xy_px: tuple[float, float]
    size_wh_px: tuple[float, float]
    angle_deg: float

    def __post_init__(self) -> None:
        _check(self, self.size_wh_px, min(self.size_wh_px) >= 0)

    @classmethod
    def upright(cls, box_xyxy_px: tuple[float, float, float, float]) -> RotatedBox:
        """An ordinary box, the end exclusive."""
        left, top, right, bottom = box_xyxy_px
        return cls(((left + right) / 2, (top + bottom) / 2), (right - left, bottom - top), 0.0)

    @classmethod
    def from_percent(cls, rectangle: RectanglePercent, size_hw: tuple[int, int]) -> RotatedBox:
        """The inverse of `to_percent`. Raises InputError for a negative width or height."""
        (x, y), (width, height) = _to_px(rectangle, size_hw)
        across, down = _axes(rectangle.rotation)
        centre = np.array([x, y]) + width / 2 * across + height / 2 * down
        return cls((float(centre[0]), float(centre[1])), (width, height), rectangle.rotation)

    def to_percent(self, size_hw: tuple[int, int]) -> RectanglePercent:
        """In percent of an image: what Label Studio stores as x, y, width, height and rotation."""
        corner = self.corners_xy_px()[0]
        return RectanglePercent(*_to_percent(corner, self.size_wh_px, size_hw), self.angle_deg)

    def corners_xy_px(self) -> Points:
        """The corners, (4, 2), from the one that is top-left before the box is turned, clockwise as seen."""
        across, down = _axes(self.angle_deg)
        half_width, half_height = self.size_wh_px[0] / 2 * across, self.size_wh_px[1] / 2 * down
        signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
        corners: Points = np.array(self.centre_xy_px) + [u * half_width + v * half_height for u, v in signs]
        return corners

    def to_mask(self, size_hw: tuple[int, int]) -> RunMask:
        """The pixels whose centres are inside, in an image of some size."""
        return fill_rings([self.corners_xy_px()], size_hw)


@dataclass(frozen=True, slots=True)
class Ellipse:
    """An ellipse, turned about its centre.

    Attributes:
        centre_xy_px: x and y.
        radii_px: half of its axes, > 0: along the one that the angle names, and across it.
        angle_deg: from the image's x axis to that of the first radius.
    """

    centre_xy_px: tuple[float, float]
    radii_px: tuple[float, float]
    angle_deg: float

    def __post_init__(self) -> None:
        _check(self, self.radii_px, min(self.radii_px) > 0)

    @classmethod
    def from_percent(cls, ellipse: EllipsePercent, size_hw: tuple[int, int]) -> Ellipse:
        """The inverse of `to_percent`. Raises InputError for a radius that is not positive."""
        return cls(*_to_px(ellipse, size_hw), ellipse.rotation)

    def to_percent(self, size_hw: tuple[int, int]) -> EllipsePercent:
        """In percent of an image: what Label Studio stores as x, y, radiusX, radiusY and rotation."""
        return EllipsePercent(*_to_percent(self.centre_xy_px, self.radii_px, size_hw), self.angle_deg)

    def to_mask(self, size_hw: tuple[int, int]) -> RunMask:
        """The pixels whose centres are inside, in an image of some size."""
        return fill_ellipse(self.centre_xy_px, self.radii_px, self.angle_deg, size_hw)


def rotated_box(mask: RunMask) -> RotatedBox | None:
    """The rectangle of least area that holds all pixels of a mask, up to their outer edges; None for an empty one.

    Its angle is in [-45, 45), nearest to upright.
    """
    if not len(mask):
        return None
    import shapely

    x = np.concatenate((mask.starts, mask.stops, mask.starts, mask.stops))
    y = np.concatenate((mask.rows, mask.rows, mask.rows + 1, mask.rows + 1))
    corners = np.asarray(shapely.MultiPoint(np.stack((x, y), axis=1)).oriented_envelope.exterior.coords)[:4]
    centre, side, next_side = corners.mean(axis=0), corners[1] - corners[0], corners[2] - corners[1]
    angle = math.degrees(math.atan2(side[1], side[0]))
    turned, odd = _nearest_to_upright(angle)
    lengths = float(np.hypot(*side)), float(np.hypot(*next_side))
    return RotatedBox((float(centre[0]), float(centre[1])), lengths[::-1] if odd else lengths, turned)


def ellipse(mask: RunMask) -> Ellipse | None:
    """The ellipse with a mask's centre of mass and second moments, each pixel a square; None for an empty mask.

    A filled ellipse gets its own axes back. Its angle is in [-45, 45), nearest to upright.
    """
    if not len(mask):
        return None
    left, top, right, bottom = mask.box_xyxy_px or (0, 0, 0, 0)
    # Integrals over each run, from the middle of the mask, where the sums are smallest.
    origin = np.array([(left + right) / 2, (top + bottom) / 2])
    start, stop, y = mask.starts - origin[0], mask.stops - origin[0], mask.rows + 0.5 - origin[1]
    length, first = stop - start, (stop**2 - start**2) / 2
    area = length.sum()
    mean_x, mean_y = first.sum() / area, (length * y).sum() / area
    xx = ((stop**3 - start**3) / 3).sum() / area - mean_x**2
    yy = (length * (y**2 + 1 / 12)).sum() / area - mean_y**2
    xy = (first * y).sum() / area - mean_x * mean_y
    # Half an angle in [-90, 90): that of the longer axis. Equal moments have no direction.
    angle = math.degrees(math.atan2(2 * xy, xx - yy)) / 2 if xy or xx != yy else 0.0
    mean, spread = (xx + yy) / 2, math.hypot((xx - yy) / 2, xy)
    # The variance along an axis of a filled ellipse is a quarter of its squared radius.
    radii = 2 * math.sqrt(mean + spread), 2 * math.sqrt(mean - spread)
    turned, odd = _nearest_to_upright(angle)
    return Ellipse((float(mean_x + origin[0]), float(mean_y + origin[1])), radii[::-1] if odd else radii, turned)


def points_to_percent(points_xy_px: npt.ArrayLike, size_hw: tuple[int, int]) -> Points:
    """Points (N, 2) in percent of an image's width and height."""
    points: Points = np.asarray(points_xy_px, dtype=np.float64) * 100 / _size_wh(size_hw)
    return points


def points_to_px(points_xy_pct: npt.ArrayLike, size_hw: tuple[int, int]) -> Points:
    """The inverse of `points_to_percent`."""
    points: Points = np.asarray(points_xy_pct, dtype=np.float64) / 100 * _size_wh(size_hw)
    return points


def _to_percent(
    at: Points | tuple[float, float], lengths: tuple[float, float], size_hw: tuple[int, int]
) -> tuple[float, float, float, float]:
    (x, y), (first, second) = points_to_percent(np.stack((at, lengths)), size_hw).tolist()
    return x, y, first, second


def _to_px(
    shape: RectanglePercent | EllipsePercent, size_hw: tuple[int, int]
) -> tuple[tuple[float, float], tuple[float, float]]:
    (x, y), (first, second) = points_to_px([shape[0:2], shape[2:4]], size_hw).tolist()
    return (x, y), (first, second)


def _size_wh(size_hw: tuple[int, int]) -> Points:
    if min(size_hw) < 1:
        raise InputError(f"nothing is a percent of an image of {size_hw[1]} x {size_hw[0]} px")
    return np.array([size_hw[1], size_hw[0]], dtype=np.float64)


def _nearest_to_upright(angle_deg: float) -> tuple[float, bool]:
    """The angle in [-45, 45) that differs by quarter turns, and whether their number is odd: axes change places."""
    turned = (angle_deg + 45) % 90 - 45
    return turned, round((angle_deg - turned) / 90) % 2 == 1


def _axes(angle_deg: npt.ArrayLike) -> tuple[Points, Points]:
    """Unit vectors along the width and the height of what is turned so: (2, ...) each."""
    radians = np.radians(np.asarray(angle_deg, dtype=np.float64))
    cos, sin = np.cos(radians), np.sin(radians)
    return np.stack((cos, sin)), np.stack((-sin, cos))


def _check(shape: RotatedBox | Ellipse, lengths: tuple[float, float], fits: bool) -> None:
    if not fits or not all(map(math.isfinite, (*shape.centre_xy_px, *lengths, shape.angle_deg))):
        raise InputError(f"{shape} has a length that none can have, or a value that is not finite")

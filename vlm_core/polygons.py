"""Masks -> polygons: outlines along the edges of pixels, simplified, with holes, never crossing themselves.

Coordinates are continuous pixels: the pixel (x, y) covers [x, x + 1) x [y, y + 1), so that a mask of one pixel has the
outline of a square of side 1, and a mask that fills its image has the image's corners.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlm_core.compiled import compiled
from vlm_core.errors import InputError
from vlm_core.rasterise import Points, fill_rings
from vlm_core.runs import RunMask, union

DEFAULT_TOLERANCE_PX = 1.0
"""Just enough to turn the stairs of a slanted edge into a line."""

_LEAST_TOLERANCE_PX = 0.25  # a finer one would remove next to nothing: no stair is that low
_MANY_RINGS = 500


@dataclass(frozen=True, slots=True, eq=False)
class Polygon:
    """One outline with its holes. Rings neither cross nor touch one another or themselves, and are not closed twice.

    Attributes:
        outer: float64, (N, 2), N >= 3, x and y in px; clockwise as seen, y pointing down.
        holes: float64, (M, 2) each; counter-clockwise as seen.
        tolerance_px: how far the outline may lie from the edges of its pixels.
    """

    outer: Points
    holes: tuple[Points, ...]
    tolerance_px: float

    @property
    def area_px(self) -> float:
        """The area inside, without its holes."""
        return signed_area_px(self.outer) + sum(signed_area_px(hole) for hole in self.holes)

    def to_mask(self, size_hw: tuple[int, int]) -> RunMask:
        """The pixels whose centres are inside, in an image of some size."""
        return fill_rings((self.outer, *self.holes), size_hw)


def polygons(
    mask: RunMask, *, tolerance_px: float = DEFAULT_TOLERANCE_PX, min_iou: float = 0.95, min_area_px: int = 1
) -> list[Polygon]:
    """Outline each connected part of a mask, largest part first; an empty mask has none.

    Pixels that touch at a corner belong together, as everywhere in this package: there, the outline leaves a narrow
    bridge. The simplification is Douglas and Peucker's, kept from crossing (GEOS). Thin and ragged parts, of which the
    tolerance would take much, get half of it, a quarter, and so on, or none, until `min_iou` is kept.

    Args:
        mask: any mask. Fill its holes first (`vlm_core.runs.fill_holes`) where the reader of the polygons knows none.
        tolerance_px: how far the outline may lie from the edges of the pixels, >= 0. With 0 the polygon fills exactly
            the pixels of its part.
        min_iou: the least IoU of a part and the pixels that its polygon fills, 0..1.
        min_area_px: smaller parts are left out.

    Raises:
        InputError: a value out of its range.
    """
    if not 0 <= tolerance_px < np.inf:
        raise InputError(f"tolerance_px {tolerance_px} must be 0 or more")
    if not 0 <= min_iou <= 1:
        raise InputError(f"min_iou {min_iou} must lie between 0 and 1")
    return [_polygon(part, tolerance_px, min_iou) for part in mask.instances(min_area_px)]


def signed_area_px(ring: Points) -> float:
    """The area of a ring (N, 2), px: positive where it runs clockwise as seen, y pointing down."""
    x, y = (ring - ring[0]).T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2)


def convex_hull(ring: Points) -> Points:
    """The smallest convex outline around the points of a ring, (N, 2) with an area -> (M, 2), M <= N, px."""
    import shapely

    return np.asarray(shapely.MultiPoint(ring).convex_hull.exterior.coords)[:-1]


def _polygon(part: RunMask, tolerance_px: float, min_iou: float) -> Polygon:
    rings = _rings(part)
    while tolerance_px >= _LEAST_TOLERANCE_PX:
        simple = _simplify(rings, tolerance_px)
        if simple is not None:
            found = Polygon(simple[0], tuple(simple[1:]), tolerance_px)
            if min_iou == 0 or iou_of_runs(part, found.to_mask(part.size_hw)) >= min_iou:
                return found
        tolerance_px /= 2
    return Polygon(rings[0], tuple(rings[1:]), 0.0)


def _simplify(rings: list[Points], tolerance_px: float) -> list[Points] | None:
    """The rings of one polygon with fewer points; None where they would cross."""
    import shapely

    # As lines that end where they begin: of a ring GEOS removes that point too, and exceeds the tolerance thereby.
    lines = [shapely.LineString(np.append(ring, ring[:1], axis=0)) for ring in rings]
    # Each alone first: to keep lines from one another GEOS compares each with all, a minute for 20,000 holes.
    outer, *holes = shapely.simplify(lines, tolerance_px)
    if not shapely.Polygon(outer, holes).is_valid:
        if len(rings) > _MANY_RINGS:
            return None
        outer, *holes = shapely.MultiLineString(lines).simplify(tolerance_px).geoms
        if not shapely.Polygon(outer, holes).is_valid:
            return None
    simple = [np.asarray(line.coords)[:-1] for line in (outer, *holes)]
    # Of a small part a coarse tolerance may leave no more than some points in the other order.
    turned = signed_area_px(simple[0]) <= 0 or any(signed_area_px(hole) >= 0 for hole in simple[1:])
    return None if turned else simple


def iou_of_runs(one: RunMask, other: RunMask) -> float:
    """The intersection over the union of two masks, of which at least one has pixels, 0..1."""
    both = union([one, other]).area_px
    return (one.area_px + other.area_px - both) / both


def _rings(part: RunMask) -> list[Points]:
    """The outline of one connected part along the edges of its pixels: the outer ring, then the holes."""
    left, top, right, bottom = part.box_xyxy_px or (0, 0, 0, 0)
    # A margin of a pixel on each side, so that every pixel has neighbours.
    window = RunMask(
        part.rows - (top - 1), part.starts - (left - 1), part.stops - (left - 1), (bottom - top + 2, right - left + 2)
    )
    picture = window.to_array()
    # Each run has two ends, each of them two corners, and a corner is at most two points.
    points = np.empty((8 * len(part), 2), dtype=np.float64)
    ends = np.empty(2 * len(part), dtype=np.int64)
    rings = _walk(picture, np.zeros_like(picture), points, ends)
    points = points[: ends[rings - 1]] + np.array((left - 1, top - 1))
    return [points[start:stop] for start, stop in zip((0, *ends[: rings - 1]), ends[:rings], strict=True)]


@compiled
def _walk(
    picture: npt.NDArray[np.bool_], walked: npt.NDArray[np.bool_], points: Points, ends: npt.NDArray[np.int64]
) -> int:
    # Along the edges of pixels, with the inside at the right hand. Every ring runs eastward somewhere, and is begun at
    # its first such edge, row after row; that of the outer ring comes before those of its holes.
    east, south, west = 0, 1, 2
    found = rings = 0
    for row in range(1, picture.shape[0] - 1):
        for column in range(1, picture.shape[1] - 1):
            if not picture[row, column] or picture[row - 1, column] or walked[row, column]:
                continue
            x, y, heading = column, row, east
            while True:
                step_x, step_y = 0, 0
                if heading == east:
                    walked[y, x] = True
                    step_x = 1
                    left, right = picture[y - 1, x + 1], picture[y, x + 1]
                elif heading == south:
                    step_y = 1
                    left, right = picture[y + 1, x], picture[y + 1, x - 1]
                elif heading == west:
                    step_x = -1
                    left, right = picture[y, x - 2], picture[y - 1, x - 2]
                else:
                    step_y = -1
                    left, right = picture[y - 2, x - 1], picture[y - 2, x]
                x, y = x + step_x, y + step_y
                if left and not right:
                    # Two pixels touch here at a corner, and the ring comes by twice: cut the corner of the pixel
                    # outside, which leaves a bridge and keeps the two passes apart.
                    points[found, 0], points[found, 1] = x - 0.25 * step_x, y - 0.25 * step_y
                    points[found + 1, 0], points[found + 1, 1] = x + 0.25 * step_y, y - 0.25 * step_x
                    found += 2
                    heading = (heading + 3) % 4
                elif left or not right:
                    points[found, 0], points[found, 1] = x, y
                    found += 1
                    heading = (heading + 3) % 4 if left else (heading + 1) % 4
                if heading == east and x == column and y == row:
                    break
            ends[rings] = found
            rings += 1
    return rings

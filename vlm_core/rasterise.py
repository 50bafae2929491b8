"""Outlines -> masks. A pixel is inside when its centre (column + 0.5, row + 0.5) is.

Coordinates are continuous pixels: the pixel (x, y) covers [x, x + 1) x [y, y + 1). An outline along the edges of pixels
comes back as exactly those pixels, in spite of rounding, since no centre is near it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vlm_core.errors import InputError
from vlm_core.runs import RunMask

Points = npt.NDArray[np.float64]

_MAX_CROSSINGS = 4_000_000  # looked at together: some hundred MB, however many edges an outline has


def fill_rings(rings_xy_px: Sequence[npt.ArrayLike], size_hw: tuple[int, int]) -> RunMask:
    """Fill closed rings together, by the non-zero rule as drawing programs do.

    A ring inside another one is a hole where it turns the other way round.

    Args:
        rings_xy_px: (N, 2) each, N >= 3, px; the last point joins the first, whether or not it repeats it.
        size_hw: of the image, px; what leaves it is cut off.

    Raises:
        InputError: a ring of another shape, or with a coordinate that is not finite.
    """
    edges = [_edges(ring) for ring in rings_xy_px]
    height, width = size_hw
    keys, turns = [], []
    if edges:
        x0, y0, x1, y1 = np.concatenate(edges).T
        rows = _first_centre(np.stack((np.minimum(y0, y1), np.maximum(y0, y1))), height)
        level = rows[0] < rows[1]  # the others pass no row of centres
        x0, y0, x1, y1, rows = x0[level], y0[level], x1[level], y1[level], rows[:, level]
        slope = (x1 - x0) / (y1 - y0)
        direction = np.where(y0 < y1, 1, -1)
        band = max(1, _MAX_CROSSINGS // max(1, x0.size))
        for top in range(int(rows.min(initial=height)), int(rows.max(initial=0)), band):
            first, last = np.clip(rows, top, top + band)
            edge = np.repeat(np.arange(x0.size), last - first)
            row = first[edge] + np.arange(edge.size) - np.repeat(np.cumsum(last - first) - (last - first), last - first)
            column = _first_centre(x0[edge] + (row + 0.5 - y0[edge]) * slope[edge], width)
            keys.append(row * (width + 1) + column)
            turns.append(direction[edge])
    # Crossings at one place count together, so that runs neither touch nor are empty; each row's sum is zero.
    places, place = np.unique(np.concatenate([np.empty(0, np.int64), *keys]), return_inverse=True)
    winding = np.cumsum(np.bincount(place, np.concatenate([np.empty(0), *turns]), places.size))
    inside = winding != 0
    before = np.concatenate(([False], inside[:-1]))
    starts, stops = places[inside & ~before], places[before & ~inside]
    row = starts // (width + 1)
    return _runs(row, starts - row * (width + 1), stops - row * (width + 1), size_hw)


def fill_ellipse(
    centre_xy_px: tuple[float, float],
    radii_px: tuple[float, float],
    angle_deg: float,
    size_hw: tuple[int, int],
) -> RunMask:
    """Fill an ellipse; its edge is inside.

    Args:
        centre_xy_px: px.
        radii_px: along the axis that the angle names, and across it; > 0.
        angle_deg: from the x axis, clockwise as seen.
        size_hw: of the image, px; what leaves it is cut off.

    Raises:
        InputError: a radius that is not positive, or a value that is not finite.
    """
    (centre_x, centre_y), (a, b) = centre_xy_px, radii_px
    if not all(map(math.isfinite, (centre_x, centre_y, a, b, angle_deg))) or a <= 0 or b <= 0:
        raise InputError(f"an ellipse at {centre_xy_px} with the radii {radii_px} px, turned by {angle_deg} degrees")
    height, width = size_hw
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    # How far it reaches up and down; no division below may meet a zero, however small the radii.
    reach = max(math.hypot(a * sin, b * cos), sys.float_info.min)
    first, last = _first_centre(np.array([centre_y - reach, centre_y + reach]), height)
    row = np.arange(max(0, int(first) - 1), min(height, int(last) + 1))
    height_there = (row + 0.5 - centre_y) / reach
    row, height_there = row[np.abs(height_there) <= 1], height_there[np.abs(height_there) <= 1]
    # A row of centres cuts the ellipse where a quadratic equation in x says.
    middle = height_there * cos * sin * ((a - b) / reach) * (a + b)
    half = np.sqrt(1 - height_there**2) * (a / reach) * b
    starts = _first_centre(middle - half + centre_x, width)
    stops = np.clip(np.floor(middle + half + centre_x - 0.5) + 1, 0, width).astype(np.int64)
    some = starts < stops
    return _runs(row[some], starts[some], stops[some], size_hw)


def _edges(ring: npt.ArrayLike) -> Points:
    """Where each edge begins and ends: (N, 4), x0, y0, x1, y1."""
    points = np.asarray(ring, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not np.isfinite(points).all():
        raise InputError(f"a ring needs three or more finite points (N, 2), got an array of shape {points.shape}")
    return np.concatenate((points, np.roll(points, -1, axis=0)), axis=1)


def _first_centre(position: Points, length: int) -> npt.NDArray[np.int64]:
    """The first pixel whose centre is not before a position, within 0..length."""
    return np.ceil(np.clip(position, 0, length) - 0.5).astype(np.int64)


def _runs(
    rows: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    stops: npt.NDArray[np.int64],
    size_hw: tuple[int, int],
) -> RunMask:
    return RunMask(rows.astype(np.int32), starts.astype(np.int32), stops.astype(np.int32), size_hw)

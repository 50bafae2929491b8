"""From logits on the model's grid to masks at the image's size, without ever making the large picture.

Bilinear interpolation is linear along a row of pixels between two cells: where both cells are above a level, all pixels
between them are, and where both are below, none is. So a row is answered cell by cell, and single pixels are looked at
only where a mask's edge passes. The result equals upsampling with `vlm_core.masks.upsample_logits` and comparing,
but for pixels within rounding of the level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm_core.compiled import compiled
from vlm_core.errors import InputError
from vlm_core.runs import Ints, RunMask, intersection, union

Grid = NDArray[np.float32]
Floats = NDArray[np.float64]

_ABOVE_ZERO = float(np.nextafter(np.float32(0), np.float32(1)))
_LEVEL_WITH_MOST = 1e-6
"""Pixels whose value differs from the largest by no more than this are as certain as that one."""


@dataclass(frozen=True, slots=True)
class _Axis:
    """How the pixels of one axis lie between cells: pixel centres, as torch's `align_corners=False`.

    Attributes:
        low: int32, for each pixel the cell before it; the one after it is the next, or the last cell itself.
        share: float32, how much of the cell after it a pixel takes.
        first: int32, cells + 1: the first pixel of each cell, then the number of pixels.
    """

    low: Ints
    share: NDArray[np.float32]
    first: Ints

    @classmethod
    def of(cls, pixels: int, cells: int) -> _Axis:
        position = np.maximum((np.arange(pixels) + 0.5) * (cells / pixels) - 0.5, 0.0)
        low = np.minimum(position.astype(np.int32), cells - 1)
        first = np.searchsorted(low, np.arange(cells + 1)).astype(np.int32)
        return cls(low, (position - low).astype(np.float32), first)


def trace(grid: Grid, level: float, size_hw: tuple[int, int]) -> RunMask:
    """The pixels at which an upsampled grid reaches a level.

    Args:
        grid: float32, (h, w), without NaN: a view of the whole image, whatever its shape.
        level: a pixel is inside from this value on; infinities are allowed.
        size_hw: of the image, px.

    Raises:
        InputError: another shape, or an image without pixels.
    """
    if grid.ndim != 2 or not grid.size or min(size_hw) < 1:
        raise InputError(f"a grid (h, w) and an image with pixels are needed, got {grid.shape} for {size_hw}")
    height, width = size_hw
    reached: NDArray[np.bool_] = grid >= level
    columns = np.flatnonzero(reached.any(axis=0))
    if not columns.size:
        none = np.empty(0, dtype=np.int32)
        return RunMask(none, none, none, size_hw)
    # An edge needs a cell on both of its sides.
    room = height * (grid.shape[1] // 2 + 1)
    rows, starts, stops = (np.empty(room, dtype=np.int32) for _ in range(3))
    down, along = _Axis.of(height, grid.shape[0]), _Axis.of(width, grid.shape[1])
    found = _trace(
        np.ascontiguousarray(grid, dtype=np.float32),
        np.float32(level),
        np.any(reached, axis=1),
        max(0, int(columns[0]) - 1),
        int(columns[-1]) + 1,
        down.low,
        down.share,
        along.first,
        along.share,
        rows,
        starts,
        stops,
    )
    return RunMask(rows[:found].copy(), starts[:found].copy(), stops[:found].copy(), size_hw)


def trace_prompt(wanted: Sequence[Grid], unwanted: Sequence[Grid], level: float, size_hw: tuple[int, int]) -> RunMask:
    """The pixels that belong to one prompt: where `vlm_core.prompts.PreparedPrompts.answer_one` reaches a level.

    Args:
        wanted: one grid or more, as for `trace`, of the conditions that speak for the prompt.
        unwanted: those that speak against it, on a grid of the same shape.
        level: a logit; at minus infinity every pixel is inside, as every probability is at least 0.
        size_hw: of the image, px.

    Raises:
        InputError: no wanted grid, grids of different shapes, or as for `trace`.
    """
    if not wanted or len({grid.shape for grid in (*wanted, *unwanted)}) != 1:
        raise InputError(
            f"one wanted grid or more, all of one shape, are needed, got {[grid.shape for grid in wanted]} and "
            f"{[grid.shape for grid in unwanted]} against them"
        )
    # The largest of several answers reaches the level where any of them does, and exceeds what is not meant where any
    # of them exceeds all of that. Interpolation is linear: that of a difference is the difference of two.
    return union(
        [
            intersection(
                [trace(grid, level, size_hw)]
                + [trace(grid - against, _ABOVE_ZERO, size_hw) for against in unwanted if level > -np.inf]
            )
            for grid in wanted
        ]
    )


def peaks_inside(grid: Grid, mask: RunMask, parts: Ints, count: int) -> Ints:
    """The pixel of each part of a mask at which an upsampled grid is largest.

    Where many are (a plateau), the one of them that is nearest to the part's centre of mass.

    Args:
        grid, mask, parts, count: as for `mean_inside`; each part has at least one pixel.

    Returns:
        int32, (count, 2), x and y, px.
    """
    height, width = mask.size_hw
    down, along = _Axis.of(height, grid.shape[0]), _Axis.of(width, grid.shape[1])
    most = np.full(count, -np.inf)
    found = np.zeros((count, 2), dtype=np.int32)
    inside = parts >= 0
    length = (mask.stops - mask.starts)[inside].astype(np.float64)
    sums = np.zeros((count, 3))
    middle = (mask.starts[inside] + mask.stops[inside] - 1) / 2
    np.add.at(sums, parts[inside], np.stack((length, length * middle, length * mask.rows[inside]), axis=1))
    with np.errstate(invalid="ignore"):
        centres: Floats = sums[:, 1:] / sums[:, :1]
    values = np.ascontiguousarray(grid, dtype=np.float32)
    axes = (down.low, down.share, along.low, along.share, along.first)
    _find_peaks(values, mask.rows, mask.starts, mask.stops, parts, *axes, most, centres, found, 0.0)
    _find_peaks(values, mask.rows, mask.starts, mask.stops, parts, *axes, most, centres, found, _LEVEL_WITH_MOST)
    return found


def mean_inside(grid: Grid, mask: RunMask, parts: Ints, count: int) -> Floats:
    """The mean of an upsampled grid over each part of a mask.

    Args:
        grid: float32, (h, w), as for `trace`; probabilities, say.
        mask: of the image.
        parts: int32, (N,): which part each run belongs to, 0..count - 1; -1 for none.
        count: how many parts there are.

    Returns:
        float64, (count,); nan for a part without pixels.
    """
    height, width = mask.size_hw
    down, along = _Axis.of(height, grid.shape[0]), _Axis.of(width, grid.shape[1])
    shares = np.concatenate(([0.0], np.cumsum(along.share, dtype=np.float64)))
    sums, areas = np.zeros(count), np.zeros(count)
    values = np.ascontiguousarray(grid, dtype=np.float32)
    _sum(values, mask.rows, mask.starts, mask.stops, parts, down.low, down.share, along.low, along.first, shares, sums)
    np.add.at(areas, parts[parts >= 0], (mask.stops - mask.starts)[parts >= 0])
    with np.errstate(invalid="ignore"):
        means: Floats = sums / areas
    return means


@compiled
def _trace(
    grid: Grid,
    level: np.float32,
    row_reaches: NDArray[np.bool_],
    left: int,
    right: int,
    row_low: Ints,
    row_share: NDArray[np.float32],
    first_pixel: Ints,
    column_share: NDArray[np.float32],
    rows: Ints,
    starts: Ints,
    stops: Ints,
) -> int:
    bottom, last_column = grid.shape[0] - 1, grid.shape[1] - 1
    one = np.float32(1)
    line = np.empty(grid.shape[1], dtype=np.float32)
    found = 0
    for y in range(row_low.size):
        above = row_low[y]
        below = min(above + 1, bottom)
        if not (row_reaches[above] or row_reaches[below]):
            continue
        share = row_share[y]
        for column in range(left, min(right, last_column) + 1):
            line[column] = grid[above, column] * (one - share) + grid[below, column] * share
        begun = -1
        for column in range(left, min(right, last_column + 1)):
            first, end = first_pixel[column], first_pixel[column + 1]
            if first == end:
                continue
            here, there = line[column], line[min(column + 1, last_column)]
            if here >= level and there >= level:
                if begun < 0:
                    begun = first
            elif here < level and there < level:
                if begun >= 0:
                    rows[found], starts[found], stops[found] = y, begun, first
                    found += 1
                    begun = -1
            else:
                for x in range(first, end):
                    inside = here * (one - column_share[x]) + there * column_share[x] >= level
                    if inside and begun < 0:
                        begun = x
                    elif not inside and begun >= 0:
                        rows[found], starts[found], stops[found] = y, begun, x
                        found += 1
                        begun = -1
        if begun >= 0:
            rows[found], starts[found], stops[found] = y, begun, first_pixel[min(right, last_column + 1)]
            found += 1
    return found


@compiled
def _sum(
    grid: Grid,
    rows: Ints,
    starts: Ints,
    stops: Ints,
    parts: Ints,
    row_low: Ints,
    row_share: NDArray[np.float32],
    column_low: Ints,
    first_pixel: Ints,
    shares: Floats,
    sums: Floats,
) -> None:
    bottom, last_column = grid.shape[0] - 1, grid.shape[1] - 1
    for run in range(rows.size):
        part = parts[run]
        if part < 0:
            continue
        above, share = row_low[rows[run]], np.float64(row_share[rows[run]])
        below = min(above + 1, bottom)
        total = 0.0
        for column in range(column_low[starts[run]], column_low[stops[run] - 1] + 1):
            after = min(column + 1, last_column)
            here = grid[above, column] * (1.0 - share) + grid[below, column] * share
            there = grid[above, after] * (1.0 - share) + grid[below, after] * share
            first, end = max(starts[run], first_pixel[column]), min(stops[run], first_pixel[column + 1])
            total += here * (end - first) + (there - here) * (shares[end] - shares[first])
        sums[part] += total


@compiled
def _find_peaks(
    grid: Grid,
    rows: Ints,
    starts: Ints,
    stops: Ints,
    parts: Ints,
    row_low: Ints,
    row_share: NDArray[np.float32],
    column_low: Ints,
    column_share: NDArray[np.float32],
    first_pixel: Ints,
    most: Floats,
    centres: Floats,
    found: Ints,
    slack: float,
) -> None:
    # Without slack, the largest value of each part. With it, the pixel that comes within it and is nearest to the
    # centre. Between two cells a row is a line: the largest value is at an end, and so are those that equal it unless
    # the line is level.
    bottom, last_column = grid.shape[0] - 1, grid.shape[1] - 1
    nearest = np.full(most.size, np.inf)
    for run in range(rows.size):
        part = parts[run]
        if part < 0:
            continue
        above, share = row_low[rows[run]], np.float64(row_share[rows[run]])
        below = min(above + 1, bottom)
        for column in range(column_low[starts[run]], column_low[stops[run] - 1] + 1):
            after = min(column + 1, last_column)
            here = grid[above, column] * (1.0 - share) + grid[below, column] * share
            there = grid[above, after] * (1.0 - share) + grid[below, after] * share
            first, end = max(starts[run], first_pixel[column]), min(stops[run], first_pixel[column + 1])
            if first >= end:
                continue
            at_first = here + (there - here) * np.float64(column_share[first])
            at_last = here + (there - here) * np.float64(column_share[end - 1])
            if slack == 0.0:
                most[part] = max(most[part], at_first, at_last)
                continue
            left = at_first >= most[part] - slack
            right = at_last >= most[part] - slack
            if not left and not right:
                continue
            x = first if left else end - 1
            if left and right:
                x = min(max(round(centres[part, 0]), first), end - 1)
            distance = (x - centres[part, 0]) ** 2 + (rows[run] - centres[part, 1]) ** 2
            if distance < nearest[part]:
                nearest[part] = distance
                found[part, 0], found[part, 1] = x, rows[run]

"""From logits on the model's grid to masks at the image's size, without ever making the large picture.

Bilinear interpolation is linear along a row of pixels between two cells: where both cells are above a level, all pixels
between them are, and where both are below, none is. So a row is answered cell by cell, and single pixels are looked at
only where a mask's edge passes. The result equals upsampling with `vlm_core.masks.upsample_logits` and comparing,
but for pixels within rounding of the level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm_core.compiled import compiled
from vlm_core.errors import InputError
from vlm_core.runs import Ints, RunMask

Grid = NDArray[np.float32]
Floats = NDArray[np.float64]


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

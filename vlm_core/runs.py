"""Masks as horizontal runs of pixels: small, however large the image.

A mask of 12 megapixels with smooth edges is some thousand runs. What is asked of a mask (area, box, connected parts,
Label Studio's run-length code) is answered from its runs; the picture itself is made only where somebody needs pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm_core.compiled import compiled
from vlm_core.errors import InputError

BoolMask = NDArray[np.bool_]
Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class RunMask:
    """A mask, row by row: run i is the pixels `starts[i] <= x < stops[i]` of row `rows[i]`.

    Attributes:
        rows, starts, stops: int32, (N,), ordered by row and start; runs neither overlap nor touch within a row, and
            none is empty.
        size_hw: of the image, px.
    """

    rows: Ints
    starts: Ints
    stops: Ints
    size_hw: tuple[int, int]

    def __len__(self) -> int:
        """The number of runs."""
        return int(self.rows.size)

    @classmethod
    def from_array(cls, mask: BoolMask) -> RunMask:
        """The runs of a bool array (H, W). Raises InputError for anything else."""
        if mask.dtype != np.bool_ or mask.ndim != 2:
            raise InputError(f"a mask is a bool array (H, W), not {mask.dtype} {mask.shape}")
        height, width = mask.shape
        if not mask.size:
            none = np.empty(0, dtype=np.int32)
            return cls(none, none, none, (height, width))
        return cls._from_flat_edges(toggles(np.ascontiguousarray(mask).reshape(-1)), (height, width))

    @classmethod
    def _from_flat_edges(cls, flat_edges: Ints, size_hw: tuple[int, int]) -> RunMask:
        height, width = size_hw
        edges = flat_edges.astype(np.int64)
        if edges.size % 2:
            edges = np.append(edges, height * width)
        first, end = edges[0::2], edges[1::2]
        # A flat run may reach over the ends of rows: cut it there.
        top, bottom = first // width, (end - 1) // width
        pieces = bottom - top + 1
        owner = np.repeat(np.arange(first.size), pieces)
        rows = top[owner] + np.arange(owner.size) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        starts = np.maximum(first[owner] - rows * width, 0)
        stops = np.minimum(end[owner] - rows * width, width)
        return cls(rows.astype(np.int32), starts.astype(np.int32), stops.astype(np.int32), (height, width))

    def to_array(self) -> BoolMask:
        """The picture: bool, (H, W)."""
        mask = np.zeros(self.size_hw, dtype=np.bool_)
        _paint(self.rows, self.starts, self.stops, mask)
        return mask

    @property
    def area_px(self) -> int:
        """The number of pixels inside."""
        return int((self.stops - self.starts).sum(dtype=np.int64))

    @property
    def box_xyxy_px(self) -> tuple[int, int, int, int] | None:
        """The smallest box that holds the mask, the end exclusive; None for an empty mask."""
        if not len(self):
            return None
        return int(self.starts.min()), int(self.rows[0]), int(self.stops.max()), int(self.rows[-1]) + 1

    def flat_edges(self) -> Ints:
        """Where the flat picture (row after row) changes from outside to inside and back, int32, ascending.

        Outside comes first: a mask whose first pixel is inside begins with edge 0. A last edge at the very end is left
        out.
        """
        width = self.size_hw[1]
        base = self.rows.astype(np.int64) * width
        edges: NDArray[np.int64] = np.empty(2 * len(self), dtype=np.int64)
        edges[0::2], edges[1::2] = base + self.starts, base + self.stops
        # A run that ends its row and one that begins the next are one flat run.
        joined = np.flatnonzero(edges[1:-1:2] == edges[2::2])
        if joined.size:
            edges = np.delete(edges, np.concatenate((2 * joined + 1, 2 * joined + 2)))
        if edges.size and edges[-1] == width * self.size_hw[0]:
            edges = edges[:-1]
        return edges.astype(np.int32)

    def select(self, keep: NDArray[np.bool_] | NDArray[np.int64]) -> RunMask:
        """The mask of the runs that `keep` names: bool (N,), or ascending indices."""
        return RunMask(self.rows[keep], self.starts[keep], self.stops[keep], self.size_hw)

    def inverted(self) -> RunMask:
        """The pixels outside."""
        if not self.size_hw[0] * self.size_hw[1]:
            return self
        edges = self.flat_edges()
        begins_inside = edges.size and edges[0] == 0
        return self._from_flat_edges(
            edges[1:] if begins_inside else np.concatenate((np.zeros(1, np.int32), edges)), self.size_hw
        )

    def components(self, *, corners: bool = True) -> tuple[Ints, int]:
        """The connected part that each run belongs to.

        Args:
            corners: whether pixels that touch at a corner only are connected.

        Returns:
            Part numbers 0..count - 1, int32 (N,), in order of each part's first run, and count.
        """
        parts = np.empty(len(self), dtype=np.int32)
        return parts, int(_connect(self.rows, self.starts, self.stops, 1 if corners else 0, parts))

    def measure(self, parts: Ints, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Boxes and areas of the parts that `components` gives.

        Returns:
            Boxes xyxy, px, the end exclusive, int64 (count, 4), and areas, px, int64 (count,).
        """
        boxes, areas = np.zeros((count, 4), dtype=np.int64), np.zeros(count, dtype=np.int64)
        _measure(self.rows, self.starts, self.stops, parts, boxes, areas)
        return boxes, areas

    def instances(self, min_area_px: int = 1) -> list[RunMask]:
        """The connected parts, each a mask of its own, largest first; corners connect.

        Args:
            min_area_px: smaller parts are left out.
        """
        parts, count = self.components()
        _, areas = self.measure(parts, count)
        order = np.argsort(parts, kind="stable")
        ends = np.cumsum(np.bincount(parts, minlength=count))
        largest_first = np.argsort(-areas, kind="stable")
        members = np.split(order, ends[:-1]) if count else []
        return [self.select(members[index]) for index in largest_first if areas[index] >= min_area_px]


def union(masks: list[RunMask]) -> RunMask:
    """The pixels of any of some masks of one size. Raises InputError for none, or different sizes."""
    if not masks or len({mask.size_hw for mask in masks}) != 1:
        raise InputError(f"a union needs masks of one size, got {[mask.size_hw for mask in masks]}")
    if len(masks) == 1:
        return masks[0]
    height, width = masks[0].size_hw
    rows = np.concatenate([mask.rows for mask in masks]).astype(np.int64)
    if not rows.size:
        return masks[0]
    # One axis for all rows, with a gap after each, so that runs of different rows never touch.
    starts = rows * (width + 1) + np.concatenate([mask.starts for mask in masks])
    stops = rows * (width + 1) + np.concatenate([mask.stops for mask in masks])
    order = np.argsort(starts, kind="stable")
    starts, reached = starts[order], np.maximum.accumulate(stops[order])
    first = np.flatnonzero(np.concatenate(([True], starts[1:] > reached[:-1])))
    last = np.append(first[1:], starts.size) - 1
    starts, stops = starts[first], reached[last]
    row = starts // (width + 1)
    return RunMask(
        row.astype(np.int32),
        (starts - row * (width + 1)).astype(np.int32),
        (stops - row * (width + 1)).astype(np.int32),
        (height, width),
    )


def intersection(masks: list[RunMask]) -> RunMask:
    """The pixels of all of some masks of one size. Raises InputError for none, or different sizes."""
    if len(masks) == 1:
        return masks[0]
    # What is in all of them is outside of none.
    return union([mask.inverted() for mask in masks]).inverted()


def fill_holes(mask: RunMask, largest_px: int | None = None) -> RunMask:
    """The mask with its holes filled.

    A hole is a connected part of the outside that does not reach the image's border. Corners connect what is inside,
    therefore they do not connect what is outside: a ring whose pixels touch at corners only is closed.

    Args:
        mask: any mask.
        largest_px: holes of more pixels stay open; None fills all.
    """
    height, width = mask.size_hw
    outside = mask.inverted()
    parts, count = outside.components(corners=False)
    boxes, areas = outside.measure(parts, count)
    hole = (boxes[:, 0] > 0) & (boxes[:, 1] > 0) & (boxes[:, 2] < width) & (boxes[:, 3] < height)
    if largest_px is not None:
        hole &= areas <= largest_px
    return union([mask, outside.select(hole[parts])]) if hole.any() else mask


def toggles(flat: BoolMask) -> Ints:
    """Where a flat bool array changes, starting from False: as `RunMask.flat_edges`."""
    out = np.empty(flat.size, dtype=np.int32)  # only what is written takes memory
    words = flat[: flat.size // 8 * 8].view(np.uint64)
    return out[: _toggles(flat, words, out)].copy()


@compiled
def _toggles(flat: BoolMask, words: NDArray[np.uint64], out: Ints) -> int:
    found = 0
    inside = False
    full = np.uint64(0x0101010101010101)
    for index in range(words.size):
        # Most words of a mask are all inside or all outside: eight pixels in one comparison.
        if words[index] == (full if inside else np.uint64(0)):
            continue
        for position in range(8 * index, 8 * index + 8):
            if flat[position] != inside:
                inside = not inside
                out[found] = position
                found += 1
    for position in range(8 * words.size, flat.size):
        if flat[position] != inside:
            inside = not inside
            out[found] = position
            found += 1
    return found


@compiled
def _paint(rows: Ints, starts: Ints, stops: Ints, mask: BoolMask) -> None:
    for index in range(rows.size):
        mask[rows[index], starts[index] : stops[index]] = True


@compiled
def _connect(rows: Ints, starts: Ints, stops: Ints, reach: int, parts: Ints) -> int:
    # Union-find over runs; the runs of a row meet those of the row above in one sweep over both. Runs meet where they
    # share a column, or with a reach of 1 where their columns are neighbours.
    parent = np.arange(rows.size, dtype=np.int32)
    above = 0
    for index in range(rows.size):
        while above < index and (
            rows[above] < rows[index] - 1 or (rows[above] == rows[index] - 1 and stops[above] + reach <= starts[index])
        ):
            above += 1
        other = above
        while other < index and rows[other] == rows[index] - 1 and starts[other] < stops[index] + reach:
            one, two = index, other
            while parent[one] != one:
                parent[one] = parent[parent[one]]
                one = parent[one]
            while parent[two] != two:
                parent[two] = parent[parent[two]]
                two = parent[two]
            if one < two:
                parent[two] = one
            else:
                parent[one] = two
            other += 1
    count = 0
    for index in range(rows.size):
        root = index
        while parent[root] != root:
            root = parent[root]
        if root == index:
            parts[index] = count
            count += 1
        else:
            parts[index] = parts[root]
    return count


@compiled
def _measure(
    rows: Ints, starts: Ints, stops: Ints, parts: Ints, boxes: NDArray[np.int64], areas: NDArray[np.int64]
) -> None:
    for index in range(rows.size):
        part = parts[index]
        if not areas[part]:
            boxes[part, 0], boxes[part, 1] = starts[index], rows[index]
        boxes[part, 0] = min(boxes[part, 0], starts[index])
        boxes[part, 2] = max(boxes[part, 2], stops[index])
        boxes[part, 3] = rows[index] + 1
        areas[part] += stops[index] - starts[index]

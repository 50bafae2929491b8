"""Large images: overlapping windows beside the view of the whole image, joined without seams.

The model sees an image at its own input size, so what is small in a large photograph disappears. Windows show it
larger, but do not know where they are: in a window "left circle" is the leftmost circle of that window, and a part of a
large thing may look like anything. So things are looked for from large to small, in the whole image, then through
windows each time half as wide, and windows may only add what was too small for the view before:

- the windows' answers are blended, each with a weight that falls smoothly to zero towards the window's borders inside
  the image; the weights of all windows sum to one at every point;
- `large` is what of this blend is at least two patches of the view before wide: its opening with a square of that
  size, widened by the same size. Such things were seen before, so these windows have no say about them;
- the answer is `max(before, min(windows, -large))`, a logit at every point of a finer grid.

Every step is continuous in the logits, so none makes a seam. What remains: phrases that relate small things to the
whole picture ("left bird") are answered window by window. Ask for them without windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vlm_core.errors import InputError
from vlm_core.masks import upsample_logits

if TYPE_CHECKING:
    from vlm_core.model import Model

Tile = Literal["auto"] | int | None
"""Side of the narrowest windows, px of the image; "auto" chooses it, None looks at the whole image alone."""
Box = tuple[int, int, int, int]
"""`xyxy`, px of the image, the end exclusive."""

_OVERLAP = 0.25
"""Least share of a window that the next one sees too."""
_AUTO_ENLARGES = 2
"""An automatic window is so many times as wide as the model's input."""
_AUTO_WINDOWS = 64
"""Most windows that are chosen automatically: they are wider in images that would need more."""
_MOST_WINDOWS = 4096
"""Of a tile that was asked for: each costs an encoding."""
_SEEN_WHOLE = 2
"""From so many patches on the whole view sees a thing."""
_BATCH = 16
"""Windows encoded at once; the features of no more are in the memory."""
_CELLS = 8
"""Cells across a thing that was just seen before, on the grid where what is large is looked for; even."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Where the windows of an image stand: every row of them crossed with every column.

    Attributes:
        size_hw: of the image, px.
        side: of a window, px; along a shorter side of the image, that side.
        tops, lefts: first pixel of each row and of each column of windows.
    """

    size_hw: tuple[int, int]
    side: int
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @classmethod
    def over(cls, size_hw: tuple[int, int], side: int) -> Windows:
        """As few windows as reach everywhere with the least overlap, evenly spread; the outer ones end at the borders.

        Args:
            size_hw: of the image, px.
            side: of a window, px, at least 1.
        """
        tops, lefts = (_starts(length, side) for length in size_hw)
        return cls(size_hw, side, tops, lefts)

    def __len__(self) -> int:
        """How many windows there are."""
        return len(self.tops) * len(self.lefts)

    def boxes(self) -> list[Box]:
        """Each window's `xyxy` box, px, the end exclusive, row by row."""
        height, width = (min(self.side, length) for length in self.size_hw)
        return [(left, top, left + width, top + height) for top in self.tops for left in self.lefts]

    def grid_hw(self, cells_hw: tuple[int, int]) -> tuple[int, int]:
        """The grid that the windows' answers of `cells_hw` join to: as fine as they are, no finer than pixels."""
        rows, columns = (
            min(length, round(cells * length / min(self.side, length)))
            for cells, length in zip(cells_hw, self.size_hw, strict=True)
        )
        return rows, columns

    def join(self, answers: Iterable[Tensor]) -> Tensor:
        """Blend the windows' answers to one of the whole image.

        Args:
            answers: (C, h, w) of each window, in the order of `boxes`; one at a time is held.

        Returns:
            (C, *grid_hw((h, w))), float32, CPU, a view of the whole image.
        """
        coming = iter(answers)
        first = next(coming)
        cells_hw = (int(first.shape[1]), int(first.shape[2]))
        rows, columns = self.grid_hw(cells_hw)
        down = _placements(self.tops, self.side, self.size_hw[0], cells_hw[0], rows)
        along = _placements(self.lefts, self.side, self.size_hw[1], cells_hw[1], columns)
        joined = torch.zeros(first.shape[0], rows, columns)
        places = ((vertical, horizontal) for vertical in down for horizontal in along)
        for ((top, vertical), (left, horizontal)), answer in zip(places, chain([first], coming), strict=True):
            where = (slice(None), slice(top, top + len(vertical)), slice(left, left + len(horizontal)))
            joined[where] += vertical @ answer.float() @ horizontal.T
        return joined


def choose_windows(size_hw: tuple[int, int], input_hw: tuple[int, int], tile: Tile) -> tuple[Windows, ...]:
    """The windows to look through, wide ones first, each time half as wide.

    Args:
        size_hw: of the image, px.
        input_hw: what the model sees of an image, px.
        tile: side of the narrowest, px. "auto": twice the model's input, or wider where that would make more than
            64 of them.

    Returns:
        Empty for `tile=None`, and for an image that one window shows whole.

    Raises:
        InputError: a tile that is none of these, below 1, or so small that there would be more than 4096 windows.
    """
    if tile is None:
        return ()
    if tile == "auto":
        side = _AUTO_ENLARGES * max(input_hw)
        while side < max(size_hw) and len(Windows.over(size_hw, side)) > _AUTO_WINDOWS:
            side = math.ceil(side * 1.05)
    elif isinstance(tile, int) and not isinstance(tile, bool) and tile >= 1:
        side = tile
    else:
        raise InputError(f'tile {tile!r} must be "auto", a number of pixels from 1 on, or None')
    rows, columns = (1 + max(0, length - side) // max(1, round((1 - _OVERLAP) * side)) for length in size_hw)
    if rows * columns > _MOST_WINDOWS:
        raise InputError(
            f"windows of {side} px would be about {rows * columns} for an image of {size_hw[1]} x {size_hw[0]} px, "
            f"more than {_MOST_WINDOWS}: give a larger tile"
        )
    levels = []
    while side < max(size_hw):
        levels.append(Windows.over(size_hw, side))
        # Windows nearly as wide as the image would see what the whole view sees.
        side = 2 * side if 2 * side <= 0.75 * max(size_hw) else max(size_hw)
    return tuple(reversed(levels))


def segment_windows(
    model: Model, image: Image.Image, conditions: Tensor, whole: Tensor, levels: Sequence[Windows]
) -> Tensor:
    """Answer conditions from the whole view and windows together.

    Args:
        model: one that gives masks.
        image: as for `Model.segment`.
        conditions: (C, E), as for `Model.decode`.
        whole: (C, h, w), `Model.decode`'s answer for the whole image.
        levels: of `choose_windows` for the image.

    Returns:
        Logits (C, h', w'), float32, CPU, on a finer grid: a view of the whole image.
    """

    def answers(boxes: Sequence[Box]) -> Iterator[Tensor]:
        for start in range(0, len(boxes), _BATCH):
            crops = [image.crop(box) for box in boxes[start : start + _BATCH]]
            features = model.encode_image(crops)
            yield from (model.decode(features[index], conditions).logits for index in range(len(crops)))

    return join_windows(whole, levels, model.patch_cells, answers)


def join_windows(
    whole: Tensor, levels: Sequence[Windows], patch_cells: int, answers: Callable[[Sequence[Box]], Iterable[Tensor]]
) -> Tensor:
    """`segment_windows` for windows that are answered elsewhere.

    Args:
        whole: (C, h, w), the answer for the whole image.
        levels: of `choose_windows` for the image; without any, the answer is `whole`.
        patch_cells: how many cells of an answer a patch of the model's input is wide, `Model.patch_cells`.
        answers: boxes of windows -> (C, h, w) of each, in order; one at a time is held.
    """
    if not levels:
        return whole
    # A patch of the input is as many cells of the answer as the head makes of it.
    sides = zip(levels[0].size_hw, whole.shape[1:], strict=True)
    patch_px = max(length * patch_cells / cells for length, cells in sides)
    answer = whole
    for windows in levels:
        answer = add_windows(answer, windows.join(answers(windows.boxes())), windows.size_hw, _SEEN_WHOLE * patch_px)
        patch_px = windows.side * patch_cells / max(whole.shape[1:])
    return answer


def add_windows(before: Tensor, windows: Tensor, size_hw: tuple[int, int], seen_px: float) -> Tensor:
    """`max(before, min(windows, -large))`; see the module.

    Args:
        before: (C, h, w), the logits of the views before.
        windows: (C, h', w'), the blended windows' logits.
        size_hw: of the image, px.
        seen_px: from this width on a thing was seen before, px of the image.
    """
    grid_hw = (int(windows.shape[1]), int(windows.shape[2]))
    # What is large needs no fine grid.
    cell = seen_px / _CELLS
    rows, columns = (max(1, min(c, round(length / cell))) for c, length in zip(grid_hw, size_hw, strict=True))
    coarse = F.adaptive_avg_pool2d(windows[None], (rows, columns))
    kernel = _CELLS + 1

    def widen(logits: Tensor) -> Tensor:
        return F.max_pool2d(logits, kernel, stride=1, padding=kernel // 2)

    large = widen(widen(-widen(-coarse)))[0]
    # One condition at a time: the finer grid of many is large.
    out = torch.empty_like(windows)
    for index in range(len(windows)):
        limit = upsample_logits(-large[index : index + 1], grid_hw)
        seen = upsample_logits(before[index : index + 1], grid_hw)
        out[index] = torch.maximum(seen, torch.minimum(windows[index : index + 1], limit))[0]
    return out


def _starts(length: int, side: int) -> tuple[int, ...]:
    if side >= length:
        return (0,)
    count = math.ceil((length - _OVERLAP * side) / (side - _OVERLAP * side))
    return tuple(round(index * (length - side) / (count - 1)) for index in range(count))


def _placements(starts: Sequence[int], side: int, length: int, cells: int, points: int) -> list[tuple[int, Tensor]]:
    """How windows along one axis come to lie on a grid over the image.

    Args:
        starts: first pixel of each window.
        side: of a window, px.
        length: of the image along the axis, px.
        cells: of a window's answer.
        points: of the grid over the image.

    Returns:
        For each window its first point, and a matrix (points it reaches, cells): linear interpolation between
        its cells, times its weight. Over all windows the weights of a point sum to one.
    """
    side = min(side, length)
    centres = (torch.arange(points, dtype=torch.float64) + 0.5) * (length / points)  # px
    weights = torch.stack([_weight(centres - start, side, start == 0, start + side == length) for start in starts])
    weights /= weights.sum(0)
    placements = []
    for start, weight in zip(starts, weights, strict=True):
        reached = torch.nonzero(weight)[:, 0].tolist() or [0, -1]  # a coarse grid may have no point in a window
        first, last = reached[0], reached[-1] + 1
        # As torch's bilinear interpolation without aligned corners: flat beyond the outermost cells' centres.
        position = ((centres[first:last] - start) * (cells / side) - 0.5).clamp(0, cells - 1)
        low = position.floor().long().clamp(max=max(0, cells - 2))
        share = position - low
        matrix = torch.zeros(last - first, cells, dtype=torch.float64)
        here = torch.arange(last - first)
        matrix[here, low] += 1 - share
        matrix[here, (low + 1).clamp(max=cells - 1)] += share
        placements.append((first, (matrix * weight[first:last, None]).float()))
    return placements


def _weight(offset: Tensor, side: int, at_start: bool, at_end: bool) -> Tensor:
    """A window's weight before it is shared: a raised cosine over the window, 0 from its borders on.

    Towards a border of the image nothing else looks, so it stays level there.
    """
    position = offset / side
    weight = torch.sin(math.pi * position.clamp(0, 1)).square()
    if at_start:
        weight = torch.where((position >= 0) & (position < 0.5), 1.0, weight)
    if at_end:
        weight = torch.where((position >= 0.5) & (position <= 1), 1.0, weight)
    return torch.where((position > 0) & (position < 1), weight, 0.0).double()

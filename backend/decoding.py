"""Logits on the model's grid -> masks of the displayed image, label by label. Pure functions.

A mask at full size is large (12 megapixels and more), a grid is small. So a label that is nowhere on the grid
is answered without ever leaving it, and the others are upsampled only inside the part of the image that their
cells can reach, in strips: bilinear interpolation never exceeds its neighbours, so nothing outside can reach
the threshold. The result equals upsampling everything with `vlm_core.masks.upsample_logits`.

`RULES` goes into the hash of version names: whoever changes what this module or `backend.choices` answers for
the same logits raises the revision, and Label Studio asks again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

BoolMask = NDArray[np.bool_]
Logits = NDArray[np.float32]

DEFAULT_MIN_AREA_FRACTION = 0.0005
"""Parts smaller than this share of the image are specks: about a quarter of what one patch of the model sees."""

RULES: dict[str, object] = {"revision": 1, "min_area_fraction": DEFAULT_MIN_AREA_FRACTION}

_STRIP_PX = 1 << 20
_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class Part:
    """One connected part of a label's mask.

    Attributes:
        box_xyxy_px: in the displayed image, the end exclusive.
        area_px: at least 1.
        score: mean probability of its pixels, 0..1.
    """

    box_xyxy_px: tuple[int, int, int, int]
    area_px: int
    score: float


@dataclass(frozen=True)
class LabelMask:
    """Where one label is.

    Attributes:
        mask: bool, (H, W) of the displayed image, without parts below the least area; None where nothing is left.
        parts: the connected parts of the mask, largest first; corners connect.
        score: mean probability of the mask's pixels, 0..1; with nothing found, 1 - `peak`: how sure that is.
        peak: highest probability on the model's grid, 0..1.
    """

    mask: BoolMask | None
    parts: tuple[Part, ...]
    score: float
    peak: float


def least_area_px(configured: int | None, size_hw: tuple[int, int]) -> int:
    """The least area of a part: what the control says, else a small share of the image.

    Args:
        configured: `model_min_area` of the control, px, or None.
        size_hw: of the displayed image, px.
    """
    if configured is not None:
        return max(1, configured)
    return max(1, round(DEFAULT_MIN_AREA_FRACTION * size_hw[0] * size_hw[1]))


def decode_label(
    logits: Logits,
    size_hw: tuple[int, int],
    *,
    threshold: float,
    min_area_px: int = 1,
    temperature: float = 1.0,
) -> LabelMask:
    """Decode one label from the grids of its phrases; alternatives combine by the maximum of their probabilities.

    Args:
        logits: (A, h, w) float32, A >= 1 phrases, on the model's grid: a square view of the whole image.
        size_hw: of the displayed image, px.
        threshold: probability from which a pixel belongs to the label, 0..1.
        min_area_px: smaller connected parts are dropped.
        temperature: logits are divided by it before the sigmoid, > 0.

    Returns:
        Mask, parts and scores. Scores are finite, also where logits are not.

    Raises:
        ValueError: logits of another shape, or without phrases.
    """
    if logits.ndim != 3 or logits.shape[0] < 1:
        raise ValueError(f"a label's logits need shape (A, h, w) with A >= 1, got {logits.shape}")
    grid = _finite(logits) / np.float32(temperature)
    best = _sigmoid(grid.max(axis=0))
    peak = float(best.max())
    # Interpolation rounds: a cell this close below the threshold may still be reached.
    window = _reach(best >= threshold - 1e-4, size_hw)
    if window is None:
        return LabelMask(None, (), 1.0 - peak, peak)
    top, left, bottom, right = window
    probability = np.empty((bottom - top, right - left), dtype=np.float32)
    for first, last in _strips(top, bottom, right - left):
        strip = _interpolate(grid, size_hw, (first, last), (left, right))
        probability[first - top : last - top] = _sigmoid(strip.max(axis=0))
    return _measure(probability, (top, left), size_hw, threshold, min_area_px, peak)


def _measure(
    probability: NDArray[np.float32],
    corner_yx: tuple[int, int],
    size_hw: tuple[int, int],
    threshold: float,
    min_area_px: int,
    peak: float,
) -> LabelMask:
    """Threshold a window of the image, drop specks, and score what is left."""
    inside: BoolMask = probability >= threshold
    labelled, count = ndimage.label(inside, structure=_EIGHT_NEIGHBOURS)
    areas = np.bincount(labelled.ravel(), minlength=count + 1)
    top, left = corner_yx
    parts: list[Part] = []
    total, weighted = 0, 0.0
    keep = areas >= max(1, min_area_px)
    keep[0] = False
    inside = keep[labelled]
    for index, where in enumerate(ndimage.find_objects(labelled), start=1):
        if not keep[index]:
            continue
        own: BoolMask = labelled[where] == index
        rows, columns = where
        box = (left + columns.start, top + rows.start, left + columns.stop, top + rows.stop)
        mean = float(probability[where][own].mean(dtype=np.float64))
        parts.append(Part(box, int(areas[index]), _unit(mean)))
        total += int(areas[index])
        weighted += mean * int(areas[index])
    if not parts:
        return LabelMask(None, (), 1.0 - peak, peak)
    mask = np.zeros(size_hw, dtype=bool)
    mask[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    parts.sort(key=lambda part: (-part.area_px, part.box_xyxy_px))
    return LabelMask(mask, tuple(parts), _unit(weighted / total), peak)


def _reach(cells: BoolMask, size_hw: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """The window (top, left, bottom, right) of pixels that interpolation takes from any of these cells."""
    rows, columns = np.flatnonzero(cells.any(axis=1)), np.flatnonzero(cells.any(axis=0))
    if not rows.size:
        return None
    top, bottom = _pixels_of(int(rows[0]), int(rows[-1]), size_hw[0], cells.shape[0])
    left, right = _pixels_of(int(columns[0]), int(columns[-1]), size_hw[1], cells.shape[1])
    if top >= bottom or left >= right:  # the image is smaller than the grid and skips these cells
        return None
    return top, left, bottom, right


def _pixels_of(first: int, last: int, out_size: int, in_size: int) -> tuple[int, int]:
    low, high, _ = _sources(np.arange(out_size), out_size, in_size)
    touched = np.flatnonzero((high >= first) & (low <= last))
    return (int(touched[0]), int(touched[-1]) + 1) if touched.size else (0, 0)


def _strips(top: int, bottom: int, width: int) -> Iterator[tuple[int, int]]:
    rows = max(1, _STRIP_PX // width)
    for first in range(top, bottom, rows):
        yield first, min(bottom, first + rows)


def _sources(
    pixels: NDArray[np.int64], out_size: int, in_size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """For output pixels of one axis the two cells that they lie between and the share of the second.

    Pixel centres, as torch's bilinear interpolation with align_corners=False.
    """
    position = np.maximum((pixels + 0.5) * (in_size / out_size) - 0.5, 0.0)
    low = np.minimum(position.astype(np.int64), in_size - 1)
    high = np.minimum(low + 1, in_size - 1)
    return low, high, (position - low).astype(np.float32)


def _interpolate(grid: Logits, size_hw: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]) -> Logits:
    """A window of the bilinearly upsampled grids, (A, rows, columns)."""
    low, high, share = _sources(np.arange(*rows), size_hw[0], grid.shape[1])
    down = share[None, :, None]
    tall: Logits = grid[:, low] * (1 - down) + grid[:, high] * down
    low, high, share = _sources(np.arange(*columns), size_hw[1], grid.shape[2])
    result: Logits = tall[:, :, low] * (1 - share) + tall[:, :, high] * share
    return result


def _finite(logits: Logits) -> Logits:
    """A number that is none counts as no evidence; infinities become certain but stay computable."""
    return np.nan_to_num(logits.astype(np.float32), nan=-1e4, posinf=1e4, neginf=-1e4)


def _sigmoid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    # exp of -|x| never overflows.
    small = np.exp(-np.abs(values))
    result: NDArray[np.float32] = np.where(values >= 0, 1 / (1 + small), small / (1 + small))
    return result


def _unit(value: float) -> float:
    return min(1.0, max(0.0, value))


def mean_score(scores: Sequence[float]) -> float:
    """The score of a whole prediction: the mean over what it answers, 0..1, 4 decimals; 0.0 for nothing."""
    return round(_unit(sum(scores) / len(scores)), 4) if scores else 0.0

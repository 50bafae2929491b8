"""Logits on the model's grid -> masks of the displayed image, label by label. Pure functions.

A mask at full size is large (12 megapixels and more), a grid is small. So masks are traced from the grid as runs of
pixels (`vlm_core.trace`) and never become pictures here. They equal what `vlm_core.Model.segment` answers for the same
`Prompt`, compared with the threshold, but for pixels within rounding of it.

`RULES` goes into the hash of version names: whoever changes what this module, `backend.choices` or `backend.answers`
makes of the same logits raises the revision, and Label Studio asks again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm_core.runs import Ints, RunMask, intersection
from vlm_core.trace import mean_inside, peaks_inside, trace_prompt

Logits = NDArray[np.float32]

DEFAULT_MIN_AREA_FRACTION = 0.0005
"""Parts smaller than this share of the image are specks: about a quarter of what one patch of the model sees."""

RULES: dict[str, object] = {"revision": 3, "min_area_fraction": DEFAULT_MIN_AREA_FRACTION}

_CERTAIN = 1 - 2.0**-25
"""The largest probability that is not one in float32."""


@dataclass(frozen=True)
class Part:
    """One connected part of a label's mask.

    Attributes:
        box_xyxy_px: in the displayed image, the end exclusive.
        area_px: at least 1.
        score: mean probability of its pixels, 0..1, interpolated between the grid's probabilities.
        peak_xy_px: its most certain pixel, the one nearest to its middle of several; None where nobody asked.
    """

    box_xyxy_px: tuple[int, int, int, int]
    area_px: int
    score: float
    peak_xy_px: tuple[int, int] | None = None


@dataclass(frozen=True)
class LabelMask:
    """Where one label is.

    Attributes:
        mask: of the displayed image, without parts below the least area; None where nothing is left.
        parts: the connected parts of the mask, largest first; corners connect.
        score: mean probability of the mask's pixels, 0..1; with nothing found, 1 - `peak`: how sure that is.
        peak: highest probability on the model's grid, 0..1.
        part_of_run: int32, for each run of the mask the index of its part.
        reached: for each phrase whether its probability reaches the threshold anywhere on the grid.
    """

    mask: RunMask | None
    parts: tuple[Part, ...]
    score: float
    peak: float
    part_of_run: Ints
    reached: tuple[bool, ...]

    def pieces(self) -> list[RunMask]:
        """Each part as a mask of its own, in the order of `parts`."""
        if self.mask is None:
            return []
        order = np.argsort(self.part_of_run, kind="stable")
        ends = np.cumsum(np.bincount(self.part_of_run, minlength=len(self.parts)))
        return [self.mask.select(members) for members in np.split(order, ends[:-1])]

    def only(self, parts: Sequence[int]) -> LabelMask:
        """With some of its parts; `parts` are indices into `parts`, ascending."""
        if self.mask is None or len(parts) == len(self.parts):
            return self
        if not parts:
            return LabelMask(None, (), 1.0 - self.peak, self.peak, np.empty(0, dtype=np.int32), self.reached)
        renumbered = np.full(len(self.parts), -1, dtype=np.int32)
        renumbered[list(parts)] = np.arange(len(parts))
        numbers = renumbered[self.part_of_run]
        kept = tuple(self.parts[index] for index in parts)
        score = float(np.average([part.score for part in kept], weights=[part.area_px for part in kept]))
        return LabelMask(
            self.mask.select(numbers >= 0), kept, _unit(score), self.peak, numbers[numbers >= 0], self.reached
        )


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
    min_part_score: float = 0.0,
    temperature: float = 1.0,
    unwanted: Logits | None = None,
    peaks: bool = False,
    within: RunMask | None = None,
) -> LabelMask:
    """Decode one label from the grids of its phrases; they combine as those of a `vlm_core.Prompt`.

    Alternatives combine by the maximum of their probabilities, and a pixel where a phrase that must not be included is
    at least as probable does not belong to the label.

    Args:
        logits: (A, h, w) float32, A >= 1 phrases, on a grid that is a view of the whole image.
        size_hw: of the displayed image, px.
        threshold: probability from which a pixel belongs to the label, 0..1.
        min_area_px: smaller connected parts are dropped.
        min_part_score: parts with a lower score are dropped too, 0..1.
        temperature: logits are divided by it before the sigmoid, > 0.
        unwanted: (B, h, w) float32, the phrases that must not be included; None: there are none.
        peaks: whether to say where the parts are most certain.
        within: what lies outside is not looked at, in the displayed image; None: all of it is.

    Returns:
        Mask, parts and scores. Scores are finite, also where logits are not.

    Raises:
        ValueError: logits of another shape, or without phrases.
    """
    against = np.empty((0, *logits.shape[1:]), dtype=np.float32) if unwanted is None else unwanted
    if logits.ndim != 3 or logits.shape[0] < 1 or against.shape[1:] != logits.shape[1:]:
        raise ValueError(
            f"a label's logits need shape (A, h, w) with A >= 1, got {logits.shape} and {against.shape} against them"
        )
    grid = _finite(logits) / np.float32(temperature)
    against = _finite(against) / np.float32(temperature)
    level = _logit(threshold)
    reached = tuple((grid.reshape(len(grid), -1).max(axis=1) >= level).tolist())
    largest = grid.max(axis=0)
    best = _sigmoid(largest)
    left = best if not len(against) else np.where(largest > against.max(axis=0), best, np.float32(0))
    peak = float(left.max())
    mask = trace_prompt(list(grid), list(against), level, size_hw)
    if within is not None:
        mask = intersection([mask, within])
    numbers, count = mask.components()
    boxes, areas = mask.measure(numbers, count)
    kept = np.flatnonzero(areas >= max(1, min_area_px))
    if not kept.size:
        return LabelMask(None, (), 1.0 - peak, peak, np.empty(0, dtype=np.int32), reached)
    # Largest first, then from left to right.
    kept = kept[np.lexsort((*boxes[kept].T[::-1], -areas[kept]))]
    renumbered = np.full(count, -1, dtype=np.int32)
    renumbered[kept] = np.arange(kept.size)
    numbers = renumbered[numbers]
    means = mean_inside(best, mask, numbers, kept.size)
    most_certain = peaks_inside(largest, mask, numbers, kept.size).tolist() if peaks else [None] * kept.size
    parts = tuple(
        Part((x0, y0, x1, y1), area, _unit(mean), point and (point[0], point[1]))
        for (x0, y0, x1, y1), area, mean, point in zip(
            boxes[kept].tolist(), areas[kept].tolist(), means.tolist(), most_certain, strict=True
        )
    )
    score = _unit(float(np.average(means, weights=areas[kept])))
    found = LabelMask(mask.select(numbers >= 0), parts, score, peak, numbers[numbers >= 0], reached)
    return found.only([index for index, part in enumerate(parts) if part.score >= min_part_score])


def _logit(probability: float) -> float:
    """The logit from which the sigmoid is at least `probability`; nothing is below 0."""
    if probability <= 0.0:
        return -math.inf
    probability = min(probability, _CERTAIN)
    return math.log(probability / (1.0 - probability))


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

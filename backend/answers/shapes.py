"""Controls that draw on the image: their labels' masks -> regions.

A brush and a bitmask draw a label as one region. The others draw each connected part of it: at most `top_k` of a label,
the surest ones. `max_regions` bounds both kinds, over all labels of the control.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from backend.answers.masks import MaskQuestion
from backend.answers.view import ImageView
from backend.decoding import LabelMask
from backend.label_studio.config import ControlPlan, LabelPrompt
from backend.label_studio.results import Region, shape_regions
from backend.label_studio.values import (
    Value,
    bitmask_value,
    brush_value,
    ellipse_value,
    key_point_value,
    polygon_value,
    rectangle_value,
    rotated_rectangle_value,
)
from vlm_core.runs import RunMask

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class DrawnShape:
    """One region.

    Attributes:
        control: that drew it.
        label: what it is.
        box_xyxy_px: of its pixels, px of the displayed image, the end exclusive.
        phrases: those of the label that found something on the image.
        score: 0..1, 4 decimals.
        results: one, or two of a bare shape, the shape first.
    """

    control: ControlPlan
    label: LabelPrompt
    box_xyxy_px: Box
    phrases: tuple[str, ...]
    score: float
    results: Sequence[Region]


@dataclass(frozen=True)
class _Candidate:
    label: LabelPrompt
    phrases: tuple[str, ...]
    score: float
    box_xyxy_px: Box
    draw: Callable[[], Value]


def questions_of(control: ControlPlan, view: ImageView) -> list[MaskQuestion]:
    """What a control that draws asks, label by label."""
    return [MaskQuestion.of(label, control, view) for label in control.labels]


def draw_shapes(control: ControlPlan, found: Sequence[LabelMask], view: ImageView) -> list[DrawnShape]:
    """Draw what was found for each label of a control.

    Args:
        control: that draws.
        found: for each of its labels, in order; with peaks for key points.
        view: of the image.

    Returns:
        In the order of the labels, the surest part of a label first.

    Raises:
        TaskError: the time is up.
    """
    candidates: list[_Candidate] = []
    for label, mask in zip(control.labels, found, strict=True):
        candidates += _candidates(control, label, mask, view.size_hw)
    if control.max_regions is not None:
        surest = sorted(range(len(candidates)), key=lambda index: -candidates[index].score)
        candidates = [candidates[index] for index in sorted(surest[: control.max_regions])]
    drawn = []
    for one in candidates:
        view.request.check_time()  # hundreds of outlines take their time
        score = round(one.score, 4)
        results = shape_regions(control, one.draw(), one.label.label, score, view.size_hw)
        drawn.append(DrawnShape(control, one.label, one.box_xyxy_px, one.phrases, score, results))
    return drawn


def _candidates(
    control: ControlPlan, label: LabelPrompt, found: LabelMask, size_hw: tuple[int, int]
) -> Iterator[_Candidate]:
    """The regions that a label may have."""
    mask, shape = found.mask, control.shape
    if mask is None:
        return
    phrases = tuple(phrase for phrase, reached in zip(label.prompts, found.reached, strict=True) if reached)
    if shape in ("brush", "bitmask"):
        box = mask.box_xyxy_px
        assert box is not None  # it is not empty
        whole = brush_value if shape == "brush" else bitmask_value
        yield _Candidate(label, phrases, found.score, box, partial(whole, mask))
        return
    surest = sorted(range(len(found.parts)), key=lambda index: -found.parts[index].score)[: control.top_k]
    pieces = found.pieces() if shape in ("polygon", "ellipse") or control.rotated else []
    for index in surest:
        part = found.parts[index]
        box = part.box_xyxy_px
        draw: Callable[[], Value]
        if shape == "keypoint":
            assert part.peak_xy_px is not None  # it was asked for
            draw = partial(key_point_value, part.peak_xy_px, size_hw)
        elif shape == "rectangle" and not control.rotated:
            draw = partial(rectangle_value, box, size_hw)
        else:
            draw = partial(_OF_A_PART[shape or ""], pieces[index])
        yield _Candidate(label, phrases, part.score, box, draw)


_OF_A_PART: dict[str, Callable[[RunMask], Value]] = {
    "polygon": polygon_value,
    "ellipse": ellipse_value,
    "rectangle": rotated_rectangle_value,
}

"""Predictions as Label Studio's results.

A result is a plain dict, complete and ready for JSON: `id, from_name, to_name, type, value, score, origin`, and
for regions on the image `original_width, original_height, image_rotation`. Coordinates are percent of the
displayed image (EXIF orientation applied). What comes back from annotators is read in
`backend.label_studio.annotation_masks`.

A shape with its labels (`PolygonLabels`) is one result. A bare shape (`Polygon`) beside a `Labels` tag is two with one
id, the shape and its labels, as the editor writes them; so is what is answered for a region, with the shape's id.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from backend.label_studio.annotation_masks import AnnotationMasks, UnreadRegion, masks_from_results
from backend.label_studio.brush import Mask
from backend.label_studio.config import ControlPlan
from backend.label_studio.values import Value, brush_value, rectangle_value
from vlm_core.runs import RunMask

__all__ = [
    "AnnotationMasks",
    "Region",
    "UnreadRegion",
    "answer_region",
    "brush_region",
    "choices_region",
    "masks_from_results",
    "rectangle_region",
    "shape_regions",
]

Region = dict[str, Any]

_OF_THE_SHAPE = ("id", "original_width", "original_height", "image_rotation")


def shape_regions(
    control: ControlPlan, value: Value, label: str, score: float, size_hw: tuple[int, int]
) -> list[Region]:
    """One shape with its label.

    Args:
        control: that draws such shapes.
        value: of the shape, as `backend.label_studio.values` makes it.
        label: one of the control's labels, as it goes into results.
        score: 0..1.
        size_hw: height and width of the displayed image, px.

    Returns:
        One result; two of a bare shape, the shape first.

    Raises:
        ValueError: a score that is not within 0..1, or a label that the control has not.
    """
    if all(item.label != label for item in control.labels):
        raise ValueError(f"the control {control.from_name!r} has no label {label!r}")
    placed = {
        "id": _new_id(),
        "original_width": int(size_hw[1]),
        "original_height": int(size_hw[0]),
        "image_rotation": 0,
    }
    if control.labels_name is None:
        return [_result(control, control.kind, {**value, control.kind: [label]}, score, placed)]
    labelled = _result(control, "labels", {**value, "labels": [label]}, score, placed)
    return [_result(control, control.kind, dict(value), score, placed), labelled | {"from_name": control.labels_name}]


def answer_region(control: ControlPlan, value: Value, score: float, shape: Mapping[str, Any] | None = None) -> Region:
    """The answer of a control that draws nothing.

    Args:
        control: `choices`, `taxonomy`, `textarea` or `ranker`.
        value: such as `{"choices": ["a"]}`.
        score: 0..1.
        shape: the result of the shape that is answered for, whose id, size and geometry it takes, as the editor's own
            does; None: the whole image, without any size, likewise.

    Raises:
        ValueError: a score that is not within 0..1.
    """
    if shape is None:
        return _result(control, control.kind, value, score, {"id": _new_id()})
    geometry = {name: item for name, item in shape["value"].items() if name != shape["type"]}
    return _result(control, control.kind, {**geometry, **value}, score, {name: shape[name] for name in _OF_THE_SHAPE})


def brush_region(mask: Mask | RunMask, control: ControlPlan, label: str, score: float) -> Region:
    """One mask as a `brushlabels` region.

    Args:
        mask: bool, (H, W) of the displayed image, or its runs; at least one pixel set: an empty mask is no region.
        control: a `brushlabels` control.
        label: one of the control's labels, as it goes into results.
        score: 0..1.

    Returns:
        The region; its code decodes to exactly this mask, alpha 0 or 255.

    Raises:
        ValueError: an empty mask, a score that is not within 0..1, or a label that the control has not.
    """
    _refuse_other_kind(control, "brushlabels")
    runs = mask if isinstance(mask, RunMask) else RunMask.from_array(mask)
    (region,) = shape_regions(control, brush_value(runs), label, score, runs.size_hw)
    return region


def rectangle_region(
    box_xyxy_px: tuple[float, float, float, float],
    size_hw: tuple[int, int],
    control: ControlPlan,
    label: str,
    score: float,
) -> Region:
    """One box as a `rectanglelabels` region.

    Args:
        box_xyxy_px: left, top, right, bottom edges in pixels; right and bottom are the far edges, so that a
            single pixel at the origin is (0, 0, 1, 1).
        size_hw: height and width of the displayed image, pixels.
        control: a `rectanglelabels` control.
        label: one of the control's labels.
        score: 0..1.

    Returns:
        The region, in percent of the image.

    Raises:
        ValueError: a box without area or beyond the image; a wrong score or label.
    """
    _refuse_other_kind(control, "rectanglelabels")
    (region,) = shape_regions(control, rectangle_value(box_xyxy_px, size_hw), label, score, size_hw)
    return region


def choices_region(control: ControlPlan, labels: Sequence[str], score: float) -> Region:
    """The answer of one `choices` control for the whole image.

    Args:
        control: a `choices` control.
        labels: one or more of its labels, without repeats; one where the control takes one answer.
        score: 0..1.

    Returns:
        The region. It belongs to the whole image and carries no size, like the editor's own.

    Raises:
        ValueError: no label, several where one is allowed, a repeat, a label that the control has not, or a
            wrong score.
    """
    _refuse_other_kind(control, "choices")
    unknown = [label for label in labels if all(item.label != label for item in control.labels)]
    if unknown:
        raise ValueError(f"the control {control.from_name!r} has no label {unknown[0]!r}")
    if not labels or len(set(labels)) != len(labels) or (len(labels) > 1 and not control.multiple):
        raise ValueError(f"{list(labels)} is no answer for the control {control.from_name!r}")
    return answer_region(control, {"choices": list(labels)}, score)


def _refuse_other_kind(control: ControlPlan, kind: str) -> None:
    if control.kind != kind:
        raise ValueError(f"the control {control.from_name!r} takes {control.kind}, not {kind}")


def _new_id() -> str:
    return uuid.uuid4().hex[:10]


def _result(control: ControlPlan, kind: str, value: Value, score: float, placed: Mapping[str, Any]) -> Region:
    score = float(score)
    if not (math.isfinite(score) and 0.0 <= score <= 1.0):
        # Label Studio refuses the whole batch over one score that is out of range.
        raise ValueError(f"a score is a number from 0 to 1, not {score}")
    return {
        **placed,
        "from_name": control.from_name,
        "to_name": control.to_name,
        "type": kind,
        "value": value,
        "score": score,
        "origin": "prediction",
    }

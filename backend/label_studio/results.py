"""Predictions as Label Studio's result regions.

A region is a plain dict, complete and ready for JSON: `id, from_name, to_name, type, value, score, origin`, and
for regions on the image `original_width, original_height, image_rotation`. Coordinates are percent of the
displayed image (EXIF orientation applied). What comes back from annotators is read in
`backend.label_studio.annotation_masks`.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np

from backend.label_studio.annotation_masks import AnnotationMasks, UnreadRegion, masks_from_results
from backend.label_studio.brush import Mask, encode_runs
from backend.label_studio.config import ControlPlan
from vlm_core.runs import RunMask

__all__ = [
    "AnnotationMasks",
    "Region",
    "UnreadRegion",
    "brush_region",
    "choices_region",
    "masks_from_results",
    "rectangle_region",
    "rectangle_regions",
]

Region = dict[str, Any]


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
    runs = mask if isinstance(mask, RunMask) else RunMask.from_array(mask)
    if not len(runs):
        raise ValueError(f'the mask for "{label}" is empty: leave the region out')
    value = {"format": "rle", "rle": encode_runs(runs), "brushlabels": [_own_label(control, label)]}
    return _region(control, "brushlabels", value, score, size_hw=runs.size_hw)


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
    height, width = size_hw
    left, top, right, bottom = (float(edge) for edge in box_xyxy_px)
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(f"box {box_xyxy_px} has no area or leaves the image of {width} x {height} px")
    value = {
        "x": 100.0 * left / width,
        "y": 100.0 * top / height,
        "width": 100.0 * (right - left) / width,
        "height": 100.0 * (bottom - top) / height,
        "rotation": 0,
        "rectanglelabels": [_own_label(control, label)],
    }
    return _region(control, "rectanglelabels", value, score, size_hw=size_hw)


def rectangle_regions(masks: Sequence[Mask], control: ControlPlan, label: str, scores: Sequence[float]) -> list[Region]:
    """The box around each mask, one region per mask.

    Args:
        masks: bool, (H, W) each, usually the connected parts of one label's mask; none empty.
        control: a `rectanglelabels` control.
        label: one of the control's labels.
        scores: 0..1, one per mask.

    Returns:
        As many regions as masks, in order.

    Raises:
        ValueError: an empty mask, another number of scores, a wrong score or label.
    """
    regions = []
    for mask, score in zip(masks, scores, strict=True):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if rows.size == 0:
            raise ValueError(f'a mask for "{label}" is empty: leave the region out')
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        regions.append(rectangle_region(box, (mask.shape[0], mask.shape[1]), control, label, score))
    return regions


def choices_region(control: ControlPlan, labels: Sequence[str], score: float) -> Region:
    """The answer of one `choices` control.

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
    chosen = [_own_label(control, label) for label in labels]
    if not chosen or len(set(chosen)) != len(chosen) or (len(chosen) > 1 and not control.multiple):
        raise ValueError(f"{chosen} is no answer for the control {control.from_name!r}")
    return _region(control, "choices", {"choices": chosen}, score, size_hw=None)


def _own_label(control: ControlPlan, label: str) -> str:
    if all(item.label != label for item in control.labels):
        raise ValueError(f"the control {control.from_name!r} has no label {label!r}")
    return label


def _region(control: ControlPlan, kind: str, value: Region, score: float, *, size_hw: tuple[int, int] | None) -> Region:
    if control.kind != kind:
        raise ValueError(f"the control {control.from_name!r} takes {control.kind}, not {kind}")
    score = float(score)
    if not (math.isfinite(score) and 0.0 <= score <= 1.0):
        # Label Studio refuses the whole batch over one score that is out of range.
        raise ValueError(f"a score is a number from 0 to 1, not {score}")
    region: Region = {
        "id": uuid.uuid4().hex[:10],
        "from_name": control.from_name,
        "to_name": control.to_name,
        "type": kind,
        "value": value,
        "score": score,
        "origin": "prediction",
    }
    if size_hw is not None:
        region["original_width"] = int(size_hw[1])
        region["original_height"] = int(size_hw[0])
        region["image_rotation"] = 0
    return region

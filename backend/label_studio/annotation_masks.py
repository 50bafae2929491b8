"""What annotators drew -> masks per label, for training and for comparison.

Reads results as Label Studio stores them: brush strokes and masks, bitmasks, rectangles (rotated ones too),
ellipses, polygons, and choices. A shape drawn with a bare tag ("polygon") and its label are two results with one id
(`with_labels`). A pixel is inside a shape when its centre is. Nothing here is fatal: a region that cannot be read is
listed with its reason, and the others count. Answers that are no region and no choice for the image (taxonomies,
texts, choices for single regions ...) are passed over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from backend.label_studio.brush import BrushError, Mask, decode_mask
from backend.label_studio.config import PredictionPlan
from backend.label_studio.shapes import (
    MAX_PERCENT,
    ShapeError,
    bitmask_mask,
    ellipse_mask,
    polygon_mask,
    rectangle_mask,
)

MAX_MASK_PIXELS = 400_000_000


BARE_SHAPES = frozenset({"brush", "bitmask", "polygon", "rectangle", "ellipse", "keypoint", "vector", "magicwand"})
"""Types of regions whose labels come from another result."""
_TOLD_BY = {
    "rle": "brush",
    "imageDataURL": "bitmask",
    "points": "polygon",
    "radiusX": "ellipse",
    "height": "rectangle",
}
"""The field of a value that only one shape has."""
_ANSWERS = frozenset({"taxonomy", "textarea", "ranker", "rating", "number", "datetime", "pairwise"})


class _UnreadableError(ShapeError):
    """Why one region is left out."""


@dataclass(frozen=True)
class UnreadRegion:
    """A region that was left out.

    Attributes:
        id: the region's id, empty where it has none.
        type: its type, empty where it has none.
        reason: why, for the project owner.
    """

    id: str
    type: str
    reason: str


@dataclass(frozen=True)
class AnnotationMasks:
    """One annotation of one image, as masks.

    Attributes:
        size_hw: height and width of the displayed image, pixels; None when no region stated it.
        masks: per label (as it goes into results) the union of its regions, bool (H, W). A label that the
            annotator gave no region is absent: it marks nothing in this image.
        sources: per label the region types that went into its mask, e.g. {"rectanglelabels"}: a filled box
            is a rougher truth than brush strokes.
        choices: per `Choices` control the chosen labels.
        unread: the regions that were left out.
    """

    size_hw: tuple[int, int] | None = None
    masks: Mapping[str, Mask] = field(default_factory=dict)
    sources: Mapping[str, frozenset[str]] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unread: tuple[UnreadRegion, ...] = ()


def with_labels(result: object) -> list[Any]:
    """A result list in which shapes drawn with bare tags carry their labels themselves.

    The editor stores such a region as two results of one id, its shape, and its shape again with the labels that the
    `Labels` tag gave it. The labels of all results of type "labels" go into the value of the shape, under "labels",
    and those results are left out; a shape with labels of its own stays as it is. Nothing is changed in place.

    Args:
        result: the list as Label Studio stores it; what is no list counts as empty.
    """
    regions = list(result) if isinstance(result, Sequence) and not isinstance(result, str) else []
    shapes = {_id(region) for region in regions if _is_bare(region)}
    given: dict[str, list[str]] = {}
    for region in regions:
        if isinstance(region, Mapping) and region.get("type") == "labels" and isinstance(region.get("value"), Mapping):
            given.setdefault(_id(region), []).extend(_texts(region["value"].get("labels")))
    joined: list[Any] = []
    for region in regions:
        if _is_bare(region) and not region["value"].get("labels") and given.get(_id(region)):
            labels = list(dict.fromkeys(given[_id(region)]))
            joined.append({**region, "value": {**region["value"], "labels": labels}})
        elif not (isinstance(region, Mapping) and region.get("type") == "labels" and _id(region) in shapes):
            joined.append(region)
    return joined


def is_for_region(choices: Mapping[str, Any]) -> bool:
    """Whether a result of type "choices" is an answer for one region, whose shape it then repeats in its value."""
    value = choices.get("value")
    return isinstance(value, Mapping) and any(key != "choices" for key in value)


def masks_from_results(
    result: Sequence[Mapping[str, Any]],
    plan: PredictionPlan,
    *,
    to_name: str | None = None,
    size_hw: tuple[int, int] | None = None,
) -> AnnotationMasks:
    """Read the `result` of an annotation or prediction.

    Regions count for a label of the plan whichever control they were drawn with, as long as it labels the same
    image: polygons of a second control with the same label names are as good a truth as brush strokes.

    Args:
        result: the list as Label Studio stores it.
        plan: the project's labels; names are matched by alias, then by value.
        to_name: the image to read. Needed only where the plan labels several.
        size_hw: size of the displayed image, for regions that do not state it; regions that state another
            are left out.

    Returns:
        Masks per label, choices per control, and what was left out.

    Raises:
        ValueError: the plan labels several images and `to_name` names none of them.
    """
    image_names = list(dict.fromkeys(control.to_name for control in plan.controls if control.kind != "ranker"))
    if to_name is None and len(image_names) > 1:
        raise ValueError(f"the labelling config has several images; name one of {image_names}")
    to_name = to_name if to_name is not None else (image_names[0] if image_names else "")
    reader = _ResultReader(plan, to_name, size_hw)
    for region in with_labels(result):
        reader.read(region)
    return reader.finish()


class _ResultReader:
    """Collects the regions of one image."""

    def __init__(self, plan: PredictionPlan, to_name: str, size_hw: tuple[int, int] | None) -> None:
        self._controls = [control for control in plan.controls if control.to_name == to_name]
        self._shapes = [control for control in self._controls if control.shape is not None]
        self._to_name = to_name
        self._size_hw = size_hw
        self._masks: dict[str, Mask] = {}
        self._sources: dict[str, set[str]] = {}
        self._choices: dict[str, tuple[str, ...]] = {}
        self._unread: list[UnreadRegion] = []

    def read(self, region: object) -> None:
        if not isinstance(region, Mapping):
            self._unread.append(UnreadRegion("", "", "not an object"))
            return
        kind = str(region.get("type") or "").lower()
        if kind in _ANSWERS or (kind == "choices" and is_for_region(region)):
            return
        try:
            if region.get("to_name") != self._to_name:
                raise _UnreadableError(f"it belongs to {region.get('to_name')!r}")
            if kind == "choices":
                self._read_choices(region)
            else:
                self._read_shape(region, kind)
        except (BrushError, ShapeError, OverflowError) as error:  # a number of 400 digits is JSON too
            self._unread.append(UnreadRegion(str(region.get("id") or ""), kind, str(error)))

    def finish(self) -> AnnotationMasks:
        return AnnotationMasks(
            size_hw=self._size_hw,
            masks=self._masks,
            sources={label: frozenset(kinds) for label, kinds in self._sources.items()},
            choices=self._choices,
            unread=tuple(self._unread),
        )

    def _read_choices(self, region: Mapping[str, Any]) -> None:
        name = str(region.get("from_name") or "")
        control = next((item for item in self._controls if item.from_name == name and item.kind == "choices"), None)
        if control is None:
            raise _UnreadableError(f"the control {name!r} is not predicted")
        given = _texts(_value(region).get("choices"))
        labels = [control.label_named(text) for text in given]
        unknown = [text for text, label in zip(given, labels, strict=True) if label is None]
        if unknown or not given:
            raise _UnreadableError(f"the control {name!r} has no choice {unknown}" if unknown else "it holds no choice")
        self._choices[name] = tuple(label.label for label in labels if label is not None)

    def _read_shape(self, region: Mapping[str, Any], kind: str) -> None:
        value = _value(region)
        labels = self._labels_of(str(region.get("from_name") or ""), value, kind)
        if region.get("image_rotation"):
            raise _UnreadableError(f"it was drawn on the image rotated by {region['image_rotation']} degrees")
        size_hw = self._size_of(region)
        kind = _drawn_as(kind, value)
        mask = region_mask(kind, value, size_hw)
        self._size_hw = size_hw
        for label in labels:
            before = self._masks.get(label)
            self._masks[label] = mask if before is None else before | mask
            self._sources.setdefault(label, set()).add(kind)

    def _labels_of(self, from_name: str, value: Mapping[str, Any], kind: str) -> list[str]:
        given = _texts(value.get(kind)) or _texts(value.get("labels"))
        if not given:
            raise _UnreadableError("it has no label")
        # The control it was drawn with first: two controls may use one value with different aliases.
        shapes = sorted(self._shapes, key=lambda control: from_name not in (control.from_name, control.labels_name))
        found = [
            next((label for label in (control.label_named(text) for control in shapes) if label is not None), None)
            for text in given
        ]
        labels = [label.label for label in found if label is not None]
        if not labels:
            raise _UnreadableError(f"the labelling config has no label {given[0]!r} to learn")
        return labels

    def _size_of(self, region: Mapping[str, Any]) -> tuple[int, int]:
        stated = (region.get("original_height"), region.get("original_width"))
        if stated == (None, None):
            if self._size_hw is None:
                raise _UnreadableError("it does not state the image's size")
            return self._size_hw
        if not all(isinstance(side, (int, float)) and side >= 1 and side == int(side) for side in stated):
            raise _UnreadableError(f"it states a size of {stated[1]} x {stated[0]}")
        size_hw = (int(stated[0] or 0), int(stated[1] or 0))
        if self._size_hw is not None and size_hw != self._size_hw:
            raise _UnreadableError(
                f"it states a size of {size_hw[1]} x {size_hw[0]}, "
                f"but the image has {self._size_hw[1]} x {self._size_hw[0]}"
            )
        if size_hw[0] * size_hw[1] > MAX_MASK_PIXELS:
            raise _UnreadableError(f"it states a size of {size_hw[1]} x {size_hw[0]}, too large to be an image")
        return size_hw


def _id(region: object) -> str:
    return str(region.get("id") or "") if isinstance(region, Mapping) else ""


def _is_bare(region: object) -> bool:
    """Whether a result is a shape drawn with a tag that gives no label."""
    return (
        isinstance(region, Mapping)
        and bool(_id(region))
        and str(region.get("type")).lower() in BARE_SHAPES
        and isinstance(region.get("value"), Mapping)
    )


def _value(region: Mapping[str, Any]) -> Mapping[str, Any]:
    value = region.get("value")
    if not isinstance(value, Mapping):
        raise _UnreadableError("it has no value")
    return value


def _texts(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _drawn_as(kind: str, value: Mapping[str, Any]) -> str:
    """The type that fits what a value holds.

    Accepting an answer of the model, the editor adds the label that is selected to it, also that of another tool: a
    `rectanglelabels` with the run-length code of the brush region that it belongs to.
    """
    held = [shape for field, shape in _TOLD_BY.items() if field in value]
    own = kind.removesuffix("labels")
    return kind if not held or own in held else kind.replace(own, held[0], 1) if own else kind


def region_mask(kind: str, value: Mapping[str, Any], size_hw: tuple[int, int]) -> Mask:
    """Draw one region.

    Args:
        kind: its `type`: a shape's name, with or without "labels".
        value: its `value`.
        size_hw: of the displayed image, px.

    Returns:
        bool, shape `size_hw`, at least one pixel set.

    Raises:
        ShapeError, BrushError: it has no area, or a value that cannot be read.
    """
    shape = kind.removesuffix("labels")
    if shape == "brush" or (not shape and "rle" in value):
        if value.get("format") not in (None, "rle"):
            raise _UnreadableError(f"its format is {value.get('format')!r}, not rle")
        mask = decode_mask(value.get("rle") or [], size_hw)
    elif shape == "bitmask":
        mask = bitmask_mask(value.get("imageDataURL"), size_hw)
    elif shape == "rectangle":
        mask = rectangle_mask(
            _number(value, "x"),
            _number(value, "y"),
            _number(value, "width"),
            _number(value, "height"),
            _number(value, "rotation", 0.0),
            size_hw,
        )
    elif shape == "ellipse":
        mask = ellipse_mask(
            _number(value, "x"),
            _number(value, "y"),
            _number(value, "radiusX"),
            _number(value, "radiusY"),
            _number(value, "rotation", 0.0),
            size_hw,
        )
    elif shape == "polygon":
        if value.get("closed") is False:
            raise _UnreadableError("its polygon is not closed")
        mask = polygon_mask(value.get("points"), size_hw)
    else:
        raise _UnreadableError(f"a region of type {kind!r} has no area" if kind else "it has no type")
    if not np.any(mask):
        raise _UnreadableError("it covers no pixel")
    return mask


def _number(value: Mapping[str, Any], key: str, default: float | None = None) -> float:
    number = value.get(key, default)
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
        raise _UnreadableError(f"its {key} is {number!r}, not a number")
    if abs(number) > MAX_PERCENT:
        raise _UnreadableError(f"its {key} is {number} %, far outside the image")
    return float(number)

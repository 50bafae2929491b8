"""Which annotations of a task count, and what several annotators agree on.

- An annotation that is not built as Label Studio builds them is unreadable; it never stops the others.
- Skipped annotations (`was_cancelled`) and drafts do not count.
- Of one annotator the latest annotation counts. If one is marked as ground truth, only such ones count.
- Several annotators vote per pixel: a pixel belongs to a label if at least half of them marked it.
- Where a label has strokes or outlines, its boxes in the same image are ignored: they are the rougher truth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backend.label_studio.annotation_masks import masks_from_results, with_labels
from backend.label_studio.brush import Mask
from backend.label_studio.config import PredictionPlan

Json = dict[str, Any]

BOXES = frozenset({"rectanglelabels", "rectangle", "ellipselabels", "ellipse"})
"""Types of regions that say roughly where something is."""
AREAS = BOXES | {"brushlabels", "brush", "bitmasklabels", "bitmask", "polygonlabels", "polygon"}
"""Types of regions that cover pixels."""
NOTHING_DRAWN = "it covers no pixel"
"""What `masks_from_results` says of a region that was erased to nothing: no loss."""


def changed_at(annotation: Json) -> str:
    """When an annotation was changed last, as Label Studio writes times; "" where it says nothing."""
    return str(annotation.get("updated_at") or annotation.get("created_at") or "")


def well_formed(task: Mapping[str, Any], *, numbered: bool = True) -> list[Json]:
    """The annotations of a task that are objects, `numbered`: with a number as their id."""
    given = task.get("annotations")
    objects = [item for item in given if isinstance(item, dict)] if isinstance(given, list) else []
    return [item for item in objects if is_id(item.get("id")) or not numbered]


def is_id(value: object) -> bool:
    """Whether a value can be the id of a task or an annotation."""
    return isinstance(value, int) and not isinstance(value, bool)


def annotations_that_count(task: Json, counts: Counter[str], *, numbered: bool = True) -> list[Json]:
    """The annotations of a task that count, each with a list as its `result`.

    Args:
        task: with its `annotations`.
        counts: takes `annotations`, and what was left out: `skipped`, `superseded`, `unreadable`.
        numbered: those without an id are unreadable; files made by hand need none.
    """
    latest: dict[object, Json] = {}
    given = task.get("annotations") or []
    annotations = well_formed(task, numbered=numbered)
    unreadable = len(given) - len(annotations) if isinstance(given, list) else 1
    if unreadable:
        counts["annotations"] += unreadable
        counts["unreadable"] += unreadable
    for annotation in sorted(annotations, key=changed_at):
        counts["annotations"] += 1
        if annotation.get("was_cancelled"):
            counts["skipped"] += 1
            continue
        if not isinstance(annotation.get("result"), list):
            counts["unreadable"] += 1
            continue
        author = annotation.get("completed_by")
        author = str(author.get("id") if isinstance(author, Mapping) else author)
        if author in latest:
            counts["superseded"] += 1
        latest[author] = annotation
    found = list(latest.values())
    truth = [annotation for annotation in found if annotation.get("ground_truth")]
    if truth:
        counts["superseded"] += len(found) - len(truth)
        found = truth
    return found


@dataclass(frozen=True)
class Drawing:
    """What one annotation or prediction has drawn on an image.

    Attributes:
        masks: per label bool (H, W); boxes only where the label has no finer region.
        pointed: labels that it gives to points, which say where something is but not how far it reaches.
    """

    masks: Mapping[str, Mask]
    pointed: frozenset[str]


def read_drawing(
    result: Sequence[Any],
    plan: PredictionPlan,
    to_name: str,
    labels: Collection[str],
    size_hw: tuple[int, int] | None = None,
) -> Drawing | None:
    """Read the regions of one image.

    Args:
        result: of an annotation or a prediction, as Label Studio stores it.
        plan: the project's labels.
        to_name: the image.
        labels: those that count, as results name them.
        size_hw: of the displayed image, px; None: as the regions state it.

    Returns:
        None where an area of one of the labels cannot be read, or a region is not built as one.
    """
    boxes: list[Json] = []
    finer: list[Json] = []
    pointed: set[str] = set()
    for region in with_labels(result):
        if _lost_its_labels(region, to_name):
            return None
        names = _labels_of(region, plan, to_name) & set(labels)
        if not names:
            continue
        kind = str(region.get("type"))
        if kind in AREAS:
            (boxes if kind in BOXES else finer).append(region)
        else:
            pointed |= names
    masks: dict[str, Mask] = {}
    for regions in (finer, boxes):
        read = masks_from_results(regions, plan, to_name=to_name, size_hw=size_hw)
        if any(region.reason != NOTHING_DRAWN for region in read.unread):
            return None
        masks = {**read.masks, **masks}
    return Drawing({label: mask for label, mask in masks.items() if label in labels}, frozenset(pointed))


def _lost_its_labels(region: object, to_name: str) -> bool:
    """Whether a region may be of one of the labels, and does not say so any more as it should."""
    if not isinstance(region, Mapping):
        return False  # nothing says that it was one
    kind, value, image = region.get("type"), region.get("value"), region.get("to_name")
    if isinstance(kind, str) and kind not in AREAS:
        return False
    if image != to_name:
        return not isinstance(image, str)
    if not isinstance(kind, str) or not isinstance(value, Mapping):
        return True
    given = value.get(kind)
    return given is not None and not _is_texts(given)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _labels_of(region: object, plan: PredictionPlan, to_name: str) -> set[str]:
    """The labels of the plan that a region carries, as results name them."""
    value = region.get("value") if isinstance(region, Mapping) and region.get("to_name") == to_name else None
    if not isinstance(region, Mapping) or not isinstance(value, Mapping):
        return set()
    given = value.get(str(region.get("type"))) or value.get("labels")
    controls = [item for item in plan.controls if item.to_name == to_name and item.shape is not None]
    found = (
        control.label_named(str(name)) for name in (given if isinstance(given, list) else []) for control in controls
    )
    return {label.label for label in found if label is not None}


@dataclass(frozen=True)
class Vote:
    """What one annotation says of an image: the masks it drew, and the labels that it speaks about."""

    masks: Mapping[str, Mask]
    about: frozenset[str]


def agreed(votes: Sequence[Vote]) -> Iterator[tuple[str, Mask]]:
    """Per label the pixels that at least half of those marked who could; labels without any are left out."""
    for label in dict.fromkeys(label for vote in votes for label in vote.masks):
        count = np.sum([vote.masks[label] for vote in votes if label in vote.masks], axis=0, dtype=np.int32)
        mask: Mask = np.greater_equal(2 * count, sum(label in vote.about for vote in votes))
        if mask.any():
            yield label, mask

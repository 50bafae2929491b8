"""Which annotations of a task count, and what several annotators agree on.

- Skipped annotations (`was_cancelled`) and drafts do not count.
- Of one annotator the latest annotation counts. If one is marked as ground truth, only such ones count.
- Several annotators vote per pixel: a pixel belongs to a label if at least half of them marked it.
- Where a label has strokes or outlines, its boxes in the same image are ignored: they are the rougher truth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backend.label_studio.brush import Mask

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


def annotations_that_count(task: Json, counts: Counter[str]) -> list[Json]:
    """The annotations of a task that count, each with a list as its `result`.

    Args:
        task: with its `annotations`.
        counts: takes `annotations`, and what was left out: `skipped`, `superseded`, `unreadable`.
    """
    latest: dict[object, Json] = {}
    for annotation in sorted(task.get("annotations") or [], key=changed_at):
        counts["annotations"] += 1
        if annotation.get("was_cancelled"):
            counts["skipped"] += 1
            continue
        if not isinstance(annotation.get("result"), list):
            counts["unreadable"] += 1
            continue
        author = annotation.get("completed_by")
        author = author.get("id") if isinstance(author, Mapping) else author
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

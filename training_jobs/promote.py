"""The gate: whether a new version is better than the one that serves.

A new version is published only if all of this holds on images that neither version has learned from, each scored
once by both:

1. **Better on the whole.** An image's gain is the mean, over the labels that are there, of new minus old IoU. The
   mean gain over images is at least 0.01, and the lower end of its one-sided 90 % interval, from a paired bootstrap
   over images, is above zero: a gain that rests on one lucky image does not count, nor one that nobody would see.
2. **No label pays for it.** No label with at least five images loses more than 0.05 mean IoU. At few corrections
   hard labels fall while the mean hides it (arXiv 2604.08956).
3. **Nothing is invented.** Labels that are not there are not marked noticeably more often: the rise of their share
   with a mark (more than 1 % of the image) is at most 0.05, or not surely more than that: the lower end of its
   one-sided 90 % interval, from the same bootstrap, is at most 0.05. Among some thirty cases two marks more are
   chance. Not "never more often": a version that never marks anything is perfect at this, and could then never be
   replaced, least of all for a label that is new to it.

Nothing may be chosen by looking at these numbers; whoever needs to choose splits the training part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MIN_IMAGES = 8
"""Images from which a comparison decides anything."""

MIN_IMAGES_PER_LABEL = 5
MIN_GAIN = 0.01
"""Mean IoU below which a new version is not worth it. Every training is another chance to be lucky."""

MAX_LABEL_LOSS = 0.05
MAX_ABSENT_RISE = 0.05
CONFIDENCE = 0.90
RESAMPLES = 4000


@dataclass(frozen=True)
class Score:
    """One label of one image, scored by both versions.

    Attributes:
        image: content hash.
        label: as in results.
        present: whether the annotator marked it.
        old, new: IoU with the annotator's mask, 0..1, where present; else 1.0 when at most 1 % of the image was
            marked and 0.0 when more was.
    """

    image: str
    label: str
    present: bool
    old: float
    new: float


@dataclass(frozen=True)
class LabelResult:
    """One label over all images; None where no image can tell."""

    label: str
    images: int
    old_iou: float | None
    new_iou: float | None
    absent_images: int
    old_absent_marked: float | None
    new_absent_marked: float | None


@dataclass(frozen=True)
class Verdict:
    """What the gate says.

    Attributes:
        better: publish the new version.
        reason: one sentence for people.
        images: how many images the comparison rests on.
        gain: mean gain over images; `gain_low` the lower end of its interval. None without any image.
        labels: per label, by name.
    """

    better: bool
    reason: str
    images: int
    gain: float | None
    gain_low: float | None
    labels: tuple[LabelResult, ...]

    def to_json(self) -> dict[str, Any]:
        """For `metrics.json`."""
        return {
            "better": self.better,
            "gain": self.gain,
            "gain_low": self.gain_low,
            "images": self.images,
            "labels": {
                item.label: {
                    "absent_images": item.absent_images,
                    "absent_marked": {"new": item.new_absent_marked, "old": item.old_absent_marked},
                    "images": item.images,
                    "iou": {"new": item.new_iou, "old": item.old_iou},
                }
                for item in self.labels
            },
            "reason": self.reason,
        }


def judge(scores: Sequence[Score], *, seed: int = 0) -> Verdict:
    """Compare two versions on their scores.

    Args:
        scores: of images that neither version has learned from; an image and label at most once.
        seed: of the bootstrap.

    Raises:
        ValueError: an image and label twice, or a score outside 0..1.
    """
    _check(scores)
    labels = label_results(scores)
    gains = _gains(scores)
    images = len({score.image for score in scores})
    if len(gains) < MIN_IMAGES:
        reason = f"{len(gains)} of the {MIN_IMAGES} images that a comparison needs show a label"
        return Verdict(False, reason, images, None, None, labels)
    gain, low = float(gains.mean()), lower_bound(gains, seed)
    objection = _objection(gain, low, labels) or _invention(scores, seed)
    if objection is None:
        reason = f"mean IoU {gain:+.3f} over {len(gains)} images (at least {low:+.3f} with {CONFIDENCE:.0%} confidence)"
    else:
        reason = objection
    return Verdict(objection is None, reason, images, gain, low, labels)


def _objection(gain: float, low: float, labels: Sequence[LabelResult]) -> str | None:
    if gain <= 0:
        return f"mean IoU {gain:+.3f}: no gain"
    if gain < MIN_GAIN:
        return f"mean IoU {gain:+.3f}: less than {MIN_GAIN} is not worth a new version"
    if low <= 0:
        return f"mean IoU {gain:+.3f}, but as little as {low:+.3f} is likely: not sure to be a gain"
    for item in labels:
        if item.images < MIN_IMAGES_PER_LABEL or item.old_iou is None or item.new_iou is None:
            continue
        if item.old_iou - item.new_iou > MAX_LABEL_LOSS:
            return (
                f"label {item.label!r} loses {item.old_iou - item.new_iou:.3f} IoU "
                f"({item.old_iou:.3f} to {item.new_iou:.3f}, {item.images} images); {MAX_LABEL_LOSS} is allowed"
            )
    return None


def _invention(scores: Sequence[Score], seed: int) -> str | None:
    """Why labels that are not there are marked too often; None where they are not."""
    by_image: dict[str, list[Score]] = {}
    for score in scores:
        if not score.present:
            by_image.setdefault(score.image, []).append(score)
    if not by_image:
        return None
    cases = np.array([len(found) for found in by_image.values()], dtype=np.float64)
    marks = np.array([sum(item.old - item.new for item in found) for found in by_image.values()], dtype=np.float64)
    if marks.sum() / cases.sum() <= MAX_ABSENT_RISE:
        return None
    drawn = np.random.default_rng(seed).integers(len(cases), size=(RESAMPLES, len(cases)))
    rises = marks[drawn].sum(axis=1) / cases[drawn].sum(axis=1)
    if float(np.quantile(rises, 1 - CONFIDENCE)) <= MAX_ABSENT_RISE:
        return None
    old = sum(1 - item.old for found in by_image.values() for item in found)
    new = sum(1 - item.new for found in by_image.values() for item in found)
    return f"labels that are not there are marked {round(new)} instead of {round(old)} times in {int(cases.sum())}"


def _gains(scores: Sequence[Score]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Per image the mean gain over the labels that are there; images without any are left out."""
    by_image: dict[str, list[float]] = {}
    for score in scores:
        if score.present:
            by_image.setdefault(score.image, []).append(score.new - score.old)
    return np.array([np.mean(by_image[image]) for image in sorted(by_image)], dtype=np.float64)


def lower_bound(gains: np.ndarray[Any, np.dtype[np.float64]], seed: int) -> float:
    """The lower end of the mean's one-sided 90 % interval, from a bootstrap over images."""
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(gains), size=(RESAMPLES, len(gains)))
    return float(np.quantile(gains[drawn].mean(axis=1), 1 - CONFIDENCE))


def label_results(scores: Sequence[Score]) -> tuple[LabelResult, ...]:
    """What scores say of each label, by name."""
    return tuple(_label_result(label, scores) for label in sorted({score.label for score in scores}))


def _label_result(label: str, scores: Sequence[Score]) -> LabelResult:
    there = [score for score in scores if score.label == label and score.present]
    absent = [score for score in scores if score.label == label and not score.present]
    return LabelResult(
        label=label,
        images=len(there),
        old_iou=_mean([score.old for score in there]),
        new_iou=_mean([score.new for score in there]),
        absent_images=len(absent),
        old_absent_marked=_mean([1 - score.old for score in absent]),
        new_absent_marked=_mean([1 - score.new for score in absent]),
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _check(scores: Sequence[Score]) -> None:
    seen: set[tuple[str, str]] = set()
    for score in scores:
        if (score.image, score.label) in seen:
            raise ValueError(f"label {score.label!r} of image {score.image} is scored twice")
        seen.add((score.image, score.label))
        if not (0 <= score.old <= 1 and 0 <= score.new <= 1):
            raise ValueError(
                f"label {score.label!r} of image {score.image}: scores {score.old}, {score.new} not in 0..1"
            )

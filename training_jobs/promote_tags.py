"""The gate for what was learned of tags: whether a new version's answers are better than those of the one that serves.

An answer is a set of labels; how well it agrees with the annotators' is the IoU of the two sets: 1 or 0 where one label
applies. A new version's answers are published only if, on images that neither version has learned from,

1. the mean gain in agreement over images is at least `promote.MIN_GAIN`, and the lower end of its one-sided 90 %
   interval, from a paired bootstrap over images, is above zero;
2. no label surely loses much. A label's own agreement is the IoU of the images that have it and those that are answered
   with it. It loses surely where, in 90 % of the resamples, it falls by more than `promote.MAX_LABEL_LOSS`. Not "in the
   mean", as for masks: an answer is right or wrong, so that one image of ten is a tenth already. Wrong answers count in
   it as missing ones do, so nothing is invented either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training_jobs.promote import (
    CONFIDENCE,
    MAX_LABEL_LOSS,
    MIN_GAIN,
    MIN_IMAGES,
    MIN_IMAGES_PER_LABEL,
    RESAMPLES,
    Score,
    Verdict,
    label_results,
    lower_bound,
)


@dataclass(frozen=True)
class TagAnswer:
    """One question about one image, answered by annotators and by both versions.

    Attributes:
        image: content hash.
        question: name of the control.
        true: labels that apply, by the annotators.
        about: labels of which they said whether they apply; holds `true`.
        old, new: what the versions answer, as far as it is `about`.
    """

    image: str
    question: str
    true: frozenset[str]
    about: frozenset[str]
    old: frozenset[str]
    new: frozenset[str]

    def scores(self) -> list[Score]:
        """One for each label: whether it was answered where it applies, and was not where it does not."""
        return [
            Score(
                image=self.image,
                label=f"{self.question}: {label}",
                present=label in self.true,
                old=float((label in self.old) == (label in self.true)),
                new=float((label in self.new) == (label in self.true)),
            )
            for label in sorted(self.about)
        ]


def agreement(true: frozenset[str], answered: frozenset[str]) -> float:
    """IoU of two sets, 0..1; 1 where both are empty."""
    return len(true & answered) / len(true | answered) if true or answered else 1.0


def judge_tags(answers: Sequence[TagAnswer], *, seed: int = 0) -> Verdict:
    """Compare two versions on their answers.

    Args:
        answers: about images that neither version has learned from; an image and question at most once.
        seed: of the bootstrap.

    Returns:
        The verdict; the figures of its labels are shares of images: answered where it applies, and where it does not.
    """
    labels = label_results([score for answer in answers for score in answer.scores()])
    by_image: dict[str, list[tuple[float, float]]] = {}
    for one in answers:
        by_image.setdefault(one.image, []).append((agreement(one.true, one.old), agreement(one.true, one.new)))
    if len(by_image) < MIN_IMAGES:
        reason = f"{len(by_image)} of the {MIN_IMAGES} images that a comparison needs have an answer"
        return Verdict(False, reason, len(by_image), None, None, labels)
    old, new = np.array([np.mean(by_image[image], axis=0) for image in sorted(by_image)]).T
    gains = new - old
    gain, low = float(gains.mean()), lower_bound(gains, seed)
    change = f"agreement with annotators {old.mean():.2f} to {new.mean():.2f} on {len(gains)} images"
    objection = None
    if gain < MIN_GAIN:
        objection = f"{change}: " + ("no gain" if gain <= 0 else f"less than {MIN_GAIN} is not worth a new version")
    elif low <= 0:
        objection = f"{change}, but as little as {low:+.3f} is likely: not sure to be a gain"
    else:
        objection = _surely_loses(answers, seed)
    reason = objection or f"{change} (at least {low:+.3f} with {CONFIDENCE:.0%} confidence)"
    return Verdict(objection is None, reason, len(gains), gain, low, labels)


def _surely_loses(answers: Sequence[TagAnswer], seed: int) -> str | None:
    for question in sorted({answer.question for answer in answers}):
        own = [answer for answer in answers if answer.question == question]
        for label in sorted({label for answer in own for label in answer.about}):
            asked = [answer for answer in own if label in answer.about]
            true, old, new = (
                np.array([label in getattr(answer, name) for answer in asked]) for name in ("true", "old", "new")
            )
            if true.sum() < MIN_IMAGES_PER_LABEL:
                continue
            drawn = np.random.default_rng(seed).integers(len(asked), size=(RESAMPLES, len(asked)))
            losses = _agreement(true, old, drawn) - _agreement(true, new, drawn)
            if float(np.quantile(losses, 1 - CONFIDENCE)) > MAX_LABEL_LOSS:
                whole = np.arange(len(asked))[None]
                before, after = (float(_agreement(true, found, whole)[0]) for found in (old, new))
                return (
                    f"{question}: label {label!r} loses: its agreement with annotators falls from {before:.2f} to "
                    f"{after:.2f} on {len(asked)} images"
                )
    return None


def _agreement(true: NDArray[np.bool_], answered: NDArray[np.bool_], drawn: NDArray[np.int64]) -> NDArray[np.float64]:
    """IoU of a label's images with those that are answered with it, for each row of image numbers."""
    both, either = (true & answered)[drawn].sum(1), (true | answered)[drawn].sum(1)
    found: NDArray[np.float64] = np.divide(both, either, out=np.ones(len(drawn)), where=either > 0)
    return found

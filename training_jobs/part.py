"""A part of a version that is learned and judged by itself: its masks, or its answers for whole images.

What masks gain says nothing of choices, so each part takes the place of the serving one only if it is better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from backend.manifest import Cuts
from backend.versions import StoredVersion
from training_jobs.corrections import CorrectedImage
from training_jobs.promote import Score, Verdict
from training_jobs.promote_tags import TagAnswer

Progress = Callable[[str, float, float | None], None]
"""Called often with phase, done share (0 to 1) and loss; raises to give up."""


@dataclass(frozen=True)
class Part:
    """What was learned, and what the gate says of it.

    Attributes:
        name: what of a version it is.
        state: its tensors, for `vlm_core.Model.with_learned`; may be empty where the phrases of the config stay.
        cuts: where its masks are cut; empty for tags.
        chosen: what cross-validation decided, for the manifest.
        scores: that the gate judged by.
        verdict: of the gate.
        by_folds: cross-validation took part in the decision.
        answers: of tags, what both versions answered.
    """

    name: Literal["masks", "tags"]
    state: Mapping[str, Tensor]
    cuts: Cuts
    chosen: Mapping[str, Any]
    scores: Sequence[Score]
    verdict: Verdict
    by_folds: bool
    answers: Sequence[TagAnswer] = ()


@dataclass(frozen=True)
class TooFew:
    """Why a part cannot be learned yet, for people."""

    reason: str


def fresh(training: Sequence[CorrectedImage], current: StoredVersion | None) -> list[CorrectedImage]:
    """The training images that the serving version has not learned from: only on them is a comparison fair."""
    learned = set() if current is None else set(current.manifest.data.training_images)
    return [image for image in training if image.sha256 not in learned]


def within(progress: Progress, low: float, high: float) -> Progress:
    """Progress of a part of the work, as so much of the whole."""
    return lambda phase, share, loss: progress(phase, low + (high - low) * share, loss)

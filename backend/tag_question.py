"""How a control that names things is answered: what the model is asked, and what is chosen of its scores.

Serving asks so, and the gate that compares versions (`training_jobs.tag_part`), so that what is compared is what
annotators would get.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from backend.choices import LEARNED_THRESHOLD, Choice, choose, choose_each, label_scores, own_scores
from backend.label_studio.config import ControlPlan, LabelPrompt

if TYPE_CHECKING:
    from vlm_core.tag_head import TagHead
    from vlm_core.tags import TagCalibration
    from vlm_core.types import ImageFeatures, TagScore


class TagModel(Protocol):
    """The part of `vlm_core.Model` that is asked."""

    @property
    def tag_heads(self) -> Mapping[str, TagHead]:
        """Answers that were learned, by question."""

    @property
    def tag_calibration(self) -> TagCalibration | None:
        """What makes a tag's probability its own; None where probabilities only compare tags."""

    def rank_features(self, features: ImageFeatures, tags: Sequence[str], *, multiple: bool = False) -> list[TagScore]:
        """Tags, best first."""

    def classify_features(
        self, features: ImageFeatures, question: str, labels: Mapping[str, Sequence[str]]
    ) -> list[TagScore]:
        """Labels of a question that was learned, best first."""


@dataclass(frozen=True)
class TagQuestion:
    """One control, as one model is asked.

    Attributes:
        control: with the labels that can be answers.
        learned: a version has learned to answer it: scores are of labels, by name; else of phrases.
        alone: each label has a probability of its own.
    """

    control: ControlPlan
    learned: bool
    alone: bool

    @property
    def phrases(self) -> list[str]:
        """Every phrase of the labels once, in order."""
        return list(dict.fromkeys(phrase for label in self.control.labels for phrase in label.prompts))

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """The labels with their phrases."""
        return {label.label: label.prompts for label in self.control.labels}

    def ask(self, model: TagModel, features: ImageFeatures) -> list[TagScore]:
        """Scores, best first; features of one image, with its embedding."""
        if self.learned:
            return model.classify_features(features, self.control.from_name, self.labels)
        return model.rank_features(features, self.phrases, multiple=self.alone)

    def choose(self, scores: Sequence[TagScore]) -> Choice:
        """What is answered."""
        if not self.alone:
            return choose(self._scored, _probabilities(scores))
        control = self._scored
        if self.learned and control.threshold is None:
            control = replace(control, threshold=LEARNED_THRESHOLD)
        return choose_each(control, _probabilities(scores))

    def ranked(self, scores: Sequence[TagScore]) -> list[tuple[LabelPrompt, float]]:
        """All labels with their scores, best first."""
        return (own_scores if self.alone else label_scores)(self._scored, _probabilities(scores))

    @property
    def _scored(self) -> ControlPlan:
        """The control with what was scored as the labels' phrases."""
        if not self.learned:
            return self.control
        return replace(self.control, labels=tuple(replace(one, prompts=(one.label,)) for one in self.control.labels))


def question_of(control: ControlPlan, model: TagModel) -> TagQuestion:
    """How a model is asked for a control: `choices`, `taxonomy` or a `textarea` of tags."""
    asked = replace(control, labels=control.answers)
    head = model.tag_heads.get(control.from_name) if control.learns_tags else None
    # What was learned as one of several answers says little where any number may be given, and the other way round.
    if head is not None and head.multiple == control.multiple:
        return TagQuestion(asked, learned=True, alone=control.multiple)
    several = control.multiple or control.kind == "textarea"
    return TagQuestion(asked, learned=False, alone=several and model.tag_calibration is not None)


def _probabilities(scores: Sequence[TagScore]) -> dict[str, float]:
    return {score.tag: score.probability for score in scores}

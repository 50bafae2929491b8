"""How far to go with the answers that there are: for each question its tags as they are, or a learned head.

1. **As configured.** The phrases of the config, zero-shot.
2. **Head.** With `least_images` answered images or more: a linear classifier on the frozen embedding that starts at
   the text's (`recipes.fit_tags`), pulled towards it more or less. The pull is the one whose models are least surprised
   by images that they have not learned from (cross-entropy, by folds); the head is used where its answers agree
   with the annotators' by `least_gain` more than those of the phrases.

As in `training_jobs.ladder`, all of it is chosen by cross-validation inside the training part, by image.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from backend.label_studio.config import ControlPlan
from backend.tag_question import question_of
from training_jobs import split
from training_jobs.promote_tags import agreement
from training_jobs.recipes.config import RecipeConfig
from training_jobs.recipes.fit_tags import TagExample, entropy, fit
from vlm_core.errors import InputError
from vlm_core.model import Model
from vlm_core.projection import normalised
from vlm_core.tag_head import TagHead, join_heads
from vlm_core.tags import TagCalibration, fit_tag_calibration
from vlm_core.types import ImageFeatures


@dataclass
class _Fold:
    """Images that heads, one for each pull, have not learned from, and what they say of the phrases and of each."""

    asked: list[TagExample]
    plain: list[float]
    heads: dict[float, TagHead] = field(default_factory=dict)
    agreed: dict[float, list[float]] = field(default_factory=dict)
    surprise: dict[float, list[float]] = field(default_factory=dict)


class TagClimb:
    """One question, adapted to annotated images."""

    def __init__(
        self,
        control: ControlPlan,
        examples: Sequence[TagExample],
        model: Model,
        config: RecipeConfig,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """Fits the folds; they take some milliseconds each.

        Args:
            control: the question; see `ControlPlan.learns_tags`.
            examples: its answers, each image once. **Only** of training images.
            model: the base model.
            config: all settings.
            alive: called between fits; may raise to give up.
        """
        self._control, self._model, self._config, self._alive = control, model, config, alive
        self._examples = sorted(examples, key=lambda example: example.image)  # the order of arrival changes nothing
        self._folds: list[_Fold] = []
        if len(self._examples) < max(config.tags.least_images, config.folds):
            return
        left = [(example.image, example.chosen) for example in self._examples]
        for number in range(config.folds):
            out = split.choose_held_out(left, [], round(len(left) / (config.folds - number)))
            left = [(image, labels) for image, labels in left if image not in out]
            self._folds.append(self._fold(out))

    def learn(self) -> tuple[TagHead | None, dict[str, Any]]:
        """The head that all examples give, None where the phrases stay; and what was chosen."""
        pull, found = self._choose(self._folds)
        return None if pull is None else self._fit(self._examples, pull), found

    def by_folds(self) -> list[tuple[frozenset[str], TagHead | None]]:
        """Each fold's images with the head that was learned, and chosen, without them; empty with too few images."""
        found = []
        for fold in self._folds:
            pull, _ = self._choose([other for other in self._folds if other is not fold])
            images = frozenset(example.image for example in fold.asked)
            found.append((images, None if pull is None else fold.heads[pull]))
        return found

    def _fold(self, out: set[str]) -> _Fold:
        fitted = [example for example in self._examples if example.image not in out]
        asked = [example for example in self._examples if example.image in out]
        fold = _Fold(asked, self._agreed(None, asked))
        for pull in sorted(self._config.tags.pulls):
            self._alive()
            head = fold.heads[pull] = self._fit(fitted, pull)
            fold.agreed[pull], fold.surprise[pull] = self._agreed(head, asked), entropy(head, asked)
        return fold

    def _choose(self, folds: Sequence[_Fold]) -> tuple[float | None, dict[str, Any]]:
        if not folds:
            return None, {"head": False, "images": len(self._examples)}
        mean = {pull: float(np.mean([v for f in folds for v in f.surprise[pull]])) for pull in self._config.tags.pulls}
        pull = min(sorted(mean, reverse=True), key=lambda one: mean[one])
        before = float(np.mean([value for fold in folds for value in fold.plain]))
        after = float(np.mean([value for fold in folds for value in fold.agreed[pull]]))
        worth = after >= before + self._config.least_gain
        found = {
            "head": worth,
            "images": len(self._examples),
            "agreement_of_phrases": before,
            "agreement_of_head": after,
        }
        return (pull, found | {"pull": pull}) if worth else (None, found)

    def _fit(self, examples: Sequence[TagExample], pull: float) -> TagHead:
        return fit(examples, start_head(self._control, self._model, examples), pull)

    def _agreed(self, head: TagHead | None, examples: Sequence[TagExample]) -> list[float]:
        model = self._model if head is None else self._model.with_learned(join_heads({self._control.from_name: head}))
        return [
            agreement(example.chosen, answered(self._control, model, example.embedding) & example.about)
            for example in examples
        ]


def start_head(control: ControlPlan, model: Model, examples: Sequence[TagExample]) -> TagHead:
    """The head that says what the texts say.

    A label's row is the mean of its phrases' embeddings. One answer: times CLIP's temperature scale, which is exactly
    how tags are ranked where a label has one phrase. Several answers: with a scale and offset that make the cosine a
    probability (Platt), fitted on the examples and shared by all labels; where these cannot tell, CLIP's scale.
    """
    rows = torch.stack([normalised(model.text_embeds(label.prompts).float().mean(0)) for label in control.answers])
    rows = rows.cpu().clone()
    labels = tuple(label.label for label in control.answers)
    calibration = TagCalibration(model.tag_scale, 0.0)
    if control.multiple:
        pairs = [
            (float(row @ torch.from_numpy(example.embedding)), label in example.chosen)
            for example in examples
            for label, row in zip(labels, rows, strict=True)
            if label in example.about
        ]
        with contextlib.suppress(InputError):  # all labels apply everywhere
            calibration = fit_tag_calibration(*zip(*pairs, strict=True))
    bias = torch.full((len(labels),), calibration.bias)
    return TagHead(labels, calibration.scale * rows, bias, calibration.scale, calibration.bias, control.multiple)


def answered(control: ControlPlan, model: Model, embedding: np.ndarray[Any, np.dtype[np.float32]]) -> frozenset[str]:
    """The labels that a model answers a control with, exactly as when it serves."""
    question = question_of(control, model)
    features = ImageFeatures((), (0, 0), torch.from_numpy(embedding)[None])
    return frozenset(question.choose(question.ask(model, features)).labels)

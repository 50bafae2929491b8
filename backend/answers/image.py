"""One image and the controls that look at it -> their results; all of them share one encoding of the image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from backend import decoding
from backend.answers.request import PredictionRequest
from backend.choices import choose, choose_each
from backend.features import Kind
from backend.inference import HashedImage, Inference
from backend.label_studio.config import ControlPlan
from backend.label_studio.results import Region, brush_region, choices_region, rectangle_region
from backend.versions import effective_threshold


class SizedImage(HashedImage, Protocol):
    """An image file that knows how large the annotator sees it; its pixels may be fewer."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """As the annotator sees it, px."""


@dataclass(frozen=True)
class ControlAnswer:
    """What one control says of one image.

    Attributes:
        regions: its results; empty where nothing was found.
        scores: of what it was asked for, 0..1, also of what was not found.
    """

    regions: list[Region]
    scores: list[float]


def answer_image(
    inference: Inference, image: SizedImage, controls: Sequence[ControlPlan], request: PredictionRequest
) -> Iterator[ControlAnswer]:
    """Answer the controls that look at one image, in their order.

    Raises:
        TaskError: the time is up.
        VLMError: as the model raises it.
    """
    model, deadline = request.model, request.deadline
    tagged = [control for control in controls if control.kind == "choices"]
    prompts = _phrases(control for control in controls if control.kind != "choices")
    both = bool(prompts and tagged) and model.one_view
    grids: dict[str, decoding.Logits] = {}
    ranked: dict[str, dict[str, float]] = {}
    if prompts:
        kind: Kind = "both" if both else "masks"
        features = inference.features(kind, model, image, deadline.remaining())
        grids = inference.grids(model, features, prompts, deadline.remaining())
    if tagged and not both:
        features = inference.features("tags", model, image, deadline.remaining())
    for control in tagged:
        tags = inference.ranking(
            model, features, _phrases([control]), deadline.remaining(), multiple=_each(control, request)
        )
        ranked[control.from_name] = {tag.tag: tag.probability for tag in tags}
    for control in controls:
        if control.kind == "choices":
            yield _choices(control, ranked[control.from_name], each=_each(control, request))
        else:
            yield _masks(control, grids, image.size_hw, request)


def _masks(
    control: ControlPlan, grids: Mapping[str, decoding.Logits], size_hw: tuple[int, int], request: PredictionRequest
) -> ControlAnswer:
    answer = ControlAnswer([], [])
    least = decoding.least_area_px(control.min_area, size_hw)
    version = request.version
    for label in control.labels:
        request.check_time()  # hundreds of labels on a large image take their time
        found = decoding.decode_label(
            np.stack([grids[phrase] for phrase in label.prompts]),
            size_hw,
            threshold=effective_threshold(label.label, control.threshold, version.manifest),
            min_area_px=least,
            temperature=version.temperature(label.label),
        )
        answer.scores.append(found.score)
        if found.mask is None:
            continue
        if control.kind == "brushlabels":
            answer.regions.append(brush_region(found.mask, control, label.label, round(found.score, 4)))
            continue
        best = sorted(found.parts, key=lambda part: -part.score)[: control.top_k]
        answer.regions.extend(
            rectangle_region(part.box_xyxy_px, size_hw, control, label.label, round(part.score, 4)) for part in best
        )
    return answer


def _each(control: ControlPlan, request: PredictionRequest) -> bool:
    """Whether each label is answered alone: several answers of a model that was trained to say yes or no."""
    return control.multiple and request.model.tag_calibration is not None


def _choices(control: ControlPlan, probabilities: Mapping[str, float], *, each: bool) -> ControlAnswer:
    choice = choose_each(control, probabilities) if each else choose(control, probabilities)
    if not choice.labels:
        return ControlAnswer([], [choice.score])
    return ControlAnswer([choices_region(control, choice.labels, round(choice.score, 4))], [choice.score])


def _phrases(controls: Iterable[ControlPlan]) -> list[str]:
    """Every phrase of the controls once, in order."""
    return list(dict.fromkeys(phrase for control in controls for label in control.labels for phrase in label.prompts))

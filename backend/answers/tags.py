"""Controls that name things, for a whole image or for each of its regions: choices, taxonomies, texts.

They rank their own tags, but for a text area of "phrases": that one names what found something.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from backend.answers.request import ControlAnswer
from backend.answers.shapes import DrawnShape
from backend.answers.view import ImageView
from backend.label_studio.config import ControlPlan
from backend.label_studio.results import Region, answer_region
from backend.label_studio.values import Value
from backend.tag_question import TagQuestion, question_of
from vlm_core.crops import context_crop

if TYPE_CHECKING:
    from vlm_core.types import TagScore


def answer_whole(control: ControlPlan, drawn: Sequence[DrawnShape], view: ImageView) -> ControlAnswer:
    """Answer a control for the whole image.

    Args:
        control: `choices`, `taxonomy` or `textarea`.
        drawn: what was drawn on the image, by any control.
        view: of the image.

    Returns:
        A region, or none where no label reaches the threshold; and the score of that.
    """
    if control.text == "phrases":
        return _name_phrases(control, [shape for shape in drawn if shape.control.to_name == control.to_name], None)
    question = question_of(control, view.request.model)
    return _answer(question, view.ask(question), None)


def answer_regions(control: ControlPlan, drawn: Sequence[DrawnShape], view: ImageView) -> ControlAnswer:
    """Answer a control for each region of its image, from the region's surroundings.

    Args:
        control: one with `per_region`.
        drawn: what was drawn on the image, by any control.
        view: of the image.

    Returns:
        A region for each one that was answered, with its id; and the mean of their scores, where there is any.
    """
    about = [shape for shape in drawn if _is_asked(control, shape)]
    if control.text == "phrases":
        named = [_name_phrases(control, [shape], shape.results[0]) for shape in about]
        return ControlAnswer([region for answer in named for region in answer.regions], [])
    question = question_of(control, view.request.model)
    boxes = [context_crop(shape.box_xyxy_px, view.size_hw) for shape in about]
    ranked = view.ask_parts(boxes, question)
    regions: list[Region] = []
    scores: list[float] = []
    for shape, own in zip(about, ranked, strict=True):
        answer = _answer(question, own, shape.results[0])
        regions += answer.regions
        scores += answer.scores
    return ControlAnswer(regions, [sum(scores) / len(scores)] if scores else [])


def _answer(question: TagQuestion, scores: Sequence[TagScore], shape: Region | None) -> ControlAnswer:
    control = question.control
    value: Value
    if control.kind == "textarea":
        ranked = question.ranked(scores)
        lines = [(label, p) for label, p in ranked if p >= (control.threshold or 0.0)][: control.top_k]
        value = {"text": [f"{label.label}: {p:.2f}" for label, p in lines]}
        found, score = bool(lines), ranked[0][1] if lines else 1.0 - ranked[0][1]
    else:
        choice = question.choose(scores)
        if control.kind == "taxonomy":
            value = {"taxonomy": [list(label.path) for label in choice.chosen]}
        else:
            value = {"choices": list(choice.labels)}
        found, score = bool(choice.chosen), choice.score
    regions = [answer_region(control, value, round(score, 4), shape)] if found else []
    return ControlAnswer(regions, [score])


def _name_phrases(control: ControlPlan, shapes: Sequence[DrawnShape], about: Region | None) -> ControlAnswer:
    """The phrases that found these shapes, in their order; their scores count already."""
    phrases = list(dict.fromkeys(phrase for shape in shapes for phrase in shape.phrases))
    if not phrases:
        return ControlAnswer([], [])
    score = sum(shape.score for shape in shapes) / len(shapes)
    return ControlAnswer([answer_region(control, {"text": phrases}, round(score, 4), about)], [])


def _is_asked(control: ControlPlan, shape: DrawnShape) -> bool:
    """Whether a control is asked for a region: by its image, its control and its label, as the editor shows it."""
    return (
        shape.control.to_name == control.to_name
        and (not control.only_controls or shape.control.from_name in control.only_controls)
        and (not control.only_labels or shape.label.label in control.only_labels)
    )

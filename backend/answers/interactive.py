"""An annotator's question -> regions of the control that draws them, and a sentence that says what came of it.

The request does not say which label is selected in the editor while a phrase is typed. The editor itself gives what it
accepts the selected label. So a phrase is answered with the label that it names, or the only one that there is, or with
none; the control that draws is the one that the labelling config names, or the first of those that draw masks.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from backend import decoding
from backend.answers.masks import MaskQuestion, find_masks
from backend.answers.shapes import draw_shapes
from backend.answers.task import task_data, task_id, with_own_phrases
from backend.answers.view import ImageView
from backend.decoding import LabelMask
from backend.label_studio.config import ControlPlan, LabelPrompt
from backend.label_studio.interaction import At, Inside, InteractionError, Like, Phrase, Question
from backend.label_studio.interactive_config import MessageBox
from backend.label_studio.results import Region
from vlm_core.runs import RunMask, intersection

POINT_REACH = 0.02
"""How far a key point may miss the part that it means, in parts of the image's longer side."""

_PREFERRED = ("brush", "bitmask", "polygon", "ellipse", "rectangle", "keypoint")
"""Of several controls, those that show a mask as it is come first."""
_UNNAMED = ""


@dataclass(frozen=True)
class Target:
    """Where an answer goes.

    Attributes:
        control: that draws; its labels are those to ask for, one or more.
        labelled: whether the answer carries its label; if not, the editor or the annotator gives it one.
    """

    control: ControlPlan
    labelled: bool = True


@dataclass(frozen=True)
class Reply:
    """What the annotator gets.

    Attributes:
        regions: results; empty where nothing was found.
        score: 0..1; where nothing was found, how sure that is.
        message: one sentence for them.
    """

    regions: list[Region]
    score: float
    message: str


def choose_target(question: Question, controls: Sequence[ControlPlan]) -> Target:
    """The control that answers, cut down to the labels that are asked for.

    Args:
        question: of the annotator.
        controls: all that can be answered.

    Raises:
        InteractionError: there is none.
    """
    drawing = [control for control in controls if control.shape is not None and control.to_name == question.to_name]
    drawing.sort(key=lambda control: _PREFERRED.index(str(control.shape)))
    if not drawing:
        raise InteractionError(
            f'no control of the labelling config draws what is found on "{question.to_name}": add <BrushLabels> or '
            "another one that is predicted; `vlm check-config` says which are"
        )
    if isinstance(question, Phrase | Like) and question.control is not None:
        drawing = [control for control in drawing if control.from_name == question.control]
        if not drawing:
            raise InteractionError(
                f'model_answer names "{question.control}", which draws nothing on "{question.to_name}"'
            )
    if isinstance(question, Phrase):
        return _target_of_phrase(question, drawing)
    if not question.labels:
        # Without a label to look for, the surest of all is the answer; what is alike has the label of nothing.
        return _unlabelled(drawing[0]) if isinstance(question, Like) else Target(drawing[0])
    for control in drawing:
        found = [label for label in map(control.label_named, question.labels) if label is not None]
        if found:
            return Target(replace(control, labels=(found[0],)))
    raise InteractionError(
        f'no control that draws answers has the label "{question.labels[0]}": add it to '
        f'"{drawing[0].from_name}", or take away its model_skip'
    )


def _target_of_phrase(question: Phrase, drawing: Sequence[ControlPlan]) -> Target:
    named: dict[str, tuple[ControlPlan, LabelPrompt]] = {}
    for control in drawing:
        for label in control.labels:
            for name in (label.label, label.value, *label.prompts):
                named.setdefault(name.casefold(), (control, label))
    found = next((named[text.casefold()] for text in question.texts if text.casefold() in named), None)
    if found is not None:
        control, label = found
        return Target(replace(control, labels=(_asking(label, question.texts),)))
    control = drawing[0]
    if len(control.labels) > 1:
        return _unlabelled(control, question.texts)
    return Target(replace(control, labels=(_asking(control.labels[0], question.texts),)))


def _unlabelled(control: ControlPlan, texts: tuple[str, ...] = ()) -> Target:
    only = control.labels[0]
    if len(control.labels) == 1 and not texts:
        return Target(control)
    return Target(replace(control, labels=(LabelPrompt(_UNNAMED, texts or only.prompts),)), labelled=False)


def _asking(label: LabelPrompt, texts: tuple[str, ...]) -> LabelPrompt:
    """The label with what was typed in place of its own phrases."""
    return replace(label, prompts=texts, not_prompts=(), prompt_from=None)


def told(item: dict[str, Any], box: MessageBox | None) -> dict[str, Any]:
    """The item with a text for the annotator where the labelling config has a place for it.

    The editor shows no `error` of an item. A text area it fills, and replaces what stood there before.
    """
    text = item.get("error") or item.get("message")
    if box is None or not text:
        return item
    said = {
        "id": _identity(box.from_name),
        "from_name": box.from_name,
        "to_name": box.to_name,
        "type": "textarea",
        "value": {"text": [text]},
        "origin": "prediction",
    }
    return item | {"result": [*item.get("result", []), said]}


def answer_question(question: Question, target: Target, view: ImageView, task: Any) -> Reply:
    """Answer one question about one image.

    Args:
        question: of the annotator.
        target: `choose_target`'s.
        view: of the task's image.
        task: its id goes into the ids of regions: the editor replaces a region by one of the same id, so that the same
            answer given twice is there once.

    Raises:
        InteractionError: the question's shapes cannot be used with this image.
        TaskError: the time is up, or the data lacks the phrases that the config wants of it.
        VLMError: as the model raises it.
    """
    label, found = _find(question, target, view, task)
    control = replace(target.control, labels=(label,))
    drawn = draw_shapes(control, [found], view)
    for number, shape in enumerate(drawn):
        place = number if isinstance(question, Phrase) else shape.box_xyxy_px
        identity = _identity(task_id(task), control.from_name, label.label, label.prompts, place)
        for result in shape.results:
            result["id"] = identity
    regions = [result for shape in drawn for result in shape.results]
    if not target.labelled:
        regions = list(_without_label(regions, control))
    return Reply(regions, decoding.mean_score([found.score]), _message(question, label, found))


def _find(question: Question, target: Target, view: ImageView, task: Any) -> tuple[LabelPrompt, LabelMask]:
    """What is there of the surest of the target's labels, and only where the question wants it."""
    if isinstance(question, Like):
        return target.control.labels[0], _find_alike(question, target, view)
    control = with_own_phrases(target.control, task_data(task))
    asked = [MaskQuestion.of(label, control, view) for label in control.labels]
    if isinstance(question, Inside):
        area = question.mask(view.size_hw)
        left, top, right, bottom = area.box_xyxy_px or (0, 0, 0, 0)
        # What is a speck in the whole image may be what the annotator points at.
        least = decoding.least_area_px(control.min_area, (bottom - top, right - left))
        asked = [replace(one, within=area, min_area_px=least) for one in asked]
    masks = find_masks(asked, view, with_peaks=asked if control.shape == "keypoint" else ())
    found = [masks[one] for one in asked]
    if isinstance(question, At):
        found = [_at(question, mask, view.size_hw) for mask in found]
    surest = max(range(len(found)), key=lambda index: (found[index].mask is not None, found[index].score))
    return control.labels[surest], found[surest]


def _find_alike(question: Like, target: Target, view: ImageView) -> LabelMask:
    shown = [region.mask(view.size_hw) for region in question.regions]
    settings = MaskQuestion.of(target.control.labels[0], target.control, view)
    found = decoding.decode_label(
        view.grid_like(shown),
        view.size_hw,
        threshold=settings.threshold,
        min_area_px=settings.min_area_px,
        peaks=target.control.shape == "keypoint",
    )
    if not question.text:
        return found  # what a smart tool drew goes away, and what it showed is wanted too
    return found.only([index for index, piece in enumerate(found.pieces()) if not _is_one_of(piece, shown)])


def _is_one_of(piece: RunMask, shown: Sequence[RunMask]) -> bool:
    """Whether a part is what was shown: half of the smaller of the two lies in the other."""
    return any(2 * intersection([piece, region]).area_px >= min(piece.area_px, region.area_px) for region in shown)


def _at(question: At, found: LabelMask, size_hw: tuple[int, int]) -> LabelMask:
    """The parts that the points ask for: all where none does, but those that a point asks against."""
    hit = {True: set[int](), False: set[int]()}
    for point in question.points:
        part = nearest_part(found, (point.x_pct / 100 * size_hw[1], point.y_pct / 100 * size_hw[0]))
        if part is not None:
            hit[point.positive].add(part)
    wanted = hit[True] if any(point.positive for point in question.points) else set(range(len(found.parts)))
    return found.only(sorted(wanted - hit[False]))


def nearest_part(found: LabelMask, at_xy_px: tuple[float, float]) -> int | None:
    """The part that holds a position, else the nearest within `POINT_REACH`; None where there is none.

    Args:
        found: of a label.
        at_xy_px: in the displayed image; pixel (c, r) reaches from c to c + 1 and from r to r + 1.

    Returns:
        Index into `found.parts`.
    """
    mask = found.mask
    if mask is None:
        return None
    x, y = at_xy_px
    across = np.maximum(0, np.maximum(mask.starts - x, x - mask.stops))
    down = np.maximum(0, np.maximum(mask.rows - y, y - mask.rows - 1))
    distance = np.hypot(across, down)
    nearest = int(distance.argmin())
    return int(found.part_of_run[nearest]) if distance[nearest] <= POINT_REACH * max(mask.size_hw) else None


def _identity(*parts: object) -> str:
    return uuid.uuid5(uuid.NAMESPACE_OID, repr(parts)).hex[:10]


def _without_label(regions: Sequence[Region], control: ControlPlan) -> Iterator[Region]:
    """The results of shapes that have no label yet."""
    for region in regions:
        if control.labels_name is None:
            yield {**region, "value": {key: item for key, item in region["value"].items() if key != control.kind}}
        elif region["from_name"] != control.labels_name:
            yield region


def _message(question: Question, label: LabelPrompt, found: LabelMask) -> str:
    typed = question.text if isinstance(question, Phrase | Like) else ""
    sought = f'"{typed or label.label}"' if typed or label.label else "What is like it"
    if found.mask is not None:
        count = len(found.parts)
        return f"{sought}: found in {count} {'place' if count == 1 else 'places'}, certainty {found.score:.2f}"
    if isinstance(question, Inside):
        return f"Nothing found: no {sought} inside the area"
    if isinstance(question, At):
        return f"Nothing found: no {sought} within {POINT_REACH:.0%} of the image around the points"
    if isinstance(question, Like):
        return "Nothing found that is like it"
    return f"Nothing found for {sought}: at best {found.peak:.2f} certain"

"""One image and the controls that look at it -> their results; all of them share one encoding of the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from backend.answers.masks import find_masks
from backend.answers.ranker import answer_ranker, read_items
from backend.answers.request import ControlAnswer, PredictionRequest
from backend.answers.shapes import draw_shapes, questions_of
from backend.answers.tags import answer_regions, answer_whole
from backend.answers.view import ImageView, SizedImage
from backend.inference import Inference
from backend.label_studio.config import ControlPlan


def answer_image(
    inference: Inference,
    image: SizedImage,
    controls: Sequence[ControlPlan],
    data: Mapping[str, Any],
    request: PredictionRequest,
) -> list[ControlAnswer]:
    """Answer the controls that look at one image, in their order; those that are asked per region come last.

    Args:
        inference: asks the model.
        image: of the task.
        controls: those of the request that look at it, with the task's own phrases.
        data: of the task.
        request: that it belongs to.

    Raises:
        TaskError: the time is up, or the data lacks what a control needs.
        ImageError: the image cannot be decoded.
        VLMError: as the model raises it.
    """
    drawing = [control for control in controls if control.shape is not None]
    ranking = [control for control in controls if control.shape is None and control.text != "phrases"]
    items = {control.from_name: read_items(control, data) for control in controls if control.kind == "ranker"}
    view = ImageView(
        inference, image, request, masks=bool(drawing), tags=any(not control.per_region for control in ranking)
    )

    asked = {control.from_name: questions_of(control, view) for control in drawing}
    points = [question for control in drawing if control.shape == "keypoint" for question in asked[control.from_name]]
    found = find_masks((question for own in asked.values() for question in own), view, with_peaks=points)
    masks = {name: [found[question] for question in own] for name, own in asked.items()}
    with view.drawing:
        shapes = {control.from_name: draw_shapes(control, masks[control.from_name], view) for control in drawing}
    if drawing:
        request.times.stage("regions", view.drawing.seconds)
    drawn = [shape for own in shapes.values() for shape in own]

    answers: list[ControlAnswer] = []
    for control in controls:
        name = control.from_name
        if control.shape is not None:
            regions = [result for shape in shapes[name] for result in shape.results]
            answers.append(ControlAnswer(regions, [mask.score for mask in masks[name]]))
        elif control.kind == "ranker":
            answers.append(answer_ranker(control, items[name], view))
        elif not control.per_region:
            answers.append(answer_whole(control, drawn, view))
    # The editor wants regions before what is said about them.
    return answers + [answer_regions(control, drawn, view) for control in controls if control.per_region]

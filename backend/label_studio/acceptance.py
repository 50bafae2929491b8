"""What annotators made of predictions: per label kept, changed, removed or added, and how well the masks agree.

An annotation is compared with the prediction that it began from. Label Studio's editor notes that one
(`parent_prediction`). Where nothing is noted, it is the newest prediction that was there when the annotation was
made: the annotator drew **afresh** beside it. Only predictions of this backend count, told by their version's name.

| fate | the prediction has the label | the annotation has it | |
|---|---|---|---|
| kept | yes | yes | IoU at least `KEPT_IOU`, or the same choice |
| changed | yes | yes | a lower IoU |
| removed | yes | no | |
| added | no | yes | |

A label that neither has says nothing. All regions of a label in an image count together, so that splitting a region
is no change. Only shapes with an area and choices about the whole image are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from backend.label_studio.annotation_masks import masks_from_results
from backend.label_studio.config import PredictionPlan
from backend.label_studio.truth import read_drawing
from backend.versions import read_version_name
from vlm_core.evaluate import iou

Json = dict[str, Any]
Fate = Literal["kept", "changed", "removed", "added"]

KEPT_IOU = 0.99
"""From here on a mask was left as it is: the editor may move single pixels of an edge when it saves."""


@dataclass(frozen=True)
class LabelOutcome:
    """What became of one label of one image.

    Attributes:
        label: as in results.
        fate: see the module's table.
        iou: of the predicted with the annotated mask, 0 to 1; 0 where one of them is missing; None for a choice.
    """

    label: str
    fate: Fate
    iou: float | None


@dataclass(frozen=True)
class Origin:
    """The prediction that an annotation is compared with.

    Attributes:
        prediction: as Label Studio gives it.
        version: number of the version that made it; 0 is the base model.
        afresh: the annotation did not begin from it.
    """

    prediction: Json
    version: int
    afresh: bool


def origin_of(annotation: Json, predictions: Sequence[Json], project_id: int) -> Origin | None:
    """The prediction of ours that an annotation began from, or was drawn beside.

    Args:
        annotation: as Label Studio gives it.
        predictions: all predictions of its task.
        project_id: of the task.

    Returns:
        None where it began from something else, or where no prediction of ours was there yet.
    """
    parent = annotation.get("parent_prediction")
    ours = [(item, number) for item in predictions if (number := _version_of(item, project_id)) is not None]
    if parent is not None:
        found = next(((item, number) for item, number in ours if item.get("id") == parent), None)
        return None if found is None else Origin(*found, afresh=False)
    made = time_of(annotation.get("created_at"))
    before = [(at, item, n) for item, n in ours if (at := time_of(item.get("created_at"))) and made and at <= made]
    if not before:
        return None
    _, prediction, number = max(before, key=lambda entry: entry[0])
    return Origin(prediction, number, afresh=True)


def made_in_bulk(annotation: Json) -> bool:
    """Whether Label Studio's action "Create Annotations From Predictions" made it and nobody has changed it since."""
    if annotation.get("last_action") != "prediction":
        return False
    made, changed = time_of(annotation.get("created_at")), time_of(annotation.get("updated_at"))
    return made is None or changed is None or (changed - made).total_seconds() < _AT_ONCE_S


def compare(
    predicted: Sequence[Any], annotated: Sequence[Any], plan: PredictionPlan
) -> tuple[LabelOutcome, ...] | None:
    """Compare the `result` of a prediction with that of the annotation that was made of it.

    Args:
        predicted: regions of the prediction, as Label Studio stores them.
        annotated: regions of the annotation.
        plan: the project's labels; regions of other labels are no business of the model's.

    Returns:
        One outcome for each label of each image that either has, in the config's order; None where a region of a
        known label cannot be read, or the two are of different sizes.
    """
    outcomes: list[LabelOutcome] = []
    for to_name in dict.fromkeys(control.to_name for control in plan.controls):
        labels = _area_labels(plan, to_name)
        drawings = [read_drawing(result, plan, to_name, labels) for result in (predicted, annotated)]
        if drawings[0] is None or drawings[1] is None:
            return None
        before, after = drawings[0].masks, drawings[1].masks
        pointed = (drawings[0].pointed - set(before)) | (drawings[1].pointed - set(after))
        for label in dict.fromkeys((*before, *after)):
            if label in pointed:
                continue  # a point does not say how far the thing reaches
            if label in before and label in after:
                if before[label].shape != after[label].shape:
                    return None
                agreement = iou(before[label], after[label])
                outcomes.append(LabelOutcome(label, "kept" if agreement >= KEPT_IOU else "changed", agreement))
            else:
                outcomes.append(LabelOutcome(label, "removed" if label in before else "added", 0.0))
        chosen, answered = (_choices(result, plan, to_name) for result in (predicted, annotated))
        for control, label in dict.fromkeys((*chosen, *answered)):
            both = (control, label) in chosen and (control, label) in answered
            fate: Fate = "kept" if both else "removed" if (control, label) in chosen else "added"
            outcomes.append(LabelOutcome(label, fate, None))
    return tuple(outcomes)


_AT_ONCE_S = 5.0


def _area_labels(plan: PredictionPlan, to_name: str) -> set[str]:
    """Labels that areas are predicted for."""
    controls = [c for c in plan.controls if c.to_name == to_name and c.covers_pixels]
    return {label.label for control in controls for label in control.labels}


def _choices(result: Sequence[Any], plan: PredictionPlan, to_name: str) -> list[tuple[str, str]]:
    """Control and choice of the choices about the whole image."""
    names = {c.from_name for c in plan.controls if c.kind == "choices" and not c.per_region and c.to_name == to_name}
    regions = [item for item in result if isinstance(item, Mapping) and item.get("from_name") in names]
    read = masks_from_results(regions, plan, to_name=to_name)
    return [(control, label) for control, labels in read.choices.items() for label in labels]


def _version_of(prediction: Json, project_id: int) -> int | None:
    name = read_version_name(str(prediction.get("model_version") or ""))
    return name.number if name is not None and name.project_id == project_id else None


def time_of(value: object) -> datetime | None:
    """A time as Label Studio writes it, aware; None where it is none."""
    try:
        time = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)

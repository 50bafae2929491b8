"""What `vlm check-config` says about a labelling config."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from backend.label_studio.config import ControlPlan, LabelConfigError, LabelPrompt, PredictionPlan
from backend.label_studio.interactive_config import InteractiveConfig
from backend.label_studio.prediction_plan import Shape

_DRAWN: dict[Shape, str] = {
    "brush": "masks",
    "bitmask": "bitmasks",
    "polygon": "outlines",
    "rectangle": "boxes",
    "ellipse": "ellipses",
    "keypoint": "points",
}
_NOTHING = (
    "Nothing is predicted: no <BrushLabels>, <RectangleLabels>, <PolygonLabels> ..., <Choices> or <Taxonomy> "
    "with labels is about an <Image>"
)


def report_data(plan: PredictionPlan, interactive: InteractiveConfig) -> dict[str, Any]:
    """The plan as plain JSON values, for `--json`."""
    return {
        "controls": [asdict(control) for control in plan.controls],
        "ignored": [asdict(item) for item in plan.ignored],
        "interactive": {
            "phrases": dict(interactive.phrases),
            "messages": None if interactive.messages is None else interactive.messages.from_name,
        },
        "error": None,
    }


def error_data(error: LabelConfigError) -> dict[str, Any]:
    """A mistake in the same form, with `line` (null where no single line is to blame), `problem` and `remedy`."""
    said = {"line": error.line, "problem": error.problem, "remedy": error.remedy}
    return {"controls": [], "ignored": [], "interactive": None, "error": said}


def report_lines(plan: PredictionPlan, interactive: InteractiveConfig) -> list[str]:
    """The plan for a terminal: each control, each label with its phrases, what is left alone, and what can be asked."""
    lines: list[str] = []
    for control in plan.controls:
        lines.append(
            f'{control.from_name}: {_answer(control)} ({control.kind}) on "{control.to_name}", '
            f"image from {_source(control)}"
        )
        lines += [f"  [{'; '.join(said)}]" for said in [_conditions(control)] if said]
        width = max((len(label.label) for label in control.labels), default=0)
        lines += [f"  {label.label:<{width}}  {_phrases(label)}" for label in control.labels]
    if not plan.controls:
        lines.append(_NOTHING)
    if plan.ignored:
        lines += ["", "Left alone:"]
        lines += [f"  {item.name} <{item.tag}>: {item.reason}" for item in plan.ignored]
    if any(control.shape is not None for control in plan.controls):
        lines += ["", "With auto-annotation on:", *(f"  {line}" for line in _asked(interactive))]
    return lines


def _asked(interactive: InteractiveConfig) -> list[str]:
    """What annotators can ask."""
    lines = [
        f"{name}: what is typed is looked for" + ("" if control is None else f', and "{control}" shows it')
        for name, control in interactive.phrases.items()
    ]
    lines.append("smart rectangles say where to look, smart key points which part is meant")
    if interactive.messages is None:
        lines.append('nothing tells what came of it: a <TextArea model_text="messages"> would')
    else:
        lines.append(f"{interactive.messages.from_name}: tells what came of it")
    return lines


def _answer(control: ControlPlan) -> str:
    """What the control gives."""
    if control.shape is not None:
        return f"{'rotated ' if control.rotated else ''}{_DRAWN[control.shape]}"
    if control.kind == "textarea":
        return "tags as text" if control.text == "tags" else "the phrases that found something"
    if control.kind == "ranker":
        return f"a ranking of the items in the data's field {control.items_from!r}"
    return "several tags" if control.multiple else "one tag"


def _source(control: ControlPlan) -> str:
    template = "$" in control.image_key
    return f"the address {control.image_key!r}" if template else f"the data's field {control.image_key!r}"


def _phrases(label: LabelPrompt) -> str:
    said = " | ".join(label.prompts)
    if label.prompt_from is not None:
        said = f"the phrase in the data's field {label.prompt_from!r}"
    return f"{said}, but not {' | '.join(label.not_prompts)}" if label.not_prompts else said


def _conditions(control: ControlPlan) -> list[str]:
    """Limits, windows, and for which regions it is asked."""
    said = []
    if control.labels_name is not None:
        said.append(f'labels from "{control.labels_name}"')
    if control.per_region:
        of = f" of {_listed(control.only_controls)}" if control.only_controls else ""
        labelled = f" with the label {_listed(control.only_labels)}" if control.only_labels else ""
        said.append(f"asked for each region{of}{labelled}")
    if control.threshold is not None:
        said.append(f"probability from {control.threshold:g}")
    if control.min_area is not None:
        said.append(f"at least {control.min_area} px")
    if control.top_k is not None:
        said.append(f"at most {control.top_k}" + (" a label" if control.shape is not None else ""))
    if control.max_regions is not None:
        said.append(f"at most {control.max_regions} in all")
    if control.tile is not None:
        size = "of a fitting size" if control.tile == "auto" else f"from {control.tile} px on"
        said.append(f"looked at through windows {size}")
    return said


def _listed(names: tuple[str, ...]) -> str:
    return " or ".join(f'"{name}"' for name in names)

"""What `vlm check-config` says about a labelling config."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from backend.label_studio.config import ControlPlan, PredictionPlan

_PREDICTED = {
    "brushlabels": "masks",
    "rectanglelabels": "boxes",
    "choices": "tags",
}


def report_data(plan: PredictionPlan) -> dict[str, Any]:
    """The plan as plain JSON values, for `--json`."""
    return {
        "controls": [asdict(control) for control in plan.controls],
        "ignored": [asdict(item) for item in plan.ignored],
    }


def report_lines(plan: PredictionPlan) -> list[str]:
    """The plan for a terminal: each control, each label with its phrases, and what is left alone."""
    lines: list[str] = []
    for control in plan.controls:
        lines.append(
            f'{control.from_name}: {_PREDICTED[control.kind]} ({control.kind}) on "{control.to_name}", '
            f"image from the data's field {control.image_key!r}{_limits(control)}"
        )
        width = max(len(label.label) for label in control.labels)
        for label in control.labels:
            phrases = " | ".join(label.prompts)
            lines.append(f"  {label.label:<{width}}  {phrases}")
    if not plan.controls:
        lines.append("Nothing is predicted: no <BrushLabels>, <RectangleLabels> or <Choices> on an <Image> with labels")
    if plan.ignored:
        lines += ["", "Left alone:"]
        lines += [f"  {item.name} <{item.tag}>: {item.reason}" for item in plan.ignored]
    return lines


def _limits(control: ControlPlan) -> str:
    limits = []
    if control.kind == "choices":
        limits.append("several answers" if control.multiple else "one answer")
    if control.threshold is not None:
        limits.append(f"probability from {control.threshold:g}")
    if control.min_area is not None:
        limits.append(f"at least {control.min_area} px")
    if control.top_k is not None:
        limits.append(f"at most {control.top_k}")
    return f"; {', '.join(limits)}" if limits else ""

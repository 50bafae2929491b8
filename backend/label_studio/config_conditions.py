"""For which regions a `perRegion` control is asked: what the editor's `visibleWhen` and `when...` attributes say.

The editor shows such a control for a region only where the conditions of the control **and** of every view around it
hold, and drops the answers of those that it does not show. So no other region is asked about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backend.label_studio.config_xml import Tag
from backend.label_studio.prediction_plan import ControlPlan

_OF_CHOICES = ("choice-selected", "choice-unselected")


@dataclass(frozen=True)
class Conditions:
    """Conditions of one control, as written.

    Attributes:
        labels: for each condition on labels the text that names them.
        controls: for each condition on control tags its name.
        unread: why something of them is not looked at.
        never: why no region fulfils them; "" where some may.
    """

    labels: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    never: str = ""


@dataclass(frozen=True)
class Regions:
    """The regions for which a control is asked; () stands for all.

    Attributes:
        labels: their labels, as results name them.
        controls: the names of their controls.
    """

    labels: tuple[str, ...]
    controls: tuple[str, ...]


def read_conditions(control: Tag) -> Conditions:
    """The conditions on a control with `perRegion`, its own and those of the views around it."""
    labels: list[str] = []
    controls: list[str] = []
    unread: list[str] = []
    for tag in (control, *control.ancestors()):
        when = tag.get("visibleWhen")
        if when == "no-region-selected":
            return Conditions(never=f"<{tag.name}> in line {tag.line} is shown only while no region is selected")
        if when in _OF_CHOICES:
            unread.append(f'visibleWhen="{when}" of <{tag.name}> in line {tag.line} is not looked at')
            continue
        # Of a view, `when...` counts only with visibleWhen; of the control itself it counts by itself too.
        if when == "region-selected" or tag is control:
            labels += [text for text in [tag.get("whenLabelValue")] if text]
            controls += [text for text in [tag.get("whenTagName")] if text]
    return Conditions(tuple(labels), tuple(controls), tuple(unread))


def matching_regions(conditions: Conditions, regions: Sequence[ControlPlan]) -> Regions | str:
    """The regions that fulfil all conditions, or why there are none.

    Args:
        conditions: of a control with `perRegion`.
        regions: the controls that give regions on the same image.
    """
    if conditions.never:
        return conditions.never
    if not regions:
        return "it is asked per region (perRegion), and no control gives regions on its image"
    known = list(dict.fromkeys(label.label for control in regions for label in control.labels))
    labels = known
    for text in conditions.labels:
        # A label may hold a comma itself, so the whole text comes first, as in the editor.
        named = [text] if text in known else text.split(",")
        labels = [label for label in labels if label in named]
    if not labels:
        return f"no region has a label that fulfils whenLabelValue={_quoted(conditions.labels)}"
    # The editor goes by the tag that gives the label: of a bare shape the <Labels> beside it.
    controls = [
        control.from_name
        for control in regions
        if all(name == (control.labels_name or control.from_name) for name in conditions.controls)
        and any(label.label in labels for label in control.labels)
    ]
    if not controls:
        return f"no region comes from a tag that fulfils whenTagName={_quoted(conditions.controls)}"
    return Regions(
        labels=tuple(labels) if conditions.labels else (), controls=tuple(controls) if conditions.controls else ()
    )


def _quoted(texts: Sequence[str]) -> str:
    return " and ".join(f'"{text}"' for text in texts)

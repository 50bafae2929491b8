"""Labelling config -> what to predict: controls, their labels, and the phrases that each label stands for.

The labelling config is the user's interface. Every attribute has a default, so an ordinary config works
unchanged; these are read:

| tag | attribute | meaning |
|---|---|---|
| `Label`, `Choice` | `prompt="left player \\| player in white"` | phrases for this label, alternatives |
| | `predicted_values="car,truck"` | the same by the ecosystem's convention, used without `prompt` |
| | `value` | the phrase when neither is given |
| | `alias` | written into results instead of `value`, as Label Studio's editor and SDK do |
| | `model_skip="true"` | leave this label alone |
| control tag | `model_score_threshold="0.4"` | least probability, 0..1 |
| | `model_min_area="64"` | least area of a region, pixels of the displayed image |
| | `model_top_k="3"` | most regions per label; most choices for several-answer `Choices` |
| | `model_skip="true"` | leave this control alone |

`extra_params` of the ML backend connection may give the control attributes for all controls at once; a
control's own attribute wins. Label Studio sends `extra_params` to `/setup` only, never with `/predict`.

A mistake that would make the backend guess is a `LabelConfigError`. What is merely not ours (other control
tags, other objects) is left alone and listed in `PredictionPlan.ignored` with its reason.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from backend.label_studio.config_xml import LabelConfigError, Tag, read_tags
from backend.label_studio.prediction_plan import (
    ControlKind,
    ControlPlan,
    IgnoredControl,
    LabelPrompt,
    PredictionPlan,
)

__all__ = [
    "ControlKind",
    "ControlPlan",
    "IgnoredControl",
    "LabelConfigError",
    "LabelPrompt",
    "PredictionPlan",
    "parse_label_config",
]

_KINDS: dict[str, ControlKind] = {
    "brushlabels": "brushlabels",
    "rectanglelabels": "rectanglelabels",
    "choices": "choices",
}
_READ_AS_BRUSH: dict[str, ControlKind] = {
    "bitmasklabels": "brushlabels",
    "polygonlabels": "brushlabels",
    "ellipselabels": "brushlabels",
}
_LABEL_TAGS = {"brushlabels": "label", "rectanglelabels": "label", "choices": "choice"}
_NOT_CONTROLS = {"filter"}
_CONTROL_ATTRIBUTES = ("model_score_threshold", "model_min_area", "model_top_k", "model_skip")
_CHOICE_MODES = ("single", "single-radio", "multiple")
_REPEATED = "which makes one of it for every item of the task's data"
_SHAPES = {"brush", "bitmask", "bitmasklabels", "polygon", "polygonlabels", "magicwand", "vectorlabels"}
_BOXES = {"rectangle", "ellipse", "ellipselabels", "keypoint", "keypointlabels"}


def parse_label_config(
    xml: str, extra_params: Mapping[str, Any] | str | None = None, *, any_shape: bool = False
) -> PredictionPlan:
    """Read a labelling config.

    Args:
        xml: the config, as in a project's `label_config` and in `/setup`'s `schema`.
        extra_params: the connection's extra parameters: an object, its JSON, or None. The four control
            attributes are read as defaults for all controls; other keys are not ours.
        any_shape: take polygons, ellipses and bitmasks for `BrushLabels`. Nothing of the kind is predicted, but what
            was drawn with them can be read.

    Returns:
        What to predict, and what is left alone and why.

    Raises:
        LabelConfigError: not usable XML; a control without name or toName, or pointing at nothing or at a
            tag that is no `Image`; a name twice; a label twice in a control with other phrases; no phrase in
            `prompt`; a number that is none or out of range; an unknown `choice`; `extra_params` that are not an
            object.
    """
    root = read_tags(xml)
    named = _named_tags(root)
    defaults = _read_extra_params(extra_params)
    reader = _ConfigReader(named, defaults, any_shape)
    for tag in root.walk():
        reader.visit(tag)
    return PredictionPlan(tuple(reader.controls), tuple(reader.ignored))


def _named_tags(root: Tag) -> dict[str, Tag]:
    """Tags by name. A name twice would make results ambiguous."""
    named: dict[str, Tag] = {}
    for tag in root.walk():
        name = tag.get("name")
        if not name or tag.kind in _NOT_CONTROLS:
            continue
        if name in named:
            first = named[name]
            raise LabelConfigError(
                f'the name "{name}" of <{tag.name}> is already the name of <{first.name}> in line {first.line}',
                "Give every tag its own name",
                line=tag.line,
            )
        named[name] = tag
    return named


def _read_extra_params(extra_params: Mapping[str, Any] | str | None) -> dict[str, str]:
    if isinstance(extra_params, str):
        if not extra_params.strip():
            return {}
        try:
            extra_params = json.loads(extra_params)
        except ValueError:
            raise LabelConfigError(
                "the connection's extra parameters are not JSON",
                'Write an object, like {"model_score_threshold": 0.4}, or leave them empty',
            ) from None
    if extra_params is None:
        return {}
    if not isinstance(extra_params, Mapping):
        raise LabelConfigError(
            f"the connection's extra parameters are a {type(extra_params).__name__}, not an object",
            'Write an object, like {"model_score_threshold": 0.4}, or leave them empty',
        )
    known: dict[str, str] = {}
    for name in _CONTROL_ATTRIBUTES:
        if name in extra_params:
            value = extra_params[name]
            known[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return known


class _ConfigReader:
    """Goes through the tags and collects controls and the reasons for what is left out."""

    def __init__(self, named: Mapping[str, Tag], defaults: Mapping[str, str], any_shape: bool) -> None:
        self.controls: list[ControlPlan] = []
        self.ignored: list[IgnoredControl] = []
        self._named = named
        self._defaults = defaults
        self._kinds: Mapping[str, ControlKind] = {**_KINDS, **_READ_AS_BRUSH} if any_shape else _KINDS

    def visit(self, tag: Tag) -> None:
        kind = self._kinds.get(tag.kind)
        if kind is not None:
            self._supported(tag, kind)
        elif tag.get("name") and tag.get("toName") is not None and tag.kind not in _NOT_CONTROLS:
            self._ignore(tag, _why_unknown(tag))

    def _ignore(self, tag: Tag, reason: str) -> None:
        self.ignored.append(IgnoredControl(tag.get("name") or "", tag.name, reason))

    def _supported(self, tag: Tag, kind: ControlKind) -> None:
        from_name, to_name = _required(tag, "name"), _required(tag, "toName")
        if _flag(tag, "model_skip", self._defaults):
            self._ignore(tag, "model_skip is set")
            return
        if _is_inside(tag, "repeater"):
            self._ignore(tag, f"it is inside <Repeater>, {_REPEATED}")
            return
        image_key = self._image_key(tag, kind, to_name)
        if image_key is None:
            return
        multiple = _choice_mode(tag) == "multiple" if kind == "choices" else False
        if kind == "choices":
            reason = _why_not_choices(tag)
            if reason:
                self._ignore(tag, reason)
                return
        labels = self._labels(tag, kind)
        if not labels:
            if tag.get("value"):
                reason = f"its labels come from the task's data ({tag.get('value')}), not from the config"
            else:
                reason = f"it holds no <{_LABEL_TAGS[kind].capitalize()}> to predict"
            self._ignore(tag, reason)
            return
        self._note_unread(tag, known=_CONTROL_ATTRIBUTES)
        self.controls.append(
            ControlPlan(
                kind=kind,
                from_name=from_name,
                to_name=to_name,
                image_key=image_key,
                labels=labels,
                threshold=_probability(tag, "model_score_threshold", self._defaults),
                min_area=_whole(tag, "model_min_area", self._defaults, least=0),
                top_k=_whole(tag, "model_top_k", self._defaults, least=1),
                multiple=multiple,
            )
        )

    def _image_key(self, tag: Tag, kind: ControlKind, to_name: str) -> str | None:
        """The data field of the control's image; None after noting why there is none."""
        if "," in to_name:
            self._ignore(tag, f'toName="{to_name}" names several objects; only one image can be labelled')
            return None
        target = self._named.get(to_name)
        if target is None:
            images = [name for name, item in self._named.items() if item.kind == "image"]
            raise LabelConfigError(
                f'<{tag.name} name="{tag.get("name")}"> has toName="{to_name}", but no tag has that name',
                f"Name one of the images: {', '.join(images)}"
                if images
                else 'Add <Image name="image" value="$image"/>',
                line=tag.line,
            )
        if target.kind != "image":
            if kind == "choices":
                self._ignore(tag, f'it classifies <{target.name} name="{to_name}">; only images are predicted')
                return None
            raise LabelConfigError(
                f'<{tag.name} name="{tag.get("name")}"> has toName="{to_name}", which is <{target.name}>, no <Image>',
                "Point toName at an <Image>",
                line=tag.line,
            )
        if _is_inside(target, "repeater"):
            self._ignore(tag, f'<{target.name} name="{to_name}"> is inside <Repeater>, {_REPEATED}')
            return None
        value = (target.get("value") or "").strip()
        if not value and target.get("valueList"):
            self._ignore(tag, f"<{target.name}> in line {target.line} shows a list of images (valueList)")
            return None
        if not value:
            raise LabelConfigError(
                f'<{target.name} name="{to_name}"> has no value',
                'Name the field of the data that holds the image, like value="$image"',
                line=target.line,
            )
        if not re.fullmatch(r"\$[^$]+", value):
            self._ignore(tag, f'<{target.name} value="{value}"> is not one field of the data, like "$image"')
            return None
        return value[1:]

    def _labels(self, control: Tag, kind: ControlKind) -> tuple[LabelPrompt, ...]:
        labels: list[LabelPrompt] = []
        taken: dict[str, Tag] = {}
        for tag in control.walk():
            if tag.kind != _LABEL_TAGS[kind] or _owner(tag) is not control:
                continue
            if kind == "choices" and _is_inside(tag, "choice"):
                # The editor does not show a Choice inside a Choice unless allowNested is set.
                continue
            value = (tag.get("value") or "").strip()
            result = tag.get("alias") or tag.get("value") or ""
            if not result.strip():
                self._ignore(control, f"its <{tag.name}> in line {tag.line} has no value")
                continue
            prompts = _prompts(tag, value or result)
            if result in taken:
                if any(label.label == result and label.prompts == prompts for label in labels):
                    self._ignore(control, f'its label "{result}" in line {tag.line} is there already')
                    continue
                raise LabelConfigError(
                    f'<{tag.name} value="{value}"> gives "{result}" a second time in '
                    f'<{control.name} name="{control.get("name")}"> (first in line {taken[result].line})',
                    'Keep one and join its phrases: prompt="first | second"',
                    line=tag.line,
                )
            taken[result] = tag
            if _flag(tag, "model_skip", {}):
                self._ignore(control, f'its label "{result}" has model_skip set')
                continue
            self._note_unread(tag, known=("model_skip",), control=control)
            labels.append(LabelPrompt(label=result, prompts=prompts, value=value or result))
        return tuple(labels)

    def _note_unread(self, tag: Tag, *, known: Sequence[str], control: Tag | None = None) -> None:
        """Say so where an attribute looks like one of ours but is none."""
        for name in tag.attributes:
            unread = name.startswith("model_") and name not in known
            if unread or (control is not None and name in ("prompts", "not_prompt", "predicted_value")):
                self._ignore(control or tag, f"the attribute {name} of <{tag.name}> in line {tag.line} is not read")


def _why_unknown(tag: Tag) -> str:
    reason = f"<{tag.name}> is not predicted"
    if tag.kind in _SHAPES:
        return f"{reason}; <BrushLabels> is, for masks"
    if tag.kind in _BOXES:
        return f"{reason}; <RectangleLabels> is, for boxes"
    if tag.kind == "labels":
        return f"{reason}; <BrushLabels> and <RectangleLabels> are"
    return reason


def _why_not_choices(tag: Tag) -> str | None:
    if (tag.get("perRegion") or "").lower() == "true":
        return "it is asked per region (perRegion), and regions are classified by their own labels"
    if (tag.get("perItem") or "").lower() == "true":
        return "it is asked per item of a list (perItem)"
    if (tag.get("allowNested") or "").lower() == "true":
        return "its answers are paths (allowNested), which are not predicted; write flat choices"
    return None


def _choice_mode(tag: Tag) -> str:
    mode = (tag.get("choice") or "single").strip()
    if mode not in _CHOICE_MODES:
        raise LabelConfigError(
            f'<{tag.name} name="{tag.get("name")}"> has choice="{mode}"',
            f"Use one of {', '.join(_CHOICE_MODES)}",
            line=tag.line,
        )
    return mode


def _owner(tag: Tag) -> Tag | None:
    """The control that a label belongs to: the nearest tag above with name and toName."""
    above = tag.parent
    while above is not None and not (above.get("name") and above.get("toName") is not None):
        above = above.parent
    return above


def _is_inside(tag: Tag, kind: str) -> bool:
    above = tag.parent
    while above is not None:
        if above.kind == kind:
            return True
        above = above.parent
    return False


def _required(tag: Tag, attribute: str) -> str:
    value = (tag.get(attribute) or "").strip()
    if not value:
        which = f' name="{tag.get("name")}"' if tag.get("name") else ""
        raise LabelConfigError(
            f"<{tag.name}{which}> has no {attribute}",
            'Write name="..." and toName="..." with the name of the <Image>',
            line=tag.line,
        )
    return value


def _prompts(tag: Tag, fallback: str) -> tuple[str, ...]:
    """The label's phrases: `prompt`, else `predicted_values`, else its value."""
    for attribute, separator in (("prompt", "|"), ("predicted_values", ",")):
        text = tag.get(attribute)
        if text is None:
            continue
        phrases = tuple(dict.fromkeys(" ".join(part.split()) for part in text.split(separator) if part.strip()))
        if not phrases:
            raise LabelConfigError(
                f'<{tag.name} value="{tag.get("value")}"> has {attribute}="{text}", which holds no phrase',
                f'Write one, like {attribute}="{fallback}", or remove the attribute',
                line=tag.line,
            )
        return phrases
    return (" ".join(fallback.split()),)


def _setting(tag: Tag, attribute: str, defaults: Mapping[str, str]) -> tuple[str | None, str, int | None]:
    """An attribute's text, where it stands (for messages), and its line."""
    own = tag.get(attribute)
    if own is not None:
        return own.strip(), f'<{tag.name} name="{tag.get("name")}"> has {attribute}="{own}"', tag.line
    value = defaults.get(attribute)
    return value, f"the connection's extra parameters have {attribute}={value}", None


def _probability(tag: Tag, attribute: str, defaults: Mapping[str, str]) -> float | None:
    text, where, line = _setting(tag, attribute, defaults)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 1.0:
        raise LabelConfigError(where, "Write a probability from 0 to 1, like 0.4", line=line)
    return value


def _whole(tag: Tag, attribute: str, defaults: Mapping[str, str], *, least: int) -> int | None:
    text, where, line = _setting(tag, attribute, defaults)
    if text is None:
        return None
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise LabelConfigError(where, f"Write a whole number, {least} or more", line=line)
    return value


def _flag(tag: Tag, attribute: str, defaults: Mapping[str, str]) -> bool:
    text, where, line = _setting(tag, attribute, defaults)
    if text is None or text.lower() in ("false", "0", "no", ""):
        return False
    if text.lower() in ("true", "1", "yes"):
        return True
    raise LabelConfigError(where, 'Write "true" or "false"', line=line)

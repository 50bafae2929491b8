"""Each control tag of a labelling config -> what to predict for it, or why it is left alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from backend.label_studio.config_attributes import ControlAttributes, unread, where
from backend.label_studio.config_conditions import Conditions, matching_regions, read_conditions
from backend.label_studio.config_labels import Note, read_choices, read_labels, read_phrases, read_taxonomy
from backend.label_studio.config_objects import LeftAloneError, Objects, is_control, required
from backend.label_studio.config_xml import LabelConfigError, Tag
from backend.label_studio.prediction_plan import (
    ControlKind,
    ControlPlan,
    IgnoredControl,
    LabelPrompt,
    PredictionPlan,
)

_LABELLED: dict[str, ControlKind] = {
    "brushlabels": "brushlabels",
    "bitmasklabels": "bitmasklabels",
    "polygonlabels": "polygonlabels",
    "rectanglelabels": "rectanglelabels",
    "ellipselabels": "ellipselabels",
    "keypointlabels": "keypointlabels",
}
_BARE: dict[str, ControlKind] = {
    "brush": "brush",
    "bitmask": "bitmask",
    "polygon": "polygon",
    "rectangle": "rectangle",
    "ellipse": "ellipse",
    "keypoint": "keypoint",
}
_DRAWING = {**_LABELLED, **_BARE}
_POINTERS = {"rectangle", "rectanglelabels", "keypoint", "keypointlabels"}
"""With which annotators ask the model: a box around the thing, a point on it."""
_CHOICE_MODES = ("single", "single-radio", "multiple")


class ConfigReader:
    """Goes through the tags of one config and collects controls and the reasons for what is left out."""

    def __init__(self, root: Tag, defaults: Mapping[str, str]) -> None:
        """Reads nothing yet.

        Args:
            root: of the config.
            defaults: of the connection, from `read_extra_params`.

        Raises:
            LabelConfigError: a name twice.
        """
        self._tags = list(root.walk())
        self._objects = Objects(root)
        self._defaults = defaults
        self._controls: list[ControlPlan] = []
        self._ignored: list[IgnoredControl] = []
        self._first_labels: dict[str | None, Tag] = {}
        for tag in self._tags:
            if tag.kind == "labels" and is_control(tag):
                self._first_labels.setdefault(tag.get("toName"), tag)
        self._firsts: dict[str, tuple[Tag | None, Tag | None]] = {}
        self._conditions: dict[str, tuple[Tag, Conditions]] = {}
        self._readers: dict[str, Callable[[Tag], ControlPlan | None]] = {
            **dict.fromkeys(_DRAWING, self._regions),
            "labels": self._labels,
            "choices": self._choices,
            "taxonomy": self._taxonomy,
            "textarea": self._textarea,
            "ranker": self._ranker,
        }

    def read(self) -> PredictionPlan:
        """The plan.

        Raises:
            LabelConfigError: a mistake that would make the backend guess.
        """
        for tag in self._tags:
            try:
                control = self._readers.get(tag.kind, self._unknown)(tag)
            except LeftAloneError as reason:
                self._note(tag)(str(reason))
            else:
                self._controls += [control] if control is not None else []
        controls = [self._with_regions(control) for control in self._controls]
        return PredictionPlan(tuple(control for control in controls if control is not None), tuple(self._ignored))

    def _note(self, tag: Tag) -> Note:
        """Takes reasons why something of a control is left alone."""
        return lambda reason: self._ignored.append(IgnoredControl(tag.get("name") or "", tag.name, reason))

    def _unknown(self, tag: Tag) -> None:
        if is_control(tag):
            raise LeftAloneError(f"<{tag.name}> is not predicted")

    # Regions ---------------------------------------------------------------------------------------------------------
    def _regions(self, tag: Tag) -> ControlPlan:
        """A control that draws, with labels of its own or, a bare shape, with those of a `Labels` tag beside it."""
        kind, attributes = _DRAWING[tag.kind], self._attributes(tag)
        from_name, to_name = required(tag, "name"), required(tag, "toName")
        _refuse_skipped(attributes)
        image_key = self._objects.image_key(tag, draws=True)
        source = self._labels_of(tag)
        if source is None:
            raise LeftAloneError(f'it draws regions without a label: no <Labels> has toName="{to_name}"')
        if tag.get("model_skip") is None:
            self._refuse_unwanted(tag)
        labels = read_labels(source, phrase_field=attributes.field("model_prompt_from"), note=self._note(tag))
        for each in [tag] if source is tag else [tag, source]:
            self._note_unread(each, kind, tag)
        return ControlPlan(
            kind=kind,
            from_name=from_name,
            to_name=to_name,
            image_key=image_key,
            labels=_some(labels, source, "Label"),
            threshold=attributes.probability("model_score_threshold"),
            min_area=attributes.whole("model_min_area", least=0),
            top_k=attributes.whole("model_top_k", least=1),
            labels_name=None if source is tag else source.get("name"),
            max_regions=attributes.whole("model_max_regions", least=1),
            tile=attributes.tile(),
            rotated=kind.startswith("rectangle") and attributes.flag("model_rotate"),
        )

    def _refuse_unwanted(self, tag: Tag) -> None:
        """Leave alone what nobody wants predicted as long as nobody says so.

        A tool with which annotators ask the model is no wish for its regions; and several bare shapes beside one
        `Labels` tag are so many ways to draw one thing, of which the first is enough.
        """
        plain, bare = self._first_drawing(tag.get("toName") or "")
        otherwise = 'model_skip="false" has it predicted too'
        if _is_pointer(tag) and plain is not None:
            raise LeftAloneError(
                f"it is a smart tool, with which annotators ask for the regions of <{plain.name}>; {otherwise}"
            )
        if tag.kind in _BARE and bare is not None and bare is not tag:
            raise LeftAloneError(
                f'<{bare.name} name="{bare.get("name")}"> shows the labels of <Labels> already; {otherwise}'
            )

    def _first_drawing(self, to_name: str) -> tuple[Tag | None, Tag | None]:
        """Of the tags that draw on an image the first that is no smart tool, and the first bare one."""
        if to_name not in self._firsts:
            drawing = [
                tag
                for tag in self._tags
                if tag.kind in _DRAWING
                and is_control(tag)
                and tag.get("toName") == to_name
                and self._labels_of(tag) is not None
                and not self._attributes(tag).flag("model_skip")
            ]
            plain = [tag for tag in drawing if not _is_pointer(tag)]
            self._firsts[to_name] = (
                next(iter(plain), None),
                next((tag for tag in plain or drawing if tag.kind in _BARE), None),
            )
        return self._firsts[to_name]

    def _labels_of(self, tag: Tag) -> Tag | None:
        """The tag that holds the labels of a control that draws; None for a bare shape without any."""
        return self._first_labels.get(tag.get("toName")) if tag.kind in _BARE else tag

    def _labels(self, tag: Tag) -> None:
        """A `Labels` tag gives its labels to bare shapes; here only the reason where it does not."""
        if not is_control(tag):
            return
        to_name = tag.get("toName")
        if not self._objects.is_image(to_name):
            raise LeftAloneError("<Labels> is predicted on images only, drawn by a bare shape")
        if not any(other.kind in _BARE and other.get("toName") == to_name for other in self._tags):
            raise LeftAloneError(f'no <Rectangle>, <Polygon>, <Brush> ... has toName="{to_name}" to draw its labels')
        first = self._first_labels.get(to_name)
        if first is not None and first is not tag:
            raise LeftAloneError(f'the bare shapes take the labels of the first, <Labels name="{first.get("name")}">')

    # Answers ---------------------------------------------------------------------------------------------------------
    def _choices(self, tag: Tag) -> ControlPlan:
        plan = self._answer(tag, "choices")
        if _is_true(tag, "allowNested"):
            raise LeftAloneError("its answers are paths (allowNested), which Label Studio refuses; use <Taxonomy>")
        mode = (tag.get("choice") or "single").strip()
        if mode not in _CHOICE_MODES:
            raise LabelConfigError(where(tag, "choice"), f"Use one of {', '.join(_CHOICE_MODES)}", line=tag.line)
        labels = read_choices(tag, note=self._note(tag))
        several = mode == "multiple"
        empty = several and _always_asked(tag)
        return replace(plan, multiple=several, labels=_some(labels, tag, "Choice"), empty_means_none=empty)

    def _taxonomy(self, tag: Tag) -> ControlPlan:
        plan = self._answer(tag, "taxonomy")
        if tag.get("apiUrl"):
            raise LeftAloneError("its items come from an address (apiUrl), not from the config")
        most = _limit(plan.top_k, tag.get("maxUsages"))
        labels = read_taxonomy(tag, note=self._note(tag))
        empty = most != 1 and _always_asked(tag)
        return replace(
            plan, multiple=most != 1, top_k=most, labels=_some(labels, tag, "Choice"), empty_means_none=empty
        )

    def _textarea(self, tag: Tag) -> ControlPlan | None:
        attributes, tags = self._attributes(tag), read_phrases(tag)
        text = attributes.one_of("model_text", ("tags", "phrases", "messages"))
        written = attributes.written("model_text")
        self._check_answering(tag)
        if text == "messages" and written:
            self._check_messages(tag)
            raise LeftAloneError("it tells annotators what came of their questions")
        if not tags and not written:
            if not is_control(tag):
                return None  # Label Studio allows it: a field of its own
            if text != "phrases" or not self._objects.is_image(tag.get("toName")):
                raise LeftAloneError("it is the field for what annotators type; prompt or model_text fills it")
        if tags and written and text == "phrases":
            raise LabelConfigError(
                f"{where(tag, 'model_text')}, and tags of its own", "Keep one of the two", line=tag.line
            )
        if text == "tags" and not tags:
            raise LabelConfigError(
                f"{where(tag, 'model_text')}, but no tags", 'Name them, like prompt="rain | snow"', line=tag.line
            )
        plan = self._answer(tag, "textarea")
        if not tags and plan.per_region:
            raise LeftAloneError('model_text="phrases" is for the whole image, not for single regions (perRegion)')
        most = _limit(plan.top_k, tag.get("maxSubmissions"))
        return replace(plan, text="tags" if tags else "phrases", top_k=most, labels=tags)

    def _check_answering(self, tag: Tag) -> None:
        """Refuse a `model_answer` that names no control that draws on the text area's image."""
        named = (tag.get("model_answer") or "").strip()
        drawing = [
            other.get("name") or ""
            for other in self._tags
            if other.kind in _DRAWING and other.get("toName") == tag.get("toName")
        ]
        if tag.get("model_answer") is not None and named not in drawing:
            remedy = f"Name one of {', '.join(drawing)}" if drawing else "Remove it"
            raise LabelConfigError(
                f"{where(tag, 'model_answer')}, which draws nothing on the same image", remedy, line=tag.line
            )

    def _check_messages(self, tag: Tag) -> None:
        """Refuse messages about the image itself: the editor would give them the label that is selected."""
        if not is_control(tag) or self._objects.is_image(tag.get("toName")):
            raise LabelConfigError(
                f"{where(tag, 'model_text')}, but toName names no text",
                'Add <Text name="chat" value="The model says:"/> and write toName="chat"',
                line=tag.line,
            )

    def _answer(self, tag: Tag, kind: ControlKind) -> ControlPlan:
        """What the controls have in common that answer with words; the labels are still missing."""
        attributes = self._attributes(tag)
        from_name, to_name = required(tag, "name"), required(tag, "toName")
        _refuse_skipped(attributes)
        image_key = self._objects.image_key(tag, draws=False)
        if _is_true(tag, "perItem"):
            raise LeftAloneError("it is asked per item of a list (perItem)")
        per_region = _is_true(tag, "perRegion")
        if per_region:
            self._conditions[from_name] = (tag, read_conditions(tag))
        self._note_unread(tag, kind, tag)
        return ControlPlan(
            kind=kind,
            from_name=from_name,
            to_name=to_name,
            image_key=image_key,
            labels=(),
            threshold=attributes.probability("model_score_threshold"),
            top_k=attributes.whole("model_top_k", least=1),
            per_region=per_region,
        )

    def _with_regions(self, plan: ControlPlan) -> ControlPlan | None:
        """A control with `perRegion` learns for which regions it is asked; None after noting why for none."""
        if not plan.per_region:
            return plan
        tag, conditions = self._conditions[plan.from_name]
        found = matching_regions(
            conditions, [item for item in self._controls if item.shape is not None and item.to_name == plan.to_name]
        )
        if isinstance(found, str):
            self._note(tag)(found)
            return None
        for reason in conditions.unread:
            self._note(tag)(reason)
        return replace(plan, only_labels=found.labels, only_controls=found.controls)

    def _ranker(self, tag: Tag) -> ControlPlan:
        attributes = self._attributes(tag)
        from_name, to_name = required(tag, "name"), required(tag, "toName")
        _refuse_skipped(attributes)
        if any(child.kind == "bucket" for child in tag.children):
            raise LeftAloneError("its items go into buckets, and what belongs into one no ranking says")
        items_key = self._objects.items_key(tag)
        image_key = self._objects.compared_image_key(tag, attributes)
        self._note_unread(tag, "ranker", tag)
        return ControlPlan("ranker", from_name, to_name, image_key, (), items_from=items_key)

    # Attributes ------------------------------------------------------------------------------------------------------
    def _attributes(self, tag: Tag) -> ControlAttributes:
        """Those of a control; a bare shape also has those of its `Labels` tag."""
        labels = self._labels_of(tag)
        return ControlAttributes([tag] if labels is None or labels is tag else [tag, labels], self._defaults)

    def _note_unread(self, source: Tag, kind: ControlKind, control: Tag) -> None:
        for reason in unread(source, kind):
            self._note(control)(reason)


def _refuse_skipped(attributes: ControlAttributes) -> None:
    if attributes.flag("model_skip"):
        raise LeftAloneError("model_skip is set")


def _some(labels: tuple[LabelPrompt, ...], tag: Tag, item: str) -> tuple[LabelPrompt, ...]:
    if labels:
        return labels
    if tag.get("value"):
        raise LeftAloneError(f"its labels come from the task's data ({tag.get('value')}), not from the config")
    raise LeftAloneError(f"it holds no <{item}> to predict")


def _always_asked(tag: Tag) -> bool:
    """Whether annotators always see a control, and may leave it empty."""
    conditional = any(each.get("visibleWhen") for each in (tag, *tag.ancestors()))
    return not conditional and not _is_true(tag, "required")


def _is_pointer(tag: Tag) -> bool:
    """Whether it is a box or a point with which annotators ask the model."""
    return tag.kind in _POINTERS and (_is_true(tag, "smart") or _is_true(tag, "smartOnly"))


def _is_true(tag: Tag, attribute: str) -> bool:
    return (tag.get(attribute) or "").strip().lower() == "true"


def _limit(most: int | None, editor_s: str | None) -> int | None:
    """The smaller of our limit and the editor's own, which is no limit where it is no number."""
    if editor_s is None or not re.fullmatch(r"0*[1-9][0-9]{0,8}", editor_s.strip()):
        return most
    return int(editor_s) if most is None else min(most, int(editor_s))

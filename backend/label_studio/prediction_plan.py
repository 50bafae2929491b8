"""What a labelling config asks of the backend: controls, their labels, and the phrases of each label.

Plain values, made by `backend.label_studio.config`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

ControlKind = Literal[
    "brushlabels",
    "bitmasklabels",
    "polygonlabels",
    "rectanglelabels",
    "ellipselabels",
    "keypointlabels",
    "brush",
    "bitmask",
    "polygon",
    "rectangle",
    "ellipse",
    "keypoint",
    "choices",
    "taxonomy",
    "textarea",
    "ranker",
]
"""The type of a control's results. A bare shape ("polygon") takes its labels from a `Labels` tag."""

Shape = Literal["brush", "bitmask", "polygon", "rectangle", "ellipse", "keypoint"]
"""What a region on the image is drawn as."""

FIELDS = re.compile(r"\$[\w\[\].{}]+", re.ASCII)
"""A field of the task's data within an attribute's value, as the editor finds it."""

_SHAPES: tuple[Shape, ...] = ("brush", "bitmask", "polygon", "rectangle", "ellipse", "keypoint")


def read_field(data: Mapping[str, Any], key: str) -> Any:
    """What a task's data holds in a field; None where there is none.

    Like the editor, reads `a.b[0]` as a path where there is no field of exactly that name.
    """
    value: Any = data.get(key)
    if value is None:
        value = data
        for step in re.findall(r"[^.\[\]]+", key):
            if isinstance(value, Mapping):
                value = value.get(step)
            elif isinstance(value, Sequence) and not isinstance(value, str) and step.isdigit():
                value = value[int(step)] if int(step) < len(value) else None
            else:
                return None
    return value


@dataclass(frozen=True)
class LabelPrompt:
    """One label and the phrases that stand for it.

    Attributes:
        label: what goes into results (`alias` where there is one, else `value`). Of a taxonomy's item, whose name may
            be there in several branches, its path joined by " / ".
        prompts: one or more phrases, none blank, no repeats; alternatives, the best one counts.
        value: the label's `value`; the editor accepts it in results too.
        not_prompts: phrases of what must not be included.
        prompt_from: field of the task's data that holds the phrase instead of `prompts`; None: `prompts` count.
        path: of a taxonomy's item, from the root to this item, as results name it; () for all other labels.
    """

    label: str
    prompts: tuple[str, ...]
    value: str = ""
    not_prompts: tuple[str, ...] = ()
    prompt_from: str | None = None
    path: tuple[str, ...] = ()

    def phrases(self, data: Mapping[str, Any]) -> tuple[str, ...]:
        """The phrases that stand for the label in one task: `prompts`, or what its data holds in `prompt_from`.

        There, alternatives are a list of texts, or one text with `|` between them. () where there is none.
        """
        if self.prompt_from is None:
            return self.prompts
        found = read_field(data, self.prompt_from)
        texts = found.split("|") if isinstance(found, str) else found
        if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
            return ()
        return tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))


@dataclass(frozen=True)
class ControlPlan:
    """What to predict for one control tag.

    Attributes:
        kind: the region type in results.
        from_name: name of the control tag.
        to_name: name of the `Image` that it labels; of a `ranker`, of its `List`.
        image_key: field of the task's data that holds the image's address, or a template of several fields like
            `https://host/$folder/$name`; see `image_uri`.
        labels: one or more labels, in the config's order; () for a `ranker` and for a `textarea` of "phrases".
        threshold: least probability, 0..1; None: the predictor's default for this kind.
        min_area: least area of a region, pixels of the displayed image; None: the predictor's default.
        top_k: most regions per label, or most choices; None: no limit.
        multiple: several answers may be given together (`choices` and `taxonomy` only).
        labels_name: name of the `Labels` tag that labels a bare shape; None for all other controls.
        max_regions: most regions of this control on one image, the surest ones; None: no limit.
        tile: side of the narrowest windows through which a large image is looked at, px; "auto" chooses it; None:
            the whole image alone.
        rotated: boxes may be rotated (`rectanglelabels` and `rectangle` only).
        per_region: asked once for each predicted region, of its part of the image, instead of the whole image.
        only_labels: with `per_region`, the labels of regions for which it is asked; (): all.
        only_controls: with `per_region`, the names of the controls for whose regions it is asked; (): all.
        text: what a `textarea` is filled with: "tags", its labels ranked, with scores; "phrases", those that were
            asked and found something. "" for all other controls.
        items_from: field of the task's data that holds the items of a `ranker`, a list; None for all others.
        empty_means_none: a finished annotation without an answer says that none of the labels applies: several may be
            given, none has to be, and annotators were always asked.
    """

    kind: ControlKind
    from_name: str
    to_name: str
    image_key: str
    labels: tuple[LabelPrompt, ...]
    threshold: float | None = None
    min_area: int | None = None
    top_k: int | None = None
    multiple: bool = False
    labels_name: str | None = None
    max_regions: int | None = None
    tile: int | Literal["auto"] | None = None
    rotated: bool = False
    per_region: bool = False
    only_labels: tuple[str, ...] = ()
    only_controls: tuple[str, ...] = ()
    text: Literal["", "tags", "phrases"] = ""
    items_from: str | None = None
    empty_means_none: bool = False

    @property
    def shape(self) -> Shape | None:
        """What its regions are drawn as; None for a control that answers for the whole image or a whole region."""
        drawn = self.kind.removesuffix("labels")
        return next((shape for shape in _SHAPES if shape == drawn), None)

    @property
    def covers_pixels(self) -> bool:
        """Whether its regions are areas: masks, boxes and outlines, but not points."""
        return self.shape not in (None, "keypoint")

    @property
    def answers(self) -> tuple[LabelPrompt, ...]:
        """The labels that can be answers: of a taxonomy those that no other one is below, for paths name the rest."""
        if self.kind != "taxonomy":
            return self.labels
        above = {label.path[:length] for label in self.labels for length in range(1, len(label.path))}
        return tuple(label for label in self.labels if label.path not in above)

    @property
    def learns_tags(self) -> bool:
        """Whether annotations can teach its answers: choices for the whole image, with labels of their own meaning."""
        return (
            self.kind in ("choices", "taxonomy")
            and not self.per_region
            and all(label.prompt_from is None for label in self.labels)
        )

    def image_uri(self, data: Mapping[str, Any]) -> str | None:
        """The image's address in a task's data; None where a field is absent or holds no text.

        Fields are found and put into a template as the editor does it.
        """
        if "$" not in self.image_key:
            value = read_field(data, self.image_key)
            return value if isinstance(value, str) and value else None
        parts = {name: read_field(data, name[1:]) for name in FIELDS.findall(self.image_key)}
        if not all(isinstance(part, (str, int, float)) and str(part) for part in parts.values()):
            return None
        return FIELDS.sub(lambda match: str(parts[match.group()]), self.image_key)

    def label_named(self, name: str) -> LabelPrompt | None:
        """The label that a result means by `name`: its `label`, else its `value`."""
        by_value = None
        for label in self.labels:
            if label.label == name:
                return label
            if label.value == name:
                by_value = label
        return by_value


@dataclass(frozen=True)
class IgnoredControl:
    """A control tag, or an attribute of one, that predictions leave alone.

    Attributes:
        name: the control's name.
        tag: its tag as written.
        reason: one sentence for the project owner.
    """

    name: str
    tag: str
    reason: str


@dataclass(frozen=True)
class PredictionPlan:
    """All that a labelling config asks of the backend.

    Attributes:
        controls: what to predict, in the config's order; empty when the config holds nothing for us.
        ignored: what is left alone, and why.
    """

    controls: tuple[ControlPlan, ...]
    ignored: tuple[IgnoredControl, ...] = ()

    @property
    def prompts(self) -> tuple[str, ...]:
        """Every phrase of the controls that ask for regions, in order, without repeats."""
        return self._phrases([control for control in self.controls if control.shape is not None])

    @property
    def tags(self) -> tuple[str, ...]:
        """Every phrase of the controls that rank tags, in order, without repeats."""
        return self._phrases([control for control in self.controls if control.shape is None])

    def control(self, from_name: str) -> ControlPlan | None:
        """The planned control of that name."""
        return next((item for item in self.controls if item.from_name == from_name), None)

    def hash_payload(self) -> dict[str, Any]:
        """Everything of the config that changes predictions, as plain JSON values; goes into the version hash.

        Colours, layout, hot keys and ignored controls are left out, so that a cosmetic edit does not make
        Label Studio predict again.
        """
        controls = [json.loads(json.dumps(asdict(control))) for control in self.controls]
        for control in controls:
            del control["empty_means_none"]  # it is about annotations
        return {"controls": controls}

    @staticmethod
    def _phrases(controls: Sequence[ControlPlan]) -> tuple[str, ...]:
        return tuple(
            dict.fromkeys(phrase for control in controls for label in control.labels for phrase in label.prompts)
        )

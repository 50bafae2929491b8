"""What a labelling config asks of the backend: controls, their labels, and the phrases of each label.

Plain values, made by `backend.label_studio.config`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

ControlKind = Literal["brushlabels", "rectanglelabels", "choices"]


@dataclass(frozen=True)
class LabelPrompt:
    """One label and the phrases that stand for it.

    Attributes:
        label: what goes into results (`alias` where there is one, else `value`).
        prompts: one or more phrases, none blank, no repeats; alternatives, the best one counts.
        value: the label's `value`; the editor accepts it in results too.
    """

    label: str
    prompts: tuple[str, ...]
    value: str = ""


@dataclass(frozen=True)
class ControlPlan:
    """What to predict for one control tag.

    Attributes:
        kind: the region type in results.
        from_name: name of the control tag.
        to_name: name of the `Image` that it labels.
        image_key: field of the task's data that holds the image's address; see `image_uri`.
        labels: one or more labels, in the config's order.
        threshold: least probability, 0..1; None: the predictor's default for this kind.
        min_area: least area of a region, pixels of the displayed image; None: the predictor's default.
        top_k: most regions per label, or most choices; None: no limit.
        multiple: several choices may be given together (`choices` only).
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

    def image_uri(self, data: Mapping[str, Any]) -> str | None:
        """The image's address in a task's data; None where the field is absent or holds no text.

        Like the editor, reads `a.b[0]` as a path where there is no field of exactly that name.
        """
        value: Any = data.get(self.image_key)
        if value is None:
            value = data
            for step in re.findall(r"[^.\[\]]+", self.image_key):
                if isinstance(value, Mapping):
                    value = value.get(step)
                elif isinstance(value, Sequence) and not isinstance(value, str) and step.isdigit():
                    value = value[int(step)] if int(step) < len(value) else None
                else:
                    return None
        return value if isinstance(value, str) and value else None

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
        return self._phrases(("brushlabels", "rectanglelabels"))

    @property
    def tags(self) -> tuple[str, ...]:
        """Every phrase of the `Choices` controls, in order, without repeats."""
        return self._phrases(("choices",))

    def control(self, from_name: str) -> ControlPlan | None:
        """The planned control of that name."""
        return next((item for item in self.controls if item.from_name == from_name), None)

    def hash_payload(self) -> dict[str, Any]:
        """Everything of the config that changes predictions, as plain JSON values; goes into the version hash.

        Colours, layout, hot keys and ignored controls are left out, so that a cosmetic edit does not make
        Label Studio predict again.
        """
        return {"controls": [json.loads(json.dumps(asdict(control))) for control in self.controls]}

    def _phrases(self, kinds: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(
            dict.fromkeys(
                phrase
                for control in self.controls
                if control.kind in kinds
                for label in control.labels
                for phrase in label.prompts
            )
        )

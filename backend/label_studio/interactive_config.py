"""What a labelling config says of interactive work: which text areas take phrases, and where answers are told.

| tag | attribute | meaning |
|---|---|---|
| `TextArea` on an image | | takes phrases, unless predictions fill it or `smart="false"` has the editor not ask |
| | `model_answer="marks"` | the control that answers its phrases |
| `TextArea` on a `Text` | `model_text="messages"` | the place for what was found, or why nothing was |

Mistakes in these are found by `backend.label_studio.config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from backend.label_studio.config import PredictionPlan
from backend.label_studio.config_xml import Tag, read_tags


@dataclass(frozen=True)
class MessageBox:
    """The `TextArea` that tells the annotator what came of a question; its name and its object's."""

    from_name: str
    to_name: str


@dataclass(frozen=True)
class InteractiveConfig:
    """What interactive requests need to know of a labelling config.

    Attributes:
        phrases: names of the text areas that take phrases, each with the name of the control that answers; None: the
            predictor's choice.
        messages: where answers are told; None: nowhere.
    """

    phrases: Mapping[str, str | None] = field(default_factory=dict)
    messages: MessageBox | None = None


def read_interactive_config(xml: str, plan: PredictionPlan) -> InteractiveConfig:
    """Read a labelling config.

    Args:
        xml: the config.
        plan: what predictions do with it.

    Raises:
        LabelConfigError: as `read_tags`.
    """
    root = read_tags(xml)
    images = {tag.get("name") for tag in root.walk() if tag.kind == "image"}
    filled = {control.from_name for control in plan.controls}
    phrases: dict[str, str | None] = {}
    messages: MessageBox | None = None
    for tag in root.walk():
        name, to_name = tag.get("name"), tag.get("toName")
        if tag.kind != "textarea" or not name or not to_name:
            continue
        if (tag.get("model_text") or "").strip() == "messages":
            messages = messages or MessageBox(name, to_name)
        elif to_name in images and name not in filled and not _is(tag, "smart", "false"):
            phrases[name] = (tag.get("model_answer") or "").strip() or None
    return InteractiveConfig(phrases, messages)


def _is(tag: Tag, attribute: str, value: str) -> bool:
    """Whether an attribute has a value; the editor minds the case of neither."""
    return any(name.lower() == attribute and text.strip().lower() == value for name, text in tag.attributes.items())

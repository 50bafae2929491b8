"""What a labelling config says of interactive work: which text areas take phrases, which tools show exemplars, and where
answers are told.

| tag | attribute | meaning |
|---|---|---|
| `TextArea` on an image | | takes phrases, unless the editor is told not to ask for it (`smart="false"`), or it is filled by predictions |
| | `model_answer="marks"` | the control that answers its phrases |
| `TextArea` | `model_text="messages"` | the place for what was found, or why nothing was |
| a shape's control tag | `model_smart="exemplar"` | what its smart tool draws shows what to look for, instead of where |
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
        exemplar_tools: names of the controls whose smart tools show what to look for.
        messages: where answers are told; None: nowhere.
    """

    phrases: Mapping[str, str | None] = field(default_factory=dict)
    exemplar_tools: frozenset[str] = frozenset()
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
    tools: set[str] = set()
    messages: MessageBox | None = None
    for tag in root.walk():
        name, to_name = tag.get("name"), tag.get("toName")
        if not name or not to_name:
            continue
        if tag.kind == "textarea":
            if (tag.get("model_text") or "").strip() == "messages":
                messages = messages or MessageBox(name, to_name)
            elif to_name in images and name not in filled and not _is(tag, "smart", "false"):
                phrases[name] = (tag.get("model_answer") or "").strip() or None
        elif (tag.get("model_smart") or "").strip() == "exemplar":
            tools.add(name)
    return InteractiveConfig(phrases, frozenset(tools), messages)


def _is(tag: Tag, attribute: str, value: str) -> bool:
    """Whether an attribute has a value; the editor minds the case of neither."""
    return any(name.lower() == attribute and text.strip().lower() == value for name, text in tag.attributes.items())

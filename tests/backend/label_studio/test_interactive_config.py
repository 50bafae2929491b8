"""What annotators can ask with a labelling config, and that the documentation's configs work."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from label_studio_sdk.label_interface import LabelInterface
from typer.testing import CliRunner

from backend.cli import app
from backend.label_studio.config import LabelConfigError, parse_label_config
from backend.label_studio.interactive_config import InteractiveConfig, MessageBox, read_interactive_config

DOCS = Path(__file__).resolve().parents[3] / "docs"
EXAMPLES = re.findall(r"^```xml\n(.*?)^```", (DOCS / "interactive.md").read_text(), re.DOTALL | re.MULTILINE)
BRUSH = '<BrushLabels name="mask" toName="image"><Label value="circle"/><Label value="square"/></BrushLabels>'


def config(*tags: str) -> str:
    return f'<View><Image name="image" value="$image"/><Text name="chat" value="x"/>{BRUSH}{"".join(tags)}</View>'


def read(*tags: str) -> InteractiveConfig:
    xml = config(*tags)
    return read_interactive_config(xml, parse_label_config(xml))


def test_a_text_area_on_an_image_takes_phrases() -> None:
    assert read('<TextArea name="ask" toName="image"/>').phrases == {"ask": None}
    assert read('<TextArea name="ask" toName="image" model_answer="mask"/>').phrases == {"ask": "mask"}


@pytest.mark.parametrize(
    "tag",
    [
        '<TextArea name="note" toName="chat"/>',
        '<TextArea name="note"/>',
        '<TextArea name="note" toName="image" smart="false"/>',
        '<TextArea name="note" toName="image" SMART="False"/>',
        '<TextArea name="note" toName="image" model_text="phrases"/>',
        '<TextArea name="note" toName="image" prompt="rain | snow"/>',
    ],
)
def test_one_that_is_for_something_else_does_not(tag: str) -> None:
    assert read(tag).phrases == {}


def test_messages_have_a_place() -> None:
    assert read('<TextArea name="said" toName="chat" model_text="messages"/>').messages == MessageBox("said", "chat")
    assert read().messages is None


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        ('<TextArea name="said" toName="image" model_text="messages"/>', "toName names no text. Add <Text"),
        (
            '<TextArea name="ask" toName="image" model_answer="chat"/>',
            "draws nothing on the same image. Name one of mask",
        ),
        ('<TextArea name="ask" toName="image" model_text="message"/>', "Use one of tags, phrases, messages"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(tag: str, reason: str) -> None:
    with pytest.raises(LabelConfigError, match=reason):
        parse_label_config(config(tag))


def test_check_config_says_what_can_be_asked() -> None:
    tags = ('<TextArea name="ask" toName="image" model_answer="mask"/>',)
    outcome = CliRunner().invoke(app, ["check-config", "-"], input=config(*tags))
    assert 'ask: what is typed is looked for, and "mask" shows it' in outcome.output
    assert "nothing tells what came of it" in outcome.output
    tags += ('<TextArea name="said" toName="chat" model_text="messages"/>',)
    outcome = CliRunner().invoke(app, ["check-config", "-", "--json"], input=config(*tags))
    assert json.loads(outcome.output)["interactive"] == {"phrases": {"ask": "mask"}, "messages": "said"}


def test_the_documentation_has_an_example() -> None:
    assert len(EXAMPLES) == 1


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_documentations_example_works(example: str) -> None:
    outcome = CliRunner().invoke(app, ["check-config", "-"], input=example)
    assert outcome.exit_code == 0, outcome.output
    LabelInterface(example).validate()
    plan = parse_label_config(example)
    assert [control.from_name for control in plan.controls] == ["mask"]
    interactive = read_interactive_config(example, plan)
    assert interactive == InteractiveConfig({"phrase": None}, MessageBox("said", "chat"))


def test_every_link_of_the_page_leads_somewhere() -> None:
    for link in re.findall(r"\]\(([^)]+)\)", (DOCS / "interactive.md").read_text()):
        assert (DOCS / link.partition("#")[0]).exists(), link

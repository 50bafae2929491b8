"""What docs/labelling-config.md shows works, and it leaves nothing out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from label_studio_sdk.label_interface import LabelInterface
from typer.testing import CliRunner

from backend.cli import app
from backend.label_studio.config import ControlKind, parse_label_config
from backend.label_studio.config_attributes import CONTROL_ATTRIBUTES, LABEL_ATTRIBUTES

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGE = (DOCS / "labelling-config.md").read_text()
EXAMPLES = re.findall(r"^```xml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_there_are_examples_for_every_control_and_attribute() -> None:
    assert len(EXAMPLES) >= 18
    controls = [control for example in EXAMPLES for control in parse_label_config(example).controls]
    drawn = {kind.removesuffix("labels") for kind in get_args(ControlKind)}
    assert {control.kind.removesuffix("labels") for control in controls} == drawn
    missing = [name for name in (*CONTROL_ATTRIBUTES, *LABEL_ATTRIBUTES) if f"`{name}" not in PAGE]
    assert missing == []


@pytest.mark.parametrize("example", EXAMPLES)
def test_check_config_accepts_every_example(example: str) -> None:
    outcome = CliRunner().invoke(app, ["check-config", "-"], input=example)
    assert outcome.exit_code == 0, outcome.output
    LabelInterface(example).validate()


def test_every_link_leads_somewhere() -> None:
    headings = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in re.findall(r"^#+ (.*)$", PAGE, re.M)
    }
    for link in re.findall(r"\]\(([^)]+)\)", PAGE):
        file, _, anchor = link.partition("#")
        assert not file or (DOCS / file).exists(), link
        assert file or anchor in headings, link

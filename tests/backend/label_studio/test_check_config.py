"""`vlm check-config`: what is predicted, what is asked, what is left alone, and what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from backend.cli import app

CONFIG = """<View><Image name="image" value="$image"/><List name="list" value="$texts"/>
<BrushLabels name="mask" toName="image" model_score_threshold="0.4" model_tile="auto">
  <Label value="Car" alias="C" prompt="red car | blue car" not_prompt="toy car"/><Label value="Tree"/>
  <Label value="meant" model_prompt_from="$caption"/>
</BrushLabels>
<Labels name="what" toName="image"><Label value="Sign"/></Labels>
<Rectangle name="box" toName="image" model_rotate="true" model_top_k="2" model_max_regions="9" model_min_area="5"/>
<Polygon name="outline" toName="image"/>
<Choices name="dirty" toName="image" perRegion="true" whenTagName="mask" whenLabelValue="C">
  <Choice value="dirty"/></Choices>
<Taxonomy name="scene" toName="image"><Choice value="road"><Choice value="empty"/></Choice></Taxonomy>
<TextArea name="found" toName="image" model_text="phrases"/>
<Ranker name="rank" toName="list"/></View>"""

REPORT = """mask: masks (brushlabels) on "image", image from the data's field 'image'
  [probability from 0.4; looked at through windows of a fitting size]
  C      red car | blue car, but not toy car
  Tree   Tree
  meant  the phrase in the data's field 'caption'
box: rotated boxes (rectangle) on "image", image from the data's field 'image'
  [labels from "what"; at least 5 px; at most 2 a label; at most 9 in all]
  Sign  Sign
dirty: one tag (choices) on "image", image from the data's field 'image'
  [asked for each region of "mask" with the label "C"]
  dirty  dirty
scene: several tags (taxonomy) on "image", image from the data's field 'image'
  road / empty  empty
found: the phrases that found something (textarea) on "image", image from the data's field 'image'
rank: a ranking of the items in the data's field 'texts' (ranker) on "list", image from the data's field 'image'

Left alone:
  outline <Polygon>: <Rectangle name="box"> shows the labels of <Labels> already; \
model_skip="false" has it predicted too

With auto-annotation on:
  smart rectangles say where to look, smart key points which part is meant
  nothing tells what came of it: a <TextArea model_text="messages"> would
"""


def test_it_says_what_is_predicted_and_what_is_not(tmp_path: Path) -> None:
    file = tmp_path / "config.xml"
    file.write_text(CONFIG, encoding="utf-8-sig")  # as some editors write it
    outcome = CliRunner().invoke(app, ["check-config", str(file)])
    assert (outcome.exit_code, outcome.output) == (0, REPORT)


def test_the_same_as_json() -> None:
    data = json.loads(CliRunner().invoke(app, ["check-config", "-", "--json"], input=CONFIG).stdout)
    assert data["controls"][0]["labels"][0]["prompts"] == ["red car", "blue car"]
    assert [item["name"] for item in data["ignored"]] == ["outline"]
    assert data["error"] is None


def test_extra_params_of_the_connection() -> None:
    extra = '{"model_top_k": 7, "model_score_threshold": 0.9}'
    outcome = CliRunner().invoke(app, ["check-config", "-", "--extra-params", extra, "--json"], input=CONFIG)
    limits = [(control["top_k"], control["threshold"]) for control in json.loads(outcome.stdout)["controls"]]
    assert limits[:3] == [(7, 0.4), (2, 0.9), (7, 0.9)]
    outcome = CliRunner().invoke(app, ["check-config", "-", "--extra-params", "["], input=CONFIG)
    assert outcome.exit_code == 1
    assert "extra parameters" in outcome.output


def test_a_mistake_is_said_with_line_value_and_remedy_also_as_json() -> None:
    wrong = CONFIG.replace("0.4", "high")
    outcome = CliRunner().invoke(app, ["check-config", "-", "--json"], input=wrong)
    assert outcome.exit_code == 1
    assert json.loads(outcome.stdout) == {
        "controls": [],
        "ignored": [],
        "interactive": None,
        "error": {
            "line": 2,
            "problem": '<BrushLabels name="mask"> has model_score_threshold="high"',
            "remedy": "Write a probability from 0 to 1, like 0.4",
        },
    }
    assert outcome.stderr == (
        'vlm: labelling config, line 2: <BrushLabels name="mask"> has model_score_threshold="high". '
        "Write a probability from 0 to 1, like 0.4.\n"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"<View/>", "Nothing is predicted"),
        (b"<View", "line 1: not well-formed"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_it_fails_where_nothing_can_be_predicted(text: bytes | None, words: str, tmp_path: Path) -> None:
    file = tmp_path / "config.xml"
    if text is not None:
        file.write_bytes(text)
    outcome = CliRunner().invoke(app, ["check-config", str(file)])
    assert outcome.exit_code == 1
    assert words in outcome.output

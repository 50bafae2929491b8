"""Every control tag on a real Label Studio: predictions are stored, and the real editor opens them as they are."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from backend.demo.project import evaluation_scenes, png
from backend.demo.stack import Stack
from backend.label_studio.annotation_masks import masks_from_results
from backend.label_studio.client import LabelStudioClient
from backend.label_studio.config import parse_label_config
from backend.label_studio.connect import connect_project
from tests.e2e.browser import (
    agreement,
    chromium_path,
    complaints_of,
    open_task,
    serialized,
    signed_in,
)
from tests.pictures import keep_picture
from vlm_core.demo.scenes import Scene

pytestmark = pytest.mark.e2e

SHAPES = ("Brush", "Bitmask", "Polygon", "Rectangle", "Ellipse", "KeyPoint")
LABELS = '<Label value="circle"/><Label value="square" alias="a &quot;square&quot; 目"/><Label value="triangle"/>'
ANSWERS = """
  <Choices name="colour" toName="image" perRegion="true">
    <Choice value="red"/><Choice value="green"/><Choice value="blue"/>
  </Choices>
  <Choices name="one" toName="image"><Choice value="a circle"/><Choice value="a heart"/></Choices>
  <Choices name="many" toName="image" choice="multiple"><Choice value="red"/><Choice value="blue"/></Choices>
  <Taxonomy name="kind" toName="image">
    <Choice value="round"><Choice value="circle"/><Choice value="heart"/></Choice>
    <Choice value="angular"><Choice value="square"/><Choice value="triangle"/></Choice>
  </Taxonomy>
  <TextArea name="tags" toName="image" prompt="circle | square"/>
  <TextArea name="found" toName="image" model_text="phrases"/>
  <List name="captions" value="$captions" title="Which caption fits?"/>
  <Ranker name="rank" toName="captions"/>"""
WITH_LABELS = (
    '<View><Image name="image" value="$image"/>'
    + "".join(f'<{s}Labels name="{s.lower()}" toName="image">{LABELS}</{s}Labels>' for s in SHAPES)
    + f"{ANSWERS}</View>"
)
BARE = (
    f'<View><Image name="image" value="$image"/><Labels name="what" toName="image">{LABELS}</Labels>'
    + "".join(f'<{s} name="{s.lower()}" toName="image" model_skip="false"/>' for s in SHAPES)
    + f"{ANSWERS}</View>"
)
CAPTIONS = [{"id": 11, "title": "a red circle"}, {"id": 12, "title": "a heart"}, {"id": 13, "title": "a boat"}]
DRAWN_S = 30.0


@dataclass(frozen=True)
class Predicted:
    """One task and its prediction, as Label Studio stored it."""

    project_id: int
    task_id: int
    result: list[dict[str, Any]]
    scene: Scene


@pytest.fixture(scope="module")
def scene() -> Scene:
    """One with a circle, a square and a triangle."""
    wanted = {"circle", "square", "triangle"}
    return next(one for one in evaluation_scenes(60) if wanted <= {item.shape for item in one.objects})


def predict(stack: Stack, client: LabelStudioClient, config: str, scene: Scene, title: str) -> Predicted:
    project_id = int(client.create_project(title, config)["id"])
    uri = "data:image/png;base64," + base64.b64encode(png(scene)).decode()
    client.import_tasks(project_id, [{"data": {"image": uri, "captions": CAPTIONS}}])
    connect_project(client, project_id, stack.backend_url, webhook_secret=stack.credentials.webhook_secret)
    client.retrieve_predictions(project_id)
    (task,) = client.tasks(project_id)
    (prediction,) = client.task_predictions(int(task["id"]))
    return Predicted(project_id, int(task["id"]), prediction["result"], scene)


@contextmanager
def opened(stack: Stack, predicted: Predicted, *, height: int = 900) -> Any:
    """The editor with the task, in a window of some height, px; and what it complained of."""
    chromium = chromium_path()
    if chromium is None:
        pytest.skip("no Chromium on this machine: install it (apt install chromium), or name one with CHROMIUM")
    regions = len({result["id"] for result in predicted.result if "original_width" in result})
    with signed_in(stack.label_studio_url, stack.credentials, chromium) as page:
        complaints = complaints_of(page)
        page.set_viewport_size({"width": 1500, "height": height})
        open_task(page, stack.label_studio_url, predicted.project_id, predicted.task_id, regions)
        yield page, complaints


def comparable(results: Sequence[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Results by region and control. Answers for the whole image get ids of the editor's own."""
    return {
        (result["id"] if "original_width" in result else "", f"{result['from_name']}:{result['type']}"): result
        for result in results
    }


def alike(sent: Any, kept: Any, name: str = "") -> bool:
    """Whether the editor's value is the one that was sent: numbers within rounding, codes by their length."""
    if isinstance(sent, dict):
        return isinstance(kept, dict) and all(alike(sent[key], kept.get(key), key) for key in sent)
    if name == "rle":  # drawn and encoded anew
        return isinstance(kept, list)
    if isinstance(sent, list):
        return len(sent) == len(kept) and all(alike(one, other) for one, other in zip(sent, kept, strict=True))
    if isinstance(sent, float | int):
        return abs(sent - kept) < 1e-3
    return bool(sent == kept)


@pytest.mark.parametrize(("config", "title"), [(WITH_LABELS, "shapes-with-labels"), (BARE, "bare-shapes")])
def test_the_editor_opens_what_was_predicted_for_every_control(
    stack: Stack, client: LabelStudioClient, scene: Scene, config: str, title: str
) -> None:
    predicted = predict(stack, client, config, scene, title)
    plan = parse_label_config(config)
    assert {c.from_name for c in plan.controls} <= {result["from_name"] for result in predicted.result}
    with opened(stack, predicted, height=2000) as (page, complaints):
        kept = comparable(serialized(page))
        keep_picture(f"every_control/{title}.png", page.screenshot)
    assert complaints == []
    sent = comparable(predicted.result)
    assert kept.keys() == sent.keys()
    for key, result in sent.items():
        assert alike(result["value"], kept[key]["value"]), key
        assert (kept[key]["to_name"], kept[key]["type"]) == (result["to_name"], result["type"])
        if "original_width" in result:
            assert kept[key]["original_width"] == result["original_width"]


@pytest.mark.parametrize(
    ("shape", "picture"),
    [("Brush", "brush"), ("Bitmask", "bitmask"), ("Polygon", "polygon"), ("Rectangle", "rectangle")],
)
def test_the_pixels_on_the_screen_are_those_of_the_known_things(
    stack: Stack, client: LabelStudioClient, scene: Scene, shape: str, picture: str
) -> None:
    config = (
        '<View><Image name="image" value="$image" smoothing="false"/>'
        f'<{shape}Labels name="s" toName="image" fillOpacity="0.6" opacity="0.6">{LABELS}</{shape}Labels></View>'
    )
    predicted = predict(stack, client, config, scene, f"pixels of {shape}")
    masks = masks_from_results(predicted.result, parse_label_config(config)).masks
    sent = np.any(list(masks.values()), axis=0)
    truth = np.any([item.mask for item in scene.objects if item.shape in ("circle", "square", "triangle")], axis=0)
    best = seen = 0.0
    with opened(stack, predicted) as (page, complaints):
        deadline = time.monotonic() + DRAWN_S
        while best < 0.9 and time.monotonic() < deadline:
            best, seen = agreement(page, sent), agreement(page, truth)
        keep_picture(f"every_control/{picture}.png", page.screenshot)
    assert complaints == []
    assert best >= 0.9
    assert seen >= 0.6

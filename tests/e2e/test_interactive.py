"""Auto-annotation in the real editor: a phrase, a rectangle and a point become masks, and it says what came of them.

The documentation's picture is taken here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from label_studio_sdk.converter.brush import decode_rle
from playwright.sync_api import Page

from backend.demo.project import png
from backend.demo.stack import Stack
from backend.label_studio.client import LabelStudioClient
from backend.label_studio.connect import connect_project
from tests.e2e.browser import (
    annotate_interactively,
    choose_label,
    choose_smart_tool,
    chromium_path,
    click,
    complaints_of,
    drag,
    open_task,
    serialized,
    signed_in,
    type_phrase,
)
from tests.pictures import keep_picture
from vlm_core.demo.scenes import Scene, SceneObject, generate_scene
from vlm_core.evaluate import iou

pytestmark = pytest.mark.e2e

CONFIG = """<View style="display: flex; gap: 1.5em">
  <View style="flex: 0 0 18em">
    <Header size="5" value="Ask for something"/>
    <TextArea name="phrase" toName="image" maxSubmissions="20" placeholder="a phrase, then Enter"/>
    <Text name="chat" value="The model says:"/>
    <TextArea name="said" toName="chat" model_text="messages" maxSubmissions="0"/>
    <Header size="5" value="Mark each shape"/>
    <Labels name="what" toName="image">
      <Label value="marked" background="#ffe600"/>
      <Label value="heart" background="#ff1493"/>
    </Labels>
    <Brush name="mask" toName="image"/>
    <Rectangle name="box" toName="image" smart="true" smartOnly="true"/>
    <KeyPoint name="point" toName="image" smart="true" smartOnly="true"/>
  </View>
  <View style="flex: 1 1 0; min-width: 0"><Image name="image" value="$image" maxWidth="500px"/></View>
</View>"""
DRAFT_S = 60.0
SCENE = 4_000_009
"""A blue circle and a green one, a large black heart and a medium one."""


@dataclass(frozen=True)
class Editor:
    """The page, and what the browser complained of."""

    page: Page
    task_id: int
    complaints: list[str]

    def masks(self, label: str) -> list[npt.NDArray[np.bool_]]:
        """Of each region with this label, as Label Studio would save it."""
        regions = [result for result in serialized(self.page) if result["type"] == "labels"]
        return [_mask(region) for region in regions if region["value"].get("labels") == [label]]

    def regions(self) -> int:
        return len({result["id"] for result in serialized(self.page) if "original_width" in result})

    def said(self) -> str:
        (said,) = (result for result in serialized(self.page) if result["from_name"] == "said")
        assert said["type"] == "textarea"
        (text,) = said["value"]["text"]
        assert self.page.get_by_text(text).is_visible()
        return str(text)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return generate_scene(SCENE)


@pytest.fixture(scope="module")
def project_id(stack: Stack, client: LabelStudioClient, scene: Scene) -> int:
    made = int(client.create_project("interactive", CONFIG)["id"])
    connect_project(client, made, stack.backend_url, webhook_secret=stack.credentials.webhook_secret)
    client.update_project(made, show_collab_predictions=False)  # annotators start from nothing here
    return made


@pytest.fixture
def editor(stack: Stack, client: LabelStudioClient, project_id: int, scene: Scene) -> Iterator[Editor]:
    """A task of its own, opened with auto-annotation on."""
    chromium = chromium_path()
    if chromium is None:
        pytest.skip("no Chromium on this machine: install it (apt install chromium), or name one with CHROMIUM")
    client.upload_file(project_id, "scene.png", png(scene), "image/png")
    task_id = max(int(task["id"]) for task in client.tasks(project_id))
    with signed_in(stack.label_studio_url, stack.credentials, chromium) as page:
        complaints = complaints_of(page)
        open_task(page, stack.label_studio_url, project_id, task_id, 0)
        annotate_interactively(page)
        yield Editor(page, task_id, complaints)


def _mask(region: dict[str, Any]) -> npt.NDArray[np.bool_]:
    size_hw = region["original_height"], region["original_width"]
    mask: npt.NDArray[np.bool_] = decode_rle(region["value"]["rle"]).reshape(*size_hw, 4)[..., 3] > 0
    return mask


def _one(scene: Scene, shape: str, **wanted: str) -> SceneObject:
    (found,) = (
        item
        for item in scene.objects
        if item.shape == shape and all(getattr(item, name) == value for name, value in wanted.items())
    )
    return found


def _around(item: SceneObject, scene: Scene, margin: float = 0.03) -> tuple[float, float, float, float]:
    left, top, right, bottom = item.box
    width, height = scene.size
    return left / width - margin, top / height - margin, right / width + margin, bottom / height + margin


def test_a_phrase_a_rectangle_and_a_point_become_masks(editor: Editor, scene: Scene) -> None:
    page = editor.page
    circle = _one(scene, "circle", colour="blue")
    large, medium = (_one(scene, "heart", size=size) for size in ("large", "medium"))

    choose_label(page, "marked")
    type_phrase(page, "blue circle")
    (mask,) = editor.masks("marked")  # the phrase is no label; the editor gave it the one that was selected
    assert iou(mask, circle.mask) >= 0.6
    assert editor.said().startswith('"blue circle": found in 1 place')

    choose_label(page, "heart")
    choose_smart_tool(page, "rectangle-tool")
    drag(page, _around(large, scene))
    (mask,) = editor.masks("heart")
    assert iou(mask, large.mask) >= 0.6
    assert not (mask & medium.mask).any()
    keep_picture("interactive.png", page.screenshot)

    choose_label(page, "heart")
    choose_smart_tool(page, "key-point-tool")
    left, top, right, bottom = medium.box
    click(page, (left + right) / 2 / scene.size[0], (top + bottom) / 2 / scene.size[1])
    first, second = editor.masks("heart")
    assert iou(first, large.mask) >= 0.6
    assert iou(second, medium.mask) >= 0.6
    assert editor.regions() == 3  # of rectangle and point nothing is left
    assert editor.complaints == []


def test_what_is_not_found_is_said_and_asking_again_doubles_nothing(editor: Editor, scene: Scene) -> None:
    page = editor.page
    choose_label(page, "marked")
    type_phrase(page, "yellow square")
    assert editor.said().startswith('Nothing found for "yellow square"')
    assert editor.regions() == 0
    for _ in range(2):
        type_phrase(page, "green circle")
        assert editor.said().startswith('"green circle": found')
        assert len(editor.masks("marked")) == editor.regions() == 1
    choose_smart_tool(page, "rectangle-tool")
    choose_label(page, "heart")
    drag(page, (0.7, 0.8, 0.95, 0.95))
    assert editor.said() == 'Nothing found: no "heart" inside the area'
    assert editor.regions() == 1
    assert editor.complaints == []


def test_a_brush_stroke_shows_what_to_look_for(editor: Editor, client: LabelStudioClient, scene: Scene) -> None:
    page = editor.page
    type_phrase(page, "more like this")
    assert "needs a region to compare with" in editor.said()
    left, top, right, bottom = (
        side / size for side, size in zip(_one(scene, "circle", colour="green").box, 2 * scene.size, strict=True)
    )
    choose_label(page, "marked")
    page.locator("button[aria-label='brush-tool']").first.click()
    drag(page, (0.7 * left + 0.3 * right, (top + bottom) / 2, 0.3 * left + 0.7 * right, (top + bottom) / 2))
    deadline = time.monotonic() + DRAFT_S
    while not any("brush" in str(draft["result"]) for draft in client.task(editor.task_id)["drafts"]):
        assert time.monotonic() < deadline
        page.wait_for_timeout(500)
    type_phrase(page, "more like this")
    # The demo checkpoint hardly understands pictures; that the stroke is read is what can be seen here.
    assert editor.said() == "Nothing found that is like it" or editor.said().startswith('"more like this": found')
    assert editor.complaints == []

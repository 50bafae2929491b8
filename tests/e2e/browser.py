"""Label Studio in a real browser: sign in, open a task, see what is drawn.

Uses a Chromium that the machine has (on PATH, or named by `CHROMIUM`); nothing is downloaded.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from playwright.sync_api import ConsoleMessage, Page, sync_playwright

from backend.demo.label_studio import Credentials
from vlm_core.evaluate import iou

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAIT_MS = 60_000


def chromium_path() -> str | None:
    """The browser to use, None where there is none."""
    given = os.environ.get("CHROMIUM")
    return given or next((found for name in NAMES if (found := shutil.which(name))), None)


@contextmanager
def signed_in(label_studio_url: str, credentials: Credentials, executable: str) -> Iterator[Page]:
    """A page of a headless browser that is signed in to Label Studio."""
    with sync_playwright() as playwright:
        # Without its sandbox: it cannot have one where the tests run as root.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        try:
            page = browser.new_page(viewport={"width": 1500, "height": 900})
            page.set_default_timeout(WAIT_MS)
            page.goto(f"{label_studio_url}/user/login/")
            page.fill("#email", credentials.email)
            page.fill("#password", credentials.password)
            page.click("button[type=submit]")
            page.wait_for_url(lambda url: "/login" not in url)
            yield page
        finally:
            browser.close()


def open_task(page: Page, label_studio_url: str, project_id: int, task_id: int, regions: int) -> None:
    """Open a task in the editor and wait until it has its regions. Its list shows only those whose rows fit in."""
    page.goto(f"{label_studio_url}/projects/{project_id}/data?task={task_id}")
    page.wait_for_selector(".konvajs-content canvas", state="attached")
    page.wait_for_function("n => (Htx.annotationStore.selected?.regions.length ?? -1) >= n", arg=regions)


def complaints_of(page: Page) -> list[str]:
    """Errors of the page and of its console from now on; the list grows."""
    complaints: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        # Label Studio 1.23.2 asks itself for tips that it does not have.
        if message.type == "error" and not message.location["url"].endswith("/heidi-tips"):
            complaints.append(message.text)

    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", listen)
    return complaints


def agreement(page: Page, mask: npt.NDArray[np.bool_]) -> float:
    """The IoU of where the editor has drawn regions and a mask (H, W) of the picture, on the screen's pixels, 0..1."""
    encoded: list[str] = page.eval_on_selector_all(
        ".konvajs-content canvas", "layers => layers.map(layer => layer.toDataURL('image/png'))"
    )
    layers = [Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2]))).convert("RGBA") for text in encoded]
    # The first layer is the picture. Regions are half transparent, with soft edges.
    alphas = [np.asarray(layer)[..., 3] for layer in layers[1:]]
    drawn = np.any([alpha > alpha.max() / 2 for alpha in alphas], axis=0)
    (height, width), (left, top, right, bottom) = mask.shape, _shown(page)
    shown = (left * width, top * height, right * width, bottom * height)
    expected = Image.fromarray(mask).resize((drawn.shape[1], drawn.shape[0]), Image.Resampling.NEAREST, box=shown)
    return iou(drawn, np.asarray(expected))


def annotate_interactively(page: Page) -> None:
    """Turn the editor's auto-annotation on, and have it accept what is suggested; wait until the picture lies still."""
    for toggle in ("bottombar-auto-annotation-toggle", "bottombar-auto-accept-toggle"):
        switch = page.get_by_test_id(toggle)
        switch.wait_for(state="attached")
        if not switch.is_checked():
            switch.check(force=True)
    before: dict[str, float] | None = None
    while (now := _picture(page)) != before:
        before = now
        page.wait_for_timeout(300)


def choose_label(page: Page, label: str) -> None:
    """Select a label, so that what is drawn gets it. Clicked a second time the editor would unselect it."""
    found = page.locator(".lsf-label", has_text=label).first
    if "lsf-label_selected" not in (found.get_attribute("class") or ""):
        found.click()


def choose_smart_tool(page: Page, name: str) -> None:
    """Take a tool of the editor's auto-detect group, such as "rectangle-tool"."""
    group = page.locator(".lsf-toolbar__smart").first
    if group.count():
        group.locator("xpath=ancestor::button").hover()
    page.locator(f".lsf-toolbar__group:last-child button[aria-label='{name}']").last.click(force=True)


def type_phrase(page: Page, phrase: str) -> None:
    """Write into the first text area, press Enter and wait for the answer."""
    page.get_by_test_id("textarea-input").first.fill(phrase)
    page.keyboard.press("Enter")
    answered(page)


def drag(page: Page, box_xyxy: tuple[float, float, float, float]) -> None:
    """Draw from corner to corner, in parts of the picture's width and height, and wait for the answer."""
    left, top, right, bottom = box_xyxy
    page.mouse.move(*_on_screen(page, left, top))
    page.mouse.down()
    page.mouse.move(*_on_screen(page, right, bottom), steps=10)
    page.mouse.up()
    answered(page)


def click(page: Page, x: float, y: float) -> None:
    """Click on the picture, in parts of its width and height, and wait for the answer."""
    page.mouse.click(*_on_screen(page, x, y))
    answered(page)


def answered(page: Page) -> None:
    """Wait until nothing is asked of the backend any more."""
    page.wait_for_timeout(300)  # the editor asks after the event
    page.wait_for_function("() => !Htx.awaitingSuggestions")


def serialized(page: Page) -> list[dict[str, Any]]:
    """What the editor would save of what it shows."""
    found: list[dict[str, Any]] = page.evaluate("() => Htx.annotationStore.selected.serializeAnnotation()")
    return found


def _picture(page: Page) -> dict[str, float]:
    box = page.locator(".konvajs-content").first.bounding_box()
    assert box is not None
    return dict(box)


def _shown(page: Page) -> tuple[float, float, float, float]:
    """The part of the picture that can be seen, `xyxy`, in parts of its width and height.

    A small picture is enlarged a little beyond its frame, about the middle.
    """
    found: list[float] = page.evaluate(
        """() => {
            const stage = Konva.stages[0];
            const image = [...Htx.annotationStore.selected.objects].find(object => object.type === 'image');
            const width = stage.scaleX() * image.stageWidth, height = stage.scaleY() * image.stageHeight;
            return [-stage.x() / width, -stage.y() / height,
                    (stage.width() - stage.x()) / width, (stage.height() - stage.y()) / height];
        }"""
    )
    left, top, right, bottom = (min(max(value, 0.0), 1.0) for value in found)
    return left, top, right, bottom


def _on_screen(page: Page, x: float, y: float) -> tuple[float, float]:
    box, (left, top, right, bottom) = _picture(page), _shown(page)
    return (
        box["x"] + (x - left) / (right - left) * box["width"],
        box["y"] + (y - top) / (bottom - top) * box["height"],
    )

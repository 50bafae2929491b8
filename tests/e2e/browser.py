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

import numpy as np
import numpy.typing as npt
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from backend.demo.label_studio import Credentials

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
    """Open a task in the editor and wait until its regions are listed."""
    page.goto(f"{label_studio_url}/projects/{project_id}/data?task={task_id}")
    page.wait_for_selector(".konvajs-content canvas", state="attached")
    page.wait_for_function("n => document.querySelectorAll('.lsf-outliner-item').length >= n", arg=regions)


def drawn_regions(page: Page) -> npt.NDArray[np.bool_]:
    """Where the editor has drawn regions over the picture: bool (H, W), screen pixels of the whole picture."""
    encoded: list[str] = page.eval_on_selector_all(
        ".konvajs-content canvas", "layers => layers.map(layer => layer.toDataURL('image/png'))"
    )
    layers = [Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2]))).convert("RGBA") for text in encoded]
    # The first layer is the picture. Regions are half transparent, with soft edges.
    alphas = [np.asarray(layer)[..., 3] for layer in layers[1:]]
    return np.any([alpha > alpha.max() / 2 for alpha in alphas], axis=0)  # type: ignore[no-any-return]

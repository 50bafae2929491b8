"""The page in a real browser: nothing is wrong on its console, and it fits a phone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from playwright.sync_api import Browser, sync_playwright

from backend.api.routes import page_response
from backend.page.views import StatusView
from tests.backend.page.views import HOSTILE, busy, status
from tests.e2e.browser import chromium_path

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = chromium_path()
    if executable is None:
        pytest.skip("no Chromium on this machine: install it (apt install chromium), or name one with CHROMIUM")
    with sync_playwright() as playwright:
        # Without its sandbox: it cannot have one where the tests run as root.
        chromium = playwright.chromium.launch(
            executable_path=executable, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield chromium
        chromium.close()


class Source:
    """Stands for `backend.page.gather.PageSource`."""

    def __init__(self, view: StatusView) -> None:
        self._view = view

    def view(self, project_id: int | None = None) -> StatusView:
        return self._view


@contextmanager
def served(view: StatusView) -> Iterator[str]:
    """The page with its headers on a free port; gives its address."""
    app = FastAPI()
    app.add_route("/", lambda request: page_response(Source(view), None, refresh=True))  # type: ignore[arg-type]
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


VIEWS = {"empty": status(), "busy": busy(), "hostile": busy(HOSTILE)}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("name", VIEWS)
def test_it_fits_and_nothing_is_wrong(browser: Browser, name: str, size: Any, scheme: Any) -> None:
    with served(VIEWS[name]) as address:
        page = browser.new_page(viewport=size, color_scheme=scheme)
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("requestfailed", lambda request: said.append(request.url))
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        page.locator("summary").click()
        assert said == []
        assert {url for url in requests if not url.startswith("data:")} == {address}
        assert page.title() == "Label Studio VLM backend"  # no script of a title has changed it
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide == size["width"], "it scrolls sideways"
        assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
        # Text and paper differ, whichever the scheme: WCAG asks for 4.5.
        assert page.evaluate(CONTRAST) >= 4.5
        # The style sheet is applied, so its hash is the one that the policy names.
        assert page.evaluate("getComputedStyle(document.querySelector('.chips')).listStyleType") == "none"
        page.close()


CONTRAST = """() => {
  const level = colour => {
    const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = colour.match(/[\\d.]+/g).map(v => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = level(getComputedStyle(document.body).backgroundColor);
  const least = [...document.querySelectorAll('body, .soft, .tiles dt, th, summary')].map(element => {
    const ink = level(getComputedStyle(element).color);
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  });
  return Math.min(...least);
}"""


def test_the_chart_is_drawn_in_the_colours_of_its_legend(browser: Browser) -> None:
    with served(busy()) as address:
        page = browser.new_page(viewport=PHONE)
        page.goto(address)
        fill = page.evaluate("getComputedStyle(document.querySelector('.chart rect.kept')).fill")
        legend = page.evaluate("getComputedStyle(document.querySelector('.legend .k'), '::before').backgroundColor")
        assert fill == legend
        box = page.locator(".chart").first.bounding_box()
        assert box is not None
        assert box["width"] > 300
        assert box["height"] > 120
        page.close()

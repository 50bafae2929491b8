"""What a person sees of a report, in a real browser: on a desk and on a phone.

With `VLM_PICTURES` naming a directory (`make pictures`) the README's picture of a report is taken there.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from typer.testing import CliRunner

from backend.cli import app
from tests.e2e.browser import chromium_path

PICTURE = "evaluation.png"
PICTURE_SIZE = (1100, 900)
PICTURE_SCENES = 300
DESK, PHONE = (1280, 900), (360, 740)

TOO_WIDE = """() => [...document.querySelectorAll('body *')].filter(e => {
    const box = e.getBoundingClientRect()
    return !e.closest('.scroll') && (box.right > innerWidth + 0.5 || box.left < -0.5)
}).map(e => e.outerHTML.slice(0, 120))"""
CUT_OFF = """() => [...document.querySelectorAll('body *')].filter(e =>
    !e.matches('.scroll') && getComputedStyle(e).display !== 'inline' && e.scrollWidth > e.clientWidth + 1
).map(e => e.outerHTML.slice(0, 120))"""
BROKEN_WORDS = """() => [...document.querySelectorAll('th, td')].filter(e => {
    const range = document.createRange()
    range.selectNodeContents(e)
    const words = e.textContent.trim().split(' ').length
    return new Set([...range.getClientRects()].map(r => r.top)).size > words
}).map(e => e.textContent)"""
NOT_SHOWN = "() => [...document.images].filter(i => !i.complete || !i.naturalWidth).length"
SMALLEST_TEXT = """() => Math.min(...[...document.querySelectorAll('body *')]
    .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
    .map(e => parseFloat(getComputedStyle(e).fontSize)))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = chromium_path()
    if chromium is None:
        pytest.skip("no Chromium on this machine: install it (apt install chromium), or name one with CHROMIUM")
    with sync_playwright() as playwright:
        # Without its sandbox: it cannot have one where the tests run as root.
        launched = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage", "--force-color-profile=srgb"]
        )
        yield launched
        launched.close()


def report(task: str, scenes: int, out: Path) -> str:
    """Measure the demo checkpoint, and give the address of the page."""
    arguments = ["evaluate", "--task", task, "--scenes", str(scenes), "--device", "cpu", "--quiet", "--out", str(out)]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    return (out / "report.html").as_uri()


def opened(browser: Browser, address: str, size: tuple[int, int]) -> Page:
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    page.goto(address)
    return page


@pytest.mark.parametrize("task", ["segmentation", "matching", "tagging"])
def test_a_report_is_readable_on_a_desk_and_on_a_phone(task: str, tmp_path: Path, browser: Browser) -> None:
    address = report(task, 6, tmp_path)
    for size in (DESK, PHONE):
        page = opened(browser, address, size)
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert page.evaluate(TOO_WIDE) == []
        assert page.evaluate(CUT_OFF) == []
        assert page.evaluate(NOT_SHOWN) == 0
        assert page.evaluate(SMALLEST_TEXT) >= 12
        assert page.evaluate(BROKEN_WORDS) == []
        page.close()


def test_the_picture_of_the_readme_is_taken(tmp_path: Path, browser: Browser) -> None:
    folder = os.environ.get("VLM_PICTURES")
    if not folder:
        pytest.skip("VLM_PICTURES names no directory for the picture")
    page = opened(browser, report("segmentation", PICTURE_SCENES, tmp_path), PICTURE_SIZE)
    take_picture(page).save(Path(folder) / PICTURE, optimize=True)


def take_picture(page: Page) -> Image.Image:
    """From the top to the end of the first cases."""
    cases = page.locator(".cases").first.bounding_box()
    assert cases is not None
    height = round(cases["y"] + cases["height"]) + 16
    clip = {"x": 0, "y": 0, "width": PICTURE_SIZE[0], "height": height}
    return Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip))).convert("RGB")

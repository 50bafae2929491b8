"""The page at `/` after a round trip on a real Label Studio, with annotators who keep what is good.

The pictures of docs/status-page.md are taken here.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import sync_playwright

from backend.acceptance import AcceptanceStore
from backend.acceptance_figures import Tally, by_version
from backend.demo.project import Picture, pictures, pictures_of_tasks, png
from backend.demo.round_trip import RoundTrip, served_version
from backend.demo.stack import Stack
from backend.label_studio.client import LabelStudioClient
from backend.versions import read_version_name
from tests.e2e.browser import chromium_path
from tests.e2e.harness import PreLabelled, brush_masks
from tests.pictures import keep_picture
from vlm_core.evaluate import iou

pytestmark = pytest.mark.e2e

MORE, FIRST_SEED = 12, 3_600_000
GOOD = 0.85
"""IoU from which our annotator leaves a mask as it is."""
READ_S = 300.0


def accept(client: LabelStudioClient, task_id: int, picture: Picture, prediction: dict[str, Any]) -> Tally:
    """Annotate a task as a person does: keep what is good, draw the rest anew. Gives what became of the masks."""
    predicted, truth, fates = brush_masks(prediction), picture.truth(), Tally()
    drawn = {region["value"]["brushlabels"][0]: region for region in picture.annotation() if "brush" in region["type"]}
    result = [region for region in picture.annotation() if region["type"] == "choices"]
    for label in dict.fromkeys((*predicted, *truth)):
        if label not in truth:
            fates.removed += 1
        elif label not in predicted:
            result.append(drawn[label])
            fates.added += 1
        elif iou(predicted[label], truth[label]) >= GOOD:
            kept = [
                r for r in prediction["result"] if r["type"] == "brushlabels" and label in r["value"]["brushlabels"]
            ]
            result += [{**region, "origin": "prediction"} for region in kept]
            fates.kept += 1
        else:
            result.append(drawn[label])
            fates.changed += 1
    client.create_annotation(task_id, result, lead_time=9.0, parent_prediction=int(prediction["id"]))
    return fates


def test_the_page_tells_what_annotators_made_of_the_better_version(
    stack: Stack, client: LabelStudioClient, pre_labelled: PreLabelled, round_trip: RoundTrip
) -> None:
    chromium = chromium_path()
    if chromium is None:
        pytest.skip("no Chromium on this machine: install it (apt install chromium), or name one with CHROMIUM")
    project_id = pre_labelled.project_id
    served = served_version(client, project_id)
    name = read_version_name(served or "")
    assert name is not None
    images = list(pictures(MORE, first_seed=FIRST_SEED))
    for image in images:
        client.upload_file(project_id, image.name, png(image.scene), "image/png")
    tasks = pictures_of_tasks(client, project_id, images)
    client.retrieve_predictions(project_id, list(tasks))
    expected = Tally()
    for task_id, image in tasks.items():
        (prediction,) = [item for item in client.task_predictions(task_id) if item["model_version"] == served]
        fates = accept(client, task_id, image, prediction)
        for fate in ("kept", "changed", "removed", "added"):
            setattr(expected, fate, getattr(expected, fate) + getattr(fates, fate))

    # The worker reads them in a training that finds too little to learn.
    store, deadline = AcceptanceStore(stack.vlm_dir), time.monotonic() + READ_S
    while (found := by_version(store.get(project_id).records)).get(name.number, Tally()).images < MORE:
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    records = [record for record in store.get(project_id).records if record.version == name.number]
    masks = [outcome for record in records for outcome in record.labels if outcome.iou is not None]
    for fate in ("kept", "changed", "removed", "added"):
        assert sum(outcome.fate == fate for outcome in masks) == getattr(expected, fate), fate
    assert expected.kept > 0
    assert not any(record.afresh for record in store.get(project_id).records)
    assert found[0].images == len(pre_labelled.tasks) - len(pre_labelled.left_alone)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        said: list[str] = []
        for width in (390, 1000):
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.on("console", lambda message: said.append(message.text))
            page.goto(f"{stack.backend_url}/?project={project_id}&refresh=off")
            while "Coloured shapes" not in (text := page.locator(f"#project-{project_id}").inner_text()):
                assert time.monotonic() < deadline, text  # Label Studio's title comes in the background
                page.reload()
            assert f"Version {name.number} serves as {served}" in " ".join(text.split())
            assert "drawn beside a prediction" not in text
            assert page.evaluate("document.documentElement.scrollWidth") == width
            wide = width > 390
            keep_picture(
                "status-page.png" if wide else "status-page-phone.png",
                lambda page=page, wide=wide: page.screenshot(full_page=wide),
                colours=128,
            )
            page.close()
        browser.close()
    assert said == []
    assert np.isfinite([outcome.iou for outcome in masks]).all()

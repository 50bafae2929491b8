"""What an annotator sees in a real browser; the README's picture is taken here."""

from __future__ import annotations

import time

import numpy as np
import pytest

from backend.demo.stack import Stack
from backend.label_studio.client import LabelStudioClient
from tests.e2e.browser import agreement, chromium_path, open_task, signed_in
from tests.e2e.harness import PreLabelled, brush_masks
from tests.pictures import keep_picture

pytestmark = pytest.mark.e2e

DRAWN_S = 30.0


def test_the_masks_are_drawn_where_they_belong(
    stack: Stack, client: LabelStudioClient, pre_labelled: PreLabelled
) -> None:
    chromium = chromium_path()
    if chromium is None:
        pytest.skip("no Chromium on this machine: install it (apt install chromium), or name one with CHROMIUM")
    # A task that nobody corrects: what is seen is the model's. Of those the one with most to see.
    task_id = max(pre_labelled.left_alone, key=lambda one: len(brush_masks(pre_labelled.predictions[one][0])))
    # The editor shows the prediction of one version; which one depends on the tests that ran before.
    versions = [brush_masks(prediction) for prediction in client.task_predictions(task_id)]
    assert all(len(masks) >= 2 for masks in versions)
    best, labels = 0.0, {}
    with signed_in(stack.label_studio_url, stack.credentials, chromium) as page:
        open_task(page, stack.label_studio_url, pre_labelled.project_id, task_id, min(map(len, versions)))
        deadline = time.monotonic() + DRAWN_S
        while best < 0.9 and time.monotonic() < deadline:
            for masks in versions:
                seen = agreement(page, np.any(list(masks.values()), axis=0))
                if seen > best:
                    best, labels = seen, masks
        listed = {title.strip() for title in page.locator(".lsf-outliner-item__title").all_inner_texts()}
        keep_picture("label-studio.png", page.screenshot)
    assert best >= 0.9
    assert listed == set(labels)

"""The product's main job on a real Label Studio, a real Redis and a worker."""

from __future__ import annotations

import httpx
import numpy as np
import pytest
from label_studio_sdk.label_interface import LabelInterface

from backend.demo.project import LABELS, NEW_SHAPE, label_config
from backend.demo.round_trip import RoundTrip, print_round_trip, served_version
from backend.demo.stack import Stack
from backend.label_studio.client import LabelStudioClient
from backend.label_studio.connect import connect_project
from tests.e2e.harness import SCENES, PreLabelled, brush_masks
from vlm_core.demo.scenes import KNOWN_SHAPES
from vlm_core.evaluate import iou

pytestmark = pytest.mark.e2e


def test_every_picture_gets_one_valid_prediction_of_the_served_version(pre_labelled: PreLabelled) -> None:
    interface = LabelInterface(label_config())
    assert set(pre_labelled.predictions) == set(pre_labelled.tasks)
    for task_id, predictions in pre_labelled.predictions.items():
        assert [item["model_version"] for item in predictions] == [pre_labelled.version], task_id
        (prediction,) = predictions
        assert 0.0 <= prediction["score"] <= 1.0
        told = {"result": prediction["result"], "score": prediction["score"]}
        assert interface.validate_prediction(told, return_errors=True) == []
        assert all(0.0 <= region["score"] <= 1.0 for region in prediction["result"])
    assert pre_labelled.version.startswith(f"demo-p{pre_labelled.project_id}-v000-")


def test_decoded_masks_agree_with_the_truth(pre_labelled: PreLabelled) -> None:
    scores = []
    for task_id, picture in pre_labelled.tasks.items():
        predicted = brush_masks(pre_labelled.predictions[task_id][0])
        for label, true in picture.truth().items():
            if label in KNOWN_SHAPES:
                nothing = np.zeros_like(true)
                assert predicted.get(label, nothing).shape == true.shape
                scores.append(iou(predicted.get(label, nothing), true))
    print(f"mean IoU of {len(scores)} masks: {np.mean(scores):.3f}")
    assert len(scores) > 100
    assert np.mean(scores) >= 0.6


def test_the_right_descriptions_are_chosen(pre_labelled: PreLabelled) -> None:
    right = 0
    for task_id, picture in pre_labelled.tasks.items():
        result = pre_labelled.predictions[task_id][0]["result"]
        (choice,) = [region for region in result if region["type"] == "choices"]
        right += choice["value"]["choices"] == [picture.description]
    print(f"right descriptions: {right} of {len(pre_labelled.tasks)}")
    assert right / len(pre_labelled.tasks) >= 0.9


def test_corrections_make_a_better_version_that_label_studio_uses(
    pre_labelled: PreLabelled, round_trip: RoundTrip, client: LabelStudioClient
) -> None:
    print_round_trip(round_trip, SCENES)
    assert round_trip.failures() == []
    assert round_trip.before.model_version == pre_labelled.version
    after = round_trip.after.model_version
    assert after != pre_labelled.version
    assert after.startswith(f"demo-p{pre_labelled.project_id}-v0")
    assert served_version(client, pre_labelled.project_id) == after
    for task_id in pre_labelled.left_alone:
        # The earlier prediction stays; the new version's is added.
        assert {item["model_version"] for item in client.task_predictions(task_id)} == {pre_labelled.version, after}
    assert set(round_trip.after.labels) == set(LABELS)
    assert round_trip.after.labels[NEW_SHAPE].iou > round_trip.before.labels[NEW_SHAPE].iou


def test_connecting_again_changes_nothing(pre_labelled: PreLabelled, stack: Stack, client: LabelStudioClient) -> None:
    def seen() -> tuple[list[int], list[int], str]:
        backends = [int(item["id"]) for item in client.ml_backends(pre_labelled.project_id)]
        hooks = [int(item["id"]) for item in client.webhooks(pre_labelled.project_id)]
        return backends, hooks, str(client.project(pre_labelled.project_id)["model_version"])

    before = seen()
    secret = stack.credentials.webhook_secret
    connect_project(client, pre_labelled.project_id, stack.backend_url, webhook_secret=secret)
    assert seen() == before
    assert [len(ids) for ids in before[:2]] == [1, 1]


def test_an_annotation_event_without_the_secret_is_refused(pre_labelled: PreLabelled, stack: Stack) -> None:
    event = {"action": "ANNOTATION_CREATED", "project": {"id": pre_labelled.project_id}}
    response = httpx.post(f"{stack.backend_url}/webhook", json=event, trust_env=False)
    assert response.status_code == 401
    assert stack.credentials.webhook_secret not in response.text
